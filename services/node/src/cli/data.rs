//! `herald backup`, `restore` and `verify`: what keeps a data directory safe.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use herald_embedded::backup::is_backup;
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::{
    client::Connect,
    exit::Failure,
    output::{cell, print},
};
use crate::{
    backup::{BackupState, BackupView, take_offline},
    logging,
    verify::{BackupReport, Fault, Report, verify, verify_backup},
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
        print(self.connect.json, &backup, |backup| {
            let took = backup["duration_ms"].as_u64().map_or_else(String::new, |ms| format!(", in {ms} ms"));
            let to = to.display();
            format!(
                "The backup in {to} is complete: {}{took}.\n\
                 Check it with herald verify --data {to}; herald restore --from {to} --data DIR makes a data directory of it.",
                size(backup)
            )
        })
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
        print(self.json, &document, |document| {
            let (data, taken) = (self.data.display(), time(restored.manifest.created_ms));
            format!(
                "{data} is what the backup of {taken} held: {}, in log epoch {}.\nCheck it with herald verify --data {data}.",
                size(document),
                cell(&document["log_epoch"])
            )
        })
    }
}

/// Checks a data directory that no process uses: every checksum, offsets, rows, the books, and whether a secrets.key in
/// it opens the credentials of providers; or a backup: that every file is there with its checksum. Exits with 8 where
/// something does not hold.
///
/// What is mended on start without a loss is no fault: one damaged half of journal.mark beside a whole journal, or a torn
/// end of the journal or of the stores' own (store/*.jnl) behind what was synced. The keys of secrets.key_file are kept
/// elsewhere, and are not looked at. A directory of an earlier release is brought to the format of this one, as a start
/// would.
#[derive(Debug, Args)]
pub struct Verify {
    /// The data directory, or the backup.
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
        let is_sound = match is_backup(&self.data) {
            true => {
                let report = verify_backup(&self.data).context("the backup was not verified")?;
                let document = json!({ "backup": serde_json::to_value(&report).map_err(anyhow::Error::from)? });
                print(self.json, &document, |_| backup_text(&report))?;
                report.faults.is_empty()
            }
            false => {
                let report = verify(&self.data).context("the data directory was not verified")?;
                let document = serde_json::to_value(&report).map_err(anyhow::Error::from)?;
                print(self.json, &document, |_| text(&report))?;
                report.is_sound()
            }
        };
        match is_sound {
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
    text.push_str(&faults(&report.faults));
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

fn backup_text(report: &BackupReport) -> String {
    let Some(taken_ms) = report.taken_ms else { return faults(&report.faults) };
    let held = match report.faults.is_empty() {
        true => "every file is there with its checksum; herald restore makes a data directory of it\n",
        false => "",
    };
    format!(
        "backup    of {}, taken by Herald {}\nfiles     {}, {}, {} rows\n{}{held}",
        time(taken_ms),
        report.herald_version,
        report.files,
        HumanBytes(report.bytes),
        HumanCount(report.rows),
        faults(&report.faults)
    )
}

fn faults(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("FAULT     {}: {}\n", fault.part, fault.what)).collect()
}

/// The `bytes` and `rows` of a document.
fn size(document: &Value) -> String {
    let number = |name: &str| document[name].as_u64().unwrap_or(0);
    format!("{}, {} rows", HumanBytes(number("bytes")), HumanCount(number("rows")))
}

/// A time as the other commands show it.
fn time(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| format!("{ms} ms since the epoch"), |at| at.to_string())
}
