//! What the worker counts; read by the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters since the start, and gauges.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages handed to providers.
    pub attempts: AtomicU64,
    /// Messages put off for another attempt.
    pub retries: AtomicU64,
    /// Instances put off because a switch holds them, each time they come up.
    pub held: AtomicU64,
    /// Messages that were unanswered at their deadline; they may arrive twice.
    pub unanswered: AtomicU64,
    /// Messages that waited because a limit was used up, or their provider was down or asked for less.
    pub paced: AtomicU64,
    /// Messages that waited for the end of somebody's quiet hours.
    pub quiet: AtomicU64,
    /// Messages that were not put on the wire and come again.
    pub not_attempted: AtomicU64,
    /// Faults of our own accounts at providers.
    pub account_faults: AtomicU64,
    /// Instances moved to overflow because their shard's window was full.
    pub overflowed: AtomicU64,
    /// People read from the directory.
    pub people_filled: AtomicU64,
    /// Commits made.
    pub commits: AtomicU64,
    /// Records that could not be read.
    pub undecodable: AtomicU64,
    /// Instances ended.
    pub ended: AtomicU64,
    /// Gauge: instances handed to providers whose outcome is not durably committed.
    pub in_doubt: AtomicU64,
    /// Gauge: unfinished instances in memory.
    pub window_instances: AtomicU64,
}

impl Stats {
    pub(crate) fn add(&self, counter: impl Fn(&Self) -> &AtomicU64, by: u64) {
        counter(self).fetch_add(by, Relaxed);
    }

    pub(crate) fn set(&self, gauge: impl Fn(&Self) -> &AtomicU64, to: u64) {
        gauge(self).store(to, Relaxed);
    }
}
