//! In-app feeds.
//!
//! **Items** are facts of the log. A put writes a user's items in one step, and a shard's owner does not put a record
//! before those ahead of it are stored; so the items of a feed appear in their order. An item carries the timestamp of an
//! hour before its notification was accepted, so a put that is repeated after it was erased does not bring it back.
//!
//! **Marks, deletions and counts** are compared and set together: a feed's counts are static columns of its partition, so
//! one lightweight transaction changes them and the items that they count. The counts are those of the items up to one;
//! the items behind it are new, neither seen nor read nor archived, because whatever marks items counts the new ones
//! first. See [`super::feeds`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    ids::{InstanceId, NotificationId, TenantId, user_hash},
    packed::unpack,
    ports::{
        StoreError,
        inbox::{Counts, EventId, Inbox, Item, MarkAs, StateFilter, Which},
    },
    record::{Channel, InboxBatch, InboxSection},
};
use prost::Message;
use scylla::DeserializeRow;

use super::{
    feeds::Feeds,
    receipts::stamp_of,
    session::{Db, Plain, damaged, in_parallel},
};

/// Rows that one call to `list` reads.
const LIST_ROWS: usize = 1_000;
const LIST_SCAN: usize = 128;
/// Items that are written in one step.
const PUT_ITEMS: usize = 100;
/// One in so many items has its feed's counts written down.
const FOLD_EVERY: u64 = 256;

/// Feeds in CQL.
pub struct InboxStore {
    db: Db,
    feeds: Feeds,
    put: Plain,
    older: Plain,
    newer: Plain,
}

/// What is shown of an item.
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    body: String,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// An item's row.
#[derive(DeserializeRow)]
pub(super) struct ItemRow {
    epoch: i64,
    position: i64,
    item: i64,
    /// Null in what may be left of an item that went.
    notification: Option<Vec<u8>>,
    created_ms: Option<i64>,
    content: Option<Vec<u8>>,
    seen_ms: Option<i64>,
    read_ms: Option<i64>,
    archived_ms: Option<i64>,
}

/// The columns of [`ItemRow`].
pub(super) const ITEM_COLUMNS: &str =
    "epoch, position, item, notification, created_ms, content, seen_ms, read_ms, archived_ms";

/// The key of an item in its feed.
pub(super) fn key_of(event: EventId) -> (i64, i64, i64) {
    (event.epoch.into(), event.offset as i64, event.index.into())
}

/// The item of a key.
pub(super) fn event_of((epoch, position, item): (i64, i64, i64)) -> EventId {
    EventId { epoch: epoch as u32, offset: position as u64, index: item as u32 }
}

impl ItemRow {
    pub(super) fn event(&self) -> EventId {
        event_of((self.epoch, self.position, self.item))
    }

    pub(super) fn created_ms(&self) -> u64 {
        self.created_ms.unwrap_or_default() as u64
    }

    /// When it was marked, in milliseconds since the epoch; 0 for not yet.
    pub(super) fn marked_ms(&self, mark: MarkAs) -> u64 {
        let marked = match mark {
            MarkAs::Seen => self.seen_ms,
            MarkAs::Read => self.read_ms,
            MarkAs::Archived => self.archived_ms,
        };
        marked.unwrap_or_default() as u64
    }

    pub(super) fn instance(&self, user: &str) -> Option<InstanceId> {
        let notification = NotificationId::from_slice(self.notification.as_ref()?)?;
        Some(InstanceId::of(&notification, user, Channel::InApp))
    }

    fn passes(&self, filter: StateFilter) -> bool {
        let is = |mark| self.marked_ms(mark) != 0;
        match filter {
            StateFilter::Active => !is(MarkAs::Archived),
            StateFilter::Unseen => !is(MarkAs::Archived) && !is(MarkAs::Seen),
            StateFilter::Unread => !is(MarkAs::Archived) && !is(MarkAs::Read),
            StateFilter::Archived => is(MarkAs::Archived),
        }
    }

    fn to_item(&self) -> Result<Option<Item>, StoreError> {
        let (Some(notification), Some(content)) = (&self.notification, &self.content) else { return Ok(None) };
        let content = Content::decode(&content[..]).map_err(damaged)?;
        Ok(Some(Item {
            event_id: self.event(),
            notification: NotificationId::from_slice(notification)
                .ok_or_else(|| damaged("an item of no notification"))?,
            title: content.title,
            body: content.body,
            data: content.data,
            created_ms: self.created_ms(),
            seen_ms: self.marked_ms(MarkAs::Seen),
            read_ms: self.marked_ms(MarkAs::Read),
            archived_ms: self.marked_ms(MarkAs::Archived),
        }))
    }
}

/// An item to write, for a user: tenant, user, key, notification, when it was accepted, content, and timestamp.
type NewItem = (String, String, i64, i64, i64, Vec<u8>, i64, Vec<u8>, i64);

impl InboxStore {
    pub(super) async fn new(db: &Db) -> anyhow::Result<Self> {
        let feed = "WHERE tenant = ? AND user_id = ?";
        let select = format!("SELECT {ITEM_COLUMNS} FROM inbox {feed}");
        Ok(Self {
            feeds: Feeds::new(db).await?,
            put: db
                .plain(
                    "INSERT INTO inbox (tenant, user_id, epoch, position, item, notification, created_ms, content) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
                )
                .await?,
            older: db.plain(&format!("{select} AND (epoch, position, item) < (?, ?, ?) LIMIT ?")).await?,
            newer: db
                .plain(&format!(
                    "{select} AND (epoch, position, item) > (?, ?, ?) \
                     ORDER BY epoch ASC, position ASC, item ASC LIMIT ?"
                ))
                .await?,
            db: db.clone(),
        })
    }

