//! Runs one command: claim → handler → store → commit. It runs in a task of its own, so that a client that hangs up does not
//! stop it half-way.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, response::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use scopeguard::ScopeGuard;
use tokio::time::timeout;
use tokio_postgres::{
    Client, SimpleQueryMessage,
    error::{DbError, Severity, SqlState},
};

use super::{
    command::{Command, is_transient},
    options::{Keep, MAX_STORED},
    problem::Problem,
    shared::Shared,
    stored,
};
use crate::{
    inbox::{Claimed, InboxError, Operation, Stored, described},
    metrics,
};

/// Time limit for the database's answers to the layer's own statements.
const ANSWER: Duration = Duration::from_secs(10);

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Runs the handler under the operation's claim. Without an operation the handler also runs in a transaction.
///
/// The only errors are the handler's own.
pub(super) async fn execute<F, B, E>(
    shared: Arc<Shared>,
    operation: Option<Operation>,
    mut request: Request<Full<Bytes>>,
    handle: impl FnOnce(Request<Full<Bytes>>) -> F,
) -> Result<Response<Full<Bytes>>, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let consumer = shared.inbox.consumer();
    let refused = |problem: Problem| Ok(problem.response(shared.options.retry_after));
    let open = match open(&shared).await {
        Ok(open) => open,
        Err(problem) => return refused(problem),
    };
    match claim(&shared, &open, operation.as_ref()).await {
        Ok(Claimed::First) => {}
        Ok(other) => {
            roll_back(open).await;
            metrics::claimed(consumer, &other);
            return answer(other).or_else(refused);
        }
        Err(problem) => {
            roll_back(open).await;
            if problem == Problem::Busy {
                metrics::retry(consumer, "running");
            }
            return refused(problem);
        }
    }
    request.extensions_mut().insert(Command::clone(&open));
    let began = Instant::now();
    let handled = AssertUnwindSafe(collected(handle(request))).catch_unwind();
    // The handler's future has ended here, and with it every clone of the command that the handler did not store elsewhere.
    let handled = timeout(shared.options.handler_timeout, handled).await;
    metrics::handled(consumer, began.elapsed());
    let failed = match handled {
        Ok(Ok(Ok((head, body)))) => {
            match settle(&shared, open, operation.as_ref(), &head, &body).await {
                Ok(outcome) => {
                    metrics::message(consumer, outcome);
                    return Ok(Response::from_parts(head, Full::new(body)));
                }
                Err(problem) => Failed::Response(problem),
            }
        }
        Ok(Ok(Err(Failed::Handler(error)))) => {
            roll_back(open).await;
            Failed::Handler(error)
        }
        Ok(Ok(Err(Failed::Response(problem)))) => Failed::Response(undone(open, problem).await),
        Ok(Err(_)) => {
            tracing::error!(consumer, "a command's handler panicked");
            Failed::Response(undone(open, Problem::HandlerFailed).await)
        }
        Err(_) => {
            let limit = shared.options.handler_timeout;
            tracing::error!(consumer, "a command's handler took longer than {limit:?}");
            Failed::Response(undone(open, Problem::HandlerLate).await)
        }
    };
    metrics::message(consumer, "failed");
    match failed {
        Failed::Handler(error) => Err(error),
        Failed::Response(problem) => refused(problem),
    }
}

/// The answer to a repetition.
fn answer(claimed: Claimed) -> Result<Response<Full<Bytes>>, Problem> {
    match claimed {
        Claimed::Duplicate(Stored {
            bytes: Some(bytes),
            content_type,
        }) if content_type.as_deref() == Some(stored::CONTENT_TYPE) => {
            let mut response = stored::decode(&bytes).ok_or_else(unreadable)?;
            let replayed = HeaderValue::from_static("true");
            response
                .headers_mut()
                .insert("idempotent-replayed", replayed);
            Ok(response)
        }
        Claimed::Conflict => Err(Problem::Reused),
        Claimed::InDoubt => Err(Problem::InDoubt),
        // The key was committed by the handler itself, or by other code than this layer under this consumer's name.
        Claimed::Duplicate(_) => Err(unreadable()),
        Claimed::Stale | Claimed::First => Err(Problem::Internal),
    }
}

/// The key was committed, and its answer is unknown.
fn unreadable() -> Problem {
    tracing::error!("a command's key is kept without an answer: did its handler commit?");
    Problem::MayBeApplied
}

