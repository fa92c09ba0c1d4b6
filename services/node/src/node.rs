//! The process: open what it stands on, start the roles, serve, and stop in order.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Context;
use axum::middleware::from_fn_with_state;
use herald_api::{
    auth::{Authenticator, known_first},
    routes::Routes,
};
use herald_channels::email::mailbox::{MailStore, Mailbox, StoreLimits};
use herald_control_plane::{bootstrap, dead_letters::DeadLetters, levels};
use herald_core::{clock::World, policy::kind, secrets::SecretKeys};
use herald_gateway::{serve::Listener, tls::Tls};
use herald_worker::OpenProviders;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    backends::{Backends, Embedded},
    backup, channels,
    config::Config,
    export::{Expiry, ExportStats},
    gauges::Gauges,
    mailbox, metrics, namesakes,
    ops::{self, Ops},
    roles::{self, Counters, Place, Role, Roles},
    secrets,
    storage::Storage,
    traces::{self, Exporter},
    world,
};

/// How often old rows are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// What `herald dev` and `herald demo` add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The configuration and nothing else.
    Plain,
    /// The tenant `demo` with its public keys, and a mailbox where no mail server is configured.
    Dev,
}

/// A running process.
pub struct Node {
    /// Where HTTP and gRPC are served.
    pub address: SocketAddr,
    /// Where health and metrics are served.
    pub ops_address: SocketAddr,
    /// The ports.
    pub backends: Backends,
    /// What the roles count.
    pub counters: Counters,
    /// The development mailbox and its SMTP address, if there is one.
    pub mailbox: Option<(Arc<MailStore>, SocketAddr)>,
    /// Clock and chance.
    pub world: World,
    /// Whether the ledger runs in this process.
    pub keeps_books: bool,
    /// Cancelled when the process must stop because something failed.
    pub failed: CancellationToken,
    storage: Storage,
    roles: Roles,
    gateway: JoinHandle<anyhow::Result<()>>,
    ops_server: Option<OpsServer>,
    exporter: Option<Exporter>,
    stopping: CancellationToken,
    deadline: Duration,
}

impl Node {
    /// Binds, opens what the roles stand on, starts them, and serves.
    ///
    /// # Errors
    /// Where an address is taken, a setting is wrong, or something does not answer that the process cannot start without.
    pub async fn start(mut config: Config, mode: Mode) -> anyhow::Result<Self> {
        let stopping = CancellationToken::new();
        let listeners = Listeners::bind(&config, mode, &stopping).await?;
        let (address, ops_address) = listeners.addresses()?;
        let mut world = world::system();
        let process = config.process_name(&world);
        let (exporter, lost_spans) = export_spans(&config, &process, &mut world)?;
        let mailbox = start_mailbox(&mut config, mode, &stopping).await?;
        let base = Base::open(&config, mode, &world).await?;
        let mut roles = start_roles(&config, mode, &base, &process, &world).await?;
        roles.counters.lost_spans = lost_spans;
        let expiry = base.expiry(&config, &stopping);
        let exports = expiry.as_ref().map_or_else(Arc::default, |expiry| expiry.stats.clone());
        let gauges = base.gauges(&roles, exports, &world);
        let routes = operators_routes(&config, &base, &roles, gauges.last_backup_ms.clone(), &world);
        let routes = match &mailbox {
            Some((store, _)) => routes.merge(mailbox::router(store.clone())),
            None => routes,
        };
        let backends = base.storage.backends().clone();
        let ops = ops_routes(&roles, &backends, gauges, &stopping);
        let (routes, ops_server) = match listeners.ops {
            None => (routes.merge(ops), None),
            Some(listener) => (routes, Some(OpsServer::start(listener, ops, &world))),
        };
        let gateway = serve_calls(&config, &roles, &backends, &world, listeners.api, routes, &stopping);
        let node = Self {
            address,
            ops_address,
            counters: roles.counters.clone(),
            keeps_books: config.roles.contains(&Role::Ledger),
            failed: roles.failed.clone(),
            deadline: Duration::from_millis(config.stop_deadline_ms),
            backends,
            mailbox,
            world,
            storage: base.storage,
            roles,
            gateway,
            ops_server,
            exporter,
            stopping,
        };
        node.watch_log();
        if config.has_place() {
            node.watch_name(process);
        }
        if let Some(expiry) = expiry {
            node.expire_rows(expiry);
        }
        Ok(node)
    }

