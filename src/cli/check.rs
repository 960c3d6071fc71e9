//! `outboxd check` and `outboxd healthcheck`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::{CliError, output};
use crate::{
    broker::{Link, topology},
    config::{Config, Source},
    outbox::{OutboxError, migrate, preflight, session::Session},
    relay,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Also connects to both servers: schema version, privileges, exchanges
    #[arg(long)]
    connect: bool,
}

#[derive(clap::Args)]
pub(super) struct HealthArgs {
    /// Asks /livez instead: is the process there, ready or not
    #[arg(long)]
    live: bool,
}

pub(super) async fn check(args: &Args, config: &Config) -> Result<(), CliError> {
    output::line("configuration: ok")?;
    if args.connect {
        for source in &config.sources {
            database(source).await?;
            broker(config, source).await?;
        }
    }
    Ok(())
}

/// Connects, and looks at schema version and privileges.
pub(super) async fn database(source: &Source) -> Result<(), CliError> {
    let session = Session::connect(&source.database, "outboxd/check").await?;
    require_ready(&session).await?;
    Ok(output::line(&format!(
        "{}: PostgreSQL: ok, schema version {}",
        source.name,
        migrate::known()
    ))?)
}

/// Encoding, privileges, schema version, tables and columns; what is missing is named with what mends it.
pub(super) async fn require_ready(session: &Session) -> Result<(), CliError> {
    if preflight::is_without_encoding(session).await? {
        return Err(CliError::Setup(
            "the database's encoding is SQL_ASCII: PostgreSQL converts none of its text, and an event that is not UTF-8 \
             would hold up all events beside it. Keep the outbox in a database with ENCODING 'UTF8'"
                .to_owned(),
        ));
    }
    // Before the version, which a role without grants cannot read.
    let missing = preflight::missing_privileges(session).await?;
    if !missing.is_empty() {
        return Err(CliError::Setup(format!(
            "this role may not do what a relay does. Run as the owner of schema outbox:\n  {};\n\
             or once for all: `outboxd sql --roles`, then GRANT outbox_relay to it",
            missing.join(";\n  ")
        )));
    }
    let version = migrate::require_known(session).await;
    // For want of a column it may be unreadable: that is told with the rest.
    match &version {
        Ok(()) | Err(OutboxError::Database { .. }) => {}
        Err(_) => return Ok(version?),
    }
    let missing = preflight::missing_parts(session).await?;
    if missing.is_empty() {
        return Ok(version?);
    }
    Err(CliError::Setup(format!(
        "the database has outbox schema version {}, and something of it was taken away or changed:\n  {}\n\
         Put it back as `outboxd sql` defines it, as the owner of schema outbox, or restore the database",
        migrate::known(),
        missing.join("\n  ")
    )))
}

async fn broker(config: &Config, source: &Source) -> Result<(), CliError> {
    let link = Link::connect(&source.broker, "outboxd/check").await?;
    let exchanges = relay::exchanges(config).map_err(|e| CliError::Setup(e.to_string()))?;
    if !source.broker.declare {
        topology::verify(&link, &exchanges, source.broker.connect_timeout).await?;
    }
    link.close(Duration::from_secs(2)).await;
    let what = if source.broker.declare {
        "to be declared"
    } else {
        "there"
    };
    Ok(output::line(&format!(
        "{}: RabbitMQ: ok, exchanges {what}: {}",
        source.name,
        exchanges.join(", ")
    ))?)
}

/// One HTTP request to this host's relay, for container health checks: such images have no curl.
pub(super) fn health(args: &HealthArgs, config: &Config) -> Result<(), CliError> {
    let Some(listen) = config.admin.listen else {
        return Err(CliError::Setup(
            "admin.listen is \"off\": there is nobody to ask".to_owned(),
        ));
    };
    let path = if args.live { "/livez" } else { "/readyz" };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(3)))
        // A relay that is not ready says why, in its body.
        .http_status_as_error(false)
        .build()
        .into();
    let unreachable =
        |e: ureq::Error| CliError::Failure(format!("no relay answers on {listen}: {e}"));
    let mut answer = agent
        .get(format!("http://{}{path}", reachable(listen)))
        .call()
        .map_err(unreachable)?;
    let body = answer.body_mut().read_to_string().map_err(unreachable)?;
    let body = body.trim().to_owned();
    if answer.status().is_success() {
        Ok(output::line(&body)?)
    } else {
        Err(CliError::Failure(body))
    }
}

fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
