//! Books, receipts and the users' log.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    books::Totals,
    ids::{NotificationId, TenantId},
    packed::{PackedWriter, unpack},
    ports::{
        StoreError,
        erasures::Erasure,
        ledger::{AdmittedRow, Flush, ForeignToken, Ledger, Page, ReceiptRow, ReceiptScope, RequestRow, RequestScope},
    },
    record,
    user_log::{LogCursor, LogEntry, LogUser, LogWriter, ReceiptAt, TenantHash, entries_of},
};
use parking_lot::Mutex;
use prost::Message;

use super::{
    keys::{Key, Parts, Table},
    rows::{AdmittedRowValue, FORMAT, TotalsRow, damaged, decode, encode},
    totals::{to_totals, totals_row},
    user_receipts::UserSpan,
};
use crate::kv::{Batch, Direction, Kv, ready};

const DAY_MS: u64 = 86_400_000;
/// The buckets of an hour of the users' log.
pub(super) const LOG_BUCKETS: u8 = 16;
/// Rows of the users' log that one call reads.
pub(super) const LOG_ROWS: usize = 4_096;
/// Rows of the users' log that are read at a time.
pub(super) const LOG_SCAN: usize = 256;
/// Rows of receipts that are read at a time.
const RECEIPTS_SCAN: usize = 8;
/// Rows of receipts that one call reads.
const RECEIPTS_ROWS: usize = 1_024;

/// Books and receipts in a key-value database.
pub struct LedgerStore {
    pub(super) kv: Arc<dyn Kv>,
    /// Held from reading the stored positions until the flush is written.
    pub(super) writing: Mutex<()>,
}

pub(super) type Token<T> = Result<T, ForeignToken>;