    /// Stops the roles when the log has failed.
    fn watch_log(&self) {
        let Some(local) = self.storage.local() else { return };
        let (log, failed, stopping) = (local.log.clone(), self.failed.clone(), self.stopping.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                cause = log.failed() => {
                    tracing::error!(cause, "the log has failed; the process stops");
                    failed.cancel();
                }
            }
        });
    }

    /// Stops the process when another has its name.
    fn watch_name(&self, process: String) {
        let (fleet, failed, stopping) = (self.backends.fleet.clone(), self.failed.clone(), self.stopping.clone());
        tokio::spawn(async move {
            if let Err(error) = namesakes::watch(process, &*fleet, stopping).await {
                tracing::error!(error = format!("{error:#}"), "the process stops");
                failed.cancel();
            }
        });
    }

    fn expire_rows(&self, expiry: Expiry) {
        let (world, stopping) = (self.world.clone(), self.stopping.clone());
        tokio::spawn(async move {
            while stopping.run_until_cancelled(tokio::time::sleep(EXPIRY_INTERVAL)).await.is_some() {
                loop {
                    let (expiry, now_ms) = (expiry.clone(), world.now_ms());
                    let step = tokio::task::spawn_blocking(move || expiry.step(now_ms)).await;
                    match step.map_err(anyhow::Error::from).and_then(|step| step) {
                        Ok(true) if !stopping.is_cancelled() => {}
                        Ok(_) => break,
                        Err(error) => {
                            tracing::warn!(
                                error = format!("{error:#}"),
                                "old rows cannot be deleted; the next round tries again"
                            );
                            break;
                        }
                    }
                }
            }
        });
    }

    /// Stops in the order of the pipeline under one deadline: no new calls, then each role drains.
    pub async fn stop(self) -> anyhow::Result<()> {
        let failed = self.failed.is_cancelled();
        self.stopping.cancel();
        let gateway = match tokio::time::timeout(self.deadline, self.gateway).await {
            Ok(ended) => ended.map_err(anyhow::Error::from).and_then(|ended| ended),
            Err(_) => Err(anyhow::anyhow!("the gateway did not stop within the deadline")),
        };
        let roles = self.roles.stop(self.deadline).await;
        if let Some(exporter) = self.exporter {
            exporter.stop().await;
        }
        if let Some(ops_server) = self.ops_server {
            ops_server.stop().await?;
        }
        let closed = self.storage.close().await;
        // What failed first says more than what failed because of it.
        if failed { roles.and(gateway).and(closed) } else { gateway.and(roles).and(closed) }
    }

    /// Runs until a signal or a failure, then stops.
    pub async fn run_until_signal(self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let failed = self.failed.clone();
        tokio::select! {
            biased;
            () = failed.cancelled() => {}
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = tokio::signal::ctrl_c() => tracing::info!("SIGINT: draining"),
        }
        let broken = failed.is_cancelled();
        self.stop().await?;
        anyhow::ensure!(!broken, "the process stopped because something failed; the log says what");
        Ok(())
    }
}

/// Health and metrics on a listener of their own, which says why the process stops until it has stopped.
struct OpsServer {
    task: JoinHandle<()>,
    stopping: CancellationToken,
}

impl OpsServer {
    fn start(listener: Listener, routes: Routes, world: &World) -> Self {
        let stopping = CancellationToken::new();
        let task = tokio::spawn(ops::serve(listener, routes, world.clone(), stopping.clone()));
        Self { task, stopping }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stopping.cancel();
        Ok(self.task.await?)
    }
}

