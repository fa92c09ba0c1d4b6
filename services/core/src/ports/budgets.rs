//! Budgets: token buckets that all processes share.

use async_trait::async_trait;

use super::StoreError;
use crate::bucket::{Ask, Lease};

/// How long leased tokens may be used; later they are lost.
pub const LEASE_MS: u64 = 1_000;

/// Token buckets by name, each made full by the first ask that names it and filled by the quota of the last.
///
/// Over any window no more tokens are given than the quota's rate times the window, and one burst. With leases that are
/// used within [`LEASE_MS`], no more is sent than the rate times (the window + one second), and one burst. A store that
/// loses its buckets makes them full again, which is at most one burst more.
#[async_trait]
pub trait Budgets: Send + Sync + 'static {
    /// Leases tokens for groups of asks, one after the other. Of each group every bucket gives at least one token or
    /// none does; what is denied says when to ask again, and nothing is reserved for it. `now_ms` is the caller's steady
    /// time: a wall clock that is set forward would fill every bucket.
    async fn lease(&self, groups: &[Vec<Ask>], now_ms: u64) -> Result<Vec<Lease>, StoreError>;
}
