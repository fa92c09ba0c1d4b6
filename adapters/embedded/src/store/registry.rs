//! Policies.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::ports::{
    StoreError,
    registry::{Registry, Versioned, Written},
};
use parking_lot::Mutex;

use super::{
    keys::{Key, Parts, Table},
    rows::{PolicyRow, decode, encode},
};
use crate::kv::{Batch, Direction, Kv, ready};

const SCAN_ROWS: usize = 256;

/// Policies in a key-value database.
pub struct RegistryStore {
    kv: Arc<dyn Kv>,
    /// Held from reading a version until it is written.
    writing: Mutex<()>,
}

impl RegistryStore {
    /// The policies of a database.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv, writing: Mutex::new(()) }
    }

    fn row(&self, kind: &str, key: &str) -> Result<Option<PolicyRow>, StoreError> {
        let row = self.kv.get(policy(kind, key).bytes())?;
        row.map(|row| decode("policies", &row)).transpose()
    }

    /// As [`Registry::list`], for who waits for nothing.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub fn read(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        let all = Key::of(Table::Policy).part(kind);
        let end = policy(kind, prefix).end();
        let mut begin = policy(kind, prefix);
        if let Some(after) = after {
            let behind = policy(kind, after).next();
            if behind.bytes() > begin.bytes() {
                begin = behind;
            }
        }
        let mut found = Vec::new();
        while found.len() < limit {
            let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, SCAN_ROWS)?;
            for (key, value) in &rows {
                let name = Parts::after(key, all.bytes().len())?.rest()?;
                let row: PolicyRow = decode("policies", value)?;
                if row.value.is_some() && found.len() < limit {
                    found.push(versioned(kind, name, row));
                }
                begin = policy(kind, name).next();
            }
            if rows.len() < SCAN_ROWS {
                break;
            }
        }
        Ok(found)
    }

    fn put_row(&self, kind: &str, key: &str, value: Option<Bytes>, expect: u64) -> Result<Written, StoreError> {
        let _held = self.writing.lock();
        let stored = self.row(kind, key)?.map_or(0, |row| row.version);
        if stored != expect {
            return Ok(Written::VersionMismatch(stored));
        }
        let row = PolicyRow { version: stored + 1, value, published: false };
        let mut batch = Batch::default();
        batch.put(policy(kind, key), encode(&row));
        batch.put(unpublished(kind, key), Bytes::new());
        self.kv.write(batch)?;
        Ok(Written::Done(row.version))
    }

    fn mark_published(&self, kind: &str, key: &str, version: u64) -> Result<(), StoreError> {
        let _held = self.writing.lock();
        let Some(mut row) = self.row(kind, key)?.filter(|row| row.version == version && !row.published) else {
            return Ok(());
        };
        row.published = true;
        let mut batch = Batch::default();
        batch.put(policy(kind, key), encode(&row));
        batch.delete(unpublished(kind, key));
        self.kv.write(batch)
    }
}

fn policy(kind: &str, key: &str) -> Key {
    Key::of(Table::Policy).part(kind).tail(key)
}

fn unpublished(kind: &str, key: &str) -> Key {
    Key::of(Table::UnpublishedPolicy).part(kind).tail(key)
}

fn versioned(kind: &str, key: &str, row: PolicyRow) -> Versioned {
    Versioned { kind: kind.into(), key: key.into(), version: row.version, value: row.value, published: row.published }
}

#[async_trait]
impl Registry for RegistryStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Versioned>, StoreError> {
        Ok(self.row(kind, key)?.map(|row| versioned(kind, key, row)))
    }

    async fn put(&self, kind: &str, key: &str, value: Option<Bytes>, expect: u64) -> Result<Written, StoreError> {
        ready(&*self.kv).await?;
        self.put_row(kind, key, value, expect)
    }

    async fn list(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        self.read(kind, prefix, after, limit)
    }

    async fn unpublished(&self, limit: usize) -> Result<Vec<Versioned>, StoreError> {
        let table = Key::of(Table::UnpublishedPolicy);
        let mut found = Vec::new();
        for (key, _) in self.kv.scan(table.bytes()..table.end().bytes(), Direction::Forward, limit)? {
            let mut parts = Parts::of(&key)?;
            let (kind, key) = (parts.text()?, parts.rest()?);
            found.extend(self.row(kind, key)?.filter(|row| !row.published).map(|row| versioned(kind, key, row)));
        }
        Ok(found)
    }

    async fn published(&self, kind: &str, key: &str, version: u64) -> Result<(), StoreError> {
        ready(&*self.kv).await?;
        self.mark_published(kind, key, version)
    }
}
