//! Lists of requests, newest first: all of a tenant's, and those under a dedupe key.

use herald_core::{
    ids::{NotificationId, TenantId},
    ports::{StoreError, ledger::RequestScope},
};

use super::{
    requests::AdmittedInsert,
    session::{Db, Plain, in_parallel},
    spans::Spans,
};

const TEN_MINUTES_MS: i64 = 600_000;
const DAY_MS: i64 = 86_400_000;
/// Buckets that are looked up at a time, and those that one call reads.
const SPANS: i32 = 64;
const READ_BUCKETS: usize = 256;
/// Buckets are known for longer than any request can wait beyond the retention.
const LONGEST_WAIT_S: i32 = 61 * 86_400;

/// A place in a list; it is read from its largest one down.
pub(super) type Place = (i64, NotificationId);

/// The end of a list.
pub(super) const END: Place = (i64::MAX, NotificationId([0xff; 16]));

/// Lists of requests.
pub(super) struct RequestLists {
    db: Db,
    spans: Spans,
    put: Plain,
    page: Plain,
}

/// A part of a list.
pub(super) struct Listed {
    /// Entries, newest first.
    pub(super) places: Vec<Place>,
    /// Where to go on.
    pub(super) next: Option<Place>,
}

impl RequestLists {
    pub(super) async fn new(db: &Db) -> anyhow::Result<Self> {
        Ok(Self {
            spans: Spans::new(db).await?,
            put: db
                .plain("INSERT INTO request_list (list, bucket, accepted_ms, id) VALUES (?, ?, ?, ?) USING TTL ?")
                .await?,
            page: db
                .plain(
                    "SELECT accepted_ms, id FROM request_list \
                     WHERE list = ? AND bucket = ? AND (accepted_ms, id) < (?, ?) LIMIT ?",
                )
                .await?,
            db: db.clone(),
        })
    }

    /// Adds requests to the lists that they belong to.
    pub(super) async fn add(&self, requests: &[AdmittedInsert], retention_s: i32) -> Result<(), StoreError> {
        let mut entries: Vec<(String, i32, &AdmittedInsert)> = Vec::with_capacity(requests.len());
        for request in requests {
            let tenant = &request.admitted_tenant;
            entries.push((all_of(tenant), bucket(request.accepted_ms, TEN_MINUTES_MS), request));
            if !request.dedupe_key.is_empty() {
                entries.push((under_key(tenant, &request.dedupe_key), bucket(request.accepted_ms, DAY_MS), request));
            }
        }
        entries.sort_unstable_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let spans = entries.chunk_by(|a, b| (&a.0, a.1) == (&b.0, b.1)).map(|same| {
            let (list, bucket, _) = &same[0];
            self.spans.note(list, *bucket, retention_s.saturating_add(LONGEST_WAIT_S))
        });
        in_parallel(spans.collect()).await?;
        let puts = entries.iter().map(|(list, bucket, request)| {
            self.db.write(&self.put, (list, bucket, request.accepted_ms, &request.id, request.ttl))
        });
        in_parallel(puts.collect()).await.map(drop)
    }

    /// The entries of a list before a place, at most `limit`.
    pub(super) async fn page(
        &self,
        tenant: &TenantId,
        scope: &RequestScope,
        mut before: Place,
        limit: usize,
    ) -> Result<Listed, StoreError> {
        let tenant = tenant.as_str();
        let (list, length_ms, since_ms) = match scope {
            RequestScope::Since(ms) => (all_of(tenant), TEN_MINUTES_MS, i64::try_from(*ms).unwrap_or(i64::MAX)),
            RequestScope::DedupeKey(key) => (under_key(tenant, key), DAY_MS, 0),
        };
        let mut places: Vec<Place> = Vec::new();
        let mut read = 0;
        loop {
            let (from, to) = (bucket(since_ms, length_ms), bucket(before.0, length_ms));
            let buckets = self.spans.newest(&list, from, to, SPANS).await?;
            let all = buckets.len() < SPANS as usize;
            for bucket in buckets {
                let left = i32::try_from(limit - places.len()).unwrap_or(i32::MAX);
                let id = &before.1.0[..];
                let rows = self.db.rows::<(i64, Vec<u8>)>(&self.page, (&list, bucket, before.0, id, left)).await?;
                let found = rows.into_iter().filter(|(ms, _)| *ms >= since_ms);
                places.extend(found.filter_map(|(ms, id)| Some((ms, NotificationId::from_slice(&id)?))));
                if places.len() >= limit {
                    return Ok(Listed { next: places.last().copied(), places });
                }
                // Whatever comes next is older than this bucket.
                before = before.min((i64::from(bucket) * length_ms, NotificationId([0; 16])));
                read += 1;
                if read == READ_BUCKETS {
                    return Ok(Listed { places, next: Some(before) });
                }
            }
            if all {
                return Ok(Listed { places, next: None });
            }
        }
    }
}

fn bucket(ms: i64, length_ms: i64) -> i32 {
    i32::try_from(ms / length_ms).unwrap_or(i32::MAX)
}

// A tenant's id has no slash.
fn all_of(tenant: &str) -> String {
    format!("requests/{tenant}")
}

fn under_key(tenant: &str, dedupe_key: &str) -> String {
    format!("requests/{tenant}/{dedupe_key}")
}
