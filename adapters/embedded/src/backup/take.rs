//! Takes a backup.

use super::{
    BackupError, BackupFile, FORMAT_VERSION, HARMLESS_NAME, MANIFEST_NAME, Manifest, PARTIAL_NAME,
    files::{STEP_BYTES, Target, sealed},
    rows,
};
use crate::{
    data_dir::Description,
    disk::Disk,
    kv::FjallKv,
    log::{EmbeddedLog, JournalSnapshot, format},
};

/// What is backed up.
pub struct Source<'a> {
    /// The log, open.
    pub log: &'a EmbeddedLog,
    /// The stores, open.
    pub stores: &'a FjallKv,
    /// What the data directory is.
    pub data: &'a Description,
}

/// Copies a data directory that is in use into a directory of its own. What a broken-off backup left there is replaced;
/// anything else that is there is refused. At least `reserve_bytes` stay free on the disk.
///
/// This blocks for as long as the copy takes, but nobody who uses the data waits for it.
pub fn take(source: &Source<'_>, to: &dyn Disk, reserve_bytes: u64, now_ms: u64) -> Result<Manifest, BackupError> {
    prepare(to)?;
    let target = Target { disk: to, reserve_bytes };
    let taken = copy(source, &target, now_ms);
    if taken.is_err() {
        // A full disk is given its room back.
        if let Err(error) = clear(to).and_then(|()| remove(to, PARTIAL_NAME)) {
            tracing::warn!(%error, "what was written of a backup that failed could not be removed");
        }
    }
    taken
}

fn copy(source: &Source<'_>, target: &Target<'_>, now_ms: u64) -> Result<Manifest, BackupError> {
    let (journal, rows) = source.log.snapshot(|| source.stores.snapshot())?;
    let mut files = Vec::new();
    for (name, length) in journal.files() {
        files.push(copy_segment(&journal, name, length, target)?);
    }
    let (row_files, count) = rows::write(rows.rows(), target)?;
    files.extend(row_files);
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        herald_version: env!("CARGO_PKG_VERSION").to_owned(),
        created_ms: now_ms,
        data: source.data.clone(),
        journal_end: journal.end(),
        store_flush: journal.store_flush(),
        rows: count,
        files,
    };
    complete(target.disk, &manifest)?;
    Ok(manifest)
}

fn copy_segment(
    journal: &JournalSnapshot,
    name: String,
    length: u64,
    target: &Target<'_>,
) -> Result<BackupFile, BackupError> {
    let reading = |e| BackupError::io(format!("read {name}"), e);
    let file = journal.open(&name).map_err(reading)?;
    let mut copy = target.create(name.clone())?;
    let mut buffer = vec![0; STEP_BYTES];
    while copy.bytes < length {
        let step = (length - copy.bytes).min(STEP_BYTES as u64) as usize;
        file.read_at(copy.bytes, &mut buffer[..step]).map_err(reading)?;
        copy.write(&buffer[..step])?;
    }
    copy.finish()
}

/// Sees to it that the directory holds a backup that is under way, and nothing else.
fn prepare(to: &dyn Disk) -> Result<(), BackupError> {
    let names = to.list().map_err(|e| BackupError::io("list the backup's directory", e))?;
    if names.iter().any(|name| name == MANIFEST_NAME) {
        return Err(BackupError::Complete);
    }
    if names.iter().any(|name| name == PARTIAL_NAME) {
        return clear(to);
    }
    if let Some(found) = names.into_iter().find(|name| name != HARMLESS_NAME) {
        return Err(BackupError::NotEmpty { found });
    }
    to.create(PARTIAL_NAME).map_err(|e| BackupError::io(format!("create {PARTIAL_NAME}"), e))?;
    // Durable before anything that it speaks of.
    to.sync_directory().map_err(|e| BackupError::io("sync the backup's directory", e))
}

/// Deletes the files of a backup that is not complete, but for what marks it as partial.
fn clear(to: &dyn Disk) -> Result<(), BackupError> {
    let names = to.list().map_err(|e| BackupError::io("list the backup's directory", e))?;
    for name in names.iter().filter(|name| format::segment_start(name).is_some() || rows::is_file_name(name)) {
        remove(to, name)?;
    }
    Ok(())
}

fn remove(to: &dyn Disk, name: &str) -> Result<(), BackupError> {
    to.delete(name).map_err(|e| BackupError::io(format!("delete {name}"), e))
}

/// Makes the backup a complete one, as its last step.
fn complete(to: &dyn Disk, manifest: &Manifest) -> Result<(), BackupError> {
    let writing = |e| BackupError::io(format!("write {MANIFEST_NAME}"), e);
    let text = sealed(&serde_json::to_string_pretty(manifest).map_err(|e| writing(e.into()))?);
    let file = to.open(PARTIAL_NAME).map_err(writing)?;
    file.truncate(0).map_err(writing)?;
    file.write_at(0, text.as_bytes()).map_err(writing)?;
    file.sync().map_err(writing)?;
    to.sync_directory().map_err(writing)?;
    to.rename(PARTIAL_NAME, MANIFEST_NAME).map_err(writing)
}
