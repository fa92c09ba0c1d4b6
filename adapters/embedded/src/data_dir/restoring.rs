//! A data directory that is being filled from a backup.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{DESCRIPTION_NAME, DataDirError, Description, RESTORING_NAME, at, lock, refuse_foreign, write};
use crate::disk::{RealDisk, sync_directory};

/// A directory that is nobody else's, and no data directory before [`Restoring::finish`]. If the process ends earlier, a
/// mark in it says so, and the next restore begins anew.
#[derive(Debug)]
pub struct Restoring {
    path: PathBuf,
    _lock: File,
}

impl Restoring {
    /// Takes a directory that does not exist, is empty, or holds what a broken-off restore left.
    pub fn begin(path: &Path) -> Result<Self, DataDirError> {
        if path.join(DESCRIPTION_NAME).exists() {
            return Err(DataDirError::HasData(path.to_owned()));
        }
        match refuse_foreign(path) {
            Ok(()) | Err(DataDirError::HalfRestored(_)) => {}
            Err(error) => return Err(error),
        }
        RealDisk::open(path).map_err(|source| at("make the directory", path, source))?;
        let lock = lock(path)?;
        // Somebody else may have been faster.
        if path.join(DESCRIPTION_NAME).exists() {
            return Err(DataDirError::HasData(path.to_owned()));
        }
        let restoring = Self { path: path.to_owned(), _lock: lock };
        let mark = path.join(RESTORING_NAME);
        File::create(&mark)
            .and_then(|file| file.sync_all())
            .and_then(|()| sync_directory(path))
            .map_err(|source| at("write", &mark, source))?;
        for left in [restoring.journal_path(), restoring.store_path()] {
            remove(&left).map_err(|source| at("remove what a restore left in", &left, source))?;
        }
        Ok(restoring)
    }

    /// Where the journal goes.
    pub fn journal_path(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Where the stores go.
    pub fn store_path(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Makes it a data directory. Journal and stores must be durable.
    pub fn finish(self, description: &Description) -> Result<(), DataDirError> {
        write(&self.path, description)?;
        let mark = self.path.join(RESTORING_NAME);
        // The directory is complete; a mark that stays behind says nothing any more.
        if let Err(error) = fs::remove_file(&mark) {
            tracing::warn!(%error, ?mark, "the mark of the restore could not be removed");
        }
        Ok(())
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
