//! What becomes of books and receipts that nobody changed for long: they are deleted, and before that, where it is asked
//! for, exported by whoever writes files.
//!
//! Notifications expire by the day of their last change. An export goes through the days, oldest first: the row of
//! [`Table::Export`] says which day is being written, and into which part of it; when the file is safe, the row says so;
//! only then the day is deleted, and with its last row the row of the export. Whoever was killed in between finds the row
//! and does the same again: before the file was safe, it is written anew under the same name.

use herald_core::{
    ids::NotificationId,
    ports::{StoreError, ledger::ReceiptRow},
    user_log::hour_of,
};

use super::{
    keys::{Key, Parts, Table},
    ledger::{
        LedgerStore, admitted_key, day_of, decode_receipts, dedupe_key, expand, receipts_of, request_key, totals_key,
    },
    rows::{ExportRow, decode, encode},
};
use crate::kv::{Batch, Direction, Row};

/// Rows that one call deletes.
const EXPIRE_ROWS: usize = 2_000;
/// Notifications of a day that are looked at together.
const NOTIFICATIONS_AT_ONCE: usize = EXPIRE_ROWS / 4;
/// Rows of receipts that are read at a time.
const RECEIPTS_SCAN: usize = 64;

/// A day's receipts on their way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Days since the epoch.
    pub day: u32,
    /// From 1; a day has more than one part if something of it turned up late.
    pub part: u32,
    /// Whether its file is safe.
    pub written: bool,
}

/// Why receipts could not be handed on.
#[derive(Debug, thiserror::Error)]
pub enum ExportError<E> {
    /// The store's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The receiver's fault.
    #[error(transparent)]
    Receiver(E),
}

impl LedgerStore {
    /// Deletes a bounded number of rows of notifications, and of the users' log, that did not change for longer than
    /// `retention_ms`. Returns whether there may be more.
    pub fn expire(&self, now_ms: u64, retention_ms: u64) -> Result<bool, StoreError> {
        let until_ms = now_ms.saturating_sub(retention_ms);
        let log = self.expire_users_log(now_ms, retention_ms)?;
        let begin = Key::of(Table::NotificationByAge);
        let end = begin.clone().u32(day_of(until_ms));
        Ok(self.expire_notifications(&begin, &end)? || log)
    }

    /// Deletes a bounded number of rows of the users' log; `true` if there may be more.
    pub fn expire_users_log(&self, now_ms: u64, retention_ms: u64) -> Result<bool, StoreError> {
        let log = Key::of(Table::UserLog);
        let end = log.clone().u32(hour_of(now_ms.saturating_sub(retention_ms)));
        Ok(self.delete_range(&log, &end, EXPIRE_ROWS)? == EXPIRE_ROWS)
    }

    /// The export that is under way.
    pub fn export(&self) -> Result<Option<Export>, StoreError> {
        let row = self.kv.get(Key::of(Table::Export).bytes())?;
        let row: Option<ExportRow> = row.map(|row| decode("exports", &row)).transpose()?;
        Ok(row.map(|ExportRow { day, part, written }| Export { day, part, written }))
    }

