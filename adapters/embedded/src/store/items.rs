//! Inbox items as they are stored: small, since there is one for each person that a notification reaches.
//!
//! What an item shares with the other items of its section is a row of its own, which it refers to; what is only its
//! own is in it. After the format byte:
//!
//! ```text
//! notification (16 bytes), created, seen, read, archived (varints, milliseconds; 0 for not yet), flags
//! 1: shard, section (varints): it shares a section row   2: title   4: body   8: data (length as varint, bytes)
//! ```

use bytes::{Buf, BufMut, Bytes};
use herald_core::{
    ids::NotificationId,
    ports::{StoreError, inbox::EventId},
};
use prost::encoding::{decode_varint, encode_varint};

use super::{
    keys::{Key, Parts, Table},
    rows::{FORMAT, damaged},
};

const SHARED: u8 = 1;
const TITLE: u8 = 2;
const BODY: u8 = 4;
const DATA: u8 = 8;

/// Which section row an item shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionRef {
    /// The shard of the record.
    pub shard: u32,
    /// The section's index in the record.
    pub section: u32,
}

impl SectionRef {
    /// The key of the section row, for an item of this event, in one of the two tables of sections.
    pub fn key(&self, table: Table, epoch: u32, offset: u64) -> Key {
        Key::of(table).u32(epoch).u32(self.shard).u64(offset).u32(self.section)
    }
}

/// An item's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemRow {
    /// The notification.
    pub notification: NotificationId,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch; 0 for not yet.
    pub seen_ms: u64,
    /// Milliseconds since the epoch; 0 for not yet.
    pub read_ms: u64,
    /// Milliseconds since the epoch; 0 for not yet.
    pub archived_ms: u64,
    /// Where the rest is.
    pub shared: Option<SectionRef>,
    /// The title, unless it is shared.
    pub title: Option<Bytes>,
    /// The body, unless it is shared.
    pub body: Option<Bytes>,
    /// The data, unless it is shared.
    pub data: Option<Bytes>,
}

impl ItemRow {
    /// Appends the row.
    pub fn encode(&self, row: &mut impl BufMut) {
        row.put_u8(FORMAT);
        row.put_slice(&self.notification.0);
        for number in [self.created_ms, self.seen_ms, self.read_ms, self.archived_ms] {
            encode_varint(number, row);
        }
        let own = [(TITLE, &self.title), (BODY, &self.body), (DATA, &self.data)];
        let flags = own.iter().filter(|(_, text)| text.is_some()).fold(0, |flags, (flag, _)| flags | flag);
        row.put_u8(flags | if self.shared.is_some() { SHARED } else { 0 });
        if let Some(shared) = self.shared {
            encode_varint(shared.shard.into(), row);
            encode_varint(shared.section.into(), row);
        }
        for text in own.into_iter().filter_map(|(_, text)| text.as_ref()) {
            encode_varint(text.len() as u64, row);
            row.put_slice(text);
        }
    }

    /// Reads a row.
    pub fn decode(row: &Bytes) -> Result<Self, StoreError> {
        Self::read(&mut row.clone()).ok_or_else(|| damaged("an inbox item that cannot be read"))
    }

    fn read(row: &mut Bytes) -> Option<Self> {
        if row.try_get_u8() != Ok(FORMAT) {
            return None;
        }
        let notification = row.get(..16).and_then(NotificationId::from_slice)?;
        row.advance(16);
        let mut number = || decode_varint(row).ok();
        let (created_ms, seen_ms, read_ms, archived_ms) = (number()?, number()?, number()?, number()?);
        let flags = row.try_get_u8().ok()?;
        let mut shared = None;
        if flags & SHARED != 0 {
            let mut number = || decode_varint(row).ok().and_then(|n| u32::try_from(n).ok());
            shared = Some(SectionRef { shard: number()?, section: number()? });
        }
        let mut text = |flag| -> Option<Option<Bytes>> {
            if flags & flag == 0 {
                return Some(None);
            }
            let length = usize::try_from(decode_varint(row).ok()?).ok()?;
            (length <= row.len()).then(|| Some(row.split_to(length)))
        };
        let (title, body, data) = (text(TITLE)?, text(BODY)?, text(DATA)?);
        Some(Self { notification, created_ms, seen_ms, read_ms, archived_ms, shared, title, body, data })
    }
}

/// The beginning of the keys of a feed.
pub fn feed_prefix(tenant: &str, user: &str) -> Key {
    Key::of(Table::InboxItem).part(tenant).part(user)
}

/// The key of an item.
pub fn item_key(feed: &Key, event: EventId) -> Key {
    feed.clone().u32(event.epoch).u64(event.offset).u32(event.index)
}

/// The event of an item's key.
pub fn event_of(feed: &Key, key: &[u8]) -> Result<EventId, StoreError> {
    let mut parts = Parts::after(key, feed.bytes().len())?;
    Ok(EventId { epoch: parts.u32()?, offset: parts.u64()?, index: parts.u32()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = Option<Bytes>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from))
    }

    proptest! {
        #[test]
        fn items_come_back_as_they_went_in(
            notification: [u8; 16],
            times: [u64; 4],
            shared in proptest::option::of(any::<(u32, u32)>()),
            texts in (text(), text(), text()),
        ) {
            let item = ItemRow {
                notification: NotificationId(notification),
                created_ms: times[0],
                seen_ms: times[1],
                read_ms: times[2],
                archived_ms: times[3],
                shared: shared.map(|(shard, section)| SectionRef { shard, section }),
                title: texts.0,
                body: texts.1,
                data: texts.2,
            };
            let mut row = Vec::new();
            item.encode(&mut row);
            prop_assert_eq!(ItemRow::decode(&row.into()).unwrap(), item);
        }

        #[test]
        fn any_bytes_are_an_item_or_damage(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = ItemRow::decode(&bytes.into());
        }
    }
}
