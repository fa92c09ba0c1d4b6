//! A log and a registry in memory whose faults a test commands.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    books::Totals,
    clock::{Clock, Entropy, World},
    control::{ControlReads, policy_of},
    ids::{NotificationId, TenantId},
    levels::Levels,
    people::{Person, User},
    policy::Policy,
    ports::{
        StoreError,
        audit::{Audit, AuditFilter, AuditRow},
        channel::{self, Opener, ProviderFault},
        directory::{AudienceKey, AudiencePage, Changed, Directory, Membership, PersonChange},
        fleet::{Fleet, ProcessReport},
        ledger::{AdmittedRow, Flush, ForeignToken, Ledger, Page, ReceiptRow, ReceiptScope, RequestRow, RequestScope},
        log::*,
        registry::{Registry, Versioned, Written},
    },
    providers::{ProviderRow, Providers},
    record::{Channel, Control, Cursor, Manifest},
    topic::{Group, Layout, TopicPartition},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{feed::policy_feed, publisher::Publisher};

pub(crate) struct FakeLog {
    identity: Identity,
    records: Mutex<Vec<Record>>,
    appended: Notify,
    pub(crate) fail_appends: AtomicU32,
    /// The next append waits until it is released; those after it pass.
    pub(crate) hold_next_append: AtomicBool,
    pub(crate) release: Notify,
}

impl FakeLog {
    pub(crate) fn new() -> Arc<Self> {
        let layout = Layout { shards: 1, requests: 1, receipts: 1 };
        Arc::new(Self {
            identity: Identity { region: "r".into(), epoch: 0, layout },
            records: Mutex::default(),
            appended: Notify::new(),
            fail_appends: AtomicU32::new(0),
            hold_next_append: AtomicBool::new(false),
            release: Notify::new(),
        })
    }

    /// Every policy on `control`, in order.
    pub(crate) fn published(&self) -> Vec<Control> {
        let records = self.records.lock().unwrap();
        records.iter().filter_map(|record| policy_of(record).ok()).collect()
    }
}

#[async_trait]
impl Log for FakeLog {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn append(&self, new: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        tokio::task::yield_now().await;
        if self.hold_next_append.swap(false, SeqCst) {
            self.release.notified().await;
        }
        if self.fail_appends.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(LogError::Unavailable("commanded".into()));
        }
        let mut records = self.records.lock().unwrap();
        let offsets = new
            .into_iter()
            .map(|NewRecord { at, key, timestamp_ms, envelope, body }| {
                let offset = records.len() as u64;
                records.push(Record { at, offset, key, timestamp_ms, envelope, body });
                offset
            })
            .collect();
        drop(records);
        self.appended.notify_waiters();
        Ok(offsets)
    }

    async fn subscribe(&self, _: Group, _: Member) -> Result<Box<dyn Subscription>, LogError> {
        unreachable!("control is read without a group")
    }

    fn is_assigned(&self, _: Group, _: u32) -> bool {
        unreachable!("control is read without a group")
    }

    async fn read(&self, _: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError> {
        let records = self.records.lock().unwrap();
        let read: Vec<Record> = records.iter().skip(from as usize).take(max).cloned().collect();
        let next = from + read.len() as u64;
        Ok((read, next))
    }

    async fn durable(&self, _: Mark) -> Result<(), LogError> {
        Ok(())
    }

    async fn progress(&self, _: Group) -> Result<Vec<Progress>, LogError> {
        Ok(Vec::new())
    }

    async fn reached(&self, _: TopicPartition, offset: u64) -> Result<(), LogError> {
        loop {
            let appended = self.appended.notified();
            if self.records.lock().unwrap().len() as u64 > offset {
                // News takes its time, as between processes.
                tokio::time::sleep(Duration::from_millis(10)).await;
                return Ok(());
            }
            appended.await;
        }
    }
}

#[derive(Default)]
pub(crate) struct FakeRegistry {
    rows: Mutex<BTreeMap<(String, String), Versioned>>,
}

#[async_trait]
impl Registry for FakeRegistry {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Versioned>, StoreError> {
        // Gives other writers their chance between a read and a write.
        tokio::task::yield_now().await;
        Ok(self.rows.lock().unwrap().get(&(kind.into(), key.into())).cloned())
    }

