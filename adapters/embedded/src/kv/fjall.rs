//! Rows on disk, in two keyspaces of one fjall database.
//!
//! While the tables of a keyspace change, fjall syncs three times under the lock that its readers need. So what is written
//! with every message, the **history** (what the ledger and the feeds keep), is apart from the **state**, which is read on
//! the way of each message and written with calls. They share one journal and its order, so a batch may change both.
//!
//! Files of the journal stay until each keyspace has written its part of them as tables. The state is made to once the
//! files are [`FjallConfig::journal_bytes`] together; that it has something to write by then, which fjall needs (issue 288),
//! is sure since the flush numbers are in it.
//!
//! What fjall drops in silence from a damaged journal is found in two ways. Of the newest file the flush number is missing;
//! or, if that is in a table, some of the history, whose batches are counted in a row of its own and noted with each flush
//! number. Older files are looked at before and after fjall reads them ([`journals`]).

mod journals;

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode, Readable, Snapshot,
    config::{HashRatioPolicy, RestartIntervalPolicy},
};
use herald_core::ports::StoreError;
use parking_lot::Mutex;

use self::journals::SealedJournals;
use super::{Batch, Direction, FLUSH_KEY, HISTORY, Kv, Row, bounds, number, within_a_keyspace};
use crate::{SyncFirst, disk::sync_directory};

/// How much memory and disk the database may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FjallConfig {
    /// Blocks kept in memory, in bytes.
    pub cache_bytes: u64,
    /// Rows of a keyspace gathered in memory before they are written as a table, in bytes; up to three such may exist.
    pub memtable_bytes: u64,
    /// The journal's files together, in bytes, without the one that is written to.
    pub journal_bytes: u64,
    /// Threads that write tables and compact them.
    pub worker_threads: usize,
}

impl Default for FjallConfig {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, memtable_bytes: 32 << 20, journal_bytes: 256 << 20, worker_threads: 2 }
    }
}

#[derive(Clone)]
struct Keyspaces {
    state: Keyspace,
    history: Keyspace,
}

/// The key of the row that counts the batches of the history, as 8 bytes big-endian.
const COUNT_KEY: &[u8] = &[0x3F, b'c', b'o', b'u', b'n', b't'];
const MEND: &str = "restore the data directory from a backup";
/// Rows moved at once.
const MOVED_ROWS: usize = 1_000;

fn is_history(key: &[u8]) -> bool {
    key.first().is_some_and(|table| HISTORY.contains(table))
}

impl Keyspaces {
    fn of(&self, key: &[u8]) -> &Keyspace {
        if is_history(key) { &self.history } else { &self.state }
    }

    /// The last flush number and the count of the history, unless that is less than was synced.
    fn numbers(&self) -> Result<(u64, u64), StoreError> {
        let get = |key| self.of(key).get(key).map_err(unavailable);
        let counted = number(get(COUNT_KEY)?.as_deref())?;
        let Some(row) = get(FLUSH_KEY)? else { return Ok((0, counted)) };
        // Format version 1 has no count.
        let (flush, synced) = row.split_at(row.len().min(8));
        let synced = number(Some(synced).filter(|synced| !synced.is_empty()))?;
        if counted < synced {
            let lost =
                format!("{synced} batches of the ledger and the feeds were synced, and {counted} are there; {MEND}");
            return Err(StoreError::Damaged(lost));
        }
        Ok((number(Some(flush))?, counted))
    }

    /// Moves the state out of the history, where directories of format version 1 have it. Whatever ends this, a row is
    /// in one of them, and the next start goes on.
    fn separate(&self, database: &Database) -> Result<(), StoreError> {
        let mut moved = 0_usize;
        for (mut begin, end) in [(vec![], vec![HISTORY.start]), (vec![HISTORY.end], vec![0xFF])] {
            loop {
                let rows = self.history.range(begin.clone()..end.clone());
                let mut batch = fjall::OwnedWriteBatch::with_capacity(database.clone(), 2 * MOVED_ROWS);
                for row in rows.take(MOVED_ROWS) {
                    let (key, value) = row.into_inner().map_err(unavailable)?;
                    begin = [&key[..], &[0]].concat();
                    batch.remove(&self.history, key.clone());
                    batch.insert(&self.state, key, value);
                }
                if batch.is_empty() {
                    break;
                }
                moved += batch.len() / 2;
                // In the journal before it is in memory: a table of one keyspace must not last without the other's part.
                batch.durability(Some(PersistMode::SyncAll)).commit().map_err(unavailable)?;
            }
        }
        if moved > 0 {
            tracing::info!(moved, "moved the rows of the state into a keyspace of their own");
        }
        Ok(())
    }
}

