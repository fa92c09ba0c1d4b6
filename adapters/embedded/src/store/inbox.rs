//! In-app feeds.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use herald_core::{
    ids::{NotificationId, TenantId, user_hash},
    packed::unpack,
    ports::{
        StoreError,
        inbox::{Counts, EventId, Inbox, Item, MarkAs, StateFilter, Which},
    },
    record::{InboxBatch, InboxSection},
};
use parking_lot::Mutex;

use super::{
    feeds::{Feed, section_key},
    items::{ItemRow, SectionRef, event_of, feed_prefix, item_key},
    keys::{Key, Parts, Table},
    locks::Stripes,
    rows::{SectionRow, damaged, decode, encode},
};
use crate::kv::{Batch, Direction, Kv, Row, ready};

/// Rows that one call to `list` reads.
const LIST_ROWS: usize = 1_000;
const LIST_SCAN: usize = 128;
/// One in so many items has its feed folded.
const FOLD_EVERY: u64 = 256;

/// Feeds in a key-value database.
pub struct InboxStore {
    kv: Arc<dyn Kv>,
    /// By user: held while a feed's counts are read or changed.
    users: Stripes,
    /// By shard: held from reading the applied offset until the records are written.
    shards: Stripes,
    sections: Mutex<()>,
}

impl InboxStore {
    /// The feeds of a database.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv, users: Stripes::default(), shards: Stripes::default(), sections: Mutex::new(()) }
    }

    fn feed<'a>(&'a self, tenant: &str, user: &'a str) -> Feed<'a> {
        Feed::of(&self.kv, &self.sections, tenant, user)
    }

    fn write_records(&self, shard: u32, epoch: u32, batches: Vec<(u64, InboxBatch)>) -> Result<(), StoreError> {
        let mut writer =
            ItemWriter { batch: Batch::default(), arena: BytesMut::with_capacity(32 << 10), fold: Vec::new() };
        {
            let _held = self.shards.write_nth(shard);
            let key = Key::of(Table::InboxApplied).u32(shard);
            let before = self.kv.get(key.bytes())?.map(|row| applied(&row)).transpose()?;
            let mut last = before;
            for (offset, record) in &batches {
                if last.is_none_or(|last| (epoch, *offset) > last) {
                    writer.record(shard, epoch, *offset, record)?;
                    last = Some((epoch, *offset));
                }
            }
            if let Some((epoch, offset)) = last.filter(|_| last != before) {
                writer.batch.put(&key, Key::of(Table::InboxApplied).u32(epoch).u64(offset));
            }
            self.kv.write(writer.batch)?;
        }
        for (tenant, user) in writer.fold {
            let _held = self.users.write(&user);
            self.feed(&tenant, &user).fold()?;
        }
        Ok(())
    }

    /// Erases items of a user's feed that were accepted until `until_ms`, among the oldest `limit`; returns whether there
    /// are no more.
    pub(super) fn erase(&self, tenant: &str, user: &str, until_ms: u64, limit: usize) -> Result<bool, StoreError> {
        let _held = self.users.write(user);
        self.feed(tenant, user).erase(until_ms, limit)
    }

    fn page(
        &self,
        feed: &Key,
        filter: StateFilter,
        before: Option<EventId>,
        limit: usize,
    ) -> Result<(Vec<Item>, Option<EventId>), StoreError> {
        let mut end = before.map_or_else(|| feed.end(), |before| item_key(feed, before));
        let mut found = Vec::with_capacity(limit.min(LIST_SCAN));
        let mut sections = Sections::new(&*self.kv);
        let mut read = 0;
        loop {
            let rows = self.kv.scan(feed.bytes()..end.bytes(), Direction::Backward, LIST_SCAN)?;
            for (index, (key, value)) in rows.iter().enumerate() {
                let event = event_of(feed, key)?;
                let item = ItemRow::decode(value)?;
                if passes(&item, filter) {
                    found.extend(sections.item(event, item)?);
                }
                let more = index + 1 < rows.len() || rows.len() == LIST_SCAN;
                if found.len() >= limit || read + index + 1 >= LIST_ROWS {
                    return Ok((found, more.then_some(event)));
                }
                end = item_key(feed, event);
            }
            read += rows.len();
            if rows.len() < LIST_SCAN {
                return Ok((found, None));
            }
        }
    }

    fn newer(&self, feed: &Key, after: Option<EventId>, limit: usize) -> Result<Vec<Item>, StoreError> {
        let rows: Vec<Row> = match after {
            Some(after) => {
                let begin = item_key(feed, after).next();
                self.kv.scan(begin.bytes()..feed.end().bytes(), Direction::Forward, limit)?
            }
            None => self.kv.scan(feed.bytes()..feed.end().bytes(), Direction::Backward, limit.min(1))?,
        };
        let mut sections = Sections::new(&*self.kv);
        let mut found = Vec::with_capacity(rows.len());
        for (key, value) in &rows {
            found.extend(sections.item(event_of(feed, key)?, ItemRow::decode(value)?)?);
        }
        Ok(found)
    }
}

fn applied(row: &[u8]) -> Result<(u32, u64), StoreError> {
    let mut parts = Parts::of(row)?;
    Ok((parts.u32()?, parts.u64()?))
}

fn passes(item: &ItemRow, filter: StateFilter) -> bool {
    match filter {
        StateFilter::Active => item.archived_ms == 0,
        StateFilter::Unseen => item.archived_ms == 0 && item.seen_ms == 0,
        StateFilter::Unread => item.archived_ms == 0 && item.read_ms == 0,
        StateFilter::Archived => item.archived_ms != 0,
    }
}

