//! What expires is deleted; where a directory is set, its receipts are exported first, a day a file.
//!
//! A file holds a JSON object a line, compressed with gzip. It appears whole, by a rename, and is on the disk before
//! anything of it is deleted. Whatever stops an export stops the deletion: nothing is lost, and the disk fills.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use anyhow::Context;
use flate2::{Compression, write::GzEncoder};
use herald_core::ports::ledger::ReceiptRow;
use herald_embedded::store::{
    Stores,
    expiry::{Export, ExportError},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// Names of a day that are tried.
const MOST_PARTS: u32 = 10_000;

/// What is counted.
#[derive(Debug, Default)]
pub struct ExportStats {
    /// Receipts in files that are safe.
    pub receipts: AtomicU64,
    /// Since when every export has failed, in milliseconds since the epoch; 0 while none does.
    pub failing_since_ms: AtomicU64,
}

/// Deletes what is too old.
#[derive(Clone)]
pub struct Expiry {
    stores: Stores,
    retention_ms: u64,
    /// Where receipts go before they are deleted; `None` for nowhere.
    directory: Option<PathBuf>,
    stopping: CancellationToken,
    /// What is counted.
    pub stats: Arc<ExportStats>,
}

impl Expiry {
    /// Keeps books and receipts for so many days.
    pub fn new(stores: &Stores, retention_days: u64, directory: Option<&Path>) -> Self {
        Self {
            stores: stores.clone(),
            retention_ms: retention_days * 86_400_000,
            directory: directory.map(Path::to_owned),
            stopping: CancellationToken::new(),
            stats: Arc::default(),
        }
    }

    /// An export under way is broken off when the process stops.
    pub fn until(self, stopping: CancellationToken) -> Self {
        Self { stopping, ..self }
    }

    /// One bounded step, or the export of one day; returns whether there may be more. Blocks on the disk.
    ///
    /// # Errors
    /// Where the disk or the store fails; the next step tries the same again.
    pub fn step(&self, now_ms: u64) -> anyhow::Result<bool> {
        // What is no receipt goes in any case.
        let others = self.stores.expire_others(now_ms)?;
        let Some(directory) = &self.directory else {
            return Ok(self.stores.ledger.expire(now_ms, self.retention_ms)? || others);
        };
        let exported = self.export(directory, now_ms);
        match &exported {
            Ok(_) => self.stats.failing_since_ms.store(0, Relaxed),
            Err(_) => {
                let _failing_already = self.stats.failing_since_ms.compare_exchange(0, now_ms, AcqRel, Relaxed);
            }
        }
        Ok(exported? || self.stores.ledger.expire_users_log(now_ms, self.retention_ms)? || others)
    }

    fn export(&self, directory: &Path, now_ms: u64) -> anyhow::Result<bool> {
        let ledger = &self.stores.ledger;
        let export = match (ledger.export()?, ledger.oldest_expired_day(now_ms, self.retention_ms)?) {
            (Some(export), _) => export,
            (None, None) => return Ok(false),
            (None, Some(day)) => {
                let part = free_part(directory, day)?;
                let export = Export { day, part, written: false };
                ledger.note_export(export)?;
                export
            }
        };
        if export.written {
            ledger.delete_exported(export.day)?;
            return Ok(true);
        }
        let path = directory.join(file_name(export.day, export.part));
        let receipts = self.write(&path, export.day).with_context(|| {
            format!("expiring receipts cannot be exported to {}; none of them is deleted", path.display())
        })?;
        ledger.note_export(Export { written: true, ..export })?;
        self.stats.receipts.fetch_add(receipts, Relaxed);
        tracing::info!(path = %path.display(), receipts, "expiring receipts were exported");
        Ok(true)
    }

    /// Writes a day's file, whole or not at all; returns how many receipts are in it.
    fn write(&self, path: &Path, day: u32) -> anyhow::Result<u64> {
        let new = path.with_extension("partial");
        let mut file = GzEncoder::new(BufWriter::new(File::create(&new)?), Compression::default());
        let mut receipts = 0;
        let written = self.stores.ledger.receipts_of_day(day, |row| {
            if self.stopping.is_cancelled() {
                return Err(io::Error::other("the process stops"));
            }
            receipts += 1;
            line(&row, &mut file)
        });
        let written = written.map_err(|error| match error {
            ExportError::Store(error) => anyhow::Error::from(error),
            ExportError::Receiver(error) => anyhow::Error::from(error),
        });
        let safe = written.and_then(|()| {
            file.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&new, path)?;
            sync_directory(path)
        });
        if safe.is_err() {
            // It is written anew in any case; on a full disk its room is wanted.
            let _gone_already = fs::remove_file(&new);
        }
        safe.map(|()| receipts)
    }
}

/// Writes a receipt as the API shows it, with its tenant.
fn line(row: &ReceiptRow, out: &mut impl Write) -> io::Result<()> {
    let text = herald_api::json::to_text(&herald_gateway::status::receipt(row))?;
    let mut value: Value = serde_json::from_slice(&text)?;
    value["tenant_id"] = row.shared.tenant.as_str().into();
    serde_json::to_writer(&mut *out, &value)?;
    out.write_all(b"\n")
}

fn sync_directory(path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().context("the file has no directory")?;
    Ok(File::open(directory)?.sync_all()?)
}

fn file_name(day: u32, part: u32) -> String {
    let date = jiff::civil::date(1970, 1, 1).saturating_add(jiff::Span::new().days(i64::from(day)));
    match part {
        1 => format!("receipts-{date}.jsonl.gz"),
        part => format!("receipts-{date}.{part}.jsonl.gz"),
    }
}

/// The first part of a day that has no file.
fn free_part(directory: &Path, day: u32) -> anyhow::Result<u32> {
    let is_free = |part: &u32| !directory.join(file_name(day, *part)).exists();
    (1..=MOST_PARTS).find(is_free).with_context(|| format!("{} is full of parts of one day", directory.display()))
}

#[cfg(test)]
mod tests;
