//! Structured logs on standard error: JSON, or text on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Begins to log at a level. `HERALD_LOG` sets the filter instead, such as `info,herald_worker=debug`.
pub fn start(level: &str) {
    // The notes of the storage engine and of the driver's connections are for their developers.
    let default = || EnvFilter::new(format!("{level},fjall=warn,lsm_tree=warn,scylla=warn,scylla::network=error"));
    let filter = EnvFilter::try_from_env("HERALD_LOG").unwrap_or_else(|_| default());
    let registry = tracing_subscriber::registry().with(filter);
    // A second start, as in tests, keeps the first logger.
    let _already = if std::io::stderr().is_terminal() {
        registry.with(fmt::layer().with_writer(std::io::stderr).compact()).try_init()
    } else {
        registry.with(fmt::layer().with_writer(std::io::stderr).json().flatten_event(true)).try_init()
    };
}
