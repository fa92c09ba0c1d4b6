//! One user's feed: its items, and a row that counts them.
//!
//! Writing an item writes that item only. The feed row holds the counts of the items up to an event; those behind it
//! are new, neither seen nor read nor archived, because whatever marks items counts the new ones first. They are told
//! by their keys alone. Folding them into the row happens when there are many of them, before a mark, and for one in
//! 256 items written, so that a feed that nobody reads keeps its bound: then the oldest items beyond
//! [`MAX_ITEMS`] go too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use herald_core::{
    ids::InstanceId,
    ports::{
        StoreError,
        inbox::{Counts, EventId, MAX_ITEMS, MarkAs, Which},
    },
    record::Channel,
};
use parking_lot::Mutex;

use super::{
    items::{ItemRow, SectionRef, event_of, feed_prefix, item_key},
    keys::{Key, Table},
    rows::{FeedRow, SectionRow, decode, encode},
};
use crate::kv::{Batch, Direction, Kv};

/// New items from which on a look at the counts writes them down.
const FOLD_ITEMS: u64 = 64;
const SCAN_ITEMS: usize = 512;

/// A user's feed. All but [`Feed::scan`] needs the user's lock.
pub struct Feed<'a> {
    kv: &'a Arc<dyn Kv>,
    /// Held while the number of a section's items that are gone is changed.
    sections: &'a Mutex<()>,
    user: &'a str,
    /// The beginning of its items' keys.
    pub prefix: Key,
    row_key: Key,
}

impl<'a> Feed<'a> {
    /// The feed of a user.
    pub fn of(kv: &'a Arc<dyn Kv>, sections: &'a Mutex<()>, tenant: &str, user: &'a str) -> Self {
        let row_key = Key::of(Table::Feed).part(tenant).tail(user);
        Self { kv, sections, user, prefix: feed_prefix(tenant, user), row_key }
    }

    /// The counts as of now.
    pub fn counts(&self) -> Result<Counts, StoreError> {
        let (row, new) = self.read()?;
        let row = if new >= FOLD_ITEMS || row.stored > MAX_ITEMS as u64 { self.settle(row)? } else { row };
        Ok(counts_of(&row))
    }

    /// Writes the counts down, and drops the oldest items of a feed that is too long.
    pub fn fold(&self) -> Result<FeedRow, StoreError> {
        let (row, new) = self.read()?;
        if new == 0 && row.stored <= MAX_ITEMS as u64 { Ok(row) } else { self.settle(row) }
    }

    /// Marks items and returns the counts.
    pub fn mark(&self, which: &Which, mark: MarkAs, now_ms: u64) -> Result<Counts, StoreError> {
        let mut row = self.fold()?;
        let mut wanted: Option<BTreeSet<InstanceId>> = match which {
            Which::All => None,
            Which::Instances(ids) => Some(ids.iter().copied().collect()),
        };
        // Items that came after the counts were folded stay as they are.
        let mut end = item_key(&self.prefix, event_of_row(&row)).next();
        loop {
            let unmarked = match mark {
                MarkAs::Seen => row.unseen,
                MarkAs::Read => row.unread,
                MarkAs::Archived => row.total,
            };
            if unmarked == 0 || wanted.as_ref().is_some_and(BTreeSet::is_empty) {
                return Ok(counts_of(&row));
            }
            let items = self.kv.scan(self.prefix.bytes()..end.bytes(), Direction::Backward, SCAN_ITEMS)?;
            let mut batch = Batch::default();
            for (key, value) in &items {
                let mut item = ItemRow::decode(value)?;
                if let Some(wanted) = &mut wanted
                    && !wanted.remove(&InstanceId::of(&item.notification, self.user, Channel::InApp))
                {
                    continue;
                }
                if mark_item(&mut item, &mut row, mark, now_ms) {
                    let mut value = Vec::with_capacity(value.len() + 24);
                    item.encode(&mut value);
                    batch.put(key.clone(), value);
                }
            }
            if !batch.is_empty() {
                batch.put(&self.row_key, encode(&row));
                self.kv.write(batch)?;
            }
            match items.last() {
                Some((key, _)) if items.len() == SCAN_ITEMS => {
                    end = item_key(&self.prefix, event_of(&self.prefix, key)?);
                }
                _ => return Ok(counts_of(&row)),
            }
        }
    }

    /// The counts with the new items, and how many these are.
    fn read(&self) -> Result<(FeedRow, u64), StoreError> {
        let stored: Option<FeedRow> =
            self.kv.get(self.row_key.bytes())?.map(|row| decode("feeds", &row)).transpose()?;
        let mut begin = match &stored {
            Some(row) => item_key(&self.prefix, event_of_row(row)).next(),
            None => self.prefix.clone(),
        };
        let mut row = stored.unwrap_or_default();
        let mut new = 0;
        loop {
            let items = self.kv.scan(begin.bytes()..self.prefix.end().bytes(), Direction::Forward, SCAN_ITEMS)?;
            new += items.len() as u64;
            if let Some((key, _)) = items.last() {
                let event = event_of(&self.prefix, key)?;
                (row.epoch, row.offset, row.index) = (event.epoch, event.offset, event.index);
                begin = item_key(&self.prefix, event).next();
            }
            if items.len() < SCAN_ITEMS {
                break;
            }
        }
        for count in [&mut row.unseen, &mut row.unread, &mut row.total, &mut row.stored] {
            *count += new;
        }
        Ok((row, new))
    }

