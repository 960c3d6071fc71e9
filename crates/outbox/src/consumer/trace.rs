//! The span of a delivery.

use tracing::Span;

use super::Message;

/// With the feature `opentelemetry` its parent is the producer's span, as `traceparent` and `tracestate` name it.
/// <https://www.w3.org/TR/trace-context/>
pub(super) fn span(consumer: &str, message: &Message) -> Span {
    let span = tracing::info_span!(
        "consume",
        consumer,
        message_id = message.message_id(),
        traceparent = message.traceparent(),
    );
    #[cfg(feature = "opentelemetry")]
    continued(&span, message);
    span
}

#[cfg(feature = "opentelemetry")]
fn continued(span: &Span, message: &Message) {
    use opentelemetry::{
        Context,
        propagation::{Extractor, TextMapPropagator},
    };
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    struct Headers(Vec<(&'static str, String)>);
    impl Extractor for Headers {
        fn get(&self, key: &str) -> Option<&str> {
            let found = self.0.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| value.as_str())
        }
        fn keys(&self) -> Vec<&str> {
            self.0.iter().map(|(name, _)| *name).collect()
        }
    }
    let headers = ["traceparent", "tracestate"]
        .into_iter()
        .filter_map(|name| Some((name, message.text_header(name)?)))
        .collect();
    // A malformed context is no parent.
    let parent =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let _ = span.set_parent(parent);
}
