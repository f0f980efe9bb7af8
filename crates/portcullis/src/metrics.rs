//! Metrics in Prometheus' text format. Labels are bounded: never an image, a digest or a user.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use kernel::Clock;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Seconds: from a look-up in the store to a call that a slow registry holds.
const BUCKETS_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// What the server counts.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    log_entries: IntGauge,
}

impl Metrics {
    pub fn new(clock: Arc<dyn Clock>) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let labels = &["method", "route", "status"];
        let requests = IntCounterVec::new(
            Opts::new("portcullis_http_requests_total", "Requests answered"),
            labels,
        )?;
        let options = HistogramOpts::new(
            "portcullis_http_request_seconds",
            "Time to answer a request, in seconds",
        );
        let seconds = HistogramVec::new(options.buckets(BUCKETS_SECONDS.to_vec()), &["method", "route"])?;
        let log_entries = IntGauge::new(
            "portcullis_tlog_entries",
            "Entries that the transparency log holds",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(log_entries.clone()))?;
        // Failure series start at zero, so that their first increase is seen as one.
        for status in ["500", "503", "507"] {
            requests.with_label_values(&["POST", "/api/v1/signatures", status]);
        }
        Ok(Self(Arc::new(Inner {
            clock,
            registry,
            requests,
            seconds,
            log_entries,
        })))
    }

    pub fn log_entries(&self, entries: u64) {
        self.0.log_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.0.registry.gather())
            .unwrap_or_default()
    }
}

/// Counts and times a request by its route, which is a pattern and not a path.
pub async fn layer(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    // Methods are an open set; those that no route takes are one.
    let method = if matches!(
        method.as_str(),
        "GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD"
    ) {
        method.as_str()
    } else {
        "other"
    };
    let began = metrics.0.clock.monotonic();
    let response = next.run(request).await;
    let seconds = metrics.0.clock.monotonic().since(began).as_secs_f64();
    metrics
        .0
        .seconds
        .with_label_values(&[method, &route])
        .observe(seconds);
    metrics
        .0
        .requests
        .with_label_values(&[method, &route, response.status().as_str()])
        .inc();
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::Router;
    use axum::body::Body;
    use axum::http::Request;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    /// What a caller writes into a path or a method never becomes a label.
    #[tokio::test]
    async fn t27_the_series_do_not_grow_with_what_is_asked() {
        let metrics = Metrics::new(Arc::new(kernel::SystemClock::new())).unwrap();
        let router = Router::new()
            .route("/api/v1/images/{digest}", get(|| async { "" }))
            .fallback(|| async { axum::http::StatusCode::NOT_FOUND })
            .layer(from_fn_with_state(metrics.clone(), layer));
        let before = metrics.render().lines().count();
        let ask = async |method: String, path: String| {
            let request = Request::builder()
                .method(method.as_str())
                .uri(path)
                .body(Body::empty())
                .unwrap();
            router.clone().oneshot(request).await.unwrap();
        };
        let round = async |number: u32| {
            ask(
                "GET".to_owned(),
                format!("/api/v1/images/sha256-{number}?tag={number}"),
            )
            .await;
            ask("GET".to_owned(), format!("/unknown/{number}")).await;
            ask(format!("METHOD{number}"), "/api/v1/images/x".to_owned()).await;
            ask(format!("METHOD{number}"), format!("/unknown/{number}")).await;
        };
        round(0).await;
        let once = metrics.render();
        assert!(once.contains(r#"route="/api/v1/images/{digest}""#), "{once}");
        for number in 1..100 {
            round(number).await;
        }
        assert!(before < once.lines().count());
        assert_eq!(metrics.render().lines().count(), once.lines().count());
    }
}
