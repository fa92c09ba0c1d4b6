//! Time and chance, as arguments.

use std::sync::Arc;

use crate::ids::NotificationId;

/// The wall clock.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
}

/// A source of random numbers.
pub trait Entropy: Send + Sync + 'static {
    /// The next 64 random bits. Ids and secrets are made of them, so outside of tests they must not be predictable.
    fn next_u64(&self) -> u64;
}

/// A clock and a source of randomness, which roles take with them.
#[derive(Clone)]
pub struct World {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl World {
    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// A new notification id.
    pub fn notification_id(&self) -> NotificationId {
        NotificationId::at(self.now_ms(), [self.entropy.next_u64(), self.entropy.next_u64()])
    }

    /// A number below `bound`, or 0 where the bound is 0.
    pub fn below(&self, bound: u64) -> u64 {
        // The bias of the multiplication is below 2^-32 for the small bounds used here.
        ((u128::from(self.entropy.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}
