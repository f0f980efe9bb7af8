//! Traces (OpenTelemetry): off unless a collector is configured.
//!
//! Everywhere else there are only spans of the crate `tracing`, which cost nothing while nobody listens. Here they are
//! listened to, joined with those of callers by the W3C header `traceparent`, and sent to a collector (OTLP over HTTP,
//! protobuf). Nothing ever waits for the collector: what it does not take is dropped and counted.

pub mod command;
pub mod context;
mod export;
pub mod server;

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanExporter as _};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

pub use self::export::metrics;
use crate::codes;
use crate::config::{TracingSection, check_endpoint};
use crate::failure::Failure;

/// Who makes spans: libraries' own never leave the process.
const OURS: [&str; 6] = ["portcullis", "web", "access", "signing", "tlog", "upstream"];
/// Where a collector listens if the path is not in its address (OTLP 1, "OTLP/HTTP Request").
const PATH: &str = "v1/traces";
/// The standard variables that name a collector.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Whether this process makes traces.
static MADE: AtomicBool = AtomicBool::new(false);

/// Whether this process makes traces.
pub fn are_made() -> bool {
    MADE.load(Ordering::Relaxed)
}

/// Traces that are made and sent.
pub struct Traces {
    provider: SdkTracerProvider,
    export: export::Export,
}

impl Traces {
    /// Starts to send, if a collector is configured or named by the environment (`OTEL_EXPORTER_OTLP_ENDPOINT`).
    ///
    /// # Errors
    /// If the collector's address is none. Whether anybody is there is not asked.
    pub fn start(section: &TracingSection) -> Result<Option<Self>, Failure> {
        let is = |name: &str, value: &str| {
            std::env::var(name).is_ok_and(|text| text.trim().eq_ignore_ascii_case(value))
        };
        let named = ENDPOINTS.iter().find_map(|name| {
            let text = std::env::var(name).ok()?;
            (!text.trim().is_empty()).then_some((name, text))
        });
        if (section.otlp_endpoint.is_none() && named.is_none())
            || is("OTEL_SDK_DISABLED", "true")
            || is("OTEL_TRACES_EXPORTER", "none")
        {
            return Ok(None);
        }
        let mut builder = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(export::Collector::new()?)
            // It would hold a thread of the server while it waits.
            .with_retry_policy(RetryPolicy::disabled());
        if let Some(base) = &section.otlp_endpoint {
            builder = builder.with_endpoint(format!("{}/{PATH}", base.trim_end_matches('/')));
        } else if let Some((name, text)) = named
            && let Err(why) = check_endpoint(&text)
        {
            return Err(Failure::coded(1, &codes::CONFIG, format!("{name} {why}")));
        }
        let mut exporter = builder
            .build()
            .map_err(|error| Failure::local("starting the export of traces", &error))?;
        let resource = resource();
        exporter.set_resource(&resource);
        let (queue, export) = export::start(exporter);
        let mut provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(queue);
        // Otherwise OTEL_TRACES_SAMPLER decides, and without it every trace is kept whose caller does not say no.
        if let Some(ratio) = section.sample_ratio {
            let own = Sampler::TraceIdRatioBased(ratio);
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(own)));
        }
        MADE.store(true, Ordering::Relaxed);
        upstream::outgoing::add_trace_headers(context::into_headers);
        Ok(Some(Self {
            provider: provider.build(),
            export,
        }))
    }

    /// What turns spans of `tracing` into those of OpenTelemetry. Lines of the log stay in the log.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("portcullis"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_ours).with_max_level_hint(LevelFilter::INFO))
    }

    /// Sends what has ended, if the collector takes it at once.
    pub async fn close(self) {
        self.export.close().await;
    }
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    let of = metadata.target().split("::").next().unwrap_or_default();
    metadata.is_span() && OURS.contains(&of)
}

fn resource() -> Resource {
    let resource = Resource::builder().with_attribute(opentelemetry::KeyValue::new(
        "service.version",
        env!("CARGO_PKG_VERSION"),
    ));
    match std::env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => resource.build(),
        None => resource.with_service_name("portcullis").build(),
    }
}
