//! The log on a Kafka broker, whose address the environment variable `HERALD_TEST_KAFKA` gives.

#![allow(clippy::unwrap_used)]

mod conformance;
mod leftovers;
mod opening;
mod processes;
mod support;
mod takeover;
