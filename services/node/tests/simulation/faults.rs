//! Ports that fail and delay, and commits around which the node is killed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use herald_core::{
    books::Totals,
    bucket::{Ask, Lease},
    ids::{NotificationId, TenantId},
    people::{Person, User},
    policy::kind,
    ports::{
        StoreError,
        admissions::{Admission, Admissions, PlaceNote},
        budgets::Budgets,
        claims::{ClaimRequest, Claims},
        directory::{AudienceKey, AudiencePage, Changed, Directory, Membership, PersonChange},
        erasures::{Erasure, Erasures},
        inbox::{Counts, EventId, Inbox, Item, MarkAs, StateFilter, Which},
        ledger::{Flush, ForeignToken, Ledger, Page, ReceiptRow, ReceiptScope, RequestRow, RequestScope},
        log::{
            Commit, Committing, Identity, Log, LogError, Mark, Member, NewRecord, Polled, Progress, Record,
            Subscription,
        },
    },
    record::{CancelAck, Claim, Control, Cursor, InboxBatch, InboxSection, LedgerBatch, Place, Schema, UserChange},
    topic::{Group, Topic, TopicPartition},
};
use herald_node::backends::Backends;
use prost::Message;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    budgets::Items,
    scenario::KILLER,
    world::{Chance, SimClock},
};

/// A deliberate defect, to prove that the checks would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// Every claim is won.
    ClaimSkipped,
    /// Outputs become visible before the position moves.
    CommitSplit,
    /// A restarted consumer forgets what was finished beyond its offset.
    DoneMapIgnored,
    /// The orchestrator does not say what it created.
    ManifestNotWritten,
    /// The worker books an end twice.
    ReceiptTwice,
    /// The worker does not learn who changed.
    ChangesUnread,
    /// Every budget gives whatever is asked.
    LimitNotTaken,
    /// Nobody learns of switches and cancels.
    SteeringUnread,
    /// What waits for the tier in which held messages circle is lost.
    HoldLoses,
    /// The first requests partition acknowledges a cancel for everybody.
    CancelClosedEarly,
    /// Nobody learns who was erased.
    ErasureUnread,
    /// Nobody takes the passes of an erasure.
    ErasureNotGoneOnWith,
    /// Nobody learns of quiet hours.
    QuietHoursUnread,
    /// Nobody learns that a limit was changed.
    LimitChangeUnread,
}

/// What goes wrong in a run.
#[derive(Clone)]
pub struct Faults {
    pub chance: Chance,
    /// One call of a store in so many fails; 0 for none.
    pub store_errors_one_in: u64,
    /// One commit in so many kills the node; 0 for none.
    pub crash_one_in: u64,
    pub crashed: CancellationToken,
    /// One commit in so many is not answered, whether it is in or not; 0 for none.
    pub unanswered_one_in: u64,
    /// Counts the workers that must join their group anew for it.
    pub rejoining: Arc<AtomicU64>,
    pub mutant: Mutant,
    pub clock: Arc<SimClock>,
    /// In-app items that were put out.
    pub items: Arc<Mutex<Items>>,
    /// Everything that was written, for the comparison of runs.
    pub trace: Arc<Mutex<Xxh3>>,
}

impl Faults {
    async fn store(&self) -> Result<(), StoreError> {
        if self.chance.one_in(5) {
            tokio::time::sleep(Duration::from_millis(self.chance.below(30))).await;
        }
        match self.chance.one_in(self.store_errors_one_in) {
            true => Err(StoreError::Unavailable("simulated".into())),
            false => Ok(()),
        }
    }

    /// A commit takes as long as one on a cluster may; its member goes on meanwhile.
    async fn takes_time(&self) {
        if self.chance.one_in(6) {
            tokio::time::sleep(Duration::from_millis(self.chance.below(60))).await;
        }
    }

