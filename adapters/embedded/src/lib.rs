//! The ports on one machine's disk and memory.
//!
//! The log is a journal of segments of our own; the stores are rows in one key-value database. They are tied by one
//! rule that both keep: **a flush of the journal first syncs the stores**. So what a stage stored before its commit is
//! durable no later than the commit, and a stage that stores something only after the records it rests on are durable
//! can never be ahead of the log after a power cut.

pub mod backup;
pub mod budgets;
pub mod claims;
pub mod data_dir;
pub mod disk;
pub mod fleet;
pub mod kv;
pub mod log;
pub mod sessions;
pub mod store;

use std::io;

/// What must be durable before the journal is: the stores.
pub trait SyncFirst: Send + Sync + 'static {
    /// Makes everything written so far durable, together with `flush`, a number that grows by one with each call that
    /// had something to sync. The journal notes it, and after a restart the store must know it or a later one.
    fn sync(&self) -> io::Result<u64>;
}
