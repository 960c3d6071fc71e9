//! The values that a key takes. The reader checks by them; the documents and the errors describe them.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, time};

/// The values that a key takes. Both bounds of a range are allowed values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Integer(u64, u64),
    Duration(time::Duration, time::Duration),
    /// Bytes.
    Size(u64, u64),
    /// A text with this length in bytes.
    Text(usize, usize),
    Word(&'static [&'static str]),
    Flag,
    /// The address of a socket, or `off`.
    Address,
    /// The address of the database; a secret.
    Database,
    /// The address of the broker; a secret.
    Broker,
    /// Texts.
    List,
    /// `[[routing.routes]]`.
    Routes,
    /// Texts that the key's section checks; the description is for the documents.
    Described(&'static str),
}

const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl Takes {
    pub(super) fn integer(&self, text: &str) -> Option<u64> {
        let Self::Integer(least, most) = *self else {
            return None;
        };
        within(text.parse().ok()?, least..=most)
    }

    pub(super) fn duration(&self, text: &str) -> Option<time::Duration> {
        let Self::Duration(least, most) = *self else {
            return None;
        };
        within(humantime::parse_duration(text).ok()?, least..=most)
    }

    pub(super) fn size(&self, text: &str) -> Option<u64> {
        let Self::Size(least, most) = *self else {
            return None;
        };
        within(parse_size(text)?, least..=most)
    }

    pub(super) fn text(&self, text: &str) -> Option<String> {
        let Self::Text(least, most) = *self else {
            return None;
        };
        within(text.len(), least..=most)?;
        (!text.contains(char::is_control)).then(|| text.to_owned())
    }

    pub(super) fn word(&self, text: &str) -> Option<&'static str> {
        let Self::Word(words) = *self else {
            return None;
        };
        words.iter().copied().find(|word| *word == text)
    }

    pub(super) fn flag(&self, text: &str) -> Option<bool> {
        let Self::Flag = self else {
            return None;
        };
        text.parse().ok()
    }

    /// `Some(None)` for `off`.
    pub(super) fn address(&self, text: &str) -> Option<Option<SocketAddr>> {
        match (self, text) {
            (Self::Address, "off") => Some(None),
            (Self::Address, text) => text.parse().ok().map(Some),
            _ => None,
        }
    }

    /// The error for a value that the key does not take.
    pub(super) fn refusal(&self) -> String {
        match self {
            Self::Integer(..) => format!("must be a whole number from {self}"),
            Self::Duration(..) => format!("must be a duration from {self}, for example \"5s\""),
            Self::Size(..) => format!("must be a size from {self}, for example \"16MiB\""),
            Self::Text(..) => format!("must have {self}, and no control characters"),
            Self::Word(_)
            | Self::Flag
            | Self::Database
            | Self::Broker
            | Self::List
            | Self::Routes
            | Self::Described(_) => format!("must be {self}"),
            Self::Address => format!("must be an {self}, for example \"127.0.0.1:9464\""),
        }
    }
}

impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Integer(least, most) => write!(f, "{least} to {most}"),
            Self::Duration(least, most) => write!(
                f,
                "{} to {}",
                humantime::format_duration(least),
                humantime::format_duration(most)
            ),
            Self::Size(least, most) => write!(f, "{} to {}", size(least), size(most)),
            Self::Text(0, most) => write!(f, "at most {most} bytes"),
            Self::Text(least, most) => write!(f, "{least} to {most} bytes"),
            Self::Word(words) => match words {
                [others @ .., before, last] => {
                    for word in others {
                        write!(f, "{word}, ")?;
                    }
                    write!(f, "{before} or {last}")
                }
                words => f.write_str(&words.concat()),
            },
            Self::Flag => f.write_str("true or false"),
            Self::Address => f.write_str("IP address and port, or off"),
            Self::Database => f.write_str("postgres:// URL or key=value text; secret"),
            Self::Broker => f.write_str("amqp:// or amqps:// URL; secret"),
            Self::List => f.write_str("list"),
            Self::Routes => f.write_str("[[routing.routes]] tables"),
            Self::Described(description) => f.write_str(description),
        }
    }
}

fn within<T: PartialOrd>(value: T, range: RangeInclusive<T>) -> Option<T> {
    range.contains(&value).then_some(value)
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let unit = match unit.trim() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The size in the largest unit that divides it.
fn size(bytes: u64) -> String {
    let divides = |(_, unit): &&(&str, u64)| bytes >= *unit && bytes.is_multiple_of(*unit);
    match UNITS.iter().find(divides) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}
