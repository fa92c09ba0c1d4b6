//! A user's receipts of a span of time, newest first.
//!
//! The hours are gone through backwards. Within an hour the users' log is in the order of partitions and offsets, so each
//! partition is gone through backwards by itself, and the one whose next receipt ended last is taken from. How far each
//! has been read is in the page token.

use std::collections::VecDeque;

use herald_core::{
    ids::{NotificationId, TenantId},
    ports::{
        StoreError,
        ledger::{ForeignToken, Page, ReceiptRow},
    },
    user_log::{LogUser, ReceiptAt, TenantHash, end_of, entries_of, hour_of},
};

use super::{
    keys::{Key, Parts},
    ledger::{
        FIRST, LOG_BUCKETS, LOG_ROWS, LOG_SCAN, LedgerStore, OF_USER, Token, bucket_key, place_bytes, place_of,
        row_place,
    },
};
use crate::kv::Direction;

/// Whose receipts, and when they ended.
pub(super) struct UserSpan<'a> {
    pub tenant: &'a TenantId,
    pub user_id: &'a str,
    pub since_ms: u64,
    /// Exclusive.
    pub until_ms: u64,
}

impl UserSpan<'_> {
    /// An entry of the users' log is a hint only.
    fn takes(&self, row: &ReceiptRow) -> bool {
        row.user_id == self.user_id
            && row.shared.tenant == self.tenant.as_str()
            && (self.since_ms..self.until_ms).contains(&row.shared.ended_ms)
    }
}

/// How far a partition of an hour has been read: what is left is of the row that begins at this offset all before a
/// place, and the rows below it.
#[derive(Clone, Copy)]
struct Descent {
    row: u64,
    before: ReceiptAt,
}

/// A partition of an hour while it is read.
struct Lane {
    /// Where to go on should the page end here.
    at: Descent,
    /// What was read and not looked up yet, each with where to go on behind it; without an id it is the end of a row.
    ahead: VecDeque<(Descent, Option<NotificationId>)>,
    /// The next receipt, and where to go on behind it.
    head: Option<(Descent, ReceiptRow)>,
    is_over: bool,
}

impl Lane {
    fn new(at: Descent) -> Self {
        Self { at, ahead: VecDeque::new(), head: None, is_over: false }
    }

    fn take(&mut self) -> Option<ReceiptRow> {
        let (at, receipt) = self.head.take()?;
        self.at = at;
        Some(receipt)
    }
}

impl LedgerStore {
    pub(super) fn receipts_of_user(
        &self,
        of: &UserSpan<'_>,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Token<Page<ReceiptRow>>, StoreError> {
        let Some(resumed) = token.map_or(Some(None), |token| lanes_of(token).map(Some)) else {
            return Ok(Err(ForeignToken));
        };
        let mut page = Page { items: Vec::new(), next: None };
        if of.until_ms <= of.since_ms {
            return Ok(Ok(page));
        }
        let user = LogUser::of(&TenantHash::of(of.tenant.as_str()), of.user_id);
        let last = hour_of(of.until_ms - 1);
        let (mut hour, mut lanes) = match resumed {
            // Hours behind the span are passed over at once, however many a token says they are.
            Some((hour, lanes)) if hour <= last => (hour, lanes),
            _ => (last, self.lanes(last, user)?),
        };
        let mut budget = LOG_ROWS;
        loop {
            for i in 0..lanes.len() {
                if !self.look_ahead(&mut lanes[i], hour, user, of, &mut budget)? {
                    page.next = Some(token_of(hour, &lanes));
                    return Ok(Ok(page));
                }
            }
            lanes.retain(|lane| !lane.is_over);
            let ended_ms = |lane: &&mut Lane| lane.head.as_ref().map(|(_, row)| row.shared.ended_ms);
            match lanes.iter_mut().max_by_key(ended_ms) {
                Some(_) if page.items.len() == limit => {
                    page.next = Some(token_of(hour, &lanes));
                    return Ok(Ok(page));
                }
                Some(newest) => page.items.extend(newest.take()),
                None if hour <= hour_of(of.since_ms) => return Ok(Ok(page)),
                None => {
                    hour -= 1;
                    lanes = self.lanes(hour, user)?;
                }
            }
        }
    }

