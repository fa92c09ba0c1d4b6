//! Time and chance, as arguments.

use std::sync::Arc;

use crate::{
    ids::NotificationId,
    trace::{NoSpans, Spans, TraceParent},
};

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
