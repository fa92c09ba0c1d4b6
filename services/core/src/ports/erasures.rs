//! Erasing persons.

use async_trait::async_trait;

use super::StoreError;
use crate::ids::TenantId;

/// How long what was in a worker's hands when an erasure began may take to reach the stores.
pub const SETTLE_MS: u64 = 5_000;
/// How often rows are looked for that a message which waited brought in later.
const AGAIN_MS: u64 = 86_400_000;

/// The erasure of a person.
///
/// Rows are erased in passes: one at once, one when what was being sent has settled, which completes the erasure, and one
/// a day until the log has forgotten the person too, because a message that waits on it until then leaves a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Its id.
    pub id: String,
    /// Whose person.
    pub tenant: TenantId,
    /// Who; empty once the last pass is through.
    pub user_id: String,
    /// Milliseconds since the epoch. What was accepted until then is erased.
    pub begun_ms: u64,
    /// When nothing was left that names the person, in milliseconds since the epoch; 0 for not yet.
    pub completed_ms: u64,
    /// When the last segment of the log that names the person is gone at the latest, in milliseconds since the epoch.
    pub log_gone_ms: u64,
    /// When the next pass is due, in milliseconds since the epoch; 0 for never.
    pub due_ms: u64,
}

impl Erasure {
    /// The name that stands on receipts instead of the person's.
    pub fn pseudonym(&self) -> String {
        format!("erased-{}", self.id)
    }

    /// Whether nothing that is stored names the person.
    pub fn is_complete(&self) -> bool {
        self.completed_ms > 0
    }

    /// The erasure after a pass that became due when [`Self::due_ms`] says and ended now.
    #[must_use]
    pub fn after_pass(mut self, now_ms: u64) -> Self {
        let settled_ms = self.begun_ms + SETTLE_MS;
        if self.due_ms >= self.log_gone_ms {
            (self.due_ms, self.user_id) = (0, String::new());
        } else if self.due_ms < settled_ms {
            self.due_ms = settled_ms;
        } else {
            self.due_ms = (now_ms + AGAIN_MS).min(self.log_gone_ms);
            if !self.is_complete() {
                self.completed_ms = now_ms.max(1);
            }
        }
        self
    }
}

/// Erasures, and the work that they are.
#[async_trait]
pub trait Erasures: Send + Sync + 'static {
    /// Begins an erasure, due at once: from now on the person is not registered and wants nothing, and
    /// [`crate::people::Person::erased_ms`] tells since when. Where an erasure of the same person is not complete, that
    /// one is returned and nothing is changed.
    async fn begin(&self, erasure: Erasure) -> Result<Erasure, StoreError>;

    /// An erasure; `None` if the tenant has none of that id.
    async fn get(&self, tenant: &TenantId, id: &str) -> Result<Option<Erasure>, StoreError>;

    /// Erasures of which a pass is due, those that waited longest first.
    async fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<Erasure>, StoreError>;

    /// Erases a bounded number of rows of a pass that is due, and returns the erasure as it is now; its `due_ms` moves
    /// when the pass is through. After a crash a step is taken again, which changes nothing that was changed.
    ///
    /// What goes: memberships in audiences and the person's own followers (in the first pass); items of the feed and the
    /// names on receipts, of what was accepted until the erasure began. On receipts [`Erasure::pseudonym`] takes the
    /// name's place, since the books count them.
    async fn step(&self, tenant: &TenantId, id: &str, now_ms: u64) -> Result<Option<Erasure>, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erasure_completes_once_all_has_settled_and_ends_with_the_log() {
        let begun = Erasure {
            id: "e".into(),
            tenant: TenantId::trusted("t"),
            user_id: "u".into(),
            begun_ms: 100,
            completed_ms: 0,
            log_gone_ms: 90_000_000,
            due_ms: 100,
        };
        let first = begun.after_pass(150);
        assert_eq!((first.due_ms, first.is_complete()), (100 + SETTLE_MS, false));
        let second = first.after_pass(6_000);
        assert_eq!((second.due_ms, second.completed_ms), (6_000 + AGAIN_MS, 6_000));
        let third = second.after_pass(86_500_000);
        assert_eq!((third.due_ms, third.completed_ms, third.user_id.as_str()), (90_000_000, 6_000, "u"));
        let last = third.after_pass(90_000_001);
        assert_eq!((last.due_ms, last.completed_ms, last.user_id.as_str()), (0, 6_000, ""));
    }
}