    fn read(&self) -> Result<(), LogError> {
        match self.crash_one_in > 0 && self.chance.one_in(400) {
            true => Err(LogError::Unavailable("simulated".into())),
            false => Ok(()),
        }
    }

    async fn crash(&self) {
        if self.chance.one_in(self.crash_one_in) {
            self.crashed.cancel();
            std::future::pending::<()>().await;
        }
    }

    /// The ports behind faults.
    pub fn wrap(&self, backends: Backends) -> Backends {
        let faults = self.clone();
        Backends {
            log: Arc::new(Faulty { faults: faults.clone(), inner: backends.log }),
            admissions: Arc::new(Faulty { faults: faults.clone(), inner: backends.admissions }),
            directory: Arc::new(Faulty { faults: faults.clone(), inner: backends.directory }),
            erasures: Arc::new(Faulty { faults: faults.clone(), inner: backends.erasures }),
            ledger: Arc::new(Faulty { faults: faults.clone(), inner: backends.ledger }),
            inbox: Arc::new(Faulty { faults: faults.clone(), inner: backends.inbox }),
            claims: Arc::new(Faulty { faults: faults.clone(), inner: backends.claims }),
            budgets: Arc::new(Faulty { faults, inner: backends.budgets }),
            ..backends
        }
    }

    /// Notes the in-app items that a worker puts out.
    fn note_items(&self, commit: &Commit) {
        let of_inbox = |record: &&NewRecord| record.at.topic == Topic::Inbox;
        for record in commit.outputs.iter().filter(of_inbox) {
            let Ok(batch) = InboxBatch::decode(record.body.clone()) else { continue };
            let of_section =
                |section: &InboxSection| (self.clock.true_ms(), section.tenant.clone(), section.count.into());
            self.items.lock().unwrap().extend(batch.sections.iter().map(of_section));
        }
    }

    fn trace(&self, records: &[NewRecord]) {
        let mut trace = self.trace.lock().unwrap();
        for record in records {
            trace.update(record.at.to_string().as_bytes());
            trace.update(&record.timestamp_ms.to_be_bytes());
            trace.update(&record.body);
        }
    }
}

struct Faulty<T: ?Sized> {
    faults: Faults,
    inner: Arc<T>,
}

#[async_trait]
impl Log for Faulty<dyn Log> {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        self.faults.trace(&records);
        self.inner.append(records).await
    }

    async fn subscribe(&self, group: Group, member: Member) -> Result<Box<dyn Subscription>, LogError> {
        let inner = self.inner.subscribe(group, member).await?;
        Ok(Box::new(FaultySubscription { faults: self.faults.clone(), group, inner }))
    }

    fn is_assigned(&self, group: Group, ordinal: u32) -> bool {
        self.inner.is_assigned(group, ordinal)
    }

    async fn read(&self, at: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError> {
        let (mut records, next) = self.inner.read(at, from, max).await?;
        if self.faults.mutant == Mutant::SteeringUnread && at.topic == Topic::Control {
            records.retain(|record| {
                !record.key.starts_with(kind::SWITCH.as_bytes()) && !record.key.starts_with(kind::CANCEL.as_bytes())
            });
        }
        if self.faults.mutant == Mutant::LimitChangeUnread && at.topic == Topic::Control {
            let is_first =
                |record: &Record| Control::decode(record.body.clone()).is_ok_and(|control| control.version == 1);
            records.retain(|record| !record.key.starts_with(kind::LIMIT.as_bytes()) || is_first(record));
        }
        Ok((records, next))
    }

    async fn durable(&self, mark: Mark) -> Result<(), LogError> {
        self.inner.durable(mark).await
    }

    async fn progress(&self, group: Group) -> Result<Vec<Progress>, LogError> {
        self.inner.progress(group).await
    }

    async fn reached(&self, at: TopicPartition, offset: u64) -> Result<(), LogError> {
        self.inner.reached(at, offset).await
    }
}

struct FaultySubscription {
    faults: Faults,
    group: Group,
    inner: Box<dyn Subscription>,
}

