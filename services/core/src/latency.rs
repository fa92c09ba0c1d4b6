//! Latencies, counted as a Prometheus histogram does.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets, in milliseconds; one more bucket takes what is longer.
pub const LATENCY_BOUNDS_MS: [u64; 16] =
    [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000, 3_600_000];

/// Latencies since the start.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; LATENCY_BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

/// What was counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LatencySnapshot {
    /// How many in each bucket, not cumulative; the last is past all bounds.
    pub buckets: [u64; LATENCY_BOUNDS_MS.len() + 1],
    /// The sum over all.
    pub sum_seconds: f64,
}

impl Latency {
    /// Counts so many that took so long.
    pub fn observe(&self, took: Duration, count: u64) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MS.partition_point(|bound_ms| bound_ms * 1_000 < took_us);
        self.buckets[bucket].fetch_add(count, Relaxed);
        self.sum_us.fetch_add(took_us.saturating_mul(count), Relaxed);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
            sum_seconds: self.sum_us.load(Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_on_a_bound_is_within_it() {
        let latency = Latency::default();
        for (took_us, count) in [(5_000, 2), (5_001, 3), (8_999_000_000, 1)] {
            latency.observe(Duration::from_micros(took_us), count);
        }
        let LatencySnapshot { buckets, sum_seconds } = latency.snapshot();
        assert_eq!((buckets[0], buckets[1], buckets[16]), (2, 3, 1));
        assert_eq!(sum_seconds, 0.010 + 0.015_003 + 8_999.0);
    }
}
