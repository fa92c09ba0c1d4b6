//! How records and positions are written.
//!
//! A record's key and body are a message's key and value, as they are. Its envelope is the header `herald-envelope`; the
//! trace context stands beside it as `traceparent`, for tools that know nothing of Herald. Further headers (CloudEvents)
//! have their place here.
//!
//! A position is a committed offset and its metadata: `1.<starts>.<done-map>`, the starts in hexadecimal; empty where
//! there are neither. This is for good.

use bytes::Bytes;
use herald_core::{
    done_map::DoneMap,
    ports::log::{LogError, NewRecord, Position, Record},
    record::Envelope,
    topic::{Retention, TopicPartition},
};
use prost::Message as _;
use rdkafka::{
    Message, Timestamp, TopicPartitionList,
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
    producer::BaseRecord,
    topic_partition_list::{Offset, TopicPartitionListElem},
    util::IntoOpaque,
};

use super::{names::Names, unavailable};

/// What brokers take by default (`offset.metadata.max.bytes`).
const MAX_METADATA_BYTES: usize = 4_096;
const ENVELOPE: &str = "herald-envelope";
const TRACE_PARENT: &str = "traceparent";
const VERSION: &str = "1";

/// The headers of a record.
fn headers(record: &NewRecord) -> OwnedHeaders {
    let envelope = record.envelope.encode_to_vec();
    let headers = OwnedHeaders::new().insert(Header { key: ENVELOPE, value: Some(&envelope) });
    match record.envelope.trace_parent.as_str() {
        "" => headers,
        trace => headers.insert(Header { key: TRACE_PARENT, value: Some(trace) }),
    }
}

/// A message to be sent, with what is told of its delivery.
pub(super) fn message<'a, D: IntoOpaque>(
    record: &'a NewRecord,
    topic: &'a str,
    told: D,
) -> BaseRecord<'a, [u8], [u8], D> {
    let message = BaseRecord::with_opaque_to(topic, told)
        .partition(record.at.partition as i32)
        .key(record.key.as_ref())
        .timestamp(i64::try_from(record.timestamp_ms).unwrap_or(i64::MAX))
        .headers(headers(record));
    match value(record) {
        Some(value) => message.payload(value),
        None => message,
    }
}

/// A record's value. On a compacted topic an empty body is none: brokers then forget the key, after `delete.retention.ms`.
fn value(record: &NewRecord) -> Option<&[u8]> {
    let is_gone = record.body.is_empty() && record.at.topic.retention() == Retention::Compacted;
    (!is_gone).then_some(record.body.as_ref())
}

/// A message as it was read.
pub(super) fn record(at: TopicPartition, message: &BorrowedMessage<'_>) -> Result<Record, LogError> {
    let offset = message.offset() as u64;
    let damaged = |what: &str| LogError::Damaged(format!("{at}, offset {offset}: {what}"));
    let header = message.headers().and_then(|headers| headers.iter().find(|header| header.key == ENVELOPE));
    let envelope = header.and_then(|header| header.value).ok_or_else(|| damaged("a record without an envelope"))?;
    Ok(Record {
        at,
        offset,
        key: copied(message.key()),
        timestamp_ms: match message.timestamp() {
            Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => ms.max(0) as u64,
            Timestamp::NotAvailable => 0,
        },
        envelope: Envelope::decode(envelope).map_err(|error| damaged(&error.to_string()))?,
        body: copied(message.payload()),
    })
}

fn copied(bytes: Option<&[u8]>) -> Bytes {
    bytes.map_or_else(Bytes::new, Bytes::copy_from_slice)
}

/// A position's metadata.
pub(super) fn metadata(position: &Position) -> Result<String, LogError> {
    if position.starts == 0 && position.done.is_empty() {
        return Ok(String::new());
    }
    let text = format!("{VERSION}.{:x}.{}", position.starts, position.done.encode());
    match text.len() > MAX_METADATA_BYTES {
        true => Err(LogError::Unavailable(format!("{} characters are too much for a position", text.len()))),
        false => Ok(text),
    }
}

/// The position of a partition in an answer about a group's offsets.
pub(super) fn position_in(
    committed: &TopicPartitionList,
    names: &Names,
    at: TopicPartition,
) -> Result<Position, LogError> {
    let element = committed.find_partition(names.topic(at.topic), at.partition as i32);
    let element = element.ok_or_else(|| LogError::Damaged(format!("there is no partition {at}")))?;
    element.error().map_err(|error| unavailable(&format!("the position of {at} is not known"), &error))?;
    position(&element)
}

/// The position of a committed offset; the beginning if there is none.
fn position(committed: &TopicPartitionListElem<'_>) -> Result<Position, LogError> {
    let Offset::Offset(offset) = committed.offset() else { return Ok(Position::default()) };
    let offset = offset.max(0) as u64;
    let text = committed.metadata();
    if text.is_empty() {
        return Ok(Position { offset, ..Position::default() });
    }
    let read = || {
        let (version, rest) = text.split_once('.')?;
        let (starts, done) = rest.split_once('.')?;
        let starts = u32::from_str_radix(starts, 16).ok()?;
        (version == VERSION).then_some(Position { offset, done: DoneMap::decode(done).ok()?, starts })
    };
    read().ok_or_else(|| {
        let place = format!("{}/{}", committed.topic(), committed.partition());
        LogError::Damaged(format!("the position of {place} is not one that this release wrote: {text:?}"))
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::TopicPartitionList;

    use super::*;

    fn through_kafka(offset: i64, metadata: &str) -> Result<Position, LogError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("t", 3, Offset::Offset(offset)).unwrap();
        list.find_partition("t", 3).unwrap().set_metadata(metadata);
        position(&list.find_partition("t", 3).unwrap())
    }

    #[test]
    fn a_position_comes_back() {
        let done = DoneMap::from_flags((0..1_500).map(|i| i % 3 == 0));
        for position in [
            Position::default(),
            Position { offset: 7, ..Position::default() },
            Position { offset: 7, done: DoneMap::default(), starts: 0x0102_03ff },
            Position { offset: i64::MAX as u64, done, starts: u32::MAX },
        ] {
            let text = metadata(&position).unwrap();
            assert_eq!(through_kafka(position.offset as i64, &text).unwrap(), position);
        }
    }

    #[test]
    fn a_position_of_somebody_else_is_refused_and_one_too_long_is_not_written() {
        for foreign in ["2.0.", "hello", "1.zz.", "1.0.!", "1.0"] {
            assert!(matches!(through_kafka(1, foreign), Err(LogError::Damaged(_))), "{foreign}");
        }
        let done = DoneMap::from_flags((0..5_000).map(|i| i % 2 == 0));
        assert!(metadata(&Position { offset: 1, done, starts: 1 }).is_err());
    }
}