/// Turns records into rows.
struct ItemWriter {
    batch: Batch,
    /// Keys and values of items lie here side by side, so that they need no allocation each.
    arena: BytesMut,
    /// Whose feeds are to be folded.
    fold: Vec<(String, String)>,
}

impl ItemWriter {
    fn record(&mut self, shard: u32, epoch: u32, offset: u64, record: &InboxBatch) -> Result<(), StoreError> {
        let mut event = EventId { epoch, offset, index: 0 };
        for (index, section) in record.sections.iter().enumerate() {
            let shared = SectionRef { shard, section: index as u32 };
            self.section(shared, &mut event, section)?;
        }
        Ok(())
    }

    fn section(&mut self, at: SectionRef, event: &mut EventId, section: &InboxSection) -> Result<(), StoreError> {
        let notification = NotificationId::from_slice(&section.notification_id)
            .ok_or_else(|| StoreError::Damaged("an inbox section of no notification".into()))?;
        // One item has nobody to share with.
        let alone = section.count <= 1;
        let text = |texts: &[String], place: usize| -> Option<Bytes> {
            let varies = alone || texts.len() > 1;
            varies.then(|| Bytes::copy_from_slice(texts.get(place).map_or(&[][..], |text| text.as_bytes())))
        };
        let mut template = ItemRow {
            notification,
            created_ms: section.accepted_ms,
            seen_ms: 0,
            read_ms: 0,
            archived_ms: 0,
            shared: (!alone).then_some(at),
            title: None,
            body: None,
            data: alone.then(|| section.data.clone()),
        };
        if !alone {
            let of_all = |texts: &[String]| if texts.len() == 1 { texts[0].clone() } else { String::new() };
            let row = SectionRow {
                title: of_all(&section.titles),
                body: of_all(&section.bodies),
                data: section.data.clone(),
                count: section.count,
            };
            self.batch.put(section_key(&at, *event), encode(&row));
        }
        let tenant = Key::of(Table::InboxItem).part(&section.tenant);
        for (place, user) in unpack(&section.users).enumerate() {
            let user = user.map_err(|e| StoreError::Damaged(e.to_string()))?;
            template.title = text(&section.titles, place);
            template.body = text(&section.bodies, place);
            self.arena.put_slice(tenant.bytes());
            self.arena.put_u16(user.len() as u16);
            self.arena.put_slice(user.as_bytes());
            self.arena.put_u32(event.epoch);
            self.arena.put_u64(event.offset);
            self.arena.put_u32(event.index);
            let key = self.arena.split().freeze();
            template.encode(&mut self.arena);
            self.batch.put(key, self.arena.split().freeze());
            if user_hash(user).wrapping_add(event.offset).is_multiple_of(FOLD_EVERY) {
                self.fold.push((section.tenant.clone(), user.into()));
            }
            event.index += 1;
        }
        Ok(())
    }
}

/// The section rows that a call has read.
struct Sections<'a> {
    kv: &'a dyn Kv,
    read: HashMap<Bytes, Option<SectionRow>>,
}

impl<'a> Sections<'a> {
    fn new(kv: &'a dyn Kv) -> Self {
        Self { kv, read: HashMap::new() }
    }

    /// The item of a row; `None` if it went, with the last of its section, since the row was read.
    fn item(&mut self, event: EventId, row: ItemRow) -> Result<Option<Item>, StoreError> {
        let mut shared = SectionRow::default();
        if let Some(section) = row.shared {
            let key = Bytes::from(section_key(&section, event));
            if !self.read.contains_key(&key) {
                let value = self.kv.get(&key)?.map(|value| decode("inbox sections", &value)).transpose()?;
                self.read.insert(key.clone(), value);
            }
            match self.read.get(&key) {
                Some(Some(section)) => shared = section.clone(),
                _ => return Ok(None),
            }
        }
        let text = |own: Option<Bytes>, shared: String| match own {
            Some(own) => String::from_utf8(own.to_vec()).map_err(|_| damaged("a text that is not UTF-8")),
            None => Ok(shared),
        };
        Ok(Some(Item {
            event_id: event,
            notification: row.notification,
            title: text(row.title, shared.title)?,
            body: text(row.body, shared.body)?,
            data: row.data.unwrap_or(shared.data),
            created_ms: row.created_ms,
            seen_ms: row.seen_ms,
            read_ms: row.read_ms,
            archived_ms: row.archived_ms,
        }))
    }
}

#[async_trait]
impl Inbox for InboxStore {
    async fn put(&self, shard: u32, epoch: u32, batches: Vec<(u64, InboxBatch)>) -> Result<(), StoreError> {
        ready(&*self.kv).await?;
        self.write_records(shard, epoch, batches)
    }

    async fn list(
        &self,
        tenant: &TenantId,
        user: &str,
        filter: StateFilter,
        before: Option<EventId>,
        limit: usize,
    ) -> Result<(Vec<Item>, Option<EventId>), StoreError> {
        self.page(&feed_prefix(tenant.as_str(), user), filter, before, limit.max(1))
    }

    async fn since(
        &self,
        tenant: &TenantId,
        user: &str,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Item>, StoreError> {
        self.newer(&feed_prefix(tenant.as_str(), user), after, limit)
    }

    async fn mark(
        &self,
        tenant: &TenantId,
        user: &str,
        which: Which,
        mark: MarkAs,
        now_ms: u64,
    ) -> Result<Counts, StoreError> {
        ready(&*self.kv).await?;
        let _held = self.users.write(user);
        self.feed(tenant.as_str(), user).mark(&which, mark, now_ms)
    }

    async fn counts(&self, tenant: &TenantId, user: &str) -> Result<Counts, StoreError> {
        let _held = self.users.write(user);
        self.feed(tenant.as_str(), user).counts()
    }
}
