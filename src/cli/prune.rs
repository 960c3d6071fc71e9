//! `outboxd prune`: runs retention now, when the relay's own pace is too slow.

use std::time::Duration;

use outbox_core::message::Lane;

use super::{CliError, database, output, values};
use crate::{
    config::{Retention, Source},
    outbox::{
        migrate,
        operation::{self, Operation},
        retention::{self, Reach},
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Delete messages that were sent longer ago than this [default: retention.sent]
    #[arg(long, value_name = "AGE", value_parser = values::age)]
    older_than: Option<Duration>,
    /// Person, for the record [default: the login name]
    #[arg(long, value_parser = values::text)]
    by: Option<String>,
    #[command(flatten)]
    json: output::Json,
}

pub(super) async fn prune(
    args: &Args,
    source: &Source,
    config: &Retention,
) -> Result<(), CliError> {
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let kept_for = args.older_than.unwrap_or(config.sent);
    let mut deleted: u64 = 0;
    let mut stranded = false;
    for lane in 0..64 as Lane {
        let mut cursor = retention::FIRST;
        loop {
            let rows = config.step_rows;
            let step =
                retention::prune_step(&session, lane, cursor, rows, kept_for, Reach::All).await?;
            deleted += step.deleted;
            stranded |= step.stranded;
            cursor = step.cursor;
            if !step.more {
                break;
            }
        }
    }
    let selection = format!(
        "sent more than {} ago",
        humantime::format_duration(kept_for)
    );
    if deleted > 0 {
        let operation = Operation {
            action: "prune",
            by: database::operator(args.by.as_ref()),
            why: "outboxd prune".to_owned(),
            selection: selection.clone(),
        };
        operation::record(
            &session,
            &operation,
            i64::try_from(deleted).unwrap_or(i64::MAX),
            &[],
        )
        .await?;
    }
    if stranded {
        output::note(
            "unsent messages lie where no relay looks (stranded); they are kept, and a running relay files and sends them",
        );
    }
    if args.json.json {
        return Ok(output::json(
            &serde_json::json!({ "action": "prune", "messages": deleted, "selection": selection }),
        )?);
    }
    Ok(output::line(&format!(
        "{deleted} sent messages deleted: {selection}"
    ))?)
}
