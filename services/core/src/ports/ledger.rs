//! What became of every notification and of every instance.

use async_trait::async_trait;

use super::StoreError;
use crate::{
    books::Totals,
    ids::{NotificationId, TenantId},
    record,
};

/// A row for each admitted id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmittedRow {
    /// The notification.
    pub id: NotificationId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its template.
    pub template_id: String,
    /// The version it was admitted with.
    pub template_version: u32,
    /// Milliseconds since the epoch.
    pub accepted_ms: u64,
    /// When sending begins, in milliseconds since the epoch; 0 for at once.
    pub send_at_ms: u64,
    /// Milliseconds since the epoch.
    pub expires_ms: u64,
    /// The person guard, if any.
    pub dedupe_key: String,
}

/// What one partition's owner writes at once. A part of it may be seen before the rest; receipts are there when their
/// totals are.
#[derive(Debug, Clone, Default)]
pub struct Flush {
    /// Newly admitted ids; writing one again changes nothing.
    pub admitted: Vec<AdmittedRow>,
    /// The receipts partition that `totals` and `receipts` come from.
    pub partition: u32,
    /// Absolute totals. A row whose stored `applied` is larger stays.
    pub totals: Vec<(NotificationId, Totals)>,
    /// Receipts and the offset of the record they came in, which together with `partition` and the index in the
    /// record is their key: writing one again changes nothing.
    pub receipts: Vec<(u64, Vec<record::Receipts>)>,
}

/// A request and its books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    /// As it was admitted; `None` where receipts were read before the request.
    pub admitted: Option<AdmittedRow>,
    /// Its books; `None` before the first manifest.
    pub totals: Option<Totals>,
}

/// One instance's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptRow {
    /// The notification.
    pub id: NotificationId,
    /// Who.
    pub user_id: String,
    /// The provider's id of the message, if it gave one.
    pub provider_id: String,
    /// What it shares with its neighbours; the columns are empty.
    pub shared: record::Receipts,
}

/// Which receipts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiptScope {
    /// Of one notification.
    Request(NotificationId),
    /// Of one user, ended within a span.
    User {
        /// Who.
        user_id: String,
        /// Milliseconds since the epoch, inclusive.
        since_ms: u64,
        /// Milliseconds since the epoch, exclusive.
        until_ms: u64,
    },
}

/// Which of a tenant's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestScope {
    /// Accepted at or after this time, in milliseconds since the epoch.
    Since(u64),
    /// Sent under this dedupe key.
    DedupeKey(String),
}

/// A page of a list. The token is the store's own; it outlives changes to the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// May be short or empty while `next` is set.
    pub items: Vec<T>,
    /// Where to go on.
    pub next: Option<Vec<u8>>,
}

/// A page token that is not one of this list's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignToken;

/// Totals, receipts and per-user logs.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Writes a flush. Idempotent by position.
    async fn apply(&self, flush: Flush) -> Result<(), StoreError>;

    /// Totals by id, in order.
    async fn totals(&self, ids: &[NotificationId]) -> Result<Vec<Option<Totals>>, StoreError>;

    /// A request of a tenant; `None` if the tenant has none of that id.
    async fn request(&self, tenant: &TenantId, id: &NotificationId) -> Result<Option<RequestRow>, StoreError>;

    /// A tenant's requests, newest first.
    async fn requests(
        &self,
        tenant: &TenantId,
        scope: &RequestScope,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<RequestRow>, ForeignToken>, StoreError>;

    /// A tenant's receipts, a user's newest first: in the order of the times at which they ended, but for those that
    /// were booked in another order. The store filters by scope only; a bounded amount is scanned.
    async fn receipts(
        &self,
        tenant: &TenantId,
        scope: &ReceiptScope,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<ReceiptRow>, ForeignToken>, StoreError>;
}
