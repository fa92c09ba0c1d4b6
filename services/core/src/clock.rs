//! Time and chance, as arguments.

use std::sync::Arc;

use crate::{
    ids::NotificationId,
    trace::{NoSpans, Spans, TraceParent},
};

/// The wall clock, and one that nobody sets.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch, as the wall clock shows it: somebody may set it forward or back.
    fn now_ms(&self) -> u64;

    /// Milliseconds that only ever pass one after the other, since a time that means nothing outside of this process. By it
    /// goes what lasts so long from now; what is kept, told or agreed on with others goes by [`Self::now_ms`]. The clock of
    /// a test, which nobody sets, is its own.
    fn steady_ms(&self) -> u64 {
        self.now_ms()
    }
}

/// A source of random numbers.
pub trait Entropy: Send + Sync + 'static {
    /// The next 64 random bits. Ids and secrets are made of them, so outside of tests they must not be predictable.
    fn next_u64(&self) -> u64;
}

/// A clock, a source of randomness and where spans go, which roles take with them.
#[derive(Clone)]
pub struct World {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Where finished spans go.
    pub spans: Arc<dyn Spans>,
}

impl World {
    /// A world in which nothing is traced.
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, entropy, spans: Arc::new(NoSpans) }
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Milliseconds that no wall clock moves: see [`Clock::steady_ms`].
    pub fn steady_ms(&self) -> u64 {
        self.clock.steady_ms()
    }

    /// A new notification id.
    pub fn notification_id(&self) -> NotificationId {
        NotificationId::at(self.now_ms(), [self.entropy.next_u64(), self.entropy.next_u64()])
    }

    /// The context in a record or header, if spans of it are to be recorded.
    pub fn traced(&self, trace_parent: &str) -> Option<TraceParent> {
        if self.spans.wanted() { TraceParent::sampled(trace_parent) } else { None }
    }

    /// A number below `bound`, or 0 where the bound is 0.
    pub fn below(&self, bound: u64) -> u64 {
        // The bias of the multiplication is below 2^-32 for the small bounds used here.
        ((u128::from(self.entropy.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}
