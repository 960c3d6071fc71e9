//! `--bundle`: one file of JSON that a person can read, and attach to a ticket. It holds no password, no body and no header.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    examine::{Found, FoundSource},
    line::Reported,
};
use crate::{
    cli::{CliError, admin_port, output},
    config::{Config, Effective, LoadOptions},
    outbox::status::{RelaySeen, Status},
};

/// How long the relay's metrics are waited for.
const WITHIN: Duration = Duration::from_secs(3);
/// Most bytes of metrics.
const METRICS_BYTES: usize = 4 << 20;

#[derive(Serialize)]
struct Bundle<'a> {
    outboxd: &'static str,
    written_at: String,
    checks: &'a [Reported],
    /// As `outboxd config show`; `null` for a bad configuration, whose values may be misplaced secrets.
    configuration: Option<Effective>,
    sources: Vec<OfSource<'a>>,
    /// `/metrics` of the relay on this host.
    metrics: Option<String>,
    /// Why there are no metrics.
    metrics_missing: Option<String>,
}

#[derive(Serialize)]
struct OfSource<'a> {
    name: &'a str,
    postgresql: Option<&'a str>,
    rabbitmq: Option<&'a str>,
    status: Option<&'a Status>,
    relays: &'a [RelaySeen],
}

/// A new file that only its owner may read. A file that exists is never overwritten, and a link is not followed.
pub fn create(path: &Path) -> Result<File, CliError> {
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    created.map_err(|error| {
        CliError::Failure(format!(
            "cannot make {}: {error}. Name a file that does not exist yet",
            path.display()
        ))
    })
}

pub async fn write(
    mut file: File,
    path: &Path,
    found: &Found,
    config: Option<&Config>,
    options: LoadOptions,
) -> Result<(), CliError> {
    let (metrics, metrics_missing) = match metrics(config).await {
        Ok(text) => (Some(text), None),
        Err(why) => (None, Some(why)),
    };
    let bundle = Bundle {
        outboxd: env!("CARGO_PKG_VERSION"),
        written_at: OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default(),
        checks: &found.lines,
        configuration: Effective::of(options).ok(),
        sources: found.sources.iter().map(of_source).collect(),
        metrics,
        metrics_missing,
    };
    let failed = |error: std::io::Error| {
        CliError::Failure(format!("cannot write {}: {error}", path.display()))
    };
    let mut text = serde_json::to_vec_pretty(&bundle).map_err(|e| failed(e.into()))?;
    text.push(b'\n');
    file.write_all(&text).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}

fn of_source(source: &FoundSource) -> OfSource<'_> {
    let known = &source.known;
    OfSource {
        name: &source.name,
        postgresql: known.server.as_ref().map(|s| s.version.as_str()),
        rabbitmq: source.broker.as_deref(),
        status: known.status.as_ref(),
        relays: &known.relays,
    }
}

async fn metrics(config: Option<&Config>) -> Result<String, String> {
    let Some(config) = config else {
        return Err("the configuration is bad (D101)".to_owned());
    };
    let Some(listen) = config.admin.listen else {
        return Err("admin.listen is \"off\"".to_owned());
    };
    let asking = admin_port::get(listen, "/metrics", METRICS_BYTES);
    match tokio::time::timeout(WITHIN, asking).await {
        Ok(Ok(answer)) if answer.is_ours && answer.status.is_success() => Ok(answer.body),
        Ok(Ok(_)) => Err(format!("{listen} is another program's port")),
        Ok(Err(error)) => Err(format!("no relay answers on {listen}: {error}")),
        Err(_) => Err(format!(
            "no answer from {listen} within {} s",
            WITHIN.as_secs()
        )),
    }
}
