//! What a member of a role has leased of the shared buckets: it asks for a few tokens ahead, so that most batches need no
//! round trip, and goes on with its share of the rate while the store of the buckets is away.

use std::{collections::HashMap, sync::Arc};

use crate::{
    bucket::{Ask, Buckets, Lease, Quota},
    outage::Outage,
    ports::{
        StoreError,
        budgets::{Budgets, LEASE_MS},
    },
};

/// A lease brings what this time brings, so that one member leaves something to the others.
const CHUNK_MS: u64 = 50;

/// The most tokens that are leased ahead.
const MAX_CHUNK: u64 = 4_096;

/// How long the store of the buckets is left alone after it failed.
const AWAY_MS: u64 = 1_000;

/// Pots are looked through for stale ones when there are so many.
const MAX_POTS: usize = 1_024;

/// A bucket and its quota.
pub type Budget = (Arc<str>, Quota);

/// What a batch may send.
#[derive(Debug, Default)]
pub struct Taken {
    /// So many tokens were taken of every bucket.
    pub tokens: u64,
    /// When the rest is worth asking for again, in milliseconds from now; [`u64::MAX`] while the quotas stay as they are.
    pub retry_after_ms: u64,
    /// The budget that has the least, if the tokens are fewer than were wanted.
    pub short: Option<Budget>,
}

#[derive(Debug, Default)]
struct Pot {
    tokens: u64,
    expires_ms: u64,
    /// Taken of the member's own share while the store was away: what the store gives next pays for it.
    owed: u64,
}

impl Pot {
    fn drop_stale(&mut self, now_ms: u64) {
        if now_ms >= self.expires_ms {
            (self.tokens, self.expires_ms) = (0, 0);
        }
    }
}

/// Leased tokens by bucket.
pub struct Leases {
    port: Arc<dyn Budgets>,
    members: u32,
    pots: HashMap<Arc<str>, Pot>,
    /// This member's share, for when the port is away.
    own: Buckets,
    outage: Arc<Outage>,
    is_away: bool,
    away_until_ms: u64,
}

impl Leases {
    /// What the members of a process say while the store of the buckets is away.
    pub fn outage() -> Arc<Outage> {
        let what = "the budgets do not answer; each member goes on with its share of the limits";
        Arc::new(Outage::new(what, "see that the cache answers and has room"))
    }

    /// Nothing is leased yet. `members` share the buckets, and those of this process their `outage`.
    pub fn new(port: Arc<dyn Budgets>, members: u32, outage: Arc<Outage>) -> Self {
        Self {
            port,
            members: members.max(1),
            pots: HashMap::new(),
            own: Buckets::starting_empty(),
            outage,
            is_away: false,
            away_until_ms: 0,
        }
    }

    /// The share of a quota that is this member's where all want as much as they can get.
    pub fn share(&self, quota: Quota) -> Quota {
        quota.shared_by(self.members)
    }

    /// Takes up to so many tokens of every bucket: the least of what all of them have. Unless `urgent`, a quarter of each
    /// bucket is left to those who are. `now_ms` is steady time.
    pub async fn take(&mut self, budgets: &[Budget], tokens: u64, urgent: bool, now_ms: u64) -> Taken {
        let mut asks = Vec::new();
        for (bucket, quota) in budgets {
            let pot = self.pots.entry(bucket.clone()).or_default();
            pot.drop_stale(now_ms);
            if pot.tokens < tokens {
                let chunk = quota.shared_by(self.members).tokens_in(CHUNK_MS).clamp(1, MAX_CHUNK);
                let floor = if urgent { 0 } else { quota.capacity() / 4 };
                // A full bucket pays any debt.
                pot.owed = pot.owed.min(quota.capacity());
                let tokens = (tokens - pot.tokens).max(chunk).saturating_add(pot.owed);
                asks.push(Ask { bucket: bucket.clone(), quota: *quota, tokens, floor });
            }
        }
        let mut denied = None;
        if !asks.is_empty() {
            match self.lease(&asks, now_ms).await {
                Lease::Granted(granted) => self.fill(&asks, &granted, now_ms),
                Lease::Denied { ask, retry_after_ms } => {
                    denied = asks.get(ask).map(|ask| (retry_after_ms, (ask.bucket.clone(), ask.quota)));
                }
            }
        }
        let taken = self.debit(budgets, tokens);
        let mut short = None;
        if taken < tokens {
            let wait_ms = |(_, quota): &Budget| quota.ms_for((tokens - taken).min(quota.capacity()).max(1));
            let empty = |(bucket, _): &&Budget| self.pots.get(bucket).is_none_or(|pot| pot.tokens == 0);
            let longest = || budgets.iter().filter(empty).map(|budget| (wait_ms(budget), budget.clone()));
            short = denied.or_else(|| longest().max_by_key(|(wait_ms, _)| *wait_ms));
        }
        self.forget_stale(now_ms);
        let retry_after_ms = short.as_ref().map_or(0, |(wait_ms, _)| *wait_ms);
        Taken { tokens: taken, retry_after_ms, short: short.map(|(_, budget)| budget) }
    }

