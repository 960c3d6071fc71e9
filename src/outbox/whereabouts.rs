//! Where a message is: the state that the rows of one snapshot tell, and how long the messages before it will take. No I/O.

use outbox_core::message::Message;
use serde::Serialize;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Above the mark: the next claims of its lane read it.
    Pending,
    /// Not before `available_at`.
    Scheduled,
    /// In `outbox.waiting`, for the reason that its cause tells.
    Waiting,
    /// Everything to its destination fails.
    Held,
    /// Given up.
    Dead,
    /// Marked as sent. It may wait to be published again.
    Sent,
    /// Unsent, at or below the mark, and filed nowhere.
    Stranded,
}

/// A row of `outbox.waiting`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waiting {
    pub cause: String,
    pub since: String,
    /// `None`: behind another message, or held.
    pub next_try_at: Option<String>,
    pub next_try_in_seconds: Option<f64>,
    pub attempts: i32,
    pub reason: Option<String>,
    pub last_error: Option<String>,
    /// The message was sent before.
    pub replay: bool,
    /// The destination for which it is held.
    #[serde(skip)]
    pub destination: Option<i64>,
    #[serde(skip)]
    pub failed_probes: Option<i32>,
}

/// A row of `outbox.dead`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dead {
    pub died_at: String,
    pub reason: Option<String>,
    pub attempts: i32,
    pub last_error: Option<String>,
    pub replay: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    pub message_id: Uuid,
    pub position: i64,
}

/// The first message of a key that holds the later ones back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    pub message_id: Uuid,
    pub position: i64,
    pub cause: String,
    pub reason: Option<String>,
    pub next_try_at: Option<String>,
}

/// One message, as one snapshot shows it.
#[derive(Debug)]
pub struct Facts {
    /// As a claim would read it, without the body.
    pub message: Message,
    pub created_at: String,
    pub available_at: Option<String>,
    /// `available_at` is still to come.
    pub is_early: bool,
    pub sent_at: Option<String>,
    /// At or below its lane's mark.
    pub is_below_mark: bool,
    pub waiting: Option<Waiting>,
    pub dead: Option<Dead>,
    /// The nearest message of its key that holds it back.
    pub behind: Option<Neighbour>,
    pub head: Option<Head>,
}

impl Facts {
    pub fn state(&self) -> State {
        let sent = self.sent_at.is_some();
        match (&self.waiting, &self.dead) {
            // Sent once, and now to be published again; or marked by hand, and the relay removes the record.
            (Some(_), _) if sent => State::Sent,
            (Some(waiting), _) => match waiting.cause.as_str() {
                "scheduled" => State::Scheduled,
                "held" | "probe" => State::Held,
                _ => State::Waiting,
            },
            // Its replay died, or it did.
            (None, Some(dead)) if dead.replay || !sent => State::Dead,
            _ if sent => State::Sent,
            _ if self.is_below_mark => State::Stranded,
            _ if self.is_early => State::Scheduled,
            _ => State::Pending,
        }
    }
}

/// What stands before a pending message in its lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Ahead {
    pub messages: i64,
    /// More than were counted: derived from the distance between positions.
    pub is_about: bool,
    /// The first pending message of the lane was not found: too many sent ones are between the mark and it.
    pub is_far: bool,
    /// Seconds since each of the lane's last messages was sent.
    pub sent_ages: Vec<f64>,
}

/// What one reading of a lane backwards from a message found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Rows read, at most `limit`.
    pub rows: i64,
    pub limit: i64,
    /// Those of them that are pending.
    pub pending: i64,
    /// Their lowest position.
    pub lowest: i64,
    /// The first pending position of the lane, or one before it; the message's own if there is none before it.
    pub front: i64,
    /// The message's own position.
    pub position: i64,
}

/// How many pending messages are before the message, and whether that is derived: the rows read stand for those that were not.
pub fn before(counted: Counted) -> (i64, bool) {
    let Counted {
        rows,
        limit,
        pending,
        lowest,
        front,
        position,
    } = counted;
    if rows < limit || front >= lowest {
        return (pending, false);
    }
    // The distance of two positions can be larger than an i64.
    let all = position as f64 - front as f64;
    let read = (position as f64 - lowest as f64).max(1.0);
    ((pending as f64 * all / read) as i64, true)
}

/// A rate tells the future for about as long as it was measured.
const MEASURED_S: f64 = 60.0;

