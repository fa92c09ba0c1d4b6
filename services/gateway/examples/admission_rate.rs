//! What an admission costs the gateway: CPU microseconds an event of its thread, by unary calls, batches and a stream.
//!
//! `empty` is a unary call that does nothing (a health check), so what it costs is the transport's.
//!
//! The gateway runs on one thread of its own; the clients, and the log's flusher on a disk in memory, on others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use futures::StreamExt;
use herald_core::{
    auth::{TENANT_SCOPES, sha256_hex},
    clock::{Clock, Entropy, World},
    ids::TenantId,
    policy::{KeyRow, Policy, TemplateHead, TemplateRow, TenantRow, kind, template_head_key, template_row_key},
    ports::log::Identity,
    record::Control,
    topic::Layout,
};
use herald_embedded::{
    disk::MemoryDisk,
    kv::memory::MemoryKv,
    log::{EmbeddedLog, LogOptions},
    sessions::LocalSessions,
    store::Stores,
};
use herald_gateway::{Config, Deps};
use herald_proto::v1::{self, notifications_client::NotificationsClient};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel as Connection;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 4;
const CALLS_A_CONNECTION: usize = 64;
const UNARY_CALLS: usize = 100_000;
const EVENTS: usize = 400_000;
const BATCH: usize = 100;

struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
    }
}

struct Counter(AtomicU64);

impl Entropy for Counter {
    fn next_u64(&self) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}

fn main() -> anyhow::Result<()> {
    let (sender, address) = std::sync::mpsc::channel();
    let (ask, asked) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<f64>>();
    std::thread::spawn(move || serve(sender, asked));
    let address = address.recv()?;
    let cpu = || -> anyhow::Result<f64> {
        let (reply, answer) = std::sync::mpsc::channel();
        ask.send(reply)?;
        Ok(answer.recv()?)
    };
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::from_shared(format!("http://{address}"))?.connect().await?);
        }
        let clients: Vec<_> = connections.iter().cloned().map(NotificationsClient::new).collect();
        unary(&clients, UNARY_CALLS / 10).await?;
        for (name, events) in [("empty", UNARY_CALLS), ("unary", UNARY_CALLS), ("batch", EVENTS), ("stream", EVENTS)] {
            let (before, began) = (cpu()?, Instant::now());
            match name {
                "empty" => empty(&connections, events).await?,
                "unary" => unary(&clients, events).await?,
                "batch" => batches(&clients, events).await?,
                _ => stream(&clients, events).await?,
            }
            let (used_us, wall) = ((cpu()? - before) / events as f64, began.elapsed().as_secs_f64());
            println!("{name:>6}: {used_us:.2} us of CPU an event, {:.0} events/s", events as f64 / wall);
        }
        Ok(())
    })
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", tonic::metadata::MetadataValue::from_static("Bearer hk_bench"));
    request
}

/// About 1 kB.
fn event(n: usize) -> v1::NotifyRequest {
    let data = json!({"text": "x".repeat(700), "order": n, "kind": "comment", "nested": {"a": 1, "b": "two"}});
    v1::NotifyRequest {
        template_id: "comment".into(),
        audience: Some(v1::Audience { users: vec![format!("user-{n}")], ..Default::default() }),
        actor_id: Some(format!("actor-{}", n % 1_000)),
        data: serde_json::from_value(data).ok(),
        ..Default::default()
    }
}

async fn empty(connections: &[Connection], calls: usize) -> anyhow::Result<()> {
    let calls = futures::stream::iter(0..calls).map(|n| {
        let mut client = HealthClient::new(connections[n % connections.len()].clone());
        async move { client.check(request(HealthCheckRequest::default())).await }
    });
    let mut answers = calls.buffer_unordered(CONNECTIONS * CALLS_A_CONNECTION);
    while let Some(answer) = answers.next().await {
        answer?;
    }
    Ok(())
}

async fn unary(clients: &[NotificationsClient<Connection>], calls: usize) -> anyhow::Result<()> {
    let calls = futures::stream::iter(0..calls).map(|n| {
        let mut client = clients[n % clients.len()].clone();
        async move { client.notify(request(event(n))).await }
    });
    let mut answers = calls.buffer_unordered(CONNECTIONS * CALLS_A_CONNECTION);
    while let Some(answer) = answers.next().await {
        answer?;
    }
    Ok(())
}

