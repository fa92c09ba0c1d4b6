//! What is told of messages whose notifications are traced.

use herald_core::{
    clock::World,
    ids::channel_name,
    record::Channel,
    trace::{Span, SpanKind, names},
};

use crate::{delivery::Batch, section::Head};

/// Tells of a batch that a provider is done with: a span for each of its sections that is traced.
pub(crate) fn tell(batch: &Batch, world: &World) {
    if !world.spans.wanted() {
        return;
    }
    for (at, section) in batch.sections.iter().enumerate() {
        let messages = || batch.items.iter().filter(|item| item.section == at).count() as u64;
        if let Some(span) = span_of(&section.head, batch.begun_ms, world) {
            let span = span.with(names::PROVIDER, &*batch.provider).with(names::BATCH_COUNT, messages());
            world.spans.record(Span { error: section.refusal.clone(), ..span });
        }
    }
}

/// A span of a section's messages up to now, if its notification is traced.
fn span_of(head: &Head, begun_ms: u64, world: &World) -> Option<Span> {
    let parent = world.traced(&head.notification.trace_parent)?;
    let (own, channel) = (parent.child(&*world.entropy), channel_name(head.channel));
    let span = Span::new(own, Some(parent), format!("send {channel}"), SpanKind::Client, begun_ms, world.now_ms());
    let span = span.with(names::OPERATION_NAME, "send").with(names::OPERATION_TYPE, "send");
    let span = span.with(names::CHANNEL, channel).with(names::TENANT, head.tenant.as_str());
    Some(span.with(names::NOTIFICATION, head.id.to_string()))
}

/// Tells of in-app items, which are sent by the commit that follows.
pub(crate) fn tell_of_items(head: &Head, items: u64, world: &World) {
    if head.channel == Channel::InApp
        && let Some(span) = span_of(head, world.now_ms(), world)
    {
        world.spans.record(span.with(names::BATCH_COUNT, items));
    }
}
