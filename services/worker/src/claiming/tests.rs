//! A shard's claims against a cache that loses data, and owners that do not know that they are owners no more.

use std::sync::Mutex;

use async_trait::async_trait;
use futures::FutureExt;
use herald_core::{
    ports::{
        claims::ROUND_TRIP_BITS,
        log::{Identity, Mark, Member, NewRecord, Progress, Record, Subscription},
    },
    record::Envelope,
    topic::{Group, TopicPartition},
};
use proptest::prelude::*;

use super::*;

const NOW_MS: u64 = 1_000;
const EXPIRES_MS: u64 = 1_000_000;

fn claim(key: u8, owner: u8, released: bool) -> Claim {
    Claim { key: vec![key; 16].into(), owner: vec![owner; 16].into(), expires_ms: 100, released }
}

#[test]
fn a_run_is_its_claims_one_by_one() {
    let keys = [[1u8; 16], [2; 16]].concat();
    let run = Run { owner: NotificationId([1; 16]), expires_ms: 100, released: false, keys };
    assert_eq!(claims_of(&run.record()).collect::<Vec<_>>(), [claim(1, 1, false), claim(2, 1, false)]);
}

#[test]
fn only_the_holder_of_a_key_releases_it() {
    let mut held = Held::new();
    for change in [claim(1, 1, false), claim(1, 2, true), claim(2, 1, false), claim(2, 1, true)] {
        apply(&mut held, change, 50);
    }
    assert_eq!(held.into_values().collect::<Vec<_>>(), [claim(1, 1, false)]);
}

/// A cache whose data a test can lose and put back, and the number of its eras.
#[derive(Default)]
struct Cache(Mutex<Cached>, Mutex<u64>);

#[derive(Default, Clone)]
struct Cached {
    sequence: u64,
    held: BTreeMap<[u8; 16], NotificationId>,
}

impl Cache {
    fn new_era(&self) -> u64 {
        *self.1.lock().unwrap() += 1;
        *self.1.lock().unwrap() << ROUND_TRIP_BITS
    }
}

#[async_trait]
impl Claims for Cache {
    async fn apply(
        &self,
        _: u32,
        sequence: u64,
        requests: &[ClaimRequest],
        _: u64,
    ) -> Result<Option<Vec<NotificationId>>, StoreError> {
        let mut cached = self.0.lock().unwrap();
        if cached.sequence != sequence {
            return Ok(None);
        }
        cached.sequence += 1;
        let mut answer = |request: &ClaimRequest| match request {
            ClaimRequest::Take { key, owner, .. } => *cached.held.entry(*key).or_insert(*owner),
            ClaimRequest::Release { key, owner } => {
                if cached.held.get(key) == Some(owner) {
                    cached.held.remove(key);
                }
                *owner
            }
        };
        Ok(Some(requests.iter().map(&mut answer).collect()))
    }

    async fn sequence(&self, _: u32) -> Result<u64, StoreError> {
        Ok(self.0.lock().unwrap().sequence)
    }

    async fn adopt(&self, _: u32, sequence: u64) -> Result<Option<u64>, StoreError> {
        if self.0.lock().unwrap().sequence != sequence {
            return Ok(None);
        }
        self.0.lock().unwrap().sequence = self.new_era();
        Ok(Some(self.0.lock().unwrap().sequence))
    }

    async fn load(&self, _: u32, claims: Vec<Claim>, _: u64) -> Result<u64, StoreError> {
        let held =
            |claim: Claim| (claim.key[..].try_into().unwrap(), NotificationId::from_slice(&claim.owner).unwrap());
        let sequence = self.new_era();
        *self.0.lock().unwrap() = Cached { sequence, held: claims.into_iter().map(held).collect() };
        Ok(sequence)
    }
}

/// The `claims` topic of one shard, and nothing else.
struct Committed {
    batches: Mutex<Vec<ClaimBatch>>,
    identity: Identity,
}

impl Committed {
    fn new() -> Self {
        let layout = herald_core::topic::Layout { shards: 1, requests: 1, receipts: 1 };
        Self { batches: Mutex::default(), identity: Identity { region: "r".into(), epoch: 1, layout } }
    }
}

#[async_trait]
impl Log for Committed {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn read(&self, at: TopicPartition, from: u64, _: usize) -> Result<(Vec<Record>, u64), LogError> {
        let batches = self.batches.lock().unwrap();
        let record = |offset: u64| Record {
            at,
            offset,
            key: Bytes::new(),
            timestamp_ms: NOW_MS,
            envelope: Envelope::default(),
            body: batches[offset as usize].encode_to_vec().into(),
        };
        Ok(((from..batches.len() as u64).map(record).collect(), batches.len() as u64))
    }

