//! The `Idempotency-Key` header, and what its key is unique within.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, Method};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sfv::{BareItem, Item, Parser};
use sha2::{Digest, Sha256};

use super::problem::Problem;

pub(super) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest key of a caller, in bytes.
const MAX_KEY: usize = 255;
/// Longest key of the inbox, in bytes; the schema refuses more.
const MAX_SCOPED: usize = 255;

/// The key, or `None` without the header. A structured string (`"8e03"`, as the draft has it) or the bare text that
/// most clients send.
pub(super) fn from_headers(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Problem::KeyMalformed("the header was sent more than once"));
    }
    let bytes = value.as_bytes().trim_ascii();
    let key = if bytes.starts_with(b"\"") {
        match Parser::new(bytes).parse::<Item>() {
            Ok(Item {
                bare_item: BareItem::String(text),
                ..
            }) => text.as_str().to_owned(),
            _ => return Err(Problem::KeyMalformed("it is not a structured string")),
        }
    } else {
        // A comma would be two headers, joined on the way.
        let allowed = |byte: &u8| byte.is_ascii_graphic() && !b"\",".contains(byte);
        if !bytes.iter().all(allowed) {
            return Err(Problem::KeyMalformed(
                "only visible ASCII without commas and quotes is allowed; put it in quotes",
            ));
        }
        String::from_utf8_lossy(bytes).into_owned()
    };
    match key.len() {
        0 => Err(Problem::KeyMalformed("it is empty")),
        1..=MAX_KEY => Ok(Some(key)),
        _ => Err(Problem::KeyMalformed("it is longer than 255 bytes")),
    }
}

/// What the parts of a scope are joined by, and what would be read as such.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// The key as the inbox has it: a caller's key on one route is nobody else's, and not that of another route. Readable,
/// unless it is too long to be.
pub(super) fn scoped(method: &Method, route: &str, caller: &str, key: &str) -> String {
    let mut text = method.as_str().to_owned();
    for part in [route, caller, key] {
        // Writing to a string does not fail.
        let _ = write!(text, " {}", utf8_percent_encode(part, ESCAPED));
    }
    if text.len() <= MAX_SCOPED {
        return text;
    }
    // No method holds a colon: a hashed key is never one that was short enough.
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().fold("sha256:".to_owned(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn key(values: &[&[u8]]) -> Result<Option<String>, Problem> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        from_headers(&headers)
    }

    #[test]
    fn a_key_is_a_structured_string_or_bare() {
        assert_eq!(key(&[]), Ok(None));
        let uuid = "8e03978e-40d5-43dd-bc93-6894a57f9324";
        assert_eq!(key(&[uuid.as_bytes()]), Ok(Some(uuid.to_owned())));
        assert_eq!(
            key(&[format!("\"{uuid}\"").as_bytes()]),
            Ok(Some(uuid.to_owned()))
        );
        assert_eq!(
            key(&[br#""a \"b\" \\ c""#]),
            Ok(Some(r#"a "b" \ c"#.to_owned()))
        );
        assert_eq!(
            key(&[b"\"with\"; a=parameter"]),
            Ok(Some("with".to_owned()))
        );
        assert_eq!(key(&[&[b'k'; 255]]), Ok(Some("k".repeat(255))));
    }

    #[test]
    fn a_key_that_is_not_clear_is_refused() {
        for bad in [
            &[&b"a"[..], b"b"][..],
            &[b"a, b"],
            &[b"a b"],
            &[b""],
            &[b"  "],
            &[b"\"\""],
            &[b"\"open"],
            &[b"\"a\", \"b\""],
            &[b"\"a\" b"],
            &["schl\u{fc}ssel".as_bytes()],
            &["\"schl\u{fc}ssel\"".as_bytes()],
            &[&[b'k'; 256]],
        ] {
            assert!(matches!(key(bad), Err(Problem::KeyMalformed(_))), "{bad:?}");
        }
    }

    proptest! {
        /// Whatever a caller puts into its parts, two different scopes never become one key.
        #[test]
        fn scopes_never_meet(
            a in ("[ -~]{0,90}", "[ -~]{0,90}", "[ -~]{1,90}"),
            b in ("[ -~]{0,90}", "[ -~]{0,90}", "[ -~]{1,90}"),
        ) {
            let [one, two] = [&a, &b].map(|(route, caller, key)| scoped(&Method::POST, route, caller, key));
            prop_assert_eq!(a == b, one == two);
            prop_assert!(one.len() <= MAX_SCOPED && !one.contains(char::is_control));
        }

        #[test]
        fn a_space_or_an_escape_moves_no_border(left in "[ %20a]{0,6}", right in "[ %20a]{0,6}") {
            let other = scoped(&Method::POST, &format!("{left} {right}"), "", "k");
            prop_assert_ne!(scoped(&Method::POST, &left, &right, "k"), other);
        }
    }
}
