//! One message: claim → handler → commit, and what its acknowledgement will be.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, Transaction, error::SqlState};

use super::{ConsumerOptions, Failure, Handler, Message, ReplayPolicy, dead_letter::Reason};
use crate::{
    inbox::{Claimed, Inbox, InboxError, Operation},
    metrics,
};

/// For what the database does around the handler, in all. A claim also waits for a handler that holds the same key.
const DATABASE: Duration = Duration::from_secs(10);

/// What to do with the delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its effect is committed, or it needs none.
    Ack,
    /// Again, after the back-off of so many attempts.
    Later {
        attempts: u32,
    },
    DeadLetter(Reason),
    /// The handler did not end. The connection is not to be used again, for its statement may still run; the attempt
    /// is to be counted on another one.
    Hung {
        key: String,
        error: String,
    },
    /// The database could not be asked; nothing is known, and no attempt counted. The connection is not to be used
    /// again.
    Unknown(String),
}

/// What processes a message, besides the connection.
pub(super) struct Process<'a, H> {
    pub handler: &'a H,
    pub inbox: &'a Inbox,
    pub options: &'a ConsumerOptions,
}

impl<H: Handler> Process<'_, H> {
    /// `attempts` failed in this process before, as far as it knows.
    pub async fn message(&self, client: &mut Client, message: &Message, attempts: u32) -> Verdict {
        let consumer = self.inbox.consumer();
        if message.is_replay() && self.options.replay == ReplayPolicy::Skip {
            metrics::message(consumer, "replay_skipped");
            return Verdict::Ack;
        }
        let operation = match self.handler.operation(message) {
            Ok(operation) => operation,
            Err(error) => return self.dead("message_id_invalid", 0, error.to_string()),
        };
        // A message that kills its consumer never gets to count its failure. So a redelivered one is counted before
        // it is tried; that it may never have been tried before makes this a limit, and not a number of failures.
        let mut counted = attempts;
        if message.redelivered && attempts == 0 {
            let error = "delivered again: an attempt before did not end";
            match self.counted(client, operation.key(), error).await {
                Ok(n) if n > self.options.max_attempts => {
                    let error = "delivered again and again: it may kill its consumer".to_owned();
                    return self.dead("attempts_exhausted", n, error);
                }
                Ok(n) => counted = n,
                Err(error) => return self.unknown(error),
            }
        }
        let limit = self.options.handler_timeout * 2 + DATABASE;
        let attempt = self.attempt(client, message, &operation, counted > 0);
        let ended = match tokio::time::timeout(limit, attempt).await {
            Ok(ended) => ended,
            Err(_) => Err(Attempt::Database(format!("no answer within {limit:?}"))),
        };
        match ended {
            Ok(outcome) => {
                metrics::message(consumer, outcome);
                if outcome == "duplicate" && message.redelivered {
                    metrics::acknowledgement_lost(consumer);
                }
                Verdict::Ack
            }
            Err(Attempt::Failed(error)) => {
                self.failed(client, operation.key(), error, "failed").await
            }
            Err(Attempt::Refused { code, error }) => self.dead(code, counted, error),
            Err(Attempt::Hung) => Verdict::Hung {
                key: operation.key().to_owned(),
                error: format!(
                    "the handler took longer than {:?}",
                    self.options.handler_timeout
                ),
            },
            Err(Attempt::Database(error)) => self.unknown(error),
        }
    }

    /// Counts an attempt that failed, in a transaction of its own; the last one ends in the dead-letter queue.
    pub async fn failed(
        &self,
        client: &Client,
        key: &str,
        error: String,
        why: &'static str,
    ) -> Verdict {
        match self.counted(client, key, &error).await {
            Ok(n) if n >= self.options.max_attempts => self.dead("attempts_exhausted", n, error),
            Ok(n) => {
                metrics::retry(self.inbox.consumer(), why);
                Verdict::Later { attempts: n }
            }
            Err(error) => self.unknown(error),
        }
    }

    async fn counted(&self, client: &Client, key: &str, error: &str) -> Result<u32, String> {
        match tokio::time::timeout(DATABASE, self.inbox.fail(client, key, error)).await {
            Ok(counted) => counted.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {DATABASE:?}")),
        }
    }

    fn dead(&self, code: &'static str, attempts: u32, error: String) -> Verdict {
        metrics::dead_lettered(self.inbox.consumer(), code);
        Verdict::DeadLetter(Reason {
            code,
            attempts,
            error,
        })
    }

    pub fn unknown(&self, error: String) -> Verdict {
        metrics::retry(self.inbox.consumer(), "database");
        Verdict::Unknown(error)
    }

    async fn attempt(
        &self,
        client: &mut Client,
        message: &Message,
        operation: &Operation,
        was_counted: bool,
    ) -> Result<&'static str, Attempt> {
        let transaction = client.transaction().await?;
        match self.inbox.claim(&transaction, operation).await? {
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
                return Err(Attempt::Refused {
                    code: "conflict",
                    error: format!(
                        "{} was applied before with another type, content type or body",
                        operation.key()
                    ),
                });
            }
            Claimed::InDoubt => {
                transaction.rollback().await?;
                return Err(Attempt::Refused {
                    code: "in_doubt",
                    error: format!(
                        "an external effect of {} was begun and never recorded",
                        operation.key()
                    ),
                });
            }
        }
        self.handle(transaction, message, operation, was_counted)
            .await
    }

    async fn handle(
        &self,
        transaction: Transaction<'_>,
        message: &Message,
        operation: &Operation,
        was_counted: bool,
    ) -> Result<&'static str, Attempt> {
        let began = Instant::now();
        let handling = self.handler.handle(message, &transaction);
        let handled = tokio::time::timeout(self.options.handler_timeout, handling).await;
        metrics::handled(self.inbox.consumer(), began.elapsed());
        match handled {
            Err(_) => Err(Attempt::Hung),
            Ok(Ok(reply)) => {
                if let Some(bytes) = reply.0 {
                    self.inbox
                        .complete_with(&transaction, operation, &bytes, "application/json")
                        .await?;
                }
                if was_counted {
                    self.inbox.forgive(&transaction, operation.key()).await?;
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
                        code: "rejected",
                        error,
                    },
                    Failure::InDoubt(_) => Attempt::Refused {
                        code: "in_doubt",
                        error,
                    },
                })
            }
        }
    }
}

/// How an attempt did not succeed.
enum Attempt {
    Failed(String),
    Refused { code: &'static str, error: String },
    Hung,
    Database(String),
}

impl From<InboxError> for Attempt {
    fn from(error: InboxError) -> Self {
        match error {
            InboxError::Database(error) => Self::from(error),
            other => Self::Refused {
                code: "result_invalid",
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
