//! A collector of traces in this process, and somebody who notes what comes along with calls.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use kernel::{Clock as _, SystemClock};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;

/// How long spans are waited for.
const SOON: Duration = Duration::from_secs(20);

/// What a collector does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Takes,
    /// Reads it and says nothing.
    Silent,
    Fails,
}

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Span {
    pub service: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty: it is the first of its trace.
    pub parent: String,
    pub links: Vec<String>,
    pub attributes: Vec<(String, String)>,
    pub failed: bool,
}

impl Span {
    pub fn attribute(&self, name: &str) -> &str {
        let found = self.attributes.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }
}

#[derive(Clone)]
pub struct Collector {
    pub url: String,
    mood: Arc<Mutex<Mood>>,
    spans: Arc<Mutex<Vec<Span>>>,
    /// Everything that came, as it came.
    raw: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            mood: Arc::new(Mutex::new(Mood::Takes)),
            spans: Arc::default(),
            raw: Arc::default(),
        };
        let router = axum::Router::new()
            .route("/v1/traces", post(take))
            .with_state(own.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        own
    }

    pub fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    pub fn raw(&self) -> Vec<u8> {
        self.raw.lock().unwrap().clone()
    }

    /// The spans so far, once they are enough.
    pub async fn wait_for(&self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let clock = SystemClock::new();
        let began = clock.monotonic();
        loop {
            let spans = self.spans();
            if enough(&spans) {
                return spans;
            }
            let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
            assert!(
                clock.monotonic().since(began) < SOON,
                "only these came: {names:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn take(State(own): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mood = *own.mood.lock().unwrap();
    match mood {
        Mood::Takes => {}
        Mood::Silent => std::future::pending().await,
        Mood::Fails => return StatusCode::SERVICE_UNAVAILABLE,
    }
    assert_eq!(headers["content-type"], "application/x-protobuf");
    own.raw.lock().unwrap().extend_from_slice(&body);
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        let about = resource.resource.unwrap_or_default().attributes;
        let service = texts(&about).into_iter().find(|(name, _)| name == "service.name");
        let service = service.map(|(_, value)| value).unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            own.spans.lock().unwrap().push(Span {
                service: service.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
                attributes: texts(&span.attributes),
                failed: span.status.is_some_and(|status| status.code == 2),
                name: span.name,
            });
        }
    }
    StatusCode::OK
}

fn texts(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> Vec<(String, String)> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |one: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        let value = one.value.clone().and_then(|value| value.value);
        (one.key.clone(), text(value))
    };
    attributes.iter().map(pair).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The path and `traceparent` of a call, `None` where there was none.
type Call = (String, Option<String>);

/// Every call.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<Call>>>);

impl Heard {
    pub fn all(&self) -> Vec<Option<String>> {
        let all = self.0.lock().unwrap();
        all.iter().map(|(_, parent)| parent.clone()).collect()
    }

    /// Without the question whether a registry is there, which is a probe's.
    pub fn but_probes(&self) -> Vec<Option<String>> {
        let all = self.0.lock().unwrap();
        let asked = all.iter().filter(|(path, _)| path != "/v2/");
        asked.map(|(_, parent)| parent.clone()).collect()
    }

    /// Serves on a port of its own, and notes; the address.
    pub async fn serve(&self, router: axum::Router) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router.layer(from_fn_with_state(self.clone(), note));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }
}

async fn note(State(own): State<Heard>, request: Request, next: Next) -> Response {
    let parent = request.headers().get("traceparent");
    let parent = parent.map(|value| value.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    own.0.lock().unwrap().push((path, parent));
    next.run(request).await
}
