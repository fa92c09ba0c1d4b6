//! `herald-loadtest` measures the shipped binary from outside: it starts `herald` as a process of its own, speaks gRPC,
//! SMTP and WebSocket with it, reads its CPU time from the kernel, and proves the books after each run.

mod admission;
mod api;
mod cost;
mod fairness;
mod isolation;
mod latency;
mod memory;
mod process;
mod proof;
mod report;
mod sender;
mod servers;
mod sink;
mod sockets;
mod steering;
mod watch;
mod world;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{
    cost::Kind,
    process::Binary,
    report::{Refused, Report},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of a run whose generator could not keep to its schedule: the figures would be the generator's.
const GENERATOR_TOO_SLOW: u8 = 3;

/// Measures Herald from outside. Every run has a fresh process and data directory, with fsync on; or with --servers a fresh
/// log, keyspace and keys on Kafka, Cassandra and Redis.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What all measurements share.
#[derive(Args, Clone)]
struct Common {
    #[command(flatten)]
    binary: Binary,
    /// Tenants, each with a key, a template and users of its own.
    #[arg(long, global = true, default_value_t = 50)]
    tenants: usize,
    /// Rounds; the table shows their median.
    #[arg(long, global = true, default_value_t = 3)]
    rounds: usize,
    /// Seed of sizes and arrivals.
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// Instances that may be under way before the sender waits, so that nothing has to move to overflow.
    #[arg(long, global = true, default_value_t = 60_000)]
    window: u64,
    /// Prints JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// CPU per delivered instance with a mail channel that sends nothing: in total, without the ledger, and the ledger.
    Cost(cost::Load),
    /// CPU per mail handed to an SMTP server in this process.
    Mail(cost::Load),
    /// CPU per item that is stored in an inbox and arrives at a WebSocket.
    Live {
        #[command(flatten)]
        load: cost::Load,
        /// Sockets, divided over the tenants; every user has one.
        #[arg(long, default_value_t = 2_000)]
        sockets: usize,
    },
    /// CPU per accepted event of about 1 kB: unary calls, batches of 100, a stream.
    Admission {
        /// Events of each kind of call.
        #[arg(long, default_value_t = 100_000)]
        events: u64,
    },
    /// Latency of an open loop: Poisson arrivals, from the intended time of the call to the mail server.
    Latency(latency::Load),
    /// What one tenant's spike does to another's messages, and the shares of equals; with fairness and without.
    Fairness(fairness::Load),
    /// What a mail server that hangs, refuses or throttles does to another tenant's in-app messages.
    Isolation(isolation::Load),
    /// Peak memory while one notification goes to everyone.
    Memory(memory::Load),
    /// How soon a switch and a cancel stop a notification to everyone, seen from a mail server that is fast or slow.
    Steering(steering::Load),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, common } = Cli::parse();
    match run(command, &common).await {
        Ok(report) => {
            report.print(common.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("herald-loadtest: {error:#}");
            if error.is::<Refused>() { ExitCode::from(GENERATOR_TOO_SLOW) } else { ExitCode::FAILURE }
        }
    }
}

async fn run(command: Command, common: &Common) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for round in 1..=common.rounds {
        eprintln!("round {round} of {}", common.rounds);
        match &command {
            Command::Cost(load) => cost::measure(common, load, Kind::Null, &mut report).await?,
            Command::Mail(load) => cost::measure(common, load, Kind::Mail, &mut report).await?,
            Command::Live { load, sockets } => {
                let load = load.with_users(sockets.div_ceil(common.tenants));
                cost::measure(common, &load, Kind::Live, &mut report).await?;
            }
            Command::Admission { events } => admission::run(common, *events, &mut report).await?,
            Command::Latency(load) => latency::run(common, load, &mut report).await?,
            Command::Fairness(load) => fairness::run(common, load, &mut report).await?,
            Command::Isolation(load) => isolation::run(common, load, &mut report).await?,
            Command::Memory(load) => memory::run(common, load, &mut report).await?,
            Command::Steering(load) => steering::run(common, load, &mut report).await?,
        }
    }
    Ok(report)
}
