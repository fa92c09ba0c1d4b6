//! The process: open what it stands on, start the roles, serve, and stop in order.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use herald_api::{auth::Authenticator, routes::Routes};
use herald_channels::email::mailbox::{MailStore, Mailbox, StoreLimits};
use herald_control_plane::{bootstrap, dead_letters::DeadLetters};
use herald_core::{clock::World, policy::kind, secrets::SecretKeys};
use herald_gateway::{serve::Listener, tls::Tls};
use herald_worker::OpenProviders;
use tokio::{net::TcpListener, task::JoinHandle};
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
    ops_server: Option<JoinHandle<()>>,
    exporter: Option<Exporter>,
    stopping: CancellationToken,
    deadline: Duration,
}

impl Node {
    /// Binds, opens the backends and starts the roles.
    pub async fn start(mut config: Config, mode: Mode) -> anyhow::Result<Self> {
        let stopping = CancellationToken::new();
        let Listeners { api, ops: ops_listener } = Listeners::bind(&config, &stopping).await?;
        let address = api.socket.local_addr()?;
        let ops_address = ops_listener.as_ref().map_or(Ok(address), |ops| ops.socket.local_addr())?;
        let mut world = world::system();
        let (process, lost_spans) = (config.process_name(&world), Arc::default());
        let exporter = match config.tracing.otlp_endpoint.as_str() {
            "" => None,
            endpoint => {
                let (spans, exporter) = traces::export(endpoint, &process, &lost_spans)?;
                world.spans = spans;
                Some(exporter)
            }
        };
        let mailbox = start_mailbox(&mut config, mode, &stopping).await?;
        // Before the storage, so that a wrong setting leaves no data directory behind.
        let channels = channels::configured(&config, &world)?;
        let keys = secrets::configured(&config)?;
        config.check_export_directory()?;
        let storage = Storage::open(&config, &world).await?;
        let keys = match (keys, config.data_directory().filter(|_| storage.local().is_some())) {
            (None, Some(directory)) if mode == Mode::Dev => Some(secrets::development(directory, &world)?),
            (keys, _) => keys,
        };
        let keys = keys.map(Arc::new);
        let opener = Arc::new(channels::Adapters::new(&config, keys.clone(), &world));
        let roles = roles::Config {
            orchestrator: config.orchestrator.clone(),
            worker: config.worker.clone(),
            ledger: config.ledger.clone(),
            control_plane: config.control_plane.clone(),
            members: config.members,
            roles: config.roles.clone(),
            place: Place { number: config.place().unwrap_or_default(), of: config.instances },
            process,
        };
        let backends = storage.backends().clone();
        if mode == Mode::Dev && storage.local().is_none() {
            only_for_development(&backends).await?;
        }
        let process = roles.process.clone();
        if config.has_place() {
            namesakes::refuse(&process, &*backends.fleet).await?;
        }
        let providers = Arc::new(OpenProviders::new(channels, opener));
        let mut roles = Roles::start_with(&roles, &backends, providers, &world).await?;
        roles.counters.lost_spans = lost_spans;
        if mode == Mode::Dev {
            let ensured = bootstrap::ensure_dev(&roles.publisher).await;
            ensured
                .map_err(|refusal| anyhow::anyhow!("the development tenant cannot be stored: {}", refusal.detail()))?;
        }
        let export_to = Some(config.disk.export_directory.as_str()).filter(|path| !path.is_empty()).map(Path::new);
        // Servers expire their rows themselves.
        let expiry = storage.local().map(|local| {
            Expiry::new(&local.stores, config.disk.receipts_retention_days, export_to).until(stopping.clone())
        });
        let exports = expiry.as_ref().map_or_else(Arc::<ExportStats>::default, |expiry| expiry.stats.clone());
        if config.roles.contains(&Role::ControlPlane) {
            store_operator_key(&config.operator_key_file, &roles).await?;
        }
        let disk = storage.local().map(Embedded::disk);
        let gauges = Gauges::new(backends.log.clone(), disk, roles.policy.clone(), exports, &world);
        let last_backup_ms = gauges.last_backup_ms.clone();
        let ops = ops::routes(Ops {
            registry: metrics::registry(&roles.counters, &gauges),
            gauges,
            ledger: roles.counters.ledger.clone(),
            members: roles.members.clone(),
            log: backends.log.clone(),
            stores: backends.registry.clone(),
            fleet: backends.fleet.clone(),
            failed: roles.failed.clone(),
            stopping: stopping.clone(),
        });
        let mut extra = Routes::new();
        if config.roles.contains(&Role::ControlPlane) {
            extra = extra.merge(control_plane_routes(&roles, &backends, keys, &world));
        }
        if let Some(local) = storage.local() {
            let backups = local.backups(config.disk.low_water_bytes, &world);
            let authenticator = Authenticator::new(roles.policy.clone(), world.clock.clone());
            extra = extra.merge(backup::routes(backups, authenticator, last_backup_ms));
        }
        let (extra, ops_server) = match ops_listener {
            None => (extra.merge(ops), None),
            Some(listener) => (extra, Some(tokio::spawn(ops::serve(listener, ops, world.clone(), stopping.clone())))),
        };
        let extra = match &mailbox {
            Some((store, _)) => extra.merge(mailbox::router(store.clone())),
            None => extra,
        };
        let gateway = if config.roles.contains(&Role::Gateway) {
            let deps = gateway_deps(&roles, &backends, &world);
            let (failed, shutdown) = (roles.failed.clone(), stopping.clone());
            start_gateway(config.gateway.clone(), deps, api, extra, failed, shutdown)
        } else {
            serve_others(&config, &roles, &backends, &world, api, extra, &stopping)
        };
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
            storage,
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
        if let Some(ops_server) = self.ops_server {
            ops_server.await?;
        }
        let roles = self.roles.stop(self.deadline).await;
        if let Some(exporter) = self.exporter {
            exporter.stop().await;
        }
        let closed = self.storage.close().await;
        // What failed first says more than what failed because of it.
        if failed { roles.and(gateway).and(closed) } else { gateway.and(roles).and(closed) }
    }

