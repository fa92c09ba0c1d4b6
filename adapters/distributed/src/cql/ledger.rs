//! Books, receipts and the users' log.
//!
//! A flush is written in two steps: receipts and the users' log first, then the books. Either step may be seen in part
//! before it is through; the position moves only afterwards, and whoever reads the records again writes the same rows.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use herald_core::{
    books::Totals,
    ids::{NotificationId, TenantId},
    ports::{
        StoreError,
        erasures::Erasure,
        ledger::{AdmittedRow, Flush, ForeignToken, Ledger, Page, ReceiptRow, ReceiptScope, RequestRow, RequestScope},
    },
    record,
    user_log::{LogRow, LogUser, LogWriter, ReceiptAt, TenantHash, entries_of, hour_of},
};

use super::{
    receipts::{ReceiptRows, ReceiptsWriter, RowPlace, range_of, stamp_of},
    request_list::{END, Place, RequestLists},
    requests::{AdmittedInsert, COLUMNS, StoredRequest, TotalsUpdate},
    session::{Db, Plain, in_parallel},
};

/// The buckets of an hour of the users' log.
const LOG_BUCKETS: u8 = 64;
/// Rows of the users' log that are read at a time, and those after which a call reads no further hour.
const LOG_SCAN: i32 = 500;
const LOG_ROWS: usize = 5_000;
/// Rows of receipts that are read at a time, and those that one call reads.
const RECEIPTS_SCAN: i32 = 8;
const RECEIPTS_ROWS: usize = 512;
/// Books that did not change for so long beyond the retention are of nothing that waits.
const LONGEST_WAIT_S: i32 = 61 * 86_400;

/// Books and receipts in CQL.
pub struct LedgerStore {
    db: Db,
    retention_s: i32,
    lists: RequestLists,
    receipts: ReceiptRows,
    admit: Plain,
    book: Plain,
    note_ranges: Plain,
    read: Plain,
    log: Plain,
    log_page: Plain,
}

type Token<T> = Result<T, ForeignToken>;

impl LedgerStore {
    pub(super) async fn new(db: &Db, retention_days: u32) -> anyhow::Result<Self> {
        let retention_s = i32::try_from(u64::from(retention_days) * 86_400).unwrap_or(i32::MAX / 4);
        Ok(Self {
            retention_s,
            lists: RequestLists::new(db).await?,
            receipts: ReceiptRows::new(db, retention_s).await?,
            admit: db.plain(AdmittedInsert::CQL).await?,
            book: db.plain(TotalsUpdate::CQL).await?,
            note_ranges: db.plain("UPDATE requests USING TTL ? SET ranges = ranges + ? WHERE id = ?").await?,
            read: db.plain(&format!("SELECT {COLUMNS} FROM requests WHERE id = ?")).await?,
            log: db
                .plain(
                    "INSERT INTO user_log (hour, bucket, partition, flush_begin, flush_end, packed) \
                     VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?",
                )
                .await?,
            log_page: db
                .plain(
                    "SELECT partition, flush_begin, flush_end, packed FROM user_log \
                     WHERE hour = ? AND bucket = ? AND (partition, flush_begin, flush_end) > (?, ?, ?) LIMIT ?",
                )
                .await?,
            db: db.clone(),
        })
    }

    async fn stored(&self, id: &NotificationId) -> Result<Option<StoredRequest>, StoreError> {
        self.db.row(&self.read, (&id.0[..],)).await
    }

    async fn admit(&self, rows: Vec<AdmittedRow>) -> Result<(), StoreError> {
        let rows: Vec<_> = rows.into_iter().map(|row| AdmittedInsert::of(row, self.retention_s)).collect();
        self.lists.add(&rows, self.retention_s).await?;
        in_parallel(rows.iter().map(|row| self.db.write(&self.admit, row)).collect()).await.map(drop)
    }

    /// Writes receipts, and returns the ranges in which requests have some.
    async fn write_receipts(
        &self,
        partition: u32,
        mut records: Vec<(u64, Vec<record::Receipts>)>,
    ) -> Result<BTreeMap<NotificationId, i32>, StoreError> {
        records.sort_by_key(|(offset, _)| *offset);
        let Some((flush_begin, _)) = records.first() else { return Ok(BTreeMap::new()) };
        let range = range_of(*flush_begin);
        let (mut rows, mut log) = (ReceiptsWriter::new(partition, *flush_begin), LogWriter::new(LOG_BUCKETS));
        for (offset, receipts) in records {
            for (index, receipts) in receipts.into_iter().enumerate() {
                log.add(offset, index as u32, &receipts)?;
                rows.add(offset, index as u32, receipts)?;
            }
        }
        let (rows, log): (Vec<_>, Vec<_>) = (rows.finish(), log.finish().collect());
        // What the log leads to is there before it.
        in_parallel(rows.iter().map(|row| self.receipts.put(row)).collect()).await?;
        in_parallel(log.iter().map(|row| self.put_log(partition, row)).collect()).await?;
        Ok(rows.into_iter().map(|row| (row.id, range)).collect())
    }

