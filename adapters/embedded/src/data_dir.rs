//! The data directory: whose it is, which format it has, and that one process alone uses it.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use herald_core::{ports::log::Identity, topic::Layout};
use serde::{Deserialize, Serialize};

use crate::disk::{RealDisk, sync_directory};

mod restoring;

pub use restoring::Restoring;

/// The version of the directory's format that this code writes; it reads older ones, and opening makes them this one.
///
/// 2: the stores have two keyspaces. A process that knows 1 only would find nobody in them.
pub const FORMAT_VERSION: u32 = 2;

/// The layout of a new directory where none is configured.
pub const DEFAULT_LAYOUT: Layout = Layout { shards: 16, requests: 8, receipts: 4 };

const DESCRIPTION_NAME: &str = "herald.json";
const TEMPORARY_NAME: &str = "herald.json.new";
const LOCK_NAME: &str = "LOCK";
/// There from the begin of a restore until `herald.json` is.
const RESTORING_NAME: &str = "restore.partial";
/// What may be in a directory that is about to become Herald's.
const HARMLESS_NAMES: [&str; 3] = [TEMPORARY_NAME, LOCK_NAME, "lost+found"];

/// What the configuration says about the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The numbers of partitions; `None` takes those that are stored.
    pub layout: Option<Layout>,
    /// The region's name.
    pub region: String,
}

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The file system does not do what it is asked.
    #[error("could not {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the data directory {0} is in use by another Herald process; stop it, or choose another directory")]
    InUse(PathBuf),
    /// Something else lives there.
    #[error(
        "{path} is not a data directory of Herald, and it is not empty (it holds {found}); choose another directory"
    )]
    NotHeralds {
        /// The directory.
        path: PathBuf,
        /// A name in it.
        found: String,
    },
    /// There is nothing.
    #[error("there is no data directory of Herald at {0}")]
    Absent(PathBuf),
    /// There is data where a backup was to be restored.
    #[error(
        "{0} is a data directory already, and a restore never writes over data; move it away first, or choose another \
         directory"
    )]
    HasData(PathBuf),
    /// A restore was broken off.
    #[error("restoring a backup into {0} was broken off; run the same herald restore again")]
    HalfRestored(PathBuf),
    /// Something newer wrote it.
    #[error(
        "the data directory {path} has format version {found}, and this version of Herald knows {FORMAT_VERSION}; use the newer Herald"
    )]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
    /// `herald.json` cannot be understood.
    #[error("{path} is damaged: {why}; restore the data directory from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The number of partitions is fixed when a directory is made.
    #[error(
        "the data directory {path} was made with {stored:?}, and {wanted:?} is configured; the layout of existing data \
         cannot change: configure the stored one, or start with a new directory"
    )]
    OtherLayout {
        /// The directory.
        path: PathBuf,
        /// What is stored.
        stored: Layout,
        /// What is configured.
        wanted: Layout,
    },
    /// The region is part of every id on the log.
    #[error(
        "the data directory {path} belongs to region {stored:?}, and {wanted:?} is configured; configure the stored one, or start with a new directory"
    )]
    OtherRegion {
        /// The directory.
        path: PathBuf,
        /// What is stored.
        stored: String,
        /// What is configured.
        wanted: String,
    },
    /// The numbers of partitions make no sense.
    #[error("{0:?} is no layout: shards must be 1 to 64, requests and receipts partitions 1 to 1024")]
    BadLayout(Layout),
}

/// `herald.json`: what a data directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The region's name.
    pub region: String,
    /// Raised by each restore from a backup.
    pub log_epoch: u32,
    /// Shards of users.
    pub shards: u32,
    /// Partitions of each requests topic.
    pub requests_partitions: u32,
    /// Partitions of the receipts topic.
    pub receipts_partitions: u32,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: u64,
}

impl Description {
    fn layout(&self) -> Layout {
        Layout { shards: self.shards, requests: self.requests_partitions, receipts: self.receipts_partitions }
    }
}

/// A data directory that is this process's own as long as the value lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    description: Description,
    identity: Identity,
    _lock: File,
}

impl DataDir {
    /// Opens a data directory, or makes one where there is nothing.
    pub fn open(path: impl Into<PathBuf>, wanted: &Settings, now_ms: u64) -> Result<Self, DataDirError> {
        let path = path.into();
        if let Some(layout) = wanted.layout {
            check_layout(layout)?;
        }
        // Looked at before anything is made, so that a directory of something else stays as it is.
        if !path.join(DESCRIPTION_NAME).exists() {
            refuse_foreign(&path)?;
        }
        RealDisk::open(&path).map_err(|source| at("make the directory", &path, source))?;
        let lock = lock(&path)?;
        let mut description = match read(&path)? {
            Some(description) => description,
            None => {
                refuse_foreign(&path)?;
                let layout = wanted.layout.unwrap_or(DEFAULT_LAYOUT);
                let description = Description {
                    format_version: FORMAT_VERSION,
                    region: wanted.region.clone(),
                    log_epoch: 1,
                    shards: layout.shards,
                    requests_partitions: layout.requests,
                    receipts_partitions: layout.receipts,
                    created_ms: now_ms,
                };
                write(&path, &description)?;
                description
            }
        };
        check(&path, &description, wanted)?;
        raise(&path, &mut description)?;
        let identity = identity(&description);
        Ok(Self { path, description, identity, _lock: lock })
    }

