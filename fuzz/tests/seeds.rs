//! The seeds of every fuzz target hold, and so do some mutations of them.
//!
//! `HERALD_TEST_FUZZ_CASES=5000` tries more mutations; a failing one is told with the seed of its random numbers, and
//! `HERALD_TEST_FUZZ_SEED` repeats them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use herald_fuzz::{SEPARATOR, TARGETS, Target};

/// A small generator of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Changes, cuts, repeats, or takes from another seed.
fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(6) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.below(256) as u8,
            2 => input.truncate(at),
            3 => drop(input.drain(at..(at + random.below(9)).min(input.len()))),
            4 => input.extend_from_within(at..(at + random.below(40)).min(input.len())),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
    }
    input
}

fn hold(name: &str, cases: u64) {
    let target: &Target = herald_fuzz::target(name).unwrap();
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    let first = env("HERALD_TEST_FUZZ_SEED").unwrap_or(1);
    for number in first..first + env("HERALD_TEST_FUZZ_CASES").unwrap_or(cases) {
        let input = mutate(&seeds, &mut Random(number));
        let held = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        assert!(
            held.is_ok(),
            "HERALD_TEST_FUZZ_SEED={number} HERALD_TEST_FUZZ_CASES=1: {:?}",
            String::from_utf8_lossy(&input)
        );
    }
}

#[test]
fn api() {
    hold("api", 60);
}

#[test]
fn configuration() {
    hold("configuration", 200);
}

#[test]
fn journal() {
    hold("journal", 200);
}

#[test]
fn records() {
    hold("records", 60);
}

#[test]
fn templates() {
    hold("templates", 400);
}

#[test]
fn tokens() {
    hold("tokens", 200);
}

#[test]
fn every_target_is_tried_and_parts_are_parted() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, ["api", "configuration", "journal", "records", "templates", "tokens"]);
    assert_eq!(herald_fuzz::parts(&[b"a", SEPARATOR, b"", SEPARATOR, b"b"].concat()), [&b"a"[..], b"", b"b"]);
}