    async fn put_log(&self, partition: u32, row: &LogRow) -> Result<(), StoreError> {
        let stamp = stamp_of(u64::from(row.hour) * 3_600_000);
        let key = (row.hour as i32, i32::from(row.bucket), partition as i32, row.begin as i64, row.end as i64);
        let values = (key.0, key.1, key.2, key.3, key.4, &row.packed, stamp, self.retention_s);
        self.db.write(&self.log, values).await
    }

    async fn book(
        &self,
        totals: &[(NotificationId, Totals)],
        mut ranges: BTreeMap<NotificationId, i32>,
    ) -> Result<(), StoreError> {
        let ttl_s = self.retention_s.saturating_add(LONGEST_WAIT_S);
        let updates = totals.iter().map(|(id, totals)| {
            let update = TotalsUpdate::of(id, totals, ranges.remove(id).into_iter().collect(), ttl_s);
            self.db.write(&self.book, update)
        });
        in_parallel(updates.collect()).await?;
        let alone = ranges
            .iter()
            .map(|(id, range)| self.db.write(&self.note_ranges, (ttl_s, BTreeSet::from([*range]), &id.0[..])));
        in_parallel(alone.collect()).await.map(drop)
    }

    async fn receipts_of_request(
        &self,
        tenant: &TenantId,
        id: &NotificationId,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Token<Page<ReceiptRow>>, StoreError> {
        let Some((mut row, mut from)) = token.map_or(Some((FIRST_ROW, FIRST)), request_token) else {
            return Ok(Err(ForeignToken));
        };
        let ranges = self.stored(id).await?.and_then(|stored| stored.ranges).unwrap_or_default();
        let mut page = Page { items: Vec::new(), next: None };
        let mut read = 0;
        for range in ranges.range(range_of(row.flush_begin)..) {
            loop {
                let rows = self.receipts.page(id, *range, row, RECEIPTS_SCAN).await?;
                for stored in &rows {
                    if stored.place.partition != from.partition {
                        from = ReceiptAt { partition: stored.place.partition, ..FIRST };
                    }
                    // To be read again when the page is full, up to the place that is reached.
                    row = RowPlace { end: 0, ..stored.place };
                    for (at, receipt) in stored.instances(id, from)? {
                        if page.items.len() == limit {
                            page.next = Some(token_of_request(&row, from));
                            return Ok(Ok(page));
                        }
                        from = ReceiptAt { place: at.place + 1, ..at };
                        page.items.extend((receipt.shared.tenant == tenant.as_str()).then_some(receipt));
                    }
                    from = from.max(ReceiptAt {
                        offset: stored.place.end,
                        ..ReceiptAt { partition: from.partition, ..FIRST }
                    });
                    row = stored.place;
                }
                read += rows.len();
                if rows.len() < RECEIPTS_SCAN as usize {
                    break;
                }
                if read >= RECEIPTS_ROWS {
                    page.next = Some(token_of_request(&row, from));
                    return Ok(Ok(page));
                }
            }
        }
        Ok(Ok(page))
    }

    /// A user's receipts, hour by hour from the newest on. An hour is read at once and put into order; a page that ends
    /// within it says behind which receipt.
    async fn receipts_of_user(
        &self,
        tenant: &TenantId,
        user_id: &str,
        (since_ms, until_ms): (u64, u64),
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Token<Page<ReceiptRow>>, StoreError> {
        let Some((mut hour, mut behind)) = token.map_or(Some((u32::MAX, NEWEST)), user_token) else {
            return Ok(Err(ForeignToken));
        };
        let mut page = Page { items: Vec::new(), next: None };
        if until_ms <= since_ms || hour < hour_of(since_ms) {
            return Ok(Ok(page));
        }
        hour = hour.min(hour_of(until_ms - 1));
        let user = LogUser::of(&TenantHash::of(tenant.as_str()), user_id);
        let mut read = 0;
        loop {
            for (place, receipt) in self.hour(hour, user, &mut read).await? {
                // An entry of the users' log is a hint only.
                if place >= behind
                    || receipt.user_id != user_id
                    || receipt.shared.tenant != tenant.as_str()
                    || !(since_ms..until_ms).contains(&receipt.shared.ended_ms)
                {
                    continue;
                }
                if page.items.len() == limit {
                    page.next = Some(token_of_user(hour, behind));
                    return Ok(Ok(page));
                }
                behind = place;
                page.items.push(receipt);
            }
            if hour == hour_of(since_ms) {
                return Ok(Ok(page));
            }
            (hour, behind) = (hour - 1, NEWEST);
            if page.items.len() == limit || read >= LOG_ROWS {
                page.next = Some(token_of_user(hour, behind));
                return Ok(Ok(page));
            }
        }
    }

    /// What may be a user's receipts of an hour, newest first. `read` counts the rows of the users' log.
    async fn hour(
        &self,
        hour: u32,
        user: LogUser,
        read: &mut usize,
    ) -> Result<Vec<(UserPlace, ReceiptRow)>, StoreError> {
        let (mut from, mut after) = (FIRST, BEFORE_LOG);
        let mut entries = Vec::new();
        loop {
            let rows = self.log_rows(hour, user, after).await?;
            for (partition, begin, end, packed) in &rows {
                if *partition as u32 != from.partition {
                    from = ReceiptAt { partition: *partition as u32, ..FIRST };
                }
                let found = entries_of(user, from, packed)?;
                entries.extend(found.found.into_iter().map(|entry| (*begin as u64, entry)));
                from = from.max(ReceiptAt { partition: from.partition, offset: found.end, ..FIRST });
                after = (*partition, *begin, *end);
            }
            *read += rows.len();
            if rows.len() < LOG_SCAN as usize {
                break;
            }
        }
        let receipts = entries.iter().map(|(flush_begin, (id, at))| self.receipts.instance(id, *flush_begin, *at));
        let receipts = in_parallel(receipts.collect()).await?.into_iter().zip(&entries);
        let placed = receipts.filter_map(|(receipt, (_, (_, at)))| {
            let receipt = receipt?;
            Some(((receipt.shared.ended_ms, *at), receipt))
        });
        let mut placed: Vec<(UserPlace, ReceiptRow)> = placed.collect();
        placed.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        Ok(placed)
    }

    async fn log_rows(
        &self,
        hour: u32,
        user: LogUser,
        after: (i32, i64, i64),
    ) -> Result<Vec<(i32, i64, i64, Vec<u8>)>, StoreError> {
        let bucket = i32::from(user.bucket(LOG_BUCKETS));
        self.db.rows(&self.log_page, (hour as i32, bucket, after.0, after.1, after.2, LOG_SCAN)).await
    }

    /// How many hours the users' log goes back.
    pub(super) fn hours_kept(&self) -> u32 {
        self.retention_s as u32 / 3_600 + 1
    }

    /// Puts an erasure's pseudonym on the person's receipts of an hour that were accepted until it began: on all rows that
    /// hold them, also on those that readers pass over.
    pub(super) async fn erase_hour(&self, erasure: &Erasure, hour: u32) -> Result<(), StoreError> {
        let user = LogUser::of(&TenantHash::of(erasure.tenant.as_str()), &erasure.user_id);
        let mut after = BEFORE_LOG;
        loop {
            let rows = self.log_rows(hour, user, after).await?;
            for (partition, begin, end, packed) in &rows {
                let all = ReceiptAt { partition: *partition as u32, ..FIRST };
                for (id, at) in entries_of(user, all, packed)?.found {
                    self.receipts.rename(erasure, &id, *begin as u64, at).await?;
                }
                after = (*partition, *begin, *end);
            }
            if rows.len() < LOG_SCAN as usize {
                return Ok(());
            }
        }
    }
}

/// A receipt's place in its user's list: when it ended, and where it is on the log.
type UserPlace = (u64, ReceiptAt);

/// Before every row of the users' log.
const BEFORE_LOG: (i32, i64, i64) = (0, 0, -1);
const FIRST: ReceiptAt = ReceiptAt { partition: 0, offset: 0, index: 0, place: 0 };
const LAST: ReceiptAt = ReceiptAt { partition: u32::MAX, offset: u64::MAX, index: u32::MAX, place: u32::MAX };
/// Behind nothing.
const NEWEST: UserPlace = (u64::MAX, LAST);
/// Before every row, since each ends behind its begin.
const FIRST_ROW: RowPlace = RowPlace { partition: 0, flush_begin: 0, begin: 0, end: 0 };

/// The first byte of a token says of which list it is.
const OF_REQUEST: u8 = 1;
const OF_USER: u8 = 2;
const OF_TENANT: u8 = 3;
const OF_DEDUPE_KEY: u8 = 4;

fn place_bytes(at: ReceiptAt) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&at.partition.to_be_bytes());
    bytes[4..12].copy_from_slice(&at.offset.to_be_bytes());
    bytes[12..16].copy_from_slice(&at.index.to_be_bytes());
    bytes[16..].copy_from_slice(&at.place.to_be_bytes());
    bytes
}

