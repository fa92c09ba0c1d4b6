//! Idempotency keys.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_core::{
    ids::{NotificationId, TenantId},
    ports::{
        StoreError,
        admissions::{Admission, Admissions, PlaceNote},
    },
    record::Place,
};

use super::{
    keys::{Key, Parts, Table},
    locks::Stripes,
    rows::{AdmissionRow, damaged, decode, encode},
};
use crate::kv::{Batch, Direction, Kv, ready};

const HOUR_MS: u64 = 3_600_000;
/// After this a key may be used for another call.
const REUSE_MS: u64 = 24 * HOUR_MS;
/// After this a key is forgotten.
const KEEP_MS: u64 = 48 * HOUR_MS;
const EXPIRE_ROWS: usize = 1_000;

/// Idempotency keys in a key-value database.
pub struct AdmissionStore {
    kv: Arc<dyn Kv>,
    /// By idempotency key, held from reading a row until it is written.
    locks: Stripes,
}

impl AdmissionStore {
    /// The admissions of a database.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv, locks: Stripes::default() }
    }

    /// Forgets keys that were first used more than two days ago, at most 1,000 a call; returns whether there are more.
    pub fn expire(&self, now_ms: u64) -> Result<bool, StoreError> {
        let begin = Key::of(Table::AdmissionByAge);
        let end = Key::of(Table::AdmissionByAge).u32((now_ms.saturating_sub(KEEP_MS) / HOUR_MS) as u32);
        let rows = self.kv.scan(begin.bytes()..end.bytes(), Direction::Forward, EXPIRE_ROWS)?;
        for (by_age, _) in &rows {
            let mut parts = Parts::of(by_age)?;
            let (hour, tenant, key) = (parts.u32()?, parts.text()?, parts.rest()?);
            let _held = self.locks.write(key);
            let mut batch = Batch::default();
            // The key may have been begun again since.
            if self.row(tenant, key)?.is_some_and(|row| hour_of(row.first_use_ms) == hour) {
                batch.delete(row_key(tenant, key));
            }
            batch.delete(by_age.clone());
            self.kv.write(batch)?;
        }
        Ok(rows.len() == EXPIRE_ROWS)
    }

    fn row(&self, tenant: &str, key: &str) -> Result<Option<AdmissionRow>, StoreError> {
        let row = self.kv.get(row_key(tenant, key).bytes())?;
        row.map(|row| decode("admissions", &row)).transpose()
    }

    /// Changes a key's row; `None` from `change` leaves it as it is.
    fn change<T>(
        &self,
        tenant: &str,
        key: &str,
        change: impl FnOnce(Option<AdmissionRow>, &mut Batch) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _held = self.locks.write(key);
        let mut batch = Batch::default();
        let result = change(self.row(tenant, key)?, &mut batch)?;
        self.kv.write(batch)?;
        Ok(result)
    }

    fn note(&self, note: &PlaceNote) -> Result<Place, StoreError> {
        let tenant = note.tenant.as_str();
        self.change(tenant, &note.key, |row, batch| {
            // A key that was forgotten, or begun again for another call, has nothing to say about this record.
            let Some(mut row) = row.filter(|row| row.id == note.id.0[..]) else { return Ok(note.place) };
            if let Some(place) = row.first_place {
                return Ok(place);
            }
            row.first_place = Some(note.place);
            batch.put(row_key(tenant, &note.key), encode(&row));
            Ok(note.place)
        })
    }
}

fn hour_of(first_use_ms: u64) -> u32 {
    (first_use_ms / HOUR_MS) as u32
}

fn row_key(tenant: &str, key: &str) -> Key {
    Key::of(Table::Admission).part(tenant).tail(key)
}

fn by_age(tenant: &str, key: &str, first_use_ms: u64) -> Key {
    Key::of(Table::AdmissionByAge).u32(hour_of(first_use_ms)).part(tenant).tail(key)
}

fn to_row(admission: &Admission) -> AdmissionRow {
    AdmissionRow {
        id: Bytes::copy_from_slice(&admission.id.0),
        body_hash: Bytes::copy_from_slice(&admission.body_hash),
        first_use_ms: admission.first_use_ms,
        running_since_ms: admission.running_since_ms,
        answered: admission.answered,
        first_place: admission.first_place,
    }
}

fn from_row(row: AdmissionRow) -> Result<Admission, StoreError> {
    Ok(Admission {
        id: NotificationId::from_slice(&row.id).ok_or_else(|| damaged("an id that is not 16 bytes"))?,
        body_hash: row.body_hash[..].try_into().map_err(|_| damaged("a hash that is not 16 bytes"))?,
        first_use_ms: row.first_use_ms,
        running_since_ms: row.running_since_ms,
        answered: row.answered,
        first_place: row.first_place,
    })
}

#[async_trait]
impl Admissions for AdmissionStore {
    async fn begin(&self, tenant: &TenantId, key: &str, admission: Admission) -> Result<Option<Admission>, StoreError> {
        ready(&*self.kv).await?;
        let tenant = tenant.as_str();
        self.change(tenant, key, |row, batch| {
            if let Some(row) = row {
                if admission.first_use_ms.saturating_sub(row.first_use_ms) < REUSE_MS {
                    return from_row(row).map(Some);
                }
                batch.delete(by_age(tenant, key, row.first_use_ms));
            }
            batch.put(row_key(tenant, key), encode(&to_row(&admission)));
            batch.put(by_age(tenant, key, admission.first_use_ms), Bytes::new());
            Ok(None)
        })
    }

    async fn restart(&self, tenant: &TenantId, key: &str, seen_ms: u64, now_ms: u64) -> Result<bool, StoreError> {
        ready(&*self.kv).await?;
        self.change(tenant.as_str(), key, |row, batch| {
            let Some(mut row) = row.filter(|row| row.running_since_ms == seen_ms) else { return Ok(false) };
            row.running_since_ms = now_ms;
            batch.put(row_key(tenant.as_str(), key), encode(&row));
            Ok(true)
        })
    }

    async fn answered(&self, tenant: &TenantId, key: &str, id: &NotificationId) -> Result<(), StoreError> {
        ready(&*self.kv).await?;
        self.change(tenant.as_str(), key, |row, batch| {
            if let Some(mut row) = row.filter(|row| row.id == id.0[..] && !row.answered) {
                row.answered = true;
                batch.put(row_key(tenant.as_str(), key), encode(&row));
            }
            Ok(())
        })
    }

    async fn withdraw(&self, tenant: &TenantId, key: &str, id: &NotificationId) -> Result<(), StoreError> {
        ready(&*self.kv).await?;
        let tenant = tenant.as_str();
        self.change(tenant, key, |row, batch| {
            if let Some(row) = row.filter(|row| row.id == id.0[..]) {
                batch.delete(row_key(tenant, key));
                batch.delete(by_age(tenant, key, row.first_use_ms));
            }
            Ok(())
        })
    }

    async fn note_first_places(&self, notes: Vec<PlaceNote>) -> Result<Vec<Place>, StoreError> {
        ready(&*self.kv).await?;
        notes.iter().map(|note| self.note(note)).collect()
    }
}
