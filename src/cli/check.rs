//! `outboxd check`.

use std::time::Duration;

use super::{CliError, output};
use crate::{
    broker::{BrokerError, LinkState, Publisher},
    config::{Config, Source},
    outbox::{
        OutboxError, audit, migrate, parts::Weight, pooler, preflight, schema, session::Session,
        work,
    },
    relay,
};

/// How long `check --connect` looks for stranded messages.
const AUDIT: Duration = Duration::from_secs(2);

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
    let mut faults = Faults::default();
    for source in &config.sources {
        let found = database(source).await;
        report(source, "PostgreSQL", found, &mut faults)?;
        let found = broker(config, source).await;
        report(source, "RabbitMQ", found, &mut faults)?;
    }
    faults.into_result()
}

/// The findings at one server.
#[derive(Default)]
struct Findings {
    /// Printed if there is no fault.
    ok: String,
    warnings: Vec<String>,
    faults: Faults,
}

#[derive(Default)]
struct Faults {
    texts: Vec<String>,
    /// At least one fault stays until a person acts.
    needs_a_person: bool,
}

impl Faults {
    fn add(&mut self, text: impl Into<String>, needs_a_person: bool) {
        self.texts.push(text.into());
        self.needs_a_person |= needs_a_person;
    }

    fn into_result(self) -> Result<(), CliError> {
        let text = self.texts.join("\n");
        match (self.texts.is_empty(), self.needs_a_person) {
            (true, _) => Ok(()),
            (false, true) => Err(CliError::Setup(text)),
            (false, false) => Err(CliError::Unavailable(text)),
        }
    }
}

fn report(
    source: &Source,
    server: &str,
    found: Findings,
    faults: &mut Faults,
) -> Result<(), CliError> {
    let name = &source.name;
    for warning in &found.warnings {
        output::line(&format!("{name}: {server}: warning: {warning}"))?;
    }
    if found.faults.texts.is_empty() {
        output::line(&format!("{name}: {server}: {}", found.ok))?;
    }
    for text in found.faults.texts {
        faults.add(
            format!("{name}: {server}: {text}"),
            found.faults.needs_a_person,
        );
    }
    Ok(())
}

async fn database(source: &Source) -> Findings {
    let mut found = Findings::default();
    if let Err(error) = examine(source, &mut found).await {
        found.faults.add(error.to_string(), error.needs_a_person());
    }
    found
}

/// Connects, and checks everything that a relay needs in this database.
async fn examine(source: &Source, found: &mut Findings) -> Result<(), OutboxError> {
    if let Some(why) = pooled(source).await {
        found.faults.add(why, true);
        return Ok(());
    }
    let session = Session::connect(&source.database, "outboxd/check").await?;
    found.ok = format!("ok, schema version {}", schema::known());
    if let Some(why) = preflight::is_read_only(&session).await? {
        found.faults.add(why, true);
    }
    let state = setup(&session).await?;
    found.warnings.extend(state.warnings);
    for text in state
        .faults
        .into_iter()
        .chain(state.hazards)
        .chain(state.doubts)
    {
        found.faults.add(text, true);
    }
    for role in preflight::roles_shared_with_others(&session).await? {
        found.warnings.push(format!(
            "members of {role} also have rights in the databases in brackets: roles belong to the whole server. Give each \
             database roles of its own: outboxd sql --roles --producer NAME --relay NAME --monitor NAME"
        ));
    }
    if !found.faults.texts.is_empty() {
        return Ok(());
    }
    // A policy of row level security shows as an error of a statement that reads.
    work::find(&session, &[0]).await?;
    // The text says which part of the table was read: the count covers only that part.
    let seen = audit::glance(&session, AUDIT).await?;
    let looked_at = if seen.looked_at == seen.pages {
        "all messages".to_owned()
    } else {
        format!("{} of {} pages of messages", seen.looked_at, seen.pages)
    };
    if seen.stranded == 0 {
        found.ok = format!("{}; audit of {looked_at}: no message is stranded", found.ok);
    } else {
        found.warnings.push(format!(
            "audit of {looked_at}: {} STRANDED: unsent, where no relay looks; a running relay files and sends them",
            seen.stranded
        ));
    }
    Ok(())
}

/// The text of the fault, if a pooler in transaction mode is in between and the settings are for a direct connection. Other
/// code reports an unavailable server.
async fn pooled(source: &Source) -> Option<String> {
    let database = &source.database;
    if !database.prepared_statements && !database.listen {
        return None;
    }
    let key = |key: &str| database.key(key);
    matches!(pooler::is_between(database).await, Ok(true)).then(|| {
        format!(
            "{} leads to a pooler in transaction mode (PgBouncer, for example), which keeps no session: set {} = \
             false and {} = false, or connect to PostgreSQL itself",
            key("url"),
            key("prepared_statements"),
            key("listen")
        )
    })
}

/// Refuses a pooler at the start of a relay.
pub(super) async fn require_direct(source: &Source) -> Result<(), CliError> {
    match pooled(source).await {
        Some(why) => Err(CliError::Setup(why)),
        None => Ok(()),
    }
}

/// Faults of the database's schema and of this role's privileges.
#[derive(Default)]
struct Setup {
    /// With these a relay cannot work, or cannot work safely.
    faults: Vec<String>,
    /// With these a relay works, but an event can be lost or go out otherwise than it was written. A relay that runs is not
    /// ready, and one that starts works as well: without it no event would be sent at all.
    hazards: Vec<String>,
    /// With these a relay works, but producers lack something, or the relay is slower.
    doubts: Vec<String>,
    /// What a team may have meant so.
    warnings: Vec<String>,
}

