//! The counts of feeds, and what changes them.

use std::collections::BTreeSet;

use herald_core::{
    ids::InstanceId,
    ports::{
        StoreError,
        inbox::{Counts, EventId, MAX_ITEMS, MarkAs, Which},
    },
};
use scylla::{DeserializeRow, SerializeRow, serialize::row::SerializeRow as Row, value::MaybeUnset};

use super::{
    inbox::{ITEM_COLUMNS, ItemRow, event_of, key_of},
    session::{Conditional, Db, Plain, RACES, contended},
};

/// New items from which on a look at the counts writes them down.
const FOLD_ITEMS: u64 = 64;
/// Items that are read at a time, and changed in one transaction.
const SCAN_ITEMS: usize = 256;

/// The counts of feeds.
pub(super) struct Feeds {
    db: Db,
    read: Plain,
    new: Plain,
    newest_first: Plain,
    oldest_first: Plain,
    store: Conditional,
    mark: Plain,
    delete: Plain,
}

/// A feed's counts: of its items up to one.
#[derive(Debug, Clone, Default, DeserializeRow, SerializeRow)]
struct FeedRow {
    /// Counts the changes.
    revision: Option<i64>,
    counted_epoch: Option<i64>,
    counted_position: Option<i64>,
    counted_item: Option<i64>,
    unseen: Option<i64>,
    unread: Option<i64>,
    total: Option<i64>,
    /// Archived items too.
    stored: Option<i64>,
}

/// A feed as it is: its counts with the new items.
struct Feed<'a> {
    tenant: &'a str,
    user: &'a str,
    revision: Option<i64>,
    counted: Option<EventId>,
    counts: Counts,
    stored: u64,
    /// How many items are not in the stored counts.
    new: u64,
}

/// A feed's counts as they are written, if its revision is what it was.
#[derive(SerializeRow)]
struct StoreRow<'a> {
    next: Option<i64>,
    #[scylla(flatten)]
    row: FeedRow,
    tenant: &'a str,
    user_id: &'a str,
}

/// Changes of items that go with a change of the counts.
type Changes<'a> = Vec<(&'a Plain, Box<dyn Row + Send + Sync>)>;

impl Feeds {
    pub(super) async fn new(db: &Db) -> anyhow::Result<Self> {
        let feed = "WHERE tenant = ? AND user_id = ?";
        let counts = "counted_epoch, counted_position, counted_item, unseen, unread, total, stored";
        let set: Vec<String> = counts.split(", ").map(|column| format!("{column} = :{column}")).collect();
        let item = format!("{feed} AND epoch = ? AND position = ? AND item = ?");
        Ok(Self {
            read: db.plain(&format!("SELECT revision, {counts} FROM inbox {feed} LIMIT 1")).await?,
            new: db
                .plain(&format!(
                    "SELECT epoch, position, item FROM inbox {feed} AND (epoch, position, item) > (?, ?, ?) \
                     ORDER BY epoch ASC, position ASC, item ASC LIMIT ?"
                ))
                .await?,
            newest_first: db
                .plain(&format!(
                    "SELECT {ITEM_COLUMNS} FROM inbox {feed} AND (epoch, position, item) < (?, ?, ?) LIMIT ?"
                ))
                .await?,
            oldest_first: db
                .plain(&format!(
                    "SELECT {ITEM_COLUMNS} FROM inbox {feed} AND (epoch, position, item) > (?, ?, ?) \
                     ORDER BY epoch ASC, position ASC, item ASC LIMIT ?"
                ))
                .await?,
            store: db
                .conditional(&format!(
                    "UPDATE inbox SET revision = :next, {} WHERE tenant = :tenant AND user_id = :user_id \
                     IF revision = :revision",
                    set.join(", ")
                ))
                .await?,
            mark: db.plain(&format!("UPDATE inbox SET seen_ms = ?, read_ms = ?, archived_ms = ? {item}")).await?,
            delete: db.plain(&format!("DELETE FROM inbox {item}")).await?,
            db: db.clone(),
        })
    }