/// What the roles stand on.
struct Base {
    storage: Storage,
    providers: Arc<OpenProviders>,
    /// Seal what providers log in with.
    keys: Option<Arc<SecretKeys>>,
}

impl Base {
    /// Opens it. Settings come before the storage, so that a wrong one leaves no data directory behind.
    async fn open(config: &Config, mode: Mode, world: &World) -> anyhow::Result<Self> {
        let channels = channels::configured(config, world)?;
        let keys = secrets::configured(config)?;
        config.check_export_directory()?;
        let storage = Storage::open(config, world).await?;
        if mode == Mode::Dev && storage.local().is_none() {
            only_for_development(storage.backends()).await?;
        }
        let keys = match (keys, config.data_directory().filter(|_| storage.local().is_some())) {
            (None, Some(directory)) if mode == Mode::Dev => Some(secrets::development(directory, world)?),
            (keys, _) => keys,
        };
        let keys = keys.map(Arc::new);
        let opener = Arc::new(channels::Adapters::new(config, keys.clone(), world));
        Ok(Self { storage, providers: Arc::new(OpenProviders::new(channels, opener)), keys })
    }

    /// What deletes old rows on this machine; servers do so themselves.
    fn expiry(&self, config: &Config, stopping: &CancellationToken) -> Option<Expiry> {
        let export_to = Some(config.disk.export_directory.as_str()).filter(|path| !path.is_empty()).map(Path::new);
        let stores = &self.storage.local()?.stores;
        Some(Expiry::new(stores, config.disk.receipts_retention_days, export_to).until(stopping.clone()))
    }

    fn gauges(&self, roles: &Roles, exports: Arc<ExportStats>, world: &World) -> Gauges {
        let disk = self.storage.local().map(Embedded::disk);
        Gauges::new(self.storage.backends().log.clone(), disk, roles.policy.clone(), exports, world)
    }
}

/// Starts the roles, unless another process has this one's name, and stores what they begin with.
async fn start_roles(config: &Config, mode: Mode, base: &Base, process: &str, world: &World) -> anyhow::Result<Roles> {
    let backends = base.storage.backends();
    if config.has_place() {
        namesakes::refuse(process, &*backends.fleet).await?;
    }
    let of_roles = roles::Config {
        orchestrator: config.orchestrator.clone(),
        worker: config.worker.clone(),
        ledger: config.ledger.clone(),
        control_plane: config.control_plane.clone(),
        members: config.members,
        roles: config.roles.clone(),
        place: Place { number: config.place().unwrap_or_default(), of: config.instances },
        process: process.to_owned(),
        own_threads: true,
    };
    let roles = Roles::start_with(&of_roles, backends, base.providers.clone(), world).await?;
    if base.storage.local().is_some() {
        // Nobody else reads what is written here.
        let (policy, to) = (roles.publisher.policy(), backends.levels.reads());
        levels::raise_alone(to, &policy, &*backends.log, world).await.context("the feature level is not stored")?;
    }
    if mode == Mode::Dev {
        let ensured = bootstrap::ensure_dev(&roles.publisher).await;
        ensured.map_err(|refusal| anyhow::anyhow!("the development tenant cannot be stored: {}", refusal.detail()))?;
    }
    if config.roles.contains(&Role::ControlPlane) {
        store_operator_key(&config.operator_key_file, &roles).await?;
    }
    Ok(roles)
}

/// The keys of `herald dev` and `herald demo` are public, so nothing else may be on the servers that they are given.
async fn only_for_development(backends: &Backends) -> anyhow::Result<()> {
    let tenants = backends.registry.list(kind::TENANT, "", None, 2).await.context("the stores do not answer")?;
    anyhow::ensure!(
        tenants.iter().all(|tenant| tenant.key == bootstrap::DEV_TENANT),
        "these stores have tenants, and this command would open them to public keys: give it a keyspace of its own"
    );
    Ok(())
}

