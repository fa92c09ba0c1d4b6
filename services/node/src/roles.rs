//! The roles behind the gateway, supervised: one that ends early stops all of them.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Context;
use herald_control_plane::{
    bootstrap,
    feed::{policy_feed, read_policy},
    publisher::Publisher,
    reports::report_until,
};
use herald_core::{
    clock::World,
    control::{ControlReads, RoleVersions},
    policy::Policy,
    ports::{channel::Channel, fleet::Fleet, log::Member},
    topic::Group,
};
use herald_ledger::stats::LedgerStats;
use herald_worker::OpenProviders;
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::{Handle, Runtime},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{backends::Backends, joining::Joining, traces, world::process_name};

/// Members of a group have numbers below this.
pub const MAX_PLACE: u32 = 10_000;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Takes calls.
    Gateway,
    /// Turns audiences into deliveries.
    Orchestrator,
    /// Sends; with it run the router of delayed records and the redriver of dead letters.
    Worker,
    /// Keeps the books.
    Ledger,
    /// Serves operators, and publishes policies.
    ControlPlane,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Gateway, Self::Orchestrator, Self::Worker, Self::Ledger, Self::ControlPlane];

    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Orchestrator => "orchestrator",
            Self::Worker => "worker",
            Self::Ledger => "ledger",
            Self::ControlPlane => "control-plane",
        }
    }

    /// Whether it reads the log in a group, in which each member has a place.
    pub fn has_place(self) -> bool {
        matches!(self, Self::Orchestrator | Self::Worker | Self::Ledger)
    }
}

/// A process among those with the same roles.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Place {
    /// Its number, which no other has.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl Default for Place {
    fn default() -> Self {
        Self { number: 0, of: 1 }
    }
}

/// The roles' configurations.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Expansion.
    pub orchestrator: herald_orchestrator::Config,
    /// Sending.
    pub worker: herald_worker::Config,
    /// The books.
    pub ledger: herald_ledger::Config,
    /// Policies.
    pub control_plane: herald_control_plane::Config,
    /// How many members of each role run in this process.
    pub members: Members,
    /// Which roles run in this process.
    pub roles: Vec<Role>,
    /// This process among those with the same roles.
    pub place: Place,
    /// This process's name, which no other has; empty for one that is made up.
    pub process: String,
    /// Whether they run on threads of their own, so that calls do not wait for them, and not on the caller's.
    pub own_threads: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            orchestrator: Default::default(),
            worker: Default::default(),
            ledger: Default::default(),
            control_plane: Default::default(),
            members: Members::default(),
            roles: Role::ALL.to_vec(),
            place: Place::default(),
            process: String::new(),
            own_threads: false,
        }
    }
}

/// How many members of a role run in this process; each serves its share of the partitions. 0 leaves a role out, which is
/// for measuring the others.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Members {
    /// Orchestrators.
    pub orchestrator: u32,
    /// Workers.
    pub worker: u32,
    /// Ledgers.
    pub ledger: u32,
}

impl Default for Members {
    fn default() -> Self {
        Self { orchestrator: 1, worker: 1, ledger: 1 }
    }
}

/// What the roles count.
#[derive(Clone, Default)]
pub struct Counters {
    /// Calls.
    pub gateway: Arc<herald_gateway::stats::RequestStats>,
    /// Expansion.
    pub orchestrator: Arc<herald_orchestrator::Stats>,
    /// Sending.
    pub worker: Arc<herald_worker::Stats>,
    /// The books.
    pub ledger: Arc<LedgerStats>,
    /// Members that joined their groups anew.
    pub rejoins: Arc<AtomicU64>,
    /// Spans that nobody will see.
    pub lost_spans: Arc<traces::Lost>,
}

/// Running roles.
pub struct Roles {
    /// The newest policies.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Writes policies.
    pub publisher: Arc<Publisher>,
    /// Who delivers.
    pub providers: Arc<OpenProviders>,
    /// What the roles count.
    pub counters: Counters,
    control: Arc<ControlReads>,
    versions: Arc<RoleVersions>,
    /// The members of groups that run in this process: group and ordinal.
    pub members: Vec<(Group, u32)>,
    stages: Vec<Stage>,
    threads: Threads,
    place: Place,
    process: String,
    fleet: Arc<dyn Fleet>,
    /// Cancelled when a role has ended early.
    pub failed: CancellationToken,
}

/// Members of one role, stopped together.
struct Stage {
    name: &'static str,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// What the roles run on.
///
/// A role decides thousands of messages between two waits, and the ledger writes to an embedded store within a call. What
/// shares threads with them waits for that, some tens of milliseconds where everything is busy; between threads the operating
/// system shares the cores out.
#[derive(Default)]
struct Threads {
    /// The pipeline's; the caller's if there are none.
    pipeline: Option<Runtime>,
    /// The ledger's.
    books: Option<Runtime>,
}

impl Threads {
    /// Threads apart from the caller's.
    fn own() -> std::io::Result<Self> {
        let build = |threads| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name("herald-roles").enable_all().build().map(Some)
        };
        Ok(Self { pipeline: build(std::thread::available_parallelism()?.get())?, books: build(1)? })
    }