/// Seconds until so many messages and one more are sent, at the rate of the lane's last minute. The rate counts the messages
/// since the oldest one, up to now: those of one settle have one time, and a lane that stopped has a rate that falls.
pub fn estimate(ahead: &Ahead) -> Result<f64, &'static str> {
    if ahead.is_far {
        return Err("its lane's mark is far behind, as while a long transaction writes");
    }
    let last_minute = || {
        ahead
            .sent_ages
            .iter()
            .copied()
            .filter(|age| (0.0..=MEASURED_S).contains(age))
    };
    let Some(oldest) = last_minute().reduce(f64::max) else {
        return Err("no message of its lane was sent within the last minute");
    };
    let after_it = last_minute().filter(|age| *age < oldest).count();
    if after_it == 0 {
        return Err("too few messages of its lane were sent within the last minute");
    }
    Ok((ahead.messages + 1) as f64 * oldest / after_it as f64)
}

/// Why no message was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// All places where it can be were searched.
    Unknown,
    /// It may have been sent, and deleted since.
    MaybeDeleted,
    /// Some places where it can be were not searched.
    NotSearched,
}

/// Why no message was found. `whole`: the search covered every place where the message can be. `age_s`: of the message, as far
/// as its id or the asked time tells; without one it may be of any age.
pub fn absent(whole: bool, age_s: Option<f64>, kept_s: f64) -> Absent {
    if !whole {
        Absent::NotSearched
    } else if age_s.is_none_or(|age| age >= kept_s) {
        Absent::MaybeDeleted
    } else {
        Absent::Unknown
    }
}

#[cfg(test)]
mod tests {
    use outbox_core::message::Position;

    use super::*;

    fn facts() -> Facts {
        Facts {
            message: Message {
                position: Position { lane: 3, id: 77 },
                message_id: Uuid::from_u128(1),
                aggregate_type: "order".to_owned(),
                aggregate_id: Some("1".to_owned()),
                event_type: "created".to_owned(),
                content_type: "application/json".to_owned(),
                headers: None,
                headers_size: 0,
                exchange: None,
                routing_key: None,
                created_at_us: 0,
                attempts: 0,
                replay: false,
                body_size: 2,
                body: None,
                damage: None,
            },
            created_at: String::new(),
            available_at: None,
            is_early: false,
            sent_at: None,
            is_below_mark: false,
            waiting: None,
            dead: None,
            behind: None,
            head: None,
        }
    }

    fn waits(cause: &str, replay: bool) -> Option<Waiting> {
        Some(Waiting {
            cause: cause.to_owned(),
            since: String::new(),
            next_try_at: None,
            next_try_in_seconds: None,
            attempts: 0,
            reason: None,
            last_error: None,
            replay,
            destination: None,
            failed_probes: None,
        })
    }

    fn died(replay: bool) -> Option<Dead> {
        Some(Dead {
            died_at: String::new(),
            reason: None,
            attempts: 1,
            last_error: None,
            replay,
        })
    }

    fn sent() -> Option<String> {
        Some("2026-01-31T08:00:00Z".to_owned())
    }

    #[test]
    fn what_is_filed_nowhere_is_told_by_its_mark_and_its_position() {
        assert_eq!(facts().state(), State::Pending);
        let early = Facts {
            is_early: true,
            ..facts()
        };
        assert_eq!(early.state(), State::Scheduled);
        let below = Facts {
            is_below_mark: true,
            ..facts()
        };
        assert_eq!(below.state(), State::Stranded);
        // Below the mark no claim reads it, whenever it is due.
        let both = Facts {
            is_below_mark: true,
            is_early: true,
            ..facts()
        };
        assert_eq!(both.state(), State::Stranded);
        for is_below_mark in [true, false] {
            let marked = Facts {
                sent_at: sent(),
                is_below_mark,
                ..facts()
            };
            assert_eq!(marked.state(), State::Sent);
        }
    }

    #[test]
    fn what_waits_is_told_by_its_cause_and_not_by_the_mark() {
        for is_below_mark in [true, false] {
            for (cause, state) in [
                ("retry", State::Waiting),
                ("behind", State::Waiting),
                ("redrive", State::Waiting),
                ("stranded", State::Waiting),
                ("scheduled", State::Scheduled),
                ("held", State::Held),
                ("probe", State::Held),
            ] {
                let waiting = Facts {
                    waiting: waits(cause, false),
                    is_below_mark,
                    ..facts()
                };
                assert_eq!(waiting.state(), state, "{cause}");
            }
        }
    }

