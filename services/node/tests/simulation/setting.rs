//! What simulations begin with: a node's storage, its people, and the plainest notification.

use std::sync::Arc;

use herald_core::{
    clock::World, ids::TenantId, limits::LimitRow, ports::log::Identity, record::audience::Kind, topic::Layout,
};
use herald_embedded::{
    SyncFirst,
    disk::MemoryDisk,
    kv::memory::MemoryKv,
    log::{EmbeddedLog, LogOptions},
    store::Stores,
};
use herald_node::backends::Backends;

use crate::scenario::{DAY_MS, Planned, Scenario, ScenarioKind};

/// The log of one life on what outlives it, with its flusher. To be called within the life's runtime.
pub fn log_on(
    disk: &MemoryDisk,
    kv: &Arc<MemoryKv>,
    options: LogOptions,
    world: &World,
) -> anyhow::Result<EmbeddedLog> {
    let identity = Identity { region: "sim".into(), epoch: 1, layout: Layout { shards: 4, requests: 2, receipts: 2 } };
    let options = LogOptions { low_water_bytes: 0, store_flush: kv.last_flush()?, ..options };
    let stores_first: Arc<dyn SyncFirst> = kv.clone();
    let log = EmbeddedLog::open(Arc::new(disk.clone()), identity, options, stores_first, world.clock.clone())?;
    let flushed = log.clone();
    tokio::spawn(async move { flushed.flush_task().await });
    Ok(log)
}

/// The backends of one life, with [`log_on`].
pub fn backends_on(
    disk: &MemoryDisk,
    kv: &Arc<MemoryKv>,
    options: LogOptions,
    world: &World,
) -> anyhow::Result<Backends> {
    Ok(Backends::embedded(log_on(disk, kv, options, world)?, &Stores::open(kv.clone())))
}

/// Tenants of the same people, `u0` and so on, of whom nothing else is planned.
pub fn people(tenants: Vec<TenantId>, users: usize, limits: Vec<LimitRow>) -> Scenario {
    Scenario {
        tenants,
        users: (0..users).map(|i| format!("u{i}")).collect(),
        opted_out: Default::default(),
        followers: Default::default(),
        steps: Vec::new(),
        limits,
        night: None,
        sets_clock: false,
        kind: ScenarioKind::Crowds,
    }
}

/// A notification to everybody of a tenant, at once, for a day.
pub fn to_everyone(tenant: &TenantId, number: usize) -> Planned {
    Planned {
        tenant: tenant.clone(),
        number,
        kind: Kind::Everyone(true),
        actor: String::new(),
        dedupe_key: String::new(),
        idempotency_key: String::new(),
        transactional: false,
        send_in_ms: 0,
        ttl_ms: DAY_MS,
        recipients: Default::default(),
    }
}