fn place_of(bytes: &[u8]) -> Option<ReceiptAt> {
    let (partition, rest) = bytes.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let (index, rest) = rest.split_first_chunk()?;
    Some(ReceiptAt {
        partition: u32::from_be_bytes(*partition),
        offset: u64::from_be_bytes(*offset),
        index: u32::from_be_bytes(*index),
        place: u32::from_be_bytes(rest.try_into().ok()?),
    })
}

fn token_of_request(row: &RowPlace, from: ReceiptAt) -> Vec<u8> {
    let row = [row.flush_begin.to_be_bytes(), row.begin.to_be_bytes(), row.end.to_be_bytes()].concat();
    [&[OF_REQUEST], &row[..], &place_bytes(from)].concat()
}

fn request_token(token: &[u8]) -> Option<(RowPlace, ReceiptAt)> {
    let (flush_begin, rest) = token.strip_prefix(&[OF_REQUEST])?.split_first_chunk()?;
    let (begin, rest) = rest.split_first_chunk()?;
    let (end, place) = rest.split_first_chunk()?;
    let from = place_of(place)?;
    let row = RowPlace {
        partition: from.partition,
        flush_begin: u64::from_be_bytes(*flush_begin),
        begin: u64::from_be_bytes(*begin),
        end: u64::from_be_bytes(*end),
    };
    Some((row, from))
}

