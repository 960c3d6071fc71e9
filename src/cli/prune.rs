//! `outboxd prune`: runs retention now, when the relay's own pace is too slow.

use std::time::Duration;

use super::{CliError, database, output, values};
use crate::{
    config::{Retention, Source},
    outbox::{
        migrate,
        operation::Operation,
        retention::{self, Pruned},
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
    let selection = format!(
        "sent more than {} ago",
        humantime::format_duration(kept_for)
    );
    let operation = Operation {
        action: "prune",
        by: database::operator(args.by.as_ref()),
        why: "outboxd prune".to_owned(),
        selection: selection.clone(),
    };
    let mut done = Pruned::default();
    let pruning = retention::prune(&session, config.step_rows, kept_for, &operation, &mut done);
    let pruned = database::whole(pruning).await;
    let Pruned { deleted, stranded } = done;
    if let Err(error) = pruned {
        database::half(deleted, "deleted");
        return Err(error);
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