    /// Gives back what was taken just now and not used.
    pub fn put_back(&mut self, budgets: &[Budget], tokens: u64) {
        for (bucket, _) in budgets {
            // A pot that is gone, or was filled anew, would make the tokens last longer than their lease.
            if let Some(pot) = self.pots.get_mut(bucket).filter(|pot| pot.expires_ms > 0) {
                pot.tokens += tokens;
            }
        }
    }

    async fn lease(&mut self, asks: &[Ask], now_ms: u64) -> Lease {
        if now_ms >= self.away_until_ms {
            let error = match self.port.lease(&[asks.to_vec()], now_ms).await.map(|leases| leases.into_iter().next()) {
                Ok(Some(lease)) => {
                    self.is_away = false;
                    self.outage.answered(now_ms);
                    return lease;
                }
                Ok(None) => StoreError::Damaged("a lease was not answered".into()),
                Err(error) => error,
            };
            self.outage.failed(&error, 0, now_ms);
            self.away_until_ms = now_ms + AWAY_MS;
            if !std::mem::replace(&mut self.is_away, true) {
                self.own = Buckets::starting_empty();
            }
        }
        let share = |ask: &Ask| {
            let quota = ask.quota.shared_by(self.members);
            let owed = self.pots.get(&ask.bucket).map_or(0, |pot| pot.owed);
            let floor = ask.floor.min(quota.capacity() / 4);
            Ask { quota, floor, tokens: ask.tokens.saturating_sub(owed), ..ask.clone() }
        };
        let asks: Vec<Ask> = asks.iter().map(share).collect();
        self.own.lease(&asks, now_ms)
    }

    fn fill(&mut self, asks: &[Ask], granted: &[u64], now_ms: u64) {
        for (ask, granted) in asks.iter().zip(granted) {
            let pot = self.pots.entry(ask.bucket.clone()).or_default();
            // What was left is used first, and the whole pot lasts no longer than it.
            if pot.tokens == 0 {
                pot.expires_ms = now_ms + LEASE_MS;
            }
            if self.is_away {
                pot.owed += granted;
                pot.tokens += granted;
            } else {
                let paid = pot.owed.min(*granted);
                pot.owed -= paid;
                pot.tokens += granted - paid;
            }
        }
    }

    fn debit(&mut self, budgets: &[Budget], tokens: u64) -> u64 {
        let in_pot = |(bucket, _): &Budget| self.pots.get(bucket).map_or(0, |pot| pot.tokens);
        let taken = budgets.iter().map(in_pot).fold(tokens, u64::min);
        for (bucket, _) in budgets {
            if let Some(pot) = self.pots.get_mut(bucket) {
                pot.tokens -= taken;
            }
        }
        taken
    }

