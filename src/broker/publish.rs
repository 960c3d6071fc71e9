//! Publish: a batch in, one answer a message out.
//!
//! **The barrier.** lapin hands a `basic.return` to whichever confirm completes next, so with several publishes in
//! flight an unroutable message can come back as a clean ack. The broker sends a message's return before its ack
//! (<https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>), so once *every* confirm of a wave is in,
//! every return is too. Only then is anything decided: delivered = acked − returned, matched by message id. A wave
//! that is not answered in full answers nothing.
//!
//! **One channel, one task.** Delivery tags are counted on both sides; publishes of two tasks on one channel would
//! be counted in different orders. Each publish of a wave is polled once, in order, before any is awaited.
//!
//! **Culprits.** A missing exchange, a refused write or an impossible message closes the channel and takes the whole
//! wave's answers with it. So the first message to an exchange that this link has not used yet goes alone, on a
//! channel of its own. If a wave's channel closes all the same, its messages are published again one by one, and
//! the one that closes the channel is the culprit; its neighbours get their own answers.
//!
//! **Failures.** After a timeout, a lost or a blocked connection, a publish may still be delivered. The answer is
//! `Unknown`, the link is not used again, and the messages stay pending: duplicates, at most a batch.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldArray, FieldTable, ShortString},
};
use tokio::{sync::watch, time::Instant};

use super::{
    BrokerError, Link, LinkState,
    error::{Closed, closed_by_broker},
    topology,
};
use crate::{config::Broker, envelope::Envelope, failpoint, header::HeaderValue, outcome::Answer};

pub struct Publisher {
    link: Link,
    channel: Channel,
    state: watch::Receiver<LinkState>,
    confirm_timeout: Duration,
    /// Exchanges that this link has published to with an answer.
    proven: HashSet<String>,
    /// One message at a time: the connection before this one was closed by what was published on it.
    cautious: bool,
    /// When this channel was first answered with a nack.
    nacked: Option<Instant>,
}

/// A channel that still nacks after this long is replaced.
const REFUSED: Duration = Duration::from_secs(10);

/// A wave's answers, in the order of its messages.
pub struct Published {
    pub answers: Vec<Answer>,
    /// The link is not to be used again.
    pub lost: Option<BrokerError>,
}

/// Why a wave, or one message, has no answer.
enum Unanswered {
    /// The broker closed the channel, and only that.
    Channel(Closed),
    Lost(BrokerError),
}

/// How long a broker may stay blocked with a wave in flight before the claim is given up. No claim is held open
/// through an alarm.
const BLOCKED_GRACE: Duration = Duration::from_secs(1);

