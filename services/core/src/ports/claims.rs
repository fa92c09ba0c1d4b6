//! Dedupe claims: one message per person, channel, template and dedupe key within a window.

use async_trait::async_trait;

use super::StoreError;
use crate::{ids::NotificationId, record::Claim};

/// A key of [`crate::ids::claim_key`], asked for or given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimRequest {
    /// Take the key for this owner, unless another holds it.
    Take {
        /// What is claimed.
        key: [u8; 16],
        /// Who claims.
        owner: NotificationId,
        /// Milliseconds since the epoch.
        expires_ms: u64,
    },
    /// Give the key back, if this owner holds it.
    Release {
        /// What was claimed.
        key: [u8; 16],
        /// Who claimed.
        owner: NotificationId,
    },
}

impl ClaimRequest {
    /// Who asks.
    pub fn owner(&self) -> NotificationId {
        match self {
            Self::Take { owner, .. } | Self::Release { owner, .. } => *owner,
        }
    }
}

/// Round trips of an era are counted in so many bits of a sequence.
pub const ROUND_TRIP_BITS: u32 = 32;

/// Which owner's a sequence is.
pub fn era(sequence: u64) -> u64 {
    sequence >> ROUND_TRIP_BITS
}

/// A cache of the `claims` topic.
///
/// A shard's claims have a sequence, whose upper half is the [`era`] of the owner, and only who knows it can change them. So
/// one owner at a time does: a worker that lost the shard and does not know it yet can neither take nor give back, and an
/// owner whose cache lost data is told.
#[async_trait]
pub trait Claims: Send + Sync + 'static {
    /// Takes and releases keys of a shard in one round trip and raises its sequence by one. Answers who holds each key now,
    /// in order; for a `Release` the owner that was asked about. `None`, and nothing was done, if the shard's sequence is
    /// not `sequence`: the cache lost data, or there is another writer.
    async fn apply(
        &self,
        shard: u32,
        sequence: u64,
        requests: &[ClaimRequest],
        now_ms: u64,
    ) -> Result<Option<Vec<NotificationId>>, StoreError>;

    /// The shard's sequence; 0 where the cache knows nothing, or was left in the middle of [`Claims::load`].
    async fn sequence(&self, shard: u32) -> Result<u64, StoreError>;

    /// Begins an era with what the cache holds: its first sequence, which is returned, is one that the shard never had, so
    /// nobody else knows it. `None`, and nothing was done, if the shard's sequence is not `sequence`.
    async fn adopt(&self, shard: u32, sequence: u64) -> Result<Option<u64>, StoreError>;

    /// Replaces what the cache holds of a shard with what is on the topic, and begins an era.
    async fn load(&self, shard: u32, claims: Vec<Claim>, now_ms: u64) -> Result<u64, StoreError>;
}
