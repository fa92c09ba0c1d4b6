//! The calls of operators.

use async_trait::async_trait;
use herald_core::{
    ids::hash128,
    ports::{
        StoreError,
        audit::{AUDIT_RETENTION_MS, Audit, AuditFilter, AuditRow},
        ledger::{ForeignToken, Page},
    },
};
use scylla::DeserializeRow;

use super::{
    session::{Db, Plain},
    spans::Spans,
};

const HOUR_MS: u64 = 3_600_000;
const LIST: &str = "audit";
/// Rows that one call looks at.
const SCAN_ROWS: usize = 2_000;
const PAGE_ROWS: i32 = 200;
/// The first byte of a token, and the length of the place behind it.
const TOKEN: u8 = 1;
const PLACE_BYTES: usize = 24;
/// Kept a day longer than is promised.
const TTL_S: i32 = (AUDIT_RETENTION_MS / 1_000) as i32 + 86_400;

/// Calls of operators in CQL.
pub struct AuditStore {
    db: Db,
    spans: Spans,
    record: Plain,
    page: Plain,
}

#[derive(DeserializeRow)]
struct StoredRow {
    at_ms: i64,
    identity: Vec<u8>,
    actor: String,
    action: String,
    tenant: Option<String>,
    result: String,
    status: i32,
    request_id: String,
    detail: String,
}

/// The place of a call in the list; it is read from its largest one down.
type Place = (i64, Vec<u8>);

impl AuditStore {
    pub(super) async fn new(db: &Db) -> anyhow::Result<Self> {
        Ok(Self {
            spans: Spans::new(db).await?,
            record: db
                .plain(
                    "INSERT INTO audit (hour, at_ms, identity, actor, action, tenant, result, status, request_id, detail) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TTL ?",
                )
                .await?,
            page: db
                .plain(
                    "SELECT at_ms, identity, actor, action, tenant, result, status, request_id, detail FROM audit \
                     WHERE hour = ? AND (at_ms, identity) < (?, ?) LIMIT ?",
                )
                .await?,
            db: db.clone(),
        })
    }

    /// The buckets of hours up to a place, the newest first.
    async fn hours(&self, since_ms: u64, before: &Place) -> Result<Vec<i32>, StoreError> {
        self.spans.newest(LIST, hour_of(since_ms), hour_of(before.0 as u64), PAGE_ROWS).await
    }
}

fn hour_of(ms: u64) -> i32 {
    i32::try_from(ms / HOUR_MS).unwrap_or(i32::MAX)
}

fn to_row(stored: StoredRow) -> AuditRow {
    AuditRow {
        at_ms: stored.at_ms as u64,
        actor: stored.actor,
        action: stored.action,
        tenant: stored.tenant,
        result: stored.result,
        status: u16::try_from(stored.status).unwrap_or_default(),
        request_id: stored.request_id,
        detail: stored.detail,
    }
}

fn token_of((at_ms, identity): &Place) -> Vec<u8> {
    [&[TOKEN], &at_ms.to_be_bytes()[..], identity].concat()
}

fn place_of(token: &[u8]) -> Option<Place> {
    let place = token.strip_prefix(&[TOKEN]).filter(|place| place.len() == PLACE_BYTES)?;
    let (at_ms, identity) = place.split_first_chunk()?;
    Some((i64::from_be_bytes(*at_ms), identity.to_vec()))
}

#[async_trait]
impl Audit for AuditStore {
    async fn record(&self, row: AuditRow) -> Result<(), StoreError> {
        let identity = hash128(&[row.actor.as_bytes(), row.action.as_bytes(), row.request_id.as_bytes()]);
        let hour = hour_of(row.at_ms);
        self.spans.note(LIST, hour, TTL_S).await?;
        let at_ms = row.at_ms as i64;
        let call = (&row.actor, &row.action, &row.tenant, &row.result, i32::from(row.status));
        let values =
            (hour, at_ms, &identity[..], call.0, call.1, call.2, call.3, call.4, &row.request_id, &row.detail, TTL_S);
        self.db.write(&self.record, values).await
    }

    async fn list(
        &self,
        filter: &AuditFilter,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<AuditRow>, ForeignToken>, StoreError> {
        let Some(mut before) = token.map_or(Some((i64::MAX, Vec::new())), place_of) else {
            return Ok(Err(ForeignToken));
        };
        let mut page = Page { items: Vec::new(), next: None };
        let mut scanned = 0;
        loop {
            let hours = self.hours(filter.since_ms, &before).await?;
            let more_hours = hours.len() == PAGE_ROWS as usize;
            for hour in hours {
                loop {
                    let from = (hour, before.0, &before.1, PAGE_ROWS);
                    let rows = self.db.rows::<StoredRow>(&self.page, from).await?;
                    let more_rows = rows.len() == PAGE_ROWS as usize;
                    for stored in rows {
                        (before, scanned) = ((stored.at_ms, stored.identity.clone()), scanned + 1);
                        let row = to_row(stored);
                        page.items.extend(filter.takes(&row).then_some(row));
                        if page.items.len() == limit.max(1) || scanned == SCAN_ROWS {
                            page.next = Some(token_of(&before));
                            return Ok(Ok(page));
                        }
                    }
                    if !more_rows {
                        break;
                    }
                }
                // Whatever comes next is older than this hour.
                before = (before.0.min(i64::from(hour) * HOUR_MS as i64), Vec::new());
            }
            if !more_hours {
                return Ok(Ok(page));
            }
        }
    }
}
