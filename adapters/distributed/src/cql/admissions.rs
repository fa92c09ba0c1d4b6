//! Idempotency keys.
//!
//! Only the row of a key is compared and set. What becomes of an admitted id is written blindly under that id, which a
//! key never has again after its day: that it was answered, and its first place. Of places the least stays, because it is
//! written under the largest timestamp: the admissions of a key are on one partition, so its reader notes the first first.

use async_trait::async_trait;
use herald_core::{
    ids::{NotificationId, TenantId},
    ports::{
        StoreError,
        admissions::{Admission, Admissions, PlaceNote},
    },
    record::Place,
};
use scylla::{DeserializeValue, SerializeValue};

use super::session::{Conditional, Db, Plain, RACES, contended, damaged, in_parallel};

/// After this a key may be used for another call.
const REUSE_MS: i64 = 24 * 3_600_000;
/// After this a key is forgotten, in seconds.
const KEEP_S: i32 = 48 * 3_600;
/// The timestamp of the place at the beginning of the log. It lies in the past, since servers refuse later ones.
const FIRST_PLACE: i64 = 1_000_000_000_000_000;

/// Idempotency keys in CQL.
pub struct AdmissionStore {
    db: Db,
    insert: Conditional,
    replace: Conditional,
    read: Plain,
    restart: Conditional,
    withdraw: Conditional,
    read_marks: Plain,
    answered: Plain,
    note: Plain,
}

/// A key's row; columns are null once they have expired.
type KeyRow = (Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>, Option<i64>);

#[derive(SerializeValue, DeserializeValue)]
struct PlaceValue {
    topic: i32,
    partition: i32,
    position: i64,
    log_epoch: i32,
}

impl AdmissionStore {
    pub(super) async fn new(db: &Db) -> anyhow::Result<Self> {
        let of_key = "WHERE tenant = ? AND key = ?";
        Ok(Self {
            insert: db
                .conditional(
                    "INSERT INTO admissions (tenant, key, id, body_hash, first_use_ms, running_since_ms) \
                     VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?",
                )
                .await?,
            replace: db
                .conditional(&format!(
                    "UPDATE admissions USING TTL ? SET id = ?, body_hash = ?, first_use_ms = ?, running_since_ms = ? \
                     {of_key} IF first_use_ms = ?"
                ))
                .await?,
            read: db
                .plain(&format!("SELECT id, body_hash, first_use_ms, running_since_ms FROM admissions {of_key}"))
                .await?,
            restart: db
                .conditional(&format!(
                    "UPDATE admissions USING TTL ? SET running_since_ms = ? {of_key} IF running_since_ms = ?"
                ))
                .await?,
            withdraw: db.conditional(&format!("DELETE FROM admissions {of_key} IF id = ?")).await?,
            read_marks: db.plain("SELECT answered, first_place FROM admission_marks WHERE id = ?").await?,
            answered: db.plain("INSERT INTO admission_marks (id, answered) VALUES (?, true) USING TTL ?").await?,
            note: db
                .plain("INSERT INTO admission_marks (id, first_place) VALUES (?, ?) USING TIMESTAMP ? AND TTL ?")
                .await?,
            db: db.clone(),
        })
    }

    async fn marks(&self, id: &[u8]) -> Result<(bool, Option<Place>), StoreError> {
        let row: Option<(Option<bool>, Option<PlaceValue>)> = self.db.row(&self.read_marks, (id,)).await?;
        let (answered, place) = row.unwrap_or_default();
        Ok((answered.unwrap_or_default(), place.map(to_place)))
    }

    async fn note(&self, note: &PlaceNote) -> Result<(), StoreError> {
        let (id, place) = (&note.id.0[..], note.place);
        let value = PlaceValue {
            topic: place.topic as i32,
            partition: place.partition as i32,
            position: place.offset as i64,
            log_epoch: place.log_epoch as i32,
        };
        self.db.write(&self.note, (id, value, earlier_is_larger(&place), KEEP_S)).await
    }

    async fn noted(&self, id: &NotificationId) -> Result<Place, StoreError> {
        let (_, noted) = self.marks(&id.0).await?;
        noted.ok_or_else(|| damaged("a place that was noted is not there"))
    }
}

