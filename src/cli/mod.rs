//! The command line: one file for each command. No other module uses this one.

mod check;
mod check_lag;
mod database;
mod dead;
mod error;
mod failures;
mod healthcheck;
mod history;
mod migrate;
mod output;
mod progress;
mod prune;
mod reload;
mod replay;
mod run;
mod selection;
mod signals;
mod start;
mod status;
mod values;
mod waiting;
mod where_;
mod where_report;
mod where_route;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

pub(crate) use error::CliError;

use crate::{
    config::{Config, LoadOptions, Needs, Source},
    telemetry::logs,
};

/// Moves events from a PostgreSQL outbox to RabbitMQ: at least once, in order per key.
#[derive(Parser)]
#[command(name = "outboxd", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    /// Configuration file [default: config/outboxd.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one key of the configuration, for example --set relay.workers=8
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Name of the [[source]] to act on, if the configuration has several
    #[arg(long, global = true, value_name = "NAME", value_parser = values::text)]
    source: Option<String>,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failure, 2 usage, 69 a server is unavailable, 78 bad configuration. \
                          check-lag has the codes of a monitoring plugin: 0 ok, 1 warning, 2 critical, 3 unknown.";

#[derive(Subcommand)]
enum Command {
    /// Run the relay until SIGTERM or SIGINT
    Run,
    /// Bring the schema of the database up to date
    Migrate(migrate::Args),
    /// Print the migrations as SQL, for other migration tools
    Sql(migrate::SqlArgs),
    /// Validate the configuration; with --connect also ask both servers
    Check(check::Args),
    /// Ask the running relay's /readyz; exit code 0 when the relay is ready
    Healthcheck(healthcheck::Args),
    /// Show how many messages are pending, waiting and dead, the lag, and the relays
    Status(output::Json),
    /// Say where a message is: pending, waiting, held, dead, sent, or why it was not found; and the route it takes
    Where(where_::Args),
    /// Compare the lag with two thresholds, for monitoring systems
    CheckLag(check_lag::Args),
    /// Show what fails, by cause: how many messages wait and are dead, since when, and which
    Failures(failures::Args),
    /// List waiting messages, try them now, or give them up
    #[command(subcommand)]
    Waiting(waiting::Command),
    /// List, redrive or discard dead messages
    #[command(subcommand)]
    Dead(dead::Command),
    /// Publish sent messages again, under the same message ids
    Replay(replay::Args),
    /// Delete sent messages that are older than retention.sent, without waiting for the relay
    Prune(prune::Args),
    /// Show what people changed with a command: who, when, what, and why
    History(history::Args),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

impl Command {
    fn is_of_one_source(&self) -> bool {
        match self {
            Self::Migrate(_)
            | Self::Status(_)
            | Self::Where(_)
            | Self::CheckLag(_)
            | Self::Failures(_)
            | Self::Waiting(_)
            | Self::Dead(_)
            | Self::Replay(_)
            | Self::Prune(_)
            | Self::History(_) => true,
            Self::Run
            | Self::Sql(_)
            | Self::Check(_)
            | Self::Healthcheck(_)
            | Self::Completions { .. } => false,
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, for example relay.workers=8".to_owned()),
    }
}

/// Every command, for the page that lists them.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses, dispatches, and turns the result into an exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // A monitoring system reads exit code 2 as critical.
        Err(error) if error.use_stderr() && asks_for_lag() => {
            let text = error.to_string();
            return check_lag::unknown(text.trim_start_matches("error: ").trim_end());
        }
        Err(error) if error.use_stderr() || io::stdout().is_terminal() => error.exit(),
        // Help or the version was asked for. clap itself ignores a failed write.
        Err(text) => {
            let written = output::bytes(text.to_string().as_bytes());
            return ended(written.map(|()| ExitCode::SUCCESS).map_err(CliError::from));
        }
    };
    let result = dispatch(&cli, std::env::vars_os().collect());
    logs::flush();
    ended(result)
}

