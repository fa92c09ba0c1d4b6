//! Receipts, packed: all of one request in one flush are a row, or a few where they are many.
//!
//! **Replays.** After a restart the same records may be flushed in other groups, so that rows overlap. A row holds all of
//! its request's receipts between its two offsets, both of which are in its key, so a row that is written again is the
//! same. A reader goes through the rows in their order and passes over what lies before the end of those it has read.
//!
//! **Erasures** rewrite rows by compare and set. A row is written under a timestamp of an hour before its first receipt
//! ended, so whatever writes it again, however late, does not bring a name back.

use std::collections::BTreeMap;

use bytes::Bytes;
use herald_core::{
    ids::NotificationId,
    packed::{PackedWriter, unpack},
    ports::{StoreError, erasures::Erasure, ledger::ReceiptRow},
    record,
    user_log::ReceiptAt,
};
use prost::Message;

use super::session::{Conditional, Db, Plain, RACES, contended, damaged};

/// Bytes from which on a row is cut.
const LONG_ROW: usize = 128 << 10;
/// Records of a range: receipts of one request from flushes that begin in it are one partition.
const RANGE_BITS: u32 = 14;
const HOUR_MS: u64 = 3_600_000;
/// Rows of a flush that may have a receipt: there are several only after replays.
const SAME_FLUSH: i32 = 16;

/// The range of the log that a flush begins in.
pub(super) fn range_of(flush_begin: u64) -> i32 {
    i32::try_from(flush_begin >> RANGE_BITS).unwrap_or(i32::MAX)
}

/// A packed row.
#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, tag = "1")]
    offset: u64,
    /// Which of the record's receipts.
    #[prost(uint32, tag = "2")]
    index: u32,
    /// Without the notification's id and the tenant.
    #[prost(message, optional, tag = "3")]
    receipts: Option<record::Receipts>,
}

/// The place of a row within its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RowPlace {
    pub(super) partition: u32,
    pub(super) flush_begin: u64,
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// A row that is read.
pub(super) struct StoredReceipts {
    pub(super) place: RowPlace,
    tenant: String,
    packed: Vec<u8>,
}

/// A row to write.
pub(super) struct NewRow {
    pub(super) id: NotificationId,
    place: RowPlace,
    tenant: String,
    stamp: i64,
    packed: Vec<u8>,
}

/// Gathers a flush's rows.
pub(super) struct ReceiptsWriter {
    partition: u32,
    flush_begin: u64,
    open: BTreeMap<NotificationId, OpenRow>,
    done: Vec<NewRow>,
}

struct OpenRow {
    begin: u64,
    tenant: String,
    first_ended_ms: u64,
    end: u64,
    bytes: usize,
    packed: Packed,
}

impl ReceiptsWriter {
    pub(super) fn new(partition: u32, flush_begin: u64) -> Self {
        Self { partition, flush_begin, open: BTreeMap::new(), done: Vec::new() }
    }

    /// Adds the receipts of a record. Records come in the order of their offsets.
    pub(super) fn add(&mut self, offset: u64, index: u32, mut receipts: record::Receipts) -> Result<(), StoreError> {
        let id = NotificationId::from_slice(&receipts.notification_id)
            .ok_or_else(|| damaged("receipts of no notification"))?;
        let mut begin = self.flush_begin;
        if self.open.get(&id).is_some_and(|row| row.bytes >= LONG_ROW && row.end <= offset)
            && let Some(long) = self.open.remove(&id)
        {
            begin = long.end;
            self.done.push(self.close(id, long));
        }
        let tenant = std::mem::take(&mut receipts.tenant);
        receipts.notification_id = Bytes::new();
        let row = self.open.entry(id).or_insert_with(|| OpenRow {
            begin,
            tenant,
            first_ended_ms: receipts.ended_ms,
            end: offset,
            bytes: 0,
            packed: Packed::default(),
        });
        row.end = offset + 1;
        row.bytes += receipts.encoded_len();
        row.packed.entries.push(Entry { offset, index, receipts: Some(receipts) });
        Ok(())
    }