/// The timestamp of a place: the larger, the earlier it is. Epochs are few, and offsets below 2^40.
fn earlier_is_larger(place: &Place) -> i64 {
    (FIRST_PLACE - (i64::from(place.log_epoch) << 40) - place.offset as i64).max(1)
}

fn to_place(value: PlaceValue) -> Place {
    Place {
        topic: value.topic as u32,
        partition: value.partition as u32,
        offset: value.position as u64,
        log_epoch: value.log_epoch as u32,
    }
}

#[async_trait]
impl Admissions for AdmissionStore {
    async fn begin(&self, tenant: &TenantId, key: &str, admission: Admission) -> Result<Option<Admission>, StoreError> {
        let tenant = tenant.as_str();
        let (id, hash) = (&admission.id.0[..], &admission.body_hash[..]);
        let (first_ms, running_ms) = (admission.first_use_ms as i64, admission.running_since_ms as i64);
        for _ in 0..RACES {
            if self.db.write_if(&self.insert, (tenant, key, id, hash, first_ms, running_ms, KEEP_S)).await? {
                return Ok(None);
            }
            let stored: Option<KeyRow> = self.db.row(&self.read, (tenant, key)).await?;
            let Some((stored_id, stored_hash, stored_ms, running)) = stored else { continue };
            let (Some(stored_id), Some(stored_hash), Some(stored_ms), Some(stored_running)) =
                (stored_id, stored_hash, stored_ms, running)
            else {
                // Only a stamp of a later restart is left.
                let row = (KEEP_S, id, hash, first_ms, running_ms, tenant, key, None::<i64>);
                if self.db.write_if(&self.replace, row).await? {
                    return Ok(None);
                }
                continue;
            };
            if first_ms.saturating_sub(stored_ms) >= REUSE_MS {
                let row = (KEEP_S, id, hash, first_ms, running_ms, tenant, key, Some(stored_ms));
                if self.db.write_if(&self.replace, row).await? {
                    return Ok(None);
                }
                continue;
            }
            let (answered, first_place) = self.marks(&stored_id).await?;
            return Ok(Some(Admission {
                id: NotificationId::from_slice(&stored_id).ok_or_else(|| damaged("an id that is not 16 bytes"))?,
                body_hash: stored_hash[..].try_into().map_err(|_| damaged("a hash that is not 16 bytes"))?,
                first_use_ms: stored_ms as u64,
                running_since_ms: stored_running as u64,
                answered,
                first_place,
            }));
        }
        Err(contended("an idempotency key"))
    }

    async fn restart(&self, tenant: &TenantId, key: &str, seen_ms: u64, now_ms: u64) -> Result<bool, StoreError> {
        let row = (KEEP_S, now_ms as i64, tenant.as_str(), key, Some(seen_ms as i64));
        self.db.write_if(&self.restart, row).await
    }

    async fn answered(&self, _: &TenantId, _: &str, id: &NotificationId) -> Result<(), StoreError> {
        self.db.write(&self.answered, (&id.0[..], KEEP_S)).await
    }

    async fn withdraw(&self, tenant: &TenantId, key: &str, id: &NotificationId) -> Result<(), StoreError> {
        self.db.write_if(&self.withdraw, (tenant.as_str(), key, &id.0[..])).await.map(drop)
    }

    async fn note_first_places(&self, notes: Vec<PlaceNote>) -> Result<Vec<Place>, StoreError> {
        // All are written before any is read: else a second admission that is written and read while the first of the same
        // call is under way would find itself the first, and its notification be sent twice.
        in_parallel(notes.iter().map(|note| self.note(note)).collect()).await?;
        in_parallel(notes.iter().map(|note| self.noted(&note.id)).collect()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_places_the_earlier_has_the_larger_timestamp() {
        let place = |log_epoch, offset| Place { topic: 1, partition: 2, offset, log_epoch };
        let in_order = [place(0, 0), place(0, 1), place(0, u64::from(u32::MAX)), place(1, 0), place(1, 9), place(2, 3)];
        assert!(in_order.windows(2).all(|pair| earlier_is_larger(&pair[0]) > earlier_is_larger(&pair[1])));
    }
}
