//! Panics as log lines. The default hook writes to standard error by itself: unstructured, and blocked when nobody reads it.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    panic, thread,
};

/// Longest text of a panic, in characters.
const TEXT: usize = 200;

/// From now on a panic is one line in the log. `flush` writes the lines that wait.
pub(super) fn log(flush: fn()) {
    panic::set_hook(Box::new(move |panicked| {
        let location = panicked.location().map(ToString::to_string);
        // Only with RUST_BACKTRACE.
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(backtrace));
        tracing::error!(
            location,
            text = text(panicked.payload()),
            backtrace,
            "panicked: this is a bug"
        );
        // A panic of the main thread ends the process, and the log's own thread with it.
        if thread::current().name() == Some("main") {
            flush();
        }
    }));
}

/// The text of a panic, without the values that it quotes: a string that was cut in the wrong place, or an error that was
/// unwrapped, may hold part of a message.
pub fn text(payload: &(dyn Any + Send)) -> String {
    // A literal holds no values.
    if let Some(literal) = payload.downcast_ref::<&'static str>() {
        return (*literal).to_owned();
    }
    match payload.downcast_ref::<String>() {
        Some(formatted) => without_values(formatted),
        None => "a value that is no text".to_owned(),
    }
}

fn without_values(formatted: &str) -> String {
    let quotes = |c: char| matches!(c, '`' | '"' | '\'' | '[' | '{' | '(');
    let kept = formatted.split(quotes).next().unwrap_or_default();
    let short: String = kept.chars().take(TEXT).collect();
    if short.len() < formatted.len() {
        format!("{short}…")
    } else {
        short
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    fn of(panics: impl FnOnce() + panic::UnwindSafe) -> String {
        let payload = panic::catch_unwind(panics).expect_err("it panics");
        text(&*payload)
    }

    fn failed<E>(error: E) -> Result<(), E> {
        Err(error)
    }

    #[test]
    fn the_text_of_a_panic_quotes_no_value() {
        let body = "a body with é in it".to_owned();
        let bytes: Vec<u8> = body.bytes().collect();
        let (inner, n) = (body.clone(), bytes.len());
        for said in [
            of(move || _ = black_box(&inner[..13])),
            of({
                let body = body.clone();
                move || failed(body).unwrap()
            }),
            of(move || failed(body.into_bytes()).expect("it works")),
        ] {
            assert!(said.ends_with('…') && said.len() > 5, "{said}");
            for part in ["body", "with", "97", "é"] {
                assert!(!said.contains(part), "{said}");
            }
        }
        let out = of(move || _ = black_box(bytes[n]));
        assert_eq!(
            out,
            "index out of bounds: the len is 20 but the index is 20"
        );
        let literal = "a literal: `as it is`";
        assert_eq!(of(move || panic!("a literal: `as it is`")), literal);
        assert_eq!(of(|| panic::panic_any(7)), "a value that is no text");
    }
}