impl LedgerStore {
    /// The ledger of a database.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv, writing: Mutex::new(()) }
    }

    /// Every request and its books, of all tenants, in the order of their ids: at most `limit` behind an id. What was
    /// admitted and has no books yet is among them.
    pub fn books(
        &self,
        after: Option<NotificationId>,
        limit: usize,
    ) -> Result<Vec<(NotificationId, RequestRow)>, StoreError> {
        let mut ids = BTreeSet::new();
        for table in [Table::Totals, Table::Admitted] {
            let all = Key::of(table);
            let begin = after.map_or_else(|| all.clone(), |id| all.clone().tail(id.0).next());
            for (key, _) in self.kv.scan(begin.bytes()..all.end().bytes(), Direction::Forward, limit)? {
                ids.insert(NotificationId(Parts::of(&key)?.array()?));
            }
        }
        let row = |id: NotificationId| {
            let totals = self.stored_totals(&id)?.map(to_totals);
            Ok((id, RequestRow { admitted: self.admitted(&id)?, totals }))
        };
        ids.into_iter().take(limit).map(row).collect()
    }

    /// The last day on which something of the notification was, or is to be, written.
    pub(super) fn last_change_day(&self, id: &NotificationId) -> Result<Option<u32>, StoreError> {
        let totals = self.stored_totals(id)?.map(|totals| day_of(totals.updated_ms));
        let admitted = self.admitted(id)?.map(|row| due_day(&row));
        Ok(totals.max(admitted))
    }

    fn stored_totals(&self, id: &NotificationId) -> Result<Option<TotalsRow>, StoreError> {
        let row = self.kv.get(totals_key(id).bytes())?;
        row.map(|row| decode("totals", &row)).transpose()
    }

    pub(super) fn admitted(&self, id: &NotificationId) -> Result<Option<AdmittedRow>, StoreError> {
        let Some(row) = self.kv.get(admitted_key(id).bytes())? else { return Ok(None) };
        let row: AdmittedRowValue = decode("admitted requests", &row)?;
        Ok(Some(AdmittedRow {
            id: *id,
            tenant: TenantId::trusted(&row.tenant),
            template_id: row.template_id,
            template_version: row.template_version,
            accepted_ms: row.accepted_ms,
            send_at_ms: row.send_at_ms,
            expires_ms: row.expires_ms,
            dedupe_key: row.dedupe_key,
        }))
    }

    fn request_row(&self, tenant: &TenantId, id: &NotificationId) -> Result<Option<RequestRow>, StoreError> {
        let admitted = self.admitted(id)?.filter(|row| row.tenant == *tenant);
        let totals = self.stored_totals(id)?.filter(|row| row.tenant == tenant.as_str()).map(to_totals);
        Ok((admitted.is_some() || totals.is_some()).then_some(RequestRow { admitted, totals }))
    }

    fn write_flush(&self, flush: Flush) -> Result<(), StoreError> {
        let _held = self.writing.lock();
        let mut batch = Batch::default();
        let mut by_age = BTreeSet::new();
        self.put_admitted(flush.admitted, &mut by_age, &mut batch)?;
        for (id, totals) in &flush.totals {
            if self.stored_totals(id)?.is_none_or(|stored| stored.applied <= totals.applied) {
                batch.put(totals_key(id), encode(&totals_row(totals)));
                by_age.insert((day_of(totals.updated_ms), *id));
            }
        }
        let mut records = flush.receipts;
        records.sort_by_key(|(offset, _)| *offset);
        let mut log = LogWriter::new(LOG_BUCKETS);
        for (offset, receipts) in records {
            for (index, mut receipts) in receipts.into_iter().enumerate() {
                let id = NotificationId::from_slice(&receipts.notification_id)
                    .ok_or_else(|| StoreError::Damaged("receipts of no notification".into()))?;
                log.add(offset, index as u32, &receipts)?;
                by_age.insert((day_of(receipts.ended_ms), id));
                receipts.notification_id = Bytes::new();
                batch.put(receipts_key(&id, flush.partition, offset, index as u32), encode(&receipts));
            }
        }
        for row in log.finish() {
            batch.put(bucket_key(row.hour, row.bucket).u32(flush.partition).u64(row.begin), row.packed);
        }
        for (day, id) in by_age {
            batch.put(Key::of(Table::NotificationByAge).u32(day).tail(id.0), Bytes::new());
        }
        self.kv.write(batch)
    }

    fn put_admitted(
        &self,
        rows: Vec<AdmittedRow>,
        by_age: &mut BTreeSet<(u32, NotificationId)>,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        let mut written = BTreeSet::new();
        for row in rows {
            if !written.insert(row.id) || self.kv.get(admitted_key(&row.id).bytes())?.is_some() {
                continue;
            }
            by_age.insert((due_day(&row), row.id));
            batch.put(request_key(row.tenant.as_str(), row.accepted_ms, &row.id), Bytes::new());
            if !row.dedupe_key.is_empty() {
                batch.put(dedupe_key(&row), Bytes::new());
            }
            let value = AdmittedRowValue {
                tenant: row.tenant.as_str().into(),
                template_id: row.template_id,
                template_version: row.template_version,
                accepted_ms: row.accepted_ms,
                send_at_ms: row.send_at_ms,
                expires_ms: row.expires_ms,
                dedupe_key: row.dedupe_key,
            };
            batch.put(admitted_key(&row.id), encode(&value));
        }
        Ok(())
    }

    fn receipts_of_request(
        &self,
        tenant: &TenantId,
        id: &NotificationId,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Token<Page<ReceiptRow>>, StoreError> {
        let prefix = receipts_of(id);
        let Some(mut from) = token.map_or(Some(FIRST), request_token) else { return Ok(Err(ForeignToken)) };
        let mut page = Page { items: Vec::new(), next: None };
        let mut read = 0;
        loop {
            let begin = receipts_key(id, from.partition, from.offset, from.index);
            let rows = self.kv.scan(begin.bytes()..prefix.end().bytes(), Direction::Forward, RECEIPTS_SCAN)?;
            for (key, value) in &rows {
                let at = receipts_at(key)?;
                let from_place = if (at.partition, at.offset, at.index) == (from.partition, from.offset, from.index) {
                    from.place
                } else {
                    0
                };
                let receipts = decode_receipts(id, value)?;
                if receipts.tenant == tenant.as_str() {
                    for row in expand(id, &receipts, from_place)? {
                        if page.items.len() == limit {
                            page.next = Some(token_of_request(from));
                            return Ok(Ok(page));
                        }
                        let (place, row) = row?;
                        from = ReceiptAt { place: place + 1, ..at };
                        page.items.push(row);
                    }
                }
                from = ReceiptAt { index: at.index + 1, place: 0, ..at };
            }
            read += rows.len();
            if rows.len() < RECEIPTS_SCAN {
                return Ok(Ok(page));
            }
            if page.items.len() == limit || read >= RECEIPTS_ROWS {
                page.next = Some(token_of_request(from));
                return Ok(Ok(page));
            }
        }
    }

    /// Reads an hour's rows of a user's bucket from a cursor on, until the budget of rows is used up.
    fn read_log(&self, hour: u32, user: LogUser, cursor: LogCursor, budget: &mut usize) -> Result<LogRead, StoreError> {
        let bucket = bucket_key(hour, user.bucket(LOG_BUCKETS));
        let mut begin = bucket.clone().u32(cursor.at.partition).u64(cursor.row);
        let mut from = cursor.at;
        let mut entries = Vec::new();
        loop {
            let rows = self.kv.scan(begin.bytes()..bucket.end().bytes(), Direction::Forward, LOG_SCAN)?;
            for (key, value) in &rows {
                let (partition, row) = row_place(key)?;
                if *budget == 0 {
                    let next = if partition == from.partition { from } else { ReceiptAt { partition, ..FIRST } };
                    return Ok(LogRead { entries, next: Some(LogCursor { row, at: next }) });
                }
                *budget -= 1;
                if partition != from.partition {
                    from = ReceiptAt { partition, ..FIRST };
                }
                let read = entries_of(user, from, value)?;
                entries.extend(read.found.into_iter().map(|entry| (row, entry)));
                from = from.max(ReceiptAt { partition, offset: read.end, ..FIRST });
                begin = bucket.clone().u32(partition).u64(row).next();
            }
            if rows.len() < LOG_SCAN {
                return Ok(LogRead { entries, next: None });
            }
        }
    }

    /// The first hour that the users' log has.
    pub(super) fn oldest_hour(&self) -> Result<Option<u32>, StoreError> {
        let log = Key::of(Table::UserLog);
        let rows = self.kv.scan(log.bytes()..log.end().bytes(), Direction::Forward, 1)?;
        rows.first().map(|(key, _)| Parts::of(key)?.u32()).transpose()
    }

    /// Puts an erasure's pseudonym on the person's receipts of an hour that were accepted until it began.
    pub(super) fn erase_hour(&self, erasure: &Erasure, hour: u32) -> Result<(), StoreError> {
        let user = LogUser::of(&TenantHash::of(erasure.tenant.as_str()), &erasure.user_id);
        let mut cursor = BEGIN;
        loop {
            let mut budget = LOG_ROWS;
            let read = self.read_log(hour, user, cursor, &mut budget)?;
            for (_, (id, at)) in read.entries {
                self.rename(erasure, &id, at)?;
            }
            match read.next {
                Some(next) => cursor = next,
                None => return Ok(()),
            }
        }
    }

    fn rename(&self, erasure: &Erasure, id: &NotificationId, at: ReceiptAt) -> Result<(), StoreError> {
        let key = receipts_key(id, at.partition, at.offset, at.index);
        let _held = self.writing.lock();
        let Some(row) = self.kv.get(key.bytes())? else { return Ok(()) };
        let mut receipts = decode_receipts(id, &row)?;
        // The entry in the users' log is a hint only.
        if receipts.tenant != erasure.tenant.as_str() || receipts.accepted_ms > erasure.begun_ms {
            return Ok(());
        }
        let pseudonym = erasure.pseudonym();
        let mut users = PackedWriter::default();
        let mut named = false;
        for user in unpack(&receipts.users) {
            let user = user.map_err(|e| StoreError::Damaged(e.to_string()))?;
            named |= user == erasure.user_id;
            users.push(if user == erasure.user_id { &pseudonym } else { user });
        }
        if !named {
            return Ok(());
        }
        (receipts.users, receipts.notification_id) = (users.finish(), Bytes::new());
        let mut batch = Batch::default();
        batch.put(key, encode(&receipts));
        self.kv.write(batch)
    }

    pub(super) fn receipt(&self, id: &NotificationId, at: ReceiptAt) -> Result<Option<ReceiptRow>, StoreError> {
        let Some(row) = self.kv.get(receipts_key(id, at.partition, at.offset, at.index).bytes())? else {
            return Ok(None);
        };
        let receipts = decode_receipts(id, &row)?;
        expand(id, &receipts, at.place)?.next().map(|row| row.map(|(_, row)| row)).transpose()
    }
}

