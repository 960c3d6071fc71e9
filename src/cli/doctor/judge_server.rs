//! From facts about the two servers and this process to lines. No I/O.

use super::{
    checks::{
        CLOCK, CONNECTED, CONNECTIONS, Check, DATABASE_TLS, DATABASE_VERSION, DESCRIPTORS, SETTINGS,
    },
    line::Line,
};
use crate::outbox::server::{Clocks, Connections, Server, Share};

/// The versions of PostgreSQL that `cargo xtask matrix` tests.
const VERSIONS: std::ops::RangeInclusive<i32> = 14..=18;
/// Connections of a relay beside its workers': scout, listener, maintenance.
const BESIDE_WORKERS: usize = 3;
/// A clock that NTP corrects is nearer.
const CLOCKS_APART_S: f64 = 2.0;
const DAY_S: i64 = 86_400;
const RENEW_WITHIN_DAYS: i64 = 30;

pub const PLAINTEXT: &str =
    "plaintext to another host: anybody on the way can read the password and every event";

pub fn connected(server: &Server) -> Line {
    let place = match (&server.address, server.port) {
        (Some(address), Some(port)) => format!("{address}, port {port}"),
        _ => "a socket of this host".to_owned(),
    };
    Line::ok(
        &CONNECTED,
        format!(
            "{place}, database {}, user {}",
            server.database, server.login
        ),
    )
}

/// `on_this_host`: every server of the URL is.
pub fn database_tls(server: &Server, on_this_host: bool, verified: bool) -> Line {
    match (&server.tls, on_this_host, verified) {
        (Some(tls), _, true) => {
            Line::ok(&DATABASE_TLS, format!("{tls}, the certificate is verified"))
        }
        (_, true, _) => Line::ok(&DATABASE_TLS, "the connection stays on this host"),
        (Some(tls), false, false) => Line::warning(
            &DATABASE_TLS,
            format!("{tls}, but sslmode=prefer also accepts plaintext"),
        ),
        // A pooler may end the encryption: then the server's own connection has none.
        (None, false, true) => Line::ok(
            &DATABASE_TLS,
            "encrypted up to a pooler, whose connection to the server is not",
        ),
        (None, false, false) => Line::warning(&DATABASE_TLS, PLAINTEXT),
    }
}

pub fn database_version(server: &Server) -> Line {
    let major = server.number / 10_000;
    let version = &server.version;
    if VERSIONS.contains(&major) {
        return Line::ok(&DATABASE_VERSION, format!("PostgreSQL {version}"));
    }
    let tested = format!("14 to {}", VERSIONS.end());
    let text = format!("PostgreSQL {version}; outboxd is tested with {tested}");
    match major < *VERSIONS.start() {
        true => Line::fault(&DATABASE_VERSION, text),
        false => Line::warning(&DATABASE_VERSION, text),
    }
}

/// The free connections of the tightest limit, beside this session's own.
pub fn connections(found: &Connections, workers: usize) -> Line {
    let free = |share: Share| Some(share.limit? - share.used);
    let all = [
        ("the server (max_connections)", found.server),
        ("this role (CONNECTION LIMIT)", found.role),
        ("this database (CONNECTION LIMIT)", found.database),
    ];
    let tightest = all
        .into_iter()
        .filter_map(|(what, share)| Some((free(share)?, share, what)))
        .min_by_key(|(free, ..)| *free);
    let Some((free, share, what)) = tightest else {
        return Line::ok(&CONNECTIONS, "there is no limit");
    };
    let needed = workers + BESIDE_WORKERS;
    let text = format!(
        "{} of {} connections are free for {what}; a relay uses {needed}",
        free.max(0),
        share.limit.unwrap_or_default()
    );
    match usize::try_from(free).is_ok_and(|free| free >= needed) {
        true => Line::ok(&CONNECTIONS, text),
        false => Line::warning(&CONNECTIONS, text),
    }
}

/// The server read its clock between the question and the answer, so the difference has bounds.
pub fn clock(found: Clocks) -> Line {
    let (low, high) = (found.server - found.after, found.server - found.before);
    let text =
        format!("the database's clock is between {low:+.3} s and {high:+.3} s from this machine's");
    match low > CLOCKS_APART_S || high < -CLOCKS_APART_S {
        true => Line::warning(&CLOCK, text),
        false => Line::ok(&CLOCK, text),
    }
}