    fn close(&self, id: NotificationId, row: OpenRow) -> NewRow {
        NewRow {
            id,
            place: RowPlace {
                partition: self.partition,
                flush_begin: self.flush_begin,
                begin: row.begin,
                end: row.end,
            },
            tenant: row.tenant,
            stamp: stamp_of(row.first_ended_ms),
            packed: row.packed.encode_to_vec(),
        }
    }

    /// The rows.
    pub(super) fn finish(mut self) -> Vec<NewRow> {
        for (id, row) in std::mem::take(&mut self.open) {
            let row = self.close(id, row);
            self.done.push(row);
        }
        self.done
    }
}

/// The timestamp of what was written when a receipt ended: an hour before, so that what changes it later is later
/// whatever the difference of the clocks.
pub(super) fn stamp_of(ms: u64) -> i64 {
    (ms.saturating_sub(HOUR_MS) as i64 * 1_000).max(1)
}

impl StoredReceipts {
    fn unpack(&self, id: &NotificationId) -> Result<Vec<(ReceiptAt, record::Receipts)>, StoreError> {
        let packed = Packed::decode(&self.packed[..]).map_err(damaged)?;
        let entry = |entry: Entry| {
            let at = ReceiptAt { partition: self.place.partition, offset: entry.offset, index: entry.index, place: 0 };
            let mut receipts = entry.receipts.unwrap_or_default();
            receipts.notification_id = Bytes::copy_from_slice(&id.0);
            receipts.tenant = self.tenant.clone();
            (at, receipts)
        };
        Ok(packed.entries.into_iter().map(entry).collect())
    }

    /// The instances in the row from a place on, each with its place.
    pub(super) fn instances(
        &self,
        id: &NotificationId,
        from: ReceiptAt,
    ) -> Result<Vec<(ReceiptAt, ReceiptRow)>, StoreError> {
        let mut found = Vec::new();
        for (at, mut receipts) in self.unpack(id)? {
            let (users, provider_ids) =
                (std::mem::take(&mut receipts.users), std::mem::take(&mut receipts.provider_ids));
            for (place, user) in unpack(&users).enumerate() {
                let (at, user) = (ReceiptAt { place: place as u32, ..at }, user.map_err(damaged)?);
                if at >= from {
                    let provider_id = provider_ids.get(place).cloned().unwrap_or_default();
                    let row = ReceiptRow { id: *id, user_id: user.to_owned(), provider_id, shared: receipts.clone() };
                    found.push((at, row));
                }
            }
        }
        Ok(found)
    }

    /// The row with an erasure's pseudonym in the person's place, where they were accepted until it began; `None` where
    /// it does not name them.
    fn renamed(&self, erasure: &Erasure) -> Result<Option<Vec<u8>>, StoreError> {
        if self.tenant != erasure.tenant.as_str() {
            return Ok(None);
        }
        let mut packed = Packed::decode(&self.packed[..]).map_err(damaged)?;
        let pseudonym = erasure.pseudonym();
        let mut named = false;
        let receipts = packed.entries.iter_mut().filter_map(|entry| entry.receipts.as_mut());
        for receipts in receipts.filter(|receipts| receipts.accepted_ms <= erasure.begun_ms) {
            let mut users = PackedWriter::default();
            for user in unpack(&receipts.users) {
                let user = user.map_err(damaged)?;
                named |= user == erasure.user_id;
                users.push(if user == erasure.user_id { &pseudonym } else { user });
            }
            receipts.users = users.finish();
        }
        Ok(named.then(|| packed.encode_to_vec()))
    }
}

/// The rows of receipts.
pub(super) struct ReceiptRows {
    db: Db,
    ttl_s: i32,
    put: Plain,
    page: Plain,
    of_flush: Plain,
    rename: Conditional,
}

impl ReceiptRows {
    pub(super) async fn new(db: &Db, ttl_s: i32) -> anyhow::Result<Self> {
        let select = "SELECT partition, flush_begin, begin_at, end_at, tenant, packed FROM receipts \
                      WHERE id = ? AND range = ?";
        Ok(Self {
            ttl_s,
            put: db
                .plain(
                    "INSERT INTO receipts (id, range, partition, flush_begin, begin_at, end_at, tenant, packed) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?",
                )
                .await?,
            page: db
                .plain(&format!("{select} AND (partition, flush_begin, begin_at, end_at) > (?, ?, ?, ?) LIMIT ?"))
                .await?,
            of_flush: db
                .plain(&format!(
                    "{select} AND partition = ? AND flush_begin = ? AND begin_at <= ? \
                     ORDER BY partition DESC, flush_begin DESC, begin_at DESC, end_at DESC LIMIT ?"
                ))
                .await?,
            rename: db
                .conditional(
                    "UPDATE receipts USING TTL ? SET packed = ? WHERE id = ? AND range = ? AND partition = ? \
                     AND flush_begin = ? AND begin_at = ? AND end_at = ? IF packed = ?",
                )
                .await?,
            db: db.clone(),
        })
    }

