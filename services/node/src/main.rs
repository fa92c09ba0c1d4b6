//! The `herald` binary: the command line.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use herald_node::{
    config::Config,
    demo, logging,
    node::{Mode, Node},
};
use toml::{Table, Value};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Herald: multi-tenant notification fanout.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs every role on embedded storage, on loopback, with a tenant, keys and a mailbox to try things with.
    Dev {
        /// Where data is kept.
        #[arg(long, default_value = "herald-data")]
        data: PathBuf,
        /// The address of HTTP and gRPC.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Hands mail to this server instead of the built-in mailbox, such as smtp://127.0.0.1:2525.
        #[arg(long)]
        smtp: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Runs with a configuration.
    Run {
        #[command(flatten)]
        settings: Settings,
    },
    /// Runs the main job on a social graph from start to end, in a directory of its own, and prints what happened.
    Demo {
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
        /// Prints the report as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Prints the effective configuration; --defaults prints the defaults with what they mean.
    Config {
        /// Prints the defaults with what they mean.
        #[arg(long)]
        defaults: bool,
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Args)]
struct Settings {
    /// A configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Sets a value, such as --set worker.max_attempts=5.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The configuration with what the command's own flags say on top.
    fn load(&self, flags: Vec<(&str, Value)>) -> anyhow::Result<Config> {
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

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("herald: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Dev { data, listen, smtp, settings } => {
            logging::start("info");
            anyhow::ensure!(
                listen.ip().is_loopback(),
                "herald dev has public keys and listens on loopback only; use herald run for anything else"
            );
            let mut flags = storage_flags(&data);
            flags.push(("listen", Value::String(listen.to_string())));
            flags.push(("public_url", Value::String(format!("http://{listen}"))));
            flags.extend(smtp.map(|url| ("email.url", Value::String(url))));
            let config = settings.load(flags)?;
            runtime.block_on(dev(config))?;
        }
        Command::Run { settings } => {
            logging::start("info");
            let config = settings.load(Vec::new())?;
            runtime.block_on(async { Node::start(config, Mode::Plain).await?.run_until_signal().await })?;
        }
        Command::Demo { users, seed, edges, smtp, json, settings } => {
            logging::start("warn");
            let directory = tempfile::Builder::new().prefix("herald-demo-").tempdir()?;
            let mut flags = storage_flags(&directory.path().join("data"));
            flags.push(("listen", Value::String("127.0.0.1:0".into())));
            flags.extend(smtp.map(|url| ("email.url", Value::String(url))));
            let options = demo::Options { edges, users, seed, json };
            let config = settings.load(flags)?;
            let proven = runtime.block_on(demo::run(config, &options))?;
            return Ok(if proven { ExitCode::SUCCESS } else { ExitCode::from(2) });
        }
        Command::Config { defaults: true, .. } => print!("{}", herald_node::config::DEFAULTS),
        Command::Config { defaults: false, settings } => {
            print!("{}", toml::to_string_pretty(&settings.load(Vec::new())?)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn storage_flags(data: &std::path::Path) -> Vec<(&'static str, Value)> {
    vec![("storage", Value::String(format!("embedded:{}", data.display())))]
}

async fn dev(config: Config) -> anyhow::Result<()> {
    let node = Node::start(config, Mode::Dev).await?;
    let address = node.address;
    println!("Herald runs on http://{address} (HTTP and gRPC).");
    println!("  tenant demo, key hk_dev_demo; operator key hk_dev_admin (they exist in herald dev only)");
    if let Some((_, smtp)) = &node.mailbox {
        println!("  mail it sends: http://{address}/mailbox (received at {smtp})");
    }
    println!("  health http://{address}/healthz, metrics http://{address}/metrics");
    println!("Try:");
    println!("  curl -X PUT http://{address}/v1/templates/hello -H 'Authorization: Bearer hk_dev_demo' \\");
    println!("    -H 'Content-Type: application/json' \\");
    println!(
        "    -d '{{\"channels\": {{\"in_app\": {{\"title\": \"Hello {{{{user.id}}}}\", \"body\": \"{{{{data.text}}}}\"}}}}}}'"
    );
    node.run_until_signal().await
}
