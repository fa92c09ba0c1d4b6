//! libFuzzer on one target: `HERALD_FUZZ_TARGET` names it, and its seeds are written to `HERALD_FUZZ_SEEDS`.
//! `scripts/fuzz` builds and runs this.

#![no_main]
#![allow(clippy::expect_used, reason = "nothing can be fuzzed without a target")]

use std::{env, fs, path::Path, sync::OnceLock};

use herald_fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fuzz_target!(init: begin(), |input: &[u8]| {
    (TARGET.get().expect("it has begun").run)(input);
});

fn begin() {
    let name = env::var("HERALD_FUZZ_TARGET").expect("HERALD_FUZZ_TARGET names the target");
    let target = TARGET.get_or_init(|| target(&name).expect("there is no such target"));
    if let Ok(directory) = env::var("HERALD_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(Path::new(&directory).join(format!("seed-{number:03}")), seed).expect("seeds can be written");
        }
    }
}
