//! The command line: the server's commands, and a client for everything that the API offers.
//!
//! One file a subject. Clients speak to the HTTP face only, so they work against any Herald, in one process or many.

mod audit;
mod client;
mod data;
mod dlq;
mod exit;
mod import;
mod lag;
mod manual;
mod notify;
mod output;
mod people;
mod serve;
mod steering;
mod templates;
mod tenants;
mod terms;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use exit::{Exit, Failure};
pub use manual::page;

/// Herald: multi-tenant notification fanout. `herald dev` is a server to try things with; `herald demo` shows it work.
#[derive(Debug, Parser)]
#[command(name = "herald", version, about, after_help = Exit::table())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(serve::Dev),
    Run(serve::Run),
    Demo(serve::Demo),
    Config(serve::ShowConfig),
    Notify(notify::Notify),
    Status(notify::Status),
    Receipts(notify::Receipts),
    Cancel(notify::Cancel),
    Template(templates::Template),
    Users(people::Users),
    Inbox(people::Inbox),
    Import(import::Import),
    Tenants(tenants::Tenants),
    Keys(tenants::Keys),
    Limits(steering::Limits),
    Switch(steering::Switch),
    Dlq(dlq::Dlq),
    Lag(lag::Lag),
    Audit(audit::Audit),
    Backup(data::Backup),
    Restore(data::Restore),
    Verify(data::Verify),
    Completions(manual::Completions),
    Man(manual::Man),
}

impl Cli {
    /// Runs the command and says why it failed, if it did.
    pub fn main() -> ExitCode {
        // Known before the command is: a wrong command line is answered by clap, with 2.
        let json = std::env::args_os().any(|argument| argument == "--json");
        let failure = match Self::parse().run() {
            Ok(()) => return Exit::Done.into(),
            Err(failure) => failure,
        };
        match (&failure, json) {
            (Failure::Closed, _) => {}
            (failure, true) => eprintln!("{}", failure.json()),
            (failure, false) => eprintln!("herald: {failure}"),
        }
        failure.exit().into()
    }

    fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.command.run())
    }
}

impl Command {
    async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Dev(command) => command.run().await,
            Self::Run(command) => command.run().await,
            Self::Demo(command) => command.run().await,
            Self::Config(command) => command.run(),
            Self::Notify(command) => command.run().await,
            Self::Status(command) => command.run().await,
            Self::Receipts(command) => command.run().await,
            Self::Cancel(command) => command.run().await,
            Self::Template(command) => command.run().await,
            Self::Users(command) => command.run().await,
            Self::Inbox(command) => command.run().await,
            Self::Import(command) => command.run().await,
            Self::Tenants(command) => command.run().await,
            Self::Keys(command) => command.run().await,
            Self::Limits(command) => command.run().await,
            Self::Switch(command) => command.run().await,
            Self::Dlq(command) => command.run().await,
            Self::Lag(command) => command.run().await,
            Self::Audit(command) => command.run().await,
            Self::Backup(command) => command.run().await,
            Self::Restore(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
        }
    }
}
