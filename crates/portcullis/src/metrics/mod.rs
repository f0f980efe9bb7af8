//! Metrics in Prometheus' text format. Labels are bounded: never an image, a digest or a user.

mod debt;
mod operations;
mod queues;

use std::sync::{Arc, Mutex, PoisonError};

use access::audit::Status;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use kernel::Clock;
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use queues::Queues;
use signing::Open;
use signing::Signing;
use signing::debt::Standing;
use web::ProblemDocument;

/// Seconds: from a look-up in the store to a call that a slow registry holds.
const BUCKETS_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// Where alerts count what went wrong.
const ZEROED_ROUTES: [&str; 3] = [
    "/api/v1/signatures",
    "/api/v1/signatures:batch",
    "/api/v1/verifications",
];
/// Over the quota, and what is not the caller's fault.
const ZEROED_STATUSES: [&str; 4] = ["429", "500", "503", "507"];

/// Outcomes of a run of the canary: it came through, it did not.
const CANARY_OUTCOMES: [&str; 2] = ["ok", "failed"];

/// What the server counts.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    problems: IntCounterVec,
    log_entries: IntGauge,
    log_leads: IntGauge,
    audit: Audit,
    queues: Mutex<Queues>,
    debt: Mutex<debt::Debt>,
    operations: operations::Operations,
    canary: IntCounterVec,
}

/// What is counted of the audit trail.
struct Audit {
    /// Held while the counters are brought up to what the trail counted.
    counting: Mutex<()>,
    records: IntGauge,
    unsealed: IntGauge,
    unsealed_seconds: Gauge,
    refusals: IntCounter,
    refusals_lost: IntCounter,
}

impl Audit {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let own = Self {
            counting: Mutex::new(()),
            records: IntGauge::new("portcullis_audit_records", "Audit records under the seal")?,
            unsealed: IntGauge::new(
                "portcullis_audit_unsealed",
                "Audit records that wait for the seal",
            )?,
            unsealed_seconds: Gauge::new(
                "portcullis_audit_unsealed_age_seconds",
                "How long the oldest audit record has been waiting for the seal, in seconds",
            )?,
            refusals: IntCounter::new(
                "portcullis_audit_refusals_total",
                "Requests that were refused to whoever asked",
            )?,
            refusals_lost: IntCounter::new(
                "portcullis_audit_refusals_lost_total",
                "Refusals that have no audit record of their own, only a count",
            )?,
        };
        registry.register(Box::new(own.records.clone()))?;
        registry.register(Box::new(own.unsealed.clone()))?;
        registry.register(Box::new(own.unsealed_seconds.clone()))?;
        registry.register(Box::new(own.refusals.clone()))?;
        registry.register(Box::new(own.refusals_lost.clone()))?;
        Ok(own)
    }
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
        let problems = IntCounterVec::new(
            Opts::new(
                "portcullis_http_problems_total",
                "Requests answered with an error, by its code",
            ),
            &["code"],
        )?;
        let log_entries = IntGauge::new(
            "portcullis_tlog_entries",
            "Entries that the transparency log holds",
        )?;
        let log_leads = IntGauge::new(
            "portcullis_tlog_leads",
            "1 on the server that appends to the transparency log, else 0",
        )?;
        let canary = IntCounterVec::new(
            Opts::new(
                "portcullis_canary_runs_total",
                "Runs of the canary by their outcome",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(canary.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(problems.clone()))?;
        registry.register(Box::new(log_entries.clone()))?;
        registry.register(Box::new(log_leads.clone()))?;
        // Failure series start at zero, so that their first increase is seen as one.
        for route in ZEROED_ROUTES {
            for status in ZEROED_STATUSES {
                requests.with_label_values(&["POST", route, status]);
            }
        }
        for code in flow::codes::ALL {
            problems.with_label_values(&[code.id]);
        }
        let audit = Audit::new(&registry)?;
        let queues = Mutex::new(Queues::new(&registry)?);
        let debt = Mutex::new(debt::Debt::new(&registry)?);
        let operations = operations::Operations::new(&registry)?;
        for outcome in CANARY_OUTCOMES {
            canary.with_label_values(&[outcome]);
        }
        Ok(Self(Arc::new(Inner {
            clock,
            registry,
            requests,
            seconds,
            problems,
            log_entries,
            log_leads,
            audit,
            queues,
            debt,
            operations,
            canary,
        })))
    }

    pub fn canary_ran(&self, through: bool) {
        let outcome = CANARY_OUTCOMES[usize::from(!through)];
        self.0.canary.with_label_values(&[outcome]).inc();
    }

    pub fn log_entries(&self, entries: u64) {
        self.0.log_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub fn log_leads(&self, leads: bool) {
        self.0.log_leads.set(i64::from(leads));
    }

    /// How the queues stand, and what signing has come to.
    pub fn signing(&self, signing: &Signing) {
        let queues = self.0.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.set(&signing.standing(), signing.tally());
    }

    /// What was accepted and is not finished, if that is known.
    pub fn operations(&self, open: Option<&Open>) {
        self.0.operations.are(open);
    }

    /// How the debt to the external log stands, if that is known, and what this server has paid of it.
    pub fn debt(&self, standing: Option<&Standing>, signing: &Signing) {
        let debt = self.0.debt.lock().unwrap_or_else(PoisonError::into_inner);
        match standing {
            Some(standing) => debt.stands(standing),
            None => debt.is_unknown(),
        }
        debt.came_to(signing.debt_tally());
    }

    /// How the audit trail is; its counts only grow.
    pub fn audit(&self, status: &Status) {
        let own = &self.0.audit;
        own.records.set(i64::try_from(status.sealed).unwrap_or(i64::MAX));
        own.unsealed
            .set(i64::try_from(status.unsealed).unwrap_or(i64::MAX));
        own.unsealed_seconds.set(status.unsealed_age_us as f64 / 1e6);
        let _counting = own.counting.lock().unwrap_or_else(PoisonError::into_inner);
        own.refusals
            .inc_by(status.refusals.saturating_sub(own.refusals.get()));
        own.refusals_lost
            .inc_by(status.refusals_lost.saturating_sub(own.refusals_lost.get()));
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
    if let Some(problem) = response.extensions().get::<ProblemDocument>() {
        metrics.0.problems.with_label_values(&[&problem.code]).inc();
    }
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
