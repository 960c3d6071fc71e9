//! One message: claim → handler → commit, and what its acknowledgement will be.

use std::time::Instant;

use tokio_postgres::{Client, error::SqlState};

use super::{ConsumerOptions, Failure, Handler, Message, ReplayPolicy, metrics};
use crate::inbox::{Claimed, Inbox, InboxError, Operation};

/// What to do with the delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its effect is committed, or it needs none.
    Ack,
    /// Again, after the back-off of so many attempts.
    Later { attempts: u32 },
    DeadLetter {
        reason: &'static str,
        attempts: u32,
        error: String,
    },
    /// The database could not be asked; nothing is known, and no attempt counted. The connection is not to be used
    /// again.
    Unknown(String),
}

/// `attempts` failed in this process before, as far as it knows.
pub(super) async fn process<H: Handler>(
    handler: &H,
    inbox: &Inbox,
    options: &ConsumerOptions,
    client: &mut Client,
    message: &Message,
    attempts: u32,
) -> Verdict {
    let consumer = inbox.consumer();
    if message.is_replay() && options.replay == ReplayPolicy::Skip {
        metrics::message(consumer, "replay_skipped");
        return Verdict::Ack;
    }
    let operation = match handler.operation(message) {
        Ok(operation) => operation,
        Err(error) => return dead(consumer, "message_id_invalid", 0, error.to_string()),
    };
    // A message that kills its consumer never gets to count its failure. So a redelivered one is counted before it
    // is tried; that it may never have been tried before makes this a limit, and not a number of failures.
    let mut counted = attempts;
    if message.redelivered && attempts == 0 {
        match inbox
            .fail(
                client,
                operation.key(),
                "delivered again: an attempt before did not end",
            )
            .await
        {
            Ok(n) if n > options.max_attempts => {
                let error = "delivered again and again: it may kill its consumer".to_owned();
                return dead(consumer, "attempts_exhausted", n, error);
            }
            Ok(n) => counted = n,
            Err(error) => return Verdict::Unknown(error.to_string()),
        }
    }
    match attempt(
        handler,
        inbox,
        options,
        client,
        message,
        &operation,
        counted > 0,
    )
    .await
    {
        Ok(outcome) => {
            metrics::message(consumer, outcome);
            Verdict::Ack
        }
        Err(Attempt::Database(error)) => Verdict::Unknown(error),
        Err(Attempt::Refused { reason, error }) => dead(consumer, reason, counted, error),
        Err(Attempt::Failed(error)) => match inbox.fail(client, operation.key(), &error).await {
            Ok(n) if n >= options.max_attempts => dead(consumer, "attempts_exhausted", n, error),
            Ok(n) => {
                metrics::retry(consumer);
                Verdict::Later { attempts: n }
            }
            Err(error) => Verdict::Unknown(error.to_string()),
        },
        Err(Attempt::TimedOut) => {
            // The statement may still run on this connection.
            metrics::retry(consumer);
            Verdict::Unknown(format!(
                "the handler took longer than {:?}",
                options.handler_timeout
            ))
        }
    }
}

fn dead(consumer: &str, reason: &'static str, attempts: u32, error: String) -> Verdict {
    metrics::message(
        consumer,
        if reason == "conflict" {
            "conflict"
        } else {
            "dead_lettered"
        },
    );
    Verdict::DeadLetter {
        reason,
        attempts,
        error,
    }
}

enum Attempt {
    Failed(String),
    Refused { reason: &'static str, error: String },
    TimedOut,
    Database(String),
}

impl From<InboxError> for Attempt {
    fn from(error: InboxError) -> Self {
        match error {
            InboxError::Database(error) => Self::from(error),
            other => Self::Refused {
                reason: "result_invalid",
                error: other.to_string(),
            },
        }
    }
}

impl From<tokio_postgres::Error> for Attempt {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            // The connection is good, and the transaction was rolled back: an attempt like any other.
            Some(code) if *code != SqlState::ADMIN_SHUTDOWN && !error.is_closed() => Self::Failed(
                error
                    .as_db_error()
                    .map_or_else(|| error.to_string(), |db| db.message().to_owned()),
            ),
            _ => Self::Database(error.to_string()),
        }
    }
}

async fn attempt<H: Handler>(
    handler: &H,
    inbox: &Inbox,
    options: &ConsumerOptions,
    client: &mut Client,
    message: &Message,
    operation: &Operation,
    was_counted: bool,
) -> Result<&'static str, Attempt> {
    let transaction = client.transaction().await?;
    match inbox.claim(&transaction, operation).await? {
        Claimed::First => {}
        Claimed::Duplicate(_) => {
            transaction.rollback().await?;
            return Ok("duplicate");
        }
        Claimed::Stale => {
            // That it was passed over is remembered.
            transaction.commit().await?;
            return Ok("stale");
        }
        Claimed::Conflict => {
            transaction.rollback().await?;
            let error = format!(
                "{} was applied before with another type, content type or body",
                operation.key()
            );
            return Err(Attempt::Refused {
                reason: "conflict",
                error,
            });
        }
        Claimed::InDoubt => {
            transaction.rollback().await?;
            let error = format!(
                "an external effect of {} was begun and never recorded",
                operation.key()
            );
            return Err(Attempt::Refused {
                reason: "in_doubt",
                error,
            });
        }
    }
    let began = Instant::now();
    let handled = tokio::time::timeout(
        options.handler_timeout,
        handler.handle(message, &transaction),
    )
    .await;
    metrics::handled(inbox.consumer(), began.elapsed());
    match handled {
        Err(_) => Err(Attempt::TimedOut),
        Ok(Ok(reply)) => {
            if let Some(bytes) = reply.0 {
                inbox
                    .complete_with(&transaction, operation, &bytes, "application/json")
                    .await?;
            }
            if was_counted {
                inbox.forgive(&transaction, operation.key()).await?;
            }
            transaction.commit().await?;
            Ok("first")
        }
        Ok(Err(failure)) => {
            transaction.rollback().await?;
            let error = failure.to_string();
            Err(match failure {
                Failure::Retry(_) => Attempt::Failed(error),
                Failure::Reject(_) => Attempt::Refused {
                    reason: "rejected",
                    error,
                },
                Failure::InDoubt(_) => Attempt::Refused {
                    reason: "in_doubt",
                    error,
                },
            })
        }
    }
}