    /// Opens a data directory as it is; there must be one.
    pub fn open_existing(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        if !path.join(DESCRIPTION_NAME).exists() {
            refuse_foreign(&path)?;
            return Err(DataDirError::Absent(path));
        }
        let lock = lock(&path)?;
        let mut description = read(&path)?.ok_or_else(|| DataDirError::Absent(path.clone()))?;
        check_layout(description.layout())?;
        raise(&path, &mut description)?;
        let identity = identity(&description);
        Ok(Self { path, description, identity, _lock: lock })
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the directory is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Region, log epoch and layout.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the directory was made, in milliseconds since the epoch.
    pub fn created_ms(&self) -> u64 {
        self.description.created_ms
    }

    /// Where the journal is.
    pub fn journal_path(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Where the stores are.
    pub fn store_path(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The journal's disk.
    pub fn journal_disk(&self) -> io::Result<RealDisk> {
        RealDisk::open(self.journal_path())
    }
}

fn identity(description: &Description) -> Identity {
    Identity { region: description.region.clone(), epoch: description.log_epoch, layout: description.layout() }
}

fn at(what: &'static str, path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Io { what, path: path.to_owned(), source }
}

fn check_layout(layout: Layout) -> Result<(), DataDirError> {
    let partitions = 1..=1_024;
    let good = (1..=64).contains(&layout.shards)
        && partitions.contains(&layout.requests)
        && partitions.contains(&layout.receipts);
    good.then_some(()).ok_or(DataDirError::BadLayout(layout))
}

fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    if path.join(RESTORING_NAME).exists() {
        return Err(DataDirError::HalfRestored(path.to_owned()));
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at("list", path, error)),
    };
    for entry in entries {
        let found = entry.map_err(|e| at("list", path, e))?.file_name().to_string_lossy().into_owned();
        if !HARMLESS_NAMES.contains(&found.as_str()) && found != DESCRIPTION_NAME {
            return Err(DataDirError::NotHeralds { path: path.to_owned(), found });
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let name = path.join(LOCK_NAME);
    let file = File::options().create(true).write(true).truncate(false).open(&name);
    let file = file.map_err(|source| at("open", &name, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(at("lock", &name, source)),
    }
}

fn read(path: &Path) -> Result<Option<Description>, DataDirError> {
    let name = path.join(DESCRIPTION_NAME);
    let text = match fs::read_to_string(&name) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("read", &name, error)),
    };
    let damaged = |why: serde_json::Error| DataDirError::Damaged { path: name.clone(), why: why.to_string() };
    // A newer format may have other fields, so its version is looked at alone first.
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let Version { format_version: found } = serde_json::from_str(&text).map_err(damaged)?;
    if found > FORMAT_VERSION {
        return Err(DataDirError::NewerFormat { path: path.to_owned(), found });
    }
    serde_json::from_str(&text).map(Some).map_err(damaged)
}

fn check(path: &Path, stored: &Description, wanted: &Settings) -> Result<(), DataDirError> {
    let layout = stored.layout();
    check_layout(layout)?;
    if let Some(wanted) = wanted.layout.filter(|wanted| *wanted != layout) {
        return Err(DataDirError::OtherLayout { path: path.to_owned(), stored: layout, wanted });
    }
    if wanted.region != stored.region {
        let (stored, wanted) = (stored.region.clone(), wanted.region.clone());
        return Err(DataDirError::OtherRegion { path: path.to_owned(), stored, wanted });
    }
    Ok(())
}

/// Keeps older versions of Herald out before anything is written that they do not know.
fn raise(path: &Path, description: &mut Description) -> Result<(), DataDirError> {
    if description.format_version == FORMAT_VERSION {
        return Ok(());
    }
    description.format_version = FORMAT_VERSION;
    write(path, description)
}

/// Writes `herald.json` so that it is found either old or new, whole.
fn write(path: &Path, description: &Description) -> Result<(), DataDirError> {
    let (temporary, name) = (path.join(TEMPORARY_NAME), path.join(DESCRIPTION_NAME));
    let mut text = serde_json::to_vec_pretty(description)
        .map_err(|e| DataDirError::Damaged { path: name.clone(), why: e.to_string() })?;
    text.push(b'\n');
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, &name)?;
        sync_directory(path)
    };
    write().map_err(|source| at("write", &name, source))
}
