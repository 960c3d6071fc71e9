//! From facts about the outbox to lines. No I/O.

use std::time::Duration;

use outbox_core::circuit::Held;

use super::{
    checks::{
        BINDINGS, BLOAT, DEAD, HELD, HORIZON, LAG, MARKS, PRODUCERS, RELAYS, RELAYS_STATE,
        RETENTION,
    },
    line::Line,
};
use crate::outbox::{
    blockers::Who,
    condition::{Holder, Marks, Producer, Returned, Table, Writer},
    status::{RelaySeen, Status},
};

/// A transaction that writes for longer is not a business change.
const LONG_S: f64 = 30.0;
/// As the alert OutboxLagWarning.
const LAG_S: f64 = 60.0;
/// Fewer dead rows cost nothing.
const DEAD_ROWS: i64 = 50_000;
/// Transactions; vacuum in between would have removed their old rows.
const HORIZON_AGE: i32 = 1_000_000;
/// Retention may be behind by this, and by ten of its pauses: it makes way for work.
const RETENTION_SLACK: Duration = Duration::from_secs(3600);

pub fn producers(found: &[Producer]) -> Line {
    let missing: Vec<&str> = found
        .iter()
        .flat_map(|producer| producer.missing.iter().map(String::as_str))
        .collect();
    if !missing.is_empty() {
        return Line::fault(
            &PRODUCERS,
            format!(
                "a role that may insert events lacks a privilege. Run as the owner of schema outbox:\n  {};",
                missing.join(";\n  ")
            ),
        );
    }
    let roles: Vec<&str> = found
        .iter()
        .map(|producer| producer.role.as_str())
        .collect();
    Line::ok(
        &PRODUCERS,
        match roles.is_empty() {
            true => "only the owner of outbox.message may insert events".to_owned(),
            false => format!(
                "{} may insert events, and so may the owner",
                roles.join(", ")
            ),
        },
    )
}

/// A time is known, or the messages prove that the oldest transaction is at least so old.
pub fn marks(found: &Marks, sees_others: bool) -> Line {
    let long = |writer: &Writer| writer.seconds.is_some_and(|seconds| seconds >= LONG_S);
    let proven = found.seconds >= LONG_S;
    let blamed: Vec<String> = found
        .writers
        .iter()
        .enumerate()
        .filter(|(n, writer)| long(writer) || (*n == 0 && proven))
        .map(|(_, writer)| named(writer, found.seconds))
        .collect();
    if !blamed.is_empty() {
        return Line::warning(
            &MARKS,
            format!(
                "{} lanes have messages that were written after these transactions began: {}",
                found.lanes,
                blamed.join("; ")
            ),
        );
    }
    let seen = match sees_others {
        true => "",
        false => {
            "; this role does not see when other roles' transactions began (grant it pg_read_all_stats)"
        }
    };
    Line::ok(
        &MARKS,
        format!(
            "{} transactions write now, and none is known to be old{seen}",
            found.writers.len()
        ),
    )
}

fn named(writer: &Writer, at_least: f64) -> String {
    let since = match writer.seconds {
        Some(seconds) => format!("for {seconds:.0} s"),
        None => format!("for at least {at_least:.0} s"),
    };
    let user = writer.user.escape_debug();
    let database = writer.database.escape_debug();
    match &writer.who {
        Who::Session { pid } => format!(
            "pid {pid} (user {user}, application \"{}\", database {database}, {since})",
            writer.application.escape_debug()
        ),
        Who::Prepared { name } => format!(
            "the prepared transaction '{}' (user {user}, database {database}, {since})",
            name.escape_debug()
        ),
    }
}