/// What was read of an hour of the users' log.
struct LogRead {
    /// With the first offset of the row each is in.
    entries: Vec<(u64, LogEntry)>,
    /// Where to go on, when the budget is used up.
    next: Option<LogCursor>,
}

const BEGIN: LogCursor = LogCursor { row: 0, at: FIRST };
pub(super) const FIRST: ReceiptAt = ReceiptAt { partition: 0, offset: 0, index: 0, place: 0 };

/// The beginning of the keys of an hour's bucket of the users' log. A row's key goes on with the partition and the first
/// offset; a flush that replaces a longer one takes away what the replay brings back right after.
pub(super) fn bucket_key(hour: u32, bucket: u8) -> Key {
    Key::of(Table::UserLog).u32(hour).u8(bucket)
}

/// The partition and first offset that the key of a row of the users' log ends with.
pub(super) fn row_place(key: &[u8]) -> Result<(u32, u64), StoreError> {
    let mut parts = Parts::of(key)?;
    parts.u32()?;
    parts.array::<1>()?;
    Ok((parts.u32()?, parts.u64()?))
}

pub(super) fn day_of(ms: u64) -> u32 {
    (ms / DAY_MS) as u32
}

fn due_day(row: &AdmittedRow) -> u32 {
    day_of(row.accepted_ms.max(row.send_at_ms).max(row.expires_ms))
}

