//! Times on the API.

use pbjson_types::{Duration, Timestamp};
use serde::{Deserialize, de::IntoDeserializer, de::value::Error};

/// Milliseconds since the epoch as a timestamp.
pub fn timestamp(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1_000) as i64, nanos: (ms % 1_000) as i32 * 1_000_000 }
}

/// Milliseconds since the epoch as a timestamp; 0 is none.
pub fn some_timestamp(ms: u64) -> Option<Timestamp> {
    (ms > 0).then(|| timestamp(ms))
}

/// A timestamp in milliseconds since the epoch; `None` before the epoch or out of protobuf's range.
pub fn millis(at: &Timestamp) -> Option<u64> {
    const END_OF_9999_S: i64 = 253_402_300_800;
    if !(0..END_OF_9999_S).contains(&at.seconds) || !(0..1_000_000_000).contains(&at.nanos) {
        return None;
    }
    Some(at.seconds as u64 * 1_000 + at.nanos as u64 / 1_000_000)
}

/// A duration in milliseconds; `None` if it is negative.
pub fn duration_ms(duration: &Duration) -> Option<u64> {
    let nanos = u64::try_from(duration.nanos).ok()?;
    u64::try_from(duration.seconds).ok()?.checked_mul(1_000)?.checked_add(nanos / 1_000_000)
}

/// A time in RFC 3339.
pub fn parse(text: &str) -> Option<Timestamp> {
    let deserializer: serde::de::value::StrDeserializer<'_, Error> = text.into_deserializer();
    Timestamp::deserialize(deserializer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_there_and_back() {
        assert_eq!(millis(&timestamp(1_700_000_000_123)), Some(1_700_000_000_123));
        assert_eq!(millis(&Timestamp { seconds: -1, nanos: 0 }), None);
        assert_eq!(millis(&Timestamp { seconds: i64::MAX, nanos: 0 }), None);
        assert_eq!(parse("1970-01-01T00:00:01.5Z").as_ref().and_then(millis), Some(1_500));
        assert_eq!(parse("yesterday"), None);
        assert_eq!(duration_ms(&Duration { seconds: 2, nanos: 500_000_000 }), Some(2_500));
        assert_eq!(duration_ms(&Duration { seconds: -2, nanos: 0 }), None);
    }
}
