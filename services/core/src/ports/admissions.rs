//! Idempotency keys of calls.

use async_trait::async_trait;

use super::StoreError;
use crate::{
    ids::{NotificationId, TenantId},
    record::Place,
};

/// What is stored of an idempotency key.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// The id of its notification.
    pub id: NotificationId,
    /// Hash of the call's body.
    pub body_hash: [u8; 16],
    /// When the key was first used, in milliseconds since the epoch.
    pub first_use_ms: u64,
    /// When a gateway last began to append it, in milliseconds since the epoch.
    pub running_since_ms: u64,
    /// Whether the record is known to be on the log.
    pub answered: bool,
    /// Where the record first was on the log.
    pub first_place: Option<Place>,
}

/// Ids, body hashes and first log positions of idempotency keys, kept for two days.
#[async_trait]
pub trait Admissions: Send + Sync + 'static {
    /// Stores the admission unless the key has one; returns the one that was there. One that is older than 24 hours
    /// counts as absent.
    async fn begin(&self, tenant: &TenantId, key: &str, admission: Admission) -> Result<Option<Admission>, StoreError>;

    /// Marks the key as appended again since `now_ms`; `false` if another caller was faster (its stamp is not
    /// `seen_ms` any more).
    async fn restart(&self, tenant: &TenantId, key: &str, seen_ms: u64, now_ms: u64) -> Result<bool, StoreError>;

    /// Marks the record of a key's call as on the log. Nothing happens where the key is not, or no more, this call's.
    async fn answered(&self, tenant: &TenantId, key: &str, id: &NotificationId) -> Result<(), StoreError>;

    /// Forgets a key that was begun and whose record is known not to be on the log.
    async fn withdraw(&self, tenant: &TenantId, key: &str, id: &NotificationId) -> Result<(), StoreError>;

    /// Notes where a key's record is on the log, unless a place is noted; returns the noted places, in order.
    async fn note_first_places(&self, notes: Vec<PlaceNote>) -> Result<Vec<Place>, StoreError>;
}

/// Where a record with an idempotency key was read.
#[derive(Debug, Clone, PartialEq)]
pub struct PlaceNote {
    /// Whose key.
    pub tenant: TenantId,
    /// The idempotency key.
    pub key: String,
    /// The notification in the record.
    pub id: NotificationId,
    /// Where it was read.
    pub place: Place,
}
