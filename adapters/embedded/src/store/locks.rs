//! Locks for what reads before it writes.

use herald_core::ids::user_hash;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const STRIPES: usize = 64;

/// A fixed number of locks, chosen by the hash of a name. Take one at a time.
pub struct Stripes(Vec<RwLock<()>>);

impl Default for Stripes {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| RwLock::new(())).collect())
    }
}

impl Stripes {
    /// The lock of a name, to write.
    pub fn write(&self, name: &str) -> RwLockWriteGuard<'_, ()> {
        self.0[user_hash(name) as usize % STRIPES].write()
    }

    /// The lock of a number, to write.
    pub fn write_nth(&self, number: u32) -> RwLockWriteGuard<'_, ()> {
        self.0[number as usize % STRIPES].write()
    }

    /// The lock of a name, to read.
    pub fn read(&self, name: &str) -> RwLockReadGuard<'_, ()> {
        self.0[user_hash(name) as usize % STRIPES].read()
    }
}