    async fn put(&self, kind: &str, key: &str, value: Option<Bytes>, expect: u64) -> Result<Written, StoreError> {
        let mut rows = self.rows.lock().unwrap();
        let id = (kind.to_owned(), key.to_owned());
        let stored = rows.get(&id).map_or(0, |row| row.version);
        if stored != expect {
            return Ok(Written::VersionMismatch(stored));
        }
        let version = stored + 1;
        rows.insert(id, Versioned { kind: kind.into(), key: key.into(), version, value, published: false });
        Ok(Written::Done(version))
    }

    async fn list(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        let rows = self.rows.lock().unwrap();
        let wanted = |row: &&Versioned| {
            row.kind == kind
                && row.key.starts_with(prefix)
                && after.is_none_or(|after| row.key.as_str() > after)
                && row.value.is_some()
        };
        Ok(rows.values().filter(wanted).take(limit).cloned().collect())
    }

    async fn unpublished(&self, limit: usize) -> Result<Vec<Versioned>, StoreError> {
        Ok(self.rows.lock().unwrap().values().filter(|row| !row.published).take(limit).cloned().collect())
    }

    async fn published(&self, kind: &str, key: &str, version: u64) -> Result<(), StoreError> {
        if let Some(row) = self.rows.lock().unwrap().get_mut(&(kind.into(), key.into()))
            && row.version == version
        {
            row.published = true;
        }
        Ok(())
    }
}

/// A clock that stands and numbers that count.
#[derive(Default)]
struct Counted(AtomicU64);

impl Clock for Counted {
    fn now_ms(&self) -> u64 {
        1_000_000
    }
}

impl Entropy for Counted {
    fn next_u64(&self) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst)
    }
}

/// One process's control plane with its feed.
pub(crate) struct Process {
    pub(crate) publisher: Arc<Publisher>,
    feed: JoinHandle<anyhow::Result<()>>,
}

impl Process {
    pub(crate) fn start(log: &Arc<FakeLog>, registry: &Arc<FakeRegistry>) -> Self {
        let (sender, policy) = watch::channel(Arc::new(
            Policy::default().with_configured(Providers::configured([(Channel::Email, "smtp".to_owned())])),
        ));
        let world = World::new(Arc::new(Counted::default()), Arc::new(Counted::default()));
        let publisher = Arc::new(Publisher::new(log.clone(), registry.clone(), policy, world));
        let reads = Arc::new(ControlReads::default());
        let (levels, world, shutdown) = (Arc::new(Levels::new(9)), publisher.world().clone(), CancellationToken::new());
        let feed = tokio::spawn(policy_feed(log.clone(), levels, sender, reads, world, shutdown));
        Self { publisher, feed }
    }