    /// Where the members of a group run.
    fn of(&self, group: Option<Group>) -> Handle {
        let own = match group {
            Some(Group::LedgerRequests | Group::LedgerReceipts) => &self.books,
            _ => &self.pipeline,
        };
        own.as_ref().map_or_else(Handle::current, |own| own.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The roles have ended, or are given up; within a task nobody may wait for a runtime.
        for own in [self.pipeline.take(), self.books.take()].into_iter().flatten() {
            own.shutdown_background();
        }
    }
}

impl Roles {
    /// Starts the roles of this process with these channels and no others.
    pub async fn start(
        config: &Config,
        backends: &Backends,
        channels: Vec<Arc<dyn Channel>>,
        world: &World,
    ) -> anyhow::Result<Self> {
        Self::start_with(config, backends, Arc::new(OpenProviders::fixed(channels)), world).await
    }

    /// Reads the policies and starts the roles of this process.
    pub async fn start_with(
        config: &Config,
        backends: &Backends,
        providers: Arc<OpenProviders>,
        world: &World,
    ) -> anyhow::Result<Self> {
        let policy = read_policy(&*backends.log, &backends.levels, providers.configured())
            .await
            .context("the policies cannot be read")?;
        let (sender, receiver) = watch::channel(Arc::new(policy));
        let publisher =
            Publisher::new(backends.log.clone(), backends.registry.clone(), receiver.clone(), world.clone());
        let mut roles = Self {
            policy: receiver,
            publisher: Arc::new(publisher),
            providers,
            control: Arc::default(),
            versions: Arc::default(),
            members: Vec::new(),
            counters: Counters::default(),
            stages: Vec::new(),
            threads: if config.own_threads { Threads::own()? } else { Threads::default() },
            place: config.place,
            process: match config.process.as_str() {
                "" => process_name("herald-0", world),
                process => process.to_owned(),
            },
            fleet: backends.fleet.clone(),
            failed: CancellationToken::new(),
        };
        roles.start_policies(backends, sender, world);
        if config.roles.contains(&Role::ControlPlane) {
            roles.start_control_plane(config).await?;
        }
        if config.roles.contains(&Role::Ledger) {
            roles.start_ledger(config, backends, world);
        }
        if config.roles.contains(&Role::Worker) {
            roles.start_worker(config, backends, world);
            roles.start_movers(backends, world);
        }
        if config.roles.contains(&Role::Orchestrator) {
            roles.start_orchestrator(config, backends, world);
        }
        Ok(roles)
    }

    async fn start_control_plane(&mut self, config: &Config) -> anyhow::Result<()> {
        let (control_plane, publisher) = (config.control_plane.clone(), self.publisher.clone());
        self.stage("control plane", 1, None, move |_, shutdown| {
            herald_control_plane::run(control_plane.clone(), publisher.clone(), shutdown)
        });
        bootstrap::ensure_secrets(&self.publisher).await.context("the signing secret cannot be stored")
    }

    /// Starts what brings back records that waited, and dead letters.
    fn start_movers(&mut self, backends: &Backends, world: &World) {
        let router = herald_worker::RouterDeps {
            log: backends.log.clone(),
            policy: self.policy.clone(),
            versions: self.versions.clone(),
            world: world.clone(),
            stats: self.counters.worker.clone(),
        };
        self.stage("router", 1, Some(Group::Router), move |member, shutdown| {
            herald_worker::run_router(router.clone(), member, shutdown)
        });
        let (log, world_of_redriver) = (backends.log.clone(), world.clone());
        self.stage("redriver", 1, Some(Group::Redriver), move |member, shutdown| {
            herald_worker::run_redriver(log.clone(), world_of_redriver.clone(), member, shutdown)
        });
    }

    /// Follows the policies, and reports which of them the roles run.
    fn start_policies(&mut self, backends: &Backends, sender: watch::Sender<Arc<Policy>>, world: &World) {
        let (log, reads, clock) = (backends.log.clone(), self.control.clone(), world.clone());
        let levels = backends.levels.clone();
        self.stage("policy feed", 1, None, move |_, shutdown| {
            policy_feed(log.clone(), levels.clone(), sender.clone(), reads.clone(), clock.clone(), shutdown)
        });
        let (fleet, versions, policy) = (backends.fleet.clone(), self.versions.clone(), self.policy.clone());
        let (process, world, reads_level) = (self.process.clone(), world.clone(), backends.levels.reads());
        self.stage("reports", 1, None, move |_, shutdown| {
            let (fleet, versions, policy) = (fleet.clone(), versions.clone(), policy.clone());
            report_until(fleet, process.clone(), reads_level, versions, policy, world.clone(), shutdown)
        });
    }

