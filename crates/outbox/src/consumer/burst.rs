//! Messages that are there already, one transaction after the other, with fewer round trips: the commit of a message is
//! sent together with the next one's BEGIN and claim.
//!
//! Each message still has a transaction of its own, is acknowledged only after its commit, and the next handler runs
//! only after that. BEGIN stands on its own between the two: should the commit fail, whether its transaction is over
//! then or not, the claim behind it is in a transaction that is never committed. Without it, that claim would be
//! committed by itself, and its message lost.
//!
//! Only new messages take part. What may have been tried before, is skipped, or fails is left to the loop around it.

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

/// A message that may take part.
pub(super) struct Fresh {
    pub held: Held,
    pub operation: Operation,
}

impl<H: Handler> Process<'_, H> {
    /// The operation of a message that may take part.
    pub fn fresh(&self, message: &Message) -> Option<Operation> {
        if message.redelivered || self.skips(message) || self.unreadable(message).is_some() {
            return None;
        }
        self.handler.operation(message).ok()
    }
}

/// What a burst leaves to the loop around it.
#[derive(Default)]
pub(super) struct Rest {
    /// The last one that was tried, and what is to become of it.
    pub judged: Option<(Held, Verdict)>,
    /// Taken from the deliveries, and not tried.
    pub untried: Option<Held>,
}

impl<H: Handler> Worker<H> {
    /// Goes on with what is delivered already, and what `may` be tried now; until `due`, when a key that waits has its
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
        // `fresh` is counted as one that is tried beside others, so until it is dropped no suspect begins.
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
                // Polled in this order, and so sent in this order. The acknowledgement does not wait for the claim,
                // which may wait for another consumer.
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

/// Within the limit of a whole attempt.
async fn within<T, H: Handler>(
    process: &Process<'_, H>,
    work: impl Future<Output = Result<T, Attempt>>,
) -> Result<T, Attempt> {
    let limit = process.limit();
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Attempt::no_answer(limit)))
}

/// Within what the end of a transaction may take.
async fn bounded(work: impl Future<Output = Result<(), Attempt>>) -> Result<(), Attempt> {
    timeout(DATABASE, work)
        .await
        .unwrap_or_else(|_| Err(Attempt::no_answer(DATABASE)))
}
