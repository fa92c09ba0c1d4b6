//! What a round trip for claims and for leases costs: `HERALD_TEST_REDIS=host:port cargo run --release --example claims_rate`.

use std::time::{Duration, Instant};

use anyhow::Context;
use herald_core::{
    bucket::{Ask, Quota},
    ids::NotificationId,
    ports::{
        budgets::Budgets,
        claims::{ClaimRequest, Claims},
    },
};
use herald_distributed::redis::{Redis, RedisConfig, budgets::RedisBudgets, claims::RedisClaims};

const ROUNDS: usize = 1_000;
const EXPIRES_MS: u64 = 60_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let server = std::env::var("HERALD_TEST_REDIS").context("HERALD_TEST_REDIS is not set")?;
    let config = RedisConfig { prefix: format!("claims-rate-{}", std::process::id()), ..RedisConfig::default() };
    let redis = Redis::connect(&format!("redis://{server}"), &config).await?;
    let claims = RedisClaims::new(redis.clone());
    let mut sequence = 0;
    for keys in [1u128, 20, 300] {
        let mut times = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS as u128 {
            let take = |key: u128| ClaimRequest::Take {
                key: (key << 64 | round << 32 | keys).to_be_bytes(),
                owner: NotificationId([1; 16]),
                expires_ms: EXPIRES_MS,
            };
            let takes: Vec<ClaimRequest> = (0..keys).map(take).collect();
            let started = Instant::now();
            claims.apply(0, sequence, &takes, 0).await?.context("another writes to this shard")?;
            times.push(started.elapsed());
            sequence += 1;
        }
        tell(&format!("{keys} claims"), times);
    }
    let budgets = RedisBudgets::new(redis);
    let quota = Quota::new(1e9, 1_000_000).context("no quota")?;
    let ask = |bucket: usize| Ask { bucket: format!("b{bucket}").into(), quota, tokens: 1, floor: 0 };
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let started = Instant::now();
        budgets.lease(&[(0..4).map(ask).collect()], round as u64).await?;
        times.push(started.elapsed());
    }
    tell("a lease of 4 buckets", times);
    Ok(())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{what}: median {:?}, 99 of 100 within {:?}", at(50), at(99));
}
