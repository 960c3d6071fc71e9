#![forbid(unsafe_code)]

use std::process::ExitCode;

/// With glibc, malloc and free took two fifths of the relay's CPU (docs/internals/experiments.md).
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    outboxd::cli::main()
}
