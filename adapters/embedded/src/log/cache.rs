//! Which recent records are in memory, oldest first over all topics, bounded in bytes.

use std::collections::VecDeque;

/// Memory that a cached record takes beside its bytes.
const RECORD_OVERHEAD_BYTES: u64 = 320;

/// The order of the cached records and what they weigh. The records themselves hang on the index.
pub struct Cache {
    queue: VecDeque<Cached>,
    held: usize,
    bytes: u64,
    limit_bytes: u64,
}

/// A record that was cached; it may have gone since.
#[derive(Clone, Copy)]
pub struct Cached {
    /// The partition.
    pub slot: usize,
    /// The record's offset.
    pub offset: u64,
    /// Where its entry was written first.
    pub position: u64,
}

impl Cache {
    /// An empty cache.
    pub fn new(limit_bytes: u64) -> Self {
        Self { queue: VecDeque::new(), held: 0, bytes: 0, limit_bytes }
    }

    /// Counts a record in.
    pub fn put(&mut self, cached: Cached, entry_bytes: u32) {
        self.queue.push_back(cached);
        self.held += 1;
        self.bytes += u64::from(entry_bytes) + RECORD_OVERHEAD_BYTES;
    }

    /// Counts a record out. Its place in the order is cleared away later.
    pub fn forget(&mut self, entry_bytes: u32) {
        self.held -= 1;
        self.bytes -= u64::from(entry_bytes) + RECORD_OVERHEAD_BYTES;
    }

    /// The oldest record if there is too much and it is written (its position is below `written`).
    pub fn oldest_over_limit(&mut self, written: u64) -> Option<Cached> {
        match self.queue.front() {
            Some(oldest) if self.bytes > self.limit_bytes && oldest.position < written => self.queue.pop_front(),
            _ => None,
        }
    }

    /// Drops the places of records that went, once they are the most.
    pub fn tidy(&mut self, is_there: impl FnMut(&Cached) -> bool) {
        if self.queue.len() > 2 * self.held + 1_024 {
            self.queue.retain(is_there);
        }
    }
}
