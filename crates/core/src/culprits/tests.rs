use proptest::prelude::*;

use super::*;
use crate::{envelope::Properties, header::HeaderValue};

fn envelope(id: u8, exchange: &str, routing_key: &str, key: Option<&str>) -> Envelope {
    let key = key.map(|key| ("outbox-key".to_owned(), HeaderValue::String(key.to_owned())));
    Envelope {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        mandatory: true,
        properties: Properties {
            message_id: id.to_string(),
            type_: String::new(),
            content_type: String::new(),
            timestamp_s: 0,
            app_id: String::new(),
            correlation_id: None,
        },
        headers: key.into_iter().collect(),
        body: Vec::new(),
    }
}

struct Message<'a>(&'a Envelope);

impl AsRef<Envelope> for Message<'_> {
    fn as_ref(&self) -> &Envelope {
        self.0
    }
}

fn awaiting(wave: &[Envelope]) -> Vec<Awaiting<Message<'_>>> {
    wave.iter().map(|e| Awaiting::new(Message(e))).collect()
}

fn closed(code: u16, text: &str) -> Closed {
    Closed {
        code,
        text: text.to_owned(),
        connection: false,
    }
}

/// The texts of RabbitMQ 3.10 and 4.1.
#[test]
fn a_refusal_speaks_of_the_exchange_the_key_or_the_message() {
    for (code, text, expected) in [
        (
            403,
            "ACCESS_REFUSED - access to exchange 'closed' in vhost '/' refused for user 'relay'",
            SpeaksOf::Exchange,
        ),
        (
            403,
            "ACCESS_REFUSED - write access to exchange 'closed' in vhost '/' refused for user 'relay'",
            SpeaksOf::Exchange,
        ),
        (
            403,
            "ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost '/'",
            SpeaksOf::Exchange,
        ),
        (
            403,
            "ACCESS_REFUSED - access to topic 'k' in exchange 'x' in vhost '/' refused for user 'relay'",
            SpeaksOf::Key,
        ),
        (
            403,
            "ACCESS_REFUSED - write access to topic 'k' in exchange 'x' in vhost '/' refused for user 'relay'",
            SpeaksOf::Key,
        ),
        (
            403,
            "ACCESS_REFUSED - access to exchange 'access to topic ''",
            SpeaksOf::Exchange,
        ),
        (
            403,
            "ACCESS_REFUSED - something that a plugin says",
            SpeaksOf::Message,
        ),
        (
            404,
            "NOT_FOUND - no exchange 'x' in vhost '/'",
            SpeaksOf::Exchange,
        ),
        (
            406,
            "PRECONDITION_FAILED - message size 2000 is larger than max size 1000",
            SpeaksOf::Message,
        ),
    ] {
        assert_eq!(speaks_of(code, text), expected, "{text}");
    }
}

#[test]
fn a_key_with_the_name_of_another_exchange_does_not_mislead() {
    let mut known = Destinations::default();
    let culprit = envelope(1, "real", "in exchange 'other'", None);
    let other = envelope(2, "other", "k", None);
    known.took(&culprit);
    known.took(&other);
    let text = "ACCESS_REFUSED - access to topic 'in exchange 'other'' in exchange 'real' in vhost '/' refused for user 'relay'";
    assert!(known.closed(&[&culprit, &other], &closed(403, text)));
    assert_eq!(
        known.unproven(&culprit),
        Some(Unit::Key("real", "in exchange 'other'"))
    );
    let long = format!("{}{}", &text[..62], "x".repeat(200));
    known.took(&culprit);
    known.took(&other);
    known.closed(&[&culprit, &other], &closed(403, &long));
    assert!(known.unproven(&culprit).is_some());
}

#[test]
fn keys_that_were_never_refused_go_first() {
    let wave: Vec<Envelope> = (0..10)
        .map(|n| envelope(n, "x", &format!("k{n}"), None))
        .collect();
    let mut known = Destinations::default();
    for (i, envelope) in wave.iter().enumerate().take(8) {
        known.refused(envelope, &refuse("x", &format!("k{i}")));
    }
    let mut wave = awaiting(&wave);
    let step = Step::next(&mut wave, &known, &Refusals::default(), false, 3);
    assert_eq!(
        step,
        Step {
            together: vec![],
            alone: vec![8, 9, 0]
        }
    );
}

