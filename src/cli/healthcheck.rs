//! `outboxd healthcheck`: one HTTP request to this host's relay, for containers whose images have no curl.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    CliError,
    admin_port::{Answer, get},
    output,
};
use crate::config::Config;

/// Container engines and kubelet give up after a few seconds, too.
const WITHIN: Duration = Duration::from_secs(3);
/// The relay answers with one short text.
const MAX_BODY_BYTES: usize = 64 * 1024;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Ask /livez instead: exit code 0 when the process runs, ready or not
    #[arg(long)]
    live: bool,
}

pub(super) async fn healthcheck(args: &Args, config: &Config) -> Result<(), CliError> {
    let Some(listen) = config.admin.listen else {
        return Err(CliError::Setup(
            "admin.listen is \"off\", so no relay can be asked".to_owned(),
        ));
    };
    let path = if args.live { "/livez" } else { "/readyz" };
    let unreachable =
        |why: String| CliError::Failure(format!("no relay answers on {listen}: {why}"));
    let answer = timeout(WITHIN, get(listen, path, MAX_BODY_BYTES))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", WITHIN.as_secs())))?
        .map_err(|e| unreachable(e.to_string()))?;
    let Answer {
        status,
        is_ours,
        body,
    } = answer;
    // Another program's 200 says nothing of the relay, and its text is none of ours to repeat.
    if !is_ours {
        return Err(CliError::Failure(format!(
            "no relay answers on {listen}: another program listens there. See that the relay runs, and that admin.listen is its \
             own port"
        )));
    }
    let body = body.trim();
    if status.is_success() {
        Ok(output::line(body)?)
    } else {
        // The body of a 503 says why the relay is not ready.
        Err(CliError::Failure(body.to_owned()))
    }
}