    pub(super) async fn put(&self, row: &NewRow) -> Result<(), StoreError> {
        let place = &row.place;
        let key = (place.partition as i32, place.flush_begin as i64, place.begin as i64, place.end as i64);
        let id = &row.id.0[..];
        let range = range_of(place.flush_begin);
        let values = (id, range, key.0, key.1, key.2, key.3, &row.tenant, &row.packed, row.stamp, self.ttl_s);
        self.db.write(&self.put, values).await
    }

    /// The rows of a request in a range after a place, at most `limit`.
    pub(super) async fn page(
        &self,
        id: &NotificationId,
        range: i32,
        after: RowPlace,
        limit: i32,
    ) -> Result<Vec<StoredReceipts>, StoreError> {
        let after = (
            after.partition as i32,
            after.flush_begin as i64,
            after.begin as i64,
            // The least end is behind its begin, so nothing is: see `FIRST_ROW`.
            after.end as i64,
        );
        let values = (&id.0[..], range, after.0, after.1, after.2, after.3, limit);
        Ok(self.db.rows(&self.page, values).await?.into_iter().map(to_stored).collect())
    }

    /// The rows of a flush that hold a record's receipts: one, or after a replay several that hold the same.
    async fn holding(
        &self,
        id: &NotificationId,
        flush_begin: u64,
        at: ReceiptAt,
    ) -> Result<Vec<StoredReceipts>, StoreError> {
        let key = (at.partition as i32, flush_begin as i64, at.offset as i64);
        let values = (&id.0[..], range_of(flush_begin), key.0, key.1, key.2, SAME_FLUSH);
        let rows = self.db.rows(&self.of_flush, values).await?.into_iter().map(to_stored);
        Ok(rows.filter(|row: &StoredReceipts| row.place.end > at.offset).collect())
    }

    /// One instance's receipt.
    pub(super) async fn instance(
        &self,
        id: &NotificationId,
        flush_begin: u64,
        at: ReceiptAt,
    ) -> Result<Option<ReceiptRow>, StoreError> {
        let rows = self.holding(id, flush_begin, at).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let found = row.instances(id, at)?.into_iter().next();
        Ok(found.filter(|(found, _)| *found == at).map(|(_, row)| row))
    }

    /// Puts an erasure's pseudonym on a person's receipts, wherever they are stored.
    pub(super) async fn rename(
        &self,
        erasure: &Erasure,
        id: &NotificationId,
        flush_begin: u64,
        at: ReceiptAt,
    ) -> Result<(), StoreError> {
        for _ in 0..RACES {
            let mut changed = true;
            for row in self.holding(id, flush_begin, at).await? {
                let Some(renamed) = row.renamed(erasure)? else { continue };
                let place = row.place;
                let key = (place.partition as i32, place.flush_begin as i64, place.begin as i64, place.end as i64);
                let id = &id.0[..];
                let range = range_of(place.flush_begin);
                let values = (self.ttl_s, renamed, id, range, key.0, key.1, key.2, key.3, row.packed);
                changed &= self.db.write_if(&self.rename, values).await?;
            }
            if changed {
                return Ok(());
            }
        }
        Err(contended("a row of receipts"))
    }
}

type Columns = (i32, i64, i64, i64, Option<String>, Option<Vec<u8>>);

fn to_stored((partition, flush_begin, begin, end, tenant, packed): Columns) -> StoredReceipts {
    let place =
        RowPlace { partition: partition as u32, flush_begin: flush_begin as u64, begin: begin as u64, end: end as u64 };
    StoredReceipts { place, tenant: tenant.unwrap_or_default(), packed: packed.unwrap_or_default() }
}
