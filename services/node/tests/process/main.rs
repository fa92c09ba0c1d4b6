//! The real process: killed, and with the power cut.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is to do")]

mod backup;
mod certificates;
mod clients;
mod collector;
mod commands;
mod container;
mod erasure;
mod full_disk;
mod http;
mod import;
mod kill;
mod metrics;
mod one_node;
mod power_cut;
mod providers;
mod redrive;
mod refusals;
mod servers;
mod steering_commands;
mod support;
mod tenants;
mod traces;
mod traffic;
mod upgrade;
