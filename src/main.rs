#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Two fifths of the relay's CPU were glibc's malloc and free (docs/internals/experiments.md).
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    outboxd::cli::main()
}
