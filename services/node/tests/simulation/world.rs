//! Time and chance of a simulation: both follow from the seed.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use herald_core::clock::{Clock, Entropy, World};
use tokio::time::Instant;

/// When every simulation begins: 2026-01-01T00:00:00Z.
pub const EPOCH_MS: u64 = 1_767_225_600_000;

/// What the wall clock shows, through all lives of the node.
#[derive(Debug, Default)]
pub struct WallClock {
    /// Each time that it was set: when, in true time, and by how much it has been wrong since.
    sets: Mutex<Vec<(u64, i64)>>,
    moves_steady_time: bool,
}

impl WallClock {
    /// One that is right until it is set, with the defect that steady time is set with it, or without.
    pub fn new(moves_steady_time: bool) -> Self {
        Self { moves_steady_time, ..Self::default() }
    }

    fn ahead_ms(&self, true_ms: u64) -> i64 {
        let sets = self.sets.lock().unwrap();
        sets.iter().rev().find(|(at_ms, _)| *at_ms <= true_ms).map_or(0, |(_, ahead_ms)| *ahead_ms)
    }

    /// What it shows at a true time.
    pub fn shows(&self, true_ms: u64) -> u64 {
        true_ms.saturating_add_signed(self.ahead_ms(true_ms))
    }

    /// What it shows in a span of true time: at its beginning and end, and before and after each time that it is set.
    pub fn shown(&self, from_ms: u64, until_ms: u64) -> Vec<u64> {
        let sets = self.sets.lock().unwrap().clone();
        let within = sets.iter().map(|(at_ms, _)| *at_ms).filter(|at_ms| (from_ms + 1..=until_ms).contains(at_ms));
        let at_ms = within.flat_map(|at_ms| [at_ms - 1, at_ms]).chain([from_ms, until_ms]);
        at_ms.map(|at_ms| self.shows(at_ms)).collect()
    }

    /// The latest time that it shows within a span of true time.
    pub fn latest(&self, from_ms: u64, until_ms: u64) -> u64 {
        self.shown(from_ms, until_ms).into_iter().max().unwrap()
    }

    /// How far apart the times are by which it was ever wrong.
    pub fn spread_ms(&self) -> u64 {
        let sets = self.sets.lock().unwrap();
        let ahead = || sets.iter().map(|(_, ahead_ms)| *ahead_ms).chain([0]);
        ahead().max().unwrap().abs_diff(ahead().min().unwrap())
    }

    /// How often it was set.
    pub fn sets(&self) -> usize {
        self.sets.lock().unwrap().len()
    }
}

/// A clock that follows tokio's paused time within a run of the node. Somebody may set the wall clock; steady time goes on, and
/// so does the true time, by which is checked what happened when.
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

    /// Sets the wall clock so that it is wrong by so much, or right.
    pub fn set(&self, ahead_ms: i64) {
        self.wall.sets.lock().unwrap().push((self.true_ms(), ahead_ms));
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.wall.shows(self.true_ms())
    }

    fn steady_ms(&self) -> u64 {
        if self.wall.moves_steady_time { self.now_ms() } else { self.true_ms() }
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
