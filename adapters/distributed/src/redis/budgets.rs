//! Token buckets that all processes share: one script a call. Time is the server's: the callers' clocks may be set, and differ.
//! A bucket's never goes back but where that clock was set back, so that two servers of which one takes the other's place do
//! not fill it twice.

use std::sync::LazyLock;

use async_trait::async_trait;
use herald_core::{
    bucket::{Ask, Bucket, Lease, MAX_TOKENS},
    ports::{StoreError, budgets::Budgets},
};
use redis::Script;

use super::Redis;

static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("budgets.lua")));

/// A bucket is kept so much longer than it takes to fill; then it is made anew, full.
const KEPT_MS: u64 = 60_000;

/// Ten years.
const MAX_KEPT_MS: u64 = 315_360_000_000;

/// Millionths of a token in a token.
const MICROS: u64 = 1_000_000;

/// Buckets in Redis.
#[derive(Clone)]
pub struct RedisBudgets {
    redis: Redis,
    is_told_the_time: bool,
}

impl RedisBudgets {
    /// Buckets behind a connection.
    pub fn new(redis: Redis) -> Self {
        Self { redis, is_told_the_time: false }
    }

    /// Buckets that go by what the callers say that the time is, for tests.
    pub fn told_the_time(redis: Redis) -> Self {
        Self { redis, is_told_the_time: true }
    }
}

/// What becomes of asks whose buckets hold so much: the same as the script has decided.
fn decide(asks: &[Ask], buckets: &[Bucket]) -> Lease {
    let given: Vec<u64> =
        asks.iter().zip(buckets).map(|(ask, bucket)| bucket.tokens(ask.floor).min(ask.tokens)).collect();
    let wait = |at: usize| (buckets[at].wait_ms(asks[at].tokens, asks[at].floor), at);
    let longest = (0..asks.len()).filter(|at| given[*at] == 0 && asks[*at].tokens > 0).map(wait).max();
    match longest {
        Some((retry_after_ms, ask)) => Lease::Denied { ask, retry_after_ms },
        None => Lease::Granted(given),
    }
}

#[async_trait]
impl Budgets for RedisBudgets {
    async fn lease(&self, groups: &[Vec<Ask>], now_ms: u64) -> Result<Vec<Lease>, StoreError> {
        // A group takes of several buckets at once, so all buckets are in one slot.
        let slot = self.redis.key("budgets");
        let told = if self.is_told_the_time { now_ms.to_string() } else { String::new() };
        let mut call = LEASE.arg(told);
        for group in groups {
            for (at, Ask { bucket, quota, tokens, floor }) in group.iter().enumerate() {
                let (micros, capacity) = (quota.micros_per_s(), quota.capacity());
                let kept_ms = quota.ms_for(capacity).saturating_add(KEPT_MS).min(MAX_KEPT_MS);
                call.key(format!("{slot}{bucket}"));
                call.arg(u8::from(at == 0)).arg(micros / MICROS).arg(micros % MICROS).arg(capacity);
                call.arg((*tokens).min(MAX_TOKENS)).arg((*floor).min(MAX_TOKENS)).arg(kept_ms);
            }
        }
        let held: Vec<u64> = self.redis.script(&call).await?;
        let (pairs, _) = held.as_chunks::<2>();
        let asks = groups.iter().map(Vec::len).sum::<usize>();
        if pairs.len() != asks {
            return Err(StoreError::Damaged(format!("Redis answered {} asks of {asks}", pairs.len())));
        }
        let mut pairs = pairs.iter();
        let leases = groups.iter().map(|group| {
            let bucket =
                |(ask, [tokens, nanos]): (&Ask, &[u64; 2])| Bucket::holding(ask.quota, *tokens, *nanos, now_ms);
            let buckets: Vec<Bucket> = group.iter().zip(pairs.by_ref()).map(bucket).collect();
            decide(group, &buckets)
        });
        Ok(leases.collect())
    }
}
