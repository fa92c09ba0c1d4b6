//! Dedupe claims of a shard: the cache answers, the `claims` topic is the truth.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use herald_core::{
    ids::NotificationId,
    ports::{
        StoreError,
        claims::{ClaimRequest, Claims, era},
        log::{Log, LogError, partition},
    },
    record::{Claim, ClaimBatch, ClaimRun},
    topic::Topic,
};
use prost::Message;

const LOAD_RECORDS: usize = 1_000;

/// Keys that a run has room for at first: those of a small section.
const FIRST_KEYS: usize = 4;

/// One shard's claims.
pub(crate) struct ShardClaims {
    shard: u32,
    cache: Arc<dyn Claims>,
    /// What the cache's is, if nobody else changed it.
    sequence: u64,
    /// Won and released since the last commit, in order.
    changed: Vec<Run>,
    /// To be given back once that is committed: until then a successor reads that they are held.
    releasing: Vec<ClaimRequest>,
    /// To be given back with the next round trip.
    releases: Vec<ClaimRequest>,
    /// Whether the cache held what the topic holds when the shard was taken over.
    loaded: bool,
}

/// Claims that one notification won or released one after the other.
#[derive(Clone)]
struct Run {
    owner: NotificationId,
    expires_ms: u64,
    released: bool,
    keys: Vec<u8>,
}

impl Run {
    fn record(self) -> ClaimRun {
        let Self { owner, expires_ms, released, keys } = self;
        ClaimRun { owner: Bytes::copy_from_slice(&owner.0), expires_ms, released, keys: keys.into() }
    }
}

type Held = BTreeMap<Bytes, Claim>;