/// A fjall database.
pub struct FjallKv {
    database: Database,
    keyspaces: Keyspaces,
    path: PathBuf,
    /// Whether a batch was written since the last sync began.
    dirty: AtomicBool,
    /// The last flush number. Held during a sync, so that they come one after the other.
    flush: Mutex<u64>,
    /// Batches of the history. `commits` is held while one is committed, so that the count on disk never falls; a sync
    /// reads the count and waits for no commit.
    counted: AtomicU64,
    commits: Mutex<()>,
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
        let sealed = SealedJournals::before_opening(path)?;
        let database = Database::builder(path)
            .cache_size(config.cache_bytes)
            .max_journaling_size(config.journal_bytes.max(64 << 20))
            .worker_threads(config.worker_threads.max(1))
            .manual_journal_persist(true)
            .open()
            .map_err(unavailable)?;
        sealed.check()?;
        // Most reads are of one row: a short search within a block is worth the few bytes more.
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(config.memtable_bytes)
                .manual_journal_persist(true)
                .data_block_restart_interval_policy(RestartIntervalPolicy::all(4))
                .data_block_hash_ratio_policy(HashRatioPolicy::all(0.75))
        };
        // The history has the name that all rows had in directories of format version 1.
        let history = database.keyspace("rows", options).map_err(unavailable)?;
        let keyspaces = Keyspaces { state: database.keyspace("state", options).map_err(unavailable)?, history };
        // fjall does not sync the directory in which it makes a keyspace's.
        sync_directory(&path.join("keyspaces")).map_err(journals::cannot_look)?;
        keyspaces.separate(&database)?;
        let (flush, counted) = keyspaces.numbers()?;
        Ok(Self {
            database,
            keyspaces,
            path: path.into(),
            dirty: AtomicBool::new(false),
            flush: Mutex::new(flush),
            counted: AtomicU64::new(counted),
            commits: Mutex::new(()),
        })
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
        FjallSnapshot { snapshot: self.database.snapshot(), keyspaces: self.keyspaces.clone() }
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
        match journals::files(&self.path)?.pop_last() {
            Some((_, path)) => File::open(path)?.sync_data(),
            None => self.database.persist(PersistMode::SyncData).map_err(io::Error::other),
        }
    }
}

/// The rows of a database as of one moment.
pub struct FjallSnapshot {
    snapshot: Snapshot,
    keyspaces: Keyspaces,
}

impl FjallSnapshot {
    /// All rows, in the order of their keys, but the count of the history, which is of this database.
    pub fn rows(&self) -> impl Iterator<Item = Result<Row, StoreError>> + '_ {
        let Keyspaces { state, history } = &self.keyspaces;
        let before = self.snapshot.range(state, ..[HISTORY.start]);
        let behind = self.snapshot.range(state, [HISTORY.end]..);
        before.chain(self.snapshot.iter(history)).chain(behind).filter_map(|row| match row.into_inner() {
            Ok((key, _)) if &*key == COUNT_KEY => None,
            Ok((key, value)) => Some(Ok((key.into(), value.into()))),
            Err(error) => Some(Err(unavailable(error))),
        })
    }
}

impl Kv for FjallKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.keyspaces.of(key).get(key).map_err(unavailable)?.map(Bytes::from))
    }

    fn scan(&self, range: Range<&[u8]>, direction: Direction, limit: usize) -> Result<Vec<Row>, StoreError> {
        if range.start >= range.end || limit == 0 {
            return Ok(Vec::new());
        }
        within_a_keyspace(&range)?;
        let mut rows = self.keyspaces.of(range.start).range::<&[u8], _>(bounds(&range));
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
        let mut write = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len() + 1);
        let counts = batch.changes.iter().any(|(key, _)| is_history(key));
        for (key, value) in batch.changes {
            if key.len() > MAX_KEY_BYTES {
                return Err(StoreError::Unavailable(format!("a key of {} bytes is too long", key.len())));
            }
            let keyspace = self.keyspaces.of(&key);
            match value {
                Some(value) => write.insert(keyspace, key, value),
                None => write.remove(keyspace, key),
            }
        }
        if counts {
            let _one_at_a_time = self.commits.lock();
            let counted = self.counted.load(Ordering::Acquire) + 1;
            write.insert(&self.keyspaces.history, COUNT_KEY, counted.to_be_bytes());
            write.commit().map_err(unavailable)?;
            self.counted.store(counted, Ordering::Release);
        } else {
            write.commit().map_err(unavailable)?;
        }
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> io::Result<u64> {
        let mut flush = self.flush.lock();
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(*flush);
        }
        let next = *flush + 1;
        // What is counted is in the journal, so this sync takes it along.
        let counted = self.counted.load(Ordering::Acquire);
        let synced = self
            .keyspaces
            .of(FLUSH_KEY)
            .insert(FLUSH_KEY, [next.to_be_bytes(), counted.to_be_bytes()].concat())
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
        [&self.keyspaces.state, &self.keyspaces.history].iter().any(|keyspace| {
            keyspace.sealed_memtable_count() >= MOST_WAITING_MEMTABLES
                || keyspace.l0_table_count() >= MOST_WAITING_TABLES
        })
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
