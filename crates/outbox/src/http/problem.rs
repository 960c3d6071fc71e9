//! Answers to commands that no handler answers.
//!
//! Source: RFC 9457 (problem details), draft-ietf-httpapi-idempotency-key-header section 2.7 (which status).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    KeyMissing,
    KeyMalformed(&'static str),
    CallerUnknown,
    BodyUnread,
    BodyLate,
    BodyTooLarge {
        limit: usize,
    },
    /// The first request with this key is running.
    Busy,
    /// The key was used for another request.
    Reused,
    /// An external effect was begun under this key.
    InDoubt,
    /// The database is unavailable, or lost this transaction. Nothing is applied.
    Unavailable,
    /// The server did not answer the commit.
    Unknown,
    HandlerLate,
    HandlerFailed,
    ResponseTooLarge,
    /// The key is used and has no stored answer: the handler committed by itself, or another program wrote the key.
    MayBeApplied,
    /// A fault of the service; the log names it.
    Internal,
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::KeyMissing | Self::KeyMalformed(_) | Self::BodyUnread => StatusCode::BAD_REQUEST,
            Self::CallerUnknown => StatusCode::UNAUTHORIZED,
            Self::BodyLate => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy | Self::InDoubt => StatusCode::CONFLICT,
            Self::Reused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable | Self::Unknown | Self::HandlerLate => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::HandlerFailed | Self::ResponseTooLarge | Self::MayBeApplied | Self::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// Stable name, by which clients may decide.
    fn name(&self) -> &'static str {
        match self {
            Self::KeyMissing => "key-missing",
            Self::KeyMalformed(_) => "key-malformed",
            Self::CallerUnknown => "caller-unknown",
            Self::BodyUnread => "body-unread",
            Self::BodyLate => "body-late",
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::Busy => "in-progress",
            Self::Reused => "key-reused",
            Self::InDoubt => "in-doubt",
            Self::Unavailable => "unavailable",
            Self::Unknown => "outcome-unknown",
            Self::HandlerLate => "timed-out",
            Self::HandlerFailed => "failed",
            Self::ResponseTooLarge => "response-too-large",
            Self::MayBeApplied => "may-be-applied",
            Self::Internal => "internal",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::KeyMissing => {
                "This request needs an Idempotency-Key header: one new key (a UUID, say) an operation, the same one on every retry.".into()
            }
            Self::KeyMalformed(why) => format!("The Idempotency-Key header cannot be used: {why}."),
            Self::CallerUnknown => "A key belongs to a caller, and it cannot be told who calls.".into(),
            Self::BodyUnread => "The request's body broke off.".into(),
            Self::BodyLate => "The request's body did not arrive in time.".into(),
            Self::BodyTooLarge { limit } => format!("A body may have {limit} bytes."),
            Self::Busy => "The first request with this key is still being processed. Send it again later.".into(),
            Self::Reused => "This key was used for another request. Send that one again, or use a new key.".into(),
            Self::InDoubt => "An effect outside was begun under this key, and its outcome is not known yet.".into(),
            Self::Unavailable => "Nothing was applied. Send the request again with the same key.".into(),
            Self::Unknown => "Whether it was applied is not known. Send the request again with the same key: it is applied once.".into(),
            Self::HandlerLate => "It took too long, and nothing was applied. Send the request again with the same key.".into(),
            Self::HandlerFailed => "It failed, and nothing was applied. The same key may be used again.".into(),
            Self::MayBeApplied => {
                "It may have been applied, and no answer of it is kept. Do not send it under a new key, which could apply it twice: ask what became of it.".into()
            }
            Self::ResponseTooLarge | Self::Internal => {
                "The service could not keep its answer, and nothing was applied.".into()
            }
        }
    }

    /// The problem as `application/problem+json`.
    pub(super) fn response(&self, retry_after: Duration) -> Response<Full<Bytes>> {
        let status = self.status();
        let body = serde_json::json!({
            "type": format!("urn:outboxd:idempotency:{}", self.name()),
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": self.detail(),
        });
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        if *self == Self::Busy || status == StatusCode::SERVICE_UNAVAILABLE {
            let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
