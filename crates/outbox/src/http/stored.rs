//! A response as the inbox stores it: the text of an HTTP/1.1 message, which a person can read in the table.
//!
//! Source: RFC 9112, sections 2 (message format) and 10.1 (media type `message/http`).

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

pub(super) const CONTENT_TYPE: &str = "application/http";
/// Most header lines that `decode` reads, and so `encode` writes.
pub(super) const MAX_HEADERS: usize = 64;

/// Encodes status, chosen headers and body. `None` if `decode` could not read the result.
pub(super) fn encode(
    status: StatusCode,
    headers: &HeaderMap,
    chosen: &[HeaderName],
    body: &[u8],
) -> Option<Vec<u8>> {
    let mut lines = 0;
    let mut message = format!(
        "HTTP/1.1 {} {}\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or_default()
    )
    .into_bytes();
    for name in chosen {
        for value in headers.get_all(name) {
            message.extend_from_slice(name.as_str().as_bytes());
            message.extend_from_slice(b": ");
            message.extend_from_slice(value.as_bytes());
            message.extend_from_slice(b"\r\n");
            lines += 1;
        }
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(body);
    (lines <= MAX_HEADERS).then_some(message)
}

/// `None` if the bytes are not the output of `encode`.
pub(super) fn decode(message: &[u8]) -> Option<Response<Full<Bytes>>> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(end) = head.parse(message).ok()? else {
        return None;
    };
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(&message[end..])));
    *response.status_mut() = StatusCode::from_u16(head.code?).ok()?;
    for line in head.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(line.value).ok()?;
        response.headers_mut().append(name, value);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use http::header;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let with = |lines| {
            let mut headers = HeaderMap::new();
            for _ in 0..lines {
                headers.append(header::ETAG, HeaderValue::from_static("x"));
            }
            encode(StatusCode::OK, &headers, &[header::ETAG], b"")
        };
        let most = decode(&with(MAX_HEADERS).unwrap()).unwrap();
        assert_eq!(most.headers().len(), MAX_HEADERS);
        assert_eq!(with(MAX_HEADERS + 1), None);
    }

    proptest! {
        /// Any status, any header value that HTTP allows, any body.
        #[test]
        fn a_response_comes_back_as_it_was(
            status in 200u16..600,
            etags in prop::collection::vec("[!-~]([ -~]{0,20}[!-~])?", 0..4),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let status = StatusCode::from_u16(status).unwrap();
            let mut headers = HeaderMap::new();
            for etag in &etags {
                headers.append(header::ETAG, HeaderValue::from_str(etag).unwrap());
            }
            headers.insert(header::SET_COOKIE, HeaderValue::from_static("not=chosen"));
            let message = encode(status, &headers, &[header::ETAG], &body).unwrap();
            let response = decode(&message).unwrap();
            prop_assert_eq!(response.status(), status);
            headers.remove(header::SET_COOKIE);
            prop_assert_eq!(response.headers(), &headers);
            let read = futures_util::FutureExt::now_or_never(response.into_body().collect());
            prop_assert_eq!(read.unwrap().unwrap().to_bytes(), body);
        }

        #[test]
        fn anything_else_is_not_a_response(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assume!(!bytes.starts_with(b"HTTP/1."));
            // Line breaks may come before a message.
            prop_assume!(!bytes.starts_with(b"\r") && !bytes.starts_with(b"\n"));
            prop_assert!(decode(&bytes).is_none());
        }
    }
}
