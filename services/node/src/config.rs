//! The configuration: commented defaults, those of shared servers, then a file, then the environment, then flags.

use std::{net::SocketAddr, path::Path};

use anyhow::Context;
use herald_core::clock::World;
use herald_gateway::tls::TlsFiles;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    roles::{self, Role},
    storage::Servers,
    traces, world,
};

/// The defaults, with what each setting means.
pub const DEFAULTS: &str = include_str!("config.default.toml");

/// What is different by default where servers are shared.
const SHARED_DEFAULTS: &str = include_str!("config.shared.toml");

const ENVIRONMENT_PREFIX: &str = "HERALD_";

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where data is kept, unless on servers.
    pub storage: String,
    /// A file with an operator's key that is stored if there is none of its name; empty for none.
    pub operator_key_file: String,
    /// The log that processes share; empty for none.
    pub log: String,
    /// The stores that processes share; empty for none.
    pub store: String,
    /// The cache that processes share; empty for none.
    pub cache: String,
    /// What runs in this process.
    pub roles: Vec<Role>,
    /// This process's name among those with the same roles; the number at its end is its place. Empty for the only one.
    pub instance: String,
    /// How many processes have the same roles.
    pub instances: u32,
    /// The address of HTTP and gRPC.
    pub listen: SocketAddr,
    /// The address of health and metrics; empty for the one of HTTP.
    pub ops_listen: String,
    /// TLS on the listeners.
    pub tls: Tls,
    /// This region's name.
    pub region: String,
    /// The gateway's address as others see it.
    pub public_url: String,
    /// How long a stop may take.
    pub stop_deadline_ms: u64,
    /// The numbers of partitions.
    pub layout: Layout,
    /// The embedded log.
    pub disk: Disk,
    /// Secrets at rest.
    pub secrets: Secrets,
    /// Mail.
    pub email: Email,
    /// Traces.
    pub tracing: traces::Config,
    /// The gateway.
    #[serde(default)]
    pub gateway: herald_gateway::Config,
    /// Expansion.
    #[serde(default)]
    pub orchestrator: herald_orchestrator::Config,
    /// Sending.
    #[serde(default)]
    pub worker: herald_worker::Config,
    /// The books.
    #[serde(default)]
    pub ledger: herald_ledger::Config,
    /// Policies.
    #[serde(default)]
    pub control_plane: herald_control_plane::Config,
    /// How many members of each role run here.
    #[serde(default)]
    pub members: roles::Members,
    /// How the log is used.
    #[serde(default)]
    pub kafka: herald_distributed::kafka::KafkaConfig,
    /// How the stores are used.
    #[serde(default)]
    pub cql: herald_distributed::cql::CqlConfig,
    /// How the cache is used.
    #[serde(default)]
    pub redis: herald_distributed::redis::RedisConfig,
}

/// See [`herald_core::topic::Layout`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Shards of users.
    pub shards: u32,
    /// Partitions of each requests topic.
    pub requests_partitions: u32,
    /// Partitions of the receipts topic.
    pub receipts_partitions: u32,
}

/// The embedded log's use of the disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Free space below which new notifications are refused.
    pub low_water_bytes: u64,
    /// At most one sync in this time under load.
    pub flush_interval_ms: u64,
    /// Recent records kept in memory.
    pub cache_bytes: u64,
    /// Whether to sync at all.
    pub sync: bool,
    /// How long receipts are kept.
    pub receipts_retention_days: u64,
    /// Where receipts go before they are deleted; empty for nowhere.
    pub export_directory: String,
}

/// TLS on the listeners.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file; empty for none.
    pub certificate_file: String,
    /// A PEM file; empty for none.
    pub key_file: String,
}

/// Secrets at rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// A file of keys; empty for none.
    pub key_file: String,
}

/// The mail server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Email {
    /// The server; empty for none.
    pub url: String,
    /// The sender.
    pub from: String,
    /// Where bounces go.
    pub return_path: String,
    /// Connections at most.
    pub connections: usize,
    /// A PEM file.
    pub dkim_key_file: String,
    /// The signing domain.
    pub dkim_domain: String,
    /// The selector.
    pub dkim_selector: String,
}