/// Stores the key in a file as an operator's, if one is named.
async fn store_operator_key(file: &str, roles: &Roles) -> anyhow::Result<()> {
    if file.is_empty() {
        return Ok(());
    }
    let key = std::fs::read_to_string(file).with_context(|| format!("operator_key_file {file:?} cannot be read"))?;
    let stored = bootstrap::ensure_operator(&roles.publisher, key.trim()).await;
    stored.map_err(|refusal| anyhow::anyhow!("the operator's key in {file:?} cannot be stored: {}", refusal.detail()))
}

/// What the process listens on.
struct Listeners {
    api: Listener,
    ops: Option<Listener>,
}

impl Listeners {
    /// Binds the addresses and reads the certificate, which is followed from then on.
    async fn bind(config: &Config, mode: Mode, stopping: &CancellationToken) -> anyhow::Result<Self> {
        let api = bind(config.listen, "--listen").await?;
        let ops = match config.ops_address().map_err(anyhow::Error::msg)? {
            Some(address) => Some(bind(address, "--ops-listen").await?),
            None => None,
        };
        let tls = config.tls_files().map(Tls::load).transpose().context("TLS cannot be served")?;
        if let Some(tls) = &tls {
            tokio::spawn(tls.clone().follow(stopping.clone()));
        }
        // For development it ends with its terminal, as every command does.
        if tls.is_some() || mode == Mode::Plain || !std::io::stdin().is_terminal() {
            let hangups = signal(SignalKind::hangup()).context("SIGHUP is not heard")?;
            tokio::spawn(reload_on_sighup(hangups, tls.clone(), stopping.clone()));
        }
        let with_tls = |socket| Listener { socket, tls: tls.clone() };
        Ok(Self { api: with_tls(api), ops: ops.map(with_tls) })
    }

    /// Where calls are served, and where health and metrics are.
    fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        let ops = self.ops.as_ref().unwrap_or(&self.api);
        Ok((self.api.socket.local_addr()?, ops.socket.local_addr()?))
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("{address} cannot be listened on; choose another address with {flag}"))
}

/// Reads certificates again on SIGHUP, which ends a process that does not listen to it, and so is heard where there are
/// none too.
async fn reload_on_sighup(mut hangups: Signal, tls: Option<Tls>, stopping: CancellationToken) {
    while let Some(Some(())) = stopping.run_until_cancelled(hangups.recv()).await {
        match &tls {
            Some(tls) => tls.reload_and_tell(),
            None => tracing::info!("SIGHUP: there are no certificates to read again; everything goes on"),
        }
    }
}

/// Exports the spans of this process, if an endpoint is configured; and counts those that nobody will see.
fn export_spans(
    config: &Config,
    process: &str,
    world: &mut World,
) -> anyhow::Result<(Option<Exporter>, Arc<traces::Lost>)> {
    let lost = Arc::default();
    if config.tracing.otlp_endpoint.is_empty() {
        return Ok((None, lost));
    }
    let (spans, exporter) = traces::export(&config.tracing.otlp_endpoint, process, &lost)?;
    world.spans = spans;
    Ok((Some(exporter), lost))
}

/// Starts the mailbox where a development node has no mail server.
async fn start_mailbox(
    config: &mut Config,
    mode: Mode,
    stopping: &CancellationToken,
) -> anyhow::Result<Option<(Arc<MailStore>, SocketAddr)>> {
    if mode != Mode::Dev || !config.email.url.is_empty() {
        return Ok(None);
    }
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    config.email.url = format!("smtp://{address}?tls=off");
    let store = Arc::new(MailStore::new(StoreLimits::default()));
    tokio::spawn(Mailbox::serve(listener, store.clone(), stopping.clone()));
    Ok(Some((store, address)))
}

