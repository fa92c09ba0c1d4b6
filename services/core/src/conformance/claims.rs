//! [`Claims`].

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    ids::NotificationId,
    ports::claims::{ClaimRequest, Claims, era},
    record::Claim,
};

const NOW_MS: u64 = 1_700_000_000_000;

/// The whole suite. It uses seven shards from `shard` on, of which the cache must know nothing.
pub async fn all(port: Arc<dyn Claims>, shard: u32) {
    the_first_owner_keeps_the_key(&*port, shard).await;
    only_the_owner_releases(&*port, shard + 1).await;
    a_claim_expires(&*port, shard + 2).await;
    every_round_trip_counts(&*port, shard + 3).await;
    what_is_loaded_replaces_what_was_held(&*port, shard + 4).await;
    who_does_not_know_the_sequence_changes_nothing(&*port, shard + 5).await;
    many_are_loaded(&*port, shard + 6).await;
}

fn take(key: u8, owner: u8, expires_ms: u64) -> ClaimRequest {
    ClaimRequest::Take { key: [key; 16], owner: NotificationId([owner; 16]), expires_ms }
}

fn release(key: u8, owner: u8) -> ClaimRequest {
    ClaimRequest::Release { key: [key; 16], owner: NotificationId([owner; 16]) }
}

fn claim(key: u8, owner: u8, released: bool) -> Claim {
    let bytes = |byte| Bytes::copy_from_slice(&[byte; 16]);
    Claim { key: bytes(key), owner: bytes(owner), expires_ms: NOW_MS + 1_000, released }
}

async fn holders(port: &dyn Claims, shard: u32, requests: &[ClaimRequest], now_ms: u64) -> Vec<u8> {
    let sequence = port.sequence(shard).await.unwrap();
    let holders = port.apply(shard, sequence, requests, now_ms).await.unwrap();
    holders.expect("nobody else writes").into_iter().map(|owner| owner.0[0]).collect()
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
    for sequence in 0..3 {
        assert_eq!(port.apply(shard, sequence, &[], NOW_MS).await.unwrap(), Some(vec![]));
        assert_eq!(port.sequence(shard).await.unwrap(), sequence + 1);
    }
}

async fn what_is_loaded_replaces_what_was_held(port: &dyn Claims, shard: u32) {
    let until = NOW_MS + 1_000;
    holders(port, shard, &[take(1, 1, until)], NOW_MS).await;
    let claims = vec![claim(2, 2, false), claim(3, 3, false), claim(3, 3, true), claim(2, 9, true)];
    let sequence = port.load(shard, claims, NOW_MS).await.unwrap();
    assert_eq!(port.sequence(shard).await.unwrap(), sequence);
    assert_eq!(
        holders(port, shard, &[take(1, 7, until), take(2, 7, until), take(3, 7, until)], NOW_MS).await,
        [7, 2, 7]
    );
    assert_eq!(port.sequence(shard).await.unwrap(), sequence + 1);
    let adopted = port.adopt(shard, sequence + 1).await.unwrap().unwrap();
    assert!(era(adopted) != era(sequence), "who takes over begins an era");
    assert_eq!(port.adopt(shard, sequence + 1).await.unwrap(), None, "of two that take over one does");
    assert_eq!(port.apply(shard, sequence + 1, &[release(2, 2)], NOW_MS).await.unwrap(), None);
    assert_eq!(holders(port, shard, &[take(2, 8, until)], NOW_MS).await, [2], "what was held stays");
    let again = port.load(shard, Vec::new(), NOW_MS).await.unwrap();
    assert!(again > 0 && era(again) != era(adopted), "a load begins an era");
}

async fn who_does_not_know_the_sequence_changes_nothing(port: &dyn Claims, shard: u32) {
    let until = NOW_MS + 1_000;
    let sequence = port.load(shard, vec![claim(1, 1, false)], NOW_MS).await.unwrap();
    for unknown in [0, 1, sequence - 1, sequence + 1] {
        let requests = [release(1, 1), take(2, 2, until)];
        assert_eq!(port.apply(shard, unknown, &requests, NOW_MS).await.unwrap(), None, "{unknown}");
    }
    assert_eq!(port.sequence(shard).await.unwrap(), sequence);
    assert_eq!(holders(port, shard, &[take(1, 3, until), take(2, 3, until)], NOW_MS).await, [1, 3]);
}

async fn many_are_loaded(port: &dyn Claims, shard: u32) {
    let key = |i: u32| u128::from(i).to_be_bytes();
    let claims = (0..3_000).map(|i| Claim { key: Bytes::copy_from_slice(&key(i)), ..claim(0, 5, false) }).collect();
    let sequence = port.load(shard, claims, NOW_MS).await.unwrap();
    let owner = NotificationId([6; 16]);
    let take = |i| ClaimRequest::Take { key: key(i), owner, expires_ms: NOW_MS + 1 };
    let takes: Vec<ClaimRequest> = (0..3_100).map(take).collect();
    let holders = port.apply(shard, sequence, &takes, NOW_MS).await.unwrap().unwrap();
    assert!(holders[..3_000].iter().all(|holder| holder.0[0] == 5));
    assert!(holders[3_000..].iter().all(|holder| *holder == owner));
}
