//! Versioned tenants, keys, templates and policies.

use async_trait::async_trait;
use bytes::Bytes;

use super::StoreError;

/// A stored policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// See [`crate::policy::kind`].
    pub kind: String,
    /// Its key within the kind.
    pub key: String,
    /// Counts the changes, deletions too, from 1.
    pub version: u64,
    /// JSON; `None` when deleted.
    pub value: Option<Bytes>,
    /// Whether this version is known to be on `control`.
    pub published: bool,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Stored under this version.
    Done(u64),
    /// Another version is stored: this (0 for none).
    VersionMismatch(u64),
}

/// Versioned policies with compare and set.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// A policy, deleted or not.
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Stores a policy, or its deletion, if the stored version is `expect` (0 for none).
    async fn put(&self, kind: &str, key: &str, value: Option<Bytes>, expect: u64) -> Result<Written, StoreError>;

    /// Policies of a kind whose keys begin with `prefix` and come after `after`, in the order of keys, without the
    /// deleted ones.
    async fn list(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError>;

    /// At most `limit` policies whose newest version is not known to be on `control`.
    async fn unpublished(&self, limit: usize) -> Result<Vec<Versioned>, StoreError>;

    /// Marks a version as being on `control`, if it is still the newest.
    async fn published(&self, kind: &str, key: &str, version: u64) -> Result<(), StoreError>;
}
