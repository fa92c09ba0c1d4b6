//! The real clock and the system's randomness.

use std::{
    sync::{Arc, LazyLock},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use herald_core::clock::{Clock, Entropy, World};
use rand::Rng;

/// The system's wall clock.
pub struct SystemClock;

/// When steady time was asked for first, and what the wall clock showed.
static BEGAN: LazyLock<(Instant, u64)> = LazyLock::new(|| (Instant::now(), SystemClock.now_ms()));

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        // A clock before 1970 is a broken machine; its time then counts as 1970.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
    }

    fn steady_ms(&self) -> u64 {
        let (began, wall_ms) = &*BEGAN;
        wall_ms + began.elapsed().as_millis() as u64
    }
}

/// The thread's cryptographic generator, seeded by the system.
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn next_u64(&self) -> u64 {
        rand::rng().next_u64()
    }
}

/// The world as it is.
pub fn system() -> World {
    World::new(Arc::new(SystemClock), Arc::new(SystemEntropy))
}

/// The name of this machine.
pub fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("herald").to_owned()
}

/// What no other process is called, whatever its name: see [`crate::namesakes`].
pub fn process_name(name: &str, world: &World) -> String {
    format!("{name}/{:08x}", world.entropy.next_u64() >> 32)
}
