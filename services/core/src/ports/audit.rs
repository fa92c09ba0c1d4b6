//! What operators did.

use async_trait::async_trait;

use super::{
    StoreError,
    ledger::{ForeignToken, Page},
};

/// How long calls of operators are kept.
pub const AUDIT_RETENTION_MS: u64 = 90 * 86_400_000;

/// One call of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// When it was answered, in milliseconds since the epoch.
    pub at_ms: u64,
    /// The public part of the operator's key.
    pub actor: String,
    /// Method and path over HTTP, service and method over gRPC.
    pub action: String,
    /// The tenant it acted for or upon, if any.
    pub tenant: Option<String>,
    /// `ok`, or the code of the refusal.
    pub result: String,
    /// The HTTP status; over gRPC the status that HTTP would have had.
    pub status: u16,
    /// The call's id.
    pub request_id: String,
    /// What was changed, in words; empty where the action says it all.
    pub detail: String,
}

/// Which calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// At or after this time, in milliseconds since the epoch.
    pub since_ms: u64,
    /// By this operator's key.
    pub actor: Option<String>,
    /// For or upon this tenant.
    pub tenant: Option<String>,
}

impl AuditFilter {
    /// Whether it takes a call.
    pub fn takes(&self, row: &AuditRow) -> bool {
        row.at_ms >= self.since_ms
            && self.actor.as_ref().is_none_or(|actor| *actor == row.actor)
            && (self.tenant.is_none() || self.tenant == row.tenant)
    }
}

/// The calls of operators, kept for [`AUDIT_RETENTION_MS`].
#[async_trait]
pub trait Audit: Send + Sync + 'static {
    /// Stores a call; it is durable when this returns.
    async fn record(&self, row: AuditRow) -> Result<(), StoreError>;

    /// Calls, newest first. A bounded amount is scanned.
    async fn list(
        &self,
        filter: &AuditFilter,
        token: Option<&[u8]>,
        limit: usize,
    ) -> Result<Result<Page<AuditRow>, ForeignToken>, StoreError>;
}