/// An open transaction. In every case its connection goes back to the pool without a transaction.
type Open = ScopeGuard<Command, fn(Command)>;

/// Cleans up after a task that was cut off. Without a runtime the process ends, and the session with it.
fn abandon(command: Command) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(give_back(command));
    }
}

/// Rolls back, and waits a moment for the server. The connection stays out of its pool until the rollback has ended.
async fn roll_back(open: Open) {
    let ended = tokio::spawn(give_back(ScopeGuard::into_inner(open)));
    let _ = timeout(ANSWER, ended).await;
}

/// Like `roll_back`, after a handler ran. Returns the problem for the answer: nothing was applied, unless the handler ended the
/// transaction before.
async fn undone(open: Open, problem: Problem) -> Problem {
    let command = ScopeGuard::into_inner(open);
    let ended = tokio::spawn(async move {
        let back = "ROLLBACK TO SAVEPOINT idempotent_command";
        let back = command.batch_execute(back).await;
        give_back(command).await;
        back.is_err_and(|error| was_ended(&error))
    });
    match timeout(ANSWER, ended).await {
        Ok(Ok(true)) => {
            tracing::error!("a command's handler ended the transaction of its command itself");
            Problem::MayBeApplied
        }
        _ => problem,
    }
}

/// Rolls back, however long the server takes.
async fn give_back(command: Command) {
    if command.is_kept() {
        // End the session: otherwise the holder of the clone could go on writing, outside of any command's transaction.
        tracing::error!("a handler kept a clone of its command; its database session is ended");
        let cut = "SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())";
        drop(command.batch_execute(cut).await);
    } else {
        // An error means that the connection has ended, and the transaction with it.
        drop(command.batch_execute("ROLLBACK").await);
    }
}

async fn open(shared: &Shared) -> Result<Open, Problem> {
    let unavailable = |error: String| {
        tracing::warn!(
            consumer = shared.inbox.consumer(),
            error,
            "no database connection for a command"
        );
        Problem::Unavailable
    };
    let within = shared.options.connect_timeout;
    match timeout(within, (shared.connect)()).await {
        Ok(Ok(connection)) => Ok(scopeguard::guard(Command::new(connection), abandon)),
        Ok(Err(error)) => Err(unavailable(error.to_string())),
        Err(_) => Err(unavailable(format!("none within {within:?}"))),
    }
}

/// Sends BEGIN and the claim. Only the claim has this short limit for lock waits; the service chooses the handler's own limits.
async fn claim(
    shared: &Shared,
    open: &Open,
    operation: Option<&Operation>,
) -> Result<Claimed, Problem> {
    let client: &Client = open;
    let work = async {
        let begin = format!(
            "BEGIN; SHOW lock_timeout; SET LOCAL lock_timeout = {}",
            shared.options.busy_wait.as_millis()
        );
        let before = shown(&client.simple_query(&begin).await?);
        let Some(operation) = operation else {
            client.batch_execute(&restore(&before)).await?;
            return Ok(Claimed::First);
        };
        let claimed = shared.inbox.claim_in(client, operation).await?;
        if claimed == Claimed::First {
            client.batch_execute(&restore(&before)).await?;
        }
        Ok(claimed)
    };
    match timeout(ANSWER, work).await {
        Ok(Ok(claimed)) => Ok(claimed),
        Ok(Err(InboxError::Database(error)))
            if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) =>
        {
            Err(Problem::Busy)
        }
        Ok(Err(error)) => Err(failed(shared, &error, "the claim of a command failed")),
        Err(_) => Err(Problem::Unavailable),
    }
}

/// A refusal rolls back to the savepoint: the claim stays, the handler's writes do not.
fn restore(lock_timeout: &str) -> String {
    format!("SET LOCAL lock_timeout = '{lock_timeout}'; SAVEPOINT idempotent_command")
}