async fn batches(clients: &[NotificationsClient<Connection>], events: usize) -> anyhow::Result<()> {
    let calls = futures::stream::iter(0..events / BATCH).map(|n| {
        let mut client = clients[n % clients.len()].clone();
        let notifications = (0..BATCH).map(|i| event(n * BATCH + i)).collect();
        async move { client.notify_batch(request(v1::NotifyBatchRequest { notifications })).await }
    });
    let mut answers = calls.buffer_unordered(CONNECTIONS * 4);
    while let Some(answer) = answers.next().await {
        anyhow::ensure!(answer?.into_inner().results.iter().all(|result| result.error.is_none()), "refused");
    }
    Ok(())
}

async fn stream(clients: &[NotificationsClient<Connection>], events: usize) -> anyhow::Result<()> {
    let mut client = clients[0].clone();
    let mut results = client.notify_stream(request(futures::stream::iter((0..events).map(event)))).await?.into_inner();
    let mut count = 0;
    while let Some(result) = results.message().await? {
        anyhow::ensure!(result.error.is_none(), "refused");
        count += 1;
    }
    anyhow::ensure!(count == events, "{count} results");
    Ok(())
}

/// Runs the gateway on this thread, and tells the CPU microseconds that it has used.
fn serve(
    sender: std::sync::mpsc::Sender<std::net::SocketAddr>,
    asked: std::sync::mpsc::Receiver<std::sync::mpsc::Sender<f64>>,
) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let clock = Arc::new(SystemClock);
        let kv = Arc::new(MemoryKv::new());
        let identity =
            Identity { region: "eu".into(), epoch: 1, layout: Layout { shards: 8, requests: 4, receipts: 4 } };
        let options = LogOptions { low_water_bytes: 0, ..LogOptions::default() };
        let log = EmbeddedLog::open(Arc::new(MemoryDisk::new()), identity, options, kv.clone(), clock.clone())?;
        let _flusher = log.spawn_flusher_thread()?;
        let stores = Stores::open(kv);
        let (_policy, policy) = watch::channel(Arc::new(policy()?));
        let deps = Deps {
            log: Arc::new(log),
            admissions: stores.admissions.clone(),
            directory: stores.directory.clone(),
            erasures: stores.erasures.clone(),
            ledger: stores.ledger.clone(),
            inbox: stores.inbox.clone(),
            sessions: Arc::new(LocalSessions::new()),
            audit: stores.audit.clone(),
            policy,
            world: World::new(clock, Arc::new(Counter(AtomicU64::new(1)))),
            stats: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        sender.send(listener.local_addr()?)?;
        let gateway =
            herald_gateway::run(listener, Config::default(), deps, axum::Router::new(), CancellationToken::new());
        let answering = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if let Ok(reply) = asked.try_recv() {
                    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                    let _ = reply.send(used.tv_sec as f64 * 1e6 + used.tv_nsec as f64 / 1e3);
                }
            }
        };
        tokio::select! {
            ended = gateway => ended,
            () = answering => Ok(()),
        }
    })
}

fn policy() -> anyhow::Result<Policy> {
    let mut policy = Policy::default();
    let mut put = |kind: &str, key: &str, value: serde_json::Value| {
        let value = value.to_string().into();
        policy
            .apply(&Control { kind: kind.into(), key: key.into(), version: 1, value, deleted: false })
            .context("a policy of our own")
    };
    let tenant = TenantId::trusted("acme");
    let row = TenantRow { tenant_id: "acme".into(), name: "Acme".into(), created_ms: 0, updated_ms: 0, quota: None };
    put(kind::TENANT, "acme", serde_json::to_value(row)?)?;
    let key = KeyRow {
        key_id: "bench".into(),
        sha256: sha256_hex(b"hk_bench"),
        tenant_id: Some("acme".into()),
        name: String::new(),
        scopes: TENANT_SCOPES.iter().map(ToString::to_string).collect(),
        created_ms: 0,
        expires_ms: None,
    };
    put(kind::KEY, "bench", serde_json::to_value(key)?)?;
    let template = TemplateRow {
        tenant_id: "acme".into(),
        template_id: "comment".into(),
        version: 1,
        source: serde_json::from_value(json!({"channels": {"in_app": {"title": "{{data.text}}"}}}))?,
        created_ms: 0,
    };
    put(kind::TEMPLATE, &template_row_key(&tenant, "comment", 1), serde_json::to_value(template)?)?;
    let head = TemplateHead { live: Some(1), latest: 1, previous: Vec::new() };
    put(kind::TEMPLATE_HEAD, &template_head_key(&tenant, "comment"), serde_json::to_value(head)?)?;
    Ok(policy)
}