/// Checks the encoding, the privileges, the schema version, and each part of the schema. Each fault names its remedy.
async fn setup(session: &Session) -> Result<Setup, OutboxError> {
    let mut setup = Setup::default();
    if preflight::is_without_encoding(session).await? {
        setup.faults.push(
            "the database's encoding is SQL_ASCII: PostgreSQL converts none of its text, and an event that is not UTF-8 \
             could not be sent. Keep the outbox in a database with ENCODING 'UTF8'"
                .to_owned(),
        );
    }
    // Privileges come before the version, because a role without grants cannot read the version.
    let missing = preflight::missing_privileges(session).await?;
    if !missing.is_empty() {
        setup.faults.push(format!(
            "this role lacks privileges that a relay needs. Run as the owner of schema outbox:\n  {};\n\
             or grant all of them: `outboxd sql --roles`, then GRANT outbox_relay to it",
            missing.join(";\n  ")
        ));
    }
    let version = migrate::require_known(session).await;
    let preflight::Changes {
        differences: different,
        triggers,
    } = preflight::changes(session).await?;
    setup.warnings.extend(triggers);
    let list = |weight: Weight| -> Option<String> {
        let of = different.iter().filter(|part| part.weight() == weight);
        let lines: Vec<String> = of.map(ToString::to_string).collect();
        (!lines.is_empty()).then(|| lines.join("\n  "))
    };
    match version {
        Ok(()) => {}
        // The version may be unreadable because a column or a grant is missing, which the other faults report.
        Err(OutboxError::Database { .. }) if !different.is_empty() || !missing.is_empty() => {}
        Err(error @ (OutboxError::SchemaTooNew { .. } | OutboxError::SchemaTooOld { .. })) => {
            setup.faults.push(error.to_string());
            return Ok(setup);
        }
        Err(error) => return Err(error),
    }
    let known = schema::known();
    if let Some(parts) = list(Weight::Stops) {
        setup.faults.push(format!(
            "the database has outbox schema version {known}, and parts of it are missing or changed:\n  {parts}\n\
             Put it back as `outboxd sql` defines it, as the owner of schema outbox, or restore the database"
        ));
    }
    if let Some(parts) = list(Weight::Unsafe) {
        setup.hazards.push(format!(
            "the database has outbox schema version {known}, and parts that guard events are missing or changed:\n  {parts}\n\
             Put it back as `outboxd sql` defines it, as the owner of schema outbox"
        ));
    }
    if let Some(parts) = list(Weight::Lesser) {
        setup.doubts.push(format!(
            "the database has outbox schema version {known}, and parts that producers use or that speed needs are missing or changed:\n  {parts}\n\
             Put it back as `outboxd sql` defines it, as the owner of schema outbox"
        ));
    }
    Ok(setup)
}

/// At the start of a relay: refuses a schema that the relay cannot work with, and logs other faults.
pub(super) async fn require_ready(session: &Session) -> Result<(), CliError> {
    let setup = setup(session).await?;
    for doubt in &setup.doubts {
        tracing::warn!("{doubt}");
    }
    for hazard in &setup.hazards {
        tracing::error!("{hazard}");
    }
    if setup.faults.is_empty() {
        return Ok(());
    }
    Err(CliError::Setup(setup.faults.join("\n")))
}

async fn broker(config: &Config, source: &Source) -> Findings {
    let mut found = Findings::default();
    let exchanges = match relay::exchanges(config) {
        Ok(exchanges) => exchanges,
        Err(error) => {
            found.faults.add(error.to_string(), true);
            return found;
        }
    };
    let broker = &source.broker;
    let within = broker.connect_timeout;
    let mut publisher = match Publisher::connect(broker, "outboxd/check", within, false).await {
        Ok(publisher) => publisher,
        Err(error) => {
            found.faults.add(error.to_string(), error.needs_a_person());
            return found;
        }
    };
    for error in publisher.verify(&exchanges, broker.declare).await {
        found.faults.add(error.to_string(), error.needs_a_person());
    }
    // This comes last: a broker that blocks publishers reads no further request from this connection.
    if let Err(error) = accepts_publishes(&mut publisher, within).await {
        found.faults.add(error.to_string(), error.needs_a_person());
    }
    publisher.close(Duration::from_secs(2)).await;
    let what = if broker.declare {
        "to be declared"
    } else {
        "there"
    };
    found.ok = format!("ok, exchanges {what}: {}", exchanges.join(", "));
    found
}

/// Checks that the broker accepts publishes: during an alarm the broker tells a new connection only when it publishes. No
/// queue can take the message that this function publishes.
async fn accepts_publishes(publisher: &mut Publisher, within: Duration) -> Result<(), BrokerError> {
    let mut state = publisher.state();
    tokio::select! {
        answered = publisher.probe(|_| {}) => answered,
        blocked = state.wait_for(|state| matches!(state, LinkState::Blocked(_))) => match blocked.as_deref() {
            Ok(LinkState::Blocked(why)) => Err(BrokerError::Blocked(why.clone())),
            _ => Err(BrokerError::Closed("its watcher ended".to_owned())),
        },
        () = tokio::time::sleep(within * 2) => Err(BrokerError::Timeout { action: "first publish", after: within * 2 }),
    }
}
