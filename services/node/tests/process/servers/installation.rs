//! Processes that share servers: a log, a keyspace and keys of a test's own on the servers that `scripts/test` starts.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use herald_distributed::{
    kafka::{KafkaConfig, KafkaLog},
    redis::{Redis, RedisConfig, fleet::RedisFleet},
};

use crate::{
    commands::herald_at,
    http::{self, Answer},
    kill::IN_DOUBT,
    support::{Client, PATIENCE, client_of},
};

const HERALD: &str = env!("CARGO_BIN_EXE_herald");

/// Parts of each sharded topic.
pub const SHARDS: u32 = 4;

/// What a test has of the servers.
pub struct Installation {
    /// How each process hears of it.
    settings: Vec<String>,
    /// A process that comes back is where it was.
    ports: Mutex<BTreeMap<String, u16>>,
    directory: tempfile::TempDir,
}

fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run `deploy/local/servers up`, then `source target/servers/env`")
    })
}

impl Installation {
    /// An empty one, with its schema and topics.
    pub fn new() -> Self {
        Self::on(&server("HERALD_TEST_KAFKA"), 1)
    }

    /// An empty one on three brokers, of which one may be away.
    pub fn on_three_brokers() -> Self {
        Self::on(&server("HERALD_TEST_KAFKA3"), 3)
    }

    fn on(brokers: &str, replicas: u32) -> Self {
        let name = format!("t{}", uuid::Uuid::now_v7().simple());
        let settings = vec![
            format!("log=kafka://{brokers}/{name}"),
            format!("store=cql://{}/{name}", server("HERALD_TEST_CQL")),
            format!("cache=redis://{}", server("HERALD_TEST_REDIS")),
            format!("redis.prefix={name}"),
            format!("kafka.replication_factor={replicas}"),
            format!("kafka.min_insync_replicas={}", replicas.div_ceil(2)),
            // What hangs after an outage is left behind within a test's patience.
            "kafka.commit_timeout_ms=10000".into(),
            // Less may be sent twice than by default, so that it is told apart from what must not be.
            format!("worker.in_doubt_instances={IN_DOUBT}"),
            "cql.replication={'class': 'SimpleStrategy', 'replication_factor': 1}".into(),
            format!("layout.shards={SHARDS}"),
            "layout.requests_partitions=2".into(),
            "layout.receipts_partitions=2".into(),
        ];
        let settings = settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect();
        Self::migrated(settings, tempfile::tempdir().unwrap())
    }

    /// An empty one on the ports with TLS and logins, as a configuration file has it. Cassandra's must have been started.
    pub fn secured() -> Self {
        let (name, secrets) = (format!("t{}", uuid::Uuid::now_v7().simple()), server("HERALD_TEST_SECURE"));
        let (kafka, cql, redis) =
            (server("HERALD_TEST_KAFKA_SECURE"), server("HERALD_TEST_CQL_SECURE"), server("HERALD_TEST_REDIS_SECURE"));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("herald.toml");
        let text = format!(
            r#"
            log = "kafka://{kafka}/{name}"
            store = "cql://{cql}/{name}"
            cache = "rediss://herald@{redis}"
            email.url = "null:"
            layout = {{ shards = 1, requests_partitions = 1, receipts_partitions = 1 }}

            [kafka]
            replication_factor = 1
            min_insync_replicas = 1
            security_protocol = "sasl_ssl"
            sasl_mechanism = "SCRAM-SHA-512"
            sasl_username = "herald"
            sasl_password_file = "{secrets}/password"
            ssl_ca_file = "{secrets}/ca.pem"

            [cql]
            replication = "{{'class': 'SimpleStrategy', 'replication_factor': 1}}"
            user = "cassandra"
            password_file = "{secrets}/cassandra.password"
            tls = true
            tls_ca_file = "{secrets}/ca.pem"

            [redis]
            prefix = "{name}"
            password_file = "{secrets}/password"
            ca_file = "{secrets}/ca.pem"
            "#
        );
        std::fs::write(&file, text).unwrap();
        Self::migrated(vec!["--config".into(), file.to_str().unwrap().into()], directory)
    }

