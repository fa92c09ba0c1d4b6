//! What ends as dead leaves a dead letter, with the record that would bring it back.

use herald_core::{
    dead_letters::{dead_section_books, letter, place_of},
    ids::NotificationId,
    outputs::Outputs,
    ports::log::Record,
    record::{DeadLetter, DeliveryBatch, Envelope, Place, Schema, State},
    topic::Topic,
};
use prost::Message as _;

use crate::{
    Deps,
    moving::part_of,
    receipts::End,
    section::Head,
    shard::{Queued, Shard},
};

/// The stage that letters of this role name.
const STAGE: &str = "worker";

impl Shard {
    /// A record that cannot be read is booked dead from its envelope, and kept.
    pub(crate) fn bury_undecodable(&mut self, record: &Record, undone: Vec<u32>, deps: &Deps) {
        deps.stats.add(|s| &s.undecodable, 1);
        tracing::error!(at = %record.at, offset = record.offset, "deliveries cannot be read; they are dead letters");
        bury_record(record, "undecodable", deps, &mut self.outputs);
        self.finish(record.at.topic, record.offset, undone);
    }

    /// A section that kills its stage becomes a dead letter; the rest of the record goes on.
    pub(crate) fn bury_poison(&mut self, record: &Record, queued: &Queued, deps: &Deps) {
        let head = &queued.chunk.head;
        tracing::error!(at = %record.at, offset = record.offset, notification = %head.id, "a section kills its worker");
        let end = End::by_rule(State::Dead, "poison", head.section.attempts);
        self.end_all(queued, &end, deps.world.now_ms());
    }

    /// The place of a record of this shard.
    pub(crate) fn place(&self, topic: Topic, offset: u64) -> Place {
        Place { topic: topic.code().into(), partition: self.number, offset, log_epoch: self.log_epoch }
    }
}

/// Books what the envelope of an unreadable record tells as dead, and keeps the record.
pub(crate) fn bury_record(record: &Record, cause: &str, deps: &Deps, outputs: &mut Outputs) {
    let now_ms = deps.world.now_ms();
    for receipts in dead_section_books(&record.envelope.sections, now_ms, cause, false) {
        deps.stats.add(|s| &s.ended, receipts.count.into());
        outputs.receipts(receipts);
    }
    let place = place_of(record, deps.log.identity());
    outputs.dead(&record.envelope.tenant, letter(record, place, STAGE, cause, now_ms));
}

/// Keeps some users of a section, by their indexes in it, who end as dead. Their receipts are the caller's to write.
pub(crate) fn bury_users(head: &Head, users: &[u32], end: &End, place: Place, now_ms: u64, outputs: &mut Outputs) {
    let tenant = head.tenant.as_str();
    let (section, summary) = part_of(head, users, end.attempts);
    let envelope = Envelope { sections: vec![summary], ..outputs.envelope(Schema::DeliveryBatch, tenant) };
    let letter = DeadLetter {
        stage: STAGE.to_owned(),
        cause: end.reason.to_owned(),
        attempts: end.attempts,
        dead_ms: now_ms,
        place: Some(place),
        envelope: envelope.encode_to_vec().into(),
        body: DeliveryBatch { sections: vec![section] }.encode_to_vec().into(),
        detail: end.error_code.clone(),
    };
    outputs.dead(tenant, letter);
}

/// The notification that a request's envelope tells of.
pub(crate) fn request_id(envelope: &Envelope) -> Option<NotificationId> {
    envelope.sections.first().and_then(|summary| NotificationId::from_slice(&summary.notification_id))
}
