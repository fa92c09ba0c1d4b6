//! The span of a call that admits notifications: what they carry as the context they were created in.

use herald_core::{
    clock::World,
    ids::TenantId,
    trace::{Span, SpanKind, TraceParent, names},
};

/// A call that is being traced.
pub(crate) struct CallTrace {
    own: TraceParent,
    parent: Option<TraceParent>,
    begun_ms: u64,
}

impl CallTrace {
    /// A call with the caller's `traceparent`, which decides whether it is recorded, or as the root of a new trace, of
    /// which some in a million are. A context that nothing records here is handed on as it came.
    pub(crate) fn begin(given: Option<&str>, traces_per_million: u32, world: &World) -> Self {
        let parent = given.and_then(TraceParent::parse);
        let own = match parent {
            Some(parent) if parent.sampled && world.spans.wanted() => parent.child(&*world.entropy),
            Some(parent) => parent,
            None => {
                let sampled = world.below(1_000_000) < u64::from(traces_per_million);
                TraceParent::root(&*world.entropy, sampled)
            }
        };
        Self { own, parent, begun_ms: world.now_ms() }
    }

    /// What the notifications carry.
    pub(crate) fn trace_parent(&self) -> String {
        self.own.to_string()
    }

    /// The call has put this many notifications on the log, or was refused.
    pub(crate) fn end(self, tenant: &TenantId, appended: usize, error: Option<&str>, world: &World) {
        let Self { own, parent, begun_ms } = self;
        if !own.sampled || !world.spans.wanted() {
            return;
        }
        let span = Span::new(own, parent, "notify".into(), SpanKind::Server, begun_ms, world.now_ms())
            .with(names::OPERATION_NAME, "notify")
            .with(names::OPERATION_TYPE, "send")
            .with(names::TENANT, tenant.as_str())
            .with(names::BATCH_COUNT, appended as u64);
        world.spans.record(Span { error: error.map(str::to_owned), ..span });
    }
}
