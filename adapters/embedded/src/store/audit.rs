//! The calls of operators.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use async_trait::async_trait;
use herald_core::{
    ids::hash128,
    ports::{
        StoreError,
        audit::{AUDIT_RETENTION_MS, Audit, AuditFilter, AuditRow},
        ledger::{ForeignToken, Page},
    },
};
use tokio::sync::Mutex;

use super::{
    keys::{Key, Table},
    rows::{AuditRowValue, decode, encode},
};
use crate::kv::{Batch, Direction, Kv, ready};

/// Rows that one call looks at.
const SCAN_ROWS: usize = 2_000;
/// Rows that one call deletes.
const EXPIRE_ROWS: usize = 2_000;
/// The first byte of a token, and the length of the place behind it.
const TOKEN: u8 = 1;
const PLACE_BYTES: usize = 24;

/// Calls of operators in a key-value database.
pub struct AuditStore {
    kv: Arc<dyn Kv>,
    /// Rows written, and how many of them a sync has covered: one sync serves all who wait.
    written: AtomicU64,
    covered: Mutex<u64>,
}

impl AuditStore {
    /// The calls of a database.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv, written: AtomicU64::new(0), covered: Mutex::new(0) }
    }

    /// Deletes a bounded number of rows that are too old. Returns whether there may be more.
    pub fn expire(&self, now_ms: u64) -> Result<bool, StoreError> {
        let begin = Key::of(Table::Audit);
        let end = begin.clone().u64(now_ms.saturating_sub(AUDIT_RETENTION_MS));
        let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, EXPIRE_ROWS)?;
        let more = rows.len() == EXPIRE_ROWS;
        let mut batch = Batch::default();
        rows.into_iter().for_each(|(key, _)| batch.delete(key));
        if !batch.is_empty() {
            self.kv.write(batch)?;
        }
        Ok(more)
    }

    async fn make_durable(&self, row: u64) -> Result<(), StoreError> {
        let mut covered = self.covered.lock().await;
        if *covered >= row {
            return Ok(());
        }
        let (written, kv) = (self.written.load(SeqCst), self.kv.clone());
        let synced = tokio::task::spawn_blocking(move || kv.sync()).await;
        let unavailable = |error: String| StoreError::Unavailable(error);
        synced.map_err(|error| unavailable(error.to_string()))?.map_err(|error| unavailable(error.to_string()))?;
        *covered = written;
        Ok(())
    }
}

/// A call that is recorded again has the same key.
fn key_of(row: &AuditRow) -> Key {
    let identity = [row.actor.as_bytes(), row.action.as_bytes(), row.request_id.as_bytes()];
    Key::of(Table::Audit).u64(row.at_ms).tail(hash128(&identity))
}

#[async_trait]
impl Audit for AuditStore {
    async fn record(&self, row: AuditRow) -> Result<(), StoreError> {
        ready(&*self.kv).await?;
        let mut batch = Batch::default();
        let key = key_of(&row);
        let value = AuditRowValue {
            at_ms: row.at_ms,
            actor: row.actor,
            action: row.action,
            tenant: row.tenant,
            result: row.result,
            status: row.status.into(),
            request_id: row.request_id,
            detail: row.detail,
        };
        batch.put(key, encode(&value));
        self.kv.write(batch)?;
        let row = self.written.fetch_add(1, SeqCst) + 1;
        self.make_durable(row).await
    }

    async fn list(
        &self,
        filter: &AuditFilter,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<AuditRow>, ForeignToken>, StoreError> {
        let all = Key::of(Table::Audit);
        let end = match token {
            None => all.end(),
            Some(token) => match token.strip_prefix(&[TOKEN]).filter(|place| place.len() == PLACE_BYTES) {
                Some(place) => all.clone().tail(place),
                None => return Ok(Err(ForeignToken)),
            },
        };
        let begin = all.clone().u64(filter.since_ms);
        let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Backward, SCAN_ROWS)?;
        let scanned_all = rows.len() < SCAN_ROWS;
        let mut page = Page { items: Vec::new(), next: None };
        let last = rows.len();
        for (i, (key, value)) in rows.into_iter().enumerate() {
            let row = to_row(decode("audit", &value)?);
            if filter.takes(&row) {
                page.items.push(row);
            }
            if page.items.len() == limit.max(1) || (i + 1 == last && !scanned_all) {
                page.next = Some([&[TOKEN], &key[all.bytes().len()..]].concat());
                break;
            }
        }
        Ok(Ok(page))
    }
}

fn to_row(value: AuditRowValue) -> AuditRow {
    AuditRow {
        at_ms: value.at_ms,
        actor: value.actor,
        action: value.action,
        tenant: value.tenant,
        result: value.result,
        status: u16::try_from(value.status).unwrap_or_default(),
        request_id: value.request_id,
        detail: value.detail,
    }
}
