//! What a package of outboxd brings along: manual pages and completion scripts.

use std::path::Path;

use super::{CliError, output};

/// Writes `outboxd.1`, and a page for each command, `outboxd-dead-list.1`.
pub(super) fn manual(program: clap::Command, folder: &Path) -> Result<(), CliError> {
    let failed = |e| CliError::Failure(format!("cannot write into {}: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    // `help` prints what the pages say.
    clap_mangen::generate_to(program.disable_help_subcommand(true), folder).map_err(failed)
}

pub(super) fn completions(
    mut program: clap::Command,
    shell: clap_complete::Shell,
) -> Result<(), CliError> {
    // Into memory first: `generate` panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "outboxd", &mut script);
    Ok(output::bytes(&script)?)
}
