//! A trace across processes: the header `traceparent` (W3C Trace Context, level 1), and the variable `TRACEPARENT`.

use std::sync::OnceLock;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// Bytes of a `traceparent` of version 00 (section 3.2.2): two, 32, 16 and two hex digits, and three dashes.
const PARENT_BYTES: usize = 55;
/// Bytes of `tracestate` that are passed on: what everybody has to take (section 3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

/// Who asked this process, where no span of its own is sent along.
static ASKER: OnceLock<Context> = OnceLock::new();

/// What came along with a request or in the environment.
struct Carrier {
    parent: String,
    state: Option<String>,
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            PARENT => Some(&self.parent),
            STATE => self.state.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT, STATE]
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        let pair = (HeaderName::try_from(key), HeaderValue::try_from(value));
        if let (Ok(name), Ok(value)) = pair
            && !value.is_empty()
        {
            self.0.insert(name, value);
        }
    }
}

/// Whether a `traceparent` has the form that version 00 has, which is all that is ever read of later ones. The library
/// that reads it also takes numbers that are too short or have a sign.
fn is_well_formed(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (own, rest) = bytes.split_at(bytes.len().min(PARENT_BYTES));
    let shape = own.iter().enumerate().all(|(at, byte)| match at {
        2 | 35 | 52 => *byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    });
    let longer = !own.starts_with(b"00") && rest.first() == Some(&b'-') && bytes.len() <= STATE_BYTES_MAX;
    own.len() == PARENT_BYTES && shape && (rest.is_empty() || longer)
}

fn read(parent: &str, state: Option<&str>) -> Option<Context> {
    if !is_well_formed(parent) {
        return None;
    }
    let carrier = Carrier {
        parent: parent.to_owned(),
        state: state
            .filter(|text| text.len() <= STATE_BYTES_MAX)
            .map(str::to_owned),
    };
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    context.has_active_span().then_some(context)
}

/// The span of a caller; `None` if there is none, or one that cannot be.
pub fn of_headers(headers: &HeaderMap) -> Option<Context> {
    let mut all = headers.get_all(PARENT).iter();
    let (parent, None) = (all.next()?.to_str().ok()?, all.next()) else {
        return None;
    };
    let state = headers.get(STATE).and_then(|value| value.to_str().ok());
    read(parent, state)
}

/// The span of the build that runs this command (`TRACEPARENT`); what it asks for carries it from now on.
pub fn of_environment() -> Option<&'static Context> {
    let parent = std::env::var("TRACEPARENT").ok()?;
    let state = std::env::var("TRACESTATE").ok();
    let context = read(parent.trim(), state.as_deref())?;
    Some(ASKER.get_or_init(|| context))
}

/// The id of the span's trace, in hex digits; `None` if nobody makes traces.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let own = context.span().span_context().clone();
    own.is_valid().then(|| own.trace_id().to_string())
}

/// Adds the header for the span, or else for whoever asked this process; without either nothing.
pub fn into_headers(span: &Span, headers: &mut HeaderMap) {
    let own = span.context();
    let context = match own.has_active_span() {
        true => Some(&own),
        false => ASKER.get(),
    };
    if let Some(context) = context {
        TraceContextPropagator::new().inject_context(context, &mut Headers(headers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn trace_of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PARENT, HeaderValue::from_str(value).unwrap());
        }
        let context = of_headers(&headers)?;
        Some(context.span().span_context().trace_id().to_string())
    }

    #[test]
    fn a_caller_s_trace_goes_on_sampled_or_not() {
        for flags in ["00", "01", "03"] {
            let parent = format!("00-{TRACE}-00f067aa0ba902b7-{flags}");
            assert_eq!(trace_of(&[&parent]).as_deref(), Some(TRACE), "{parent}");
        }
        let later = format!("cc-{TRACE}-00f067aa0ba902b7-01-what-comes-later");
        assert_eq!(trace_of(&[&later]).as_deref(), Some(TRACE));
    }

    /// Without the look at its form, the short ones, the signs and the long tail are taken.
    #[test]
    fn a_hostile_traceparent_is_ignored() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let long = format!("cc-{TRACE}-00f067aa0ba902b7-01-{}", "a".repeat(10_000));
        for bad in [
            "",
            "00",
            "00-abc-def-01",
            &format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            &format!("00-+{}-00f067aa0ba902b7-01", &TRACE[1..]),
            &format!("00-{TRACE}-00f067aa0ba902b7-0"),
            &format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            &format!("00-{TRACE}-00f067aa0ba902b7-01-"),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            &format!("00_{TRACE}_00f067aa0ba902b7_01"),
            &format!("cc-{TRACE}-00f067aa0ba902b7-01more"),
            &long,
            &"0".repeat(10_000),
            &"-".repeat(10_000),
        ] {
            assert_eq!(trace_of(&[bad]), None, "{bad:.80}");
        }
        assert_eq!(trace_of(&[&good, &good]), None, "two of them");
        let mut headers = HeaderMap::new();
        headers.insert(PARENT, HeaderValue::from_bytes(b"00-\xff\xfe").unwrap());
        assert!(of_headers(&headers).is_none());
        // A vendor's state beyond what has to be taken is left out, and the trace goes on.
        headers.insert(PARENT, HeaderValue::from_str(&good).unwrap());
        let state = format!("vendor={}", "a".repeat(10_000));
        headers.insert(STATE, HeaderValue::from_str(&state).unwrap());
        let context = of_headers(&headers).unwrap();
        assert_eq!(context.span().span_context().trace_state().header(), "");
    }
}
