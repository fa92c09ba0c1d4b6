//! `herald import`: users and edges from files.
//!
//! Lines become batches, which are sent several at once and noted as done in the order of the file. An import that was
//! killed goes on behind what was noted; what was sent and not noted is sent again, which changes nothing.

mod lines;
mod rows;
mod sender;
mod state;

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    io::{BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use self::{
    lines::{Lines, MAX_LINE_BYTES},
    rows::{Format, Reader, What},
    sender::{Batch, Sent, send},
    state::{State, with_suffix},
};
use super::{
    client::{Client, Connect},
    exit::Failure,
    output::{self, print},
};

/// A batch is closed at about this many bytes, far below what the server takes.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// How many different users are remembered before all that is on its way is waited for.
const MAX_REMEMBERED_USERS: usize = 200_000;

/// Imports people from files. Running it again does no harm; after a kill it goes on where it was.
#[derive(Debug, Args)]
pub struct Import {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Profiles, each in place of the one before. CSV columns: user_id, locale, time_zone, email, attributes.NAME,
    /// attributes and endpoints (JSON). JSON lines: what PUT /v1/users/{user_id} takes, with the user_id.
    Users(Source),
    /// Who follows whom: follower and followee.
    Edges(Source),
}

#[derive(Debug, Args)]
struct Source {
    /// The file.
    file: PathBuf,
    /// How it is written; by its name unless given (.csv, .jsonl, .ndjson).
    #[arg(long)]
    format: Option<Format>,
    /// Where refused lines are reported, with number and reason; FILE.refused.jsonl unless given.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Begins anew although an import of this file was interrupted.
    #[arg(long)]
    restart: bool,
    /// Batches on their way at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Lines of a batch.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    batch: u16,
}

impl Import {
    /// Runs the command.
    ///
    /// # Errors
    /// As the table of exit codes has it; `Partly` where lines were refused.
    pub async fn run(self) -> Result<(), Failure> {
        let (what, from) = match self.action {
            Action::Users(from) => (What::Users, from),
            Action::Edges(from) => (What::Edges, from),
        };
        let client = self.connect.client()?;
        let report = from.report.clone().unwrap_or_else(|| with_suffix(&from.file, ".refused.jsonl"));
        if is_same_file(&from.file, &report) {
            let clash = "the report would be written over the file itself; name another file with --report";
            return Err(Failure::Usage(clash.into()));
        }
        let to = format!("{} {}", self.connect.url, self.connect.tenant.as_deref().unwrap_or_default());
        let mut state = State::open(&from.file, &report, identity(what, &from.file, &to)?)?;
        if from.restart {
            state.reset();
        }
        let from_line = state.progress.line;
        let json = self.connect.json;
        if from_line > 0 && !json {
            eprintln!(
                "An import of this file was interrupted; it goes on behind line {from_line} (--restart begins anew)."
            );
        }
        let begun = Instant::now();
        let mut batches = Batches::open(what, &from, state.progress.line, state.progress.offset)?;
        let bar = output::progress(batches.bytes, json, "bytes");
        let result = transfer(&client, what, &mut batches, &mut state, from.parallel.into(), &bar).await;
        bar.finish_and_clear();
        if let Err(failure) = result {
            state.save()?;
            eprintln!("{} lines are stored; run the same command again to go on.", state.progress.imported);
            return Err(failure);
        }
        let progress = state.finish()?;
        let seconds = begun.elapsed().as_secs_f64();
        let document = json!({
            "imported": progress.imported, "refused": progress.refused, "lines": progress.line,
            "resumed_behind_line": from_line, "seconds": seconds,
            "report": (progress.refused > 0).then(|| report.display().to_string()),
        });
        print(json, &document, |_| summary(progress.line - from_line, progress.imported, progress.refused, seconds))?;
        match progress.refused {
            0 => Ok(()),
            count => Err(Failure::Partly(format!("{count} lines were refused; {} says why", report.display()))),
        }
    }
}

fn summary(lines: u64, imported: u64, refused: u64, seconds: f64) -> String {
    let rate = lines as f64 / seconds.max(0.001);
    format!("imported  {imported}\nrefused   {refused}\nseconds   {seconds:.1} ({rate:.0} lines a second)")
}

/// Whether two paths lead to one file that is there.
fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// What an import is: another file, or one that has changed, does not go on where this one was.
fn identity(what: What, file: &Path, to: &str) -> Result<String, Failure> {
    let unreadable = || format!("{} cannot be read", file.display());
    let metadata = std::fs::metadata(file).with_context(unreadable)?;
    if !metadata.is_file() {
        let why = "is no regular file, and an import goes on in its file after a kill";
        return Err(Failure::Usage(format!("{} {why}; write it to a file first", file.display())));
    }
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!("{what:?} {} {:?} {to}", metadata.len(), modified.map(|at| at.as_nanos())))
}