pub fn bloat(tables: &[Table]) -> Line {
    let text = |table: &Table| {
        let share = table.dead as f64 * 100.0 / (table.live + table.dead).max(1) as f64;
        let vacuumed = match table.vacuumed_seconds_ago {
            Some(seconds) => format!("vacuumed {seconds:.0} s ago"),
            None => "never vacuumed".to_owned(),
        };
        format!(
            "outbox.{}: {} dead rows ({share:.0} %), {vacuumed}",
            table.name, table.dead
        )
    };
    let bloated = |table: &&Table| table.dead >= DEAD_ROWS && table.dead >= table.live;
    let found: Vec<String> = tables.iter().filter(bloated).map(text).collect();
    if !found.is_empty() {
        return Line::warning(&BLOAT, found.join("; "));
    }
    let most = tables
        .first()
        .map_or_else(|| "no statistics".to_owned(), text);
    Line::ok(&BLOAT, most)
}

pub fn horizon(holders: &[Holder], sees_others: bool) -> Line {
    let text = |holder: &Holder| format!("{}, {} transactions", holder.what, holder.age);
    let old: Vec<String> = holders
        .iter()
        .filter(|holder| holder.age >= HORIZON_AGE)
        .map(text)
        .collect();
    if !old.is_empty() {
        return Line::warning(
            &HORIZON,
            format!("vacuum is held back by {}", old.join("; ")),
        );
    }
    let seen = match sees_others {
        true => "",
        false => "; this role does not see other roles' sessions (grant it pg_read_all_stats)",
    };
    let oldest = holders.first().map_or_else(|| "nothing".to_owned(), text);
    Line::ok(
        &HORIZON,
        format!("the oldest that holds vacuum back: {oldest}{seen}"),
    )
}

pub fn lag(status: &Status) -> Line {
    let about = if status.pending_is_capped {
        "about "
    } else {
        ""
    };
    let text = format!(
        "the oldest due message is {:.1} s old; {about}{} pending, {about}{} due, {} waiting",
        status.oldest_due_age_seconds, status.pending, status.due, status.waiting
    );
    match status.oldest_due_age_seconds > LAG_S {
        true => Line::warning(&LAG, text),
        false => Line::ok(&LAG, text),
    }
}

pub fn dead(status: &Status) -> Line {
    match status.dead {
        0 => Line::ok(&DEAD, "no message is dead"),
        // The count stops there.
        n if n > 10_000 => Line::warning(&DEAD, "more than 10,000 messages are dead"),
        n => Line::warning(&DEAD, format!("{n} messages are dead")),
    }
}

