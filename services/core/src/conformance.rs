//! The suites that every backend of a port passes. The log's is called with a factory of empty logs; a store's takes
//! one that may hold anything already and uses tenants and ids of its own, so that it can run against a shared server.

// A suite is a test wherever it runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod admissions;
pub mod audit;
pub mod budgets;
pub mod claims;
pub mod directory;
pub mod erasures;
pub mod fleet;
pub mod inbox;
pub mod ledger;
pub mod log;
pub mod registry;
