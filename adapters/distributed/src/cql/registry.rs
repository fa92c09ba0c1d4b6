//! Policies.
//!
//! Before a version is stored, an entry is made that it may not be on `control`; the entry is named by the version, so
//! it can be taken back when that version has been published, whatever is written meanwhile. An entry of a version that
//! was never stored, or was published by somebody who then stopped, is found out by who reads it.

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    ids::hash128,
    ports::{
        StoreError,
        registry::{Registry, Versioned, Written},
    },
};

use super::session::{Conditional, Db, Plain, RACES, contended, in_parallel};

/// The slices of a kind.
const SLICES: i32 = 16;
/// Rows that are read at a time.
const PAGE_ROWS: i32 = 256;

/// Policies in CQL.
pub struct RegistryStore {
    db: Db,
    read: Plain,
    insert: Conditional,
    update: Conditional,
    page: Plain,
    announce: Plain,
    announced: Plain,
    take_back: Plain,
    publish: Conditional,
}

type PolicyRow = (i64, Option<Vec<u8>>, bool);

impl RegistryStore {
    pub(super) async fn new(db: &Db) -> anyhow::Result<Self> {
        let of_key = "WHERE kind = ? AND slice = ? AND key = ?";
        Ok(Self {
            read: db.plain(&format!("SELECT version, value, published FROM policies {of_key}")).await?,
            insert: db
                .conditional(
                    "INSERT INTO policies (kind, slice, key, version, value, published) \
                     VALUES (?, ?, ?, 1, ?, false) IF NOT EXISTS",
                )
                .await?,
            update: db
                .conditional(&format!(
                    "UPDATE policies SET version = ?, value = ?, published = false {of_key} IF version = ?"
                ))
                .await?,
            page: db
                .plain(
                    "SELECT key, version, value, published FROM policies \
                     WHERE kind = ? AND slice = ? AND key >= ? LIMIT ?",
                )
                .await?,
            announce: db.plain("INSERT INTO unpublished (slice, kind, key, version) VALUES (0, ?, ?, ?)").await?,
            announced: db.plain("SELECT kind, key, version FROM unpublished WHERE slice = 0 LIMIT ?").await?,
            take_back: db
                .plain("DELETE FROM unpublished WHERE slice = 0 AND kind = ? AND key = ? AND version = ?")
                .await?,
            publish: db.conditional(&format!("UPDATE policies SET published = true {of_key} IF version = ?")).await?,
            db: db.clone(),
        })
    }

    /// The policies of a slice whose keys begin with `prefix` and come from `from` on, without the deleted ones.
    async fn slice(
        &self,
        kind: &str,
        slice: i32,
        prefix: &str,
        mut from: String,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        let mut found = Vec::new();
        loop {
            let rows = self
                .db
                .rows::<(String, i64, Option<Vec<u8>>, bool)>(&self.page, (kind, slice, &from, PAGE_ROWS))
                .await?;
            let more = rows.len() == PAGE_ROWS as usize;
            for (key, version, value, published) in rows {
                if !key.starts_with(prefix) || found.len() == limit {
                    return Ok(found);
                }
                // The least key behind this one.
                from = format!("{key}\0");
                if value.is_some() {
                    found.push(versioned(kind, &key, (version, value, published)));
                }
            }
            if !more {
                return Ok(found);
            }
        }
    }
}

/// Policies of one tenant begin with its id and are in one slice.
fn slice_of(key: &str) -> i32 {
    let tenant = key.split_once('/').map_or(key, |(tenant, _)| tenant);
    i32::from(hash128(&[tenant.as_bytes()])[0]) % SLICES
}

fn versioned(kind: &str, key: &str, (version, value, published): PolicyRow) -> Versioned {
    let value = value.map(Bytes::from);
    Versioned { kind: kind.into(), key: key.into(), version: version as u64, value, published }
}

#[async_trait]
impl Registry for RegistryStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Versioned>, StoreError> {
        let row: Option<PolicyRow> = self.db.row(&self.read, (kind, slice_of(key), key)).await?;
        Ok(row.map(|row| versioned(kind, key, row)))
    }

    async fn put(&self, kind: &str, key: &str, value: Option<Bytes>, expect: u64) -> Result<Written, StoreError> {
        let (slice, version) = (slice_of(key), expect as i64 + 1);
        for _ in 0..RACES {
            let stored = self.get(kind, key).await?.map_or(0, |stored| stored.version);
            if stored != expect {
                return Ok(Written::VersionMismatch(stored));
            }
            self.db.write(&self.announce, (kind, key, version)).await?;
            let value = value.as_deref();
            let done = match expect {
                0 => self.db.write_if(&self.insert, (kind, slice, key, value)).await?,
                _ => self.db.write_if(&self.update, (version, value, kind, slice, key, expect as i64)).await?,
            };
            if done {
                return Ok(Written::Done(version as u64));
            }
        }
        Err(contended("a policy"))
    }

    async fn list(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        let behind = after.map(|after| format!("{after}\0")).unwrap_or_default();
        let from = behind.max(prefix.to_owned());
        let slices = if prefix.contains('/') { slice_of(prefix)..slice_of(prefix) + 1 } else { 0..SLICES };
        let slices = slices.map(|slice| self.slice(kind, slice, prefix, from.clone(), limit));
        let mut found: Vec<Versioned> = in_parallel(slices.collect()).await?.into_iter().flatten().collect();
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        found.truncate(limit);
        Ok(found)
    }

    async fn unpublished(&self, limit: usize) -> Result<Vec<Versioned>, StoreError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        if limit == 0 {
            return Ok(Vec::new());
        }
        let entries = self.db.rows::<(String, String, i64)>(&self.announced, (limit,)).await?;
        let found = entries.iter().map(|(kind, key, version)| async move {
            let stored = self.get(kind, key).await?;
            let settled = |stored: &Versioned| {
                stored.version > *version as u64 || (stored.version == *version as u64 && stored.published)
            };
            if stored.as_ref().is_some_and(settled) {
                self.db.write(&self.take_back, (kind, key, version)).await?;
            }
            Ok(stored.filter(|stored| stored.version == *version as u64 && !stored.published))
        });
        Ok(in_parallel(found.collect()).await?.into_iter().flatten().collect())
    }

    async fn published(&self, kind: &str, key: &str, version: u64) -> Result<(), StoreError> {
        let row = (kind, slice_of(key), key, version as i64);
        self.db.write_if(&self.publish, row).await?;
        // Either it is published now, or a newer one is stored, which has an entry of its own.
        self.db.write(&self.take_back, (kind, key, version as i64)).await
    }
}
