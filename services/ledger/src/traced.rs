//! What is told of receipts whose notifications are traced: a flush holds many, so its span links to them.

use herald_core::{
    clock::World,
    record::LedgerBatch,
    topic::{Group, Topic},
    trace::{Span, SpanKind, TraceParent, names},
};

/// The links of one span.
const MOST_LINKS: usize = 128;

/// Traced notifications of the flush that is being gathered.
#[derive(Default)]
pub(crate) struct Traced {
    links: Vec<TraceParent>,
    begun_ms: u64,
    instances: u64,
}

impl Traced {
    /// Notes those of a batch, as far as there is room.
    pub(crate) fn add(&mut self, batch: &LedgerBatch, world: &World) {
        if !world.spans.wanted() {
            return;
        }
        for receipts in &batch.receipts {
            let Some(link) = world.traced(&receipts.trace_parent) else { continue };
            if self.links.is_empty() {
                self.begun_ms = world.now_ms();
            }
            self.instances += u64::from(receipts.count);
            if self.links.len() < MOST_LINKS && !self.links.contains(&link) {
                self.links.push(link);
            }
        }
    }

    /// The flush is in: tells of it, and begins the next.
    pub(crate) fn flushed(&mut self, world: &World) {
        let Self { links, begun_ms, instances } = std::mem::take(self);
        if links.is_empty() {
            return;
        }
        let (own, name) = (TraceParent::root(&*world.entropy, true), format!("settle {}", Topic::Receipts));
        let span = Span::new(own, None, name, SpanKind::Consumer, begun_ms, world.now_ms())
            .with(names::OPERATION_NAME, "settle")
            .with(names::OPERATION_TYPE, "settle")
            .with(names::DESTINATION, Topic::Receipts.to_string())
            .with(names::GROUP, Group::LedgerReceipts.name())
            .with(names::BATCH_COUNT, links.len() as u64)
            .with(names::INSTANCES, instances);
        world.spans.record(Span { links, ..span });
    }
}
