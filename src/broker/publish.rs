//! Publish: takes a wave, and returns each of its messages with its answer.
//!
//! **Pairs.** A message and its answer are never separated. A wave is one list of pairs, and each publish in flight
//! carries its message. With separate lists, a missing entry would shift the answers, and a message that was never
//! published would be marked as sent.
//!
//! **The barrier.** lapin attaches a `basic.return` to the confirm that completes next. With several publishes in
//! flight, an unroutable message can therefore look like a clean ack. The broker sends a message's return before its
//! ack (<https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>), so once *every* confirm of a wave has
//! arrived, every return has arrived too. Only then are answers decided: delivered = acked − returned, matched by
//! message id, exchange and routing key. An incomplete wave yields no answers.
//!
//! **One channel, one task.** Both sides count delivery tags. Two tasks that publish on one channel could be counted in
//! different orders. Each publish of a wave is polled once, in order, before any of them is awaited.
//!
//! **Culprits.** A missing exchange, a refused write or an impossible message closes the channel, and the answers of
//! all other messages on it are lost. So each message that may be refused goes alone on its own channel, up to sixteen
//! at a time. Messages whose destination has taken a message go together ([`Destinations`]). If their channel closes
//! anyway, they are published again, and the messages that the broker's text names go alone. So each message bears only
//! its own refusal.
//!
//! **Twins.** A return names a message by its id, exchange and routing key. Two messages of a wave that share all three
//! are published one after the other.
//!
//! **Failures.** After a timeout, or on a lost or blocked connection, a publish may still be delivered. The answer is
//! then `Unknown`, the link is not used again, and the messages stay pending: at most one batch of duplicates.

use std::{collections::HashMap, pin::Pin, time::Duration};

use futures_util::future::{join_all, try_join_all};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm, options::BasicPublishOptions,
    types::ShortString,
};
use outbox_core::{
    culprits::{Awaiting, Closed, Destinations, Refusals, Step, refusal},
    envelope::Envelope,
    outcome::Answer,
};
use tokio::{sync::watch, time::Instant};

use super::{
    BrokerError, Link, LinkState,
    error::closed_by_broker,
    topology::{self, Exchange},
    wire::{is_direct_reply, properties, short},
};
use crate::{config::Broker, failpoint};

pub struct Publisher {
    link: Link,
    channel: Channel,
    state: watch::Receiver<LinkState>,
    confirm_timeout: Duration,
    /// Channels for messages that go alone, besides `channel`. They are opened on demand.
    more: Vec<Channel>,
    known: Destinations,
    /// Publish one message at a time: an earlier publish closed the previous connection.
    cautious: bool,
    /// Time of the first nack on this channel.
    nacked: Option<Instant>,
}

/// Maximum number of messages that go alone at the same time, each on its own channel.
const WIDTH: usize = 16;

const OPEN_MORE: &str = "open another channel";

/// A channel is replaced if it nacks this long after its first nack.
const REFUSED: Duration = Duration::from_secs(10);

/// A wave's messages, each with its answer.
pub struct Published<T> {
    pub answered: Vec<(T, Answer)>,
    /// `Some`: the link must not be used again.
    pub lost: Option<BrokerError>,
}

/// A message in flight: its index in the wave, and its envelope.
#[derive(Clone, Copy)]
struct Placed<'a> {
    place: usize,
    envelope: &'a Envelope,
}

/// The reason why a wave or a message has no answer.
enum Unanswered {
    /// The broker closed only the channel.
    Channel(Closed),
    Lost(BrokerError),
}

/// Maximum time for which the broker may stay blocked during a wave; then the claim is given up. No claim stays open
/// during an alarm.
const BLOCKED_GRACE: Duration = Duration::from_secs(1);

