//! Makes a data directory of a backup.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use herald_core::ports::StoreError;

use super::{Manifest, UnusableBackup, files::checked_manifest, rows};
use crate::{
    data_dir::{self, DataDirError, Description, Restoring},
    disk::{RealDisk, sync_directory},
    kv::{Batch, FjallConfig, FjallKv, Kv},
    log::{create_mark, format},
};

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The backup.
    pub manifest: Manifest,
    /// The log epoch of the new data directory.
    pub log_epoch: u32,
}

/// Why a backup was not restored. What was there before is as it was; a directory that was being filled cannot be opened
/// and is filled anew when the restore is repeated.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup cannot be used.
    #[error(transparent)]
    Backup(#[from] UnusableBackup),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The file system does not do what it is asked.
    #[error("could not write {file}: {source}. The restore can be repeated")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stores cannot be written.
    #[error("the stores could not be written: {0}. The restore can be repeated")]
    Store(#[from] StoreError),
}

/// Makes a data directory where there is none, or an empty one, of a backup. Every checksum is right before anything is
/// written. The log epoch is raised beyond whatever may have been in use: places on the log are used again after a
/// restore, also after a second one of the same backup, and ids made of them must differ.
pub fn restore(from: &Path, data: &Path, now_ms: u64) -> Result<Restored, RestoreError> {
    let manifest = checked_manifest(from)?;
    let found = manifest.data.format_version;
    if found > data_dir::FORMAT_VERSION {
        return Err(DataDirError::NewerFormat { path: from.to_owned(), found }.into());
    }
    let restoring = Restoring::begin(data)?;
    copy_journal(from, &manifest, &restoring.journal_path())?;
    write_rows(from, &manifest, &restoring.store_path())?;
    let mut description = Description { format_version: data_dir::FORMAT_VERSION, ..manifest.data.clone() };
    let seconds = u32::try_from(now_ms / 1_000).unwrap_or(u32::MAX);
    description.log_epoch = description.log_epoch.saturating_add(1).max(seconds);
    let log_epoch = description.log_epoch;
    restoring.finish(&description)?;
    Ok(Restored { manifest, log_epoch })
}

fn copy_journal(from: &Path, manifest: &Manifest, journal: &Path) -> Result<(), RestoreError> {
    let writing = |file: &Path, source| RestoreError::Io { file: file.to_owned(), source };
    let disk = RealDisk::open(journal).map_err(|e| writing(journal, e))?;
    for file in manifest.files.iter().filter(|file| format::segment_start(&file.name).is_some()) {
        let to = journal.join(&file.name);
        std::fs::copy(from.join(&file.name), &to)
            .and_then(|_| File::open(&to)?.sync_all())
            .map_err(|e| writing(&to, e))?;
    }
    create_mark(&disk, manifest.journal_end).and_then(|()| sync_directory(journal)).map_err(|e| writing(journal, e))
}

fn write_rows(from: &Path, manifest: &Manifest, store: &Path) -> Result<(), RestoreError> {
    let kv = FjallKv::open(store, FjallConfig::default())?;
    for file in manifest.files.iter().filter(|file| rows::is_file_name(&file.name)) {
        rows::read::<RestoreError>(&from.join(&file.name), |rows| {
            let mut batch = Batch::default();
            rows.into_iter().for_each(|(key, value)| batch.put(key, value));
            Ok(kv.write(batch)?)
        })?;
    }
    kv.resume_flushes(manifest.store_flush);
    Kv::sync(&kv).map_err(|source| RestoreError::Io { file: store.to_owned(), source })?;
    Ok(())
}
