//! A log and a store in memory whose faults a test commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    books::{Tally, Totals},
    clock::{Clock, Entropy, World},
    ids::{InstanceId, NotificationId, TenantId},
    packed,
    ports::{
        StoreError,
        ledger::{Flush, ForeignToken, Ledger, Page, ReceiptRow, ReceiptScope, RequestRow, RequestScope},
        log::*,
    },
    record::{CancelAck, Channel, Envelope, LedgerBatch, Manifest, Receipts, Schema, State},
    topic::{Group, Layout, Topic, TopicPartition},
};
use prost::Message;
use tokio::sync::Notify;

pub(crate) fn tally(id: &NotificationId, users: &[&str]) -> Tally {
    let mut tally = Tally::default();
    users.iter().for_each(|user| tally.add(InstanceId::of(id, user, Channel::Email).book_hash()));
    tally
}

pub(crate) fn manifest(id: &NotificationId, users: &[&str], last: bool) -> Manifest {
    let created = tally(id, users);
    Manifest {
        notification_id: Bytes::copy_from_slice(&id.0),
        tenant: "t".into(),
        channel: Channel::Email as i32,
        count: users.len() as u32,
        hash_sum: created.hash_sum,
        recipients: users.len() as u32,
        last,
        ..Manifest::default()
    }
}

pub(crate) fn ended(id: &NotificationId, users: &[&str], state: State) -> Receipts {
    Receipts {
        notification_id: Bytes::copy_from_slice(&id.0),
        tenant: "t".into(),
        channel: Channel::Email as i32,
        state: state as i32,
        count: users.len() as u32,
        hash_sum: tally(id, users).hash_sum,
        users: packed::pack(users.iter().copied()),
        accepted_ms: 1,
        ended_ms: 8,
        ..Receipts::default()
    }
}

pub(crate) fn record(topic: Topic, partition: u32, schema: Schema, body: Vec<u8>) -> NewRecord {
    NewRecord {
        at: TopicPartition { topic, partition },
        key: Bytes::new(),
        timestamp_ms: 1,
        envelope: Envelope { schema: schema as i32, ..Envelope::default() },
        body: body.into(),
    }
}

pub(crate) fn batch(partition: u32, manifests: Vec<Manifest>, receipts: Vec<Receipts>) -> NewRecord {
    record(
        Topic::Receipts,
        partition,
        Schema::LedgerBatch,
        LedgerBatch { manifests, receipts, ..LedgerBatch::default() }.encode_to_vec(),
    )
}

/// One record in which everybody of the log's layout acknowledges a cancel.
pub(crate) fn acknowledged(partition: u32, id: &NotificationId) -> NewRecord {
    let ack =
        |shard, number| CancelAck { notification_id: Bytes::copy_from_slice(&id.0), tenant: "t".into(), shard, number };
    let cancel_acks = vec![ack(false, 0), ack(false, 1), ack(true, 0)];
    let batch = LedgerBatch { cancel_acks, ..LedgerBatch::default() };
    record(Topic::Receipts, partition, Schema::LedgerBatch, batch.encode_to_vec())
}

struct Still;

impl Clock for Still {
    fn now_ms(&self) -> u64 {
        1_000
    }
}

impl Entropy for Still {
    fn next_u64(&self) -> u64 {
        7
    }
}

pub(crate) fn world() -> World {
    World::new(Arc::new(Still), Arc::new(Still))
}

/// A log in memory. Its marks mean nothing: durability is held back as a whole.
#[derive(Default)]
pub(crate) struct FakeLog {
    state: Mutex<LogState>,
    changed: Notify,
    identity: Option<Identity>,
    /// A commit stops for good, as if the process died there.
    pub(crate) hang_commits: AtomicBool,
    pub(crate) fail_commits: AtomicU32,
    pub(crate) fence_commits: AtomicU32,
    pub(crate) hold_durable: AtomicBool,
    pub(crate) commits_begun: AtomicU64,
}

