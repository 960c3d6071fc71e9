//! Processes one message: claim → handler → commit, and the verdict about its acknowledgement.

use std::time::{Duration, Instant};

use futures_util::future::join;
use tokio_postgres::{Client, Transaction};

use super::{
    ConsumerOptions, Failure, Handler, Message, ReplayPolicy, Reply,
    attempt::{Applied, Attempt, Outcome, UNENDED, ended},
    dead_letter::Reason,
    session::{Session, Statements},
    shared::Shared,
};
use crate::{
    inbox::{Claimed, Inbox, Operation, within_cap},
    metrics,
};

/// Time limit for all database work around the handler. A claim also waits for a handler that holds the same key.
pub(super) const DATABASE: Duration = Duration::from_secs(10);

/// How often a message is counted beside others before it is tried alone.
const SUSPICIOUS: u32 = 1;

/// The verdict about a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Acknowledge: the effect is committed, or there is none.
    Ack,
    /// Try again, after the back-off of this many attempts.
    Later {
        attempts: u32,
    },
    DeadLetter(Reason),
    /// The attempt failed, and its connection must not be used again: one of its statements may still run, or the server ended
    /// the session. Count the attempt on another connection.
    Uncounted {
        key: String,
        error: String,
        why: &'static str,
    },
    /// The database did not answer: nothing is known, and no attempt is counted. The connection must not be used again.
    Unknown(String),
}

/// Everything that processes a message, except the connection.
pub(super) struct Process<'a, H> {
    pub handler: &'a H,
    pub inbox: &'a Inbox,
    pub options: &'a ConsumerOptions,
}

impl<'a, H: Handler> Process<'a, H> {
    pub fn of(shared: &'a Shared<H>) -> Self {
        Self {
            handler: &shared.handler,
            inbox: &shared.inbox,
            options: &shared.options,
        }
    }

    /// `attempts` is the count for this delivery so far. This function adds its own count at once, and the count stays, whatever
    /// the verdict.
    pub async fn message(
        &self,
        session: &mut Session,
        message: &Message,
        attempts: &mut u32,
    ) -> Verdict {
        if let Some((code, error)) = self.unreadable(message) {
            return self.dead(code, 0, error);
        }
        if self.skips(message) {
            metrics::message(self.inbox.consumer(), "replay_skipped");
            return Verdict::Ack;
        }
        // A message that kills its consumer never counts its failure. So the runner counts a redelivered message before any
        // code of the service sees it. Such a message may never have been tried before, so the count is a limit and not the
        // number of failures. It counts once for each delivery: a database that does not answer says nothing about the message.
        let counted = message.redelivered && *attempts == 0;
        if counted {
            match self
                .counted(&session.client, &message.name(), UNENDED)
                .await
            {
                Ok(n) if n > self.options.max_attempts => {
                    let error = "delivered again and again: it may kill its consumer".to_owned();
                    return self.dead("attempts_exhausted", n, error);
                }
                Ok(n) => *attempts = n,
                Err(error) => return self.unknown(error),
            }
        }
        let operation = match self.handler.operation(message) {
            Ok(operation) => operation,
            Err(error) => return self.dead("message_id_invalid", 0, error.to_string()),
        };
        let limit = self.limit();
        let attempt = self.attempt(session, message, &operation, *attempts > 0);
        let ended = match tokio::time::timeout(limit, attempt).await {
            Ok(ended) => ended,
            Err(_) => Err(Attempt::no_answer(limit)),
        };
        let client = &session.client;
        if counted && let Some(verdict) = self.survived(client, message, &operation, &ended).await {
            return verdict;
        }
        self.conclude(client, message, &operation, ended, *attempts)
            .await
    }