    async fn feed<'a>(&self, tenant: &'a str, user: &'a str) -> Result<Feed<'a>, StoreError> {
        let row: FeedRow = self.db.row(&self.read, (tenant, user)).await?.unwrap_or_default();
        let counted = match (row.counted_epoch, row.counted_position, row.counted_item) {
            (Some(epoch), Some(position), Some(item)) => Some(event_of((epoch, position, item))),
            _ => None,
        };
        let count = |stored: Option<i64>| stored.unwrap_or_default() as u64;
        let mut feed = Feed {
            tenant,
            user,
            revision: row.revision,
            counted,
            counts: Counts { unseen: count(row.unseen), unread: count(row.unread), total: count(row.total) },
            stored: count(row.stored),
            new: 0,
        };
        loop {
            let (epoch, position, item) = feed.counted.map_or((-1, 0, 0), key_of);
            let values = (tenant, user, epoch, position, item, SCAN_ITEMS as i32 * 4);
            let rows = self.db.rows::<(i64, i64, i64)>(&self.new, values).await?;
            feed.new += rows.len() as u64;
            feed.counted = rows.last().map(|key| event_of(*key)).or(feed.counted);
            if rows.len() < SCAN_ITEMS * 4 {
                break;
            }
        }
        for count in [&mut feed.counts.unseen, &mut feed.counts.unread, &mut feed.counts.total, &mut feed.stored] {
            *count += feed.new;
        }
        Ok(feed)
    }

    /// Writes a feed's counts and the changes of its items, unless somebody else changed it meanwhile.
    async fn store(&self, feed: &mut Feed<'_>, changes: Changes<'_>) -> Result<bool, StoreError> {
        let counted = feed.counted.map(key_of);
        let next = feed.revision.unwrap_or(0) + 1;
        let row = FeedRow {
            revision: feed.revision,
            counted_epoch: counted.map(|key| key.0),
            counted_position: counted.map(|key| key.1),
            counted_item: counted.map(|key| key.2),
            unseen: Some(feed.counts.unseen as i64),
            unread: Some(feed.counts.unread as i64),
            total: Some(feed.counts.total as i64),
            stored: Some(feed.stored as i64),
        };
        let row = StoreRow { next: Some(next), row, tenant: feed.tenant, user_id: feed.user };
        let stored = self.db.write_all_if((&self.store, row), changes).await?;
        if stored {
            (feed.revision, feed.new) = (Some(next), 0);
        }
        Ok(stored)
    }

    /// The counts as of now.
    pub(super) async fn counts(&self, tenant: &str, user: &str) -> Result<Counts, StoreError> {
        let feed = self.feed(tenant, user).await?;
        if feed.new < FOLD_ITEMS && feed.stored <= MAX_ITEMS as u64 {
            return Ok(feed.counts);
        }
        Ok(self.folded(tenant, user).await?.counts)
    }

    /// Writes the counts down, and drops the oldest items of a feed that is too long.
    pub(super) async fn fold(&self, tenant: &str, user: &str) -> Result<(), StoreError> {
        self.folded(tenant, user).await.map(drop)
    }

    /// A feed without new items and without items that are too many.
    async fn folded<'a>(&self, tenant: &'a str, user: &'a str) -> Result<Feed<'a>, StoreError> {
        let mut races = 0;
        let mut feed = self.feed(tenant, user).await?;
        loop {
            let beyond = feed.stored.saturating_sub(MAX_ITEMS as u64) as usize;
            if feed.new == 0 && beyond == 0 {
                return Ok(feed);
            }
            let oldest = self.oldest(&feed, None, beyond.min(SCAN_ITEMS)).await?;
            if !self.drop_items(&mut feed, &oldest).await? {
                races += 1;
                if races == RACES {
                    return Err(contended("a feed"));
                }
                feed = self.feed(tenant, user).await?;
            }
        }
    }

    async fn oldest(&self, feed: &Feed<'_>, after: Option<EventId>, limit: usize) -> Result<Vec<ItemRow>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let (epoch, position, item) = after.map_or((-1, 0, 0), key_of);
        self.db.rows(&self.oldest_first, (feed.tenant, feed.user, epoch, position, item, limit as i32)).await
    }

    /// Deletes items and writes the counts without them.
    async fn drop_items(&self, feed: &mut Feed<'_>, items: &[ItemRow]) -> Result<bool, StoreError> {
        let mut changes: Changes<'_> = Vec::with_capacity(items.len());
        for item in items {
            let key = key_of(item.event());
            let values = (feed.tenant.to_owned(), feed.user.to_owned(), key.0, key.1, key.2);
            changes.push((&self.delete, Box::new(values)));
            feed.stored = feed.stored.saturating_sub(1);
            if item.marked_ms(MarkAs::Archived) == 0 {
                let counts = &mut feed.counts;
                counts.total = counts.total.saturating_sub(1);
                counts.unseen = counts.unseen.saturating_sub(u64::from(item.marked_ms(MarkAs::Seen) == 0));
                counts.unread = counts.unread.saturating_sub(u64::from(item.marked_ms(MarkAs::Read) == 0));
            }
        }
        self.store(feed, changes).await
    }

