//! The port `Fleet` in memory: on embedded storage there is one process.

use std::collections::BTreeMap;

use async_trait::async_trait;
use herald_core::ports::{
    StoreError,
    fleet::{Fleet, ProcessReport},
};
use parking_lot::Mutex;

/// What this process says of itself.
#[derive(Debug, Default)]
pub struct LocalFleet {
    reports: Mutex<BTreeMap<String, ProcessReport>>,
}

impl LocalFleet {
    /// An empty fleet.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Fleet for LocalFleet {
    async fn report(&self, report: ProcessReport) -> Result<(), StoreError> {
        self.reports.lock().insert(report.process.clone(), report);
        Ok(())
    }

    async fn running(&self, since_ms: u64) -> Result<Vec<ProcessReport>, StoreError> {
        Ok(self.reports.lock().values().filter(|report| report.seen_ms >= since_ms).cloned().collect())
    }

    async fn leave(&self, process: &str) -> Result<(), StoreError> {
        self.reports.lock().remove(process);
        Ok(())
    }
}