    fn forget_stale(&mut self, now_ms: u64) {
        if self.pots.len() >= MAX_POTS {
            self.pots.retain(|_, pot| {
                pot.drop_stale(now_ms);
                pot.tokens + pot.owed > 0
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::Mutex,
        task::{Context, Poll, Waker},
    };

    use async_trait::async_trait;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Store {
        buckets: Mutex<Buckets>,
        calls: Mutex<u64>,
        away: Mutex<bool>,
    }

    #[async_trait]
    impl Budgets for Store {
        async fn lease(&self, groups: &[Vec<Ask>], now_ms: u64) -> Result<Vec<Lease>, StoreError> {
            *self.calls.lock().unwrap() += 1;
            if *self.away.lock().unwrap() {
                return Err(StoreError::Unavailable("away".into()));
            }
            let mut buckets = self.buckets.lock().unwrap();
            Ok(groups.iter().map(|asks| buckets.lease(asks, now_ms)).collect())
        }
    }

    fn leases(store: Arc<Store>, members: u32) -> Leases {
        Leases::new(store, members, Leases::outage())
    }

    /// The store above answers at once.
    fn take(leases: &mut Leases, budgets: &[Budget], tokens: u64, now_ms: u64) -> Taken {
        take_as(leases, budgets, tokens, true, now_ms)
    }

    fn take_as(leases: &mut Leases, budgets: &[Budget], tokens: u64, urgent: bool, now_ms: u64) -> Taken {
        let mut future = pin!(leases.take(budgets, tokens, urgent, now_ms));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => taken,
            Poll::Pending => panic!("the store answers at once"),
        }
    }

    fn budget(name: &str, per_second: f64, burst: u64) -> Budget {
        (name.into(), Quota::new(per_second, burst).unwrap())
    }

    #[test]
    fn most_batches_need_no_round_trip() {
        let store = Arc::new(Store::default());
        let mut leases = leases(store.clone(), 2);
        let fast = [budget("fast", 100_000.0, 100_000)];
        for _ in 0..100 {
            assert_eq!(take(&mut leases, &fast, 25, 0).tokens, 25);
        }
        assert_eq!(*store.calls.lock().unwrap(), 1, "a chunk is 100,000 x 50 ms / 2 = 2,500 tokens");
        assert_eq!(take(&mut leases, &fast, 25, LEASE_MS).tokens, 25);
        assert_eq!(*store.calls.lock().unwrap(), 2);
    }

    #[test]
    fn the_least_of_all_pots_is_taken_of_each() {
        let store = Arc::new(Store::default());
        let mut leases = leases(store.clone(), 1);
        let (wide, narrow) = (budget("wide", 10.0, 100), budget("narrow", 2.0, 3));
        let taken = take(&mut leases, &[wide.clone(), narrow.clone()], 8, 0);
        assert_eq!((taken.tokens, taken.retry_after_ms), (3, 1_500), "the narrow one needs time for three more");
        let taken = take(&mut leases, &[wide.clone(), narrow.clone()], 8, 100);
        assert_eq!((taken.tokens, taken.retry_after_ms), (0, 1_400));
        // Five of the wide pot were leased in vain and are not lost yet.
        assert_eq!(take(&mut leases, &[wide], 200, 100).tokens, 98);
        leases.put_back(std::slice::from_ref(&narrow), 1);
        assert_eq!(take(&mut leases, &[narrow], 1, 200).tokens, 1);
    }

    #[test]
    fn what_was_not_used_in_time_is_lost() {
        let store = Arc::new(Store::default());
        let mut leases = leases(store, 1);
        let some = [budget("some", 100.0, 5)];
        assert_eq!(take(&mut leases, &some, 1, 0).tokens, 1);
        assert_eq!(take(&mut leases, &some, 9, 10_000).tokens, 5);
    }

    #[test]
    fn bulk_leaves_a_quarter_to_what_is_urgent() {
        let store = Arc::new(Store::default());
        let mut leases = leases(store, 1);
        let some = [budget("some", 1.0, 8)];
        assert_eq!(take_as(&mut leases, &some, 8, false, 0).tokens, 6);
        assert_eq!(take(&mut leases, &some, 8, 0).tokens, 2);
    }

    #[test]
    fn while_the_store_is_away_a_member_has_its_share() {
        let store = Arc::new(Store::default());
        *store.away.lock().unwrap() = true;
        let mut leases = leases(store.clone(), 4);
        let some = [budget("some", 40.0, 40)];
        let taken = take(&mut leases, &some, 100, 10_000);
        assert_eq!((taken.tokens, *store.calls.lock().unwrap()), (0, 1), "others may just have emptied the bucket");
        let taken = take(&mut leases, &some, 100, 10_500);
        assert_eq!((taken.tokens, *store.calls.lock().unwrap()), (5, 1), "it is left alone for a second");
        assert_eq!(take(&mut leases, &some, 100, 11_000).tokens, 5);
        *store.away.lock().unwrap() = false;
        assert_eq!(take(&mut leases, &some, 100, 12_000).tokens, 30, "what was taken meanwhile is paid for");
        assert_eq!(take(&mut leases, &some, 100, 13_000).tokens, 40);
    }

    proptest! {
        /// Several members that lease from the same bucket never send more than the rate times (the window + 1 s), and
        /// one burst, or two if the bucket was away; and what waits as long as it is told is sent.
        #[test]
        fn members_together_keep_the_quota(
            micros in 100_000..500_000_000u64,
            burst in 1..200u64,
            steps in proptest::collection::vec((0..3usize, 0..700u64, 1..300u64), 1..120),
            away_from in 0..120usize,
            away_for in prop_oneof![Just(0), 1..40usize],
        ) {
            let store = Arc::new(Store::default());
            let quota = Quota::new(micros as f64 / 1e6, burst).unwrap();
            let budgets = [(Arc::from("shared"), quota)];
            let mut members: Vec<Leases> = (0..3).map(|_| leases(store.clone(), 3)).collect();
            let (mut now_ms, mut sent): (u64, Vec<(u64, u64)>) = (0, Vec::new());
            for (step, (member, pause_ms, tokens)) in steps.into_iter().enumerate() {
                now_ms += pause_ms;
                *store.away.lock().unwrap() = (away_from..away_from + away_for).contains(&step);
                let taken = take(&mut members[member], &budgets, tokens, now_ms);
                sent.push((now_ms, taken.tokens));
                if taken.tokens < tokens {
                    prop_assert!(taken.retry_after_ms > 0);
                    if away_for > 0 {
                        // There are debts to be paid first.
                        continue;
                    }
                    now_ms += taken.retry_after_ms;
                    let again = take(&mut members[member], &budgets, tokens - taken.tokens, now_ms);
                    prop_assert!(again.tokens > 0, "denied again after {} ms", taken.retry_after_ms);
                    sent.push((now_ms, again.tokens));
                }
            }
            for from in 0..sent.len() {
                let mut sum = 0u128;
                for (at_ms, tokens) in &sent[from..] {
                    sum += u128::from(*tokens);
                    let window_ms = u128::from(at_ms - sent[from].0 + LEASE_MS);
                    let bursts = if away_for > 0 { 2 } else { 1 };
                    let most = u128::from(micros) * window_ms + u128::from(burst * bursts) * 1_000_000_000;
                    prop_assert!(sum * 1_000_000_000 <= most);
                }
            }
        }
    }
}