    /// The oldest day that did not change for longer than `retention_ms` and has rows.
    pub fn oldest_expired_day(&self, now_ms: u64, retention_ms: u64) -> Result<Option<u32>, StoreError> {
        let begin = Key::of(Table::NotificationByAge);
        let end = begin.clone().u32(day_of(now_ms.saturating_sub(retention_ms)));
        let oldest = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, 1)?;
        oldest.first().map(|(key, _)| Parts::of(key)?.u32()).transpose()
    }

    /// Notes how far an export is, and returns once that survives a power cut.
    pub fn note_export(&self, export: Export) -> Result<(), StoreError> {
        let Export { day, part, written } = export;
        let mut batch = Batch::default();
        batch.put(Key::of(Table::Export), encode(&ExportRow { day, part, written }));
        self.kv.write(batch)?;
        self.kv.sync().map(|_| ()).map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Hands on the receipts of a day's notifications, in the order of ids; those that were changed on a later day are
    /// that day's.
    pub fn receipts_of_day<E>(
        &self,
        day: u32,
        mut each: impl FnMut(ReceiptRow) -> Result<(), E>,
    ) -> Result<(), ExportError<E>> {
        let of_day = Key::of(Table::NotificationByAge).u32(day);
        let mut begin = of_day.clone();
        loop {
            let rows = self.kv.scan(begin.bytes()..of_day.end().bytes(), Direction::Forward, NOTIFICATIONS_AT_ONCE)?;
            for (key, _) in &rows {
                let (_, id) = aged(key)?;
                begin = of_day.clone().tail(id.0).next();
                if self.last_change_day(&id)?.is_none_or(|last| last <= day) {
                    self.receipts_of_notification(&id, &mut each)?;
                }
            }
            if rows.len() < NOTIFICATIONS_AT_ONCE {
                return Ok(());
            }
        }
    }

    fn receipts_of_notification<E>(
        &self,
        id: &NotificationId,
        each: &mut impl FnMut(ReceiptRow) -> Result<(), E>,
    ) -> Result<(), ExportError<E>> {
        let all = receipts_of(id);
        let mut begin = all.bytes().to_vec();
        loop {
            let rows = self.kv.scan(&begin..all.end().bytes(), Direction::Forward, RECEIPTS_SCAN)?;
            for (key, value) in &rows {
                let receipts = decode_receipts(id, value)?;
                for row in expand(id, &receipts, 0)? {
                    each(row?.1).map_err(ExportError::Receiver)?;
                }
                begin = [key, &[0][..]].concat();
            }
            if rows.len() < RECEIPTS_SCAN {
                return Ok(());
            }
        }
    }

    /// Deletes a bounded number of rows of a day whose file is safe; with the last the export is over. Returns whether
    /// there may be more.
    pub fn delete_exported(&self, day: u32) -> Result<bool, StoreError> {
        let of_day = Key::of(Table::NotificationByAge).u32(day);
        if self.expire_notifications(&of_day, &of_day.end())? {
            return Ok(true);
        }
        let mut batch = Batch::default();
        batch.delete(Key::of(Table::Export));
        self.kv.write(batch)?;
        Ok(false)
    }

    /// Deletes at most `limit` rows and returns how many it were.
    fn delete_range(&self, begin: &Key, end: &Key, limit: usize) -> Result<usize, StoreError> {
        let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, limit)?;
        let deleted = rows.len();
        let mut batch = Batch::default();
        rows.into_iter().for_each(|(key, _)| batch.delete(key));
        self.kv.write(batch)?;
        Ok(deleted)
    }

    fn expire_notifications(&self, begin: &Key, end: &Key) -> Result<bool, StoreError> {
        let rows: Vec<Row> = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, NOTIFICATIONS_AT_ONCE)?;
        let more = rows.len() == NOTIFICATIONS_AT_ONCE;
        let mut budget = EXPIRE_ROWS;
        for (by_age, _) in rows {
            let (day, id) = aged(&by_age)?;
            let _held = self.writing.lock();
            let mut batch = Batch::default();
            if self.last_change_day(&id)?.is_none_or(|last| last <= day) {
                let receipts = receipts_of(&id);
                budget -= self.delete_range(&receipts, &receipts.end(), budget)?;
                if budget == 0 {
                    return Ok(true);
                }
                if let Some(row) = self.admitted(&id)? {
                    batch.delete(request_key(row.tenant.as_str(), row.accepted_ms, &id));
                    if !row.dedupe_key.is_empty() {
                        batch.delete(dedupe_key(&row));
                    }
                }
                batch.delete(totals_key(&id));
                batch.delete(admitted_key(&id));
            }
            batch.delete(by_age);
            self.kv.write(batch)?;
        }
        Ok(more)
    }
}

/// The day and the notification of a row by age.
fn aged(key: &[u8]) -> Result<(u32, NotificationId), StoreError> {
    let mut parts = Parts::of(key)?;
    Ok((parts.u32()?, NotificationId(parts.array()?)))
}
