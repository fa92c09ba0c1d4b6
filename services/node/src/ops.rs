//! `/healthz`, `/readyz` and `/metrics`.

use std::{fmt::Display, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use herald_api::{
    finish::Finish,
    routes::{Route, Routes},
};
use herald_core::{
    clock::World,
    ids::channel_name,
    levels::Levels,
    ports::{self, fleet::Fleet, log::Log},
    topic::Group,
};
use herald_gateway::serve::{self, Listener, ServeLimits};
use herald_ledger::{
    reconcile::{Finding, Stuck},
    stats::LedgerStats,
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::Layer;

use crate::gauges::Gauges;

/// What the answers are made of.
pub struct Ops {
    /// The metrics.
    pub registry: Registry,
    /// What is looked up for each scrape.
    pub gauges: Gauges,
    /// What the checks of the books found.
    pub ledger: Arc<LedgerStats>,
    /// The members of groups that run here; until one was told its partitions, nothing of theirs is served.
    pub members: Vec<(Group, u32)>,
    /// What this process met and cannot read.
    pub levels: Arc<Levels>,
    /// The log; it must answer.
    pub log: Arc<dyn Log>,
    /// The stores; what is away is told.
    pub stores: Arc<dyn ports::registry::Registry>,
    /// The cache; what is away is told.
    pub fleet: Arc<dyn Fleet>,
    /// Cancelled when a role has ended early.
    pub failed: CancellationToken,
    /// Cancelled when the process begins to stop.
    pub stopping: CancellationToken,
}

/// The routes; none needs a key.
pub fn routes(ops: Ops) -> Routes {
    let page = |path, media_type, summary| Route::page(Method::GET, path, media_type, summary);
    Routes::new()
        .on(page("/healthz", "text/plain", "Whether the process lives"), async || "ok\n")
        .on(page("/readyz", "application/json", "Whether a notification sent now would go all the way"), ready)
        .on(page("/metrics", "application/openmetrics-text", "What is measured, as OpenMetrics"), metrics)
        .with_state(Arc::new(ops))
}

/// Connections to a listener of its own: a few scrapers and probes.
const CONNECTIONS: usize = 64;

/// Serves the routes on a listener of their own until shutdown.
pub async fn serve(listener: Listener, routes: Routes, world: World, shutdown: CancellationToken) {
    let limits = ServeLimits { connections: CONNECTIONS, streams: 16, drain: Duration::from_secs(1) };
    let app = Finish::new(world.entropy.clone()).layer(routes.into_router());
    serve::serve(listener, app, limits, shutdown).await;
}

/// How long each check of readiness may take: whoever probes waits for some seconds, and takes silence for another fault.
const CHECK: Duration = Duration::from_secs(2);

/// Ready means: a notification sent now would be taken and go all the way.
async fn ready(State(ops): State<Arc<Ops>>) -> Response {
    let mut reasons = Vec::new();
    if ops.failed.is_cancelled() {
        reasons.push("a role has failed; the process is about to stop".to_owned());
    }
    if ops.stopping.is_cancelled() {
        reasons.push("the process is stopping".to_owned());
    }
    reasons.extend(ops.levels.refused().map(ToString::to_string));
    let waits = |(group, ordinal): &&(Group, u32)| !ops.log.is_assigned(*group, *ordinal);
    let waiting = ops.members.iter().filter(waits).map(|(group, ordinal)| format!("{}.{ordinal}", group.name()));
    let waiting: Vec<String> = waiting.collect();
    if !waiting.is_empty() {
        reasons.push(format!("waits for partitions of the log: {}", waiting.join(", ")));
    }
    // An append of nothing says whether the log takes anything.
    let (takes, answers, stores, cache) = tokio::join!(
        fault("the log takes nothing", ops.log.append(Vec::new())),
        fault("the log does not answer", ops.log.progress(Group::Worker)),
        fault("the stores do not answer", ops.stores.unpublished(1)),
        fault("the cache does not answer", ops.fleet.running(ops.gauges.world.now_ms())),
    );
    reasons.extend(takes.into_iter().chain(answers));
    // Without these, calls are still taken and what is known is still served; what needs them waits. To take all gateways
    // out of service for it would make it worse.
    let degraded: Vec<String> = stores.into_iter().chain(cache).collect();
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // What is stuck is for people to look at; the process takes calls all the same.
    let stuck: Vec<Value> = ops.ledger.check().stuck.iter().map(stuck_view).collect();
    (status, Json(json!({ "ready": ready, "reasons": reasons, "degraded": degraded, "stuck": stuck }))).into_response()
}

/// Asks what may be away; what is wrong with it, if anything is.
async fn fault<T, E: Display>(what: &str, asked: impl Future<Output = Result<T, E>>) -> Option<String> {
    match tokio::time::timeout(CHECK, asked).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("{what}: {error}")),
        Err(_) => Some(format!("{what}: nothing was heard of it within {CHECK:?}")),
    }
}

