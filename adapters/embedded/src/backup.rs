//! Backups: a copy of a data directory as of one instant, taken while it is in use, and its way back.
//!
//! A backup is a directory of its own. This layout is for good:
//!
//! | file | what it is |
//! |---|---|
//! | `backup.json` | what the backup is, and length and checksum of every file, its own too; there once all are durable |
//! | `backup.partial` | in its place while the backup is being taken, so that what was broken off is known as such |
//! | `journal-<position>.seg` | the segments of the journal, cut at the instant of the backup ([`crate::log::format`]) |
//! | `rows-<number>.rows` | the rows of the stores in the order of their keys ([`rows`]) |
//!
//! **One instant.** The journal is taken between two flushes and the stores at the same moment. So the stores hold
//! whatever the journal's commits rest on, and nothing that rests on a record behind its end: what a power cut could
//! have left. See [`crate::log::JournalSnapshot`].
//!
//! Copying the files of a running data directory is no backup: its mark may be newer than the copied segments, and the
//! database's files change while they are read.

mod files;
mod restore;
mod rows;
mod take;

use std::{
    io,
    path::{Path, PathBuf},
};

use herald_core::ports::{StoreError, log::LogError};
use serde::{Deserialize, Serialize};

pub use self::{
    files::verify,
    restore::{RestoreError, Restored, restore},
    take::{Source, take},
};
use crate::data_dir::Description;

/// The version of the layout that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const MANIFEST_NAME: &str = "backup.json";
const PARTIAL_NAME: &str = "backup.partial";
/// What may be in a directory that is about to hold a backup.
const HARMLESS_NAME: &str = "lost+found";

/// Whether a directory holds a backup, whole or broken off.
pub fn is_backup(directory: &Path) -> bool {
    [MANIFEST_NAME, PARTIAL_NAME].iter().any(|name| directory.join(name).exists())
}

/// `backup.json`, behind the checksum of its own text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The version of Herald that took it.
    pub herald_version: String,
    /// When, in milliseconds since the epoch.
    pub created_ms: u64,
    /// `herald.json` of the data directory.
    pub data: Description,
    /// The position up to which the journal goes.
    pub journal_end: u64,
    /// The number of the stores' sync that the journal rests on.
    pub store_flush: u64,
    /// How many rows there are.
    pub rows: u64,
    /// Every other file.
    pub files: Vec<BackupFile>,
}

impl Manifest {
    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The checksum of its content.
    pub crc32c: u32,
}

/// Why a backup was not taken. The data directory goes on as if nobody had asked; what was written of the backup is gone,
/// or known as partial.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system does not do what it is asked.
    #[error("could not {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The disk would become too full.
    #[error(
        "{free_bytes} bytes are free where the backup goes, too few for it and the {reserve_bytes} that must stay free; make \
         room, or choose a directory on another disk"
    )]
    NoRoom {
        /// What is free.
        free_bytes: u64,
        /// What must stay free.
        reserve_bytes: u64,
    },
    /// The disk is full.
    #[error("could not {what}: {source}; make room, or choose a directory on another disk")]
    Full {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The directory cannot be made, and will not be by trying again.
    #[error("the directory {directory} cannot be made: {source}; choose another one")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A backup would go down with what it is of.
    #[error("the directory lies within the data directory {data}; choose one elsewhere, best on another disk")]
    WithinData {
        /// The data directory.
        data: PathBuf,
    },
    /// There is a backup already.
    #[error("there is a complete backup in it already; choose an empty or a new directory")]
    Complete,
    /// Something else is there.
    #[error("the directory is not empty (it holds {found}); choose an empty or a new directory")]
    NotEmpty {
        /// A name in it.
        found: String,
    },
    /// The journal cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The stores cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    /// What the system's refusal of a step means.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { what, source },
            _ => Self::Io { what, source },
        }
    }
}

/// Why a directory is no backup that can be restored. It was only read.
#[derive(Debug, thiserror::Error)]
pub enum UnusableBackup {
    /// There is no backup.
    #[error("{0} holds no backup: there is no backup.json in it")]
    Absent(PathBuf),
    /// It was broken off.
    #[error(
        "the backup in {0} is partial: taking it was broken off. Use another one; the next backup into this directory \
         replaces it"
    )]
    Partial(PathBuf),
    /// Something newer took it.
    #[error(
        "the backup in {path} has format version {found}, and this version of Herald knows {FORMAT_VERSION}; use the newer Herald"
    )]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
    /// A file is not what the manifest says.
    #[error("the backup is damaged: {file}: {why}. Use another one")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file system does not do what it is asked.
    #[error("could not read {file}: {source}")]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
