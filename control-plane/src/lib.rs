//! The control plane: versioned tenants, keys, limits and templates, switches, and how they reach every role.
//!
//! Roles decide with a [`herald_core::policy::Policy`] that [`feed`] builds from the `control` topic. Changes go to the
//! registry first and are then published by [`publisher`]; [`switches`] go to the topic alone.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::publisher::Publisher;

pub mod audit;
pub mod bootstrap;
mod cancels;
pub mod dead_letters;
#[cfg(test)]
mod face_tests;
pub mod feed;
pub mod grpc;
pub mod http;
pub mod keys;
pub mod lag;
pub mod levels;
pub mod limits;
pub mod messages;
#[cfg(test)]
mod provider_tests;
pub mod providers;
pub mod publisher;
pub mod reports;
mod scopes;
pub mod service;
#[cfg(test)]
mod switch_tests;
pub mod switches;
pub mod templates;
pub mod tenants;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod views;

/// What may be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often policies that a crash left unpublished are looked for.
    pub sweep_interval_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { sweep_interval_ms: 10_000 }
    }
}

/// Runs the role until shutdown: publishes what a crash left behind, sees to it that the shared secrets exist, and
/// looks again now and then. The faces are the gateway's to serve: see [`http::routes`] and [`grpc::services`].
pub async fn run(config: Config, publisher: Arc<Publisher>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let interval = Duration::from_millis(config.sweep_interval_ms.max(1));
    let sweeper = publisher::sweep_until(publisher.clone(), interval, shutdown.clone());
    tokio::join!(sweeper, secrets_until_there(&publisher, &shutdown));
    Ok(())
}

async fn secrets_until_there(publisher: &Publisher, shutdown: &CancellationToken) {
    let mut wait = Duration::from_millis(100);
    while let Err(problem) = bootstrap::ensure_secrets(publisher).await {
        tracing::warn!(%problem, "the shared secrets cannot be stored yet");
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(10)),
        }
    }
}
