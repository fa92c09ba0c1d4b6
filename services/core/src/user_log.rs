//! The users' log: which receipts a user has, by the hour in which they ended.
//!
//! Both stores of receipts pack it alike. A row is written for each flush, hour and bucket that has receipts; a bucket is
//! one of some by the user's hash. So one user's day is read by scanning a few rows of 24 hours. After a format byte a
//! row holds the offset behind the flush's last record (varint), then groups:
//!
//! ```text
//! notification (16 bytes), offset (varint), index in the record (varint), entries (varint)
//! then for each entry: 32 bits of the user's hash (little-endian), place in the receipts' columns (little-endian u32)
//! ```
//!
//! The user's hash is that of tenant and user, and is only a hint: who it was is in the receipts.
//!
//! **Replays.** A row is keyed by the offset of the flush's first record. After a restart records may be flushed again
//! in other groups, so that rows overlap. Each row holds everything of its hour and bucket between its two offsets, so a
//! reader goes through the rows in their order and passes over what lies before the end of those it has read. A reader that
//! goes backwards passes over what a row that begins within this one covers, which it has read.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use prost::encoding::{decode_varint, encode_varint};

use crate::{
    ids::{NotificationId, hash128},
    packed::unpack,
    ports::StoreError,
    record,
};

const HOUR_MS: u64 = 3_600_000;
/// The format of every row written today.
const FORMAT: u8 = 1;

/// Clocks of those who write receipts differ by less, in hours.
pub const GRACE_HOURS: u32 = 25;

/// The hour of a time, since the epoch.
pub fn hour_of(ms: u64) -> u32 {
    (ms / HOUR_MS) as u32
}

/// Where a receipt is: its record, and its place in it. The order is that of the log within an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReceiptAt {
    /// The receipts partition.
    pub partition: u32,
    /// The record's offset.
    pub offset: u64,
    /// Which of the record's receipts.
    pub index: u32,
    /// Where in its columns.
    pub place: u32,
}

/// How far a reader of an hour is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogCursor {
    /// The first offset of the row it is in, of the partition of `at`.
    pub row: u64,
    /// The first receipt that it has not read.
    pub at: ReceiptAt,
}

/// A receipt of a notification, that may be a user's.
pub type LogEntry = (NotificationId, ReceiptAt);

/// A tenant's user, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogUser(u64);

impl LogUser {
    /// Hashes a user of a tenant.
    pub fn of(tenant: &TenantHash, user: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(user.as_bytes(), tenant.0))
    }

    /// The bucket of the user's rows, of so many.
    pub fn bucket(self, buckets: u8) -> u8 {
        (self.0 >> 32) as u8 % buckets.max(1)
    }

    fn short(self) -> u32 {
        self.0 as u32
    }
}

/// A tenant, hashed, so that it is hashed once for many users.
#[derive(Debug, Clone, Copy)]
pub struct TenantHash(u64);

impl TenantHash {
    /// Hashes a tenant's id.
    pub fn of(tenant: &str) -> Self {
        let hash = hash128(&[tenant.as_bytes()]);
        Self(u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]))
    }
}

/// Gathers a flush's rows.
pub struct LogWriter {
    buckets: u8,
    hours: BTreeMap<u32, Vec<PackedGroups>>,
    /// The offsets of the first record and behind the last.
    span: Option<(u64, u64)>,
}

/// A row of the users' log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// The hour in which its receipts ended.
    pub hour: u32,
    /// The part of the users that it is of.
    pub bucket: u8,
    /// The offset of the flush's first record.
    pub begin: u64,
    /// The offset behind the flush's last record.
    pub end: u64,
    /// What is stored.
    pub packed: Vec<u8>,
}

#[derive(Default, Clone)]
struct PackedGroups {
    row: Vec<u8>,
    /// The entries of the group that is being gathered.
    group: Vec<u8>,
}

impl LogWriter {
    /// For rows of so many buckets an hour.
    pub fn new(buckets: u8) -> Self {
        Self { buckets: buckets.max(1), hours: BTreeMap::new(), span: None }
    }