impl FaultySubscription {
    /// What mutants do to a commit.
    fn spoil(&self, commit: &mut Commit) {
        let mutant = self.faults.mutant;
        if mutant == Mutant::ManifestNotWritten && self.group == Group::Orchestrator {
            commit.outputs.retain_mut(without_manifests);
        }
        if mutant == Mutant::ReceiptTwice && self.group == Group::Worker {
            commit.outputs.iter_mut().for_each(with_a_receipt_twice);
        }
        if mutant == Mutant::HoldLoses && self.group == Group::Worker {
            commit.outputs.retain(|record| record.at.topic != Topic::Delayed(3));
        }
        if mutant == Mutant::CancelClosedEarly && self.group == Group::Orchestrator {
            commit.outputs.iter_mut().for_each(acknowledged_by_all);
        }
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, LogError> {
        self.faults.read()?;
        let mut polled = self.inner.poll(max, wait).await?;
        if self.faults.mutant == Mutant::ChangesUnread {
            let changes = polled.records.iter_mut().filter(|record| record.at.topic == Topic::UserChanges);
            changes.for_each(|record| record.body = UserChange::default().encode_to_vec().into());
        }
        if self.faults.mutant == Mutant::DoneMapIgnored {
            polled.assigned.iter_mut().for_each(|(_, position)| position.done = Default::default());
        }
        Ok(polled)
    }

    fn commit(&mut self, mut commit: Commit) -> Committing {
        let faults = self.faults.clone();
        if self.group == Group::Worker {
            faults.note_items(&commit);
        }
        if faults.chance.one_in(faults.unanswered_one_in) {
            faults.rejoining.fetch_add(u64::from(self.group == Group::Worker), Relaxed);
            let committed = faults.chance.one_in(2).then(|| self.inner.commit(commit));
            return Box::pin(async move {
                faults.takes_time().await;
                if let Some(committed) = committed {
                    committed.await?;
                }
                Err(LogError::Unavailable("simulated".into()))
            });
        }
        self.spoil(&mut commit);
        faults.trace(&commit.outputs);
        let outputs = match faults.mutant == Mutant::CommitSplit {
            true => std::mem::take(&mut commit.outputs),
            false => Vec::new(),
        };
        let early = (!outputs.is_empty()).then(|| self.inner.commit(Commit { positions: Vec::new(), outputs }));
        let committed = self.inner.commit(commit);
        Box::pin(async move {
            faults.takes_time().await;
            faults.crash().await;
            if let Some(early) = early {
                early.await?;
                tokio::time::sleep(Duration::from_millis(faults.chance.below(20))).await;
                faults.crash().await;
            }
            let committed = committed.await;
            faults.crash().await;
            faults.takes_time().await;
            committed
        })
    }

    fn pause(&mut self, at: TopicPartition, paused: bool) {
        self.inner.pause(at, paused);
    }

    async fn ends(&mut self, at: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
        at.iter().try_for_each(|_| self.faults.read())?;
        self.inner.ends(at).await
    }
}

fn with_a_receipt_twice(record: &mut NewRecord) {
    if record.envelope.schema() == Schema::LedgerBatch
        && let Ok(mut batch) = LedgerBatch::decode(record.body.clone())
    {
        batch.receipts.extend(batch.receipts.first().cloned());
        record.body = batch.encode_to_vec().into();
    }
}

fn acknowledged_by_all(record: &mut NewRecord) {
    if record.envelope.schema() == Schema::LedgerBatch
        && let Ok(mut batch) = LedgerBatch::decode(record.body.clone())
    {
        for ack in batch.cancel_acks.clone() {
            for number in 0..4 {
                batch.cancel_acks.push(CancelAck { shard: true, number, ..ack.clone() });
                batch.cancel_acks.push(CancelAck { number: number % 2, ..ack.clone() });
            }
        }
        record.body = batch.encode_to_vec().into();
    }
}

fn without_manifests(record: &mut NewRecord) -> bool {
    if record.envelope.schema() == Schema::LedgerBatch
        && let Ok(mut batch) = LedgerBatch::decode(record.body.clone())
    {
        batch.manifests.iter_mut().for_each(|manifest| manifest.count = 0);
        record.body = batch.encode_to_vec().into();
    }
    true
}

#[async_trait]
impl Admissions for Faulty<dyn Admissions> {
    async fn begin(&self, tenant: &TenantId, key: &str, it: Admission) -> Result<Option<Admission>, StoreError> {
        self.faults.store().await?;
        self.inner.begin(tenant, key, it).await
    }

