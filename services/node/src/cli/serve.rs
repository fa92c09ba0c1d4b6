//! `herald dev`, `run`, `demo` and `config`: the commands that are a server, or print how one would be set.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Args;
use toml::{Table, Value};

use super::{exit::Failure, output::say};
use crate::{
    config::{Config, DEFAULTS},
    demo, logging,
    node::{Mode, Node},
};

/// Where settings come from: defaults, a file, the environment (HERALD_WORKER__MAX_ATTEMPTS=5), flags.
#[derive(Debug, Args)]
pub struct Settings {
    /// A configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Sets a value, such as --set worker.max_attempts=5.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The configuration with what the command's own flags say on top.
    pub(super) fn load(&self, flags: Vec<(&str, Value)>) -> anyhow::Result<Config> {
        let mut table = Table::new();
        for text in &self.set {
            let (key, value) =
                text.split_once('=').ok_or_else(|| anyhow::anyhow!("--set {text:?} is not KEY=VALUE"))?;
            let value = format!("x = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("x"));
            insert(&mut table, key, value.unwrap_or_else(|| Value::String(text[key.len() + 1..].to_owned())))?;
        }
        for (key, value) in flags {
            insert(&mut table, key, value)?;
        }
        Config::load(self.config.as_deref(), std::env::vars(), table)
    }
}

/// Puts a value under a dotted key.
fn insert(table: &mut Table, key: &str, value: Value) -> anyhow::Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let below = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            let below = below.as_table_mut().ok_or_else(|| anyhow::anyhow!("{first} is set twice"))?;
            insert(below, rest, value)
        }
    }
}