    /// An attempt that was counted in advance has ended, so it no longer makes the message suspect. If the attempt failed, the
    /// advance count is its count. If this cannot be written, the only cost is that the message is tried alone.
    async fn survived(
        &self,
        client: &Client,
        message: &Message,
        operation: &Operation,
        ended: &Result<Outcome, Attempt>,
    ) -> Option<Verdict> {
        let name = message.name();
        match ended {
            Ok(Outcome::First) => None,
            Ok(Outcome::Duplicate | Outcome::Stale) => {
                let forgiven = self.inbox.forgive_in(client, &name);
                let _ = tokio::time::timeout(DATABASE, forgiven).await;
                None
            }
            Err(Attempt::Failed(error)) => {
                let replaced = self.inbox.ended_with(client, &name, error);
                match tokio::time::timeout(DATABASE, replaced).await {
                    Ok(Ok(n)) if name == operation.key() => {
                        Some(self.after(n, error.clone(), "failed"))
                    }
                    _ => None,
                }
            }
            Err(_) => None,
        }
    }

    /// Whether a redelivered message must be tried alone, and its count.
    pub async fn suspicion(
        &self,
        client: &Client,
        message: &Message,
    ) -> Result<Option<u32>, String> {
        // A message is tried alone at least once before it is given up.
        let limit = SUSPICIOUS.min(self.options.max_attempts - 1);
        let name = message.name();
        let counted = self.inbox.attempts_ending_with(client, &name, UNENDED);
        match tokio::time::timeout(DATABASE, counted).await {
            Ok(Ok(n)) => Ok((n >= limit).then_some(n)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {DATABASE:?}")),
        }
    }

    /// A message was given up, so it is no longer suspected of killing its consumer. If this cannot be written, the only cost is
    /// a start with one message at a time.
    pub async fn given_up(&self, client: &Client, message: &Message, reason: &Reason) {
        let said = format!("dead-lettered ({}): {}", reason.code, reason.error);
        let name = message.name();
        let replaced = self.inbox.ended_with(client, &name, &said);
        let _ = tokio::time::timeout(DATABASE, replaced).await;
    }

    /// The reason to give a message up before its handler sees it: its key, its position or its replay mark may be wrong.
    pub fn unreadable(&self, message: &Message) -> Option<(&'static str, String)> {
        if let Some(removed) = message.removed() {
            let why = format!("nested too deep, unreadable or too large, and left out: {removed}");
            return Some(("headers_unreadable", why));
        }
        let name = message.invalid_header()?;
        Some((
            "headers_invalid",
            format!("{name} is not what a relay writes"),
        ))
    }

    pub fn skips(&self, message: &Message) -> bool {
        message.is_replay() && self.options.replay == ReplayPolicy::Skip
    }

    /// Time limit for a claim, a handler and a commit.
    pub fn limit(&self) -> Duration {
        self.options.handler_timeout * 2 + DATABASE
    }

    /// The verdict, after the transaction has ended. `counted` attempts failed before.
    pub async fn conclude(
        &self,
        client: &Client,
        message: &Message,
        operation: &Operation,
        ended: Result<Outcome, Attempt>,
        counted: u32,
    ) -> Verdict {
        match ended {
            Ok(outcome) => {
                self.count(message, outcome);
                Verdict::Ack
            }
            Err(Attempt::Failed(error)) => {
                let key = operation.key();
                match self.counted(client, key, &error).await {
                    Ok(n) => self.after(n, error, "failed"),
                    // The server ended the session while the handler ran: without a count the message would be tried forever.
                    Err(_) => Verdict::Uncounted {
                        key: key.to_owned(),
                        error,
                        why: "failed",
                    },
                }
            }
            Err(Attempt::Refused { code, error }) => self.dead(code, counted, error),
            Err(Attempt::Hung) => Verdict::Uncounted {
                key: operation.key().to_owned(),
                why: "timed_out",
                error: format!(
                    "the handler took longer than {:?}",
                    self.options.handler_timeout
                ),
            },
            Err(Attempt::Database(error)) => self.unknown(error),
        }
    }

    pub fn count(&self, message: &Message, outcome: Outcome) {
        let consumer = self.inbox.consumer();
        metrics::message(consumer, outcome.name());
        if outcome == Outcome::Duplicate && message.redelivered {
            metrics::acknowledgement_lost(consumer);
        }
    }

    /// Counts a failed attempt, in a transaction of its own. After the last attempt the message goes to the dead-letter queue.
    pub async fn failed(
        &self,
        client: &Client,
        key: &str,
        error: String,
        why: &'static str,
    ) -> Verdict {
        match self.counted(client, key, &error).await {
            Ok(n) => self.after(n, error, why),
            Err(error) => self.unknown(error),
        }
    }

    fn after(&self, attempts: u32, error: String, why: &'static str) -> Verdict {
        if attempts >= self.options.max_attempts {
            return self.dead("attempts_exhausted", attempts, error);
        }
        metrics::retry(self.inbox.consumer(), why);
        Verdict::Later { attempts }
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
        session: &mut Session,
        message: &Message,
        operation: &Operation,
        was_counted: bool,
    ) -> Result<Outcome, Attempt> {
        let transaction = session.client.transaction().await?;
        let statements = &session.statements;
        let claim = statements.claim(self.inbox, &transaction, operation);
        let claimed = claim.await?;
        let applied = self
            .apply(&transaction, message, operation, claimed)
            .await?;
        if was_counted && applied.outcome == Outcome::First {
            self.inbox.forgive(&transaction, operation.key()).await?;
            let name = message.name();
            if name != operation.key() {
                self.inbox.forgive(&transaction, &name).await?;
            }
        }
        self.end(statements, &transaction, operation, &applied)
            .await?;
        ended(transaction);
        Ok(applied.outcome)
    }

    /// Acts on the answer of the claim; the caller ends the transaction.
    pub async fn apply(
        &self,
        transaction: &Transaction<'_>,
        message: &Message,
        operation: &Operation,
        claimed: Claimed,
    ) -> Result<Applied, Attempt> {
        match claimed {
            Claimed::First => self.handle(transaction, message).await,
            Claimed::Duplicate(_) => Ok(Applied::nothing(Outcome::Duplicate)),
            Claimed::Stale => Ok(Applied::nothing(Outcome::Stale)),
            Claimed::Conflict => Err(Attempt::Refused {
                code: "conflict",
                error: format!(
                    "{} was applied before with another type, content type or body",
                    operation.key()
                ),
            }),
            Claimed::InDoubt => Err(Attempt::Refused {
                code: "in_doubt",
                error: format!(
                    "an external effect of {} was begun and never recorded",
                    operation.key()
                ),
            }),
        }
    }

    /// Stores the result and ends the transaction, in one round trip.
    ///
    /// The broker forgets an acknowledged message, so its effect must be on disk before.
    ///
    /// If a statement failed and the handler went on, PostgreSQL answers COMMIT with success and rolls back: the message would
    /// be acknowledged, and lost. So the runner sends a statement before COMMIT that fails in a failed transaction. It also
    /// prevents a COMMIT whose result was not stored.
    pub async fn end(
        &self,
        statements: &Statements,
        transaction: &Transaction<'_>,
        operation: &Operation,
        applied: &Applied,
    ) -> Result<(), Attempt> {
        let ending = transaction.batch_execute(match applied.outcome {
            Outcome::First => statements.commit(),
            // The inbox remembers that it passed the message over.
            Outcome::Stale => "COMMIT",
            Outcome::Duplicate => "ROLLBACK",
        });
        let Some(result) = &applied.result else {
            return Ok(ending.await?);
        };
        // Check the size here: if the driver refused the statement before sending it, the COMMIT would still pass.
        within_cap(result.len())?;
        let complete = statements.complete(self.inbox, transaction, operation, result);
        // The futures are polled, and so sent, in this order.
        let (completed, ended) = join(complete, ending).await;
        completed?;
        Ok(ended?)
    }

    async fn handle(
        &self,
        transaction: &Transaction<'_>,
        message: &Message,
    ) -> Result<Applied, Attempt> {
        let began = Instant::now();
        let handling = self.handler.handle(message, transaction);
        let handled = tokio::time::timeout(self.options.handler_timeout, handling).await;
        metrics::handled(self.inbox.consumer(), began.elapsed());
        match handled {
            Err(_) => Err(Attempt::Hung),
            // No COMMIT was sent, so it is known that nothing is committed.
            Ok(Ok(_)) if transaction.client().is_closed() => Err(Attempt::Failed(
                "the database session ended while the handler ran".to_owned(),
            )),
            Ok(Ok(Reply(result))) => Ok(Applied {
                outcome: Outcome::First,
                result,
            }),
            Ok(Err(failure)) => {
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
