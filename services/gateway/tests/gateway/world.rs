//! A gateway and its world: two tenants, `acme` and `other`, with keys `hk_<tenant>` of every scope, and an operator's
//! key, `hk_op`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::body::Body;
use herald_core::{
    auth::{TENANT_SCOPES, sha256_hex},
    clock::{Clock, Entropy, World},
    ids::TenantId,
    policy::{
        KeyRow, Policy, QuotaRow, SIGNING_SECRET, SecretRow, TemplateHead, TemplateRow, TenantRow, kind,
        template_head_key, template_row_key,
    },
    ports::log::{Identity, Log, Record},
    providers::Providers,
    record::{Channel, Control, Notification, Request as RequestRecord},
    topic::{Lane, Layout, Topic, TopicPartition},
};
use herald_embedded::{
    disk::MemoryDisk,
    kv::memory::MemoryKv,
    log::{EmbeddedLog, LogOptions},
    sessions::LocalSessions,
    store::Stores,
};
use herald_gateway::{App, Config, Deps, Gateway};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use prost::Message;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::faults::{Faults, FaultyLog};

pub const NOW_MS: u64 = 1_700_000_000_000;
pub const SECRET: &str = "00ff";

pub struct TestClock(pub AtomicU64);

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

struct Counting(AtomicU64);

impl Entropy for Counting {
    fn next_u64(&self) -> u64 {
        // splitmix64: distinct, and the same in every run.
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

pub struct TestWorld {
    pub gateway: Gateway,
    pub app: App,
    pub clock: Arc<TestClock>,
    pub log: EmbeddedLog,
    pub faults: Arc<Faults>,
    pub stores: Stores,
    pub policy: watch::Sender<Arc<Policy>>,
    pub shutdown: CancellationToken,
}

impl Drop for TestWorld {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = self.log.close();
    }
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Status, code and fields of a problem document.
    pub fn problem(&self) -> (u16, &str, Vec<(&str, &str)>) {
        let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(text(&self.body["request_id"]), self.header("request-id").unwrap());
        assert_eq!(self.body["status"], self.status.as_u16());
        assert_eq!(text(&self.body["type"]), format!("/problems/{}", text(&self.body["code"])));
        let code = text(&self.body["code"]);
        assert!(herald_api::problems::page(&code).is_some(), "{code} is not documented");
        let errors = self.body["errors"].as_array().unwrap();
        (
            self.status.as_u16(),
            self.body["code"].as_str().unwrap(),
            errors.iter().map(|e| (e["field"].as_str().unwrap(), e["code"].as_str().unwrap())).collect(),
        )
    }
}

pub fn world() -> TestWorld {
    world_with(Config::default())
}

pub fn world_with(config: Config) -> TestWorld {
    let clock = Arc::new(TestClock(AtomicU64::new(NOW_MS)));
    let kv = Arc::new(MemoryKv::new());
    let identity = Identity { region: "eu".into(), epoch: 1, layout: Layout { shards: 4, requests: 2, receipts: 2 } };
    let options = LogOptions { flush_interval_ms: 1, low_water_bytes: 0, ..LogOptions::default() };
    let log = EmbeddedLog::open(Arc::new(MemoryDisk::new()), identity, options, kv.clone(), clock.clone()).unwrap();
    let flushing = log.clone();
    tokio::spawn(async move { flushing.flush_task().await });
    let stores = Stores::open(kv);
    let (policy, receiver) = watch::channel(Arc::new(policy()));
    let faults = Arc::new(Faults::default());
    let deps = Deps {
        log: Arc::new(FaultyLog { inner: log.clone(), faults: faults.clone() }),
        admissions: stores.admissions.clone(),
        directory: stores.directory.clone(),
        erasures: stores.erasures.clone(),
        ledger: stores.ledger.clone(),
        inbox: stores.inbox.clone(),
        sessions: Arc::new(LocalSessions::new()),
        audit: stores.audit.clone(),
        policy: receiver,
        world: World::new(clock.clone(), Arc::new(Counting(AtomicU64::new(1)))),
        stats: Arc::default(),
    };
    let shutdown = CancellationToken::new();
    let gateway = Gateway::new(config, deps, shutdown.clone());
    let app = herald_gateway::app(&gateway, axum::Router::new());
    TestWorld { gateway, app, clock, log, faults, stores, policy, shutdown }
}

impl TestWorld {
    /// The same stores and log behind a gateway that has just started.
    pub fn restarted(&self) -> App {
        let gateway = Gateway::new(self.gateway.config.clone(), self.gateway.deps.clone(), CancellationToken::new());
        herald_gateway::app(&gateway, axum::Router::new())
    }