/// A finding names no exchange and no key: `outboxd failures` does.
pub fn held(found: &[Held], most: usize) -> Line {
    if found.is_empty() {
        return Line::ok(&HELD, "no message is held");
    }
    let mut reasons: Vec<&str> = found.iter().map(|held| held.why.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let least = if found.len() >= most { "at least " } else { "" };
    Line::warning(
        &HELD,
        format!(
            "messages to {least}{} destinations are held ({}): a probe tries each destination",
            found.len(),
            reasons.join(", ")
        ),
    )
}

pub fn relays(found: &[RelaySeen]) -> Line {
    if found.is_empty() {
        return Line::warning(&RELAYS, "no relay has reported within the last minute");
    }
    let each: Vec<String> = found
        .iter()
        .map(|relay| {
            let audit = match relay.audited_seconds_ago {
                Some(seconds) => format!("audit completed {seconds:.0} s ago"),
                None => "no audit completed yet".to_owned(),
            };
            format!(
                "{} ({} workers, seen {:.0} s ago, {audit})",
                relay.instance.escape_debug(),
                relay.workers,
                relay.seen_seconds_ago
            )
        })
        .collect();
    Line::ok(&RELAYS, each.join("; "))
}

pub fn relays_state(found: &[RelaySeen], own: &str) -> Line {
    if found.is_empty() {
        return Line::not_checked(&RELAYS_STATE, "no relay runs (D705)");
    }
    let odd = |relay: &&RelaySeen| {
        !matches!(relay.state.as_str(), "publishing" | "starting") || relay.version != own
    };
    let odd: Vec<String> = found
        .iter()
        .filter(odd)
        .map(|relay| {
            format!(
                "{}: {}, version {}",
                relay.instance.escape_debug(),
                relay.state.escape_debug(),
                relay.version.escape_debug()
            )
        })
        .collect();
    match odd.is_empty() {
        true => Line::ok(
            &RELAYS_STATE,
            format!("{} publish, version {own}", found.len()),
        ),
        false => Line::warning(&RELAYS_STATE, odd.join("; ")),
    }
}

/// `oldest`: the age in seconds of the oldest message that retention could delete.
pub fn retention(oldest: Option<f64>, sent: Duration, interval: Duration) -> Line {
    let Some(oldest) = oldest else {
        return Line::ok(&RETENTION, "no sent message is kept");
    };
    let text = format!(
        "the oldest sent message is {} old; retention.sent is {}",
        humantime::format_duration(Duration::from_secs(oldest.clamp(0.0, 1e10) as u64)),
        humantime::format_duration(sent)
    );
    let late = sent + RETENTION_SLACK.max(interval * 10);
    match oldest > late.as_secs_f64() {
        true => Line::warning(&RETENTION, text),
        false => Line::ok(&RETENTION, text),
    }
}

/// AMQP has no question for bindings. Only a `mandatory` publish tells, and it would reach the queues that are bound.
pub fn bindings(returned: Option<Returned>) -> Line {
    match returned {
        Some(Returned { waiting, dead }) if waiting + dead > 0 => Line::warning(
            &BINDINGS,
            format!(
                "the broker returned messages because no queue was bound for them: {waiting} wait, and {dead} are dead"
            ),
        ),
        _ => Line::not_checked(
            &BINDINGS,
            "AMQP does not tell which queues are bound, and a test message would reach them. No message is known that was \
             returned for want of a queue",
        )
        .with_cure(BINDINGS.cure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::line::State;

    fn writer(seconds: Option<f64>) -> Writer {
        Writer {
            who: Who::Session { pid: 7 },
            user: "shop".to_owned(),
            application: "a \"job\"".to_owned(),
            database: "db".to_owned(),
            seconds,
        }
    }

    #[test]
    fn a_long_transaction_is_named_by_its_time_or_by_what_the_messages_prove() {
        let of = |writers: Vec<Writer>, seconds| {
            marks(
                &Marks {
                    writers,
                    lanes: 3,
                    seconds,
                },
                false,
            )
        };
        assert_eq!(of(vec![], 0.0).state, State::Ok);
        assert_eq!(
            of(vec![writer(Some(29.0)), writer(None)], 29.0).state,
            State::Ok
        );
        let known = of(vec![writer(Some(61.0))], 0.0);
        assert!(
            known.finding.contains(
                "pid 7 (user shop, application \"a \\\"job\\\"\", database db, for 61 s)"
            )
        );
        let proven = of(vec![writer(None), writer(None)], 40.0);
        assert_eq!(proven.state, State::Warning);
        assert_eq!(
            proven.finding.matches("at least 40 s").count(),
            1,
            "only the oldest"
        );
    }

    #[test]
    fn dead_rows_are_bloat_if_they_are_many_and_most() {
        let of = |live, dead| {
            bloat(&[Table {
                name: "message".to_owned(),
                live,
                dead,
                vacuumed_seconds_ago: None,
            }])
            .state
        };
        assert_eq!(of(0, DEAD_ROWS - 1), State::Ok);
        assert_eq!(of(DEAD_ROWS + 1, DEAD_ROWS), State::Ok);
        assert_eq!(of(10, DEAD_ROWS), State::Warning);
    }

    #[test]
    fn retention_is_behind_only_beyond_its_slack() {
        let day = Duration::from_secs(86_400);
        let of = |hours: f64| retention(Some(hours * 3600.0), day, Duration::from_secs(30)).state;
        assert_eq!(of(24.9), State::Ok);
        assert_eq!(of(25.1), State::Warning);
    }

    #[test]
    fn bindings_are_never_called_ok() {
        let of = |waiting, dead| bindings(Some(Returned { waiting, dead })).state;
        assert_eq!(of(0, 0), State::NotChecked);
        assert_eq!(bindings(None).state, State::NotChecked);
        assert_eq!(of(0, 1), State::Warning);
    }
}