    async fn append(&self, _: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        unreachable!("claims are committed with what they are of")
    }

    async fn subscribe(&self, _: Group, _: Member) -> Result<Box<dyn Subscription>, LogError> {
        unreachable!("claims are read without a group")
    }

    fn is_assigned(&self, _: Group, _: u32) -> bool {
        unreachable!("claims are read without a group")
    }

    async fn durable(&self, _: Mark) -> Result<(), LogError> {
        Ok(())
    }

    async fn progress(&self, _: Group) -> Result<Vec<Progress>, LogError> {
        Ok(Vec::new())
    }

    async fn reached(&self, _: TopicPartition, _: u64) -> Result<(), LogError> {
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The owner, or one before it, asks for a key for a notification.
    Take { before: usize, key: u8, notification: u8 },
    /// The owner, or one before it, gives a key back.
    Release { before: usize, key: u8, notification: u8 },
    /// The owner commits; those before it are fenced.
    Commit,
    /// Another worker takes the shard over.
    TakeOver,
    /// The cache loses everything.
    Flush,
    /// The cache is as it was a few steps ago.
    Restore { steps: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let before = prop_oneof![4 => Just(0usize), 1 => 1..4usize];
    let asked = (before, 0..4u8, 0..4u8);
    prop_oneof![
        8 => asked.clone().prop_map(|(before, key, notification)| Step::Take { before, key, notification }),
        2 => asked.prop_map(|(before, key, notification)| Step::Release { before, key, notification }),
        4 => Just(Step::Commit),
        2 => Just(Step::TakeOver),
        1 => Just(Step::Flush),
        1 => (1..12usize).prop_map(|steps| Step::Restore { steps }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever the cache loses and whoever still writes to it: a key that a committed claim holds is nobody else's.
    #[test]
    fn no_committed_claim_is_lost(steps in proptest::collection::vec(step(), 1..60)) {
        let (cache, log) = (Arc::new(Cache::default()), Committed::new());
        let take_over = || ShardClaims::new(0, cache.clone());
        let mut owners = vec![take_over()];
        let mut snapshots: Vec<Cached> = Vec::new();
        for step in steps {
            snapshots.push(cache.0.lock().unwrap().clone());
            match step {
                Step::Take { before, key, notification } => {
                    let Some(at) = owners.len().checked_sub(before + 1) else { continue };
                    let (key, owner) = ([key; 16], NotificationId([notification; 16]));
                    let take = ClaimRequest::Take { key, owner, expires_ms: EXPIRES_MS };
                    let taken = owners[at].take(&[take], &log, NOW_MS).now_or_never().expect("nothing waits");
                    if before == 0 {
                        let mut held = Held::new();
                        let own = owners[at].changed.clone();
                        let runs = log.batches.lock().unwrap().iter().flat_map(|batch| batch.runs.clone()).collect::<Vec<_>>();
                        runs.iter().flat_map(claims_of).for_each(|claim| apply(&mut held, claim, NOW_MS));
                        own.into_iter().for_each(|run| claims_of(&run.record()).for_each(|claim| apply(&mut held, claim, NOW_MS)));
                        let holder = held.get(&key[..]).and_then(|claim| NotificationId::from_slice(&claim.owner));
                        let taken = taken.expect("the owner can take")[0];
                        // Where nobody holds it, whoever asked an owner before may: that is read and asked again.
                        prop_assert_eq!(taken, holder.unwrap_or(taken));
                    }
                }
                Step::Release { before, key, notification } => {
                    let Some(at) = owners.len().checked_sub(before + 1) else { continue };
                    owners[at].release([key; 16], NotificationId([notification; 16]));
                }
                Step::Commit => {
                    let owner = owners.last_mut().expect("there is an owner");
                    log.batches.lock().unwrap().extend(owner.take_batch());
                }
                Step::TakeOver => owners.push(take_over()),
                Step::Flush => *cache.0.lock().unwrap() = Cached::default(),
                Step::Restore { steps } => {
                    let at = snapshots.len().saturating_sub(steps);
                    *cache.0.lock().unwrap() = snapshots[at.min(snapshots.len() - 1)].clone();
                }
            }
        }
    }
}
