//! The CQL stores, on the real server that `HERALD_TEST_CQL` names.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod conformance;
mod stores;
mod support;
