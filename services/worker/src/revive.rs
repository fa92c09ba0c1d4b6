//! A dead letter becomes what it was: its record goes home again, and the books take back that it had ended. Pure.

use bytes::Bytes;
use herald_core::{
    dead_letters::{dead_request_books, dead_section_books},
    outputs::Outputs,
    record::{DeadLetter, DeliveryBatch, Envelope, Manifest, Notification, Request},
    topic::{Topic, TopicPartition},
};
use prost::Message as _;

use crate::{burying::request_id, moving::deliveries_home};

/// What the books are to say of a letter's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Books {
    /// They have ended as dead, which is taken back.
    TakeBack,
    /// That was taken back by a redrive before, so they are created once more.
    CreateAnew,
}

/// Puts a letter's record out again, with its whole ttl before it and no attempts behind it. Returns how many instances
/// it holds; `None` if there is nowhere for it to go, and then nothing is put out.
pub(crate) fn revive(letter: &DeadLetter, books: Books, now_ms: u64, outputs: &mut Outputs) -> Option<u64> {
    let place = letter.place?;
    let envelope = Envelope::decode(letter.envelope.clone()).ok()?;
    let mut envelope = Envelope { waiting: None, ..envelope };
    let at = TopicPartition { topic: Topic::of_code(u8::try_from(place.topic).ok()?)?, partition: place.partition };
    match at.topic {
        Topic::Deliveries(_) | Topic::Overflow(_) => {
            Some(revive_deliveries(letter, envelope, at, books, now_ms, outputs))
        }
        Topic::Requests(_) | Topic::RequestsOverflow(_) => {
            // Else it would be taken for a second admission under its idempotency key.
            envelope.first_place.get_or_insert(place);
            Some(revive_request(letter, envelope, at, books, now_ms, outputs))
        }
        Topic::Inbox => {
            let instances = book(letter, &envelope, books, now_ms, outputs);
            outputs.record(at, envelope, letter.body.clone());
            Some(instances)
        }
        // What a ledger could not read was never booked, so there is nothing to take back; read twice, it would be.
        Topic::Receipts if books == Books::TakeBack => {
            outputs.record(at, envelope, letter.body.clone());
            Some(0)
        }
        _ => None,
    }
}

/// Books the instances of which an envelope tells as being under way again. Returns how many there are.
fn book(letter: &DeadLetter, envelope: &Envelope, books: Books, now_ms: u64, outputs: &mut Outputs) -> u64 {
    match books {
        Books::TakeBack => dead_section_books(&envelope.sections, now_ms, &letter.cause, true)
            .for_each(|receipts| outputs.receipts(receipts)),
        Books::CreateAnew => envelope.sections.iter().for_each(|summary| {
            outputs.manifest(Manifest {
                notification_id: summary.notification_id.clone(),
                tenant: summary.tenant.clone(),
                channel: summary.channel,
                count: summary.count,
                hash_sum: summary.hash_sum,
                ..Default::default()
            });
        }),
    }
    envelope.sections.iter().map(|summary| u64::from(summary.count)).sum()
}

fn revive_deliveries(
    letter: &DeadLetter,
    envelope: Envelope,
    at: TopicPartition,
    books: Books,
    now_ms: u64,
    outputs: &mut Outputs,
) -> u64 {
    let instances = book(letter, &envelope, books, now_ms, outputs);
    let home = deliveries_home(at.topic, at.partition);
    match DeliveryBatch::decode(letter.body.clone()) {
        Ok(batch) if batch.sections.len() == envelope.sections.len() => {
            for (mut section, summary) in batch.sections.into_iter().zip(envelope.sections) {
                section.attempts = 0;
                section.notification = renewed(&section.notification, now_ms);
                outputs.section(home, None, section, summary);
            }
        }
        // Whoever can read it by now will.
        _ => outputs.record(home, envelope, letter.body.clone()),
    }
    instances
}

fn revive_request(
    letter: &DeadLetter,
    envelope: Envelope,
    at: TopicPartition,
    books: Books,
    now_ms: u64,
    outputs: &mut Outputs,
) -> u64 {
    let home = match at.topic {
        Topic::RequestsOverflow(lane) => TopicPartition { topic: Topic::Requests(lane), ..at },
        _ => at,
    };
    // Created anew, its instances are booked as they are expanded.
    if let Some(id) = request_id(&envelope).filter(|_| books == Books::TakeBack) {
        let books = dead_request_books(&envelope.tenant, &id, now_ms, &letter.cause, true);
        books.manifests.into_iter().for_each(|manifest| outputs.manifest(manifest));
        books.receipts.into_iter().for_each(|receipts| outputs.receipts(receipts));
    }
    let body = match Request::decode(letter.body.clone()) {
        Ok(request) => {
            let notification = renewed(&request.notification, now_ms);
            Request { notification, ..request }.encode_to_vec().into()
        }
        Err(_) => letter.body.clone(),
    };
    outputs.record(home, envelope, body);
    1
}