    /// The partitions that have something of an hour.
    fn lanes(&self, hour: u32, user: LogUser) -> Result<Vec<Lane>, StoreError> {
        let bucket = bucket_key(hour, user.bucket(LOG_BUCKETS));
        let (mut lanes, mut end) = (Vec::new(), bucket.end());
        while let Some((key, _)) = self.kv.scan(bucket.bytes()..end.bytes(), Direction::Backward, 1)?.pop() {
            let (partition, _) = row_place(&key)?;
            let before = ReceiptAt { partition, offset: u64::MAX, index: u32::MAX, place: u32::MAX };
            lanes.push(Lane::new(Descent { row: u64::MAX, before }));
            end = bucket.clone().u32(partition);
        }
        Ok(lanes)
    }

    /// Finds the next receipt of a lane, or its end. Returns whether the budget of rows allowed it.
    fn look_ahead(
        &self,
        lane: &mut Lane,
        hour: u32,
        user: LogUser,
        of: &UserSpan<'_>,
        budget: &mut usize,
    ) -> Result<bool, StoreError> {
        while lane.head.is_none() && !lane.is_over {
            let Some((behind, id)) = lane.ahead.pop_front() else {
                if *budget == 0 {
                    return Ok(false);
                }
                self.read_down(lane, hour, user, budget)?;
                continue;
            };
            let receipt = id.map(|id| self.receipt(&id, behind.before)).transpose()?.flatten();
            match receipt.filter(|row| of.takes(row)) {
                Some(receipt) => lane.head = Some((behind, receipt)),
                None => lane.at = behind,
            }
        }
        Ok(true)
    }

    /// Reads rows of a lane's partition below where it is.
    fn read_down(&self, lane: &mut Lane, hour: u32, user: LogUser, budget: &mut usize) -> Result<(), StoreError> {
        let partition = lane.at.before.partition;
        let (bucket, first) =
            (bucket_key(hour, user.bucket(LOG_BUCKETS)).u32(partition), ReceiptAt { partition, ..FIRST });
        let row_key = bucket.clone().u64(lane.at.row);
        let end = if lane.at.before == first { row_key } else { row_key.next() };
        let limit = LOG_SCAN.min(*budget);
        let rows = self.kv.scan(bucket.bytes()..end.bytes(), Direction::Backward, limit)?;
        *budget -= rows.len();
        lane.is_over = rows.is_empty();
        for (key, value) in rows {
            let (_, row) = row_place(&key)?;
            let mut entries = entries_of(user, first, &value)?;
            if row == lane.at.row {
                entries.found.retain(|(_, at)| *at < lane.at.before);
            }
            if !entries.found.is_empty() {
                let read = self.rows_within(&bucket, row, entries.end)?;
                entries.found.retain(|(_, at)| !read.iter().any(|(row, end)| (*row..*end).contains(&at.offset)));
            }
            let newest_first = entries.found.into_iter().rev();
            lane.ahead.extend(newest_first.map(|(id, at)| (Descent { row, before: at }, Some(id))));
            lane.ahead.push_back((Descent { row, before: first }, None));
        }
        Ok(())
    }

    /// What the rows cover that begin within a row: a replay flushed it again, and who comes from above has read it.
    fn rows_within(&self, partition: &Key, row: u64, end: u64) -> Result<Vec<(u64, u64)>, StoreError> {
        let mut within = Vec::new();
        let (mut begin, end) = (partition.clone().u64(row).next(), partition.clone().u64(end));
        loop {
            let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, LOG_SCAN)?;
            for (key, value) in &rows {
                let (_, row) = row_place(key)?;
                within.push((row, end_of(value)?));
                begin = partition.clone().u64(row).next();
            }
            if rows.len() < LOG_SCAN {
                return Ok(within);
            }
        }
    }
}

fn token_of(hour: u32, lanes: &[Lane]) -> Vec<u8> {
    let mut token = vec![OF_USER];
    token.extend(hour.to_be_bytes());
    for lane in lanes.iter().filter(|lane| !lane.is_over) {
        token.extend(lane.at.row.to_be_bytes());
        token.extend(place_bytes(lane.at.before));
    }
    token
}

fn lanes_of(token: &[u8]) -> Option<(u32, Vec<Lane>)> {
    const LANE_BYTES: usize = 28;
    let (hour, lanes) = token.strip_prefix(&[OF_USER])?.split_first_chunk()?;
    let lane = |bytes: &[u8]| {
        let row = Parts::after(bytes, 0).ok()?.u64().ok()?;
        Some(Lane::new(Descent { row, before: place_of(&bytes[8..])? }))
    };
    let lanes = lanes.chunks(LANE_BYTES).map(|bytes| lane(bytes).filter(|_| bytes.len() == LANE_BYTES));
    Some((u32::from_be_bytes(*hour), lanes.collect::<Option<_>>()?))
}