pub(super) fn totals_key(id: &NotificationId) -> Key {
    Key::of(Table::Totals).tail(id.0)
}

pub(super) fn admitted_key(id: &NotificationId) -> Key {
    Key::of(Table::Admitted).tail(id.0)
}

pub(super) fn request_key(tenant: &str, accepted_ms: u64, id: &NotificationId) -> Key {
    Key::of(Table::TenantRequests).part(tenant).u64(accepted_ms).tail(id.0)
}

pub(super) fn dedupe_key(row: &AdmittedRow) -> Key {
    under_dedupe_key(row.tenant.as_str(), &row.dedupe_key).u64(row.accepted_ms).tail(row.id.0)
}

fn under_dedupe_key(tenant: &str, dedupe_key: &str) -> Key {
    Key::of(Table::RequestsByDedupeKey).part(tenant).part(dedupe_key)
}

pub(super) fn receipts_of(id: &NotificationId) -> Key {
    Key::of(Table::Receipts).tail(id.0)
}

fn receipts_key(id: &NotificationId, partition: u32, offset: u64, index: u32) -> Key {
    receipts_of(id).u32(partition).u64(offset).u32(index)
}

fn receipts_at(key: &[u8]) -> Result<ReceiptAt, StoreError> {
    let mut parts = Parts::of(key)?;
    parts.array::<16>()?;
    Ok(ReceiptAt { partition: parts.u32()?, offset: parts.u64()?, index: parts.u32()?, place: 0 })
}

pub(super) fn decode_receipts(id: &NotificationId, row: &Bytes) -> Result<record::Receipts, StoreError> {
    if row.first() != Some(&FORMAT) {
        return Err(damaged("receipts in an unknown format"));
    }
    let mut receipts = record::Receipts::decode(row.slice(1..)).map_err(|e| StoreError::Damaged(e.to_string()))?;
    receipts.notification_id = Bytes::copy_from_slice(&id.0);
    Ok(receipts)
}

pub(super) type ExpandedRow = Result<(u32, ReceiptRow), StoreError>;

/// The instances of packed receipts, from a place on.
pub(super) fn expand<'a>(
    id: &'a NotificationId,
    receipts: &'a record::Receipts,
    from: u32,
) -> Result<impl Iterator<Item = ExpandedRow> + 'a, StoreError> {
    let shared = record::Receipts { users: Bytes::new(), provider_ids: Vec::new(), ..receipts.clone() };
    Ok(unpack(&receipts.users).enumerate().skip(from as usize).map(move |(place, user)| {
        let user = user.map_err(|e| StoreError::Damaged(e.to_string()))?;
        let provider_id = receipts.provider_ids.get(place).cloned().unwrap_or_default();
        Ok((place as u32, ReceiptRow { id: *id, user_id: user.into(), provider_id, shared: shared.clone() }))
    }))
}

