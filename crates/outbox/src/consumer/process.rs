//! One message: claim → handler → commit, and what its acknowledgement will be.

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

/// For what the database does around the handler, in all. A claim also waits for a handler that holds the same key.
pub(super) const DATABASE: Duration = Duration::from_secs(10);

/// How often a message is counted beside others before it is tried alone.
const SUSPICIOUS: u32 = 1;

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
    /// The attempt failed, and its connection is not to be used again: a statement of it may still run, or the server
    /// ended it. It is to be counted on another one.
    Uncounted {
        key: String,
        error: String,
        why: &'static str,
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

impl<'a, H: Handler> Process<'a, H> {
    pub fn of(shared: &'a Shared<H>) -> Self {
        Self {
            handler: &shared.handler,
            inbox: &shared.inbox,
            options: &shared.options,
        }
    }

    /// `attempts` were counted for this delivery before; what is counted here is added at once, and stays whatever the
    /// verdict is.
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
        // A message that kills its consumer never gets to count its failure. So a redelivered one is counted before
        // any code of the service sees it; that it may never have been tried before makes this a limit, and not a number
        // of failures. Once a delivery: how often the database could not be asked says nothing about the message.
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

    /// The attempt that was counted before it was made has ended: it no longer speaks against the message. A failure is
    /// the one that was counted, and not one more. What could not be written only costs a try alone.
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

    /// Whether a message that came again is to be tried alone, and how often it was counted.
    pub async fn suspicion(
        &self,
        client: &Client,
        message: &Message,
    ) -> Result<Option<u32>, String> {
        // Tried alone at least once before it is given up.
        let limit = SUSPICIOUS.min(self.options.max_attempts - 1);
        let name = message.name();
        let counted = self.inbox.attempts_ending_with(client, &name, UNENDED);
        match tokio::time::timeout(DATABASE, counted).await {
            Ok(Ok(n)) => Ok((n >= limit).then_some(n)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {DATABASE:?}")),
        }
    }

    /// A message was given up; that it may have killed its consumer is over. What could not be written only costs a
    /// start with one message at a time.
    pub async fn given_up(&self, client: &Client, message: &Message, reason: &Reason) {
        let said = format!("dead-lettered ({}): {}", reason.code, reason.error);
        let name = message.name();
        let replaced = self.inbox.ended_with(client, &name, &said);
        let _ = tokio::time::timeout(DATABASE, replaced).await;
    }

    /// Why a message is given up before it is looked at: its key, its position or its replay mark may not be what they were.
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

    /// For a claim, a handler and a commit.
    pub fn limit(&self) -> Duration {
        self.options.handler_timeout * 2 + DATABASE
    }

    /// What becomes of the delivery, after the transaction has ended. `counted` attempts failed before.
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
                    // Where the server ended the session under the handler: without a count it would be tried for ever.
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

    /// Counts an attempt that failed, in a transaction of its own; the last one ends in the dead-letter queue.
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

    /// Does what the claim says, and leaves the transaction to be ended.
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
    /// What is acknowledged is gone from the broker, so its effect must be on disk here.
    ///
    /// PostgreSQL answers COMMIT with success also where a statement failed before and the handler went on, and rolls
    /// back: the message would be acknowledged, and lost. So a statement that fails then stands before it, and is
    /// what stops a COMMIT whose result was not stored.
    pub async fn end(
        &self,
        statements: &Statements,
        transaction: &Transaction<'_>,
        operation: &Operation,
        applied: &Applied,
    ) -> Result<(), Attempt> {
        let ending = transaction.batch_execute(match applied.outcome {
            Outcome::First => statements.commit(),
            // That it was passed over is remembered.
            Outcome::Stale => "COMMIT",
            Outcome::Duplicate => "ROLLBACK",
        });
        let Some(result) = &applied.result else {
            return Ok(ending.await?);
        };
        // One that is refused before it is sent would let the COMMIT pass.
        within_cap(result.len())?;
        let complete = statements.complete(self.inbox, transaction, operation, result);
        // Polled in this order, and so sent in this order.
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
            // Nothing of it can be committed any more, and that is known: no COMMIT was sent.
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
