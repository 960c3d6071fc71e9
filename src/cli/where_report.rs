//! What `outboxd where` tells of a message, for people and as JSON.

use std::time::Duration;

use outbox_core::message::Lane;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{
    CliError,
    output::{self, on_a_terminal},
    table::{table, text, whole},
    where_route::Route,
};
use crate::outbox::{
    known::{Body, Done, Holder},
    whereabouts::{Dead, Facts, Head, Neighbour, State, Waiting},
};

/// What stands before a pending message.
#[derive(Serialize)]
pub(super) struct Before {
    pub(super) messages: i64,
    pub(super) is_about: bool,
    pub(super) seconds: Option<f64>,
    pub(super) no_estimate: Option<&'static str>,
}

#[derive(Serialize)]
pub(super) struct Found {
    pub(super) message_id: Uuid,
    position: i64,
    lane: Lane,
    aggregate_type: String,
    aggregate_id: Option<String>,
    event_type: String,
    state: State,
    created_at: String,
    available_at: Option<String>,
    sent_at: Option<String>,
    waiting: Option<Waiting>,
    dead: Option<Dead>,
    /// The nearest message of its key that holds it back.
    behind: Option<Neighbour>,
    /// The first message of its key that holds it back.
    head: Option<Head>,
    before: Option<Before>,
    lane_held_by: Option<Holder>,
    /// `None`: not asked, or not to be seen by this role.
    operations: Option<Vec<Done>>,
    route: Route,
    body_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    #[serde(skip)]
    body_shown: Option<String>,
}

/// A body for programs, and for a terminal.
fn shown(body: Body) -> (Value, String) {
    let text = match body {
        Body::Json(text) => Ok(text),
        Body::Bytes(bytes) => String::from_utf8(bytes).map_err(|e| e.into_bytes()),
    };
    match text {
        Ok(text) => {
            let shown = on_a_terminal(&text, &['\n', '\t']);
            (serde_json::json!({ "text": text }), shown)
        }
        Err(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (
                serde_json::json!({ "hex": hex }),
                format!("hexadecimal: {hex}"),
            )
        }
    }
}

impl Found {
    pub(super) fn of(
        facts: Facts,
        route: Route,
        before: Option<Before>,
        lane_held_by: Option<Holder>,
        operations: Option<Vec<Done>>,
        body: Option<Body>,
    ) -> Found {
        let state = facts.state();
        let Facts { message, .. } = facts;
        let (body, body_shown) = match body {
            None => (None, None),
            Some(body) => {
                let (json, text) = shown(body);
                (Some(json), Some(text))
            }
        };
        Found {
            message_id: message.message_id,
            position: message.position.id,
            lane: message.position.lane,
            aggregate_type: message.aggregate_type,
            aggregate_id: message.aggregate_id,
            event_type: message.event_type,
            state,
            created_at: facts.created_at,
            available_at: facts.available_at,
            sent_at: facts.sent_at,
            waiting: facts.waiting,
            dead: facts.dead,
            behind: facts.behind,
            head: facts.head,
            before,
            lane_held_by,
            operations,
            route,
            body_bytes: message.body_size,
            body,
            body_shown,
        }
    }

    pub(super) fn holds_its_key_back(&self) -> bool {
        self.waiting
            .as_ref()
            .is_some_and(|w| !w.replay && w.cause != "scheduled")
    }

    fn key(&self) -> String {
        match &self.aggregate_id {
            Some(id) => format!("{}/{id}", self.aggregate_type),
            None => format!("{} (no key)", self.aggregate_type),
        }
    }

    /// The state in a few words, for a table.
    fn word(&self) -> String {
        let again = self.waiting.as_ref().filter(|w| w.replay);
        match (self.state, &self.waiting) {
            (State::Sent, _) if again.is_some() => "sent, waits to be sent again".to_owned(),
            (State::Sent, _) => "sent".to_owned(),
            (State::Waiting, Some(w)) if w.cause == "behind" => "behind".to_owned(),
            (State::Waiting, Some(w)) => format!("waiting ({})", w.cause),
            (State::Waiting, None) => "waiting".to_owned(),
            (State::Pending, _) => "pending".to_owned(),
            (State::Scheduled, _) => "scheduled".to_owned(),
            (State::Held, _) => "held".to_owned(),
            (State::Dead, _) => "dead".to_owned(),
            (State::Stranded, _) => "stranded".to_owned(),
        }
    }