/// The answer of the single SHOW among some statements: digits and a unit.
fn shown(messages: &[SimpleQueryMessage]) -> String {
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let shown = rows.last().unwrap_or("0");
    shown.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// The reason why there is no whole response.
enum Failed<E> {
    Handler(E),
    Response(Problem),
}

/// The handler's response with its whole body: the layer stores it before the client gets a byte of it.
async fn collected<B, E>(
    handling: impl Future<Output = Result<Response<B>, E>>,
) -> Result<(Parts, Bytes), Failed<E>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (head, body) = handling.await.map_err(Failed::Handler)?.into_parts();
    match Limited::new(body, MAX_STORED).collect().await {
        Ok(whole) => Ok((head, whole.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => {
            tracing::error!(
                "a command's response is above {MAX_STORED} bytes; answer with a reference instead"
            );
            Err(Failed::Response(Problem::ResponseTooLarge))
        }
        Err(error) => {
            tracing::error!(error, "a command's response broke off");
            Err(Failed::Response(Problem::HandlerFailed))
        }
    }
}

/// Ends the transaction as the response demands; returns the outcome to count.
async fn settle(
    shared: &Shared,
    open: Open,
    operation: Option<&Operation>,
    head: &Parts,
    body: &[u8],
) -> Result<&'static str, Problem> {
    let keep = (shared.options.keep)(head.status);
    // Without a key a refusal cannot be remembered.
    if keep == Keep::Nothing || (keep == Keep::Refusal && operation.is_none()) {
        roll_back(open).await;
        return Ok("failed");
    }
    // The holder of a clone could go on writing between the response and the commit, and after it.
    if open.is_kept() {
        return Err(undone(open, Problem::Internal).await);
    }
    let stored = store(shared, &open, operation, keep, head, body);
    let stored = timeout(ANSWER, stored).await;
    if let Err(problem) = stored.unwrap_or(Err(Problem::Unavailable)) {
        roll_back(open).await;
        return Err(problem);
    }
    let committed = timeout(ANSWER, open.batch_execute("COMMIT")).await;
    match committed {
        Ok(Ok(())) => {
            drop(ScopeGuard::into_inner(open));
            Ok(if operation.is_some() {
                "first"
            } else {
                "unkeyed"
            })
        }
        // The server refused the commit: a deferred constraint, or a serialization failure.
        Ok(Err(error)) if said_no(&error) => Err(failed(
            shared,
            &error.into(),
            "a command could not be committed",
        )),
        Ok(Err(_)) | Err(_) => {
            let consumer = shared.inbox.consumer();
            tracing::warn!(consumer, "the commit of a command was not answered");
            Err(Problem::Unknown)
        }
    }
}

/// Stores the response together with the handler's writes, or instead of them. It fails if the handler ended the transaction
/// itself (and may have committed it), or if the handler ignored a failed statement.
async fn store(
    shared: &Shared,
    client: &Client,
    operation: Option<&Operation>,
    keep: Keep,
    head: &Parts,
    body: &[u8],
) -> Result<(), Problem> {
    let failed =
        |error: InboxError| failed(shared, &error, "a command's response could not be stored");
    let handler = match keep {
        Keep::Refusal => "ROLLBACK TO SAVEPOINT idempotent_command",
        Keep::Effect | Keep::Nothing => "RELEASE SAVEPOINT idempotent_command",
    };
    client.batch_execute(handler).await.map_err(|error| {
        let ended = was_ended(&error);
        let problem = failed(error.into());
        if ended {
            Problem::MayBeApplied
        } else {
            problem
        }
    })?;
    let Some(operation) = operation else {
        return Ok(());
    };
    let chosen = &shared.options.stored_headers;
    let Some(response) = stored::encode(head.status, &head.headers, chosen, body) else {
        tracing::error!(
            "a command's response has more than {} header lines to store",
            stored::MAX_HEADERS
        );
        return Err(Problem::ResponseTooLarge);
    };
    let stored = shared
        .inbox
        .complete_with(client, operation, &response, stored::CONTENT_TYPE);
    stored.await.map_err(failed)
}

/// The layer's savepoint is gone, and the transaction with it.
fn was_ended(error: &tokio_postgres::Error) -> bool {
    matches!(
        error.code(),
        Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION | &SqlState::S_E_INVALID_SPECIFICATION)
    )
}

/// The server refused the commit. After a fatal error, or no error of the server, the outcome is unknown.
fn said_no(error: &tokio_postgres::Error) -> bool {
    let severity = error.as_db_error().and_then(DbError::parsed_severity);
    severity == Some(Severity::Error)
}

fn failed(shared: &Shared, error: &InboxError, what: &'static str) -> Problem {
    let (said, transient) = match error {
        InboxError::Database(error) => (described(error), is_transient(error)),
        other => (other.to_string(), false),
    };
    tracing::error!(consumer = shared.inbox.consumer(), error = said, "{what}");
    match error {
        InboxError::ResultTooLarge { .. } => Problem::ResponseTooLarge,
        _ if transient => Problem::Unavailable,
        _ => Problem::Internal,
    }
}
