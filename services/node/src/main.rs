//! The `herald` binary: the command line.

use std::process::ExitCode;

use herald_node::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::main()
}