fn stuck_view(stuck: &Stuck) -> Value {
    let finding = match stuck.finding {
        Finding::Overbooked => "overbooked",
        Finding::Stalled => "stalled",
    };
    json!({
        "request_id": stuck.id.to_string(),
        "tenant_id": stuck.tenant.as_str(),
        "channel": channel_name(stuck.channel),
        "finding": finding,
        "stage": stuck.stage,
        "created": stuck.created.count,
        "ended": stuck.ended.count,
        "idle_ms": stuck.idle_ms,
    })
}

async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    // Without the log the counters are all the more of interest.
    if let Err(error) = ops.gauges.refresh().await {
        tracing::warn!(%error, "what waits on the log is not known; metrics show what was known last");
    }
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &ops.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use herald_core::{
        policy::Policy,
        ports::log::{Identity, Member},
        topic::Layout,
    };
    use herald_embedded::{
        disk::MemoryDisk,
        kv::memory::MemoryKv,
        log::{EmbeddedLog, LogOptions},
        store::Stores,
    };
    use http::Request;
    use tokio::sync::watch;
    use tower::ServiceExt;

    use super::*;
    use crate::{backends::Backends, metrics, roles::Counters, world};

    /// What a process says that runs a worker and a router.
    async fn said(backends: &Backends) -> (StatusCode, Value) {
        let (_, policy) = watch::channel(Arc::new(Policy::default()));
        let (world, counters) = (world::system(), Counters::default());
        let gauges = Gauges::new(backends.log.clone(), None, policy, Arc::default(), &world);
        let routes = routes(Ops {
            registry: metrics::registry(&counters, &gauges),
            gauges,
            ledger: counters.ledger.clone(),
            members: vec![(Group::Worker, 0), (Group::Router, 0)],
            levels: backends.levels.clone(),
            log: backends.log.clone(),
            stores: backends.registry.clone(),
            fleet: backends.fleet.clone(),
            failed: CancellationToken::new(),
            stopping: CancellationToken::new(),
        });
        let asked = Request::get("/readyz").body(Body::empty()).unwrap();
        let answer = routes.into_router().oneshot(asked).await.unwrap();
        let (status, body) = (answer.status(), to_bytes(answer.into_body(), usize::MAX).await.unwrap());
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_process_is_ready_once_all_of_its_members_were_told_their_partitions() {
        let (kv, world) = (Arc::new(MemoryKv::new()), world::system());
        let identity =
            Identity { region: "r".into(), epoch: 1, layout: Layout { shards: 1, requests: 1, receipts: 1 } };
        let options = LogOptions { low_water_bytes: 0, ..LogOptions::default() };
        let disk = Arc::new(MemoryDisk::new());
        let log = EmbeddedLog::open(disk, identity, options, kv.clone(), world.clock.clone()).unwrap();
        let backends = Backends::embedded(log, &Stores::open(kv));
        let member = Member { ordinal: 0, count: 1 };
        let mut waiting = vec!["herald.worker.0", "herald.router.0"];
        for group in [Group::Worker, Group::Router] {
            let mut subscription = backends.log.subscribe(group, member).await.unwrap();
            let (status, told) = said(&backends).await;
            let reason = format!("waits for partitions of the log: {}", waiting.join(", "));
            assert_eq!((status, &told["reasons"]), (StatusCode::SERVICE_UNAVAILABLE, &json!([reason])));
            subscription.poll(1, Duration::ZERO).await.unwrap();
            waiting.remove(0);
        }
        assert_eq!(
            said(&backends).await,
            (StatusCode::OK, json!({"ready": true, "reasons": [], "degraded": [], "stuck": []}))
        );
        let _again = backends.log.subscribe(Group::Worker, member).await.unwrap();
        assert_eq!(said(&backends).await.0, StatusCode::SERVICE_UNAVAILABLE, "it joined anew and was not told yet");
    }
}
