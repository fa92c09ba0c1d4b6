//! Token buckets in memory. They start full, so a restart gives at most one burst more.

use async_trait::async_trait;
use herald_core::{
    bucket::{Ask, Buckets, Lease},
    ports::{StoreError, budgets::Budgets},
};
use parking_lot::Mutex;

/// Buckets in memory.
#[derive(Debug, Default)]
pub struct MemoryBudgets(Mutex<Buckets>);

impl MemoryBudgets {
    /// No buckets yet.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Budgets for MemoryBudgets {
    async fn lease(&self, groups: &[Vec<Ask>], now_ms: u64) -> Result<Vec<Lease>, StoreError> {
        let mut buckets = self.0.lock();
        Ok(groups.iter().map(|asks| buckets.lease(asks, now_ms)).collect())
    }
}