#[derive(Default)]
struct LogState {
    records: BTreeMap<TopicPartition, Vec<Record>>,
    committed: BTreeMap<TopicPartition, u64>,
}

impl FakeLog {
    pub(crate) fn new(receipts: u32) -> Arc<Self> {
        let layout = Layout { shards: 1, requests: 2, receipts };
        Arc::new(Self { identity: Some(Identity { region: "r".into(), epoch: 0, layout }), ..Self::default() })
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap()
    }

    pub(crate) fn write(&self, records: Vec<NewRecord>) {
        let mut state = self.state();
        for record in records {
            let list = state.records.entry(record.at).or_default();
            let NewRecord { at, key, timestamp_ms, envelope, body } = record;
            list.push(Record { at, offset: list.len() as u64, key, timestamp_ms, envelope, body });
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn records(&self, topic: Topic) -> usize {
        self.state().records.iter().filter(|(at, _)| at.topic == topic).map(|(_, list)| list.len()).sum()
    }

    pub(crate) fn commit_is_at(&self, topic: Topic, partition: u32) -> u64 {
        self.state().committed.get(&TopicPartition { topic, partition }).copied().unwrap_or(0)
    }
}

/// Waits until a condition holds; the test's own time limit is the paused clock's ten minutes.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..600_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("waited in vain for {what}");
}

/// The log as a role sees it.
pub(crate) struct LogHandle(pub(crate) Arc<FakeLog>);

impl std::ops::Deref for LogHandle {
    type Target = FakeLog;

    fn deref(&self) -> &FakeLog {
        &self.0
    }
}

#[async_trait]
impl Log for LogHandle {
    fn identity(&self) -> &Identity {
        self.identity.as_ref().unwrap()
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        self.write(records);
        Ok(Vec::new())
    }

    async fn subscribe(&self, group: Group, _: Member) -> Result<Box<dyn Subscription>, LogError> {
        let layout = self.identity().layout;
        let all = group.topics().into_iter().flat_map(|t| (0..layout.partitions(t)).map(move |p| partition(t, p)));
        let reading = all.map(|at| (at, self.commit_is_at(at.topic, at.partition))).collect();
        Ok(Box::new(FakeSubscription { log: self.0.clone(), reading, assigned: false }))
    }

    fn is_assigned(&self, _: Group, _: u32) -> bool {
        unreachable!("the ledger has no use for it")
    }

    async fn read(&self, _: TopicPartition, _: u64, _: usize) -> Result<(Vec<Record>, u64), LogError> {
        unreachable!("the ledger has no use for it")
    }

    async fn durable(&self, _: Mark) -> Result<(), LogError> {
        while self.hold_durable.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn progress(&self, _: Group) -> Result<Vec<Progress>, LogError> {
        Ok(Vec::new())
    }

    async fn reached(&self, _: TopicPartition, _: u64) -> Result<(), LogError> {
        unreachable!("the ledger has no use for it")
    }
}

impl FakeLog {
    async fn commit(&self, commit: Commit) -> Result<Committed, LogError> {
        self.commits_begun.fetch_add(1, SeqCst);
        if self.hang_commits.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        let take = |left: &AtomicU32| left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if take(&self.fence_commits) {
            return Ok(Committed::Fenced);
        }
        if take(&self.fail_commits) {
            return Err(LogError::Unavailable("commanded".into()));
        }
        let mut state = self.state();
        for (at, position) in commit.positions {
            let before = state.committed.insert(at, position.offset).unwrap_or(0);
            assert!(before < position.offset, "a position went back or was committed twice");
        }
        drop(state);
        self.write(commit.outputs);
        Ok(Committed::Done(Mark(0)))
    }
}

struct FakeSubscription {
    log: Arc<FakeLog>,
    reading: BTreeMap<TopicPartition, u64>,
    assigned: bool,
}

#[async_trait]
impl Subscription for FakeSubscription {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, LogError> {
        let mut polled = Polled::default();
        if !std::mem::replace(&mut self.assigned, true) {
            let position = |offset: &u64| Position { offset: *offset, ..Position::default() };
            polled.assigned = self.reading.iter().map(|(at, offset)| (*at, position(offset))).collect();
        }
        for waited in [false, true] {
            let changed = self.log.changed.notified();
            for (at, offset) in &mut self.reading {
                let state = self.log.state();
                let list = state.records.get(at).map_or(&[][..], |list| &list[*offset as usize..]);
                let taken = &list[..list.len().min(max - polled.records.len())];
                polled.records.extend_from_slice(taken);
                *offset += taken.len() as u64;
            }
            if waited || !polled.records.is_empty() || !polled.assigned.is_empty() {
                break;
            }
            let _ = tokio::time::timeout(wait, changed).await;
        }
        Ok(polled)
    }