/// Sends everything, several batches at once, and notes them in the order of the file.
async fn transfer(
    client: &Client,
    what: What,
    batches: &mut Batches,
    state: &mut State,
    parallel: usize,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut under_way: VecDeque<JoinHandle<Result<Sent, Failure>>> = VecDeque::new();
    while let Some(batch) = batches.next_batch()? {
        while under_way.len() >= parallel || (batch.waits && !under_way.is_empty()) {
            note(under_way.pop_front(), state, bar).await?;
        }
        under_way.push_back(tokio::spawn(send(client.clone(), what, batch)));
    }
    while !under_way.is_empty() {
        note(under_way.pop_front(), state, bar).await?;
    }
    Ok(())
}

async fn note(
    sent: Option<JoinHandle<Result<Sent, Failure>>>,
    state: &mut State,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let Some(sent) = sent else { return Ok(()) };
    let sent = sent.await.context("a task failed")??;
    for (line, reason) in &sent.refused {
        state.refuse(*line, reason)?;
    }
    let progress = &mut state.progress;
    (progress.line, progress.offset) = (sent.line, sent.offset);
    progress.imported += sent.imported;
    bar.set_position(sent.offset);
    bar.set_message(format!("{} imported, {} refused", progress.imported, progress.refused));
    Ok(state.save()?)
}

/// Batches of a file.
struct Batches {
    lines: Lines<BufReader<File>>,
    reader: Reader,
    what: What,
    batch_lines: usize,
    /// The file's length.
    bytes: u64,
    /// Users of the batches that may be on their way.
    users: HashSet<String>,
    /// The line that closed the batch before, since what it says must wait for it.
    held: Option<(lines::Line, Value)>,
    /// Whether the next batch waits for all before it.
    waits: bool,
}

impl Batches {
    fn open(what: What, from: &Source, line: u64, offset: u64) -> Result<Self, Failure> {
        let unreadable = || format!("{} cannot be read", from.file.display());
        let format = from.format.map_or_else(|| format_of(&from.file), Ok)?;
        let mut file = File::open(&from.file).with_context(unreadable)?;
        let bytes = file.metadata().with_context(unreadable)?.len();
        let mut lines = Lines::after(BufReader::new(file.try_clone().with_context(unreadable)?), 0, 0);
        let reader = match format {
            Format::Jsonl => Reader::Jsonl(what),
            Format::Csv => {
                let header = lines.next_line().with_context(unreadable)?.and_then(|line| line.bytes);
                Reader::csv(what, &header.unwrap_or_default())?
            }
        };
        if line > 0 || format == Format::Jsonl {
            file.seek(SeekFrom::Start(offset)).with_context(unreadable)?;
            lines = Lines::after(BufReader::new(file), line, offset);
        }
        let (users, batch_lines) = (HashSet::new(), from.batch.into());
        Ok(Self { lines, reader, what, batch_lines, bytes, users, held: None, waits: false })
    }

    /// The next lines; `None` at the end.
    fn next_batch(&mut self) -> Result<Option<Batch>, Failure> {
        let mut batch = Batch { waits: std::mem::take(&mut self.waits), ..Batch::default() };
        let mut bytes = 0;
        if let Some((line, row)) = self.held.take() {
            (batch.line, batch.offset) = (line.number, line.end);
            self.users.insert(user_of(&row));
            batch.rows.push((line.number, row));
        }
        while batch.rows.len() < self.batch_lines && bytes < MAX_BATCH_BYTES {
            let Some(line) = self.lines.next_line().context("the file cannot be read")? else { break };
            bytes += line.bytes.as_ref().map_or(0, Vec::len);
            let read = match &line.bytes {
                None => Err(format!("it is longer than {MAX_LINE_BYTES} bytes")),
                Some(text) if text.iter().all(u8::is_ascii_whitespace) => {
                    (batch.line, batch.offset) = (line.number, line.end);
                    continue;
                }
                Some(text) => self.reader.read(text),
            };
            match read {
                Ok(row) if self.must_wait(&row) => {
                    self.users.clear();
                    if batch.line > 0 {
                        self.held = Some((line, row));
                        self.waits = true;
                        break;
                    }
                    batch.waits = true;
                    self.users.insert(user_of(&row));
                    batch.rows.push((line.number, row));
                }
                Ok(row) => batch.rows.push((line.number, row)),
                Err(reason) => batch.refused.push((line.number, reason)),
            }
            (batch.line, batch.offset) = (line.number, line.end);
            // Garbage fills a batch too, so that it is noted.
            if batch.refused.len() >= self.batch_lines {
                break;
            }
        }
        Ok((batch.line > 0).then_some(batch))
    }

    /// Whether a row must be stored after all before it: the later line of a user holds.
    fn must_wait(&mut self, row: &Value) -> bool {
        self.what == What::Users && (self.users.len() >= MAX_REMEMBERED_USERS || !self.users.insert(user_of(row)))
    }
}

fn user_of(row: &Value) -> String {
    row["user_id"].as_str().unwrap_or_default().to_owned()
}

fn format_of(file: &Path) -> Result<Format, Failure> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Ok(Format::Csv),
        Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
        _ => Err(Failure::Usage(format!("say how {} is written: --format csv or --format jsonl", file.display()))),
    }
}