impl Publisher {
    /// Connects and sees that the broker takes publishes: during an alarm a new connection learns of it only by
    /// publishing. Resolves once the broker answers; `Blocked` when it does not.
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
            proven: HashSet::new(),
            cautious,
            nacked: None,
        })
    }

    /// A whole claim was answered, one message at a time: what closed the connection before this one does not come back.
    pub fn trust(&mut self) {
        self.cautious = false;
    }

    /// Publishes something that no queue can take, and waits for the broker to hand it back. Whatever it answers,
    /// it reads what we publish. While an alarm is on, this waits for its end, and tells `report` of it.
    pub async fn canary(&mut self, report: impl Fn(&LinkState)) -> Result<(), BrokerError> {
        let action = "first publish";
        let channel = self.link.confirm_channel(self.confirm_timeout).await?;
        let name = ShortString::try_new(format!("outboxd.canary.{}", uuid::Uuid::new_v4()))
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
                // The alarm may last for hours; a connection that died meanwhile shows by its heartbeat.
                LinkState::Blocked(_) => Duration::from_secs(3600),
                LinkState::Closed(why) => {
                    return Err(BrokerError::Closed(why.clone()));
                }
            };
            tokio::select! {
                biased;
                // 1. The answer ends the wait, also when it is a refusal: the broker reads.
                answer = &mut answered => return match answer {
                    Ok(_) => Ok(()),
                    Err(error) if closed_by_broker(&error).is_some_and(|c| !c.connection) => Ok(()),
                    Err(source) => Err(BrokerError::Amqp { action, source }),
                },
                // 2. Blocked, unblocked or closed: look again.
                changed = state.changed() => if changed.is_err() {
                    return Err(BrokerError::Closed("its watcher ended".to_owned()));
                },
                () = tokio::time::sleep(patience) => {
                    return Err(BrokerError::Timeout { action, after: patience });
                }
            }
        }
    }

    /// Declares exchanges that may not be there yet.
    pub async fn declare(&self, exchanges: &[String]) -> Result<(), BrokerError> {
        topology::declare(&self.link, exchanges, self.confirm_timeout).await
    }

    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    pub fn is_usable(&self) -> bool {
        self.link.is_connected() && *self.state.borrow() == LinkState::Open
    }

    pub fn frame_max(&self) -> u32 {
        self.link.frame_max()
    }

    pub async fn close(self, within: Duration) {
        self.link.close(within).await;
    }

    /// Publishes a wave and awaits every answer, until `deadline` at most: the claim's transaction must not outlive
    /// the server's patience with it. The messages of a wave do not depend on each other.
    pub async fn publish(&mut self, wave: &[&Envelope], deadline: Instant) -> Published {
        let mut answers: Vec<Option<Answer>> = vec![None; wave.len()];
        let published = self.publish_wave(wave, deadline, &mut answers).await;
        let lost = match published {
            Ok(()) if answers.contains(&Some(Answer::Nacked)) => self.nacked().await.err(),
            published => published.err(),
        };
        Published {
            answers: answers
                .into_iter()
                .map(|a| a.unwrap_or(Answer::Unknown))
                .collect(),
            lost,
        }
    }

    /// A full queue nacks, and will take messages again on any channel. But a channel that was opened while the leader
    /// of a quorum queue was away can go on asking the node that is gone, and nack for ever (seen with
    /// RabbitMQ 3.10): a new channel asks anew. Every message of this one has its answer.
    async fn nacked(&mut self) -> Result<(), BrokerError> {
        if self.nacked.get_or_insert_with(Instant::now).elapsed() < REFUSED {
            return Ok(());
        }
        tracing::warn!("the broker still nacks; going on with a new channel");
        let close = self.channel.close(200, "nacked".into());
        // The connection goes on, whatever becomes of the old channel.
        let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
        self.channel = self.link.confirm_channel(self.confirm_timeout).await?;
        self.nacked = None;
        Ok(())
    }

    async fn publish_wave(
        &mut self,
        wave: &[&Envelope],
        deadline: Instant,
        answers: &mut [Option<Answer>],
    ) -> Result<(), BrokerError> {
        self.prove_exchanges(wave, deadline, answers).await?;
        let rest: Vec<usize> = (0..wave.len()).filter(|i| answers[*i].is_none()).collect();
        if rest.is_empty() {
            return Ok(());
        }
        if !self.cautious {
            let envelopes: Vec<&Envelope> = rest.iter().map(|i| wave[*i]).collect();
            match self.pipelined(&envelopes, deadline).await {
                Ok(found) => {
                    for (i, answer) in rest.into_iter().zip(found) {
                        answers[i] = Some(answer);
                    }
                    return Ok(());
                }
                Err(Unanswered::Lost(error)) => return Err(error),
                Err(Unanswered::Channel(closed)) => {
                    tracing::warn!(
                        code = closed.code,
                        reason = %closed.text.escape_debug(),
                        messages = rest.len(),
                        "the broker closed the channel; publishing the batch one by one to find the message"
                    );
                    self.proven.clear();
                    self.channel = self.link.confirm_channel(self.confirm_timeout).await?;
                }
            }
        }
        for i in rest {
            // What is left stays pending.
            if Instant::now() >= deadline {
                break;
            }
            answers[i] = Some(self.alone(wave[i], deadline).await?);
        }
        Ok(())
    }

    /// Publishes one message to each exchange that this link has not used yet, alone.
    async fn prove_exchanges(
        &mut self,
        wave: &[&Envelope],
        deadline: Instant,
        answers: &mut [Option<Answer>],
    ) -> Result<(), BrokerError> {
        let mut refused: HashMap<&str, Closed> = HashMap::new();
        for (i, envelope) in wave.iter().enumerate() {
            let exchange = envelope.exchange.as_str();
            if self.proven.contains(exchange) {
                continue;
            }
            if let Some(closed) = refused.get(exchange) {
                answers[i] = Some(refusal(closed));
                continue;
            }
            let answer = self.alone(envelope, deadline).await?;
            if let Answer::Refused { code, text } = &answer {
                // 403 and 404 speak of the exchange; anything else of this message.
                if matches!(code, 403 | 404) {
                    refused.insert(
                        exchange,
                        Closed {
                            code: *code,
                            text: text.clone(),
                            connection: false,
                        },
                    );
                }
            } else {
                self.proven.insert(envelope.exchange.clone());
            }
            answers[i] = Some(answer);
        }
        Ok(())
    }

    /// One message, awaited: whatever happens to the channel is this message's doing.
    async fn alone(
        &mut self,
        envelope: &Envelope,
        deadline: Instant,
    ) -> Result<Answer, BrokerError> {
        match self.pipelined(&[envelope], deadline).await {
            Ok(mut answers) => Ok(answers.pop().unwrap_or(Answer::Unknown)),
            Err(Unanswered::Channel(closed)) => {
                self.channel = self.link.confirm_channel(self.confirm_timeout).await?;
                Ok(refusal(&closed))
            }
            // Published alone by a relay that knows one of these messages kills connections: this is the one.
            Err(Unanswered::Lost(BrokerError::Amqp { source, .. }))
                if self.cautious && closed_by_broker(&source).is_some_and(|c| is_offence(&c)) =>
            {
                let closed = closed_by_broker(&source).map(|c| refusal(&c));
                Ok(closed.unwrap_or(Answer::Unknown))
            }
            Err(Unanswered::Lost(error)) => Err(error),
        }
    }

    async fn pipelined(
        &mut self,
        wave: &[&Envelope],
        deadline: Instant,
    ) -> Result<Vec<Answer>, Unanswered> {
        let mut state = self.state.clone();
        let channel = self.channel.clone();
        let answered = answers(&channel, wave);
        tokio::select! {
            biased;
            // 1. A complete wave counts, whatever happened to the connection after it.
            answers = answered => answers,
            // 2. No claim is held open through an alarm.
            why = blocked(&mut state) => Err(Unanswered::Lost(BrokerError::Blocked(why))),
            // 3. Confirms may never come: a queue deleted in flight, a network that lost them.
            () = tokio::time::sleep_until(deadline.min(Instant::now() + self.confirm_timeout)) => Err(Unanswered::Lost(BrokerError::Timeout {
                action: "await confirms",
                after: self.confirm_timeout,
            })),
        }
    }
}