fn token_of_user(hour: u32, (ended_ms, at): UserPlace) -> Vec<u8> {
    [&[OF_USER], &hour.to_be_bytes()[..], &ended_ms.to_be_bytes(), &place_bytes(at)].concat()
}

fn user_token(token: &[u8]) -> Option<(u32, UserPlace)> {
    let (hour, rest) = token.strip_prefix(&[OF_USER])?.split_first_chunk()?;
    let (ended_ms, place) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*hour), (u64::from_be_bytes(*ended_ms), place_of(place)?)))
}

fn token_of_list(list: u8, (accepted_ms, id): Place) -> Vec<u8> {
    [&[list], &accepted_ms.to_be_bytes()[..], &id.0].concat()
}

fn list_token(list: u8, token: &[u8]) -> Option<Place> {
    let (accepted_ms, id) = token.strip_prefix(&[list])?.split_first_chunk()?;
    Some((i64::from_be_bytes(*accepted_ms), NotificationId::from_slice(id)?))
}

#[async_trait]
impl Ledger for LedgerStore {
    async fn apply(&self, flush: Flush) -> Result<(), StoreError> {
        self.admit(flush.admitted).await?;
        let ranges = self.write_receipts(flush.partition, flush.receipts).await?;
        self.book(&flush.totals, ranges).await
    }

    async fn totals(&self, ids: &[NotificationId]) -> Result<Vec<Option<Totals>>, StoreError> {
        let stored = in_parallel(ids.iter().map(|id| self.stored(id)).collect()).await?;
        Ok(stored.into_iter().map(|stored| stored.and_then(StoredRequest::totals)).collect())
    }

    async fn request(&self, tenant: &TenantId, id: &NotificationId) -> Result<Option<RequestRow>, StoreError> {
        Ok(self.stored(id).await?.and_then(|stored| stored.of_tenant(*id, tenant)))
    }

    async fn requests(
        &self,
        tenant: &TenantId,
        scope: &RequestScope,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Token<Page<RequestRow>>, StoreError> {
        let list = match scope {
            RequestScope::Since(_) => OF_TENANT,
            RequestScope::DedupeKey(_) => OF_DEDUPE_KEY,
        };
        let Some(before) = token.map_or(Some(END), |token| list_token(list, token)) else {
            return Ok(Err(ForeignToken));
        };
        let listed = self.lists.page(tenant, scope, before, limit.max(1)).await?;
        let rows = in_parallel(listed.places.iter().map(|(_, id)| self.request(tenant, id)).collect()).await?;
        // A request that was admitted twice has two entries.
        let holds = |row: &RequestRow, accepted_ms: i64| {
            row.admitted.as_ref().is_some_and(|admitted| admitted.accepted_ms as i64 == accepted_ms)
        };
        let items = rows.into_iter().zip(&listed.places);
        let items = items.filter_map(|(row, (accepted_ms, _))| row.filter(|row| holds(row, *accepted_ms)));
        Ok(Ok(Page { items: items.collect(), next: listed.next.map(|next| token_of_list(list, next)) }))
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
            ReceiptScope::Request(id) => self.receipts_of_request(tenant, id, token, limit).await,
            ReceiptScope::User { user_id, since_ms, until_ms } => {
                self.receipts_of_user(tenant, user_id, (*since_ms, *until_ms), token, limit).await
            }
        }
    }
}
