//! Values of flags: parsed strictly; a refusal says what would be right.

use std::time::{Duration, SystemTime};

use clap::builder::PossibleValuesParser;
use outbox_core::reason::Reason;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// A point in time, as the person gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    At(OffsetDateTime),
    /// A time before now, by the database's clock.
    Ago(Duration),
}

impl Moment {
    pub(super) fn by(self, now: SystemTime) -> OffsetDateTime {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => OffsetDateTime::from(now) - ago,
        }
    }
}

/// The time in UTC, for reports and the record.
pub(super) fn shown(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(&Rfc3339)
        .unwrap_or_else(|_| at.unix_timestamp().to_string())
}

/// RFC 3339, or a duration before now. A time without a zone is refused: the zones of the server, of this machine and of the
/// person may all differ, and the command would silently select the wrong hours.
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    let text = text.trim();
    let mut iso = text.to_uppercase();
    if iso.as_bytes().get(10) == Some(&b' ') {
        iso.replace_range(10..11, "T");
    }
    let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339);
    if let Ok(at) = parse(&iso) {
        return Ok(Moment::At(at));
    }
    for rest in ["Z", ":00Z", "T00:00:00Z"] {
        let zoned = format!("{iso}{rest}");
        if parse(&zoned).is_ok() {
            return Err(format!(
                "has no time zone: write {zoned} for UTC, or end it with an offset, as in {}",
                zoned.replace('Z', "+02:00")
            ));
        }
    }
    match humantime::parse_duration(text) {
        Ok(ago) if ago <= MOST => Ok(Moment::Ago(ago)),
        _ => Err(
            "must be a time with its zone, for example 2026-01-31T08:00:00Z or 2026-01-31T09:00:00+01:00, or a time ago, for example 2h"
                .to_owned(),
        ),
    }
}

/// At most a century, because the database's intervals have a limit too.
const MOST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

pub(super) fn age(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text.trim()) {
        Ok(age) if age <= MOST => Ok(age),
        _ => Err("must be a duration up to 100 years, for example 90s, 2h or 7d".to_owned()),
    }
}

/// Messages a second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.001 to 1000000".to_owned()),
    }
}

/// Refuses an empty value: it is more likely a script's empty variable than a choice.
pub(super) fn text(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("is empty".to_owned());
    }
    Ok(text.to_owned())
}

/// A message id, as a UUID.
pub(super) fn message_id(text: &str) -> Result<Uuid, String> {
    text.trim().parse().map_err(|_| {
        "is not a message id, which is a UUID such as 0190163d-8694-739b-aea5-966c26f8ad91; --key and --correlation-id find \
         messages by other names"
            .to_owned()
    })
}

/// A key, as the commands show it: the aggregate type up to the first slash, then the aggregate id.
pub(super) fn key(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((kind, id)) if !kind.is_empty() && !id.is_empty() => {
            Ok((kind.to_owned(), id.to_owned()))
        }
        _ => {
            Err("must be an aggregate type and an aggregate id, for example order/1042".to_owned())
        }
    }
}

pub(super) fn shown_key((kind, id): &(String, String)) -> String {
    format!("{kind}/{id}")
}

/// The aggregate type that a command selects, by its key or by itself.
pub(super) fn aggregate_type(
    key: Option<&(String, String)>,
    alone: Option<&String>,
) -> Option<String> {
    key.map(|(kind, _)| kind).or(alone).cloned()
}

/// A group, as `outboxd failures` shows it.
pub(super) fn group(text: &str) -> Result<String, String> {
    let name = text.trim().to_lowercase();
    if name.len() == 10 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(name);
    }
    Err(
        "is not a group, which has ten hexadecimal digits; `outboxd failures` shows them"
            .to_owned(),
    )
}

/// The reason codes: completions offer them, and an error names the nearest one.
pub(super) fn reason() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_zone_or_is_refused_with_the_cure() {
        for (typed, utc) in [
            ("2026-01-31T08:00:00Z", "2026-01-31T08:00:00Z"),
            ("2026-01-31t08:00:00z", "2026-01-31T08:00:00Z"),
            ("2026-01-31 09:00:00.5+01:00", "2026-01-31T08:00:00.5Z"),
            ("2026-01-31T02:30:00-05:30", "2026-01-31T08:00:00Z"),
        ] {
            let at = moment(typed).unwrap().by(SystemTime::UNIX_EPOCH);
            assert_eq!(shown(at), utc, "{typed}");
        }
        for (typed, cure) in [
            ("2026-01-31T08:00:00", "write 2026-01-31T08:00:00Z for UTC"),
            (
                "2026-01-31 08:00:00.25",
                "write 2026-01-31T08:00:00.25Z for UTC",
            ),
            ("2026-01-31T08:00", "write 2026-01-31T08:00:00Z for UTC"),
            ("2026-01-31", "write 2026-01-31T00:00:00Z for UTC"),
            ("yesterday", "must be a time with its zone"),
            ("now", "must be a time with its zone"),
            ("1769846400", "must be a time with its zone"),
            ("2026-02-30T08:00:00Z", "must be a time with its zone"),
            ("31.01.2026 08:00", "must be a time with its zone"),
            ("-2h", "must be a time with its zone"),
            ("999999999y", "must be a time with its zone"),
            ("", "must be a time with its zone"),
            ("é", "must be a time with its zone"),
        ] {
            let problem = moment(typed).unwrap_err();
            assert!(problem.contains(cure), "{typed}: {problem}");
        }
    }

    #[test]
    fn how_long_ago_is_told_by_the_clock_that_is_given() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7200);
        let at = moment("1h 30m").unwrap().by(now);
        assert_eq!(shown(at), "1970-01-01T00:30:00Z");
    }

    #[test]
    fn numbers_are_finite_and_in_their_range() {
        for typed in ["inf", "NaN", "-1", "0", "1e300", "1e-300", "x", ""] {
            assert!(rate(typed).is_err(), "{typed}");
        }
        assert_eq!(rate("0.5"), Ok(0.5));
        for typed in ["-5s", "5", "1000y", "99999999999999999999s", ""] {
            assert!(age(typed).is_err(), "{typed}");
        }
        assert_eq!(age("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn a_key_is_a_type_and_an_id_and_the_id_may_have_slashes() {
        let pair = |kind: &str, id: &str| Ok((kind.to_owned(), id.to_owned()));
        assert_eq!(key("order/1042"), pair("order", "1042"));
        assert_eq!(key("order/a/b "), pair("order", "a/b "));
        for typed in ["order", "/1042", "order/", "/", ""] {
            assert!(key(typed).unwrap_err().contains("order/1042"), "{typed}");
        }
        assert!(message_id(" 0190163d-8694-739b-aea5-966c26f8ad91").is_ok());
        assert!(message_id("1042").unwrap_err().contains("--key"));
    }
}
