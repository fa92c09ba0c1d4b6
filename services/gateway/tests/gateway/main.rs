//! The gateway over both of its faces, on the stores of one machine in memory.

// All of this is a test, its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admission;
mod connections;
mod erasing;
mod faults;
mod grpc;
mod idempotency;
mod inbox;
mod isolation;
mod people;
mod quota;
mod status;
mod steering;
mod tls;
mod world;