impl Config {
    /// Puts the layers together and checks them.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Table,
    ) -> anyhow::Result<Self> {
        let mut layer = Table::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            layer = text.parse().with_context(|| format!("{} is not valid TOML", path.display()))?;
        }
        Self::of_layers(layer, environment, flags)
    }

    /// The same, with the file's content as a table.
    pub fn of_layers(
        file: Table,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Table,
    ) -> anyhow::Result<Self> {
        let mut given = file;
        for layer in [environment_layer(environment), flags] {
            merge(&mut given, layer);
        }
        let mut table: Table = DEFAULTS.parse().context("the built-in defaults are broken")?;
        if given.get("log").is_some_and(|log| log.as_str() != Some("")) {
            merge(&mut table, SHARED_DEFAULTS.parse().context("the built-in defaults are broken")?);
        }
        merge(&mut table, given);
        let mut config: Self = serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
            let (path, message) = (error.path().to_string(), error.inner().message());
            match path.as_str() {
                "." => anyhow::anyhow!("the configuration is not valid: {message}"),
                path => anyhow::anyhow!("the configuration is not valid: {path}: {message}"),
            }
        })?;
        // One setting for whoever makes links and whoever serves them.
        config.worker.public_url.clone_from(&config.public_url);
        config.gateway.public_url.clone_from(&config.public_url);
        config.gateway.traces_per_million = config.tracing.traces_per_million;
        config.check()?;
        Ok(config)
    }

    /// Checks what types cannot say; all faults are told together.
    fn check(&self) -> anyhow::Result<()> {
        let mut faults = Vec::new();
        if !(1..=64).contains(&self.layout.shards) {
            faults.push(format!("layout.shards is {}; it must be 1 to 64", self.layout.shards));
        }
        if !(1..=256).contains(&self.layout.requests_partitions) {
            faults.push("layout.requests_partitions must be 1 to 256".to_owned());
        }
        if !(1..=256).contains(&self.layout.receipts_partitions) {
            faults.push("layout.receipts_partitions must be 1 to 256".to_owned());
        }
        if !self.public_url.starts_with("http://") && !self.public_url.starts_with("https://") {
            faults.push(format!("public_url is {:?}; it must begin with http:// or https://", self.public_url));
        }
        if self.data_directory().is_none() {
            faults.push(format!("storage is {:?}; it must be embedded:DIRECTORY", self.storage));
        }
        let otlp = &self.tracing.otlp_endpoint;
        if !otlp.is_empty() && !otlp.starts_with("http://") && !otlp.starts_with("https://") {
            faults.push(format!("tracing.otlp_endpoint is {otlp:?}; it must be a URL such as http://127.0.0.1:4317"));
        }
        if self.tracing.traces_per_million > 1_000_000 {
            faults.push("tracing.traces_per_million must be at most 1000000".to_owned());
        }
        self.check_processes(&mut faults);
        if let Err(fault) = self.ops_address() {
            faults.push(fault);
        }
        if self.tls.certificate_file.is_empty() != self.tls.key_file.is_empty() {
            faults.push("tls.certificate_file and tls.key_file must both be set, or none".to_owned());
        }
        faults.extend(self.zeros().map(|setting| format!("{setting} must be at least 1")));
        let dkim = [&self.email.dkim_key_file, &self.email.dkim_domain, &self.email.dkim_selector];
        if dkim.iter().any(|part| part.is_empty()) && !dkim.iter().all(|part| part.is_empty()) {
            faults.push("email.dkim_key_file, dkim_domain and dkim_selector must all be set, or none".to_owned());
        }
        match faults.is_empty() {
            true => Ok(()),
            false => anyhow::bail!("the configuration is not valid:\n  {}", faults.join("\n  ")),
        }
    }

    /// Settings that are 0 and with which the process would run and nothing get through: no connection, no call, or no
    /// message of what it took.
    fn zeros(&self) -> impl Iterator<Item = &'static str> {
        let Self { gateway, orchestrator, worker, ledger, .. } = self;
        [
            ("instances", self.instances == 0),
            ("gateway.max_body_bytes", gateway.max_body_bytes == 0),
            ("gateway.max_batch_body_bytes", gateway.max_batch_body_bytes == 0),
            ("gateway.max_admissions_in_flight", gateway.max_admissions_in_flight == 0),
            ("gateway.max_connections", gateway.max_connections == 0),
            ("gateway.max_streams", gateway.max_streams == 0),
            ("orchestrator.poll_records", orchestrator.poll_records == 0),
            ("orchestrator.window_records", orchestrator.window_records == 0),
            ("orchestrator.commit_instances", orchestrator.commit_instances == 0),
            ("worker.poll_records", worker.poll_records == 0),
            ("worker.window_instances", worker.window_instances == 0),
            ("worker.in_doubt_instances", worker.in_doubt_instances == 0),
            ("worker.unanswered_instances", worker.unanswered_instances == 0),
            ("worker.max_attempts", worker.max_attempts == 0),
            ("ledger.poll_max_records", ledger.poll_max_records == 0),
        ]
        .into_iter()
        .filter_map(|(setting, is_zero)| is_zero.then_some(setting))
    }

    /// Whether there is the directory that receipts are exported to.
    pub fn check_export_directory(&self) -> anyhow::Result<()> {
        let path = self.disk.export_directory.as_str();
        let is_there = path.is_empty() || Path::new(path).is_dir();
        anyhow::ensure!(
            is_there,
            "disk.export_directory is {path:?}, which is no directory; make it, or set it to \"\""
        );
        Ok(())
    }

    /// Checks how this process goes together with others.
    fn check_processes(&self, faults: &mut Vec<String>) {
        let servers = self.servers();
        let shares = matches!(servers, Ok(Some(_)));
        let shares_nothing = matches!(servers, Ok(None));
        faults.extend(servers.err());
        if self.roles.is_empty() {
            faults.push("roles is empty; a process must have at least one".to_owned());
        }
        let alone = Role::ALL.iter().all(|role| self.roles.contains(role));
        if !alone && shares_nothing {
            faults.push("roles run apart only on servers that they share: set log, store and cache".to_owned());
        }
        if self.instances > 1 && shares_nothing {
            faults.push(
                "instances is more than 1, and a data directory serves one process: set log, store and cache".into(),
            );
        }
        let member = self.roles.iter().find(|role| role.has_place());
        if member.is_some() && self.place().is_none() {
            faults.push(format!("instance is {:?}; it must end with a number, such as worker-0", self.instance));
        }
        if let Some(role) = member.filter(|_| self.instance.is_empty() && (!alone || self.instances > 1)) {
            faults.push(format!(
                "instance must be set where the {} runs apart, such as {0}-0 and {0}-1: two processes with the same place \
                 would take each other's partitions away",
                role.name()
            ));
        }
        if !self.disk.export_directory.is_empty() && shares {
            faults.push("disk.export_directory is set, and shared servers delete what expires themselves".to_owned());
        }
    }

    /// The servers that are shared, if there are; or what is wrong with them.
    pub fn servers(&self) -> Result<Option<Servers>, String> {
        Servers::of(&self.log, &self.store, &self.cache)
    }

    /// What this process is called; see [`crate::namesakes`].
    pub fn process_name(&self, world: &World) -> String {
        let name = match self.instance.as_str() {
            "" if self.has_place() => "herald-0".to_owned(),
            "" => world::host_name(),
            name => name.to_owned(),
        };
        world::process_name(&name, world)
    }

    /// Whether a role of this process reads the log in a group.
    pub fn has_place(&self) -> bool {
        self.roles.iter().any(|role| role.has_place())
    }

    /// This process's place among those with the same roles: the number at the end of its name.
    pub fn place(&self) -> Option<u32> {
        let digits = self.instance.bytes().rev().take_while(u8::is_ascii_digit).count();
        match self.instance.as_str() {
            "" => Some(0),
            name => name[name.len() - digits..].parse().ok().filter(|place| *place < roles::MAX_PLACE),
        }
    }

    /// The address of health and metrics, if they have one of their own; or what is wrong with it.
    pub fn ops_address(&self) -> Result<Option<SocketAddr>, String> {
        if self.ops_listen.is_empty() {
            return Ok(None);
        }
        let address = self.ops_listen.parse();
        address.map(Some).map_err(|_| {
            format!("ops_listen is {:?}; it must be an address and a port, such as 127.0.0.1:9090", self.ops_listen)
        })
    }

    /// Where certificate and key of the listeners are, if they speak TLS.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        let Tls { certificate_file, key_file } = &self.tls;
        (!certificate_file.is_empty()).then(|| TlsFiles { certificate: certificate_file.into(), key: key_file.into() })
    }

    /// The directory of embedded storage.
    pub fn data_directory(&self) -> Option<&Path> {
        self.storage.strip_prefix("embedded:").filter(|path| !path.is_empty()).map(Path::new)
    }
}