    fn commit(&mut self, commit: Commit) -> Committing {
        let log = self.log.clone();
        Box::pin(async move { log.commit(commit).await })
    }

    fn pause(&mut self, _: TopicPartition, _: bool) {}

    async fn ends(&mut self, _: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
        unreachable!("the ledger has no use for it")
    }
}

/// Keeps the port's contract: absolute totals, older positions lose, receipts keyed by their place.
#[derive(Default)]
pub(crate) struct FakeLedger {
    pub(crate) rows: Mutex<Rows>,
    pub(crate) fail_applies: AtomicU32,
    /// A failing write takes effect all the same, as when an answer is lost.
    pub(crate) lose_answers: AtomicBool,
    pub(crate) loads: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) admitted: BTreeSet<NotificationId>,
    pub(crate) totals: BTreeMap<NotificationId, Totals>,
    pub(crate) receipts: BTreeMap<(u32, u64, usize), Receipts>,
}

impl FakeLedger {
    pub(crate) fn totals_of(&self, id: &NotificationId) -> Option<Totals> {
        self.rows.lock().unwrap().totals.get(id).cloned()
    }

    pub(crate) fn settled(&self, id: &NotificationId) -> bool {
        self.totals_of(id).is_some_and(|totals| totals.settled())
    }
}

#[async_trait]
impl Ledger for FakeLedger {
    async fn apply(&self, flush: Flush) -> Result<(), StoreError> {
        let failing = self.fail_applies.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if !failing || self.lose_answers.load(SeqCst) {
            let mut rows = self.rows.lock().unwrap();
            rows.admitted.extend(flush.admitted.iter().map(|row| row.id));
            for (id, totals) in flush.totals {
                if rows.totals.get(&id).is_none_or(|stored| stored.applied <= totals.applied) {
                    rows.totals.insert(id, totals);
                }
            }
            for (offset, receipts) in flush.receipts {
                let keyed = receipts.into_iter().enumerate().map(|(i, r)| ((flush.partition, offset, i), r));
                rows.receipts.extend(keyed);
            }
        }
        if failing { Err(StoreError::Unavailable("commanded".into())) } else { Ok(()) }
    }

    async fn totals(&self, ids: &[NotificationId]) -> Result<Vec<Option<Totals>>, StoreError> {
        self.loads.fetch_add(1, SeqCst);
        Ok(ids.iter().map(|id| self.totals_of(id)).collect())
    }

    async fn request(&self, _: &TenantId, _: &NotificationId) -> Result<Option<RequestRow>, StoreError> {
        unreachable!("the ledger has no use for it")
    }

    async fn requests(
        &self,
        _: &TenantId,
        _: &RequestScope,
        _: Option<&[u8]>,
        _: usize,
    ) -> Result<Result<Page<RequestRow>, ForeignToken>, StoreError> {
        unreachable!("the ledger has no use for it")
    }

    async fn receipts(
        &self,
        _: &TenantId,
        _: &ReceiptScope,
        _: Option<&[u8]>,
        _: usize,
    ) -> Result<Result<Page<ReceiptRow>, ForeignToken>, StoreError> {
        unreachable!("the ledger has no use for it")
    }
}
