//! Processes messages that have arrived already, one transaction after the other, with fewer round trips: it sends the commit
//! of a message together with BEGIN and claim of the next message.
//!
//! Each message still has a transaction of its own. The runner acknowledges it only after its commit, and runs the next
//! handler only after that. BEGIN is a statement of its own between commit and claim. If the commit fails, the claim after it
//! is in a transaction that is never committed, whether or not the failed transaction has ended. Without BEGIN that claim
//! would commit by itself, and its message would be lost.
//!
//! A burst takes new messages only. The loop around it handles messages that may have been tried before, are skipped, or fail.

use std::sync::Arc;

use futures_util::future::join;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::{
    ConsumerError, Handler, Message,
    attempt::{Attempt, ended},
    held::Held,
    process::{DATABASE, Process, Verdict},
    session::Session,
    trace,
    worker::Worker,
};
use crate::inbox::Operation;

/// A message that a burst may take.
pub(super) struct Fresh {
    pub held: Held,
    pub operation: Operation,
}

impl<H: Handler> Process<'_, H> {
    /// The operation of the message, if a burst may take the message.
    pub fn fresh(&self, message: &Message) -> Option<Operation> {
        if message.redelivered || self.skips(message) || self.unreadable(message).is_some() {
            return None;
        }
        self.handler.operation(message).ok()
    }
}

/// Messages that a burst leaves to the loop around it.
#[derive(Default)]
pub(super) struct Rest {
    /// The last message that was tried, and its verdict.
    pub judged: Option<(Held, Verdict)>,
    /// A message that was taken from the deliveries and not tried.
    pub untried: Option<Held>,
}

impl<H: Handler> Worker<H> {
    /// Processes messages that are delivered already and that `may` be tried now. It ends at `due`, when it is a waiting key's
    /// turn.
    pub(super) async fn burst(
        &mut self,
        session: &mut Option<Session>,
        fresh: Fresh,
        due: Option<Instant>,
        may: impl Fn(&Held) -> bool,
    ) -> Result<Rest, ConsumerError> {
        let shared = self.shared.clone();
        let process = Process::of(&shared);
        // `fresh` counts as a message that is tried beside others, so no suspect begins until it is dropped.
        let settled = Arc::clone(&self.settled);
        let mut rest = Rest::default();
        let Session { client, statements } = match self.connected(session).await {
            Ok(session) => session,
            Err(error) => {
                rest.judged = Some((fresh.held, process.unknown(error)));
                return Ok(rest);
            }
        };
        let mut current = fresh;
        let result = 'burst: {
            let opened = within(&process, async {
                let transaction = client.transaction().await?;
                let claimed = statements.claim(process.inbox, &transaction, &current.operation);
                let claimed = claimed.await?;
                Ok((transaction, claimed))
            });
            let (transaction, mut claimed) = match opened.await {
                Ok(opened) => opened,
                Err(error) => break 'burst Err(error),
            };
            loop {
                let Fresh { held, operation } = &current;
                let span = trace::span(process.inbox.consumer(), &held.message);
                let applied = process.apply(&transaction, &held.message, operation, claimed);
                let applied = match within(&process, applied.instrument(span)).await {
                    Ok(applied) => applied,
                    Err(error) => break 'burst Err(error),
                };
                let waited_for = due.is_some_and(|due| due <= Instant::now());
                let next = if waited_for || self.stop.is_cancelled() {
                    None
                } else {
                    self.next(&process, &may, &mut rest)
                };
                let Some(next) = next else {
                    let end = process.end(statements, &transaction, operation, &applied);
                    break 'burst bounded(end).await.map(|()| {
                        ended(transaction);
                        applied.outcome
                    });
                };
                // The futures are polled, and so sent, in this order. The acknowledgement does not wait for the claim, because
                // the claim may wait for another consumer.
                let end = async {
                    bounded(process.end(statements, &transaction, operation, &applied)).await?;
                    process.count(&held.message, applied.outcome);
                    Ok(held.acknowledge(&settled).await)
                };
                let opened = within(&process, async {
                    let begin = transaction.batch_execute("BEGIN");
                    let claimed = statements.claim(process.inbox, &transaction, &next.operation);
                    let (begun, claimed) = join(begin, claimed).await;
                    begun?;
                    claimed
                });
                let (end, next_claimed) = join(end, opened).await;
                match end {
                    Ok(acknowledged) => acknowledged?,
                    Err(error) => {
                        rest.untried = Some(next.held);
                        break 'burst Err(error);
                    }
                }
                if self.stop.is_cancelled() {
                    return Ok(rest);
                }
                current = next;
                claimed = match next_claimed {
                    Ok(claimed) => claimed,
                    Err(error) => break 'burst Err(error),
                };
            }
        };
        let Fresh { held, operation } = current;
        let verdict = process
            .conclude(client, &held.message, &operation, result, 0)
            .await;
        rest.judged = Some((held, verdict));
        Ok(rest)
    }

    fn next(
        &mut self,
        process: &Process<'_, H>,
        may: impl Fn(&Held) -> bool,
        rest: &mut Rest,
    ) -> Option<Fresh> {
        let held = self.deliveries.try_recv().ok()?;
        let operation = may(&held).then(|| process.fresh(&held.message)).flatten();
        if let Some(operation) = operation {
            return Some(Fresh { held, operation });
        }
        rest.untried = Some(held);
        None
    }
}

/// Runs `work` within the limit of a whole attempt.
async fn within<T, H: Handler>(
    process: &Process<'_, H>,
    work: impl Future<Output = Result<T, Attempt>>,
) -> Result<T, Attempt> {
    let limit = process.limit();
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Attempt::no_answer(limit)))
}

/// Runs `work` within the limit of a transaction's end.
async fn bounded(work: impl Future<Output = Result<(), Attempt>>) -> Result<(), Attempt> {
    timeout(DATABASE, work)
        .await
        .unwrap_or_else(|_| Err(Attempt::no_answer(DATABASE)))
}
