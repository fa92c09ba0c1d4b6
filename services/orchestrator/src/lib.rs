//! The orchestrator: audiences become pages of deliveries.
//!
//! It loops over one port: poll requests and continuations, expand a page of each, commit. An audience of millions is
//! a chain of continuations on the log, so nothing else remembers progress, and tenants interleave page by page.

pub mod expand;
mod pacing;
mod requests;
mod stage;
mod steering;

use std::sync::Arc;

use herald_core::{
    clock::World,
    control::{ControlReads, RoleVersions},
    leases::Leases,
    outage::Outage,
    policy::Policy,
    ports::{
        admissions::Admissions,
        budgets::Budgets,
        directory::Directory,
        log::{Log, Member},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What an operator may set.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Requests and continuations taken in one poll.
    pub poll_records: usize,
    /// Requests and continuations held in memory at most.
    pub window_records: usize,
    /// A commit is made when this many instances are gathered.
    pub commit_instances: u64,
    /// Time from the end of a commit to the next one, which has all that was expanded meanwhile.
    pub commit_interval_ms: u64,
    /// Whether tenants are served in turn. `false` serves in the order of arrival, to measure what fairness is worth.
    pub fair: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { poll_records: 1_000, window_records: 4_000, commit_instances: 4_096, commit_interval_ms: 0, fair: true }
    }
}

/// What the role works with.
#[derive(Clone)]
pub struct Deps {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Audiences and the actor's profile.
    pub directory: Arc<dyn Directory>,
    /// First places of requests with an idempotency key.
    pub admissions: Arc<dyn Admissions>,
    /// What paces expansion.
    pub budgets: Arc<dyn Budgets>,
    /// Limits, switches and cancels.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// How far they are known to be read.
    pub control: Arc<ControlReads>,
    /// Where the role says which policies it runs.
    pub versions: Arc<RoleVersions>,
    /// Clock and chance.
    pub world: World,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// What is away.
    pub outages: Arc<Outages>,
}

/// What may be away while the role goes on, said once by all members of a process.
#[derive(Debug)]
pub struct Outages {
    pub(crate) log: Outage,
    pub(crate) directory: Outage,
    pub(crate) admissions: Outage,
    pub(crate) budgets: Arc<Outage>,
}

impl Default for Outages {
    fn default() -> Self {
        let stores = "see that the stores answer";
        Self {
            log: Outage::new("requests cannot be polled; they wait", "see that the log answers"),
            directory: Outage::new("the directory is away; pages of audiences wait", stores),
            admissions: Outage::new("idempotency keys cannot be noted; requests wait", stores),
            budgets: Leases::outage(),
        }
    }
}

/// What the role counts; read by the metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Pages expanded.
    pub pages: std::sync::atomic::AtomicU64,
    /// Instances created.
    pub instances: std::sync::atomic::AtomicU64,
    /// Second admissions of an idempotency key that were dropped.
    pub second_admissions: std::sync::atomic::AtomicU64,
    /// Requests put off because a store was away.
    pub store_delays: std::sync::atomic::AtomicU64,
    /// Requests and continuations put off because a limit was used up.
    pub paced: std::sync::atomic::AtomicU64,
    /// Requests moved to overflow because the window was full.
    pub overflowed: std::sync::atomic::AtomicU64,
    /// Continuations put off because a switch holds them.
    pub held: std::sync::atomic::AtomicU64,
    /// Chains that a switch or a cancel ended.
    pub stopped: std::sync::atomic::AtomicU64,
    /// Requests that could not be processed.
    pub dead: std::sync::atomic::AtomicU64,
}

/// Runs one member of the role until `shutdown`; what is in hand is committed first.
pub async fn run(config: Config, deps: Deps, member: Member, shutdown: CancellationToken) -> anyhow::Result<()> {
    stage::Stage::new(config, deps, member).await?.run(shutdown).await
}
