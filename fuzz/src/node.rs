//! A whole node in memory, on paused time, with one user and a mail provider that takes everything.
//!
//! The simulation of the node's tests begins alike and shares no more than what both call: it has faults, power cuts and no
//! faces, and a crate for both would be in between the shipped one and its tests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::body::Body;
use herald_channels::null::NullChannel;
use herald_control_plane::bootstrap::{self, DEV_KEY};
use herald_core::{
    clock::{Clock, Entropy, World},
    ports::log::Identity,
    record::Channel,
    topic::Layout,
};
use herald_embedded::{
    SyncFirst,
    disk::MemoryDisk,
    kv::memory::MemoryKv,
    log::{EmbeddedLog, LogOptions},
    store::Stores,
};
use herald_gateway::{App, Gateway};
use herald_node::{
    backends::Backends,
    node::{control_plane_routes, gateway_deps},
    roles::{Config, Roles},
};
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// When every run begins: 2026-01-01T00:00:00Z.
pub const EPOCH_MS: u64 = 1_767_225_600_000;

/// The partitions of a run.
pub const LAYOUT: Layout = Layout { shards: 4, requests: 2, receipts: 2 };

/// Follows the paused time of the runtime.
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> u64 {
        EPOCH_MS + self.0.elapsed().as_millis() as u64
    }
}

/// Different numbers, the same in every run.
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn next_u64(&self) -> u64 {
        self.0.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A running node.
pub struct Node {
    /// The ports.
    pub backends: Backends,
    /// Clock and chance.
    pub world: World,
    app: App,
    roles: Roles,
}

/// An answer over HTTP.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers, and the trailers after them.
    pub headers: HeaderMap,
    /// The body; `None` where it goes on for ever.
    pub body: Option<Vec<u8>>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.body.as_deref().unwrap_or_default()).unwrap_or_default()
    }

    /// A header or trailer as text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Runs something with a node of its own.
pub fn with_node(run: impl AsyncFnOnce(&Node)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let node = Node::start().await;
        run(&node).await;
        assert!(!node.roles.failed.is_cancelled(), "a role has ended");
    });
}

impl Node {
    async fn start() -> Self {
        let world = World::new(Arc::new(PausedClock(Instant::now())), Arc::new(Counting(AtomicU64::new(1))));
        let kv = Arc::new(MemoryKv::new());
        let identity = Identity { region: "fuzz".into(), epoch: 1, layout: LAYOUT };
        let options = LogOptions { low_water_bytes: 0, ..LogOptions::default() };
        let stores_first: Arc<dyn SyncFirst> = kv.clone();
        let disk = Arc::new(MemoryDisk::new());
        let log = EmbeddedLog::open(disk, identity, options, stores_first, world.clock.clone()).unwrap();
        let flushed = log.clone();
        tokio::spawn(async move { flushed.flush_task().await });
        let backends = Backends::embedded(log, &Stores::open(kv));
        let mail = Arc::new(NullChannel::new(Channel::Email));
        let roles = Roles::start(&Config::default(), &backends, vec![mail], &world).await.unwrap();
        bootstrap::ensure_dev(&roles.publisher).await.unwrap();
        let deps = gateway_deps(&roles, &backends, &world);
        let gateway = Gateway::new(herald_gateway::Config::default(), deps, CancellationToken::new());
        let app = herald_gateway::app(&gateway, control_plane_routes(&roles, &backends, None, &world));
        let node = Self { backends, world, app, roles };
        node.set_up().await;
        node
    }

    async fn set_up(&self) {
        // A policy is in force once its record was read.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let texts = json!({
            "in_app": {"title": "{{data.text}}", "body": "b"},
            "email": {"subject": "{{user.attributes.name}}", "text": "{{data.text}}"},
        });
        let user = json!({"attributes": {"name": "Ada"}, "endpoints": [{"channel": "email", "address": "u1@e.org"}]});
        for (path, body) in
            [("/v1/templates/t", json!({"channels": texts, "dedupe_window": "3600s"})), ("/v1/users/u1", user)]
        {
            let answer = self.call("PUT", path, &HeaderMap::new(), body.to_string().into()).await.unwrap();
            assert!(answer.status.is_success(), "{path}: {}", answer.json());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// Calls the API, as the tenant `demo` unless the headers say otherwise. `None` for what is no HTTP.
    pub async fn call(&self, method: &str, path: &str, headers: &HeaderMap, body: Vec<u8>) -> Option<Answer> {
        let is_grpc = path.starts_with("/herald.v1.");
        let (media_type, body) = match is_grpc {
            true => ("application/grpc", framed(&body)),
            false => ("application/json", body),
        };
        let method = Method::from_bytes(method.as_bytes()).ok()?;
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse::<Uri>().ok()?;
        request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {DEV_KEY}").parse().ok()?);
        request.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().ok()?);
        request.headers_mut().insert(header::TE, "trailers".parse().ok()?);
        request.headers_mut().extend(headers.clone());
        let (parts, mut body) = self.app.clone().oneshot(request).await.unwrap().into_parts();
        let mut answer = Answer { status: parts.status, headers: parts.headers, body: Some(Vec::new()) };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match timeout_at(deadline, body.frame()).await {
                Ok(Some(frame)) => match frame.expect("nothing breaks off").into_data() {
                    Ok(data) => answer.body.get_or_insert_default().extend_from_slice(&data),
                    Err(frame) => answer.headers.extend(frame.into_trailers().unwrap_or_default()),
                },
                Ok(None) => return Some(answer),
                Err(_) => return Some(Answer { body: None, ..answer }),
            }
        }
    }

    /// Sends to the one user there is, and sees that it arrives.
    pub async fn still_delivers(&self) {
        let body = json!({"template_id": "t", "audience": {"users": ["u1"]}, "data": {"text": "hi"}});
        let sent = self.call("POST", "/v1/notify", &HeaderMap::new(), body.to_string().into()).await.unwrap();
        let id = sent.json()["request_id"].as_str().map(str::to_owned).unwrap_or_else(|| panic!("{}", sent.json()));
        let began = Instant::now();
        loop {
            let path = format!("/v1/status/{id}");
            let status = self.call("GET", &path, &HeaderMap::new(), Vec::new()).await.unwrap().json();
            if status["state"] == "complete" && status["instances"]["in_flight"] == 0 {
                assert_eq!(status["instances"]["delivered"], 2, "{status}");
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "it does not arrive: {status}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}
