//! `outboxd status`.

use serde::Serialize;

use super::{
    CliError, database, output,
    table::{table, text, whole},
};
use crate::{
    config::Source,
    outbox::{
        migrate,
        status::{self, RelaySeen, Status},
    },
};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    status: Status,
    /// Seconds since a running relay last audited all messages.
    audited_seconds_ago: Option<f64>,
    /// Stranded messages that are known and not yet filed; `None` if no running relay has looked.
    stranded: Option<i64>,
    relays: Vec<RelaySeen>,
}

pub(super) async fn status(json: output::Json, source: &Source) -> Result<(), CliError> {
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let status = status::status(&session).await?;
    let relays = status::relays(&session).await?;
    let report = Report {
        status,
        audited_seconds_ago: relays
            .iter()
            .filter_map(|r| r.audited_seconds_ago)
            .reduce(f64::min),
        stranded: relays
            .iter()
            .filter(|r| r.audited_seconds_ago.is_some() || r.stranded > 0)
            .map(|r| r.stranded)
            .max(),
        relays,
    };
    if json.json {
        return Ok(output::json(&report)?);
    }
    let Status {
        pending,
        due,
        waiting,
        dead,
        oldest_due_age_seconds,
        pending_is_capped,
    } = report.status;
    let about = if pending_is_capped { " (about)" } else { "" };
    output::line(&format!(
        "pending  {pending}{about}\ndue      {due}{about}\nwaiting  {waiting}\ndead     {dead}"
    ))?;
    output::line(&format!("lag      {oldest_due_age_seconds:.1} s"))?;
    let audited = report.audited_seconds_ago.map_or_else(
        || "not yet completed by a running relay".to_owned(),
        |s| format!("completed {s:.0} s ago"),
    );
    let stranded = report
        .stranded
        .map_or_else(String::new, |n| format!(", {n} stranded and not yet filed"));
    output::line(&format!("audit    {audited}{stranded}"))?;
    if report.relays.is_empty() {
        return Ok(output::line(
            "relays   none reported within the last minute",
        )?);
    }
    output::line("")?;
    let rows: Vec<Vec<String>> = report
        .relays
        .into_iter()
        .map(|r| {
            vec![
                r.instance,
                r.version,
                r.workers.to_string(),
                r.state,
                format!("{:.0} s ago", r.seen_seconds_ago),
            ]
        })
        .collect();
    let columns = [
        text("RELAY"),
        whole("VERSION"),
        whole("WORKERS"),
        text("STATE"),
        whole("SEEN"),
    ];
    Ok(table(&columns, &rows)?)
}
