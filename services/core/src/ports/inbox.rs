//! In-app feeds.

use std::{fmt, str::FromStr};

use async_trait::async_trait;

use super::StoreError;
use crate::{
    ids::{InvalidId, NotificationId, TenantId},
    record::InboxBatch,
};

/// The most items a user's feed keeps; older ones go.
pub const MAX_ITEMS: usize = 10_000;

/// Where an item came from on its user's shard: one order for all lanes and delays. A restore raises the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The log's epoch.
    pub epoch: u32,
    /// The record's offset on `inbox`.
    pub offset: u64,
    /// The item's index in the record, counted over its sections.
    pub index: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}-{:x}", self.epoch, self.offset, self.index)
    }
}

impl FromStr for EventId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parse = || {
            let mut parts = text.splitn(3, '-');
            let epoch = u32::from_str_radix(parts.next()?, 16).ok()?;
            let offset = u64::from_str_radix(parts.next()?, 16).ok()?;
            let index = u32::from_str_radix(parts.next()?, 16).ok()?;
            Some(Self { epoch, offset, index })
        };
        parse().ok_or_else(|| InvalidId(format!("{text:?} is not an event id")))
    }
}

/// One item of a feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its place in the feed.
    pub event_id: EventId,
    /// Its notification.
    pub notification: NotificationId,
    /// Rendered title.
    pub title: String,
    /// Rendered body.
    pub body: String,
    /// The notification's data: a JSON object in UTF-8, or empty.
    pub data: bytes::Bytes,
    /// When the notification was accepted, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch; 0 for not yet.
    pub seen_ms: u64,
    /// Milliseconds since the epoch; 0 for not yet.
    pub read_ms: u64,
    /// Milliseconds since the epoch; 0 for not yet.
    pub archived_ms: u64,
}

/// How many items of a feed are in which state. Archived items count nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Not seen.
    pub unseen: u64,
    /// Not read.
    pub unread: u64,
    /// All.
    pub total: u64,
}

/// A filter on the state of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFilter {
    /// Not archived.
    Active,
    /// Not seen and not archived.
    Unseen,
    /// Not read and not archived.
    Unread,
    /// Archived.
    Archived,
}

/// A change of state. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MarkAs {
    /// Shown in a list.
    Seen,
    /// Opened.
    Read,
    /// Put away.
    Archived,
}

/// Which items to mark.
#[derive(Debug, Clone, PartialEq)]
pub enum Which {
    /// All that are not archived.
    All,
    /// Those of these instances; ids that are not in the feed are passed over.
    Instances(Vec<crate::ids::InstanceId>),
}

/// Feeds with seen, read and archived state.
#[async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// Writes the items of records of one shard, keyed by their place: writing a record again changes nothing.
    async fn put(&self, shard: u32, epoch: u32, batches: Vec<(u64, InboxBatch)>) -> Result<(), StoreError>;

    /// A feed, newest first, older than `before`; and where to go on.
    async fn list(
        &self,
        tenant: &TenantId,
        user: &str,
        filter: StateFilter,
        before: Option<EventId>,
        limit: usize,
    ) -> Result<(Vec<Item>, Option<EventId>), StoreError>;

    /// A feed, oldest first, newer than `after`, whatever the state. `None` as `after` gives the newest item only.
    async fn since(
        &self,
        tenant: &TenantId,
        user: &str,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Item>, StoreError>;

    /// Marks items and returns the counts. Marking twice keeps the first time.
    async fn mark(
        &self,
        tenant: &TenantId,
        user: &str,
        which: Which,
        mark: MarkAs,
        now_ms: u64,
    ) -> Result<Counts, StoreError>;

    /// The counts.
    async fn counts(&self, tenant: &TenantId, user: &str) -> Result<Counts, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_come_back_from_text() {
        let id = EventId { epoch: 3, offset: 123_456, index: 17 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "1-2", "1-2-x", "-1-2-3", "1-2-3-4"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }
}
