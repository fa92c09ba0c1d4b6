//! Dedupe claims in memory. The `claims` topic is what lasts; this is its cache, and starts empty.

use std::collections::BTreeMap;

use async_trait::async_trait;
use hashbrown::HashMap;
use herald_core::{
    ids::NotificationId,
    ports::{
        StoreError,
        claims::{ClaimRequest, Claims, ROUND_TRIP_BITS, era},
    },
    record::Claim,
};
use parking_lot::Mutex;

/// Expired claims that a round trip drops at most, for each of its requests, and a few more.
const PURGE_PER_REQUEST: usize = 2;
const PURGE_MORE: usize = 16;

/// Claims that expire within the same span are dropped together, at its end.
const EXPIRY_GRAIN_MS: u64 = 60_000;

/// Claims in memory.
#[derive(Debug, Default)]
pub struct MemoryClaims {
    shards: Mutex<BTreeMap<u32, Shard>>,
}

#[derive(Debug, Default)]
struct Shard {
    sequence: u64,
    held: HashMap<[u8; 16], Held>,
    /// Keys by the span in which they expire. A key that was released or taken again stays where it was.
    by_expiry: BTreeMap<u64, Vec<[u8; 16]>>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    owner: NotificationId,
    expires_ms: u64,
}

impl Shard {
    fn take(&mut self, key: [u8; 16], owner: NotificationId, expires_ms: u64, now_ms: u64) -> NotificationId {
        if let Some(held) = self.held.get(&key)
            && held.expires_ms > now_ms
        {
            return held.owner;
        }
        self.hold(key, Held { owner, expires_ms });
        owner
    }

    fn hold(&mut self, key: [u8; 16], held: Held) {
        self.held.insert(key, held);
        self.by_expiry.entry(held.expires_ms / EXPIRY_GRAIN_MS).or_default().push(key);
    }

    fn release(&mut self, key: [u8; 16], owner: NotificationId) {
        if self.held.get(&key).is_some_and(|held| held.owner == owner) {
            self.held.remove(&key);
        }
    }

    fn purge(&mut self, now_ms: u64, at_most: usize) {
        for _ in 0..at_most {
            let Some(mut span) = self.by_expiry.first_entry().filter(|span| *span.key() < now_ms / EXPIRY_GRAIN_MS)
            else {
                return;
            };
            match span.get_mut().pop() {
                Some(key) => {
                    if self.held.get(&key).is_some_and(|held| held.expires_ms <= now_ms) {
                        self.held.remove(&key);
                    }
                }
                None => {
                    span.remove();
                }
            }
        }
    }
}

/// Nobody outside of this process knows its eras, so they can be counted.
fn next_era(sequence: u64) -> u64 {
    (era(sequence) + 1) << ROUND_TRIP_BITS
}

impl MemoryClaims {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many claims are held, expired ones that were not dropped yet too.
    pub fn len(&self) -> usize {
        self.shards.lock().values().map(|shard| shard.held.len()).sum()
    }

    /// Whether no claim is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[async_trait]
impl Claims for MemoryClaims {
    async fn apply(
        &self,
        shard: u32,
        sequence: u64,
        requests: &[ClaimRequest],
        now_ms: u64,
    ) -> Result<Option<Vec<NotificationId>>, StoreError> {
        let mut shards = self.shards.lock();
        let shard = shards.entry(shard).or_default();
        if shard.sequence != sequence {
            return Ok(None);
        }
        let mut holders = Vec::with_capacity(requests.len());
        for request in requests {
            holders.push(match *request {
                ClaimRequest::Take { key, owner, expires_ms } => shard.take(key, owner, expires_ms, now_ms),
                ClaimRequest::Release { key, owner } => {
                    shard.release(key, owner);
                    owner
                }
            });
        }
        shard.purge(now_ms, requests.len() * PURGE_PER_REQUEST + PURGE_MORE);
        shard.sequence += 1;
        Ok(Some(holders))
    }

    async fn sequence(&self, shard: u32) -> Result<u64, StoreError> {
        Ok(self.shards.lock().get(&shard).map_or(0, |shard| shard.sequence))
    }

    async fn adopt(&self, shard: u32, sequence: u64) -> Result<Option<u64>, StoreError> {
        let mut shards = self.shards.lock();
        let Some(shard) = shards.get_mut(&shard).filter(|shard| shard.sequence == sequence) else { return Ok(None) };
        shard.sequence = next_era(sequence);
        Ok(Some(shard.sequence))
    }

    async fn load(&self, shard: u32, claims: Vec<Claim>, _: u64) -> Result<u64, StoreError> {
        let mut loaded = Shard::default();
        for claim in claims {
            let damaged = || StoreError::Damaged("a claim whose key or owner is not 16 bytes".into());
            let key = claim.key[..].try_into().map_err(|_| damaged())?;
            let owner = NotificationId::from_slice(&claim.owner).ok_or_else(damaged)?;
            match claim.released {
                true => loaded.release(key, owner),
                false => loaded.hold(key, Held { owner, expires_ms: claim.expires_ms }),
            }
        }
        let mut shards = self.shards.lock();
        loaded.sequence = next_era(shards.get(&shard).map_or(0, |shard| shard.sequence));
        let sequence = loaded.sequence;
        shards.insert(shard, loaded);
        Ok(sequence)
    }
}