/// The first byte of a token says of which list it is.
const OF_REQUEST: u8 = 1;
// 2 was a list of a user's receipts in another order.
const OF_TENANT: u8 = 3;
const OF_DEDUPE_KEY: u8 = 4;
pub(super) const OF_USER: u8 = 5;

pub(super) fn place_bytes(at: ReceiptAt) -> Vec<u8> {
    let mut bytes = at.partition.to_be_bytes().to_vec();
    bytes.extend(at.offset.to_be_bytes());
    bytes.extend(at.index.to_be_bytes());
    bytes.extend(at.place.to_be_bytes());
    bytes
}

pub(super) fn place_of(bytes: &[u8]) -> Option<ReceiptAt> {
    let mut parts = Parts::after(bytes, 0).ok()?;
    let at = ReceiptAt {
        partition: parts.u32().ok()?,
        offset: parts.u64().ok()?,
        index: parts.u32().ok()?,
        place: parts.u32().ok()?,
    };
    (bytes.len() == 20).then_some(at)
}

fn token_of_request(from: ReceiptAt) -> Vec<u8> {
    [&[OF_REQUEST], &place_bytes(from)[..]].concat()
}

fn request_token(token: &[u8]) -> Option<ReceiptAt> {
    token.strip_prefix(&[OF_REQUEST]).and_then(place_of)
}

#[async_trait]
impl Ledger for LedgerStore {
    async fn apply(&self, flush: Flush) -> Result<(), StoreError> {
        ready(&*self.kv).await?;
        self.write_flush(flush)
    }

    async fn totals(&self, ids: &[NotificationId]) -> Result<Vec<Option<Totals>>, StoreError> {
        ids.iter().map(|id| Ok(self.stored_totals(id)?.map(to_totals))).collect()
    }

    async fn request(&self, tenant: &TenantId, id: &NotificationId) -> Result<Option<RequestRow>, StoreError> {
        self.request_row(tenant, id)
    }

    async fn requests(
        &self,
        tenant: &TenantId,
        scope: &RequestScope,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Token<Page<RequestRow>>, StoreError> {
        let (list, all, since_ms) = match scope {
            RequestScope::Since(ms) => (OF_TENANT, Key::of(Table::TenantRequests).part(tenant.as_str()), *ms),
            RequestScope::DedupeKey(key) => (OF_DEDUPE_KEY, under_dedupe_key(tenant.as_str(), key), 0),
        };
        let end = match token {
            Some(token) => match token.strip_prefix(&[list]).filter(|place| place.len() == 24) {
                Some(place) => all.clone().tail(place),
                None => return Ok(Err(ForeignToken)),
            },
            None => all.end(),
        };
        let begin = all.clone().u64(since_ms);
        let mut page = Page { items: Vec::new(), next: None };
        let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Backward, limit)?;
        for (key, _) in &rows {
            let mut parts = Parts::after(key, all.bytes().len())?;
            let (_, id) = (parts.u64()?, NotificationId(parts.array()?));
            page.items.extend(self.request_row(tenant, &id)?);
        }
        if rows.len() == limit {
            page.next = rows.last().map(|(key, _)| [&[list], &key[all.bytes().len()..]].concat());
        }
        Ok(Ok(page))
    }

    async fn receipts(
        &self,
        tenant: &TenantId,
        scope: &ReceiptScope,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Token<Page<ReceiptRow>>, StoreError> {
        let limit = limit.max(1);
        match scope {
            ReceiptScope::Request(id) => self.receipts_of_request(tenant, id, token, limit),
            ReceiptScope::User { user_id, since_ms, until_ms } => {
                let of = UserSpan { tenant, user_id, since_ms: *since_ms, until_ms: *until_ms };
                self.receipts_of_user(&of, token, limit)
            }
        }
    }
}
