//! What the worker counts; read by the metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use herald_core::{
    latency::{Latency, LatencySnapshot},
    record::Channel,
};
use parking_lot::Mutex;

/// Providers that are told apart; more are counted together.
const MOST_PROVIDERS: usize = 32;

/// By the code of the channel and the provider.
type LatencyByProvider = BTreeMap<(i32, Arc<str>), Arc<Latency>>;

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
    /// Dead letters that the worker wrote.
    pub dead_letters: AtomicU64,
    /// Dead letters that the router wrote.
    pub router_dead_letters: AtomicU64,
    sends: Mutex<LatencyByProvider>,
    /// Gauge: instances handed to providers whose outcome is not durably committed.
    pub in_doubt: AtomicU64,
    /// Gauge: unfinished instances in memory.
    pub window_instances: AtomicU64,
}

impl Stats {
    pub(crate) fn add(&self, counter: impl Fn(&Self) -> &AtomicU64, by: u64) {
        counter(self).fetch_add(by, Relaxed);
    }

    /// From the start of a send to its answer, by channel and provider.
    pub fn sends(&self) -> Vec<(Channel, Arc<str>, LatencySnapshot)> {
        let channel = |code: i32| Channel::try_from(code).unwrap_or_default();
        let sends = self.sends.lock();
        sends.iter().map(|((code, provider), latency)| (channel(*code), provider.clone(), latency.snapshot())).collect()
    }

    /// Where the latencies of a provider's sends are counted.
    pub(crate) fn sends_of(&self, channel: Channel, provider: &Arc<str>) -> Arc<Latency> {
        let mut sends = self.sends.lock();
        let key = (channel as i32, provider.clone());
        let is_known = sends.contains_key(&key) || sends.len() < MOST_PROVIDERS;
        let key = if is_known { key } else { (channel as i32, "other".into()) };
        sends.entry(key).or_default().clone()
    }

    pub(crate) fn set(&self, gauge: impl Fn(&Self) -> &AtomicU64, to: u64) {
        gauge(self).store(to, Relaxed);
    }
}
