//! What the ledger counts, for metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use herald_core::{
    latency::{Latency, LatencySnapshot},
    record::{Channel, Receipts, State},
};

use crate::reconcile::Stuck;

/// The channels, in the order of the arrays here.
pub const CHANNELS: [Channel; 4] = [Channel::InApp, Channel::Email, Channel::Push, Channel::Webhook];

/// The states, in the order of the arrays here.
pub const STATES: [State; 4] = [State::Delivered, State::Suppressed, State::Failed, State::Dead];

/// Counters since the start, and gauges.
#[derive(Debug, Default)]
pub struct LedgerStats {
    receipts: [[AtomicU64; STATES.len()]; CHANNELS.len()],
    latency: [Latency; CHANNELS.len()],
    /// Instances whose end was taken back by a redrive.
    pub taken_back: AtomicU64,
    /// Manifests booked.
    pub manifests: AtomicU64,
    /// Instances that manifests created.
    pub created: AtomicU64,
    /// Requests noted.
    pub admitted: AtomicU64,
    /// Writes of totals and receipts.
    pub flushes: AtomicU64,
    /// Failed attempts to read the log, or at the store.
    pub retries: AtomicU64,
    /// Records that could not be read and became dead letters.
    pub dead_letters: AtomicU64,
    /// Records, or parts of them, that could not be read.
    pub unreadable: AtomicU64,
    /// Receipts that contradict what is final: delivered after the books were closed by a cancel.
    pub contradictions: AtomicU64,
    /// By channel, provider and state.
    by_provider: Mutex<BTreeMap<(usize, String, usize), u64>>,
    /// What each member's last check of its books found, by its ordinal.
    checks: Mutex<BTreeMap<u32, Check>>,
}

/// What a check of the books in memory found.
#[derive(Debug, Clone, Default)]
pub struct Check {
    /// Notifications whose books are open.
    pub unsettled: u64,
    /// Channels whose books contradict themselves, of notifications.
    pub overbooked: u64,
    /// Channels of which instances do not move although they wait for no due time.
    pub stalled: u64,
    /// The longest time for which nothing of one of the latter was booked.
    pub longest_idle_ms: u64,
    /// Some of both.
    pub stuck: Vec<Stuck>,
}

/// Providers that are told apart; more are counted together.
const MOST_PROVIDERS: usize = 32;

impl LedgerStats {
    /// How many instances of a channel ended in a state.
    pub fn ended(&self, channel: Channel, state: State) -> u64 {
        match (index(&CHANNELS, channel), index(&STATES, state)) {
            (Some(channel), Some(state)) => self.receipts[channel][state].load(Relaxed),
            _ => 0,
        }
    }

    /// From acceptance to the end of a channel's instances.
    pub fn latency(&self, channel: Channel) -> LatencySnapshot {
        index(&CHANNELS, channel).map(|channel| self.latency[channel].snapshot()).unwrap_or_default()
    }

    /// Instances that a provider or a rule of ours ended, by channel, provider and state.
    pub fn by_provider(&self) -> Vec<(Channel, String, State, u64)> {
        let by = self.by_provider.lock().unwrap_or_else(PoisonError::into_inner);
        by.iter().map(|((c, provider, s), count)| (CHANNELS[*c], provider.clone(), STATES[*s], *count)).collect()
    }

    /// What the last checks of the books of all members found together.
    pub fn check(&self) -> Check {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.values().fold(Check::default(), |mut all, check| {
            all.unsettled += check.unsettled;
            all.overbooked += check.overbooked;
            all.stalled += check.stalled;
            all.longest_idle_ms = all.longest_idle_ms.max(check.longest_idle_ms);
            all.stuck.extend(check.stuck.iter().cloned());
            all
        })
    }

    /// Notes what a member's check found.
    pub(crate) fn checked(&self, member: u32, check: Check) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).insert(member, check);
    }

    fn count_provider(&self, channel: usize, provider: &str, state: usize, count: u64) {
        // A panic within would leave a number that is off by one record.
        let mut by = self.by_provider.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = by.keys().any(|(_, known, _)| known == provider);
        let providers = || by.keys().map(|(_, known, _)| known).collect::<std::collections::BTreeSet<_>>().len();
        let provider = if is_known || providers() < MOST_PROVIDERS { provider } else { "other" };
        *by.entry((channel, provider.to_owned(), state)).or_default() += count;
    }

    pub(crate) fn count_receipts(&self, receipts: &Receipts) {
        let count = u64::from(receipts.count);
        if receipts.negative {
            self.taken_back.fetch_add(count, Relaxed);
            return;
        }
        let Some(channel) = index(&CHANNELS, receipts.channel()) else { return };
        if let Some(state) = index(&STATES, receipts.state()) {
            self.receipts[channel][state].fetch_add(count, Relaxed);
            self.count_provider(channel, &receipts.provider, state, count);
        }
        let latency_ms = receipts.ended_ms.saturating_sub(receipts.accepted_ms);
        self.latency[channel].observe(Duration::from_millis(latency_ms), count);
    }
}

fn index<T: PartialEq>(all: &[T], one: T) -> Option<usize> {
    all.iter().position(|other| *other == one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_from_acceptance_to_the_end() {
        let stats = LedgerStats::default();
        for (ended_ms, count) in [(1_005, 2), (1_006, 3), (9_000_000, 1)] {
            stats.count_receipts(&Receipts {
                channel: Channel::Push as i32,
                state: State::Delivered as i32,
                count,
                accepted_ms: 1_000,
                ended_ms,
                ..Default::default()
            });
        }
        assert_eq!(stats.latency(Channel::Push).sum_seconds, 0.010 + 0.018 + 8_999.0);
        assert_eq!(stats.ended(Channel::Push, State::Delivered), 6);
    }
}
