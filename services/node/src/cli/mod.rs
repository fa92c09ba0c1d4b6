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
mod providers;
mod serve;
mod servers;
mod steering;
mod templates;
mod tenants;
mod terms;
mod topics;
#[cfg(test)]
mod written;

use std::{ffi::OsString, process::ExitCode};

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};

use client::Connect;
pub use exit::{Exit, Failure};
pub use manual::page;

/// Herald: multi-tenant notification fanout. `herald dev` is a server to try things with; `herald demo` shows it work.
#[derive(Debug, Parser)]
#[command(name = "herald", version, about, after_help = Exit::table())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Here too, so that they may stand before the command; clap hands them down and back.
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(serve::Dev),
    Run(serve::Run),
    Demo(serve::Demo),
    Config(serve::ShowConfig),
    Migrate(servers::Migrate),
    FinishUpgrade(servers::FinishUpgrade),
    Topics(topics::Topics),
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
    Providers(providers::Providers),
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
        let (ended, json) = match Self::of_command_line() {
            Ok((cli, matches)) => {
                let json = cli.connect.json;
                (refuse_useless(&matches).and_then(|()| cli.run()), json)
            }
            Err(wrong) if wrong.use_stderr() && asks_for_json(std::env::args_os()) => (Err(misread(&wrong)), true),
            // What clap says for people, or the help that was asked for.
            Err(wrong) => wrong.exit(),
        };
        let Err(failure) = ended else { return Exit::Done.into() };
        match (&failure, json) {
            (Failure::Closed, _) => {}
            (failure, true) => eprintln!("{}", failure.json()),
            (failure, false) => eprintln!("herald: {failure}"),
        }
        failure.exit().into()
    }

    fn of_command_line() -> Result<(Self, ArgMatches), clap::Error> {
        let matches = command_line().try_get_matches()?;
        Ok((Self::from_arg_matches(&matches)?, matches))
    }

    fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.command.run())
    }
}

/// Whether a command line that cannot be read asks for JSON.
fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// What is wrong with a command line, without the usage, which is for people.
fn misread(wrong: &clap::Error) -> Failure {
    let said = wrong.render().to_string();
    let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|part| said.find(part)).min();
    let detail = &said[..end.unwrap_or(said.len())];
    Failure::Usage(detail.trim_start_matches("error: ").trim_end().to_owned())
}

/// Negative numbers are values everywhere, so that a wrong one is called that and not an unknown flag.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let taken = |argument: clap::Arg| match argument.get_action().takes_values() {
        true => argument.allow_negative_numbers(true),
        false => argument,
    };
    command.mut_args(taken).mut_subcommands(with_negative_numbers)
}

/// The command line. Commands that call no server do not show the flags of a connection.
fn command_line() -> clap::Command {
    let mut root = with_negative_numbers(Cli::command());
    let callers: Vec<String> = callers(&root).map(str::to_owned).collect();
    root.build();
    for command in root.get_subcommands_mut().filter(|command| !callers.iter().any(|name| name == command.get_name())) {
        let hidden = |flag: clap::Arg| {
            let hide = flag.get_help_heading() == Some(client::HEADING);
            if hide { flag.hide(true) } else { flag }
        };
        *command = std::mem::take(command).mut_args(hidden);
    }
    root
}

/// The commands that call a server have the flags of a connection for themselves.
fn callers(root: &clap::Command) -> impl Iterator<Item = &str> {
    let calls = |command: &&clap::Command| command.get_arguments().any(|argument| argument.get_id() == "url");
    root.get_subcommands().filter(calls).map(clap::Command::get_name)
}

/// Refuses flags of a connection for a command that calls no server.
fn refuse_useless(matches: &ArgMatches) -> Result<(), Failure> {
    let Some(name) = matches.subcommand_name() else { return Ok(()) };
    if callers(&Cli::command()).any(|caller| caller == name) {
        return Ok(());
    }
    let flags = Connect::augment_args(clap::Command::new("herald"));
    for flag in flags.get_arguments().filter(|flag| flag.get_id() != "json") {
        if matches.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine) {
            let flag = flag.get_long().unwrap_or_default();
            return Err(Failure::Usage(format!(
                "--{flag} is for commands that call a server; herald {name} calls none"
            )));
        }
    }
    Ok(())
}

impl Command {
    async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Dev(command) => command.run().await,
            Self::Run(command) => command.run().await,
            Self::Demo(command) => command.run().await,
            Self::Config(command) => command.run(),
            Self::Migrate(command) => command.run().await,
            Self::FinishUpgrade(command) => command.run().await,
            Self::Topics(command) => command.run(),
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
            Self::Providers(command) => command.run().await,
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