    /// Runs until a signal or a failure, then stops.
    pub async fn run_until_signal(self) -> anyhow::Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
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
    async fn bind(config: &Config, stopping: &CancellationToken) -> anyhow::Result<Self> {
        let api = bind(config.listen, "--listen").await?;
        let ops = match config.ops_address().map_err(anyhow::Error::msg)? {
            Some(address) => Some(bind(address, "--ops-listen").await?),
            None => None,
        };
        let tls = config.tls_files().map(Tls::load).transpose().context("TLS cannot be served")?;
        if let Some(tls) = &tls {
            tokio::spawn(tls.clone().follow(stopping.clone()));
            tokio::spawn(reload_on_sighup(tls.clone(), stopping.clone()));
        }
        let with_tls = |socket| Listener { socket, tls: tls.clone() };
        Ok(Self { api: with_tls(api), ops: ops.map(with_tls) })
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("{address} cannot be listened on; choose another address with {flag}"))
}

async fn reload_on_sighup(tls: Tls, stopping: CancellationToken) {
    let mut hangups = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            return tracing::warn!(%error, "SIGHUP is not heard; certificates are read again when they change");
        }
    };
    while let Some(Some(())) = stopping.run_until_cancelled(hangups.recv()).await {
        tls.reload_and_tell();
    }
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
        .route_service("/herald.v1.Admin/{rpc}", admin);
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

fn start_gateway(
    config: herald_gateway::Config,
    deps: herald_gateway::Deps,
    listener: Listener,
    extra: Routes,
    failed: CancellationToken,
    shutdown: CancellationToken,
) -> JoinHandle<anyhow::Result<()>> {
    tokio::spawn(async move {
        let ended = herald_gateway::run(listener, config, deps, extra, shutdown.clone()).await;
        if !shutdown.is_cancelled() {
            failed.cancel();
        }
        ended.context("the gateway failed")
    })
}

/// Serves a process's routes where no gateway runs in it.
fn serve_others(
    config: &Config,
    roles: &Roles,
    backends: &Backends,
    world: &World,
    listener: Listener,
    routes: Routes,
    stopping: &CancellationToken,
) -> JoinHandle<anyhow::Result<()>> {
    let around = (roles.counters.gateway.clone(), backends.audit.clone(), world.clone());
    let (failed, config, shutdown) = (roles.failed.clone(), config.gateway.clone(), stopping.clone());
    tokio::spawn(async move {
        let ended = herald_gateway::run_others(listener, config, routes, around, shutdown.clone()).await;
        if !shutdown.is_cancelled() {
            failed.cancel();
        }
        ended.context("the listener failed")
    })
}
