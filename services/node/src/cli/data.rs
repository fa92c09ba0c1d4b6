//! `herald backup`, `restore` and `verify`: what keeps a data directory safe.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::{
    client::Connect,
    exit::Failure,
    output::{fields, print},
};
use crate::{
    backup::{BackupState, BackupView, take_offline},
    logging,
    verify::{Report, verify},
    world,
};

/// How often a backup that goes on is asked about.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Copies the data directory of a running process, as of one instant, into a directory on its machine (operators); with
/// --data, that of no process.
#[derive(Debug, Args)]
pub struct Backup {
    /// A new or an empty directory; what an interrupted backup left in it is replaced.
    #[arg(long)]
    to: PathBuf,
    /// Backs up this data directory, which no process may be using, instead of asking a running process.
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

impl Backup {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub async fn run(self) -> Result<(), Failure> {
        let to = std::path::absolute(&self.to).context("--to cannot be meant")?;
        let backup = match &self.data {
            Some(data) => {
                logging::start("warn");
                let manifest = take_offline(data, &to, &world::system())?;
                json!({ "directory": to, "state": BackupState::Complete, "bytes": manifest.bytes(), "rows": manifest.rows })
            }
            None => self.ask(&to.to_string_lossy()).await?,
        };
        print(self.connect.json, &backup, fields)
    }

    /// Asks a running process, and waits for the end.
    async fn ask(&self, to: &str) -> Result<Value, Failure> {
        let client = self.connect.operator()?;
        let mut backup = client.post("/v1/admin/backups", &json!({ "directory": to })).await?;
        loop {
            let view: BackupView =
                serde_json::from_value(backup.clone()).context("the server's answer cannot be read")?;
            if view.directory != to {
                return Err(anyhow::anyhow!("another backup was begun, into {}", view.directory).into());
            }
            match view.state {
                BackupState::Complete => return Ok(backup),
                BackupState::Failed => {
                    let why = view.error.unwrap_or_default();
                    return Err(anyhow::anyhow!("the backup was not completed: {why}").into());
                }
                BackupState::Running => tokio::time::sleep(POLL_INTERVAL).await,
            }
            backup = client.get("/v1/admin/backups").await?;
        }
    }
}

/// Makes a new data directory of a backup.
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup.
    #[arg(long)]
    from: PathBuf,
    /// Where the data directory is to be: nothing, an empty directory, or what an interrupted restore left.
    #[arg(long)]
    data: PathBuf,
    /// Prints JSON for programs.
    #[arg(long)]
    json: bool,
}

impl Restore {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub fn run(&self) -> Result<(), Failure> {
        logging::start("warn");
        let restored = herald_embedded::backup::restore(&self.from, &self.data, world::system().now_ms());
        let restored = restored.with_context(|| format!("{} was not restored", self.from.display()))?;
        let document = json!({
            "data": self.data,
            "taken_ms": restored.manifest.created_ms,
            "rows": restored.manifest.rows,
            "bytes": restored.manifest.bytes(),
            "log_epoch": restored.log_epoch,
        });
        print(self.json, &document, fields)
    }
}

/// Checks a data directory that no process uses: every checksum, offsets, rows, and the books. Exits with 8 where
/// something does not hold.
#[derive(Debug, Args)]
pub struct Verify {
    /// The data directory.
    #[arg(long)]
    data: PathBuf,
    /// Prints JSON for programs.
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it.
    pub fn run(&self) -> Result<(), Failure> {
        logging::start("error");
        let report = verify(&self.data).context("the data directory was not verified")?;
        let document = serde_json::to_value(&report).map_err(anyhow::Error::from)?;
        print(self.json, &document, |_| text(&report))?;
        match report.is_sound() {
            true => Ok(()),
            false => Err(Failure::NotProven(format!("{} does not hold what it must", self.data.display()))),
        }
    }
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "journal   {} segments, {} bytes, {} records\nstores    {} rows\nbooks     {} notifications, {} instances on their way\n",
        report.segments, report.journal_bytes, report.records, report.rows, report.notifications, report.in_flight
    );
    for fault in &report.faults {
        text.push_str(&format!("FAULT     {}: {}\n", fault.part, fault.what));
    }
    let unlisted = report.fault_count - report.faults.len() as u64;
    if unlisted > 0 {
        text.push_str(&format!("          and {unlisted} more\n"));
    }
    for part in &report.not_checked {
        text.push_str(&format!("UNCHECKED {part}\n"));
    }
    if report.is_sound() {
        text.push_str("everything is as it must be\n");
    }
    text
}
