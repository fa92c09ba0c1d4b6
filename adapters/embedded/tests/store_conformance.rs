//! The stores pass the ports' suites, on disk and in memory.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use herald_core::conformance;
use herald_embedded::{
    budgets::MemoryBudgets,
    claims::MemoryClaims,
    fleet::LocalFleet,
    kv::{FjallConfig, FjallKv, Kv, MemoryKv},
    store::Stores,
};

/// Runs a suite on both databases.
async fn on_both(suite: impl AsyncFn(Stores)) {
    suite(Stores::open(Arc::new(MemoryKv::new()))).await;
    let directory = tempfile::tempdir().unwrap();
    let kv: Arc<dyn Kv> = Arc::new(FjallKv::open(directory.path(), FjallConfig::default()).unwrap());
    suite(Stores::open(kv)).await;
}

#[tokio::test]
async fn directory() {
    on_both(async |stores| conformance::directory::all(stores.directory, "acme").await).await;
}

#[tokio::test]
async fn admissions() {
    on_both(async |stores| conformance::admissions::all(stores.admissions, "acme").await).await;
}

#[tokio::test]
async fn ledger() {
    on_both(async |stores| conformance::ledger::all(stores.ledger, "acme", 1).await).await;
}

#[tokio::test]
async fn inbox() {
    on_both(async |stores| conformance::inbox::all(stores.inbox, "acme", 0).await).await;
}

#[tokio::test]
async fn erasures() {
    on_both(async |stores| {
        let ports = conformance::erasures::Ports {
            erasures: stores.erasures,
            directory: stores.directory,
            inbox: stores.inbox,
            ledger: stores.ledger,
        };
        conformance::erasures::all(ports, "acme", 20).await;
    })
    .await;
}

#[tokio::test]
async fn registry() {
    on_both(async |stores| conformance::registry::all(stores.registry, "acme").await).await;
}

#[tokio::test]
async fn audit() {
    on_both(async |stores| conformance::audit::all(stores.audit, "run").await).await;
}

#[tokio::test]
async fn claims() {
    conformance::claims::all(Arc::new(MemoryClaims::new()), 0).await;
}

#[tokio::test]
async fn budgets() {
    conformance::budgets::all(Arc::new(MemoryBudgets::new()), "suite/").await;
}

#[tokio::test]
async fn fleet() {
    conformance::fleet::all(Arc::new(LocalFleet::new()), "run").await;
}