/// Runs every role on embedded storage, on loopback, with a tenant, keys and a mailbox to try things with.
#[derive(Debug, Args)]
pub struct Dev {
    /// Where data is kept.
    #[arg(long, default_value = "herald-data")]
    data: PathBuf,
    /// The address of HTTP and gRPC.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// An address of their own for /healthz, /readyz and /metrics.
    #[arg(long)]
    ops_listen: Option<SocketAddr>,
    /// Hands mail to this server instead of the built-in mailbox, such as smtp://127.0.0.1:2525.
    #[arg(long)]
    smtp: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

impl Dev {
    /// Runs until a signal.
    ///
    /// # Errors
    /// If it cannot start, or something failed while it ran.
    pub async fn run(self) -> Result<(), Failure> {
        logging::start("info");
        if !self.listen.ip().is_loopback() {
            let refused = "herald dev has public keys and listens on loopback only; use herald run for anything else";
            return Err(Failure::Usage(refused.into()));
        }
        let mut flags = storage_flags(&self.data);
        flags.push(("listen", Value::String(self.listen.to_string())));
        flags.push(("public_url", Value::String(format!("http://{}", self.listen))));
        flags.extend(self.ops_listen.map(|address| ("ops_listen", Value::String(address.to_string()))));
        flags.extend(self.smtp.map(|url| ("email.url", Value::String(url))));
        let node = Node::start(self.settings.load(flags)?, Mode::Dev).await?;
        say(&welcome(&node))?;
        Ok(node.run_until_signal().await?)
    }
}

/// What a newcomer needs: addresses, keys, and calls that work as they are.
fn welcome(node: &Node) -> String {
    let at = format!("http://{}", node.address);
    let ops = format!("http://{}", node.ops_address);
    let mail = node
        .mailbox
        .as_ref()
        .map_or_else(String::new, |(_, smtp)| format!("  mail it sends  {at}/mailbox (received at smtp://{smtp})\n"));
    format!(
        r#"Herald runs on {at} (HTTP and gRPC on the same port).
  tenant         demo, key hk_dev_demo
  operator       key hk_dev_admin (both exist in herald dev only)
{mail}  health         {ops}/healthz, {ops}/readyz; metrics {ops}/metrics

Send a first notification, from another terminal:

  curl -sS -X PUT {at}/v1/templates/hello -H 'Authorization: Bearer hk_dev_demo' -H 'Content-Type: application/json' \
    -d '{{"channels": {{"in_app": {{"title": "Hello", "body": "{{{{data.text}}}}"}}}}}}'
  curl -sS -X PUT {at}/v1/users/ada -H 'Authorization: Bearer hk_dev_demo' -H 'Content-Type: application/json' -d '{{}}'
  curl -sS {at}/v1/notify -H 'Authorization: Bearer hk_dev_demo' -H 'Content-Type: application/json' \
    -d '{{"template_id": "hello", "audience": {{"users": ["ada"]}}, "data": {{"text": "It works."}}}}'
  curl -sS {at}/v1/users/ada/inbox -H 'Authorization: Bearer hk_dev_demo'

Or with this program: export HERALD_URL={at} HERALD_KEY=hk_dev_demo; herald notify --help"#
    )
}

/// Runs with a configuration: all roles, or some of them on servers that other processes share.
#[derive(Debug, Args)]
pub struct Run {
    /// What runs in this process, such as gateway,control-plane; all roles unless said.
    #[arg(long, value_delimiter = ',', value_name = "ROLE")]
    roles: Vec<String>,
    /// This process's name among those with the same roles, such as worker-0; the number at its end is its place.
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// The address of HTTP and gRPC.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// An address of their own for /healthz, /readyz and /metrics.
    #[arg(long)]
    ops_listen: Option<SocketAddr>,
    /// Runs without a configuration file, on the defaults, the environment and flags alone.
    #[arg(long, conflicts_with = "config")]
    no_config: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Run {
    /// Nobody runs on the defaults without having said so.
    ///
    /// # Errors
    /// If there is neither a configuration file nor `--no-config`.
    pub(super) fn refuse_without_settings(&self) -> Result<(), Failure> {
        if self.settings.config.is_some() || self.no_config {
            return Ok(());
        }
        let missing = "herald run needs --config FILE (herald config --defaults prints one to begin with), or \
                       --no-config to run on the environment and flags alone; to try Herald, use herald dev";
        Err(Failure::Usage(missing.into()))
    }

    /// Runs until a signal.
    ///
    /// # Errors
    /// If it cannot start, or something failed while it ran.
    pub async fn run(self) -> Result<(), Failure> {
        self.refuse_without_settings()?;
        logging::start("info");
        let roles = (!self.roles.is_empty()).then(|| Value::Array(self.roles.into_iter().map(Value::String).collect()));
        let flags = [
            ("roles", roles),
            ("instance", self.instance.map(Value::String)),
            ("listen", self.listen.map(|address| Value::String(address.to_string()))),
            ("ops_listen", self.ops_listen.map(|address| Value::String(address.to_string()))),
        ];
        let flags = flags.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let config = self.settings.load(flags.collect())?;
        Ok(Node::start(config, Mode::Plain).await?.run_until_signal().await?)
    }
}

/// Runs the main job on a social graph from start to end, in a directory of its own, and prints what happened.
#[derive(Debug, Args)]
pub struct Demo {
    /// Users of the generated graph.
    #[arg(long, default_value_t = 2_000)]
    users: u32,
    /// Seed of the generated graph.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A file with an edge "A B" a line instead of a generated graph.
    #[arg(long)]
    edges: Option<PathBuf>,
    /// Hands mail to this server instead of the built-in mailbox; null: sends nothing.
    #[arg(long)]
    smtp: Option<String>,
    /// Sends to this gateway too, such as http://127.0.0.1:8081: of the same installation, where roles run as processes.
    #[arg(long, value_name = "URL")]
    gateway: Vec<String>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Demo {
    /// Runs the demo.
    ///
    /// # Errors
    /// If it cannot run; `NotProven` if the books are not proven.
    pub async fn run(self) -> Result<(), Failure> {
        logging::start("warn");
        let directory = tempfile::Builder::new().prefix("herald-demo-").tempdir();
        let directory = directory.context("a directory for the demo cannot be made")?;
        let mut flags = storage_flags(&directory.path().join("data"));
        flags.push(("listen", Value::String("127.0.0.1:0".into())));
        flags.extend(self.smtp.map(|url| ("email.url", Value::String(url))));
        let options = demo::Options {
            edges: self.edges,
            users: self.users,
            seed: self.seed,
            gateways: self.gateway,
            json: self.json,
        };
        match demo::run(self.settings.load(flags)?, &options).await? {
            true => Ok(()),
            false => Err(Failure::NotProven("the books are not proven; the report says where".into())),
        }
    }
}

/// Prints the effective configuration; --defaults prints the defaults with what they mean.
#[derive(Debug, Args)]
pub struct ShowConfig {
    /// Prints the defaults with what they mean.
    #[arg(long)]
    defaults: bool,
    /// Prints JSON for programs.
    #[arg(long, conflicts_with = "defaults")]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl ShowConfig {
    /// Prints.
    ///
    /// # Errors
    /// If the configuration is not valid.
    pub fn run(&self) -> Result<(), Failure> {
        if self.defaults {
            return say(DEFAULTS);
        }
        let config = self.settings.load(Vec::new())?;
        match self.json {
            true => say(&serde_json::to_string_pretty(&config).map_err(anyhow::Error::from)?),
            false => say(&toml::to_string_pretty(&config).map_err(anyhow::Error::from)?),
        }
    }
}

fn storage_flags(data: &std::path::Path) -> Vec<(&'static str, Value)> {
    vec![("storage", Value::String(format!("embedded:{}", data.display())))]
}
