//! Records on the log: whatever is in one, no role ends, and what comes after it goes on.
//!
//! An input is the topic, the partition and the schema as a byte each, the length of the envelope as two, the envelope
//! and the body.

use bytes::Bytes;
use herald_core::{
    ids::{InstanceId, NotificationId, TenantId},
    levels::FEATURE_LEVEL,
    packed::pack,
    ports::log::NewRecord,
    record::{self, Channel, Envelope, Schema, SectionSummary, Waiting, audience},
    topic::{Lane, Topic, TopicPartition},
};
use prost::Message;

use crate::node::{EPOCH_MS, LAYOUT, with_node};

/// Puts a record on the log of a running node.
pub fn run(input: &[u8]) {
    let Some((record, steers)) = record_of(input) else { return };
    with_node(async |node| {
        node.backends.log.append(vec![record]).await.unwrap();
        match steers {
            // A policy may forbid to send, so all that counts is that everybody lives.
            true => tokio::time::sleep(std::time::Duration::from_secs(60)).await,
            false => node.still_delivers().await,
        }
    });
}

fn record_of(input: &[u8]) -> Option<(NewRecord, bool)> {
    let [topic, partition, schema, low, high, rest @ ..] = input else { return None };
    let topic = Topic::all().nth(usize::from(*topic) % Topic::all().count())?;
    let partition = u32::from(*partition) % LAYOUT.partitions(topic);
    let (envelope, body) = rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
    let mut envelope = Envelope::decode(envelope).ok()?;
    envelope.schema = i32::from(*schema);
    // What a later release wrote stops every reader, which is another matter.
    envelope.feature_level = envelope.feature_level.min(FEATURE_LEVEL);
    let key = match topic {
        Topic::Control => record::Control::decode(body).map(|c| format!("{}/{}", c.kind, c.key)).unwrap_or_default(),
        _ => String::new(),
    };
    let at = TopicPartition { topic, partition };
    let new = NewRecord { at, key: key.into(), timestamp_ms: EPOCH_MS, envelope, body: Bytes::copy_from_slice(body) };
    Some((new, topic == Topic::Control))
}

