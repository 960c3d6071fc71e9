//! `outboxd prune`: retention now, for whom the relay's own pace is too slow.

use std::time::Duration;

use super::{CliError, output};
use crate::{
    config::{Retention, Source},
    message::Lane,
    outbox::{
        migrate,
        operation::{self, Operation},
        retention,
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Deletes those sent longer ago than this [default: retention.sent]
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Who, for the record [default: the login name]
    #[arg(long)]
    by: Option<String>,
    #[command(flatten)]
    json: output::Json,
}

pub(super) async fn prune(
    args: &Args,
    source: &Source,
    config: &Retention,
) -> Result<(), CliError> {
    let session = super::session(source).await?;
    migrate::require_known(&session).await?;
    let kept_for = args.older_than.unwrap_or(config.sent);
    let mut deleted: u64 = 0;
    for lane in 0..64 as Lane {
        let mut cursor = 0;
        loop {
            let step =
                retention::prune_step(&session, lane, cursor, config.step_rows, kept_for).await?;
            deleted += step.deleted;
            cursor = step.cursor;
            if !step.more {
                break;
            }
        }
    }
    if deleted > 0 {
        let operation = Operation {
            action: "prune",
            by: super::operator(args.by.as_ref()),
            why: "outboxd prune".to_owned(),
            selection: format!(
                "sent more than {} ago",
                humantime::format_duration(kept_for)
            ),
        };
        operation::record(
            &session,
            &operation,
            i64::try_from(deleted).unwrap_or(i64::MAX),
            &[],
        )
        .await?;
    }
    if args.json.json {
        return Ok(output::json(
            &serde_json::json!({ "action": "prune", "messages": deleted }),
        )?);
    }
    Ok(output::line(&format!("{deleted} sent messages deleted"))?)
}