    /// Drops items that were accepted until `until_ms`; returns whether there are no more of them. Later ones stay, so
    /// they are passed over, which is for a person who came back.
    pub fn erase(&self, until_ms: u64, limit: usize) -> Result<bool, StoreError> {
        let row = self.fold()?;
        let mut begin = self.prefix.clone();
        loop {
            let items = self.kv.scan(begin.bytes()..self.prefix.end().bytes(), Direction::Forward, limit)?;
            let all = items.len() < limit;
            let Some((last, _)) = items.last() else { break };
            begin = item_key(&self.prefix, event_of(&self.prefix, last)?).next();
            let mut erased = Vec::new();
            for (key, value) in items {
                let item = ItemRow::decode(&value)?;
                if item.created_ms <= until_ms {
                    erased.push((key, item));
                }
            }
            if !erased.is_empty() {
                self.drop_items(row, erased)?;
                return Ok(all);
            }
            if all {
                break;
            }
        }
        if row.stored == 0 {
            let mut batch = Batch::default();
            batch.delete(&self.row_key);
            self.kv.write(batch)?;
        }
        Ok(true)
    }

    /// Writes the counts, and drops what is beyond the bound.
    fn settle(&self, row: FeedRow) -> Result<FeedRow, StoreError> {
        let beyond = row.stored.saturating_sub(MAX_ITEMS as u64) as usize;
        let oldest = self.kv.scan(self.prefix.bytes()..self.prefix.end().bytes(), Direction::Forward, beyond)?;
        let oldest = oldest.into_iter().map(|(key, value)| Ok((key, ItemRow::decode(&value)?)));
        self.drop_items(row, oldest.collect::<Result<_, StoreError>>()?)
    }

    /// Writes the counts without items that go.
    fn drop_items(&self, mut row: FeedRow, items: Vec<(Bytes, ItemRow)>) -> Result<FeedRow, StoreError> {
        let mut batch = Batch::default();
        let mut gone: BTreeMap<Bytes, (Key, u32)> = BTreeMap::new();
        for (key, item) in items {
            let event = event_of(&self.prefix, &key)?;
            row.stored = row.stored.saturating_sub(1);
            if item.archived_ms == 0 {
                row.total = row.total.saturating_sub(1);
                row.unseen = row.unseen.saturating_sub(u64::from(item.seen_ms == 0));
                row.unread = row.unread.saturating_sub(u64::from(item.read_ms == 0));
            }
            if let Some(shared) = item.shared {
                let section = Bytes::from(section_key(&shared, event));
                gone.entry(section).or_insert_with(|| (gone_key(&shared, event), 0)).1 += 1;
            }
            batch.delete(key);
        }
        batch.put(&self.row_key, encode(&row));
        let _held = self.sections.lock();
        for (section, (gone_key, more)) in gone {
            let count = match self.kv.get(&section)? {
                Some(row) => decode::<SectionRow>("inbox sections", &row)?.count,
                None => continue,
            };
            let before =
                self.kv.get(gone_key.bytes())?.and_then(|n| n[..].try_into().ok()).map_or(0, u32::from_be_bytes);
            if before + more >= count {
                batch.delete(section);
                batch.delete(gone_key);
            } else {
                batch.put(gone_key, Bytes::copy_from_slice(&(before + more).to_be_bytes()));
            }
        }
        self.kv.write(batch)?;
        Ok(row)
    }
}

/// The key of the row that an item shares.
pub fn section_key(shared: &SectionRef, event: EventId) -> Key {
    shared.key(Table::InboxSection, event.epoch, event.offset)
}

fn gone_key(shared: &SectionRef, event: EventId) -> Key {
    shared.key(Table::InboxSectionGone, event.epoch, event.offset)
}

fn event_of_row(row: &FeedRow) -> EventId {
    EventId { epoch: row.epoch, offset: row.offset, index: row.index }
}

fn counts_of(row: &FeedRow) -> Counts {
    Counts { unseen: row.unseen, unread: row.unread, total: row.total }
}

/// Marks an item and counts it; `false` if it was marked so.
fn mark_item(item: &mut ItemRow, row: &mut FeedRow, mark: MarkAs, now_ms: u64) -> bool {
    if item.archived_ms != 0 {
        return false;
    }
    // 0 is "not yet", whatever the clock says.
    let now_ms = now_ms.max(1);
    let mut changed = false;
    let mut set = |time: &mut u64, count: &mut u64| {
        if *time == 0 {
            *time = now_ms;
            *count = count.saturating_sub(1);
            changed = true;
        }
    };
    set(&mut item.seen_ms, &mut row.unseen);
    if mark >= MarkAs::Read {
        set(&mut item.read_ms, &mut row.unread);
    }
    if mark == MarkAs::Archived {
        set(&mut item.archived_ms, &mut row.total);
    }
    changed
}
