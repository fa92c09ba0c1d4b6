//! Rows on disk, in one fjall keyspace: a second one that is seldom written would pin the journal's files (fjall
//! issue 288).

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode, Readable, Snapshot,
    config::{HashRatioPolicy, RestartIntervalPolicy},
};
use herald_core::ports::StoreError;
use parking_lot::Mutex;

use super::{Batch, Direction, FLUSH_KEY, Kv, Row, bounds, flush_number};
use crate::SyncFirst;

/// How much memory and disk the database may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FjallConfig {
    /// Blocks kept in memory, in bytes.
    pub cache_bytes: u64,
    /// Rows gathered in memory before they are written as a table, in bytes; up to three such may exist.
    pub memtable_bytes: u64,
    /// The journal's files together, in bytes.
    pub journal_bytes: u64,
    /// Threads that write tables and compact them.
    pub worker_threads: usize,
}

impl Default for FjallConfig {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, memtable_bytes: 32 << 20, journal_bytes: 512 << 20, worker_threads: 2 }
    }
}

/// A fjall database.
pub struct FjallKv {
    database: Database,
    rows: Keyspace,
    path: PathBuf,
    /// Whether a batch was written since the last sync began.
    dirty: AtomicBool,
    /// The last flush number. Held during a sync, so that they come one after the other.
    flush: Mutex<u64>,
}

/// The tables that wait to be compacted from which on a write would be throttled (fjall throttles from 20 runs on).
const MOST_WAITING_TABLES: usize = 18;
/// The memtables that wait to be written from which on a write would sleep (fjall sleeps from 4 on).
const MOST_WAITING_MEMTABLES: usize = 3;

/// The longest key that fjall takes; a longer one would end the process.
const MAX_KEY_BYTES: usize = 65_535;

impl FjallKv {
    /// Opens or creates the database in a directory.
    pub fn open(path: &Path, config: FjallConfig) -> Result<Self, StoreError> {
        let database = Database::builder(path)
            .cache_size(config.cache_bytes)
            .max_journaling_size(config.journal_bytes.max(64 << 20))
            .worker_threads(config.worker_threads.max(1))
            .manual_journal_persist(true)
            .open()
            .map_err(unavailable)?;
        // Most reads are of one row: a short search within a block is worth the few bytes more.
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(config.memtable_bytes)
                .manual_journal_persist(true)
                .data_block_restart_interval_policy(RestartIntervalPolicy::all(4))
                .data_block_hash_ratio_policy(HashRatioPolicy::all(0.75))
        };
        let rows = database.keyspace("rows", options).map_err(unavailable)?;
        let last = flush_number(rows.get(FLUSH_KEY).map_err(unavailable)?.as_deref())?;
        Ok(Self { database, rows, path: path.into(), dirty: AtomicBool::new(false), flush: Mutex::new(last) })
    }

    /// The flush number of the last sync that is on disk; 0 before the first. Compare it with the log's on start.
    pub fn last_flush(&self) -> u64 {
        *self.flush.lock()
    }

    /// What the database takes on disk, in bytes.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.database.disk_space().map_err(unavailable)
    }

    /// The rows as of now. What compaction would drop stays as long as this lives.
    pub fn snapshot(&self) -> FjallSnapshot {
        FjallSnapshot { snapshot: self.database.snapshot(), rows: self.rows.clone() }
    }

    /// Goes on numbering syncs behind a number: for a database that was filled with the rows of another.
    pub(crate) fn resume_flushes(&self, last: u64) {
        *self.flush.lock() = last;
        self.dirty.store(true, Ordering::Release);
    }

    /// Waits for the disk without holding fjall's lock, which every write needs.
    ///
    /// fjall appends to the journal file of the highest number, and syncs a file before it begins the next. So once
    /// its buffer is handed to the operating system, the file that has the highest number then is the only one that
    /// may hold anything unsynced.
    fn sync_journal(&self) -> io::Result<()> {
        self.database.persist(PersistMode::Buffer).map_err(io::Error::other)?;
        match newest_journal(&self.path)? {
            Some(path) => File::open(path)?.sync_data(),
            None => self.database.persist(PersistMode::SyncData).map_err(io::Error::other),
        }
    }
}

/// The rows of a database as of one moment.
pub struct FjallSnapshot {
    snapshot: Snapshot,
    rows: Keyspace,
}

impl FjallSnapshot {
    /// All rows, in the order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = Result<Row, StoreError>> + '_ {
        self.snapshot.iter(&self.rows).map(|row| {
            let (key, value) = row.into_inner().map_err(unavailable)?;
            Ok((key.into(), value.into()))
        })
    }
}

/// The journal file of the highest number.
fn newest_journal(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "jnl") {
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok());
            newest = newest.max(number.map(|n| (n, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

impl Kv for FjallKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.rows.get(key).map_err(unavailable)?.map(Bytes::from))
    }

    fn scan(&self, range: Range<&[u8]>, direction: Direction, limit: usize) -> Result<Vec<Row>, StoreError> {
        if range.start >= range.end || limit == 0 {
            return Ok(Vec::new());
        }
        let mut rows = self.rows.range::<&[u8], _>(bounds(&range));
        let mut read = Vec::with_capacity(limit.min(64));
        while read.len() < limit {
            let next = match direction {
                Direction::Forward => rows.next(),
                Direction::Backward => rows.next_back(),
            };
            let Some(row) = next else { break };
            let (key, value) = row.into_inner().map_err(unavailable)?;
            read.push((key.into(), value.into()));
        }
        Ok(read)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut write = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        for (key, value) in batch.changes {
            if key.len() > MAX_KEY_BYTES {
                return Err(StoreError::Unavailable(format!("a key of {} bytes is too long", key.len())));
            }
            match value {
                Some(value) => write.insert(&self.rows, key, value),
                None => write.remove(&self.rows, key),
            }
        }
        write.commit().map_err(unavailable)?;
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> io::Result<u64> {
        let mut flush = self.flush.lock();
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(*flush);
        }
        let next = *flush + 1;
        let synced = self
            .rows
            .insert(FLUSH_KEY, next.to_be_bytes())
            .map_err(io::Error::other)
            .and_then(|()| self.sync_journal());
        if let Err(error) = synced {
            self.dirty.store(true, Ordering::Release);
            return Err(error);
        }
        *flush = next;
        Ok(next)
    }

    fn overloaded(&self) -> bool {
        self.rows.sealed_memtable_count() >= MOST_WAITING_MEMTABLES || self.rows.l0_table_count() >= MOST_WAITING_TABLES
    }
}

impl SyncFirst for FjallKv {
    fn sync(&self) -> io::Result<u64> {
        Kv::sync(self)
    }
}

/// An error of the disk or of a full store may pass; one of what is stored will not.
fn unavailable(error: fjall::Error) -> StoreError {
    let damaged = match &error {
        fjall::Error::Storage(LsmError::Io(_)) => false,
        fjall::Error::Storage(_) => true,
        fjall::Error::JournalRecovery(_) | fjall::Error::InvalidVersion(_) | fjall::Error::Unrecoverable => true,
        fjall::Error::Decompress(_) | fjall::Error::InvalidTrailer | fjall::Error::InvalidTag(_) => true,
        _ => false,
    };
    if damaged { StoreError::Damaged(error.to_string()) } else { StoreError::Unavailable(error.to_string()) }
}