    async fn put_feed(&self, items: Vec<NewItem>) -> Result<(), StoreError> {
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            let some: Vec<NewItem> = items.by_ref().take(PUT_ITEMS).collect();
            self.db.write_all(&self.put, some).await?;
        }
        Ok(())
    }

    /// Erases items of a user's feed that were accepted until `until_ms`, a bounded number a call; returns whether there
    /// are no more.
    pub(super) async fn erase(&self, tenant: &str, user: &str, until_ms: u64) -> Result<bool, StoreError> {
        self.feeds.erase(tenant, user, until_ms).await
    }
}

/// Turns records into rows, by feed.
#[derive(Default)]
struct ItemWriter {
    feeds: BTreeMap<(String, String), Vec<NewItem>>,
    /// Whose counts are to be written down.
    fold: Vec<(String, String)>,
}

impl ItemWriter {
    fn record(&mut self, epoch: u32, offset: u64, record: InboxBatch) -> Result<(), StoreError> {
        let mut event = EventId { epoch, offset, index: 0 };
        record.sections.iter().try_for_each(|section| self.section(&mut event, section))
    }

    fn section(&mut self, event: &mut EventId, section: &InboxSection) -> Result<(), StoreError> {
        if NotificationId::from_slice(&section.notification_id).is_none() {
            return Err(damaged("an inbox section of no notification"));
        }
        let text = |texts: &[String], place: usize| match texts {
            [shared] => shared.clone(),
            own => own.get(place).cloned().unwrap_or_default(),
        };
        let stamp = stamp_of(section.accepted_ms);
        for (place, user) in unpack(&section.users).enumerate() {
            let user = user.map_err(damaged)?;
            let content = Content {
                title: text(&section.titles, place),
                body: text(&section.bodies, place),
                data: section.data.clone(),
            };
            let feed = (section.tenant.clone(), user.to_owned());
            let (epoch, position, item) = key_of(*event);
            let notification = section.notification_id.to_vec();
            let created_ms = section.accepted_ms as i64;
            if user_hash(user).wrapping_add(event.offset).is_multiple_of(FOLD_EVERY) {
                self.fold.push(feed.clone());
            }
            let content = content.encode_to_vec();
            let row = (feed.0.clone(), feed.1.clone(), epoch, position, item, notification, created_ms, content, stamp);
            self.feeds.entry(feed).or_default().push(row);
            event.index += 1;
        }
        Ok(())
    }
}

#[async_trait]
impl Inbox for InboxStore {
    async fn put(&self, _: u32, epoch: u32, batches: Vec<(u64, InboxBatch)>) -> Result<(), StoreError> {
        let mut writer = ItemWriter::default();
        for (offset, record) in batches {
            writer.record(epoch, offset, record)?;
        }
        in_parallel(writer.feeds.into_values().map(|items| self.put_feed(items)).collect()).await?;
        in_parallel(writer.fold.iter().map(|(tenant, user)| self.feeds.fold(tenant, user)).collect()).await.map(drop)
    }

    async fn list(
        &self,
        tenant: &TenantId,
        user: &str,
        filter: StateFilter,
        before: Option<EventId>,
        limit: usize,
    ) -> Result<(Vec<Item>, Option<EventId>), StoreError> {
        let mut end = before.map_or((i64::MAX, i64::MAX, i64::MAX), key_of);
        let (limit, mut found, mut read) = (limit.max(1), Vec::new(), 0);
        loop {
            let values = (tenant.as_str(), user, end.0, end.1, end.2, LIST_SCAN as i32);
            let rows: Vec<ItemRow> = self.db.rows(&self.older, values).await?;
            for (index, row) in rows.iter().enumerate() {
                if row.passes(filter) {
                    found.extend(row.to_item()?);
                }
                let more = index + 1 < rows.len() || rows.len() == LIST_SCAN;
                if found.len() >= limit || read + index + 1 >= LIST_ROWS {
                    return Ok((found, more.then(|| row.event())));
                }
                end = key_of(row.event());
            }
            read += rows.len();
            if rows.len() < LIST_SCAN {
                return Ok((found, None));
            }
        }
    }

    async fn since(
        &self,
        tenant: &TenantId,
        user: &str,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Item>, StoreError> {
        let (tenant, limit) = (tenant.as_str(), i32::try_from(limit.max(1)).unwrap_or(i32::MAX));
        let rows: Vec<ItemRow> = match after.map(key_of) {
            Some((epoch, position, item)) => {
                self.db.rows(&self.newer, (tenant, user, epoch, position, item, limit)).await?
            }
            None => self.db.rows(&self.older, (tenant, user, i64::MAX, i64::MAX, i64::MAX, 1)).await?,
        };
        rows.iter().filter_map(|row| row.to_item().transpose()).collect()
    }

    async fn mark(
        &self,
        tenant: &TenantId,
        user: &str,
        which: Which,
        mark: MarkAs,
        now_ms: u64,
    ) -> Result<Counts, StoreError> {
        self.feeds.mark(tenant.as_str(), user, &which, mark, now_ms).await
    }

    async fn counts(&self, tenant: &TenantId, user: &str) -> Result<Counts, StoreError> {
        self.feeds.counts(tenant.as_str(), user).await
    }
}
