//! The promises of the log's port.

use std::sync::Arc;

use herald_core::{conformance, ports::log::Log};

use crate::support::{clean_up, open};

#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_its_promises() {
    conformance::log::all(|| async { Arc::new(open().await) as Arc<dyn Log> }).await;
    clean_up().await;
}