fn refuse(exchange: &str, key: &str) -> Closed {
    let text = format!(
        "ACCESS_REFUSED - access to topic '{key}' in exchange '{exchange}' in vhost '/' refused for user 'u'"
    );
    closed(403, &text)
}

/// A model of a broker: it refuses keys k1 and k2 of exchange x, has no exchange `none`, and rejects the message
/// with the id 9.
fn fate(envelope: &Envelope) -> Option<Closed> {
    match (envelope.exchange.as_str(), envelope.routing_key.as_str()) {
        _ if envelope.properties.message_id == "9" => {
            Some(closed(406, "PRECONDITION_FAILED - size"))
        }
        ("none", _) => Some(closed(404, "NOT_FOUND - no exchange 'none' in vhost '/'")),
        ("x", key @ ("k1" | "k2")) => Some(refuse("x", key)),
        _ => None,
    }
}

/// Runs the steps as `Publisher` does, against that broker. Returns the answers, the messages that the broker took,
/// in its order, and the number of closed channels.
fn published(
    envelopes: &[Envelope],
    known: &mut Destinations,
    width: usize,
) -> (Vec<Option<Answer>>, Vec<usize>, usize) {
    let mut wave = awaiting(envelopes);
    let (mut refused, mut taken, mut closings, mut bulk) = (Refusals::default(), Vec::new(), 0, 0);
    let mut singly = false;
    for _ in 0..10 * (wave.len() + 1) {
        let step = Step::next(&mut wave, known, &refused, singly, width);
        if step == Step::default() {
            let answers = wave.into_iter().map(|awaiting| awaiting.answer);
            return (answers.collect(), taken, closings);
        }
        assert!(step.alone.len() <= width);
        let culprit = step
            .together
            .iter()
            .position(|i| fate(&envelopes[*i]).is_some());
        if let Some(at) = culprit {
            taken.extend(&step.together[..at]);
            let together: Vec<&Envelope> = step.together.iter().map(|i| &envelopes[*i]).collect();
            closings += 1;
            bulk += 1;
            singly = !known.closed(&together, &fate(together[at]).unwrap()) || bulk > 1;
            continue;
        }
        for i in &step.together {
            taken.push(*i);
            wave[*i].answer = Some(Answer::Delivered);
        }
        for i in step.alone {
            let envelope = &envelopes[i];
            match fate(envelope) {
                None => {
                    known.took(envelope);
                    taken.push(i);
                    wave[i].answer = Some(Answer::Delivered);
                }
                Some(closed) => {
                    closings += 1;
                    known.refused(envelope, &closed);
                    refused.add(envelope, &closed);
                    wave[i].answer = Some(refusal(&closed));
                }
            }
        }
    }
    panic!("the steps do not end");
}

fn envelopes() -> impl Strategy<Value = Vec<Envelope>> {
    let one = (
        0..12_u8,
        prop::sample::select(vec!["x", "y", "none", ""]),
        prop::sample::select(vec!["k0", "k1", "k2", "k3"]),
        prop::option::of(prop::sample::select(vec!["a", "b"])),
    );
    prop::collection::vec(
        one.prop_map(|(id, exchange, key, order)| envelope(id, exchange, key, order)),
        0..40,
    )
}