    async fn restart(&self, tenant: &TenantId, key: &str, seen_ms: u64, now_ms: u64) -> Result<bool, StoreError> {
        self.faults.store().await?;
        self.inner.restart(tenant, key, seen_ms, now_ms).await
    }

    async fn answered(&self, tenant: &TenantId, key: &str, id: &NotificationId) -> Result<(), StoreError> {
        self.faults.store().await?;
        self.inner.answered(tenant, key, id).await
    }

    async fn withdraw(&self, tenant: &TenantId, key: &str, id: &NotificationId) -> Result<(), StoreError> {
        self.faults.store().await?;
        self.inner.withdraw(tenant, key, id).await
    }

    async fn note_first_places(&self, notes: Vec<PlaceNote>) -> Result<Vec<Place>, StoreError> {
        self.faults.store().await?;
        self.inner.note_first_places(notes).await
    }
}

#[async_trait]
impl Directory for Faulty<dyn Directory> {
    async fn people(&self, tenant: &TenantId, user_ids: &[String]) -> Result<Vec<Person>, StoreError> {
        assert!(user_ids.iter().all(|user| user != KILLER), "a profile that kills whoever reads it");
        self.faults.store().await?;
        let mut people = self.inner.people(tenant, user_ids).await?;
        for person in &mut people {
            if self.faults.mutant == Mutant::ErasureUnread {
                person.erased_ms = 0;
            }
            if self.faults.mutant == Mutant::QuietHoursUnread {
                person.preferences.quiet_hours = None;
            }
        }
        Ok(people)
    }

    async fn change(&self, tenant: &TenantId, it: Vec<PersonChange>, now_ms: u64) -> Result<Vec<Changed>, StoreError> {
        self.inner.change(tenant, it, now_ms).await
    }

    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<User>, Option<Cursor>), StoreError> {
        self.inner.list(tenant, after, limit).await
    }

    async fn set_members(&self, tenant: &TenantId, members: Vec<Membership>, present: bool) -> Result<u64, StoreError> {
        self.inner.set_members(tenant, members, present).await
    }

    async fn audience(
        &self,
        tenant: &TenantId,
        audience: &AudienceKey,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<AudiencePage, StoreError> {
        self.faults.store().await?;
        self.inner.audience(tenant, audience, after, limit).await
    }
}

#[async_trait]
impl Erasures for Faulty<dyn Erasures> {
    async fn begin(&self, erasure: Erasure) -> Result<Erasure, StoreError> {
        self.faults.store().await?;
        self.inner.begin(erasure).await
    }

    async fn get(&self, tenant: &TenantId, id: &str) -> Result<Option<Erasure>, StoreError> {
        self.inner.get(tenant, id).await
    }

    async fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<Erasure>, StoreError> {
        self.faults.store().await?;
        self.inner.due(now_ms, limit).await
    }

    async fn step(&self, tenant: &TenantId, id: &str, now_ms: u64) -> Result<Option<Erasure>, StoreError> {
        self.faults.store().await?;
        self.inner.step(tenant, id, now_ms).await
    }
}

#[async_trait]
impl Ledger for Faulty<dyn Ledger> {
    async fn apply(&self, flush: Flush) -> Result<(), StoreError> {
        self.faults.store().await?;
        self.inner.apply(flush).await?;
        // The rows are written and the caller does not learn it.
        self.faults.store().await
    }

