//! What must hold whatever comes in: functions of bytes that panic where it does not.
//!
//! Each [`Target`] has seeds, small and written by hand, from which a fuzzer goes on. `scripts/fuzz` drives the targets
//! with libFuzzer; `tests/seeds.rs` runs the seeds and mutations of them with every other test, so that neither rots.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fuzz target fails by panicking")]

pub mod api;
pub mod configuration;
pub mod journal;
pub mod node;
pub mod records;
pub mod templates;
pub mod tokens;

/// One function to fuzz.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "api", run: api::run, seeds: api::seeds },
    Target { name: "configuration", run: configuration::run, seeds: configuration::seeds },
    Target { name: "journal", run: journal::run, seeds: journal::seeds },
    Target { name: "records", run: records::run, seeds: records::seeds },
    Target { name: "templates", run: templates::run, seeds: templates::seeds },
    Target { name: "tokens", run: tokens::run, seeds: tokens::seeds },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// What lies between the parts of an input that has several.
pub const SEPARATOR: &[u8] = b"\n%%\n";

/// The parts of an input.
pub fn parts(input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        parts.push(&rest[..at]);
        rest = &rest[at + SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}