/// A close that was provoked by what we sent, as opposed to an operator or a shutdown.
pub fn provoked(error: &BrokerError) -> bool {
    match error {
        BrokerError::Amqp { source, .. } => {
            closed_by_broker(source).is_some_and(|closed| is_offence(&closed))
        }
        _ => false,
    }
}

/// Frame, syntax, command and similar errors. 320 (forced), 402 and 530 are not about one message.
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
                    // The link's end shows in the confirms themselves.
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

async fn answers(channel: &Channel, wave: &[&Envelope]) -> Result<Vec<Answer>, Unanswered> {
    let unanswered = |source: lapin::Error| match closed_by_broker(&source) {
        Some(closed) if !closed.connection => Unanswered::Channel(closed),
        _ => Unanswered::Lost(BrokerError::Amqp {
            action: "publish",
            source,
        }),
    };
    let mut sending: Vec<Pin<Box<_>>> = Vec::with_capacity(wave.len());
    let mut sent: Vec<Option<PublisherConfirm>> = Vec::with_capacity(wave.len());
    for envelope in wave {
        let mut publish = Box::pin(send(channel, envelope));
        match futures_util::poll!(&mut publish) {
            std::task::Poll::Ready(confirm) => sent.push(Some(confirm.map_err(unanswered)?)),
            std::task::Poll::Pending => sent.push(None),
        }
        sending.push(publish);
    }
    failpoint::reach("publish.after_send").await;
    for (publish, confirm) in sending.iter_mut().zip(&mut sent) {
        if confirm.is_none() {
            *confirm = Some(publish.as_mut().await.map_err(unanswered)?);
        }
    }
    let mut acked = Vec::with_capacity(wave.len());
    let mut returned: HashMap<String, (u16, String)> = HashMap::new();
    for confirm in sent.into_iter().flatten() {
        let (ack, message) = match confirm.await.map_err(unanswered)? {
            Confirmation::Ack(message) => (true, message),
            Confirmation::Nack(message) => (false, message),
            // Not in confirm mode: nothing is known. The channel is always opened in it.
            Confirmation::NotRequested => (false, None),
        };
        acked.push(ack);
        if let Some(message) = message {
            let id = message
                .properties
                .message_id()
                .as_ref()
                .map(|id| id.as_str().to_owned());
            returned.insert(
                id.unwrap_or_default(),
                (message.reply_code, message.reply_text.to_string()),
            );
        }
    }
    Ok(wave
        .iter()
        .zip(acked)
        .map(
            |(envelope, ack)| match returned.get(&envelope.properties.message_id) {
                Some((code, text)) => Answer::Unroutable {
                    code: *code,
                    text: text.clone(),
                },
                None if ack => Answer::Delivered,
                None => Answer::Nacked,
            },
        )
        .collect())
}