    /// Marks items and returns the counts.
    pub(super) async fn mark(
        &self,
        tenant: &str,
        user: &str,
        which: &Which,
        mark: MarkAs,
        now_ms: u64,
    ) -> Result<Counts, StoreError> {
        let mut wanted: Option<BTreeSet<InstanceId>> = match which {
            Which::All => None,
            Which::Instances(ids) => Some(ids.iter().copied().collect()),
        };
        let mut feed = self.folded(tenant, user).await?;
        // Items that came after the counts were written down stay as they are.
        let Some(mut end) = feed.counted.map(|event| EventId { index: event.index.saturating_add(1), ..event }) else {
            return Ok(feed.counts);
        };
        let mut races = 0;
        loop {
            let unmarked = match mark {
                MarkAs::Seen => feed.counts.unseen,
                MarkAs::Read => feed.counts.unread,
                MarkAs::Archived => feed.counts.total,
            };
            if unmarked == 0 || wanted.as_ref().is_some_and(BTreeSet::is_empty) {
                return Ok(feed.counts);
            }
            let key = key_of(end);
            let values = (tenant, user, key.0, key.1, key.2, SCAN_ITEMS as i32);
            let items: Vec<ItemRow> = self.db.rows(&self.newest_first, values).await?;
            let mut changes: Changes<'_> = Vec::new();
            let mut found = BTreeSet::new();
            for item in &items {
                let Some(instance) = item.instance(user) else { continue };
                if wanted.as_ref().is_none_or(|wanted| wanted.contains(&instance)) {
                    found.insert(instance);
                    if let Some([seen, read, archived]) = mark_item(item, &mut feed.counts, mark, now_ms) {
                        let (epoch, position, index) = key_of(item.event());
                        let feed = (tenant.to_owned(), user.to_owned());
                        let values = (seen, read, archived, feed.0, feed.1, epoch, position, index);
                        changes.push((&self.mark, Box::new(values)));
                    }
                }
            }
            if !changes.is_empty() && !self.store(&mut feed, changes).await? {
                races += 1;
                if races == RACES {
                    return Err(contended("a feed"));
                }
                // The same items again, on the counts as they are now.
                feed = self.folded(tenant, user).await?;
                continue;
            }
            if let Some(wanted) = &mut wanted {
                wanted.retain(|instance| !found.contains(instance));
            }
            match items.last() {
                Some(last) if items.len() == SCAN_ITEMS => end = last.event(),
                _ => return Ok(feed.counts),
            }
        }
    }

    /// Drops items that were accepted until `until_ms`, a bounded number a call; returns whether there are no more of
    /// them. Later ones stay, so they are passed over, which is for a person who came back.
    pub(super) async fn erase(&self, tenant: &str, user: &str, until_ms: u64) -> Result<bool, StoreError> {
        let mut feed = self.folded(tenant, user).await?;
        let mut after = None;
        loop {
            let items = self.oldest(&feed, after, SCAN_ITEMS).await?;
            let all = items.len() < SCAN_ITEMS;
            after = items.last().map(ItemRow::event);
            let erased: Vec<ItemRow> = items.into_iter().filter(|item| item.created_ms() <= until_ms).collect();
            if !erased.is_empty() {
                // Where somebody else was faster, the next call does it.
                let dropped = self.drop_items(&mut feed, &erased).await?;
                return Ok(all && dropped && self.forget_if_empty(&feed).await?);
            }
            if all {
                return self.forget_if_empty(&feed).await;
            }
        }
    }

    /// Deletes the counts of a feed without items; returns whether nobody changed it meanwhile.
    async fn forget_if_empty(&self, feed: &Feed<'_>) -> Result<bool, StoreError> {
        if feed.stored > 0 || feed.revision.is_none() {
            return Ok(true);
        }
        let row = FeedRow { revision: feed.revision, ..FeedRow::default() };
        let nothing = StoreRow { next: None, row, tenant: feed.tenant, user_id: feed.user };
        self.db.write_if(&self.store, nothing).await
    }
}

/// The times to set on an item that is marked, which the counts take in; `None` if it was marked so.
fn mark_item(item: &ItemRow, counts: &mut Counts, mark: MarkAs, now_ms: u64) -> Option<[MaybeUnset<i64>; 3]> {
    if item.marked_ms(MarkAs::Archived) != 0 {
        return None;
    }
    // 0 is "not yet", whatever the clock says.
    let now_ms = now_ms.max(1) as i64;
    let mut changed = false;
    let mut set = |of: MarkAs, count: &mut u64| {
        if item.marked_ms(of) != 0 || of > mark {
            return MaybeUnset::Unset;
        }
        *count = count.saturating_sub(1);
        changed = true;
        MaybeUnset::Set(now_ms)
    };
    let times = [
        set(MarkAs::Seen, &mut counts.unseen),
        set(MarkAs::Read, &mut counts.unread),
        set(MarkAs::Archived, &mut counts.total),
    ];
    changed.then_some(times)
}
