//! Rows in order of their keys: the little that the stores need of a database.
//!
//! **Atomicity and order.** A scan sees the whole of a [`Batch`] or nothing of it; a get may see a row a moment before
//! the rest of its batch. Batches of one database have one order, and what survives a crash is a prefix of that order
//! that holds at least everything before the last [`Kv::sync`]. (A power cut in the moment in which fjall writes a table may
//! leave what was not synced of one keyspace without that of the other.)
//!
//! **Damage.** Each value is not checksummed again: fjall checks its blocks on disk and its batches in its journal. But
//! when it finds a damaged batch on start it takes it for the torn end of the journal and drops, in silence, everything
//! behind it (fjall issue 311). So every sync that had something to sync writes a **flush number** in the same breath,
//! and the journal of the log notes the number before it calls anything durable. When a database comes up with a flush
//! number below the one the log knows, synced rows are gone, and the data directory must not be opened. See
//! [`crate::SyncFirst`].
//!
//! **Blocking.** All calls are synchronous. A read takes microseconds from memory and one disk read otherwise; a write
//! appends to a buffer. Two things could hold a writer up for longer. A sync does not, because [`FjallKv`] waits for
//! the disk outside of fjall's lock. Compaction that lags behind would make fjall sleep within the call, so writers call
//! [`ready`] first, which waits without blocking the thread and gives up as "overloaded".

pub mod fjall;
pub mod memory;

use std::{
    io,
    ops::{Bound, Range},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use herald_core::ports::StoreError;

pub use self::{
    fjall::{FjallConfig, FjallKv},
    memory::MemoryKv,
};

/// A key and its value.
pub type Row = (Bytes, Bytes);

/// Puts and deletes that become visible together. A key occurs once.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub(crate) changes: Vec<(Bytes, Option<Bytes>)>,
}

impl Batch {
    /// Stores a value under a key.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push((key.into(), Some(value.into())));
    }

    /// Removes a key, whether it is there or not.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.changes.push((key.into(), None));
    }

    /// How many changes were gathered.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Which end of a range a scan begins at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Backward,
}

/// Ordered rows with atomic batches.
pub trait Kv: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// At most `limit` rows of a half-open range of keys, as of one moment. The range is within one table.
    fn scan(&self, range: Range<&[u8]>, direction: Direction, limit: usize) -> Result<Vec<Row>, StoreError>;

    /// Makes a batch visible. It is durable after the next sync.
    fn write(&self, batch: Batch) -> Result<(), StoreError>;

    /// Makes everything written so far durable; see [`crate::SyncFirst::sync`].
    fn sync(&self) -> io::Result<u64>;

    /// Whether a write now would have to wait for the disk.
    fn overloaded(&self) -> bool {
        false
    }

    /// The values of keys, in order.
    fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        keys.iter().map(|key| self.get(key)).collect()
    }
}

impl crate::SyncFirst for Arc<dyn Kv> {
    fn sync(&self) -> io::Result<u64> {
        Kv::sync(&**self)
    }
}

/// The key of the row that begins with the flush number, as 8 bytes big-endian. No table begins with 0.
pub(crate) const FLUSH_KEY: &[u8] = &[0, b'f', b'l', b'u', b's', b'h'];

/// The first bytes of the keys of the history: the tables of the ledger and the feeds. See [`fjall`].
pub(crate) const HISTORY: Range<u8> = 0x20..0x40;

/// Refuses a scan of which one keyspace would give a part only.
pub(crate) fn within_a_keyspace(range: &Range<&[u8]>) -> Result<(), StoreError> {
    let parts = |table: u8| range.start < &[table][..] && &[table][..] < range.end;
    match parts(HISTORY.start) || parts(HISTORY.end) {
        true => Err(StoreError::Unavailable("a scan goes from one keyspace into the other".into())),
        false => Ok(()),
    }
}

/// The number in a row that holds one, as 8 bytes big-endian; 0 where there is none.
pub(crate) fn number(row: Option<&[u8]>) -> Result<u64, StoreError> {
    let Some(row) = row else { return Ok(0) };
    let number = row.try_into().map_err(|_| StoreError::Damaged("a flush number or a count is not 8 bytes".into()))?;
    Ok(u64::from_be_bytes(number))
}

const READY_POLL: Duration = Duration::from_millis(5);
const READY_POLLS: u32 = 400;

/// Returns once a write would not have to wait, or refuses after two seconds.
pub async fn ready(kv: &dyn Kv) -> Result<(), StoreError> {
    for _ in 0..READY_POLLS {
        if !kv.overloaded() {
            return Ok(());
        }
        tokio::time::sleep(READY_POLL).await;
    }
    Err(StoreError::Unavailable("the store's compaction lags behind its writes".into()))
}

/// The bounds of a half-open range, for maps that want them so.
pub(crate) fn bounds<'a>(range: &Range<&'a [u8]>) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(range.start), Bound::Excluded(range.end))
}