impl Publisher {
    /// Connects and opens a channel. Only [`Publisher::probe`] shows whether the broker accepts publishes. `cautious`:
    /// one message at a time, until [`Publisher::trust`].
    pub async fn connect(
        broker: &Broker,
        name: &str,
        confirm_timeout: Duration,
        cautious: bool,
    ) -> Result<Self, BrokerError> {
        let link = Link::connect(broker, name).await?;
        let channel = link.confirm_channel(broker.connect_timeout).await?;
        let state = link.state();
        Ok(Self {
            link,
            channel,
            state,
            confirm_timeout,
            more: Vec::new(),
            known: Destinations::default(),
            cautious,
            nacked: None,
        })
    }

    /// A whole claim was answered, one message at a time, so the cause of the previous connection's end is gone.
    pub fn trust(&mut self) {
        self.cautious = false;
    }

    /// Publishes a message that no queue can take, and waits for its return. During an alarm a new connection is told
    /// of the alarm only when it publishes. Any answer shows that the broker reads publishes. During an alarm this
    /// waits for its end, and calls `report` with each state.
    pub async fn probe(&mut self, report: impl Fn(&LinkState)) -> Result<(), BrokerError> {
        let action = "first publish";
        let channel = self.link.confirm_channel(self.confirm_timeout).await?;
        let name = ShortString::try_new(format!("outboxd.probe.{}", uuid::Uuid::new_v4()))
            .unwrap_or_default();
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let confirm = channel.basic_publish(
            ShortString::default(),
            name,
            options,
            b"",
            BasicProperties::default(),
        );
        let mut state = self.state.clone();
        let answered = async {
            match confirm.await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            }
        };
        tokio::pin!(answered);
        loop {
            let now = state.borrow_and_update().clone();
            report(&now);
            let patience = match &now {
                LinkState::Open => self.confirm_timeout,
                // The alarm may last for hours. The heartbeat detects a connection that dies meanwhile.
                LinkState::Blocked(_) => Duration::from_secs(3600),
                LinkState::Closed(why) => {
                    return Err(BrokerError::Closed(why.clone()));
                }
            };
            tokio::select! {
                biased;
                // 1. Any answer ends the wait, even a refusal: the broker reads publishes.
                answer = &mut answered => return match answer {
                    Ok(_) => Ok(()),
                    Err(error) if closed_by_broker(&error).is_some_and(|c| !c.connection) => Ok(()),
                    Err(source) => Err(BrokerError::Amqp { action, source }),
                },
                // 2. The state changed: check it again.
                changed = state.changed() => if changed.is_err() {
                    return Err(BrokerError::Closed("its watcher ended".to_owned()));
                },
                () = tokio::time::sleep(patience) => {
                    return Err(BrokerError::Timeout { action, after: patience });
                }
            }
        }
    }

    /// Declares the exchanges that do not exist yet.
    pub async fn declare(&self, exchanges: &[String]) -> Result<(), BrokerError> {
        topology::declare(&self.link, exchanges, self.confirm_timeout).await
    }

    /// Looks whether this user may publish to an exchange. It publishes no message that a queue could take.
    pub async fn look(&self, exchange: &str, declares: bool) -> Result<Exchange, BrokerError> {
        topology::look(&self.link, exchange, declares, self.confirm_timeout).await
    }

    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    pub fn frame_max(&self) -> u32 {
        self.link.frame_max()
    }

    pub async fn close(self, within: Duration) {
        self.link.close(within).await;
    }

    /// Publishes a wave and awaits every answer until `deadline`, because the claim's transaction must not exceed the
    /// server's idle limit. Messages with one key are published in order; a failed one does not block the later ones
    /// here. A message that was not published before the deadline is `Unknown` and stays pending.
    pub async fn publish<T: AsRef<Envelope>>(
        &mut self,
        wave: Vec<T>,
        deadline: Instant,
    ) -> Published<T> {
        let mut wave: Vec<Awaiting<T>> = wave.into_iter().map(Awaiting::new).collect();
        let published = self.publish_wave(&mut wave, deadline).await;
        let nacked = |awaiting: &Awaiting<T>| awaiting.answer == Some(Answer::Nacked);
        let lost = match published {
            Ok(()) if wave.iter().any(nacked) => self.nacked().await.err(),
            published => published.err(),
        };
        let answered = wave.into_iter().map(|Awaiting { message, answer }| {
            let answer = answer.unwrap_or(Answer::Unknown);
            (message, answer)
        });
        Published {
            answered: answered.collect(),
            lost,
        }
    }

    /// A full queue nacks, and accepts messages again on the same channel. But a channel that was opened while the
    /// leader of a quorum queue was away can keep asking the lost node, and nack forever (seen with RabbitMQ 3.10). A
    /// new channel finds the new leader. Every message on the old channel has its answer.
    async fn nacked(&mut self) -> Result<(), BrokerError> {
        if self.nacked.get_or_insert_with(Instant::now).elapsed() < REFUSED {
            return Ok(());
        }
        tracing::warn!("the broker still nacks; going on with a new channel");
        let close = self.channel.close(200, "nacked".into());
        // The old channel's close may fail or time out; the connection stays in use.
        let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
        self.channel = self.link.confirm_channel(self.confirm_timeout).await?;
        self.more.clear();
        self.nacked = None;
        Ok(())
    }

    async fn publish_wave<T: AsRef<Envelope>>(
        &mut self,
        wave: &mut [Awaiting<T>],
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let mut refused = Refusals::default();
        let mut closings = 0;
        let mut singly = self.cautious;
        let width = if self.cautious { 1 } else { WIDTH };
        // Remaining messages stay pending. A step that the deadline interrupts would cost the connection.
        let last = deadline.checked_sub(self.confirm_timeout);
        let mut steps = 0;
        while steps == 0 || last.is_some_and(|last| Instant::now() < last) {
            steps += 1;
            let Step { together, alone } = Step::next(wave, &self.known, &refused, singly, width);
            if together.is_empty() && alone.is_empty() {
                break;
            }
            let together = placed(wave, &together);
            // A cautious link trusts only destinations that it has proven itself; all others go alone.
            match self.pipelined(&self.channel, &together, deadline).await {
                Ok(found) => {
                    for (place, answer) in found {
                        wave[place].answer = Some(answer);
                    }
                }
                Err(Unanswered::Lost(error)) => return Err(error),
                Err(Unanswered::Channel(closed)) => {
                    tracing::warn!(
                        code = closed.code,
                        reason = &*closed.text,
                        messages = together.len(),
                        "the broker closed the channel; publishing the batch again to find the message"
                    );
                    self.channel = self.link.confirm_channel(self.confirm_timeout).await?;
                    closings += 1;
                    let envelopes: Vec<&Envelope> = together.iter().map(|p| p.envelope).collect();
                    // A second close contradicts the broker's explanation of the first one, so then each message goes
                    // alone.
                    singly = !self.known.closed(&envelopes, &closed) || closings > 1;
                    continue;
                }
            }
            self.singly(wave, &alone, deadline, &mut refused).await?;
        }
        Ok(())
    }

    /// Publishes each message on its own channel: if a channel closes, its message is the cause.
    async fn singly<T: AsRef<Envelope>>(
        &mut self,
        wave: &mut [Awaiting<T>],
        chosen: &[usize],
        deadline: Instant,
        refused: &mut Refusals,
    ) -> Result<(), BrokerError> {
        if chosen.is_empty() {
            return Ok(());
        }
        // No publish on the wave's own channel is in flight now, so the channel can be used here.
        let mut channels = vec![self.channel.clone()];
        let missing = (chosen.len() - 1).saturating_sub(self.more.len());
        let opening = (0..missing).map(|_| self.link.confirm_channel(self.confirm_timeout));
        let opened = try_join_all(opening).await.map_err(|error| match error {
            BrokerError::Amqp { source, .. } => BrokerError::Amqp {
                action: OPEN_MORE,
                source,
            },
            other => other,
        })?;
        self.more.extend(opened);
        channels.append(&mut self.more);
        let mut channels = channels.into_iter();
        let chosen = placed(wave, chosen).into_iter().zip(channels.by_ref());
        let publishing = chosen.map(|(placed, channel)| {
            let this = &*self;
            async move {
                let alone = this.pipelined(&channel, &[placed], deadline).await;
                (placed, channel, alone)
            }
        });
        let published = join_all(publishing).await;

        let mut lost = None;
        let mut answers = Vec::with_capacity(published.len());
        for (nth, (Placed { place, envelope }, channel, alone)) in published.into_iter().enumerate()
        {
            let is_own = nth == 0;
            let closed = match alone {
                Ok(found) => {
                    self.known.took(envelope);
                    answers.extend(found);
                    if !is_own {
                        self.more.push(channel);
                    }
                    continue;
                }
                Err(Unanswered::Channel(closed)) => {
                    if is_own {
                        match self.link.confirm_channel(self.confirm_timeout).await {
                            Ok(channel) => self.channel = channel,
                            Err(error) => lost = lost.or(Some(error)),
                        }
                    }
                    closed
                }
                Err(Unanswered::Lost(BrokerError::Amqp { action, source })) => {
                    // A cautious relay publishes one message at a time, so this message closed the connection.
                    match closed_by_broker(&source) {
                        Some(closed) if self.cautious && is_offence(&closed) => closed,
                        _ => {
                            lost = lost.or(Some(BrokerError::Amqp { action, source }));
                            continue;
                        }
                    }
                }
                Err(Unanswered::Lost(error)) => {
                    lost = lost.or(Some(error));
                    continue;
                }
            };
            self.known.refused(envelope, &closed);
            refused.add(envelope, &closed);
            answers.push((place, refusal(&closed)));
        }
        for (place, answer) in answers {
            wave[place].answer = Some(answer);
        }
        self.more.extend(channels);
        match lost {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    async fn pipelined(
        &self,
        channel: &Channel,
        wave: &[Placed<'_>],
        deadline: Instant,
    ) -> Result<Vec<(usize, Answer)>, Unanswered> {
        if wave.is_empty() {
            return Ok(Vec::new());
        }
        let mut state = self.state.clone();
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = left.min(self.confirm_timeout);
        let answered = answers(channel, wave);
        tokio::select! {
            biased;
            // 1. A complete wave counts, even if the connection failed after it.
            answers = answered => answers,
            // 2. No claim stays open during an alarm.
            why = blocked(&mut state) => Err(Unanswered::Lost(BrokerError::Blocked(why))),
            // 3. Confirms may never arrive: the queue was deleted, or the network lost them.
            () = tokio::time::sleep(patience) => Err(Unanswered::Lost(BrokerError::Timeout {
                action: "await confirms",
                after: patience,
            })),
        }
    }
}

/// Whether the relay's own publishes caused the close, as opposed to an operator or a shutdown.
pub fn provoked(error: &BrokerError) -> bool {
    match error {
        // The user may open only a few channels; a cautious link needs one.
        BrokerError::Amqp {
            action: OPEN_MORE, ..
        } => true,
        BrokerError::Amqp { source, .. } => {
            closed_by_broker(source).is_some_and(|closed| is_offence(&closed))
        }
        _ => false,
    }
}

/// Frame, syntax, command and similar errors. 320 (forced), 402 and 530 do not concern one message.
/// <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>
fn is_offence(closed: &Closed) -> bool {
    closed.connection && matches!(closed.code, 501..=506 | 540 | 541)
}

async fn blocked(state: &mut watch::Receiver<LinkState>) -> String {
    loop {
        let why = match &*state.borrow_and_update() {
            LinkState::Blocked(why) => Some(why.clone()),
            LinkState::Open | LinkState::Closed(_) => None,
        };
        match why {
            None => {
                if state.changed().await.is_err() {
                    // The confirms report the end of the link.
                    std::future::pending::<()>().await;
                }
            }
            Some(why) => {
                if tokio::time::timeout(BLOCKED_GRACE, state.changed())
                    .await
                    .is_err()
                {
                    return why;
                }
            }
        }
    }
}

fn placed<'a, T: AsRef<Envelope>>(wave: &'a [Awaiting<T>], places: &[usize]) -> Vec<Placed<'a>> {
    let at = |place: &usize| Placed {
        place: *place,
        envelope: wave[*place].envelope(),
    };
    places.iter().map(at).collect()
}

