//! The questions to RabbitMQ that `outboxd check --connect` and `outboxd doctor` share.

use std::time::Duration;

use super::{
    checks::{BLOCKED, BROKER, EXCHANGES, WRITE},
    line::Line,
};
use crate::{
    broker::{BrokerError, Exchange, LinkState, Publisher},
    config::{Config, Source},
    relay,
};

/// Connects, and checks everything that a relay needs on this broker. Nothing is published that a queue could take. `name` shows
/// in the broker's list of connections.
pub async fn examine(config: &Config, source: &Source, name: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    ask(config, source, name, &mut lines).await;
    lines
}

async fn ask(config: &Config, source: &Source, name: &str, lines: &mut Vec<Line>) {
    let exchanges = match relay::exchanges(config) {
        Ok(exchanges) => exchanges,
        Err(error) => return lines.push(Line::fault(&EXCHANGES, error.to_string())),
    };
    let broker = &source.broker;
    let within = broker.connect_timeout;
    let mut publisher = match Publisher::connect(broker, name, within, false).await {
        Ok(publisher) => publisher,
        Err(error) => return lines.push(Line::of_broker(&BROKER, &error)),
    };
    lines.push(Line::ok(&BROKER, "the broker accepts a connection"));
    let mut answers = Vec::with_capacity(exchanges.len());
    for exchange in exchanges {
        let answer = publisher.look(&exchange, broker.declare).await;
        // The other questions would only time out as well.
        let silent = answer.as_ref().is_err_and(BrokerError::is_silence);
        answers.push((exchange, answer));
        if silent {
            break;
        }
    }
    lines.extend(exist(&answers));
    lines.extend(writable(&answers));
    // This comes last: a broker that blocks publishers reads no further request from this connection.
    lines.push(match accepts_publishes(&mut publisher, within).await {
        Ok(()) => Line::ok(&BLOCKED, "the broker accepts publishes"),
        Err(error) => Line::of_broker(&BLOCKED, &error),
    });
    publisher.close(Duration::from_secs(2)).await;
}

type Answer = (String, Result<Exchange, BrokerError>);

/// A line for each exchange that is missing, else one for all.
fn exist(answers: &[Answer]) -> Vec<Line> {
    let missing = answers.iter().filter_map(|(_, answer)| {
        let error = answer.as_ref().err().filter(|error| error.is_missing())?;
        Some(Line::of_broker(&EXCHANGES, error))
    });
    let missing: Vec<Line> = missing.collect();
    if !missing.is_empty() {
        return missing;
    }
    let named = |wanted: Exchange| -> Vec<&str> {
        let of = answers
            .iter()
            .filter(|(_, answer)| answer.as_ref().is_ok_and(|found| *found == wanted));
        of.map(|(name, _)| called(name)).collect()
    };
    let (there, later) = (named(Exchange::Writable), named(Exchange::ToBeDeclared));
    let mut texts = Vec::new();
    if !there.is_empty() {
        texts.push(format!("exchanges there: {}", there.join(", ")));
    }
    if !later.is_empty() {
        texts.push(format!("exchanges to be declared: {}", later.join(", ")));
    }
    if texts.is_empty() {
        return Vec::new();
    }
    vec![Line::ok(&EXCHANGES, texts.join("; "))]
}

/// A line for each obstacle, else one for all.
fn writable(answers: &[Answer]) -> Vec<Line> {
    let refused = answers.iter().filter_map(|(_, answer)| {
        let error = answer.as_ref().err().filter(|error| !error.is_missing())?;
        Some(Line::of_broker(&WRITE, error))
    });
    let mut lines: Vec<Line> = refused.collect();
    let of = |wanted: fn(&Result<Exchange, BrokerError>) -> bool| -> Vec<&str> {
        let names = answers.iter().filter(|(_, answer)| wanted(answer));
        names.map(|(name, _)| called(name)).collect()
    };
    let writable = of(|answer| matches!(answer, Ok(Exchange::Writable)));
    let unknown = of(|answer| match answer {
        Ok(found) => *found == Exchange::ToBeDeclared,
        Err(error) => error.is_missing(),
    });
    if lines.is_empty() && !writable.is_empty() {
        lines.push(Line::ok(
            &WRITE,
            format!(
                "this user may publish to {} (the broker checks topic permissions only at a publish)",
                writable.join(", ")
            ),
        ));
    }
    if !unknown.is_empty() {
        let why = format!("there is no exchange {} yet", unknown.join(", "));
        lines.push(Line::not_checked(&WRITE, why));
    }
    lines
}

fn called(exchange: &str) -> &str {
    match exchange {
        "" => "the default exchange",
        name => name,
    }
}

/// Checks that the broker accepts publishes: during an alarm the broker tells a new connection only when it publishes. No
/// queue can take the message that this function publishes.
async fn accepts_publishes(publisher: &mut Publisher, within: Duration) -> Result<(), BrokerError> {
    let mut state = publisher.state();
    tokio::select! {
        answered = publisher.probe(|_| {}) => answered,
        blocked = state.wait_for(|state| matches!(state, LinkState::Blocked(_))) => match blocked.as_deref() {
            Ok(LinkState::Blocked(why)) => Err(BrokerError::Blocked(why.clone())),
            _ => Err(BrokerError::Closed("its watcher ended".to_owned())),
        },
        () = tokio::time::sleep(within * 2) => Err(BrokerError::Timeout { action: "first publish", after: within * 2 }),
    }
}
