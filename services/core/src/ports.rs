//! The ports: what the services need of the world, named by the domain. Each has one conformance suite that every
//! backend passes. All are batch-shaped, object-safe, and shared as `Arc<dyn Port>`.

pub mod admissions;
pub mod audit;
pub mod budgets;
pub mod channel;
pub mod claims;
pub mod directory;
pub mod erasures;
pub mod fleet;
pub mod inbox;
pub mod ledger;
pub mod log;
pub mod registry;
pub mod sessions;

/// A store that could not do what it was asked. The caller tries again later; it never takes it for "absent".
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store is away, overloaded or full.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What is stored cannot be read; trying again will not help.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
}