    async fn totals(&self, ids: &[NotificationId]) -> Result<Vec<Option<Totals>>, StoreError> {
        self.faults.store().await?;
        self.inner.totals(ids).await
    }

    async fn request(&self, tenant: &TenantId, id: &NotificationId) -> Result<Option<RequestRow>, StoreError> {
        self.inner.request(tenant, id).await
    }

    async fn requests(
        &self,
        tenant: &TenantId,
        scope: &RequestScope,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<RequestRow>, ForeignToken>, StoreError> {
        self.inner.requests(tenant, scope, token, limit).await
    }

    async fn receipts(
        &self,
        tenant: &TenantId,
        scope: &ReceiptScope,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<ReceiptRow>, ForeignToken>, StoreError> {
        self.inner.receipts(tenant, scope, token, limit).await
    }
}

#[async_trait]
impl Inbox for Faulty<dyn Inbox> {
    async fn put(
        &self,
        shard: u32,
        epoch: u32,
        batches: Vec<(u64, herald_core::record::InboxBatch)>,
    ) -> Result<(), StoreError> {
        self.faults.store().await?;
        self.inner.put(shard, epoch, batches).await?;
        self.faults.store().await
    }

    async fn list(
        &self,
        tenant: &TenantId,
        user: &str,
        filter: StateFilter,
        before: Option<EventId>,
        limit: usize,
    ) -> Result<(Vec<Item>, Option<EventId>), StoreError> {
        self.inner.list(tenant, user, filter, before, limit).await
    }

    async fn since(
        &self,
        tenant: &TenantId,
        user: &str,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Item>, StoreError> {
        self.inner.since(tenant, user, after, limit).await
    }

    async fn mark(
        &self,
        tenant: &TenantId,
        user: &str,
        which: Which,
        mark: MarkAs,
        now_ms: u64,
    ) -> Result<Counts, StoreError> {
        self.inner.mark(tenant, user, which, mark, now_ms).await
    }

    async fn counts(&self, tenant: &TenantId, user: &str) -> Result<Counts, StoreError> {
        self.inner.counts(tenant, user).await
    }
}

#[async_trait]
impl Claims for Faulty<dyn Claims> {
    async fn apply(
        &self,
        shard: u32,
        sequence: u64,
        requests: &[ClaimRequest],
        now_ms: u64,
    ) -> Result<Option<Vec<NotificationId>>, StoreError> {
        self.faults.store().await?;
        let holders = self.inner.apply(shard, sequence, requests, now_ms).await?;
        Ok(match self.faults.mutant {
            Mutant::ClaimSkipped => holders.map(|_| requests.iter().map(ClaimRequest::owner).collect()),
            _ => holders,
        })
    }

    async fn sequence(&self, shard: u32) -> Result<u64, StoreError> {
        self.inner.sequence(shard).await
    }

    async fn adopt(&self, shard: u32, sequence: u64) -> Result<Option<u64>, StoreError> {
        self.inner.adopt(shard, sequence).await
    }

    async fn load(&self, shard: u32, claims: Vec<Claim>, now_ms: u64) -> Result<u64, StoreError> {
        self.inner.load(shard, claims, now_ms).await
    }
}

#[async_trait]
impl Budgets for Faulty<dyn Budgets> {
    async fn lease(&self, groups: &[Vec<Ask>], now_ms: u64) -> Result<Vec<Lease>, StoreError> {
        self.faults.store().await?;
        match self.faults.mutant {
            Mutant::LimitNotTaken => {
                let all = |asks: &Vec<Ask>| Lease::Granted(asks.iter().map(|ask| ask.tokens).collect());
                Ok(groups.iter().map(all).collect())
            }
            _ => self.inner.lease(groups, now_ms).await,
        }
    }
}
