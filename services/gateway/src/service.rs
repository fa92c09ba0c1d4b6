//! The gateway's state, shared by both faces.

use std::{ops::Deref, sync::Arc};

use axum::extract::FromRef;
use herald_api::{audit::Auditing, auth::Authenticator};
use herald_core::{
    clock::World,
    policy::Policy,
    ports::{
        admissions::Admissions, audit::Audit, directory::Directory, erasures::Erasures, inbox::Inbox, ledger::Ledger,
        log::Log, sessions::Sessions,
    },
    problem::{Kind, Problem},
};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    live::{Live, LiveDeps},
    quota::Quotas,
    stats::RequestStats,
};

/// What the gateway needs of the world.
#[derive(Clone)]
pub struct Deps {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Idempotency keys.
    pub admissions: Arc<dyn Admissions>,
    /// Users and audiences.
    pub directory: Arc<dyn Directory>,
    /// Erasures of persons.
    pub erasures: Arc<dyn Erasures>,
    /// Books and receipts.
    pub ledger: Arc<dyn Ledger>,
    /// Feeds.
    pub inbox: Arc<dyn Inbox>,
    /// Live connections.
    pub sessions: Arc<dyn Sessions>,
    /// What operators did.
    pub audit: Arc<dyn Audit>,
    /// The newest policies.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Clock and randomness.
    pub world: World,
    /// What it counts.
    pub stats: Arc<RequestStats>,
}

/// The gateway. Clones are the same gateway.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

/// What a [`Gateway`] holds.
pub struct Inner {
    /// Limits and waits.
    pub config: Config,
    /// The ports.
    pub deps: Deps,
    /// Who calls.
    pub authenticator: Authenticator,
    /// Records what operators do.
    pub(crate) auditing: Auditing,
    /// When this process began to serve, in milliseconds since the epoch.
    pub started_ms: u64,
    /// Ends live connections and streams.
    pub shutdown: CancellationToken,
    /// Wakes the eraser.
    pub(crate) erasure_begun: Notify,
    /// Live connections.
    pub(crate) live: Arc<Live>,
    /// Holds a task for each live connection.
    pub live_tasks: TaskTracker,
    pub(crate) quotas: Quotas,
    admission_slots: Semaphore,
}

impl Gateway {
    /// A gateway on these ports, which ends its long-lived answers at shutdown.
    pub fn new(config: Config, deps: Deps, shutdown: CancellationToken) -> Self {
        let authenticator = Authenticator::new(deps.policy.clone(), deps.world.clock.clone());
        let live_tasks = TaskTracker::new();
        let live = Live::new(LiveDeps {
            inbox: deps.inbox.clone(),
            sessions: deps.sessions.clone(),
            authenticator: authenticator.clone(),
            config: config.live.clone(),
            shutdown: shutdown.clone(),
            tasks: live_tasks.clone(),
        });
        let inner = Inner {
            authenticator,
            auditing: Auditing::new(deps.audit.clone(), deps.world.clone(), deps.stats.audit.clone()),
            started_ms: deps.world.now_ms(),
            admission_slots: Semaphore::new(config.max_admissions_in_flight),
            erasure_begun: Notify::new(),
            live,
            live_tasks,
            quotas: Quotas::default(),
            shutdown,
            config,
            deps,
        };
        Self { inner: Arc::new(inner) }
    }

    /// A place among the admissions that are worked on at once.
    pub(crate) fn admission_slot(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.inner.admission_slots.try_acquire().map_err(|_| {
            Problem::new(Kind::Unavailable, "overloaded", "Too many calls are being worked on. Nothing was accepted.")
                .with_retry_after(1)
        })
    }

    /// Milliseconds since the epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.deps.world.now_ms()
    }
}

impl Deref for Gateway {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl FromRef<Gateway> for Authenticator {
    fn from_ref(gateway: &Gateway) -> Self {
        gateway.authenticator.clone()
    }
}
