//! The limits of AMQP that a row must keep. Services check them before they write a row, and the relay checks them
//! before it publishes the row. No I/O.

/// Longest exchange name, routing key, header name or other short string of AMQP, in bytes.
pub const SHORT: usize = 255;
/// Longest JSON text of a row's headers, in bytes: a longer one cannot fit into a frame of RabbitMQ's default size.
pub const HEADERS_TEXT: usize = 131_072;
/// Maximum nesting of a row's headers; the outer object is the first level.
pub const HEADER_LEVELS: usize = 4;

/// Why AMQP cannot carry a text as a short string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotShort {
    TooLong,
    ControlCharacter,
}

/// Checks a text that becomes an AMQP short string.
#[inline]
pub fn short(text: &str) -> Result<(), NotShort> {
    if text.len() > SHORT {
        Err(NotShort::TooLong)
    } else if is_clean(text) {
        Ok(())
    } else {
        Err(NotShort::ControlCharacter)
    }
}

/// Checks that a text has no control characters: a terminal that shows the text would execute them.
#[inline]
pub fn is_clean(text: &str) -> bool {
    !text.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_string_has_255_bytes_at_most_and_no_control_character() {
        assert_eq!(short(""), Ok(()));
        assert_eq!(short(&"x".repeat(255)), Ok(()));
        assert_eq!(short(&"x".repeat(256)), Err(NotShort::TooLong));
        assert_eq!(
            short(&"é".repeat(128)),
            Err(NotShort::TooLong),
            "bytes, not characters"
        );
        for text in ["a\n", "\0", "a\u{85}b", "\u{7f}"] {
            assert_eq!(short(text), Err(NotShort::ControlCharacter), "{text:?}");
        }
    }
}