/// A publish that was polled once, and its confirm if that poll returned one.
struct InFlight<'a, F> {
    message: Placed<'a>,
    publish: Pin<Box<F>>,
    confirm: Option<PublisherConfirm>,
}

/// The answer of each message.
async fn answers(
    channel: &Channel,
    wave: &[Placed<'_>],
) -> Result<Vec<(usize, Answer)>, Unanswered> {
    let unanswered = |source: lapin::Error| match closed_by_broker(&source) {
        Some(closed) if !closed.connection => Unanswered::Channel(closed),
        _ => Unanswered::Lost(BrokerError::Amqp {
            action: "publish",
            source,
        }),
    };
    let mut in_flight = Vec::with_capacity(wave.len());
    for message in wave.iter().copied() {
        let mut publish = Box::pin(send(channel, message.envelope));
        let confirm = match futures_util::poll!(&mut publish) {
            std::task::Poll::Ready(confirm) => Some(confirm.map_err(unanswered)?),
            std::task::Poll::Pending => None,
        };
        in_flight.push(InFlight {
            message,
            publish,
            confirm,
        });
    }
    failpoint::reach("publish.after_send").await;
    for one in &mut in_flight {
        if one.confirm.is_none() {
            one.confirm = Some(one.publish.as_mut().await.map_err(unanswered)?);
        }
    }
    let mut confirmed = Vec::with_capacity(wave.len());
    let mut returned: HashMap<(String, String, String), (u16, String)> = HashMap::new();
    for one in in_flight {
        let Some(confirm) = one.confirm else {
            continue;
        };
        let (ack, message) = match confirm.await.map_err(unanswered)? {
            Confirmation::Ack(message) => (true, message),
            Confirmation::Nack(message) => (false, message),
            // Unreachable, because the channel is always in confirm mode. Without a confirm the message counts as
            // nacked.
            Confirmation::NotRequested => (false, None),
        };
        confirmed.push((one.message, ack));
        if let Some(message) = message {
            let id = message.properties.message_id().as_ref();
            let id = id.map(ToString::to_string).unwrap_or_default();
            let (exchange, key) = (&message.delivery.exchange, &message.delivery.routing_key);
            returned.insert(
                (id, exchange.to_string(), key.to_string()),
                (message.reply_code, message.reply_text.to_string()),
            );
        }
    }
    let answer = |(Placed { place, envelope }, ack): (Placed<'_>, bool)| {
        let returned = if returned.is_empty() {
            None
        } else {
            let id = envelope.properties.message_id.clone();
            returned.get(&(id, envelope.exchange.clone(), envelope.routing_key.clone()))
        };
        let answer = match returned {
            Some((code, text)) => Answer::Unroutable {
                code: *code,
                text: unroutable(text, envelope),
            },
            None if ack => Answer::Delivered,
            None => Answer::Nacked,
        };
        (place, answer)
    };
    Ok(confirmed.into_iter().map(answer).collect())
}

/// RabbitMQ's text is NO_ROUTE, and says no more.
fn unroutable(text: &str, envelope: &Envelope) -> String {
    let (exchange, key) = (&envelope.exchange, &envelope.routing_key);
    if exchange.is_empty() {
        format!("{text}: there is no queue '{key}'")
    } else {
        format!("{text}: no queue is bound to exchange '{exchange}' for routing key '{key}'")
    }
}

async fn send(channel: &Channel, envelope: &Envelope) -> Result<PublisherConfirm, lapin::Error> {
    let options = BasicPublishOptions {
        mandatory: envelope.mandatory && !is_direct_reply(envelope),
        ..BasicPublishOptions::default()
    };
    channel
        .basic_publish(
            short(&envelope.exchange),
            short(&envelope.routing_key),
            options,
            &envelope.body,
            properties(envelope),
        )
        .await
}