/// The notification with its ttl counted from now, unless more is left of it; as it is if it cannot be read.
fn renewed(bytes: &Bytes, now_ms: u64) -> Bytes {
    let Ok(mut notification) = Notification::decode(bytes.clone()) else { return bytes.clone() };
    let ttl_ms = notification.expires_ms.saturating_sub(notification.accepted_ms.max(notification.send_at_ms));
    notification.expires_ms = notification.expires_ms.max(now_ms.saturating_add(ttl_ms));
    notification.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use herald_core::{
        ids::{InstanceId, NotificationId},
        packed,
        ports::log::NewRecord,
        record::{Channel, LedgerBatch, Place, Schema, Section, SectionSummary},
        topic::{Lane, Layout},
    };

    use super::*;

    const LAYOUT: Layout = Layout { shards: 2, requests: 2, receipts: 1 };
    const ID: NotificationId = NotificationId([3; 16]);

    fn revived(letter: &DeadLetter) -> Option<(u64, Vec<NewRecord>)> {
        revived_with(letter, Books::TakeBack)
    }

    fn revived_with(letter: &DeadLetter, books: Books) -> Option<(u64, Vec<NewRecord>)> {
        let mut outputs = Outputs::new(LAYOUT, "eu", 100_000);
        let instances = revive(letter, books, 100_000, &mut outputs)?;
        Some((instances, outputs.finish()))
    }

    fn books(records: &[NewRecord]) -> LedgerBatch {
        let record = records.iter().find(|record| record.at.topic == Topic::Receipts).unwrap();
        LedgerBatch::decode(record.body.clone()).unwrap()
    }

    fn letter_of(topic: Topic, envelope: &Envelope, body: Vec<u8>) -> DeadLetter {
        let place = Place { topic: topic.code().into(), partition: 1, offset: 9, log_epoch: 1 };
        let envelope = envelope.encode_to_vec().into();
        DeadLetter { cause: "expired".into(), place: Some(place), envelope, body: body.into(), ..Default::default() }
    }

    fn notification() -> Bytes {
        let (accepted_ms, expires_ms) = (1_000, 6_000);
        Notification { id: ID.0.to_vec().into(), accepted_ms, expires_ms, ..Default::default() }.encode_to_vec().into()
    }

    #[test]
    fn deliveries_go_home_with_their_whole_ttl_and_their_end_is_taken_back() {
        let hash_sum = InstanceId::of(&ID, "a", Channel::Email).book_hash();
        let summary = SectionSummary {
            notification_id: ID.0.to_vec().into(),
            channel: 2,
            count: 1,
            hash_sum,
            ..Default::default()
        };
        let users = packed::pack(["a"]);
        let section =
            Section { notification: notification(), channel: 2, users, count: 1, attempts: 8, ..Default::default() };
        let envelope = Envelope { sections: vec![summary.clone()], ..Default::default() };
        let body = DeliveryBatch { sections: vec![section] }.encode_to_vec();
        let (instances, records) = revived(&letter_of(Topic::Overflow(Lane::Bulk), &envelope, body)).unwrap();
        assert_eq!((instances, records.len()), (1, 2));
        let deliveries = records.iter().find(|record| record.at.topic == Topic::Deliveries(Lane::Bulk)).unwrap();
        assert_eq!((deliveries.at.partition, &deliveries.envelope.sections), (1, &vec![summary]));
        let batch = DeliveryBatch::decode(deliveries.body.clone()).unwrap();
        let renewed = Notification::decode(batch.sections[0].notification.clone()).unwrap();
        assert_eq!((batch.sections[0].attempts, renewed.expires_ms), (0, 105_000));
        let receipts = &books(&records).receipts[0];
        assert!(receipts.negative);
        assert_eq!((receipts.count, receipts.hash_sum), (1, hash_sum));
    }

    #[test]
    fn a_request_opens_its_chain_again_and_is_no_second_admission() {
        let summary = SectionSummary { notification_id: ID.0.to_vec().into(), ..Default::default() };
        let envelope = Envelope { schema: Schema::Request as i32, sections: vec![summary], ..Default::default() };
        let body = Request { notification: notification(), ..Default::default() }.encode_to_vec();
        let (instances, records) = revived(&letter_of(Topic::Requests(Lane::Bulk), &envelope, body)).unwrap();
        let request = records.iter().find(|record| record.at.topic == Topic::Requests(Lane::Bulk)).unwrap();
        assert_eq!((instances, request.envelope.first_place.unwrap().offset), (1, 9));
        let books = books(&records);
        assert!(books.manifests[0].negative && books.manifests[0].last && books.receipts[0].negative);
    }

    #[test]
    fn what_was_brought_back_before_is_created_anew() {
        let summary =
            SectionSummary { notification_id: ID.0.to_vec().into(), count: 3, hash_sum: 7, ..Default::default() };
        let envelope = Envelope { sections: vec![summary], ..Default::default() };
        let letter = letter_of(Topic::Inbox, &envelope, Vec::new());
        let (instances, records) = revived_with(&letter, Books::CreateAnew).unwrap();
        let books = books(&records);
        assert_eq!((instances, books.receipts.len()), (3, 0));
        assert_eq!((books.manifests[0].count, books.manifests[0].hash_sum, books.manifests[0].last), (3, 7, false));
        let ledger = letter_of(Topic::Receipts, &Envelope::default(), Vec::new());
        assert!(revived_with(&ledger, Books::CreateAnew).is_none(), "it would be booked twice");
    }

    #[test]
    fn what_does_not_say_where_it_came_from_stays() {
        let envelope = Envelope::default();
        assert!(revived(&letter_of(Topic::Delayed(0), &envelope, Vec::new())).is_none());
        assert!(revived(&DeadLetter::default()).is_none());
    }

    #[test]
    fn what_cannot_be_read_goes_home_as_it_is() {
        let envelope = Envelope { sections: vec![SectionSummary::default(); 2], ..Default::default() };
        let (_, records) = revived(&letter_of(Topic::Deliveries(Lane::Bulk), &envelope, vec![0xff])).unwrap();
        assert!(
            records.iter().any(|record| record.at.topic == Topic::Deliveries(Lane::Bulk) && record.body[..] == [0xff])
        );
    }
}