/// A record of each kind, where it belongs.
pub fn seeds() -> Vec<Vec<u8>> {
    let tenant = TenantId::trusted("demo");
    let id = NotificationId([7; 16]);
    let id_bytes = || Bytes::copy_from_slice(&id.0);
    let hash_sum = InstanceId::of(&id, "u1", Channel::Email).book_hash();
    let email = Channel::Email as i32;
    let notification = record::Notification {
        id: id_bytes(),
        tenant: tenant.to_string(),
        template_id: "t".into(),
        template_version: 1,
        accepted_ms: EPOCH_MS,
        expires_ms: EPOCH_MS + 3_600_000,
        dedupe_key: "d".into(),
        data: Bytes::from_static(br#"{"text":"hi"}"#),
        ..Default::default()
    };
    let notification = Bytes::from(notification.encode_to_vec());
    let users = || record::UserList { packed: pack(["u1"]), count: 1 };
    let request = record::Request {
        notification: notification.clone(),
        audience: Some(record::Audience { kind: Some(audience::Kind::Users(users())) }),
        channels: vec![email, Channel::InApp as i32],
        idempotency_key: "k".into(),
        ..Default::default()
    };
    let continuation = record::Request {
        cursor: Some(record::Cursor { hash: 1, user: "u0".into() }),
        expanded: 5,
        audience: Some(record::Audience { kind: Some(audience::Kind::Everyone(true)) }),
        ..request.clone()
    };
    let section = record::Section { notification, channel: email, users: pack(["u1"]), count: 1, ..Default::default() };
    let batch = record::DeliveryBatch { sections: vec![section] };
    let summary =
        SectionSummary { tenant: tenant.to_string(), notification_id: id_bytes(), channel: email, count: 1, hash_sum };
    let manifest = record::Manifest {
        notification_id: id_bytes(),
        tenant: tenant.to_string(),
        channel: email,
        count: 1,
        hash_sum,
        recipients: 1,
        last: true,
        ..Default::default()
    };
    let receipts = record::Receipts {
        notification_id: id_bytes(),
        tenant: tenant.to_string(),
        channel: email,
        state: record::State::Delivered as i32,
        count: 1,
        hash_sum,
        users: pack(["u1"]),
        ended_ms: EPOCH_MS,
        ..Default::default()
    };
    let ack = record::CancelAck { notification_id: id_bytes(), tenant: tenant.to_string(), shard: true, number: 1 };
    let books = record::LedgerBatch { manifests: vec![manifest], receipts: vec![receipts], cancel_acks: vec![ack] };
    let item = record::InboxSection {
        notification_id: id_bytes(),
        tenant: tenant.to_string(),
        users: pack(["u1"]),
        count: 1,
        titles: vec!["t".into()],
        bodies: vec!["b".into()],
        ..Default::default()
    };
    let inbox = record::InboxBatch { sections: vec![item] };
    let change =
        record::UserChange { tenant: tenant.to_string(), user_id: "u1".into(), version: 2, ..Default::default() };
    let claim = record::ClaimRun { owner: id_bytes(), expires_ms: u64::MAX, keys: vec![1; 32].into(), released: false };
    let claims = record::ClaimBatch { sequence: 1, runs: vec![claim], ..Default::default() };
    let switch = br#"{"scope":{"tenant":"demo"},"state":"off","reason":"","set_ms":0,"set_by":"op"}"#;
    let control = record::Control {
        kind: "switch".into(),
        key: "s".into(),
        version: 1,
        value: switch.to_vec().into(),
        deleted: false,
    };
    let envelope = |schema: Schema, waiting| Envelope {
        schema: schema as i32,
        feature_level: FEATURE_LEVEL,
        region: "fuzz".into(),
        tenant: tenant.to_string(),
        sections: vec![summary.clone()],
        waiting,
        ..Default::default()
    };
    let letter = record::DeadLetter {
        stage: "worker".into(),
        cause: "undecodable".into(),
        envelope: envelope(Schema::DeliveryBatch, None).encode_to_vec().into(),
        body: batch.encode_to_vec().into(),
        place: Some(record::Place { topic: 5, partition: 1, offset: 0, log_epoch: 1 }),
        ..Default::default()
    };
    let redrive = record::Redrive { id: id_bytes(), letters: vec![0], per_second: 5, ..Default::default() };
    let home = Topic::Deliveries(Lane::Bulk);
    let waiting = Waiting { due_ms: EPOCH_MS + 500, topic: home.code().into(), partition: 1, cause: 0 };
    let bulk = Lane::Bulk;
    [
        (Topic::Requests(bulk), Schema::Request, request.encode_to_vec()),
        (Topic::RequestsOverflow(bulk), Schema::Continuation, continuation.encode_to_vec()),
        (home, Schema::DeliveryBatch, batch.encode_to_vec()),
        (Topic::Overflow(bulk), Schema::DeliveryBatch, batch.encode_to_vec()),
        (Topic::Receipts, Schema::LedgerBatch, books.encode_to_vec()),
        (Topic::Inbox, Schema::InboxBatch, inbox.encode_to_vec()),
        (Topic::UserChanges, Schema::UserChange, change.encode_to_vec()),
        (Topic::Claims, Schema::ClaimBatch, claims.encode_to_vec()),
        (Topic::Control, Schema::Control, control.encode_to_vec()),
        (Topic::Dead, Schema::DeadLetter, letter.encode_to_vec()),
        (Topic::Redrives, Schema::Redrive, redrive.encode_to_vec()),
        (Topic::Delayed(0), Schema::DeliveryBatch, batch.encode_to_vec()),
        (home, Schema::DeliveryBatch, vec![0xff; 40]),
    ]
    .into_iter()
    .map(|(topic, schema, body)| {
        let waits = matches!(topic, Topic::Delayed(_)).then_some(waiting);
        let envelope = envelope(schema, waits).encode_to_vec();
        let number = Topic::all().position(|other| other == topic).unwrap() as u8;
        let length = (envelope.len() as u16).to_le_bytes();
        [&[number, 1, schema as u8][..], &length, &envelope, &body].concat()
    })
    .collect()
}