/// The exit code. Output that cannot be written is an error: a script must not take half a list for the whole.
fn ended(result: Result<ExitCode, CliError>) -> ExitCode {
    let written = match result {
        Ok(code) if code == ExitCode::SUCCESS => {
            output::flush().map(|()| code).map_err(CliError::from)
        }
        other => other,
    };
    match written {
        Ok(code) => code,
        Err(error) => {
            output::note(&error.to_string());
            ExitCode::from(error.code())
        }
    }
}

fn asks_for_lag() -> bool {
    std::env::args_os().any(|arg| arg == "check-lag")
}

fn dispatch(cli: &Cli, env: BTreeMap<OsString, OsString>) -> Result<ExitCode, CliError> {
    let options = |needs: Needs| LoadOptions {
        file: cli.config.clone(),
        env: env.clone(),
        overrides: cli.set.clone(),
        needs,
    };
    let load = |needs: Needs| Config::load(options(needs));
    let database = Needs {
        database: true,
        broker: false,
    };
    let both = Needs {
        database: true,
        broker: true,
    };
    let done = |()| ExitCode::SUCCESS;
    if cli.source.is_some() && !cli.command.is_of_one_source() {
        return Err(CliError::Usage(
            "--source is for commands that act on one database; this one does not take it"
                .to_owned(),
        ));
    }
    match &cli.command {
        Command::Sql(args) => migrate::sql(args).map(done),
        Command::Completions { shell } => {
            // Into memory first: `generate` panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "outboxd", &mut script);
            Ok(output::bytes(&script).map(done)?)
        }
        Command::Run => run::run(options(both)).map(done),
        Command::Check(args) => {
            let config = load(both)?;
            block_on(check::check(args, &config)).map(done)
        }
        Command::Healthcheck(args) => {
            let config = load(Needs {
                database: false,
                broker: false,
            })?;
            block_on(healthcheck::healthcheck(args, &config)).map(done)
        }
        Command::Migrate(args) => {
            let config = load(database)?;
            block_on(migrate::migrate(args, chosen(cli, &config)?)).map(done)
        }
        Command::Status(json) => {
            let config = load(database)?;
            block_on(status::status(*json, chosen(cli, &config)?)).map(done)
        }
        Command::Where(args) => {
            let config = load(database)?;
            block_on(where_::locate(args, chosen(cli, &config)?, &config)).map(done)
        }
        Command::CheckLag(args) => Ok(match load(database) {
            Ok(config) => match chosen(cli, &config) {
                Ok(source) => block_on(async { Ok(check_lag::check_lag(args, source).await) })?,
                Err(error) => check_lag::unknown(&error.to_string()),
            },
            Err(error) => check_lag::unknown(&error.to_string()),
        }),
        Command::Dead(command) => {
            let config = load(database)?;
            block_on(dead::dead(command, chosen(cli, &config)?, &config)).map(done)
        }
        Command::Failures(args) => {
            let config = load(database)?;
            block_on(failures::failures(args, chosen(cli, &config)?, &config)).map(done)
        }
        Command::Waiting(command) => {
            let config = load(database)?;
            block_on(waiting::waiting(command, chosen(cli, &config)?, &config)).map(done)
        }
        Command::History(args) => {
            let config = load(database)?;
            block_on(history::history(args, chosen(cli, &config)?)).map(done)
        }
        Command::Replay(args) => {
            let config = load(database)?;
            block_on(replay::replay(args, chosen(cli, &config)?)).map(done)
        }
        Command::Prune(args) => {
            let config = load(database)?;
            block_on(prune::prune(args, chosen(cli, &config)?, &config.retention)).map(done)
        }
    }
}

fn chosen<'c>(cli: &Cli, config: &'c Config) -> Result<&'c Source, CliError> {
    let names = || {
        config
            .sources
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (&cli.source, config.sources.as_slice()) {
        (Some(name), sources) => sources.iter().find(|s| s.name == *name).ok_or_else(|| {
            CliError::Usage(format!(
                "--source {name}: the configuration has {}",
                names()
            ))
        }),
        (None, [only]) => Ok(only),
        (None, _) => Err(CliError::Usage(format!(
            "several sources are configured: add --source with one of {}",
            names()
        ))),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::Failure(format!("cannot start the async runtime: {e}")))?
        .block_on(work)
}
