//! The ports and what is behind them.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use herald_core::{
    clock::World,
    levels::Levels,
    ports::{
        admissions::Admissions, audit::Audit, budgets::Budgets, claims::Claims, directory::Directory,
        erasures::Erasures, fleet::Fleet, inbox::Inbox, ledger::Ledger, log::Log, registry::Registry,
        sessions::Sessions,
    },
};
use herald_embedded::{
    budgets::MemoryBudgets,
    claims::MemoryClaims,
    data_dir::{DataDir, Settings},
    fleet::LocalFleet,
    kv::fjall::{FjallConfig, FjallKv},
    log::{EmbeddedLog, FlusherThread, LogOptions},
    sessions::LocalSessions,
    store::Stores,
};

use crate::{backup::Backups, gauges::LocalDisk};

/// Every port.
#[derive(Clone)]
pub struct Backends {
    /// The log, as `levels` has it.
    pub log: Arc<dyn Log>,
    /// What this process reads of the log, and how it writes to it.
    pub levels: Arc<Levels>,
    /// Idempotency keys.
    pub admissions: Arc<dyn Admissions>,
    /// Users and audiences.
    pub directory: Arc<dyn Directory>,
    /// Erasures of persons.
    pub erasures: Arc<dyn Erasures>,
    /// Books and receipts.
    pub ledger: Arc<dyn Ledger>,
    /// In-app feeds.
    pub inbox: Arc<dyn Inbox>,
    /// Policies.
    pub registry: Arc<dyn Registry>,
    /// Dedupe claims.
    pub claims: Arc<dyn Claims>,
    /// Token buckets.
    pub budgets: Arc<dyn Budgets>,
    /// Live connections.
    pub sessions: Arc<dyn Sessions>,
    /// Which processes run, and which policies they run.
    pub fleet: Arc<dyn Fleet>,
    /// What operators did.
    pub audit: Arc<dyn Audit>,
}

impl Backends {
    /// The ports on an embedded log and stores, with claims, budgets, sessions and the fleet in memory.
    pub fn embedded(log: EmbeddedLog, stores: &Stores) -> Self {
        let levels = Arc::<Levels>::default();
        Self {
            log: levels.log(Arc::new(log)),
            levels,
            admissions: stores.admissions.clone(),
            directory: stores.directory.clone(),
            erasures: stores.erasures.clone(),
            ledger: stores.ledger.clone(),
            inbox: stores.inbox.clone(),
            registry: stores.registry.clone(),
            claims: Arc::new(MemoryClaims::new()),
            budgets: Arc::new(MemoryBudgets::new()),
            sessions: Arc::new(LocalSessions::new()),
            fleet: Arc::new(LocalFleet::new()),
            audit: stores.audit.clone(),
        }
    }
}

/// Embedded storage that is open: a data directory, its log and its stores.
pub struct Embedded {
    /// The ports.
    pub backends: Backends,
    /// The log, for its failure and its close.
    pub log: EmbeddedLog,
    /// The stores, for expiry.
    pub stores: Stores,
    kv: Arc<FjallKv>,
    flusher: FlusherThread,
    /// Held until the end, since it holds the lock.
    directory: DataDir,
}

impl Embedded {
    /// Opens or makes a data directory.
    pub fn open(path: &Path, settings: &Settings, options: LogOptions, world: &World) -> anyhow::Result<Self> {
        Self::start(DataDir::open(path, settings, world.now_ms())?, options, world)
    }

    /// Opens a data directory as it is, without roles that would use it.
    pub fn open_existing(path: &Path, world: &World) -> anyhow::Result<Self> {
        Self::start(DataDir::open_existing(path)?, LogOptions::default(), world)
    }

    fn start(directory: DataDir, options: LogOptions, world: &World) -> anyhow::Result<Self> {
        let kv = Arc::new(
            FjallKv::open(&directory.store_path(), FjallConfig::default())
                .with_context(|| format!("the stores in {} cannot be opened", directory.store_path().display()))?,
        );
        let options = LogOptions { store_flush: kv.last_flush(), ..options };
        let disk = Arc::new(directory.journal_disk()?);
        let log = EmbeddedLog::open(disk, directory.identity().clone(), options, kv.clone(), world.clock.clone())
            .with_context(|| format!("the journal in {} cannot be opened", directory.journal_path().display()))?;
        let flusher = log.spawn_flusher_thread()?;
        let stores = Stores::open(kv.clone());
        let backends = Backends::embedded(log.clone(), &stores);
        Ok(Self { backends, log, stores, kv, flusher, directory })
    }

    /// What is looked up of it for each scrape.
    pub fn disk(&self) -> LocalDisk {
        let (journal, stores) = (self.log.clone(), self.kv.clone());
        LocalDisk { journal, stores, directory: self.directory.journal_path() }
    }

    /// What takes backups of it.
    pub fn backups(&self, reserve_bytes: u64, world: &World) -> Backups {
        let (log, stores) = (self.log.clone(), self.kv.clone());
        let data = self.directory.description().clone();
        let directory = self.directory.path().to_owned();
        Backups { log, stores, data, directory, reserve_bytes, world: world.clone() }
    }

    /// Makes everything durable and closes.
    pub fn close(self) -> anyhow::Result<()> {
        self.log.close().map_err(|error| anyhow::anyhow!("the log could not be closed in order: {error}"))?;
        self.flusher.join();
        Ok(())
    }
}
