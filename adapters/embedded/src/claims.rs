//! Dedupe claims in memory. The `claims` topic is what lasts; this is its cache, and starts empty.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use herald_core::{
    ids::NotificationId,
    ports::{
        StoreError,
        claims::{ClaimReply, ClaimRequest, Claims},
    },
    record::Claim,
};
use parking_lot::Mutex;

/// Expired claims that a round trip drops at most, for each of its requests, and a few more.
const PURGE_PER_REQUEST: usize = 2;
const PURGE_MORE: usize = 16;

/// Claims in memory.
#[derive(Debug, Default)]
pub struct MemoryClaims {
    shards: Mutex<BTreeMap<u32, Shard>>,
}

#[derive(Debug, Default)]
struct Shard {
    sequence: u64,
    held: HashMap<[u8; 16], Held>,
    by_expiry: BTreeSet<(u64, [u8; 16])>,
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
        self.insert(key, Held { owner, expires_ms });
        owner
    }

    fn insert(&mut self, key: [u8; 16], held: Held) {
        if let Some(before) = self.held.insert(key, held) {
            self.by_expiry.remove(&(before.expires_ms, key));
        }
        self.by_expiry.insert((held.expires_ms, key));
    }

    fn release(&mut self, key: [u8; 16], owner: NotificationId) {
        if let Some(held) = self.held.get(&key).copied().filter(|held| held.owner == owner) {
            self.held.remove(&key);
            self.by_expiry.remove(&(held.expires_ms, key));
        }
    }

    fn purge(&mut self, now_ms: u64, at_most: usize) {
        for _ in 0..at_most {
            match self.by_expiry.first().copied() {
                Some((expires_ms, key)) if expires_ms <= now_ms => {
                    self.by_expiry.remove(&(expires_ms, key));
                    self.held.remove(&key);
                }
                _ => return,
            }
        }
    }
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
    async fn apply(&self, shard: u32, requests: &[ClaimRequest], now_ms: u64) -> Result<ClaimReply, StoreError> {
        let mut shards = self.shards.lock();
        let shard = shards.entry(shard).or_default();
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
        Ok(ClaimReply { sequence: shard.sequence, holders })
    }

    async fn sequence(&self, shard: u32) -> Result<u64, StoreError> {
        Ok(self.shards.lock().get(&shard).map_or(0, |shard| shard.sequence))
    }

    async fn load(&self, shard: u32, claims: Vec<Claim>, sequence: u64) -> Result<(), StoreError> {
        let mut loaded = Shard { sequence, ..Shard::default() };
        for claim in claims {
            let damaged = || StoreError::Damaged("a claim whose key or owner is not 16 bytes".into());
            let key = claim.key[..].try_into().map_err(|_| damaged())?;
            let owner = NotificationId::from_slice(&claim.owner).ok_or_else(damaged)?;
            match claim.released {
                true => loaded.release(key, owner),
                false => loaded.insert(key, Held { owner, expires_ms: claim.expires_ms }),
            }
        }
        self.shards.lock().insert(shard, loaded);
        Ok(())
    }
}
