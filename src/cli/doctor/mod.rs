//! `outboxd doctor`: every check in one run, each with a code, its finding and its cure.
//!
//! - `checks`: the codes, with question and cure
//! - `line`: the result of a check; the exit code of all results
//! - `setup`, `database`, `broker`: the questions that `check --connect` shares, and that a relay's start asks
//! - `condition`, `certificates`: the other questions
//! - `judge_server`, `judge_outbox`: from facts to lines, without I/O
//! - `examine`: which questions are asked of which server
//! - `print`, `bundle`: the output

pub(super) mod broker;
mod bundle;
mod certificates;
pub(super) mod checks;
mod condition;
pub(super) mod database;
mod examine;
mod judge_outbox;
mod judge_server;
pub(super) mod line;
mod print;
pub(super) mod setup;

use std::path::PathBuf;

use clap::ValueHint;

use self::examine::Found;
use super::{CliError, output};
use crate::config::{Config, LoadOptions};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    json: output::Json,
    /// Also write a new file for a ticket: the checks, the configuration without passwords, the state, the relay's metrics
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    bundle: Option<PathBuf>,
}

pub(super) async fn doctor(args: &Args, options: LoadOptions) -> Result<(), CliError> {
    // First, so that a file that exists is refused before the questions.
    let file = args.bundle.as_deref().map(bundle::create).transpose()?;
    let loaded = Config::load(options.clone());
    let found = match &loaded {
        Ok(config) => examine::all(config).await,
        Err(errors) => Found::of_bad_configuration(errors),
    };
    match args.json.json {
        true => output::json(&found.lines)?,
        false => print::lines(&found.lines)?,
    }
    if let (Some(file), Some(path)) = (file, &args.bundle) {
        bundle::write(file, path, &found, loaded.as_ref().ok(), options).await?;
    }
    let lines = || found.lines.iter().map(|reported| &reported.line);
    line::ended(lines(), print::faults(lines()))
}
