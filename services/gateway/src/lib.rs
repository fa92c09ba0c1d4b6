//! The gateway: gRPC and HTTP on one port, in front of one set of functions.
//!
//! [`admit`] decides, without IO, what becomes of a notification; [`notify`] puts it on the log. Everything else reads
//! and writes stores. Both faces, [`grpc`] and [`http`], only translate.

pub mod admit;
pub mod cancel;
pub mod config;
pub mod data;
pub mod erasing;
pub mod grpc;
pub mod http;
pub mod idempotency;
pub mod inbox;
pub mod live;
pub mod notify;
pub mod people;
mod quota;
pub mod serve;
pub mod service;
pub mod stats;
pub mod status;
pub mod tls;
mod trace;
mod unsubscribe;
pub mod users;

use std::sync::Arc;

use axum::Router;
use herald_api::{
    audit::Auditing,
    finish::{Finish, Finishing},
    routes::Routes,
};
use herald_core::{clock::World, ports::audit::Audit};
use tokio_util::sync::CancellationToken;
use tower::Layer;

pub use config::Config;
pub use service::{Deps, Gateway};
use stats::RequestStats;

/// Serves the API, and `extra` routes on the same port, until shutdown; then lets running calls end.
///
/// # Errors
/// None but those of routes that cannot be merged, which are found at start.
pub async fn run(
    listener: impl Into<serve::Listener>,
    config: Config,
    deps: Deps,
    extra: impl Into<Routes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let limits = config.serve_limits();
    let gateway = Gateway::new(config, deps, shutdown.clone());
    let extra = extra.into().merge(grpc::infrastructure(shutdown.clone()).await?);
    let (drain, live_tasks) = (limits.drain, gateway.live_tasks.clone());
    let auditing = gateway.auditing.clone();
    let eraser = erasing::run(gateway.clone());
    let app = app(&gateway, extra);
    // Upgraded connections are not the server's any more, so they are waited for beside it.
    let live_connections = async {
        shutdown.cancelled().await;
        live_tasks.close();
        if tokio::time::timeout(drain, live_tasks.wait()).await.is_err() {
            tracing::warn!("live connections were cut off at shutdown");
        }
    };
    let serving = async {
        tokio::join!(serve::serve(listener.into(), app, limits, shutdown.clone()), live_connections, eraser);
    };
    auditing.around(serving).await;
    Ok(())
}

/// What answers requests: both faces and the extra routes, with the audit log, request ids and problem documents around
/// them.
pub type App = Finishing<Router>;

/// Makes the [`App`].
pub fn app(gateway: &Gateway, extra: impl Into<Routes>) -> App {
    let Deps { stats, world, .. } = &gateway.deps;
    finish(routes(gateway).merge(extra), stats.clone(), gateway.auditing.clone(), world)
}

/// What every route has around it: pages that describe it, measures, the audit log, and the last touch of its answers.
fn finish(routes: Routes, stats: Arc<RequestStats>, auditing: Auditing, world: &World) -> App {
    let routes = http::about(routes)
        .fallback(http::not_found)
        .method_not_allowed_fallback(http::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(stats, stats::measure))
        .layer(auditing);
    // Around the router as a whole, so that its fallbacks are finished too.
    Finish::new(world.entropy.clone()).layer(routes)
}

/// Serves the routes of other roles, in a process without a gateway.
///
/// # Errors
/// Where gRPC's reflection cannot be built.
pub async fn run_others(
    listener: impl Into<serve::Listener>,
    config: Config,
    routes: Routes,
    (stats, audit, world): (Arc<RequestStats>, Arc<dyn Audit>, World),
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let routes = routes.merge(grpc::infrastructure(shutdown.clone()).await?);
    let auditing = Auditing::new(audit, world.clone(), stats.audit.clone());
    let app = finish(routes, stats, auditing.clone(), &world);
    auditing.around(serve::serve(listener.into(), app, config.serve_limits(), shutdown)).await;
    Ok(())
}

/// What the gateway serves, on both faces.
pub fn routes(gateway: &Gateway) -> Routes {
    http::routes(gateway).merge(grpc::routes(gateway)).merge(live::routes(gateway.live.clone()))
}