    fn in_words(&self) -> String {
        let cause = self.waiting.as_ref().map_or("", |w| w.cause.as_str());
        match self.state {
            State::Pending => "pending: not published yet".to_owned(),
            State::Scheduled => format!(
                "scheduled: not to be published before {}",
                self.available_at.as_deref().unwrap_or("its time")
            ),
            State::Waiting => match cause {
                "retry" => "waiting: an attempt failed, and it is tried again".to_owned(),
                "behind" => "waiting behind an earlier message of its key".to_owned(),
                "redrive" => "waiting: it was dead, and somebody had it redriven".to_owned(),
                "stranded" => "waiting: the audit found it below the mark, and has it sent".to_owned(),
                other => format!("waiting: {other}"),
            },
            State::Held if cause == "probe" => {
                "held: everything to its destination, or to its exchange, fails, and it is tried next".to_owned()
            }
            State::Held => "held: everything to its destination, or to its exchange, fails".to_owned(),
            State::Dead if self.sent_at.is_some() => {
                "dead: it was sent, and its replay was given up".to_owned()
            }
            State::Dead => "dead: given up".to_owned(),
            State::Sent => match &self.waiting {
                Some(w) if w.replay => format!("sent, and waits to be sent again ({cause})"),
                Some(_) => "sent: somebody marked it while it waited".to_owned(),
                None => "sent".to_owned(),
            },
            State::Stranded => {
                "stranded: unsent below the mark of its lane, where no relay looks; the audit of a running relay finds it and has \
                 it sent"
                    .to_owned()
            }
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("message id", self.message_id.to_string()),
            ("state", self.in_words()),
            (
                "position",
                format!("{} in lane {}", self.position, self.lane),
            ),
            ("key", self.key()),
            ("type", self.event_type.clone()),
            ("created at", self.created_at.clone()),
        ];
        if let Some(sent_at) = &self.sent_at {
            lines.push(("sent at", sent_at.clone()));
        }
        if let Some(before) = &self.before {
            let about = if before.is_about { "about " } else { "" };
            lines.push((
                "before it",
                format!("{about}{} pending messages in its lane", before.messages),
            ));
            lines.push((
                "estimate",
                match (before.seconds, before.no_estimate) {
                    (Some(seconds), _) => format!(
                        "published in about {}, at the rate of its lane in the last minute",
                        rough(seconds)
                    ),
                    (None, why) => format!("none: {}", why.unwrap_or("no rate is known")),
                },
            ));
        }
        if let Some(w) = &self.waiting {
            lines.push(("since", w.since.clone()));
            lines.push((
                "next try",
                match (&w.next_try_at, w.next_try_in_seconds) {
                    (Some(at), Some(s)) if s > 0.0 => format!("{at}, in {}", rough(s)),
                    (Some(at), _) => format!("{at}: it is due"),
                    (None, _) if self.state == State::Held => {
                        "when a probe of its destination succeeds".to_owned()
                    }
                    (None, _) => "when the message before it is settled".to_owned(),
                },
            ));
            lines.push(("attempts", w.attempts.to_string()));
            failure(&mut lines, w.reason.as_ref(), w.last_error.as_ref());
        }
        if let Some(d) = &self.dead {
            lines.push(("died at", d.died_at.clone()));
            lines.push(("attempts", d.attempts.to_string()));
            failure(&mut lines, d.reason.as_ref(), d.last_error.as_ref());
        }
        if let Some(behind) = &self.behind {
            lines.push((
                "behind",
                format!("{} at position {}", behind.message_id, behind.position),
            ));
        }
        if let Some(head) = self.head.as_ref() {
            let reason = head
                .reason
                .as_ref()
                .map_or(String::new(), |r| format!(", {r}"));
            let next = head
                .next_try_at
                .as_ref()
                .map_or(String::new(), |at| format!(", next try {at}"));
            lines.push((
                "head of key",
                format!(
                    "{} at position {}: {}{reason}{next}",
                    head.message_id, head.position, head.cause
                ),
            ));
        }
        if self.waiting.is_some() || matches!(self.state, State::Pending | State::Stranded) {
            lines.push(("relay", self.relay()));
        }
        for done in self.operations.iter().flatten() {
            lines.push((
                "operation",
                format!("{} {} by {}: {}", done.at, done.action, done.by, done.why),
            ));
        }
        lines.extend(self.route.lines());
        lines.push(("body", format!("{} bytes", self.body_bytes)));
        lines
    }

