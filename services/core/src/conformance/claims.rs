//! [`Claims`].

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    ids::NotificationId,
    ports::claims::{ClaimRequest, Claims},
    record::Claim,
};

const NOW_MS: u64 = 1_700_000_000_000;

/// The whole suite. It uses five shards from `shard` on, of which the cache must know nothing.
pub async fn all(port: Arc<dyn Claims>, shard: u32) {
    the_first_owner_keeps_the_key(&*port, shard).await;
    only_the_owner_releases(&*port, shard + 1).await;
    a_claim_expires(&*port, shard + 2).await;
    every_round_trip_counts(&*port, shard + 3).await;
    what_is_loaded_replaces_what_was_held(&*port, shard + 4).await;
}

fn take(key: u8, owner: u8, expires_ms: u64) -> ClaimRequest {
    ClaimRequest::Take { key: [key; 16], owner: NotificationId([owner; 16]), expires_ms }
}

fn release(key: u8, owner: u8) -> ClaimRequest {
    ClaimRequest::Release { key: [key; 16], owner: NotificationId([owner; 16]) }
}

async fn holders(port: &dyn Claims, shard: u32, requests: &[ClaimRequest], now_ms: u64) -> Vec<u8> {
    port.apply(shard, requests, now_ms).await.unwrap().holders.into_iter().map(|owner| owner.0[0]).collect()
}

async fn the_first_owner_keeps_the_key(port: &dyn Claims, shard: u32) {
    let until = NOW_MS + 1_000;
    let requests = [take(1, 1, until), take(1, 2, until), take(2, 2, until), take(1, 1, until)];
    assert_eq!(holders(port, shard, &requests, NOW_MS).await, [1, 1, 2, 1]);
    assert_eq!(holders(port, shard, &[take(1, 3, until), take(2, 3, until)], NOW_MS + 1).await, [1, 2]);
}

async fn only_the_owner_releases(port: &dyn Claims, shard: u32) {
    let until = NOW_MS + 1_000;
    assert_eq!(holders(port, shard, &[take(1, 1, until), release(1, 2), take(1, 2, until)], NOW_MS).await, [1, 2, 1]);
    assert_eq!(holders(port, shard, &[release(1, 1), take(1, 2, until)], NOW_MS).await, [1, 2]);
    assert_eq!(holders(port, shard, &[release(9, 9)], NOW_MS).await, [9], "a key that nobody holds");
}

async fn a_claim_expires(port: &dyn Claims, shard: u32) {
    assert_eq!(holders(port, shard, &[take(1, 1, NOW_MS + 100), take(2, 1, NOW_MS + 200)], NOW_MS).await, [1, 1]);
    let requests = [take(1, 2, NOW_MS + 900), take(2, 2, NOW_MS + 900)];
    assert_eq!(holders(port, shard, &requests, NOW_MS + 100).await, [2, 1]);
    assert_eq!(holders(port, shard, &requests, NOW_MS + 200).await, [2, 2]);
}

async fn every_round_trip_counts(port: &dyn Claims, shard: u32) {
    assert_eq!(port.sequence(shard).await.unwrap(), 0);
    for expected in 1..4 {
        assert_eq!(port.apply(shard, &[], NOW_MS).await.unwrap().sequence, expected);
        assert_eq!(port.sequence(shard).await.unwrap(), expected);
    }
}

async fn what_is_loaded_replaces_what_was_held(port: &dyn Claims, shard: u32) {
    let until = NOW_MS + 1_000;
    holders(port, shard, &[take(1, 1, until)], NOW_MS).await;
    let claim = |key: u8, owner: u8, released| Claim {
        key: Bytes::copy_from_slice(&[key; 16]),
        owner: Bytes::copy_from_slice(&[owner; 16]),
        expires_ms: until,
        released,
    };
    let claims = vec![claim(2, 2, false), claim(3, 3, false), claim(3, 3, true), claim(2, 9, true)];
    port.load(shard, claims, 41).await.unwrap();
    assert_eq!(port.sequence(shard).await.unwrap(), 41);
    let requests = [take(1, 7, until), take(2, 7, until), take(3, 7, until)];
    let reply = port.apply(shard, &requests, NOW_MS).await.unwrap();
    assert_eq!(reply.sequence, 42);
    let owners: Vec<u8> = reply.holders.iter().map(|owner| owner.0[0]).collect();
    assert_eq!(owners, [7, 2, 7]);
}
