//! The ledger: what was admitted, what was created, what has ended, and the proof that the last two agree.
//!
//! Two readers run side by side, each in a group of its own. [`requests`] keeps a row for each admitted id. [`receipts`]
//! adds up manifests and receipts in memory and writes absolute totals, so writing one twice changes nothing. Both wait
//! until what they read is durable before they store anything: the store is never ahead of the log.

use std::{sync::Arc, time::Duration};

use herald_core::{
    clock::World,
    ports::{ledger::Ledger, log::Log},
};
use serde::{Deserialize, Serialize};

use self::stats::LedgerStats;

mod backoff;
pub mod locate;
pub mod partition;
pub mod proof;
pub mod receipts;
pub mod reconcile;
pub mod requests;
pub mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod traced;

/// What may be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long receipts may gather before they are written.
    pub flush_interval_ms: u64,
    /// How many instances may gather before they are written.
    pub flush_max_instances: u64,
    /// The most records of one poll.
    pub poll_max_records: usize,
    /// The most notifications whose totals stay in memory. Others are loaded when a receipt comes.
    pub max_active: usize,
    /// How often the books in memory are checked.
    pub reconcile_interval_ms: u64,
    /// A notification whose books do not agree is reported when nothing moved for so long.
    pub stall_after_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flush_interval_ms: 20,
            flush_max_instances: 65_536,
            poll_max_records: 512,
            max_active: 50_000,
            reconcile_interval_ms: 10_000,
            stall_after_ms: 60_000,
        }
    }
}

impl Config {
    fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.flush_interval_ms)
    }
}

/// What a reader needs of the world.
#[derive(Clone)]
pub struct Deps {
    /// Where requests and receipts are read.
    pub log: Arc<dyn Log>,
    /// Where rows and totals are kept.
    pub ledger: Arc<dyn Ledger>,
    /// The clock.
    pub world: World,
    /// What it counts.
    pub stats: Arc<LedgerStats>,
}