/// `HERALD_WORKER__MAX_ATTEMPTS=5` becomes `worker.max_attempts = 5`.
fn environment_layer(environment: impl IntoIterator<Item = (String, String)>) -> Table {
    let mut layer = Table::new();
    for (name, text) in environment {
        let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        // Tests, tools and the client commands have variables of their own.
        let of_clients = matches!(path, "URL" | "KEY" | "TENANT" | "CA_FILE");
        if of_clients || path.starts_with("SIM_") || path.starts_with("LOG") || path.starts_with("TEST_") {
            continue;
        }
        let mut value: Value = match text.parse::<i64>() {
            Ok(number) => Value::Integer(number),
            Err(_) => text.parse::<bool>().map_or(Value::String(text), Value::Boolean),
        };
        for key in path.to_lowercase().rsplit("__") {
            value = Value::Table(Table::from_iter([(key.to_owned(), value)]));
        }
        if let Value::Table(table) = value {
            merge(&mut layer, table);
        }
    }
    layer
}

/// Lays one table over another.
fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)]) -> anyhow::Result<Config> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("herald.toml");
        std::fs::write(&path, file)?;
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&path), environment, Table::new())
    }

    #[test]
    fn layers_lie_over_each_other() {
        let config = load(
            "region = \"eu\"\n[worker]\nmax_attempts = 3\ncommit_interval_ms = 7",
            &[("HERALD_WORKER__MAX_ATTEMPTS", "9"), ("HERALD_REGION", "us"), ("PATH", "/bin")],
        )
        .unwrap();
        assert_eq!(
            (config.region.as_str(), config.worker.max_attempts, config.worker.commit_interval_ms),
            ("us", 9, 7)
        );
    }

    #[test]
    fn shared_servers_have_defaults_of_their_own() {
        let shared = "log = \"kafka://a/b\"\nstore = \"cql://a/b\"\ncache = \"redis://a\"\n";
        let of = |config: Config| (config.worker.in_doubt_instances, config.ledger.flush_interval_ms);
        assert_eq!(of(load("", &[]).unwrap()), (1_024, 20));
        assert_eq!(of(load("log = \"\"", &[]).unwrap()), (1_024, 20));
        assert_eq!(of(load(shared, &[]).unwrap()), (4_096, 250));
        let set = format!("{shared}[ledger]\nflush_interval_ms = 7");
        assert_eq!(of(load(&set, &[("HERALD_WORKER__IN_DOUBT_INSTANCES", "9")]).unwrap()), (9, 7));
    }

    #[test]
    fn what_is_unknown_or_wrong_is_told() {
        let told = |file: &str| load(file, &[]).unwrap_err().to_string();
        assert!(told("[worker]\nmax_atempts = 3").contains("max_atempts"));
        assert!(told("[worker]\nmax_attempts = \"many\"").contains("worker.max_attempts: invalid type"));
        assert!(told("worker = 1").contains("worker: invalid type"));
        let zeros = told("[worker]\nwindow_instances = 0\n[orchestrator]\npoll_records = 0");
        for setting in ["worker.window_instances", "orchestrator.poll_records"] {
            assert!(zeros.contains(&format!("{setting} must be at least 1")), "{zeros}");
        }
        let kafka = "log = \"kafka://a/b\"\nstore = \"cql://a/b\"\ncache = \"redis://a\"\n";
        assert!(told("log = \"kafka://a/b\"").contains("What is missing: store, cache"));
        assert!(told("roles = [\"worker\"]").contains("only on servers that they share"));
        assert!(told("instances = 2").contains("a data directory serves one process"));
        assert!(told(&format!("{kafka}roles = [\"worker\"]")).contains("such as worker-0 and worker-1"));
        assert!(told(&format!("{kafka}instance = \"worker\"")).contains("must end with a number"));
        assert!(told("roles = [\"wroker\"]").contains("wroker"));
        let worker = load(&format!("{kafka}roles = [\"worker\"]\ninstance = \"worker-12\""), &[]).unwrap();
        assert_eq!(worker.place(), Some(12));
        load(&format!("{kafka}roles = [\"gateway\"]"), &[]).expect("a gateway has no place");
        assert!(told("ops_listen = \"9090\"").contains("such as 127.0.0.1:9090"));
        assert!(told("[tls]\nkey_file = \"k.pem\"").contains("must both be set"));
        let both = told("public_url = \"x\"\n[layout]\nshards = 0");
        assert!(both.contains("public_url") && both.contains("layout.shards"), "{both}");
    }
}
