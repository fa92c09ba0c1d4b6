//! The roles behind the gateway, supervised: one that ends early stops all of them.

use std::{sync::Arc, time::Duration};

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
    ports::{channel::Channel, log::Member},
    switches::Providers,
};
use herald_ledger::stats::LedgerStats;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{backends::Backends, traces, world::process_name};

/// The roles' configurations.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// This process's name, which no other has; empty for one that is made up.
    pub process: String,
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
    /// Spans that nobody will see.
    pub lost_spans: Arc<traces::Lost>,
}

/// Running roles.
pub struct Roles {
    /// The newest policies.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Writes policies.
    pub publisher: Arc<Publisher>,
    /// Who delivers, as switches name them.
    pub providers: Providers,
    /// What the roles count.
    pub counters: Counters,
    control: Arc<ControlReads>,
    versions: Arc<RoleVersions>,
    stages: Vec<Stage>,
    /// Cancelled when a role has ended early.
    pub failed: CancellationToken,
}

/// Members of one role, stopped together.
struct Stage {
    name: &'static str,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Roles {
    /// Reads the policies and starts every role.
    pub async fn start(
        config: &Config,
        backends: &Backends,
        channels: Vec<Arc<dyn Channel>>,
        world: &World,
    ) -> anyhow::Result<Self> {
        let policy = read_policy(&*backends.log).await.context("the policies cannot be read")?;
        let (sender, receiver) = watch::channel(Arc::new(policy));
        let publisher =
            Publisher::new(backends.log.clone(), backends.registry.clone(), receiver.clone(), world.clone());
        let mut roles = Self {
            policy: receiver,
            publisher: Arc::new(publisher),
            providers: Providers::of(channels.iter().map(|c| (c.kind(), c.provider().to_owned()))),
            control: Arc::default(),
            versions: Arc::default(),
            counters: Counters::default(),
            stages: Vec::new(),
            failed: CancellationToken::new(),
        };
        roles.start_policies(config, backends, sender, world);
        let (control_plane, publisher) = (config.control_plane.clone(), roles.publisher.clone());
        roles.stage("control plane", 1, move |_, shutdown| {
            herald_control_plane::run(control_plane.clone(), publisher.clone(), shutdown)
        });
        bootstrap::ensure_secrets(&roles.publisher).await.context("the signing secret cannot be stored")?;
        roles.start_ledger(config, backends, world);
        roles.start_worker(config, backends, channels, world);
        let router = herald_worker::RouterDeps {
            log: backends.log.clone(),
            policy: roles.policy.clone(),
            versions: roles.versions.clone(),
            world: world.clone(),
            stats: roles.counters.worker.clone(),
        };
        roles.stage("router", 1, move |member, shutdown| herald_worker::run_router(router.clone(), member, shutdown));
        let (log, world_of_redriver) = (backends.log.clone(), world.clone());
        roles.stage("redriver", 1, move |member, shutdown| {
            herald_worker::run_redriver(log.clone(), world_of_redriver.clone(), member, shutdown)
        });
        roles.start_orchestrator(config, backends, world);
        Ok(roles)
    }

    /// Follows the policies, and reports which of them the roles run.
    fn start_policies(
        &mut self,
        config: &Config,
        backends: &Backends,
        sender: watch::Sender<Arc<Policy>>,
        world: &World,
    ) {
        let (log, reads, clock) = (backends.log.clone(), self.control.clone(), world.clone());
        self.stage("policy feed", 1, move |_, shutdown| {
            policy_feed(log.clone(), sender.clone(), reads.clone(), clock.clone(), shutdown)
        });
        let (fleet, versions, policy) = (backends.fleet.clone(), self.versions.clone(), self.policy.clone());
        let process = match config.process.as_str() {
            "" => process_name(world),
            process => process.to_owned(),
        };
        let world = world.clone();
        self.stage("reports", 1, move |_, shutdown| {
            let (fleet, versions, policy) = (fleet.clone(), versions.clone(), policy.clone());
            report_until(fleet, process.clone(), versions, policy, world.clone(), shutdown)
        });
    }

    fn start_ledger(&mut self, config: &Config, backends: &Backends, world: &World) {
        let members = config.members.ledger;
        let (config, log, ledger) = (config.ledger.clone(), backends.log.clone(), backends.ledger.clone());
        let (world, stats) = (world.clone(), self.counters.ledger.clone());
        self.stage("ledger", members, move |member, shutdown| {
            let (log, ledger, world) = (log.clone(), ledger.clone(), world.clone());
            let deps = herald_ledger::Deps { log, ledger, world, member, stats: stats.clone() };
            herald_ledger::run(config.clone(), deps, shutdown)
        });
    }

    fn start_worker(&mut self, config: &Config, backends: &Backends, channels: Vec<Arc<dyn Channel>>, world: &World) {
        let deps = herald_worker::Deps {
            log: backends.log.clone(),
            directory: backends.directory.clone(),
            claims: backends.claims.clone(),
            budgets: backends.budgets.clone(),
            inbox: backends.inbox.clone(),
            sessions: backends.sessions.clone(),
            channels,
            policy: self.policy.clone(),
            control: self.control.clone(),
            versions: self.versions.clone(),
            world: world.clone(),
            stats: self.counters.worker.clone(),
        };
        let worker = config.worker.clone();
        self.stage("worker", config.members.worker, move |member, shutdown| {
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
            providers: self.providers.clone(),
            versions: self.versions.clone(),
            world: world.clone(),
            stats: self.counters.orchestrator.clone(),
        };
        let orchestrator = config.orchestrator.clone();
        self.stage("orchestrator", config.members.orchestrator, move |member, shutdown| {
            herald_orchestrator::run(orchestrator.clone(), deps.clone(), member, shutdown)
        });
    }

    /// Starts the members of a role. If one ends before it was told to, all roles are told so.
    fn stage<F>(&mut self, name: &'static str, count: u32, member: impl Fn(Member, CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        if count == 0 {
            tracing::warn!(role = name, "this role does not run here");
            return;
        }
        let (shutdown, failed) = (CancellationToken::new(), self.failed.clone());
        let mut members = JoinSet::new();
        for ordinal in 0..count {
            members.spawn(member(Member { ordinal, count }, shutdown.clone()));
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