    fn start_ledger(&mut self, config: &Config, backends: &Backends, world: &World) {
        let deps = herald_ledger::Deps {
            log: backends.log.clone(),
            ledger: backends.ledger.clone(),
            world: world.clone(),
            stats: self.counters.ledger.clone(),
        };
        let members = config.members.ledger;
        let (ledger, deps_of_requests) = (config.ledger.clone(), deps.clone());
        self.stage("ledger of requests", members, Some(Group::LedgerRequests), move |member, shutdown| {
            herald_ledger::requests::run(ledger.clone(), deps_of_requests.clone(), member, shutdown)
        });
        let ledger = config.ledger.clone();
        self.stage("ledger of receipts", members, Some(Group::LedgerReceipts), move |member, shutdown| {
            herald_ledger::receipts::run(ledger.clone(), deps.clone(), member, shutdown)
        });
    }

    fn start_worker(&mut self, config: &Config, backends: &Backends, world: &World) {
        let deps = herald_worker::Deps {
            log: backends.log.clone(),
            directory: backends.directory.clone(),
            claims: backends.claims.clone(),
            budgets: backends.budgets.clone(),
            inbox: backends.inbox.clone(),
            sessions: backends.sessions.clone(),
            providers: self.providers.clone(),
            policy: self.policy.clone(),
            control: self.control.clone(),
            versions: self.versions.clone(),
            world: world.clone(),
            stats: self.counters.worker.clone(),
            outages: Arc::default(),
        };
        let worker = config.worker.clone();
        self.stage("worker", config.members.worker, Some(Group::Worker), move |member, shutdown| {
            herald_worker::run(worker.clone(), deps.clone(), member, shutdown)
        });
    }

    fn start_orchestrator(&mut self, config: &Config, backends: &Backends, world: &World) {
        let deps = herald_orchestrator::Deps {
            log: backends.log.clone(),
            directory: backends.directory.clone(),
            admissions: backends.admissions.clone(),
            budgets: backends.budgets.clone(),
            policy: self.policy.clone(),
            control: self.control.clone(),
            versions: self.versions.clone(),
            world: world.clone(),
            stats: self.counters.orchestrator.clone(),
            outages: Arc::default(),
        };
        let orchestrator = config.orchestrator.clone();
        self.stage("orchestrator", config.members.orchestrator, Some(Group::Orchestrator), move |member, shutdown| {
            herald_orchestrator::run(orchestrator.clone(), deps.clone(), member, shutdown)
        });
    }

    /// Starts the members of a role, which join this group. One that must join anew does; if one ends otherwise before it was
    /// told to, all roles are told so.
    fn stage<F, R>(&mut self, name: &'static str, count: u32, group: Option<Group>, run: R)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
        R: Fn(Member, CancellationToken) -> F + Send + Sync + 'static,
    {
        if count == 0 {
            tracing::warn!(role = name, "this role does not run here");
            return;
        }
        let (shutdown, failed, run) = (CancellationToken::new(), self.failed.clone(), Arc::new(run));
        let mut members = JoinSet::new();
        let Place { number, of } = self.place;
        for ordinal in number * count..(number + 1) * count {
            let member = Member { ordinal, count: count * of.max(1) };
            self.members.extend(group.map(|group| (group, ordinal)));
            let joining = Joining {
                role: name,
                member,
                process: self.process.clone(),
                fleet: self.fleet.clone(),
                rejoins: self.counters.rejoins.clone(),
                shutdown: shutdown.clone(),
            };
            let run = run.clone();
            members.spawn_on(async move { joining.run(&*run).await }, &self.threads.of(group));
        }
        let told = shutdown.clone();
        let task = tokio::spawn(async move {
            let mut result = Ok(());
            while let Some(ended) = members.join_next().await {
                let ended = ended.map_err(anyhow::Error::from).and_then(|ended| ended);
                if !told.is_cancelled() || ended.is_err() {
                    let error = ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended early"));
                    tracing::error!(role = name, error = format!("{error:#}"), "a role has failed");
                    failed.cancel();
                    result = Err(error.context(format!("the {name} failed")));
                }
            }
            result
        });
        self.stages.push(Stage { name, shutdown, task });
    }

    /// Stops in the order of the pipeline: each role drains what the one before it left, under one deadline.
    pub async fn stop(mut self, deadline: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + deadline;
        let mut result = Ok(());
        while let Some(stage) = self.stages.pop() {
            stage.shutdown.cancel();
            let ended = match tokio::time::timeout_at(deadline, stage.task).await {
                Ok(ended) => ended.map_err(anyhow::Error::from).and_then(|ended| ended),
                Err(_) => Err(anyhow::anyhow!("the {} did not stop within the deadline", stage.name)),
            };
            if result.is_ok() {
                result = ended;
            }
        }
        result
    }
}
