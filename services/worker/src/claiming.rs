//! Dedupe claims of a shard: the cache answers, the `claims` topic is the truth.

use std::sync::Arc;

use herald_core::{
    ids::NotificationId,
    ports::{
        StoreError,
        claims::{ClaimReply, ClaimRequest, Claims},
        log::{Log, LogError, partition},
    },
    record::{Claim, ClaimBatch},
    topic::Topic,
};
use prost::Message;

const LOAD_RECORDS: usize = 1_000;

/// One shard's claims.
pub(crate) struct ShardClaims {
    shard: u32,
    cache: Arc<dyn Claims>,
    sequence: u64,
    /// Won and released since the last commit.
    changed: Vec<Claim>,
    /// To be given back with the next round trip.
    releases: Vec<ClaimRequest>,
}

/// Why claims could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ShardClaims {
    /// Takes over a shard: loads what is on the topic unless the cache has it all.
    pub(crate) async fn take_over(
        shard: u32,
        cache: Arc<dyn Claims>,
        log: &dyn Log,
        now_ms: u64,
    ) -> Result<Self, ClaimError> {
        let mut claims = Self { shard, cache, sequence: 0, changed: Vec::new(), releases: Vec::new() };
        let (stored, sequence) = claims.read_topic(log, now_ms).await?;
        let cached = claims.cache.sequence(shard).await?;
        if cached < sequence || cached == 0 {
            claims.cache.load(shard, stored, sequence).await?;
            claims.sequence = sequence;
        } else {
            claims.sequence = cached;
        }
        Ok(claims)
    }

    async fn read_topic(&self, log: &dyn Log, now_ms: u64) -> Result<(Vec<Claim>, u64), LogError> {
        let at = partition(Topic::Claims, self.shard);
        let (mut from, mut sequence) = (0, 0);
        let mut held = std::collections::BTreeMap::new();
        loop {
            let (records, next) = log.read(at, from, LOAD_RECORDS).await?;
            if records.is_empty() && next == from {
                break;
            }
            from = next;
            for record in records {
                let batch = ClaimBatch::decode(record.body)
                    .map_err(|e| LogError::Damaged(format!("{at}, offset {}: {e}", record.offset)))?;
                sequence = batch.sequence;
                for claim in batch.claims {
                    if claim.released {
                        held.remove(&claim.key);
                    } else if claim.expires_ms > now_ms {
                        held.insert(claim.key.clone(), claim);
                    }
                }
            }
        }
        Ok((held.into_values().collect(), sequence))
    }

    /// Asks for keys; returns who holds each. Pending releases go along.
    pub(crate) async fn take(
        &mut self,
        keys: &[[u8; 16]],
        owner: NotificationId,
        expires_ms: u64,
        log: &dyn Log,
        now_ms: u64,
    ) -> Result<Vec<NotificationId>, ClaimError> {
        let mut requests = std::mem::take(&mut self.releases);
        let released = requests.len();
        requests.extend(keys.iter().map(|key| ClaimRequest::Take { key: *key, owner, expires_ms }));
        let reply = match self.round_trip(&requests, log, now_ms).await {
            Ok(reply) => reply,
            Err(error) => {
                requests.truncate(released);
                self.releases = requests;
                return Err(error);
            }
        };
        let holders = reply.holders[released..].to_vec();
        for (key, holder) in keys.iter().zip(&holders) {
            if *holder == owner {
                self.changed.push(Claim {
                    key: key.to_vec().into(),
                    owner: owner.0.to_vec().into(),
                    expires_ms,
                    released: false,
                });
            }
        }
        Ok(holders)
    }

    /// Gives a key back: an instance that ends undelivered does not keep others from being sent.
    pub(crate) fn release(&mut self, key: [u8; 16], owner: NotificationId) {
        self.changed.push(Claim {
            key: key.to_vec().into(),
            owner: owner.0.to_vec().into(),
            expires_ms: 0,
            released: true,
        });
        self.releases.push(ClaimRequest::Release { key, owner });
    }

    async fn round_trip(
        &mut self,
        requests: &[ClaimRequest],
        log: &dyn Log,
        now_ms: u64,
    ) -> Result<ClaimReply, ClaimError> {
        let reply = self.cache.apply(self.shard, requests, now_ms).await?;
        if reply.sequence == self.sequence + 1 {
            self.sequence = reply.sequence;
            return Ok(reply);
        }
        // The cache lost data, or there is another writer: what is on the topic and what this commit will add hold.
        tracing::warn!(
            shard = self.shard,
            expected = self.sequence + 1,
            found = reply.sequence,
            "claims are loaded again"
        );
        let (mut stored, sequence) = self.read_topic(log, now_ms).await?;
        for claim in &self.changed {
            stored.retain(|held| held.key != claim.key);
            if !claim.released {
                stored.push(claim.clone());
            }
        }
        let base = sequence.max(self.sequence).max(reply.sequence);
        self.cache.load(self.shard, stored, base).await?;
        let reply = self.cache.apply(self.shard, requests, now_ms).await?;
        self.sequence = reply.sequence;
        Ok(reply)
    }

    /// What the next commit tells the topic.
    pub(crate) fn take_batch(&mut self) -> Option<ClaimBatch> {
        let claims = std::mem::take(&mut self.changed);
        (!claims.is_empty()).then_some(ClaimBatch { sequence: self.sequence, claims })
    }

    /// Whether there is something to commit.
    pub(crate) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }
}
