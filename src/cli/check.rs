//! `outboxd check`.

use super::{
    CliError,
    doctor::{
        broker,
        checks::{Check, EXCHANGES, GUARDS, POOLER, PRODUCERS_PARTS, STRANDED},
        database,
        line::{Line, State, ended},
        setup::setup,
    },
    output,
};
use crate::{
    config::{Config, Source},
    outbox::{schema, session::Session},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Also connect to both servers: schema, privileges, exchanges, and whether both accept writes
    #[arg(long)]
    connect: bool,
}

pub(super) async fn check(args: &Args, config: &Config) -> Result<(), CliError> {
    output::line(&format!("configuration: ok; file: {}", config.file))?;
    if !args.connect {
        return Ok(());
    }
    // Report every fault at once, so that a person need not run the command again for each.
    let mut faults = Vec::new();
    for source in &config.sources {
        let found = database::examine(source, "outboxd/check").await.lines;
        let ok = format!("schema version {}", schema::known());
        faults.extend(report(source, found, Some(&ok), &STRANDED)?);
        let found = broker::examine(config, source, "outboxd/check").await;
        faults.extend(report(source, found, None, &EXCHANGES)?);
    }
    let texts: Vec<&str> = faults.iter().map(|(text, _)| text.as_str()).collect();
    ended(faults.iter().map(|(_, line)| line), texts.join("\n"))
}

/// Prints the warnings of a server; and, if it has no fault, a line with the finding of one check. Returns the faults, each as it
/// is told.
fn report(
    source: &Source,
    found: Vec<Line>,
    ok: Option<&str>,
    told: &'static Check,
) -> Result<Vec<(String, Line)>, CliError> {
    let name = &source.name;
    let server = told.group.server().unwrap_or_default();
    for line in found.iter().filter(|line| line.state == State::Warning) {
        output::line(&format!("{name}: {server}: warning: {}", line.text()))?;
    }
    let told = found
        .iter()
        .find(|line| line.check == told && line.state == State::Ok);
    let more = told.map(|line| line.finding.as_str());
    let said: Vec<&str> = ok.into_iter().chain(more).collect();
    let said = said.join("; ");
    let faults: Vec<(String, Line)> = found
        .into_iter()
        .filter(Line::is_fault)
        .map(|line| (format!("{name}: {server}: {}", line.text()), line))
        .collect();
    if faults.is_empty() {
        output::line(&format!("{name}: {server}: ok, {said}"))?;
    }
    Ok(faults)
}

/// Refuses a pooler at the start of a relay.
pub(super) async fn require_direct(source: &Source) -> Result<(), CliError> {
    let database = &source.database;
    if !database.prepared_statements && !database.listen {
        return Ok(());
    }
    let line = database::pooler(database).await;
    match line.is_fault() && line.check == &POOLER {
        true => Err(CliError::Setup(line.text())),
        // Other code reports an unavailable server.
        false => Ok(()),
    }
}

/// At the start of a relay: refuses a schema that the relay cannot work with, and logs other faults. Without it no event would
/// be sent at all.
pub(super) async fn require_ready(session: &Session) -> Result<(), CliError> {
    let (mut lines, mut faults) = (Vec::new(), Vec::new());
    setup(session, &mut lines).await?;
    for line in lines.iter().filter(|line| line.is_fault()) {
        if line.check == &PRODUCERS_PARTS {
            tracing::warn!("{}", line.text());
        } else if line.check == &GUARDS {
            tracing::error!("{}", line.text());
        } else {
            faults.push(line.text());
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(CliError::Setup(faults.join("\n")))
}
