//! Time and chance of a simulation: both follow from the seed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use herald_core::clock::{Clock, Entropy, World};
use tokio::time::Instant;

/// When every simulation begins: 2026-01-01T00:00:00Z.
pub const EPOCH_MS: u64 = 1_767_225_600_000;

/// A clock that follows tokio's paused time within a run of the node.
pub struct SimClock {
    began: Instant,
    base_ms: u64,
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.base_ms + self.began.elapsed().as_millis() as u64
    }
}

/// A generator of the splitmix64 family (S. Vigna), shared by everything that is left to chance.
#[derive(Clone)]
pub struct Chance(Arc<AtomicU64>);

impl Chance {
    pub fn of_seed(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)))
    }

    pub fn next(&self) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

impl Entropy for Chance {
    fn next_u64(&self) -> u64 {
        self.next()
    }
}

/// The world of one run, which begins at `base_ms`. To be called within the run's runtime.
pub fn world_at(base_ms: u64, chance: &Chance) -> World {
    let clock = SimClock { began: Instant::now(), base_ms };
    World::new(Arc::new(clock), Arc::new(Chance::of_seed(chance.next())))
}