    /// Adds the receipts of a record. Records come in the order of their offsets.
    pub fn add(&mut self, offset: u64, index: u32, receipts: &record::Receipts) -> Result<(), StoreError> {
        self.span = Some((self.span.map_or(offset, |(first, _)| first), offset + 1));
        let tenant = TenantHash::of(&receipts.tenant);
        let buckets = self.buckets;
        let hour = self.hours.entry(hour_of(receipts.ended_ms));
        let rows = hour.or_insert_with(|| vec![PackedGroups::default(); buckets.into()]);
        for (place, user) in unpack(&receipts.users).enumerate() {
            let user = user.map_err(|e| StoreError::Damaged(e.to_string()))?;
            let user = LogUser::of(&tenant, user);
            let group = &mut rows[usize::from(user.bucket(buckets))].group;
            group.put_u32_le(user.short());
            group.put_u32_le(place as u32);
        }
        for PackedGroups { row, group } in rows.iter_mut().filter(|row| !row.group.is_empty()) {
            row.put_slice(&receipts.notification_id);
            encode_varint(offset, row);
            encode_varint(index.into(), row);
            encode_varint(group.len() as u64 / 8, row);
            row.append(group);
        }
        Ok(())
    }

    /// The rows.
    pub fn finish(self) -> impl Iterator<Item = LogRow> {
        let (begin, end) = self.span.unwrap_or_default();
        self.hours.into_iter().flat_map(move |(hour, rows)| {
            let rows = rows.into_iter().enumerate().filter(|(_, groups)| !groups.row.is_empty());
            rows.map(move |(bucket, PackedGroups { row: groups, .. })| {
                let mut packed = Vec::with_capacity(11 + groups.len());
                packed.put_u8(FORMAT);
                encode_varint(end, &mut packed);
                packed.put_slice(&groups);
                LogRow { hour, bucket: bucket as u8, begin, end, packed }
            })
        })
    }
}

/// The offset behind the last record that a row covers.
pub fn end_of(row: &[u8]) -> Result<u64, StoreError> {
    let mut rest = row;
    if rest.try_get_u8() != Ok(FORMAT) {
        return Err(damaged("a users' log in an unknown format"));
    }
    decode_varint(&mut rest).map_err(|_| damaged("a users' log that breaks off"))
}

/// What a row has of a user.
pub struct UserEntries {
    /// The receipts that may be the user's, in order.
    pub found: Vec<LogEntry>,
    /// The offset behind the last record that the row covers.
    pub end: u64,
}

/// The entries of a row from a place on that may be the user's.
pub fn entries_of(user: LogUser, from: ReceiptAt, row: &[u8]) -> Result<UserEntries, StoreError> {
    let mut rest = row;
    let broken = || damaged("a users' log that breaks off");
    if rest.try_get_u8() != Ok(FORMAT) {
        return Err(damaged("a users' log in an unknown format"));
    }
    let wanted = user.short().to_le_bytes();
    let mut entries = UserEntries { found: Vec::new(), end: decode_varint(&mut rest).map_err(|_| broken())? };
    while rest.has_remaining() {
        let id = rest.get(..16).and_then(NotificationId::from_slice).ok_or_else(broken)?;
        rest.advance(16);
        let mut number = || decode_varint(&mut rest).map_err(|_| broken());
        let (offset, index, count) = (number()?, number()? as u32, number()?);
        let length = usize::try_from(count).ok().and_then(|n| n.checked_mul(8)).ok_or_else(broken)?;
        let (group, after) = rest.split_at_checked(length).ok_or_else(broken)?;
        rest = after;
        for entry in group.chunks_exact(8).filter(|entry| entry[..4] == wanted) {
            let place = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let at = ReceiptAt { partition: from.partition, offset, index, place };
            if at >= from {
                entries.found.push((id, at));
            }
        }
    }
    Ok(entries)
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(format!("a row holds {what}"))
}
