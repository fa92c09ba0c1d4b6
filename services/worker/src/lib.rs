//! The worker: profiles, pace, claim, render, deliver, retry; the router, which brings waiting records back; and the
//! redriver, which brings dead ones back.
//!
//! Who owns a shard knows its users. A worker decides at the moment of sending, with profiles and preferences that it
//! keeps in memory and with `user-changes` read to its end. What it decided and what providers answered is committed
//! every few milliseconds, together with a map of what is finished, so one slow answer holds up nothing.

mod breaker;
mod burying;
mod claiming;
mod decide;
mod delivery;
mod handing_over;
mod holding_back;
mod in_app;
mod in_doubt;
mod lifting;
mod live;
mod moving;
mod order;
mod outages;
mod pacing;
mod people;
mod prepare;
mod providers;
mod receipts;
mod recent;
mod redriver;
mod retry;
mod retry_budget;
mod revive;
mod router;
mod section;
mod sending;
mod settling;
mod shard;
mod slowing;
mod spans;
mod stage;
mod stats;
mod steering;
mod throttle;

use std::sync::Arc;

use herald_core::{
    clock::World,
    control::{ControlReads, RoleVersions},
    policy::Policy,
    ports::{
        budgets::Budgets,
        claims::Claims,
        directory::Directory,
        inbox::Inbox,
        log::{Log, Member},
        sessions::Sessions,
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use outages::Outages;
pub use providers::OpenProviders;
pub use redriver::run as run_redriver;
pub use router::{RouterDeps, run as run_router};
pub use stats::Stats;

/// What an operator may set.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Records taken in one poll.
    pub poll_records: usize,
    /// Unfinished instances that a shard holds in memory.
    pub window_instances: u64,
    /// Instances handed to providers whose outcome is not durably committed: what may be sent twice after a crash.
    pub in_doubt_instances: u64,
    /// Of these, instances that their providers have not answered yet: what a newcomer waits for.
    pub unanswered_instances: u64,
    /// Time between commits while there is something to commit.
    pub commit_interval_ms: u64,
    /// People kept in memory.
    pub cached_people: usize,
    /// Cached people are read again after this time.
    pub cached_people_max_age_ms: u64,
    /// How long a provider may take to answer.
    pub send_deadline_ms: u64,
    /// Attempts of a message before it is dead.
    pub max_attempts: u32,
    /// The base of the exponential backoff.
    pub retry_base_ms: u64,
    /// The longest backoff; an hour at most.
    pub retry_cap_ms: u64,
    /// Whether tenants are served in turn. `false` serves in the order of arrival, to measure what fairness is worth.
    pub fair: bool,
    /// Where unsubscribe links lead; the gateway's address as mail readers see it.
    pub public_url: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            poll_records: 512,
            window_instances: 16_384,
            in_doubt_instances: 1_024,
            unanswered_instances: 1_024,
            commit_interval_ms: 5,
            cached_people: 200_000,
            cached_people_max_age_ms: 600_000,
            send_deadline_ms: 30_000,
            max_attempts: 8,
            retry_base_ms: 250,
            retry_cap_ms: 300_000,
            fair: true,
            public_url: "http://127.0.0.1:8080".into(),
        }
    }
}

/// What the role works with.
#[derive(Clone)]
pub struct Deps {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Profiles and preferences.
    pub directory: Arc<dyn Directory>,
    /// Dedupe claims.
    pub claims: Arc<dyn Claims>,
    /// What limits are taken of.
    pub budgets: Arc<dyn Budgets>,
    /// In-app feeds.
    pub inbox: Arc<dyn Inbox>,
    /// Live connections.
    pub sessions: Arc<dyn Sessions>,
    /// The ways out.
    pub providers: Arc<OpenProviders>,
    /// Tenants, templates, switches and cancels.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// How far policies are known to be read.
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

/// Runs one member of the role until `shutdown`; then starts nothing new, waits for answers up to two seconds,
/// commits, and returns.
pub async fn run(config: Config, deps: Deps, member: Member, shutdown: CancellationToken) -> anyhow::Result<()> {
    stage::Worker::new(config, deps, member).await?.run(shutdown).await
}