    fn migrated(settings: Vec<String>, directory: tempfile::TempDir) -> Self {
        let installation = Self { settings, ports: Mutex::default(), directory };
        let migrated = installation.run(&["migrate"]);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        installation
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(HERALD);
        let (name, flags) = arguments.split_first().unwrap();
        command.arg(name).stdin(Stdio::null());
        command.args(&self.settings);
        // Last, so that they may set anew what all have.
        command.args(flags);
        command
    }

    /// What a setting of all processes is.
    fn setting(&self, name: &str) -> &str {
        let prefix = format!("{name}=");
        self.settings.iter().find_map(|setting| setting.strip_prefix(&prefix)).unwrap()
    }

    /// Its log, as who knows nothing of levels has it.
    pub async fn log(&self) -> KafkaLog {
        let config = KafkaConfig { replication_factor: 1, min_insync_replicas: 1, ..KafkaConfig::default() };
        KafkaLog::open(config.at(self.setting("log")).unwrap(), "local", None).await.unwrap()
    }

    /// What its processes report.
    pub async fn fleet(&self) -> RedisFleet {
        let config = RedisConfig { prefix: self.setting("redis.prefix").to_owned(), ..RedisConfig::default() };
        RedisFleet::new(Redis::connect(self.setting("cache"), &config).await.unwrap())
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts a process of the role that its name begins with, or of the two that take calls: `front-0`, `worker-1`. The
    /// front runs for development, so it has a tenant and keys to try things with.
    pub async fn start_role(&self, name: &str, settings: &[&str]) -> Running {
        let role = name.rsplit_once('-').unwrap().0;
        let mut arguments = match role {
            "front" => vec!["dev", "--set", "roles=[\"gateway\", \"control-plane\"]"],
            role => vec!["run", "--no-config", "--roles", role, "--instance", name],
        };
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        self.start(name, &arguments).await
    }

    /// Starts a process of each role, and so many of workers.
    pub async fn start_each_role(&self, workers: u32, settings: &[&str]) -> EachRole {
        let mut each = EachRole {
            front: self.start_role("front-0", settings).await,
            _pages: self.start_role("orchestrator-0", settings).await,
            _books: self.start_role("ledger-0", settings).await,
            workers: Vec::new(),
        };
        for number in 0..workers {
            each.workers.push(self.start_role(&format!("worker-{number}"), settings).await);
        }
        each
    }

    /// Starts a process that goes on, and waits until it is ready.
    pub async fn start(&self, name: &str, arguments: &[&str]) -> Running {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port = *self.ports.lock().unwrap().entry(name.to_owned()).or_insert_with(free);
        let log = self.directory.path().join(format!("{name}.log"));
        let output = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command(arguments);
        let child = command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        // Where its arguments say so, health is on a port of its own.
        let ops = arguments.iter().skip_while(|argument| **argument != "--ops-listen").nth(1);
        let ops_port = ops.map_or(port, |address| address.rsplit_once(':').unwrap().1.parse().unwrap());
        let mut running = Running { child, port, ops_port, log };
        running.await_ready().await;
        running
    }
}

/// A process of each role: `front-0`, `orchestrator-0`, `ledger-0`, and the workers from `worker-0` on.
pub struct EachRole {
    pub front: Running,
    pub workers: Vec<Running>,
    _pages: Running,
    _books: Running,
}

/// A process; killed when dropped.
pub struct Running {
    child: Child,
    pub port: u16,
    ops_port: u16,
    log: PathBuf,
}

impl Running {
    async fn await_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.readyz().await.is_none_or(|(status, _)| status != 200) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "it is not ready; its log is:\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until it is as wanted by what it says of itself.
    pub async fn says(&self, wanted: impl Fn(u16, &serde_json::Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.readyz().await;
            if said.as_ref().is_some_and(|(status, said)| wanted(*status, said)) {
                return;
            }
            assert!(Instant::now() < deadline, "it says {said:?}; its log is:\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What it says of itself, if it does within the three seconds that the probes of the Helm chart wait.
    pub async fn readyz(&self) -> Option<(u16, serde_json::Value)> {
        let output = Command::new("curl")
            .args(["-s", "-m", "3", "-w", "\n%{http_code}", &format!("http://127.0.0.1:{}/readyz", self.ops_port)])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n')?;
        Some((status.parse().unwrap(), serde_json::from_str(body).ok()?))
    }

    /// Calls its API over HTTP with the key of the demo tenant.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &serde_json::Value) -> Answer {
        let headers = [&[("Authorization", "Bearer hk_dev_demo")], headers].concat();
        http::send(self.port, "POST", path, &headers, Some(body)).await
    }

    /// Runs a client command on it with the operator's key.
    pub fn operator(&self, arguments: &[&str]) -> Output {
        herald_at(self.port, "hk_dev_admin", arguments)
    }

    /// A client of its API with the key of the demo tenant.
    pub fn client(&self) -> Client {
        client_of(self.port)
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and whether it ended well.
    pub fn terminate(mut self) -> bool {
        self.signal("TERM");
        self.child.wait().unwrap().success()
    }

    /// Waits until it has ended by itself.
    pub async fn ends(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end; its log is:\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let told = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status().unwrap();
        assert!(told.success(), "the process is not there");
    }

    /// What it has logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let text = self.logged();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Tells the script that has the servers something.
fn tell_servers(arguments: &[&str]) {
    let done = Command::new(server("HERALD_TEST_SERVERS")).args(arguments).status().unwrap();
    assert!(done.success(), "servers {} failed", arguments.join(" "));
}

/// The Cassandra that wants TLS and logins, which runs for the test that needs it alone.
pub struct SecureCassandra;

impl SecureCassandra {
    /// Starts it; it stops when dropped.
    pub fn start() -> Self {
        tell_servers(&["up", "cassandra-secure"]);
        Self
    }
}

impl Drop for SecureCassandra {
    fn drop(&mut self) {
        tell_servers(&["down", "cassandra-secure"]);
    }
}

/// The three brokers of a cluster, which run for the test that needs them alone.
pub struct ThreeBrokers;

impl ThreeBrokers {
    /// Starts them; they stop when dropped.
    pub fn start() -> Self {
        tell_servers(&["up", "kafka3"]);
        Self
    }

    /// Ends one of them, numbered from 1, and returns when it has gone.
    pub async fn end(number: u64, how: End) {
        let name = format!("kafka3-{number}");
        let told = tokio::task::spawn_blocking(move || match how {
            End::Stopped => tell_servers(&["down", &name]),
            End::Killed => tell_servers(&["signal", "KILL", &name]),
        });
        told.await.unwrap();
    }

    /// Starts one of them again, and returns when it serves.
    pub async fn start_again(number: u64) {
        tokio::task::spawn_blocking(move || tell_servers(&["up", &format!("kafka3-{number}")])).await.unwrap();
    }
}

impl Drop for ThreeBrokers {
    fn drop(&mut self) {
        tell_servers(&["down", "kafka3"]);
    }
}

/// How a broker ends.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// It hands over what it leads.
    Stopped,
    /// It says nothing to anybody.
    Killed,
}

/// One of the servers.
#[derive(Debug, Clone, Copy)]
pub enum Server {
    Kafka,
    /// All three brokers.
    ThreeBrokers,
    Cassandra,
    Redis,
}

impl Server {
    /// Takes it away from everybody until the answer is dropped; it loses nothing.
    pub fn away(self) -> Away {
        self.signal("STOP");
        Away(self)
    }

    fn signal(self, signal: &str) {
        let names: &[&str] = match self {
            Self::Kafka => &["kafka"],
            Self::ThreeBrokers => &["kafka3-1", "kafka3-2", "kafka3-3"],
            Self::Cassandra => &["cassandra"],
            Self::Redis => &["redis"],
        };
        tell_servers(&[&["signal", signal], names].concat());
    }
}

/// A server that is away.
pub struct Away(Server);

impl Drop for Away {
    fn drop(&mut self) {
        self.0.signal("CONT");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}