    #[test]
    fn a_sent_message_stays_sent_while_it_waits_to_be_published_again() {
        for cause in ["replay", "redrive", "held", "retry"] {
            let again = Facts {
                waiting: waits(cause, true),
                sent_at: sent(),
                ..facts()
            };
            assert_eq!(again.state(), State::Sent, "{cause}");
        }
        let by_hand = Facts {
            waiting: waits("retry", false),
            sent_at: sent(),
            ..facts()
        };
        assert_eq!(by_hand.state(), State::Sent);
    }

    #[test]
    fn a_dead_message_is_dead_until_it_is_marked_and_so_is_a_dead_replay() {
        assert_eq!(
            Facts {
                dead: died(false),
                ..facts()
            }
            .state(),
            State::Dead
        );
        let replay = Facts {
            dead: died(true),
            sent_at: sent(),
            ..facts()
        };
        assert_eq!(replay.state(), State::Dead);
        let marked = Facts {
            dead: died(false),
            sent_at: sent(),
            ..facts()
        };
        assert_eq!(marked.state(), State::Sent);
        let redriven = Facts {
            dead: died(false),
            waiting: waits("redrive", false),
            ..facts()
        };
        assert_eq!(redriven.state(), State::Waiting);
    }

    #[test]
    fn what_is_before_a_message_is_counted_up_to_a_limit_and_derived_above() {
        let counted = Counted {
            rows: 3,
            limit: 10,
            pending: 2,
            lowest: 5,
            front: 5,
            position: 100,
        };
        assert_eq!(before(counted), (2, false));
        let full = Counted {
            rows: 10,
            limit: 10,
            pending: 8,
            lowest: 900,
            front: 100,
            position: 1_000,
        };
        assert_eq!(before(full), (72, true));
        // The largest distance.
        let extreme = Counted {
            lowest: i64::MAX - 100,
            front: i64::MIN,
            position: i64::MAX,
            ..full
        };
        assert!(before(extreme).1);
        // What was read reaches the front.
        assert_eq!(before(Counted { front: 900, ..full }), (8, false));
        assert_eq!(
            before(Counted {
                rows: 0,
                lowest: 0,
                front: 1_000,
                pending: 0,
                ..full
            }),
            (0, false)
        );
    }

    #[test]
    fn time_is_estimated_from_the_last_minute_or_not_at_all() {
        let estimate = |messages, sent_ages: &[f64]| {
            super::estimate(&Ahead {
                messages,
                is_about: false,
                is_far: false,
                sent_ages: sent_ages.to_vec(),
            })
        };
        assert_eq!(estimate(19, &[2.0, 1.0, 1.0, 0.5, 0.5]), Ok(10.0));
        // What is older than a minute tells nothing.
        assert_eq!(estimate(19, &[90.0, 2.0, 1.0, 1.0, 0.5, 0.5]), Ok(10.0));
        assert!(
            estimate(1, &[])
                .unwrap_err()
                .contains("no message of its lane")
        );
        assert!(
            estimate(1, &[90.0, 61.0])
                .unwrap_err()
                .contains("no message of its lane")
        );
        // All of one settle: the time between them is not known.
        assert!(estimate(1, &[5.0, 5.0]).unwrap_err().contains("too few"));
        // A clock that was set back.
        assert!(estimate(1, &[-5.0]).is_err());
        let far = Ahead {
            messages: 19,
            is_about: true,
            is_far: true,
            sent_ages: vec![2.0, 1.0],
        };
        assert!(super::estimate(&far).unwrap_err().contains("far behind"));
    }

    #[test]
    fn a_message_is_unknown_only_where_everything_was_searched_and_nothing_can_have_deleted_it() {
        assert_eq!(absent(false, Some(1.0), 10.0), Absent::NotSearched);
        assert_eq!(absent(false, None, 10.0), Absent::NotSearched);
        assert_eq!(absent(true, Some(9.0), 10.0), Absent::Unknown);
        assert_eq!(absent(true, Some(10.0), 10.0), Absent::MaybeDeleted);
        assert_eq!(absent(true, None, 10.0), Absent::MaybeDeleted);
        assert_eq!(absent(true, Some(0.0), 0.0), Absent::MaybeDeleted);
    }
}