    pub fn advance(&self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, "hk_acme", &[], Some(body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "hk_acme", &[], None).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut headers = headers.to_vec();
        let authorization = format!("Bearer {key}");
        headers.push(("authorization", &authorization));
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        send(&self.app, method, path, &headers, body).await
    }

    /// Every record on the requests topics.
    pub async fn requests(&self) -> Vec<(Record, RequestRecord, Notification)> {
        let mut found = Vec::new();
        for lane in Lane::ALL {
            for partition in 0..2 {
                let at = TopicPartition { topic: Topic::Requests(lane), partition };
                let (records, _) = self.log.read(at, 0, 10_000).await.unwrap();
                for record in records {
                    let request = RequestRecord::decode(record.body.clone()).unwrap();
                    let notification = Notification::decode(request.notification.clone()).unwrap();
                    found.push((record, request, notification));
                }
            }
        }
        found
    }

    /// Serves on a socket, for clients of their own.
    pub async fn listen(&self) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (config, deps) = (self.gateway.config.clone(), self.gateway.deps.clone());
        tokio::spawn(herald_gateway::run(listener, config, deps, axum::Router::new(), self.shutdown.clone()));
        address
    }

    /// Gives a tenant a quota, or none.
    pub fn put_quota(&self, tenant: &str, quota: Option<(f64, u64)>) {
        let quota = quota.map(|(per_second, burst)| QuotaRow { per_second, burst });
        let row = TenantRow { tenant_id: tenant.into(), name: tenant.into(), created_ms: 0, updated_ms: 0, quota };
        self.policy.send_modify(|policy| put(Arc::make_mut(policy), kind::TENANT, tenant, &row));
    }

    pub fn put_template(&self, tenant: &str, id: &str, source: Value) {
        self.policy.send_modify(|policy| put_template(Arc::make_mut(policy), tenant, id, source));
    }
}

pub async fn send(app: &App, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    Answer { status: parts.status, headers: parts.headers, body }
}

fn policy() -> Policy {
    let providers = Providers::configured([(Channel::Email, "smtp".to_owned())]);
    let mut policy = Policy::default().with_configured(providers);
    put(&mut policy, kind::SECRET, SIGNING_SECRET, &SecretRow { value: SECRET.into() });
    for tenant in ["acme", "other"] {
        let row =
            TenantRow { tenant_id: tenant.into(), name: tenant.into(), created_ms: 0, updated_ms: 0, quota: None };
        put(&mut policy, kind::TENANT, tenant, &row);
        put_key(&mut policy, tenant, Some(tenant), &TENANT_SCOPES);
        put_template(
            &mut policy,
            tenant,
            "comment",
            json!({"channels": {
                "in_app": {"title": "{{data.text}}"},
                "email": {"subject": "s", "text": "t"},
                "push": {"title": "t"},
            }}),
        );
    }
    put_key(&mut policy, "op", None, &[]);
    put_key(&mut policy, "poor", Some("acme"), &["users"]);
    put_key(&mut policy, "plain", Some("acme"), &["notify"]);
    policy
}

pub fn put_key(policy: &mut Policy, name: &str, tenant: Option<&str>, scopes: &[&str]) {
    let row = KeyRow {
        key_id: name.into(),
        sha256: sha256_hex(format!("hk_{name}").as_bytes()),
        tenant_id: tenant.map(Into::into),
        name: String::new(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        created_ms: 0,
        expires_ms: None,
    };
    put(policy, kind::KEY, name, &row);
}

pub fn put_template(policy: &mut Policy, tenant: &str, id: &str, source: Value) {
    let tenant_id = TenantId::trusted(tenant);
    let row = TemplateRow {
        tenant_id: tenant.into(),
        template_id: id.into(),
        version: 1,
        source: serde_json::from_value(source).unwrap(),
        created_ms: 0,
    };
    put(policy, kind::TEMPLATE, &template_row_key(&tenant_id, id, 1), &row);
    let head = TemplateHead { live: Some(1), latest: 1, previous: Vec::new() };
    put(policy, kind::TEMPLATE_HEAD, &template_head_key(&tenant_id, id), &head);
}

fn put(policy: &mut Policy, kind: &str, key: &str, value: &impl serde::Serialize) {
    let value = serde_json::to_vec(value).unwrap().into();
    policy.apply(&Control { kind: kind.into(), key: key.into(), version: 1, value, deleted: false }).unwrap();
}

/// A notification to one user, which tests change.
pub fn notification() -> Value {
    json!({"template_id": "comment", "audience": {"users": ["u1"]}, "data": {"text": "hi"}})
}

/// A JSON object with some fields replaced.
pub fn with(mut base: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        base[name] = value.clone();
    }
    base
}
