//! Items as the API shows them.

use herald_api::time::{some_timestamp, timestamp};
use herald_core::{
    ids::{InstanceId, NotificationId},
    ports::inbox::{EventId, Item},
    record::Channel,
};
use herald_proto::v1;
use pbjson_types::{Struct, Timestamp};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// An item of a user's feed as a message of the API. Data that is not a JSON object is left away.
pub fn item_of(user: &str, item: &Item) -> v1::InboxItem {
    v1::InboxItem {
        instance_id: InstanceId::of(&item.notification, user, Channel::InApp).to_string(),
        request_id: item.notification.to_string(),
        title: item.title.clone(),
        body: item.body.clone(),
        data: serde_json::from_slice::<Struct>(&item.data).ok(),
        created_at: Some(timestamp(item.created_ms)),
        seen_at: some_timestamp(item.seen_ms),
        read_at: some_timestamp(item.read_ms),
        archived_at: some_timestamp(item.archived_ms),
        event_id: item.event_id.to_string(),
    }
}

/// The JSON text of [`item_of`], on one line. It is written from the row, since a message with a map for the data would
/// cost several times as much as all else that is done to send an item.
///
/// # Errors
/// For times that no calendar has.
pub(super) fn json_of(user: &str, item: &Item) -> Result<String, serde_json::Error> {
    /// What names, ids and times take.
    const FIXED_BYTES: usize = 384;
    let compact;
    let mut data = serde_json::from_slice::<&RawValue>(&item.data).ok().filter(|data| data.get().starts_with('{'));
    if data.is_some_and(|data| data.get().contains(['\n', '\r'])) {
        compact = serde_json::from_slice::<serde_json::Value>(&item.data)
            .and_then(|value| serde_json::value::to_raw_value(&value))?;
        data = Some(&compact);
    }
    let text = Text {
        instance_id: InstanceId::of(&item.notification, user, Channel::InApp),
        request_id: item.notification,
        title: &item.title,
        body: &item.body,
        data,
        created_at: timestamp(item.created_ms),
        seen_at: some_timestamp(item.seen_ms),
        read_at: some_timestamp(item.read_ms),
        archived_at: some_timestamp(item.archived_ms),
        event_id: item.event_id,
    };
    let mut json = Vec::with_capacity(FIXED_BYTES + item.title.len() + item.body.len() + item.data.len());
    serde_json::to_writer(&mut json, &text)?;
    String::from_utf8(json).map_err(serde::ser::Error::custom)
}

/// [`v1::InboxItem`], borrowed.
#[derive(Serialize)]
struct Text<'a> {
    #[serde(serialize_with = "display")]
    instance_id: InstanceId,
    #[serde(serialize_with = "display")]
    request_id: NotificationId,
    title: &'a str,
    body: &'a str,
    data: Option<&'a RawValue>,
    created_at: Timestamp,
    seen_at: Option<Timestamp>,
    read_at: Option<Timestamp>,
    archived_at: Option<Timestamp>,
    #[serde(serialize_with = "display")]
    event_id: EventId,
}

fn display<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(data: &str) -> Item {
        Item {
            event_id: EventId { epoch: 1, offset: 77, index: 5 },
            notification: NotificationId([9; 16]),
            title: "Ann \"A\" liked\nthis".into(),
            body: "\u{1F600} \u{2028}</script>".into(),
            data: data.as_bytes().to_vec().into(),
            created_ms: 1_700_000_000_123,
            seen_ms: 1_700_000_001_000,
            read_ms: 0,
            archived_ms: 1_700_000_002_050,
        }
    }

    /// A message writes all numbers as floating point.
    fn floats(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Number(number) => *value = number.as_f64().unwrap().into(),
            serde_json::Value::Array(values) => values.iter_mut().for_each(floats),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(floats),
            _ => {}
        }
    }

    #[test]
    fn the_text_is_that_of_the_message_on_one_line() {
        for data in
            ["", "{}", "{\"n\": 1, \"deep\": {\"a\": [1.5, null, \"x\\n\"]}}", "{\r\n \"n\": 2\n}", "[1]", "{oops"]
        {
            let item = item(data);
            let text = json_of("user-1", &item).unwrap();
            assert!(!text.contains(['\n', '\r']), "{text}");
            let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
            floats(&mut value);
            let message = herald_api::json::to_text(&item_of("user-1", &item)).unwrap();
            let mut message: serde_json::Value = serde_json::from_slice(&message).unwrap();
            floats(&mut message);
            assert_eq!(value, message, "{data:?}");
            let order = |text: &str| text.find("request_id") < text.find("created_at");
            assert!(order(&text), "fields keep the order of the message");
        }
    }

    #[test]
    fn a_large_number_keeps_its_digits() {
        let text = json_of("u", &item("{\"id\":9007199254740993}")).unwrap();
        assert!(text.contains("{\"id\":9007199254740993}"), "{text}");
    }
}
