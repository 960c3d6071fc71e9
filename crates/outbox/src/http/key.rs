//! The header `Idempotency-Key`, and the scope in which its key is unique.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, Method, request::Parts};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sfv::{BareItem, Item, Parser};
use sha2::{Digest, Sha256};

use super::problem::Problem;

pub(super) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest key of a caller, in bytes.
const MAX_KEY: usize = 255;
/// Longest key of the inbox, in bytes; the schema refuses more.
const MAX_SCOPED: usize = 255;

/// The key, or `None` without the header. It is a structured string (`"8e03"`, as in the draft) or the bare text that most
/// clients send.
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
        // A comma would mean two headers that were joined on the way.
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

/// Characters that are escaped in the parts of a scope: the separator and the escape character.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// The key in the inbox. It is unique to the caller and the route. It is readable, unless it is too long and must be hashed.
pub(super) fn scoped(method: &Method, route: &str, caller: &str, key: &str) -> String {
    let mut text = method.as_str().to_owned();
    for part in [route, caller, key] {
        // Writing to a string does not fail.
        let _ = write!(text, " {}", utf8_percent_encode(part, ESCAPED));
    }
    if text.len() <= MAX_SCOPED {
        return text;
    }
    // No method contains a colon, so a hashed key never equals a readable key.
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().fold("sha256:".to_owned(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The canonical spelling of a path or a query: a proxy or another client of the same caller may escape other characters, and
/// the resource is the same. <https://www.rfc-editor.org/rfc/rfc3986#section-6.2.2>
///
/// The function decodes unreserved characters, writes every other escape in capitals, and escapes characters that need it. Dot
/// segments and empty segments stay, because routers distinguish them. `/` and `%2F` also stay as they are, and so does every
/// other reserved character.
pub(super) fn canonical(text: &str) -> String {
    let mut canonical = String::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let escaped = escaped.and_then(|hex| Some(digit(hex[0])? << 4 | digit(hex[1])?));
        let byte = escaped.unwrap_or(byte);
        let stays = match escaped {
            Some(_) => is_unreserved(byte),
            None => is_unreserved(byte) || b":/?#[]@!$&'()*+,;=".contains(&byte),
        };
        if stays {
            canonical.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(canonical, "%{byte:02X}");
        }
        at += if escaped.is_some() { 3 } else { 1 };
    }
    canonical
}

fn digit(hex: u8) -> Option<u8> {
    char::from(hex).to_digit(16)?.try_into().ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The resource of a request: its path, and with the feature `axum` also the kind of its route. axum compares the fixed parts of
/// a route as they are written. So beside a route `/orders/all`, `/orders/al%6c` is another resource: one of `/orders/{id}`.
pub(super) fn resource(request: &Parts) -> String {
    let path = canonical(request.uri.path());
    #[cfg(feature = "axum")]
    if let Some(matched) = request.extensions.get::<axum::extract::MatchedPath>() {
        let kind = without_names(matched.as_str());
        if kind.contains('{') {
            return format!("{path}#{kind}");
        }
    }
    path
}

/// A route without the names of its parameters: a renamed parameter makes no new resource.
#[cfg(feature = "axum")]
fn without_names(route: &str) -> String {
    let mut kind = String::with_capacity(route.len());
    let mut inside = false;
    for c in route.chars() {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            // A parameter that takes the rest of the path is another kind of parameter.
            _ if inside && c != '*' => continue,
            _ => {}
        }
        kind.push(c);
    }
    kind
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

    #[test]
    fn one_path_has_one_spelling() {
        for (spelled, expected) in [
            ("/orders/12", "/orders/12"),
            ("/orders/1%32", "/orders/12"),
            ("/%6frders/%7E%2d%2E%5F", "/orders/~-._"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/café", "/caf%C3%A9"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%3ab", "/a%3Ab"),
            ("/a:b", "/a:b"),
            ("/{x}\"", "/%7Bx%7D%22"),
            ("/100%", "/100%25"),
            ("/100%25", "/100%25"),
            ("/%2", "/%252"),
            ("/%zz", "/%25zz"),
            ("/%2531", "/%2531"),
            ("/a/../b//c/.", "/a/../b//c/."),
            ("x=%7e&y=%26", "x=~&y=%26"),
        ] {
            assert_eq!(canonical(spelled), expected, "{spelled}");
        }
    }

    #[cfg(feature = "axum")]
    #[test]
    fn the_kind_of_a_route_has_no_names() {
        assert_eq!(without_names("/orders/{id}/{*rest}"), "/orders/{}/{*}");
        assert_eq!(without_names("/orders/all"), "/orders/all");
    }

    proptest! {
        #[test]
        fn a_spelling_is_stable_and_means_the_same(text in "(/|%|[a-f0-9]|[ -~]|é){0,30}") {
            let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
            let once = canonical(&text);
            prop_assert_eq!(decoded(&once), decoded(&text));
            prop_assert_eq!(canonical(&once), once.clone());
            prop_assert_eq!(once.matches('/').count(), text.matches('/').count());
        }

        /// Two different scopes never become one key, whatever a caller puts into their parts.
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
