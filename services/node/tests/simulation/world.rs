//! Time and chance of a simulation: both follow from the seed.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use herald_core::clock::{Clock, Entropy, World};
use tokio::time::Instant;

/// When every simulation begins: 2026-01-01T00:00:00Z.
pub const EPOCH_MS: u64 = 1_767_225_600_000;

/// By how much the wall clock is wrong, through all lives of the node.
#[derive(Debug, Default)]
pub struct WallClock {
    ahead_ms: AtomicI64,
    /// The most that it ever was ahead.
    most_ms: AtomicI64,
    /// When it was set last, in true time.
    pub set_ms: AtomicU64,
    /// How often it was set.
    pub sets: AtomicU64,
    /// The latest time that it showed before it was set back.
    latest_ms: AtomicU64,
}

/// A clock that follows tokio's paused time within a run of the node, as far as nobody sets it. What nobody can set is the
/// true time, by which is checked what happened when.
pub struct SimClock {
    began: Instant,
    base_ms: u64,
    wall: Arc<WallClock>,
}

impl SimClock {
    /// Milliseconds since the epoch as they truly are.
    pub fn true_ms(&self) -> u64 {
        self.base_ms + self.began.elapsed().as_millis() as u64
    }

    /// The latest time that the wall clock has shown so far.
    pub fn latest_ms(&self) -> u64 {
        self.now_ms().max(self.wall.latest_ms.load(Relaxed))
    }

    /// When the wall clock was set last, in true time; 0 for never.
    pub fn set_ms(&self) -> u64 {
        self.wall.set_ms.load(Relaxed)
    }

    /// Sets the wall clock forward, or back.
    pub fn set_by(&self, by_ms: i64) {
        self.wall.latest_ms.store(self.latest_ms(), Relaxed);
        let ahead_ms = self.wall.ahead_ms.fetch_add(by_ms, Relaxed) + by_ms;
        self.wall.most_ms.fetch_max(ahead_ms, Relaxed);
        self.wall.set_ms.store(self.true_ms(), Relaxed);
        self.wall.sets.fetch_add(1, Relaxed);
    }

    /// Sets the wall clock to where it would be had it never been set back.
    pub fn catch_up(&self) {
        let behind_ms = self.wall.most_ms.load(Relaxed) - self.wall.ahead_ms.load(Relaxed);
        if behind_ms > 0 {
            self.set_by(behind_ms);
        }
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.true_ms().saturating_add_signed(self.wall.ahead_ms.load(Relaxed))
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
    world_with(base_ms, Arc::default(), chance).0
}

/// The same with a wall clock that may be set, and the clock by which it is.
pub fn world_with(base_ms: u64, wall: Arc<WallClock>, chance: &Chance) -> (World, Arc<SimClock>) {
    let clock = Arc::new(SimClock { began: Instant::now(), base_ms, wall });
    (World::new(clock.clone(), Arc::new(Chance::of_seed(chance.next()))), clock)
}