proptest! {
    #[test]
    fn every_message_has_its_own_answer_in_order_and_few_channels_are_closed(
        waves in prop::collection::vec(envelopes(), 1..4), width in 1_usize..5,
    ) {
        let mut known = Destinations::default();
        for wave in &waves {
            let (answers, taken, closings) = published(wave, &mut known, width);
            let mut culprits: HashSet<String> = HashSet::new();
            for (i, (envelope, answer)) in wave.iter().zip(answers).enumerate() {
                match (fate(envelope), answer.unwrap()) {
                    (None, answer) => prop_assert_eq!(answer, Answer::Delivered),
                    // The message is impossible, and its exchange is refused: the broker may answer either.
                    (Some(closed), Answer::Refused { code, .. }) => {
                        prop_assert!(code == closed.code || envelope.properties.message_id == "9");
                        culprits.insert(if closed.code == 406 { i.to_string() } else { closed.text });
                    }
                    (Some(_), answer) => prop_assert!(false, "{:?}", answer),
                }
            }
            // A culprit closes the channel of the wave once, and its own when it goes alone. Two more: a close that names
            // nobody, and one that contradicts the explanation of another.
            prop_assert!(closings <= 2 * culprits.len() + 2, "{} {:?}", closings, culprits);
            for key in ["a", "b"] {
                let of_key = |i: &&usize| wave[**i].key() == Some(key);
                let mut first: Vec<usize> = Vec::new();
                for i in taken.iter().filter(of_key) {
                    if !first.contains(i) {
                        first.push(*i);
                    }
                }
                prop_assert!(first.is_sorted(), "{:?}", first);
            }
        }
    }

    #[test]
    fn two_messages_that_a_return_cannot_distinguish_do_not_go_together(wave in envelopes()) {
        let mut known = Destinations::default();
        for envelope in &wave {
            known.took(envelope);
        }
        let step = Step::next(&mut awaiting(&wave), &known, &Refusals::default(), false, 16);
        let names: HashSet<_> = step
            .together
            .iter()
            .map(|i| (&wave[*i].properties.message_id, &wave[*i].exchange, &wave[*i].routing_key))
            .collect();
        prop_assert_eq!(names.len(), step.together.len());
        prop_assert!(wave.is_empty() || !names.is_empty());
    }
}

/// One wave is published twice, and no more: the broker names its limit.
#[test]
fn a_body_that_the_broker_finds_too_large_goes_alone_from_then_on() {
    let too_large = closed(
        406,
        "PRECONDITION_FAILED - message size 150000 is larger than configured max size 100000",
    );
    let mut wave = [1, 2, 3].map(|id| envelope(id, "events", "a", None));
    wave[1].body = vec![0; 150_000];
    wave[2].body = vec![0; 100_000];
    let mut known = Destinations::default();
    known.took(&wave[0]);
    let step = |wave: &[Envelope], known: &Destinations| {
        Step::next(&mut awaiting(wave), known, &Refusals::default(), false, 16)
    };
    assert_eq!(step(&wave, &known).together, [0, 1, 2]);
    let all: Vec<&Envelope> = wave.iter().collect();
    assert!(known.closed(&all, &too_large));
    let split = Step {
        together: vec![0, 2],
        alone: vec![1],
    };
    assert_eq!(step(&wave, &known), split);
    known.refused(&wave[1], &too_large);
    assert_eq!(step(&wave, &known), split);
    assert!(
        !known.closed(&[&wave[0], &wave[2]], &too_large),
        "the text contradicts the bodies"
    );
    // Somebody has raised the limit.
    known.took(&wave[1]);
    assert_eq!(step(&wave, &known).together, [0, 1, 2]);
    for other in [
        "larger than configured max size ",
        "larger than configured max size x",
        "",
    ] {
        assert_eq!(size_limit(&closed(406, other)), None, "{other}");
    }
    let text = &too_large.text;
    assert_eq!(size_limit(&closed(404, text)), None);
}

/// The exchange has refused one routing key. Messages to another one, which has taken a message, go together again.
#[test]
fn messages_to_a_routing_key_that_took_one_go_together() {
    let text = "ACCESS_REFUSED - access to topic 'bad' in exchange 'events' in vhost '/' refused for user 'relay'";
    let mut known = Destinations::default();
    known.refused(&envelope(0, "events", "bad", None), &closed(403, text));
    let wave = [1, 2].map(|id| envelope(id, "events", "good", None));
    let step = |known: &Destinations| {
        Step::next(&mut awaiting(&wave), known, &Refusals::default(), false, 16)
    };
    assert_eq!(step(&known).alone, [0], "one of them goes first");
    known.took(&wave[0]);
    assert_eq!(step(&known).together, [0, 1]);
}