async fn send(channel: &Channel, envelope: &Envelope) -> Result<PublisherConfirm, lapin::Error> {
    let options = BasicPublishOptions {
        mandatory: envelope.mandatory,
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

fn refusal(closed: &Closed) -> Answer {
    Answer::Refused {
        code: closed.code,
        text: closed.text.clone(),
    }
}

/// The envelope holds no text above 255 bytes where AMQP takes a short string; its builder refused them.
fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

/// An envelope's properties, as they go onto the wire.
pub fn properties(envelope: &Envelope) -> BasicProperties {
    /// <https://www.rabbitmq.com/docs/publishers#message-properties>
    const PERSISTENT: u8 = 2;
    let p = &envelope.properties;
    let mut headers = FieldTable::default();
    for (name, value) in &envelope.headers {
        headers.insert(short(name), amqp_value(value));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&p.message_id))
        .with_type(short(&p.type_))
        .with_content_type(short(&p.content_type))
        .with_timestamp(p.timestamp_s)
        .with_app_id(short(&p.app_id))
        .with_headers(headers);
    if let Some(id) = &p.correlation_id {
        properties = properties.with_correlation_id(short(id));
    }
    properties
}

fn amqp_value(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Bool(b) => AMQPValue::Boolean(*b),
        HeaderValue::I64(n) => AMQPValue::LongLongInt(*n),
        HeaderValue::F64(n) => AMQPValue::Double(*n),
        HeaderValue::String(s) => AMQPValue::LongString(s.as_str().into()),
        HeaderValue::Null => AMQPValue::Void,
        HeaderValue::List(items) => AMQPValue::FieldArray(FieldArray::from(
            items.iter().map(amqp_value).collect::<Vec<_>>(),
        )),
        HeaderValue::Table(fields) => {
            let mut table = FieldTable::default();
            for (name, value) in fields {
                table.insert(short(name), amqp_value(value));
            }
            AMQPValue::FieldTable(table)
        }
    }
}
