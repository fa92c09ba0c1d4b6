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

/// What a round trip said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimReply {
    /// The shard's sequence after this round trip. Unless it is one more than after the last, the cache lost data or
    /// there is another writer: the shard's claims must be loaded again.
    pub sequence: u64,
    /// Who holds the key now, for each `Take`, in order; for `Release` the owner that was asked about.
    pub holders: Vec<NotificationId>,
}

/// A cache of the `claims` topic.
#[async_trait]
pub trait Claims: Send + Sync + 'static {
    /// Takes and releases keys of a shard in one round trip, and increments the shard's sequence.
    async fn apply(&self, shard: u32, requests: &[ClaimRequest], now_ms: u64) -> Result<ClaimReply, StoreError>;

    /// The shard's sequence; 0 where the cache knows nothing.
    async fn sequence(&self, shard: u32) -> Result<u64, StoreError>;

    /// Replaces what the cache holds of a shard with what is on the topic, and sets the sequence.
    async fn load(&self, shard: u32, claims: Vec<Claim>, sequence: u64) -> Result<(), StoreError>;
}
