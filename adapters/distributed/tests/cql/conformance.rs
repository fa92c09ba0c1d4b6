//! The CQL stores pass the ports' suites on a real server.

use herald_core::conformance;

use crate::support::{Keyspace, config};

#[tokio::test]
async fn admissions() {
    Keyspace::with(config(), async |stores, _| conformance::admissions::all(stores.admissions, "acme").await).await;
}

#[tokio::test]
async fn registry() {
    Keyspace::with(config(), async |stores, _| conformance::registry::all(stores.registry, "acme").await).await;
}

#[tokio::test]
async fn audit() {
    Keyspace::with(config(), async |stores, _| conformance::audit::all(stores.audit, "run").await).await;
}

#[tokio::test]
async fn directory() {
    Keyspace::with(config(), async |stores, _| conformance::directory::all(stores.directory, "acme").await).await;
}

#[tokio::test]
async fn ledger() {
    Keyspace::with(config(), async |stores, _| conformance::ledger::all(stores.ledger, "acme", 1).await).await;
}

#[tokio::test]
async fn inbox() {
    Keyspace::with(config(), async |stores, _| conformance::inbox::all(stores.inbox, "acme", 0).await).await;
}

#[tokio::test]
async fn erasures() {
    Keyspace::with(config(), async |stores, _| {
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
