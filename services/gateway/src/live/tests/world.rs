//! What the live feed works with, on one machine's stores in memory, and a worker that writes and hands over.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use herald_api::{auth::Authenticator, finish::Finish};
use herald_core::{
    auth::sha256_hex,
    clock::{Clock, Entropy},
    ids::{NotificationId, TenantId},
    packed::pack,
    policy::{KeyRow, Policy, SIGNING_SECRET, SecretRow, TenantRow, kind},
    ports::{
        StoreError,
        inbox::{Counts, EventId, Inbox, Item, MarkAs, StateFilter, Which},
        sessions::{Frame, Sessions},
    },
    record::{Control, InboxBatch, InboxSection},
    tokens::UserToken,
};
use herald_embedded::{kv::memory::MemoryKv, sessions::LocalSessions, store::inbox::InboxStore};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Layer;

use super::client::{Client, Events, web_socket};
use crate::live::{Live, LiveConfig, LiveDeps, item_of, routes};

/// A key with the scope `inbox`.
pub const KEY: (&str, &str) = ("Authorization", "Bearer hk_inbox");

const SECRET: &str = "00ff";
const EPOCH: u32 = 1;

/// Random numbers by splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// A new seed, or the one in `HERALD_SEED`.
pub fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let given = std::env::var("HERALD_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or(now.as_nanos() as u64);
    println!("HERALD_SEED={seed}");
    seed
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

pub struct World {
    pub tenant: TenantId,
    pub address: SocketAddr,
    pub sessions: LocalSessions,
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
    /// Whether items are written and not handed over.
    pub lose_frames: AtomicBool,
    pub inbox_away: AtomicBool,
    pub failed_reads: AtomicUsize,
    /// Whether an item is written when the next connection has just read where its feed ends.
    pub write_on_open: AtomicBool,
    /// Of the items that are written.
    pub body_bytes: AtomicUsize,
    inbox: InboxStore,
    policy: watch::Sender<Arc<Policy>>,
    offset: AtomicU64,
}

impl World {
    pub async fn new(config: LiveConfig) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = Arc::new(Self {
            tenant: TenantId::trusted("acme"),
            address: listener.local_addr().unwrap(),
            sessions: LocalSessions::new(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            lose_frames: AtomicBool::new(false),
            inbox_away: AtomicBool::new(false),
            failed_reads: AtomicUsize::new(0),
            write_on_open: AtomicBool::new(false),
            body_bytes: AtomicUsize::new(10),
            inbox: InboxStore::new(Arc::new(MemoryKv::new())),
            policy: watch::Sender::new(Arc::new(policy())),
            offset: AtomicU64::new(0),
        });
        let routes = routes(Live::new(LiveDeps {
            inbox: Arc::new(PortsOf(world.clone())),
            sessions: Arc::new(PortsOf(world.clone())),
            authenticator: Authenticator::new(world.policy.subscribe(), Arc::new(Still)),
            config,
            shutdown: world.shutdown.clone(),
            tasks: world.tasks.clone(),
        }));
        let finished = Finish::new(Arc::new(Still)).layer(routes.into_router());
        let app = axum::Router::new().fallback_service(finished);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        world
    }

    /// Writes records in one write, as a worker does, each with one to three items, and hands them over. Returns the
    /// event ids of the user's own.
    pub async fn write(&self, user: &str, records: usize, random: &mut Random) -> Vec<String> {
        let (mut batches, mut frames, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..records {
            let offset = self.offset.fetch_add(1, Ordering::Relaxed);
            let others = random.below(3);
            let users: Vec<String> = (0..others).map(|n| format!("other-{n}")).chain([user.to_owned()]).collect();
            let section = InboxSection {
                notification_id: NotificationId([offset as u8; 16]).0.to_vec().into(),
                tenant: self.tenant.as_str().into(),
                users: pack(users.iter().map(String::as_str)),
                count: users.len() as u32,
                titles: vec![format!("title {offset}")],
                bodies: vec!["b".repeat(self.body_bytes.load(Ordering::Relaxed))],
                data: format!("{{\"offset\":{offset}.5}}").into(),
                accepted_ms: 1_000 + offset,
                attempts: 0,
            };
            let event_id = EventId { epoch: EPOCH, offset, index: others as u32 };
            own.push(event_id.to_string());
            frames.push(Frame { tenant: self.tenant.clone(), user: user.into(), item: item(&section, event_id) });
            batches.push((offset, InboxBatch { sections: vec![section] }));
        }
        self.inbox.put(0, EPOCH, batches).await.unwrap();
        let connected = self.sessions.connected(&self.tenant, &[user]).await.unwrap()[0];
        if connected && !self.lose_frames.load(Ordering::Relaxed) {
            self.sessions.hand_over(frames).await.unwrap();
        }
        own
    }

    /// The user's feed, oldest first, as the API shows it.
    pub async fn items(&self, user: &str) -> Vec<Value> {
        let start = EventId { epoch: 0, offset: 0, index: 0 };
        let items = self.inbox.since(&self.tenant, user, Some(start), 1_000).await.unwrap();
        let text = |item| herald_api::json::to_text(&item_of(user, item)).unwrap();
        items.iter().map(|item| serde_json::from_slice(&text(item)).unwrap()).collect()
    }

    /// Connects the user `u`.
    pub async fn connect(&self, events: bool, last: Option<&str>) -> Client {
        let headers: Vec<_> = [KEY].into_iter().chain(last.map(|last| ("Last-Event-ID", last))).collect();
        self.open(events, "/v1/users/u/live", &headers).await
    }

    pub async fn open(&self, events: bool, path: &str, headers: &[(&str, &str)]) -> Client {
        if events {
            Client::Events(Events::open(self.address, path, headers).await.unwrap())
        } else {
            Client::Socket(Box::new(web_socket(self.address, path, headers).await.unwrap()))
        }
    }

    pub fn token(&self, user: &str, scopes: &[&str]) -> String {
        self.token_of("hk_notify", user, scopes)
    }

    /// A token that a key made.
    pub fn token_of(&self, key_id: &str, user: &str, scopes: &[&str]) -> String {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let (tenant, user, key_id) = (self.tenant.to_string(), user.into(), key_id.into());
        UserToken { tenant, user, scopes, expires_ms: 2_000, key_id }.sign(SECRET)
    }

    pub fn revoke_keys(&self) {
        let mut policy = Policy::clone(&self.policy.borrow());
        let version = policy.version + 1;
        let (kind, key) = (kind::KEY.into(), "hk_inbox".into());
        policy.apply(&Control { kind, key, version, value: bytes::Bytes::new(), deleted: true }).unwrap();
        self.policy.send_replace(Arc::new(policy));
    }
}

fn item(section: &InboxSection, event_id: EventId) -> Item {
    Item {
        event_id,
        notification: NotificationId::from_slice(&section.notification_id).unwrap(),
        title: section.titles[0].clone(),
        body: section.bodies[0].clone(),
        data: section.data.clone(),
        created_ms: section.accepted_ms,
        seen_ms: 0,
        read_ms: 0,
        archived_ms: 0,
    }
}

fn policy() -> Policy {
    let mut policy = Policy::default();
    let mut put = |kind: &str, key: &str, value: Vec<u8>| {
        let version = policy.version + 1;
        let (kind, key) = (kind.into(), key.into());
        policy.apply(&Control { kind, key, version, value: value.into(), deleted: false }).unwrap();
    };
    let tenant = TenantRow { tenant_id: "acme".into(), name: "Acme".into(), created_ms: 0, updated_ms: 0, quota: None };
    put(kind::TENANT, "acme", serde_json::to_vec(&tenant).unwrap());
    for (key, scope) in [("hk_inbox", "inbox"), ("hk_notify", "notify")] {
        let row = KeyRow {
            key_id: key.into(),
            sha256: sha256_hex(key.as_bytes()),
            tenant_id: Some("acme".into()),
            name: String::new(),
            scopes: vec![scope.into()],
            created_ms: 0,
            expires_ms: None,
        };
        put(kind::KEY, key, serde_json::to_vec(&row).unwrap());
    }
    put(kind::SECRET, SIGNING_SECRET, serde_json::to_vec(&SecretRow { value: SECRET.into() }).unwrap());
    policy
}

/// The ports, with the faults that a test asks for.
struct PortsOf(Arc<World>);

#[async_trait]
impl Inbox for PortsOf {
    async fn put(&self, shard: u32, epoch: u32, batches: Vec<(u64, InboxBatch)>) -> Result<(), StoreError> {
        self.0.inbox.put(shard, epoch, batches).await
    }

    async fn list(
        &self,
        tenant: &TenantId,
        user: &str,
        filter: StateFilter,
        before: Option<EventId>,
        limit: usize,
    ) -> Result<(Vec<Item>, Option<EventId>), StoreError> {
        self.0.inbox.list(tenant, user, filter, before, limit).await
    }

    async fn since(
        &self,
        tenant: &TenantId,
        user: &str,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Item>, StoreError> {
        // A store of several machines takes its time.
        tokio::task::yield_now().await;
        if self.0.inbox_away.load(Ordering::Relaxed) {
            self.0.failed_reads.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Unavailable("as the test asks for".into()));
        }
        let items = self.0.inbox.since(tenant, user, after, limit).await;
        if after.is_none() && self.0.write_on_open.swap(false, Ordering::Relaxed) {
            self.0.write(user, 1, &mut Random(15)).await;
        }
        tokio::task::yield_now().await;
        items
    }

    async fn mark(
        &self,
        tenant: &TenantId,
        user: &str,
        which: Which,
        mark: MarkAs,
        now_ms: u64,
    ) -> Result<Counts, StoreError> {
        self.0.inbox.mark(tenant, user, which, mark, now_ms).await
    }

    async fn counts(&self, tenant: &TenantId, user: &str) -> Result<Counts, StoreError> {
        self.0.inbox.counts(tenant, user).await
    }
}

#[async_trait]
impl Sessions for PortsOf {
    async fn connected(&self, tenant: &TenantId, users: &[&str]) -> Result<Vec<bool>, StoreError> {
        self.0.sessions.connected(tenant, users).await
    }

    async fn hand_over(&self, frames: Vec<Frame>) -> Result<(), StoreError> {
        self.0.sessions.hand_over(frames).await
    }

    async fn register(
        &self,
        tenant: &TenantId,
        user: &str,
        inlet: Arc<dyn herald_core::ports::sessions::Inlet>,
    ) -> Result<Box<dyn herald_core::ports::sessions::SessionGuard>, StoreError> {
        self.0.sessions.register(tenant, user, inlet).await
    }
}
