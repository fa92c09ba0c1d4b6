//! The suites that every backend of a port passes. A backend's tests call them with a factory of empty backends.

// A suite is a test wherever it runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod log;
