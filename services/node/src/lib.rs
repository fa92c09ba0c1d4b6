//! The node: configuration, backends, supervision of roles, and the commands of the one binary, `herald`.
//!
//! This is the only crate that knows both services and adapters.

pub mod backends;
pub mod backup;
pub mod channels;
pub mod cli;
pub mod config;
pub mod demo;
pub mod export;
pub mod gauges;
pub mod joining;
pub mod logging;
pub mod mailbox;
pub mod metrics;
pub mod namesakes;
pub mod node;
pub mod ops;
pub mod roles;
pub mod secrets;
pub mod storage;
pub mod traces;
pub mod verify;
pub mod world;