/// What this process serves for operators.
fn operators_routes(
    config: &Config,
    base: &Base,
    roles: &Roles,
    last_backup_ms: Arc<AtomicU64>,
    world: &World,
) -> Routes {
    let mut routes = Routes::new();
    if config.roles.contains(&Role::ControlPlane) {
        routes = routes.merge(control_plane_routes(roles, base.storage.backends(), base.keys.clone(), world));
    }
    if let Some(local) = base.storage.local() {
        let backups = local.backups(config.disk.low_water_bytes, world);
        let authenticator = Authenticator::new(roles.policy.clone(), world.clock.clone());
        routes = routes.merge(backup::routes(backups, authenticator, last_backup_ms));
    }
    routes
}

/// Health and metrics.
fn ops_routes(roles: &Roles, backends: &Backends, gauges: Gauges, stopping: &CancellationToken) -> Routes {
    ops::routes(Ops {
        registry: metrics::registry(&roles.counters, &gauges),
        gauges,
        ledger: roles.counters.ledger.clone(),
        members: roles.members.clone(),
        levels: backends.levels.clone(),
        log: backends.log.clone(),
        stores: backends.registry.clone(),
        fleet: backends.fleet.clone(),
        failed: roles.failed.clone(),
        stopping: stopping.clone(),
    })
}

/// Templates, tenants and keys, over HTTP and gRPC.
pub fn control_plane_routes(
    roles: &Roles,
    backends: &Backends,
    keys: Option<Arc<SecretKeys>>,
    world: &World,
) -> Routes {
    let deps = herald_control_plane::service::Deps {
        publisher: roles.publisher.clone(),
        directory: backends.directory.clone(),
        dead_letters: Arc::new(DeadLetters::new(backends.log.clone(), world.clone())),
        ledger: backends.ledger.clone(),
        fleet: backends.fleet.clone(),
        audit: backends.audit.clone(),
        opener: roles.providers.opener().clone(),
        keys,
        authenticator: Authenticator::new(roles.policy.clone(), world.clock.clone()),
    };
    let (templates, admin) = herald_control_plane::grpc::services(deps.clone());
    let grpc = axum::Router::new()
        .route_service("/herald.v1.Templates/{rpc}", templates)
        .route_service("/herald.v1.Admin/{rpc}", admin)
        .route_layer(from_fn_with_state(deps.authenticator.clone(), known_first));
    herald_control_plane::http::routes(deps).merge(grpc)
}

/// What the gateway stands on.
pub fn gateway_deps(roles: &Roles, backends: &Backends, world: &World) -> herald_gateway::Deps {
    herald_gateway::Deps {
        log: backends.log.clone(),
        admissions: backends.admissions.clone(),
        directory: backends.directory.clone(),
        erasures: backends.erasures.clone(),
        ledger: backends.ledger.clone(),
        inbox: backends.inbox.clone(),
        sessions: backends.sessions.clone(),
        audit: backends.audit.clone(),
        policy: roles.policy.clone(),
        world: world.clone(),
        stats: roles.counters.gateway.clone(),
    }
}

/// Serves the routes, and the gateway's where it runs in this process.
fn serve_calls(
    config: &Config,
    roles: &Roles,
    backends: &Backends,
    world: &World,
    listener: Listener,
    routes: Routes,
    stopping: &CancellationToken,
) -> JoinHandle<anyhow::Result<()>> {
    let is_gateway = config.roles.contains(&Role::Gateway);
    let (config, deps) = (config.gateway.clone(), gateway_deps(roles, backends, world));
    let (failed, shutdown) = (roles.failed.clone(), stopping.clone());
    tokio::spawn(async move {
        let ended = if is_gateway {
            let ended = herald_gateway::run(listener, config, deps, routes, shutdown.clone()).await;
            ended.context("the gateway failed")
        } else {
            let around = (deps.stats, deps.audit, deps.world);
            let ended = herald_gateway::run_others(listener, config, routes, around, shutdown.clone()).await;
            ended.context("the listener failed")
        };
        if !shutdown.is_cancelled() {
            failed.cancel();
        }
        ended
    })
}