/// Why claims could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ShardClaims {
    /// Claims of a shard that was taken over. What is on the topic is loaded before the first claim is taken.
    pub(crate) fn new(shard: u32, cache: Arc<dyn Claims>) -> Self {
        Self {
            shard,
            cache,
            sequence: 0,
            changed: Vec::new(),
            releasing: Vec::new(),
            releases: Vec::new(),
            loaded: false,
        }
    }

    /// Loads what is on the topic unless the cache has it all: it is of the era that was last committed, and not behind.
    /// Any other was loaded by somebody who may not have known what was committed since.
    async fn take_over(&mut self, log: &dyn Log, now_ms: u64) -> Result<(), ClaimError> {
        let (held, committed) = self.read_topic(log, now_ms).await?;
        let cached = self.cache.sequence(self.shard).await?;
        let knows_all = cached >= committed && era(cached) == era(committed) && cached > 0;
        // A new era ends what the owner before could still do.
        let adopted = if knows_all { self.cache.adopt(self.shard, cached).await? } else { None };
        self.sequence = match adopted {
            Some(sequence) => sequence,
            None => self.cache.load(self.shard, held.into_values().collect(), now_ms).await?,
        };
        self.loaded = true;
        Ok(())
    }

    async fn read_topic(&self, log: &dyn Log, now_ms: u64) -> Result<(Held, u64), LogError> {
        let at = partition(Topic::Claims, self.shard);
        let (mut from, mut sequence) = (0, 0);
        let mut held = Held::new();
        loop {
            let (records, next) = log.read(at, from, LOAD_RECORDS).await?;
            if records.is_empty() && next == from {
                return Ok((held, sequence));
            }
            from = next;
            for record in records {
                let batch = ClaimBatch::decode(record.body)
                    .map_err(|e| LogError::Damaged(format!("{at}, offset {}: {e}", record.offset)))?;
                // Releases of somebody who never asked the cache have none.
                if batch.sequence > 0 {
                    sequence = batch.sequence;
                }
                batch.claims.into_iter().for_each(|claim| apply(&mut held, claim, now_ms));
                batch.runs.iter().flat_map(claims_of).for_each(|claim| apply(&mut held, claim, now_ms));
            }
        }
    }

    /// Asks for keys; returns who holds each, in order. Pending releases go along.
    pub(crate) async fn take(
        &mut self,
        takes: &[ClaimRequest],
        log: &dyn Log,
        now_ms: u64,
    ) -> Result<Vec<NotificationId>, ClaimError> {
        if takes.is_empty() {
            return Ok(Vec::new());
        }
        if !self.loaded {
            self.take_over(log, now_ms).await?;
        }
        let mut requests = std::mem::take(&mut self.releases);
        let released = requests.len();
        requests.extend_from_slice(takes);
        let mut holders = match self.round_trip(&requests, log, now_ms).await {
            Ok(holders) => holders,
            Err(error) => {
                requests.truncate(released);
                self.releases = requests;
                return Err(error);
            }
        };
        let holders = holders.split_off(released);
        for (request, holder) in takes.iter().zip(&holders) {
            if let ClaimRequest::Take { key, owner, expires_ms } = request
                && holder == owner
            {
                self.note(*key, *owner, *expires_ms, false);
                // What was to be given back is wanted again.
                self.releasing.retain(|release| *release != ClaimRequest::Release { key: *key, owner: *owner });
            }
        }
        Ok(holders)
    }

    /// Gives a key back: an instance that ends undelivered does not keep others from being sent.
    pub(crate) fn release(&mut self, key: [u8; 16], owner: NotificationId) {
        self.note(key, owner, 0, true);
        self.releasing.push(ClaimRequest::Release { key, owner });
    }

    /// Remembers a change for the next commit.
    fn note(&mut self, key: [u8; 16], owner: NotificationId, expires_ms: u64, released: bool) {
        match self.changed.last_mut() {
            Some(run) if (run.owner, run.expires_ms, run.released) == (owner, expires_ms, released) => {
                run.keys.extend_from_slice(&key);
            }
            _ => {
                let mut keys = Vec::with_capacity(FIRST_KEYS * key.len());
                keys.extend_from_slice(&key);
                self.changed.push(Run { owner, expires_ms, released, keys });
            }
        }
    }

    async fn round_trip(
        &mut self,
        requests: &[ClaimRequest],
        log: &dyn Log,
        now_ms: u64,
    ) -> Result<Vec<NotificationId>, ClaimError> {
        if let Some(holders) = self.cache.apply(self.shard, self.sequence, requests, now_ms).await? {
            self.sequence += 1;
            return Ok(holders);
        }
        // The cache lost data, or there is another writer: what is on the topic and what this commit will add hold.
        tracing::warn!(shard = self.shard, "claims are loaded again");
        let (mut held, _) = self.read_topic(log, now_ms).await?;
        for run in self.changed.iter().cloned() {
            claims_of(&run.record()).for_each(|claim| apply(&mut held, claim, now_ms));
        }
        self.sequence = self.cache.load(self.shard, held.into_values().collect(), now_ms).await?;
        let Some(holders) = self.cache.apply(self.shard, self.sequence, requests, now_ms).await? else {
            return Err(StoreError::Unavailable("another worker changes the shard's claims".into()).into());
        };
        self.sequence += 1;
        Ok(holders)
    }

    /// What the next commit tells the topic. Nothing is asked for before its end, and the shard is dropped if it fails.
    pub(crate) fn take_batch(&mut self) -> Option<ClaimBatch> {
        self.releases.append(&mut self.releasing);
        let runs: Vec<ClaimRun> = std::mem::take(&mut self.changed).into_iter().map(Run::record).collect();
        (!runs.is_empty()).then_some(ClaimBatch { sequence: self.sequence, claims: Vec::new(), runs })
    }

    /// Whether there is something to commit.
    pub(crate) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }
}

/// The claims of a run, one by one.
fn claims_of(run: &ClaimRun) -> impl Iterator<Item = Claim> {
    let claim = |at: usize| Claim {
        key: run.keys.slice(at..at + 16),
        owner: run.owner.clone(),
        expires_ms: run.expires_ms,
        released: run.released,
    };
    (0..run.keys.len() / 16).map(move |i| claim(i * 16))
}

/// Applies one claim of the topic. Only its holder can release a key: others that ended undelivered say so too.
fn apply(held: &mut Held, claim: Claim, now_ms: u64) {
    if !claim.released {
        if claim.expires_ms > now_ms {
            held.insert(claim.key.clone(), claim);
        }
    } else if held.get(&claim.key).is_some_and(|holder| holder.owner == claim.owner) {
        held.remove(&claim.key);
    }
}

#[cfg(test)]
mod tests;