    /// Waits until this process decides with something.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Policy) -> bool) {
        let waited = async {
            while !condition(&self.publisher.policy()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), waited).await.unwrap_or_else(|_| panic!("in vain: {what}"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

/// Knows one user, `u1` of tenant `demo`.
pub(crate) struct FakeDirectory;

#[async_trait]
impl Directory for FakeDirectory {
    async fn people(&self, tenant: &TenantId, user_ids: &[String]) -> Result<Vec<Person>, StoreError> {
        let person = |id: &String| match (tenant.as_str(), id.as_str()) {
            ("demo", "u1") => {
                let user = User { user_id: id.clone(), locale: Some("de".into()), ..User::default() };
                Person { user: Some(user), ..Person::default() }
            }
            _ => Person::default(),
        };
        Ok(user_ids.iter().map(person).collect())
    }

    async fn change(&self, _: &TenantId, _: Vec<PersonChange>, _: u64) -> Result<Vec<Changed>, StoreError> {
        unreachable!("previews read only")
    }

    async fn list(&self, _: &TenantId, _: Option<Cursor>, _: usize) -> Result<(Vec<User>, Option<Cursor>), StoreError> {
        unreachable!("previews read only")
    }

    async fn set_members(&self, _: &TenantId, _: Vec<Membership>, _: bool) -> Result<u64, StoreError> {
        unreachable!("previews read only")
    }

    async fn audience(
        &self,
        _: &TenantId,
        _: &AudienceKey,
        _: Option<Cursor>,
        _: usize,
    ) -> Result<AudiencePage, StoreError> {
        unreachable!("previews read only")
    }
}

/// The processes that a test says there are.
#[derive(Default)]
pub(crate) struct FakeFleet(pub(crate) Mutex<Vec<ProcessReport>>);

#[async_trait]
impl Fleet for FakeFleet {
    async fn report(&self, report: ProcessReport) -> Result<(), StoreError> {
        let mut reports = self.0.lock().unwrap();
        reports.retain(|other| other.process != report.process);
        reports.push(report);
        Ok(())
    }

    async fn running(&self, _: u64) -> Result<Vec<ProcessReport>, StoreError> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn leave(&self, process: &str) -> Result<(), StoreError> {
        self.0.lock().unwrap().retain(|report| report.process != process);
        Ok(())
    }
}

/// Knows one request, of the tenant `demo` and the template `hi`: five of in-app and three of mail wait. It is away while
/// a test says so, or gives no answer.
#[derive(Default)]
pub(crate) struct FakeLedger {
    pub(crate) away: AtomicBool,
    pub(crate) silent: AtomicBool,
}

#[async_trait]
impl Ledger for FakeLedger {
    async fn requests(
        &self,
        tenant: &TenantId,
        _: &RequestScope,
        _: Option<&[u8]>,
        _: usize,
    ) -> Result<Result<Page<RequestRow>, ForeignToken>, StoreError> {
        if self.silent.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.away.load(SeqCst) {
            return Err(StoreError::Unavailable("commanded".into()));
        }
        let mut totals = Totals::new(tenant.clone());
        for (channel, count) in [(Channel::InApp, 5), (Channel::Email, 3)] {
            totals.book_manifest(&Manifest { channel: channel as i32, count, ..Manifest::default() });
        }
        let admitted = AdmittedRow {
            id: NotificationId([1; 16]),
            tenant: tenant.clone(),
            template_id: "hi".into(),
            template_version: 1,
            accepted_ms: 1,
            send_at_ms: 0,
            expires_ms: 2,
            dedupe_key: String::new(),
        };
        let row = RequestRow { admitted: Some(admitted), totals: Some(totals) };
        let items = if tenant.as_str() == "demo" { vec![row] } else { Vec::new() };
        Ok(Ok(Page { items, next: None }))
    }

    async fn apply(&self, _: Flush) -> Result<(), StoreError> {
        unreachable!("the control plane writes no books")
    }

    async fn totals(&self, _: &[NotificationId]) -> Result<Vec<Option<Totals>>, StoreError> {
        unreachable!("switches count requests only")
    }

    async fn request(&self, _: &TenantId, _: &NotificationId) -> Result<Option<RequestRow>, StoreError> {
        unreachable!("switches count requests only")
    }

    async fn receipts(
        &self,
        _: &TenantId,
        _: &ReceiptScope,
        _: Option<&[u8]>,
        _: usize,
    ) -> Result<Result<Page<ReceiptRow>, ForeignToken>, StoreError> {
        unreachable!("switches count requests only")
    }
}

/// The calls of operators, in one page.
#[derive(Default)]
pub(crate) struct FakeAudit(Mutex<Vec<AuditRow>>);

#[async_trait]
impl Audit for FakeAudit {
    async fn record(&self, row: AuditRow) -> Result<(), StoreError> {
        self.0.lock().unwrap().push(row);
        Ok(())
    }

    async fn list(
        &self,
        filter: &AuditFilter,
        _: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<AuditRow>, ForeignToken>, StoreError> {
        let rows = self.0.lock().unwrap();
        let items = rows.iter().rev().filter(|row| filter.takes(row)).take(limit).cloned().collect();
        Ok(Ok(Page { items, next: None }))
    }
}

/// Opens whatever is of the kind smtp, and says of it what a test commands.
#[derive(Default)]
pub(crate) struct FakeOpener {
    pub(crate) fault: Mutex<Option<ProviderFault>>,
    pub(crate) checked: Mutex<Vec<ProviderRow>>,
}

struct NoChannel;

#[async_trait]
impl channel::Channel for NoChannel {
    fn kind(&self) -> Channel {
        Channel::Email
    }

    fn provider(&self) -> &str {
        "none"
    }

    async fn deliver(&self, _: Vec<channel::Message>, _: Arc<dyn channel::Gate>, _: Arc<dyn channel::Sink>) {
        unreachable!("the control plane sends nothing")
    }
}

#[async_trait]
impl Opener for FakeOpener {
    fn open(&self, provider: &ProviderRow) -> Result<Arc<dyn channel::Channel>, ProviderFault> {
        match provider.kind.as_str() {
            "smtp" => Ok(Arc::new(NoChannel)),
            kind => Err(ProviderFault::NotBuilt(kind.to_owned())),
        }
    }

    async fn check(&self, provider: &ProviderRow) -> Result<(), ProviderFault> {
        self.checked.lock().unwrap().push(provider.clone());
        self.fault.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}
