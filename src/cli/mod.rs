//! The command line: one file for each command. No other module uses this one.

mod admin_port;
mod check;
mod check_lag;
mod config;
mod database;
mod dead;
mod doctor;
mod error;
mod failures;
mod healthcheck;
mod help;
mod history;
mod migrate;
mod output;
mod packaging;
mod progress;
mod prune;
mod reload;
mod replay;
mod run;
mod selection;
mod signals;
mod start;
mod status;
mod table;
mod values;
mod waiting;
mod where_;
mod where_report;
mod where_route;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, ValueHint};

pub(crate) use error::CliError;

use crate::{
    config::{Config, LoadOptions, Needs, Source},
    telemetry::logs,
};

/// Moves events from a PostgreSQL outbox to RabbitMQ: at least once, in order per key.
#[derive(Parser)]
#[command(name = "outboxd", version, max_term_width = 100, after_help = help::PROGRAM)]
struct Cli {
    /// Configuration file [env: OUTBOXD_CONFIG] [default: config/outboxd.toml, /etc/outboxd/outboxd.toml]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Override one key of the configuration, for example --set relay.workers=8 [env: OUTBOXD__RELAY__WORKERS]
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Name of the [[source]] to act on, if the configuration has several [env: OUTBOXD_SOURCE]
    #[arg(long, global = true, value_name = "NAME", value_parser = values::text)]
    source: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// The variable in place of `--source`.
const SOURCE: &str = "OUTBOXD_SOURCE";

#[derive(Subcommand)]
enum Command {
    /// Run the relay until SIGTERM or SIGINT; SIGHUP applies another log.level
    #[command(after_help = help::RUN)]
    Run,
    /// Validate the configuration; with --connect also ask both servers
    Check(check::Args),
    /// Ask everything about the configuration and both servers, and say what is wrong and how to cure it
    #[command(after_help = help::DOCTOR)]
    Doctor(doctor::Args),
    /// Print the configuration that the relay would use, or its JSON Schema
    #[command(subcommand)]
    Config(config::Command),
    /// Ask the running relay's /readyz; exit code 0 when the relay is ready
    Healthcheck(healthcheck::Args),
    /// Print the migrations as SQL, for other migration tools
    Sql(migrate::SqlArgs),
    #[command(flatten)]
    OfOneSource(Box<OfOneSource>),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages into a folder, for packages
    Man {
        /// The folder; it is made if it is missing
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

/// The commands that act on one database: they take `--source`.
#[derive(Subcommand)]
enum OfOneSource {
    /// Bring the schema of the database up to date
    Migrate(migrate::Args),
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

/// A check of `outboxd doctor`, for the page that lists them.
pub struct Check {
    pub code: &'static str,
    pub group: String,
    pub asks: &'static str,
    pub cure: &'static str,
}

/// Every check of `outboxd doctor`, in the order of the codes.
pub fn checks() -> Vec<Check> {
    let listed = |check: &&doctor::checks::Check| Check {
        code: check.code,
        group: check.group.to_string(),
        asks: check.asks,
        cure: check.cure,
    };
    doctor::checks::ALL.iter().map(listed).collect()
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
    if cli.source.is_some() && !matches!(cli.command, Command::OfOneSource(_)) {
        return Err(CliError::Usage(
            "--source is for commands that act on one database; this one does not take it"
                .to_owned(),
        ));
    }
    let call = Call { cli, env };
    match &cli.command {
        Command::Sql(args) => migrate::sql(args)?,
        Command::Completions { shell } => packaging::completions(command(), *shell)?,
        Command::Man { folder } => packaging::manual(command(), folder)?,
        Command::Config(command) => config::config(command, call.options(NEITHER))?,
        Command::Run => run::run(call.options(BOTH))?,
        Command::Check(args) => {
            let config = call.load(BOTH)?;
            block_on(check::check(args, &config))?;
        }
        Command::Doctor(args) => block_on(doctor::doctor(args, call.options(BOTH)))?,
        Command::Healthcheck(args) => {
            let config = call.load(NEITHER)?;
            block_on(healthcheck::healthcheck(args, &config))?;
        }
        Command::OfOneSource(command) => {
            return match (command.as_ref(), of_one_source(&call, command)) {
                // A monitoring plugin has a code of its own for a configuration that does not load.
                (OfOneSource::CheckLag(_), Err(error)) => {
                    Ok(check_lag::unknown(&error.to_string()))
                }
                (_, result) => result,
            };
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn of_one_source(call: &Call<'_>, command: &OfOneSource) -> Result<ExitCode, CliError> {
    let config = call.load(DATABASE)?;
    let source = call.chosen(&config)?;
    block_on(async {
        match command {
            OfOneSource::Migrate(args) => migrate::migrate(args, source).await?,
            OfOneSource::Status(json) => status::status(*json, source).await?,
            OfOneSource::Where(args) => where_::locate(args, source, &config).await?,
            OfOneSource::CheckLag(args) => return Ok(check_lag::check_lag(args, source).await),
            OfOneSource::Failures(args) => failures::failures(args, source, &config).await?,
            OfOneSource::Waiting(command) => waiting::waiting(command, source, &config).await?,
            OfOneSource::Dead(command) => dead::dead(command, source, &config).await?,
            OfOneSource::History(args) => history::history(args, source).await?,
            OfOneSource::Replay(args) => replay::replay(args, source).await?,
            OfOneSource::Prune(args) => prune::prune(args, source, &config.retention).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

const DATABASE: Needs = Needs {
    database: true,
    broker: false,
};
const BOTH: Needs = Needs {
    database: true,
    broker: true,
};
const NEITHER: Needs = Needs {
    database: false,
    broker: false,
};

/// The command line, and the environment that it was called in.
struct Call<'a> {
    cli: &'a Cli,
    env: BTreeMap<OsString, OsString>,
}

impl Call<'_> {
    fn options(&self, needs: Needs) -> LoadOptions {
        LoadOptions {
            file: self.cli.config.clone(),
            env: self.env.clone(),
            overrides: self.cli.set.clone(),
            needs,
        }
    }

    fn load(&self, needs: Needs) -> Result<Config, CliError> {
        Ok(Config::load(self.options(needs))?)
    }

    /// The name of the source to act on, and who gave it. A template may leave the variable empty.
    fn source(&self) -> Option<(String, &'static str)> {
        let by_variable = || {
            let name = self.env.get(OsStr::new(SOURCE))?;
            (!name.is_empty()).then(|| (name.to_string_lossy().into_owned(), SOURCE))
        };
        let by_option = self.cli.source.clone().map(|name| (name, "--source"));
        by_option.or_else(by_variable)
    }

    fn chosen<'c>(&self, config: &'c Config) -> Result<&'c Source, CliError> {
        let names: Vec<&str> = config.sources.iter().map(|s| s.name.as_str()).collect();
        let names = names.join(", ");
        match (self.source(), config.sources.as_slice()) {
            (Some((name, by)), sources) => {
                let named = sources.iter().find(|s| s.name == name);
                named.ok_or_else(|| {
                    let problem = format!("{by} {name}: the configuration has {names}");
                    CliError::Usage(problem)
                })
            }
            (None, [only]) => Ok(only),
            (None, _) => Err(CliError::Usage(format!(
                "several sources are configured: add --source with one of {names}"
            ))),
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::Failure(format!("cannot start the async runtime: {e}")))?
        .block_on(work)
}