pub fn settings(harmful: &[String]) -> Line {
    if harmful.is_empty() {
        return Line::ok(&SETTINGS, "no harmful setting");
    }
    Line::warning(
        &SETTINGS,
        format!(
            "{}: after a crash of the server, events that were published may never have been committed, or vacuum does not run",
            harmful.join("; ")
        ),
    )
}

/// `limits`: soft and hard. A relay raises the soft limit itself.
pub fn descriptors(limits: Option<(u64, u64)>, needed: u64) -> Line {
    let Some((_, hard)) = limits else {
        return Line::not_checked(&DESCRIPTORS, "the system does not tell the limit");
    };
    let text = format!(
        "this process may open {hard} files and sockets, and a relay of this configuration needs {needed}; a relay's own limit \
         may differ"
    );
    match hard >= needed {
        true => Line::ok(&DESCRIPTORS, text),
        false => Line::warning(&DESCRIPTORS, text),
    }
}

/// A certificate's server, and the end of its validity or why it could not be seen.
pub type Certificate = (String, Result<i64, String>);

pub fn certificates(check: &'static Check, found: &[Certificate], now: i64) -> Line {
    let mut texts = Vec::new();
    let mut doubtful = false;
    for (server, ends) in found {
        let text = match ends {
            Ok(ends) => {
                let days = (ends - now).div_euclid(DAY_S);
                doubtful |= days < RENEW_WITHIN_DAYS;
                format!("{server}: {days} days left")
            }
            Err(why) => {
                doubtful = true;
                format!("{server}: {why}")
            }
        };
        texts.push(text);
    }
    match doubtful {
        true => Line::warning(check, texts.join("; ")),
        false => Line::ok(check, texts.join("; ")),
    }
}

/// The version in the broker's greeting. `cargo xtask matrix` tests 3.10 and newer.
pub fn broker_version(check: &'static Check, greeting: Option<&str>) -> Line {
    let Some(greeting) = greeting else {
        return Line::not_checked(check, "the broker's greeting names no version");
    };
    let numbers = greeting.rsplit(' ').next().unwrap_or_default();
    let mut numbers = numbers.split('.').map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    match version {
        (Some(major), Some(minor))
            if (major, minor) >= (3, 10) && greeting.starts_with("RabbitMQ") =>
        {
            Line::ok(check, greeting)
        }
        _ => Line::warning(
            check,
            format!("{greeting}; outboxd is tested with RabbitMQ 3.10 and newer"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::{
        checks::{BROKER_VERSION, DATABASE_CERTIFICATE},
        line::State,
    };

    #[test]
    fn a_clock_is_judged_by_the_bounds_of_the_round_trip() {
        let apart = |before: f64, server: f64, after: f64| {
            let clocks = Clocks {
                before,
                server,
                after,
            };
            clock(clocks).state
        };
        assert_eq!(apart(100.0, 100.5, 101.0), State::Ok);
        assert_eq!(
            apart(100.0, 110.0, 109.0),
            State::Ok,
            "a slow answer proves nothing"
        );
        assert_eq!(apart(100.0, 110.0, 101.0), State::Warning);
        assert_eq!(apart(100.0, 90.0, 101.0), State::Warning);
    }

    #[test]
    fn the_tightest_limit_of_connections_counts() {
        let share = |limit, used| Share { limit, used };
        let with = |role| Connections {
            server: share(Some(97), 10),
            role,
            database: share(None, 5),
        };
        assert_eq!(connections(&with(share(None, 9)), 4).state, State::Ok);
        let tight = connections(&with(share(Some(8), 2)), 4);
        assert_eq!(tight.state, State::Warning);
        assert!(tight.finding.starts_with("6 of 8") && tight.finding.contains("this role"));
    }

    #[test]
    fn a_certificate_is_renewed_in_time_and_one_that_cannot_be_seen_is_named() {
        let of = |ends| certificates(&DATABASE_CERTIFICATE, &[("db".to_owned(), ends)], 0).state;
        assert_eq!(of(Ok(31 * DAY_S)), State::Ok);
        assert_eq!(of(Ok(30 * DAY_S - 1)), State::Warning);
        assert_eq!(of(Err("expired".to_owned())), State::Warning);
    }

    #[test]
    fn versions_that_are_not_tested_are_told() {
        let of = |greeting| broker_version(&BROKER_VERSION, Some(greeting)).state;
        assert_eq!(of("RabbitMQ 4.2.1"), State::Ok);
        assert_eq!(of("RabbitMQ 3.10.0"), State::Ok);
        assert_eq!(of("RabbitMQ 3.9.29"), State::Warning);
        assert_eq!(of("LavinMQ 2.1.0"), State::Warning);
    }
}
