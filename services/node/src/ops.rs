//! `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use herald_api::routes::{Route, Routes};
use herald_core::{ports::log::Log, topic::Group};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// What the answers are made of.
pub struct Ops {
    /// The metrics.
    pub registry: Registry,
    /// The log; it must answer.
    pub log: Arc<dyn Log>,
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

/// Ready means: a notification sent now would be taken and go all the way.
async fn ready(State(ops): State<Arc<Ops>>) -> Response {
    let mut reasons = Vec::new();
    if ops.failed.is_cancelled() {
        reasons.push("a role has failed; the process is about to stop".to_owned());
    }
    if ops.stopping.is_cancelled() {
        reasons.push("the process is stopping".to_owned());
    }
    // An append of nothing says whether the log takes anything.
    if let Err(error) = ops.log.append(Vec::new()).await {
        reasons.push(format!("the log takes nothing: {error}"));
    }
    if let Err(error) = ops.log.progress(Group::Worker).await {
        reasons.push(format!("the log does not answer: {error}"));
    }
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "reasons": reasons }))).into_response()
}

async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &ops.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