    fn relay(&self) -> String {
        match &self.lane_held_by {
            None => "no relay works its lane at this moment".to_owned(),
            Some(holder) if holder.application.is_empty() => {
                format!("somebody works its lane now: pid {}", holder.pid)
            }
            Some(holder) if holder.application.starts_with("outboxd/") => format!(
                "a relay works its lane now: {}, pid {}",
                holder.application, holder.pid
            ),
            Some(holder) => format!(
                "a session that is no relay holds its lane: \"{}\", pid {}",
                holder.application, holder.pid
            ),
        }
    }
}

fn failure(
    lines: &mut Vec<(&'static str, String)>,
    reason: Option<&String>,
    last_error: Option<&String>,
) {
    if let Some(reason) = reason {
        lines.push(("reason", reason.clone()));
    }
    if let Some(error) = last_error {
        lines.push(("last error", error.clone()));
    }
}

/// A time for a person: whole seconds, and not more than a century.
fn rough(seconds: f64) -> String {
    let seconds = seconds.clamp(0.0, 3.2e9).ceil() as u64;
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// Most characters of a line on a terminal: a key may have millions.
const LINE: usize = 4_000;

fn cut(text: &str) -> String {
    match text.char_indices().nth(LINE) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

pub(super) fn show(message: &Found) -> Result<(), CliError> {
    for (name, value) in message.lines() {
        let value = if output::is_terminal() {
            cut(&value)
        } else {
            value
        };
        let value = on_a_terminal(&value, &[]);
        output::line(format!("{name:<13} {value}").trim_end())?;
    }
    if let Some(body) = &message.body_shown {
        output::line("")?;
        output::line(body)?;
    }
    Ok(())
}

pub(super) fn list(messages: &[Found]) -> Result<(), CliError> {
    let rows: Vec<Vec<String>> = messages
        .iter()
        .map(|m| {
            let waiting = m.waiting.as_ref();
            let dead = m.dead.as_ref();
            let reason = waiting.map_or(dead.and_then(|d| d.reason.clone()), |w| w.reason.clone());
            vec![
                m.message_id.to_string(),
                m.position.to_string(),
                m.word(),
                m.created_at.clone(),
                m.key(),
                m.event_type.clone(),
                reason.unwrap_or_default(),
                waiting
                    .and_then(|w| w.next_try_at.clone())
                    .unwrap_or_default(),
            ]
        })
        .collect();
    let columns = [
        whole("MESSAGE ID"),
        whole("POSITION"),
        text("STATE"),
        whole("CREATED AT"),
        text("KEY"),
        text("TYPE"),
        text("REASON"),
        whole("NEXT TRY"),
    ];
    Ok(table(&columns, &rows)?)
}

/// The messages of a key: what is not sent, what holds it back, and the last ones that were sent.
pub(super) fn key(
    open: &[Found],
    open_is_cut: bool,
    head: Option<&Found>,
    sent: &[Found],
) -> Result<(), CliError> {
    if open.is_empty() {
        output::line(if open_is_cut {
            "everything of this key that was looked at is sent"
        } else {
            "everything of this key is sent"
        })?;
    } else {
        output::line(&format!("not sent: {}", open.len()))?;
        list(open)?;
        if let Some(first) = open.first() {
            output::line(&first.relay())?;
        }
    }
    if let Some(head) = head {
        output::line(&format!(
            "{} holds back what comes after it: `outboxd where {}` shows it",
            head.message_id, head.message_id
        ))?;
    }
    if !sent.is_empty() {
        output::line("")?;
        output::line(&format!("the last {} that were sent:", sent.len()))?;
        list(sent)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_an_end() {
        assert_eq!(cut(&"é".repeat(LINE)).chars().count(), LINE);
        assert_eq!(cut(&"é".repeat(LINE + 5)).chars().count(), LINE + 1);
    }

    #[test]
    fn a_time_for_a_person_is_whole_seconds() {
        assert_eq!(rough(0.2), "1s");
        assert_eq!(rough(-3.0), "0s");
        assert_eq!(rough(90.0), "1m 30s");
        assert!(rough(f64::INFINITY).contains("years"));
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_hexadecimal() {
        let (json, text) = shown(Body::Bytes(vec![0xff, 0]));
        assert_eq!(
            (json["hex"].as_str(), text.as_str()),
            (Some("ff00"), "hexadecimal: ff00")
        );
        let (json, text) = shown(Body::Json("{\"a\": 1}".to_owned()));
        assert_eq!(
            (json["text"].as_str(), text.as_str()),
            (Some("{\"a\": 1}"), "{\"a\": 1}")
        );
    }
}
