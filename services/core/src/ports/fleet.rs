//! Which processes run, and which policies they run.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::StoreError;

/// What a process says of itself, now and then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessReport {
    /// Its name, which no other process has.
    pub process: String,
    /// When it said so, in milliseconds since the epoch.
    pub seen_ms: u64,
    /// The version of the policies that each of its roles decides with.
    pub versions: BTreeMap<String, u64>,
    /// The highest feature level that it reads.
    pub reads_level: u32,
}

impl ProcessReport {
    /// The roles that decide with older policies than this version.
    pub fn behind(&self, version: u64) -> impl Iterator<Item = &str> {
        self.versions.iter().filter(move |(_, runs)| **runs < version).map(|(role, _)| role.as_str())
    }
}

/// The processes of an installation. What is kept is of the moment: it may be lost with the store.
#[async_trait]
pub trait Fleet: Send + Sync + 'static {
    /// Replaces what a process has said of itself.
    async fn report(&self, report: ProcessReport) -> Result<(), StoreError>;

    /// What was said at or after `since_ms`, in the order of names.
    async fn running(&self, since_ms: u64) -> Result<Vec<ProcessReport>, StoreError>;

    /// Forgets a process that stops.
    async fn leave(&self, process: &str) -> Result<(), StoreError>;
}
