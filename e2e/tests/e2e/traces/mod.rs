//! Traces: one from the command line through the server to the registry, none unless asked for, and never in the way.

mod collector;

use std::collections::HashSet;
use std::time::Duration;

use e2e::{Ran, Server, Setup, run};
use futures::future::join_all;
use kernel::{Clock as _, SystemClock};
use registry::{Options, Registry};
use serde_json::json;

use self::collector::{Collector, Heard, Mood, Span};
use crate::outside::OutsideLog;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// How long signing an image may take beside a collector that is in trouble; it takes a tenth of it.
const SIGN_MAX: Duration = Duration::from_secs(3);

/// A registry that notes what comes along with calls.
struct Images {
    registry: Registry,
    heard: Heard,
    host: String,
}

impl Images {
    async fn new() -> Self {
        let (registry, heard) = (Registry::memory(Options::default()), Heard::default());
        let host = heard.serve(registry.router()).await.to_string();
        Self {
            registry,
            heard,
            host,
        }
    }

    async fn put(&self, name: &str) -> String {
        self.registry.put_image("team/app", name, name).await.unwrap();
        format!("{}/team/app:{name}", self.host)
    }
}

fn traced(endpoint: &str, more: &str) -> Server {
    let config = format!("[tracing]\notlp_endpoint = \"{endpoint}\"\n{more}");
    Server::start(Setup {
        config,
        ..Setup::default()
    })
    .unwrap()
}

/// Runs a command with this environment, and with nothing of traces that this test was started with.
fn ran(server: &Server, environment: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = server.command();
    for name in [
        "TRACEPARENT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ] {
        command.env_remove(name);
    }
    run(command.envs(environment.iter().copied()).args(args)).unwrap()
}

fn has(spans: &[Span], name: &str) -> bool {
    spans.iter().any(|span| span.name == name)
}

fn of<'a>(spans: &'a [Span], service: &str, name: &str) -> &'a Span {
    let found = spans
        .iter()
        .find(|span| span.service == service && span.name == name);
    found.unwrap_or_else(|| panic!("no {name} of {service}"))
}

/// The names from the span up to the first of its trace.
fn path(spans: &[Span], of: &Span) -> Vec<String> {
    let mut names = vec![of.name.clone()];
    let mut parent = &of.parent;
    while let Some(span) = spans.iter().find(|span| span.id == *parent) {
        names.push(span.name.clone());
        parent = &span.parent;
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_command_line_through_the_server_to_the_registry_and_the_external_log() {
    let (collector, images) = (Collector::start().await, Images::new().await);
    let (log, log_heard) = (OutsideLog::start("rekor.example", 1, &[]).await, Heard::default());
    let rekor = log_heard.serve(tlog::router(log.tlog.clone())).await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("rekor.pub");
    std::fs::write(&key, log.pem()).unwrap();
    let server = traced(
        &collector.url,
        &format!(
            "[external_log]\nurl = \"http://{rekor}\"\norigin = \"rekor.example\"\npublic_key = {:?}\napi = \"v2\"\n",
            key.display().to_string()
        ),
    );
    let image = images.put("v1").await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_SERVICE_NAME", "ci"),
    ];
    ran(&server, &environment, &["sign", &image]).expect_ok();
    let spans = collector
        .wait_for(|spans| has(spans, "finish signature") && has(spans, "publish evidence"))
        .await;
    let (own, others): (Vec<Span>, Vec<Span>) = {
        let trace = of(&spans, "ci", "portcullis sign").trace.clone();
        spans.into_iter().partition(|span| span.trace == trace)
    };
    // One root, and everybody's parent is there.
    let ids: HashSet<&String> = own.iter().map(|span| &span.id).collect();
    let roots: Vec<&Span> = own.iter().filter(|span| !ids.contains(&span.parent)).collect();
    assert_eq!(roots.len(), 1, "{roots:#?}");
    assert_eq!(
        (roots[0].service.as_str(), roots[0].name.as_str()),
        ("ci", "portcullis sign")
    );
    assert_eq!(roots[0].parent, "");
    let batch = "POST /api/v1/signatures:batch";
    let request = of(&own, "portcullis", batch);
    assert_eq!(path(&own, request), [batch, batch, "portcullis sign"]);
    for (name, at_least) in [
        ("resolve image", 1),
        ("stage signature", 1),
        ("append to log", 1),
        ("append batch", 1),
        ("publish signature", 1),
        ("finish signature", 1),
        ("GET manifest", 1),
        ("PUT manifest", 2),
    ] {
        let count = own.iter().filter(|span| span.name == name).count();
        assert!(count >= at_least, "{count} of {name}");
    }
    let up = path(&own, of(&own, "portcullis", "append batch"));
    assert_eq!(up[..2], ["append batch", "append to log"], "{up:?}");
    assert!(up.contains(&"sign image".to_owned()), "{up:?}");
    // What is in the request's span, and in the line of the log.
    assert_eq!(request.attribute("http.response.status_code"), "200");
    assert_eq!(request.attribute("portcullis.project"), "default");
    assert_eq!(
        of(&own, "portcullis", "sign image").attribute("portcullis.image"),
        image
    );
    let id = request.attribute("portcullis.request_id");
    let server_log = server.log();
    let line = server_log
        .lines()
        .find(|line| line.contains(id) && line.contains("\"request\""));
    assert!(
        line.unwrap()
            .contains(&format!("\"trace_id\":\"{}\"", request.trace))
    );
    // The registry hears of the span of each call.
    let heard = images.heard.but_probes();
    let later = &of(&others, "portcullis", "publish evidence").trace;
    let mut calls = 0;
    for parent in heard {
        let parent = parent.expect("a traceparent");
        let words: Vec<&str> = parent.split('-').collect();
        assert_eq!(words[3], "01", "{parent}");
        if words[1] == later {
            continue;
        }
        assert_eq!(words[1], request.trace, "{parent}");
        let call = own.iter().find(|span| span.id == words[2]).unwrap();
        assert_eq!(call.attribute("server.address"), "127.0.0.1", "{call:?}");
        calls += 1;
    }
    assert!(calls > 4, "{calls}");
    // What is paid later has a trace of its own, which the log hears of; probes have none.
    let paid = of(&others, "portcullis", "append to external log");
    let parents: Vec<String> = log_heard.all().into_iter().flatten().collect();
    assert!(
        parents.iter().any(|parent| parent.contains(&paid.trace)),
        "{parents:?}"
    );
    assert!(log_heard.all().contains(&None), "a probe has no trace");
    let metrics = String::from_utf8(server.api().unwrap().bytes("/metrics").await.unwrap()).unwrap();
    assert!(
        metrics.contains("\nportcullis_trace_spans_dropped_total 0\n"),
        "{metrics}"
    );
    let raw = collector.raw();
    let secret = server.token().rsplit('_').next().unwrap().as_bytes();
    assert!(
        secret.len() > 10 && !raw.windows(secret.len()).any(|part| part == secret),
        "the token"
    );
}

/// Whoever a registry sends us to hears nothing of the trace.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_registry_redirects_to_no_trace_goes() {
    let (collector, images) = (Collector::start().await, Images::new().await);
    let server = traced(&collector.url, "");
    let image = images.put("v1").await;
    ran(&server, &[], &["sign", &image]).expect_ok();
    let elsewhere = Heard::default();
    let address = elsewhere.serve(images.registry.router()).await;
    let other = traced(&collector.url, "");
    images
        .registry
        .fault(|plan| plan.redirect_blobs = Some(format!("http://{address}")));
    // Its own key has signed nothing, and to know that it has to read what is there.
    let _ = ran(&other, &[], &["verify", &image]);
    assert!(!elsewhere.all().is_empty());
    assert!(
        elsewhere.all().iter().all(Option::is_none),
        "{:?}",
        elsewhere.all()
    );
    collector.wait_for(|spans| has(spans, "GET redirected")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_s_trace_goes_on_and_whoever_wants_no_trace_gets_none() {
    let (collector, images) = (Collector::start().await, Images::new().await);
    let server = traced(&collector.url, "");
    // The command exports nothing, and passes on what the build gave it.
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    let image = images.put("v1").await;
    ran(&server, &[("TRACEPARENT", &sampled)], &["sign", &image]).expect_ok();
    let spans = collector.wait_for(|spans| has(spans, "finish signature")).await;
    let request = of(&spans, "portcullis", "POST /api/v1/signatures:batch");
    assert_eq!((request.trace.as_str(), request.parent.as_str()), (TRACE, PARENT));
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    // With a collector it has a span of its own between the two.
    let image = images.put("v2").await;
    let environment = [
        ("TRACEPARENT", sampled.as_str()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_SERVICE_NAME", "ci"),
    ];
    ran(&server, &environment, &["sign", &image]).expect_ok();
    let spans = collector.wait_for(|spans| has(spans, "portcullis sign")).await;
    let command = of(&spans, "ci", "portcullis sign");
    assert_eq!((command.trace.as_str(), command.parent.as_str()), (TRACE, PARENT));
    let before = (collector.spans().len(), images.heard.all().len());
    // The parent says no: nothing is exported, and the registry hears so.
    let unsampled = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00";
    let image = images.put("v3").await;
    ran(&server, &[("TRACEPARENT", unsampled)], &["sign", &image]).expect_ok();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let late: Vec<Span> = collector.spans().split_off(before.0);
    assert!(
        !late
            .iter()
            .any(|span| span.trace == "0af7651916cd43dd8448eb211c80319c"),
        "{late:#?}"
    );
    let heard = images.heard.all().split_off(before.1);
    assert!(!heard.is_empty());
    for parent in heard.into_iter().flatten() {
        assert!(
            parent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
            "{parent}"
        );
        assert!(parent.ends_with("-00"), "{parent}");
    }
    assert!(server.log().contains("0af7651916cd43dd8448eb211c80319c"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_the_traces_that_begin_here_is_kept() {
    let (collector, images) = (Collector::start().await, Images::new().await);
    let server = traced(&collector.url, "sample_ratio = 0.0\n");
    ran(&server, &[], &["sign", &images.put("v1").await]).expect_ok();
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    ran(
        &server,
        &[("TRACEPARENT", &sampled)],
        &["sign", &images.put("v2").await],
    )
    .expect_ok();
    let spans = collector.wait_for(|spans| has(spans, "finish signature")).await;
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_configuration_there_is_no_trace() {
    let images = Images::new().await;
    let server = Server::start(Setup::default()).unwrap();
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    ran(
        &server,
        &[("TRACEPARENT", &sampled)],
        &["sign", &images.put("v1").await],
    )
    .expect_ok();
    let heard = images.heard.all();
    assert!(
        !heard.is_empty() && heard.iter().all(Option::is_none),
        "{heard:?}"
    );
    assert!(!server.log().contains("trace_id"), "{}", server.log());
    // Nor does a command say anything that nobody asked it to.
    let (collector, traced_images) = (Collector::start().await, Images::new().await);
    let server = traced(&collector.url, "");
    ran(&server, &[], &["sign", &traced_images.put("v1").await]).expect_ok();
    let spans = collector.wait_for(|spans| has(spans, "finish signature")).await;
    assert_eq!(
        of(&spans, "portcullis", "POST /api/v1/signatures:batch").parent,
        ""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_traceparent_begins_a_trace_of_ours() {
    let collector = Collector::start().await;
    let server = traced(&collector.url, "");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let hostile = [
        "00-abc-def-01".to_owned(),
        format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
        format!("00-{}-{PARENT}-01", "0".repeat(32)),
        "f".repeat(10_000),
        format!("00-{TRACE}-{PARENT}-01-{}", "a".repeat(10_000)),
    ];
    for parent in &hostile {
        let request = http
            .get(format!("{}/api/v1/openapi.json", server.url()))
            .header("traceparent", parent);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let ours = "GET /api/v1/openapi.json";
    let count = |spans: &[Span]| spans.iter().filter(|span| span.name == ours).count();
    let spans = collector.wait_for(|spans| count(spans) == hostile.len()).await;
    for span in spans.iter().filter(|span| span.name == ours) {
        assert_eq!(span.parent, "", "{span:?}");
        assert_ne!(span.trace, TRACE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_marked_from_the_registry_to_the_command() {
    let (collector, images) = (Collector::start().await, Images::new().await);
    let server = traced(&collector.url, "");
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_SERVICE_NAME", "ci"),
    ];
    let image = format!("{}/team/app:missing", images.host);
    assert!(!ran(&server, &environment, &["sign", &image]).ok());
    let spans = collector
        .wait_for(|spans| has(spans, "sign image") && has(spans, "portcullis sign"))
        .await;
    for (service, name, why) in [
        ("portcullis", "GET manifest", "404"),
        ("portcullis", "sign image", "PC"),
        ("ci", "portcullis sign", "PC"),
    ] {
        let span = of(&spans, service, name);
        assert!(
            span.failed && span.attribute("error.type").starts_with(why),
            "{span:?}"
        );
    }
    // Each image has an outcome of its own; the batch itself was answered.
    assert!(!of(&spans, "portcullis", "POST /api/v1/signatures:batch").failed);
}

/// Of many who want the same one works: under the first, and the others have a link to it.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_with_another_has_a_link_to_the_work() {
    let (collector, images) = (Collector::start().await, Images::new().await);
    let server = traced(&collector.url, "");
    let api = server.api().unwrap();
    // By digest: who asks for a tag later looks for himself where it points by then.
    let digest = images.registry.put_image("team/app", "v1", "v1").await.unwrap();
    let image = format!("{}/team/app@{digest}", images.host);
    images
        .registry
        .fault(|plan| plan.latency = Duration::from_millis(200));
    let body = json!({ "image": image });
    let all = join_all((0..4).map(|_| api.post("/api/v1/signatures", &body))).await;
    assert!(
        all.iter()
            .all(|answer| matches!(answer.as_ref().unwrap().status, 200 | 201))
    );
    let requests = |spans: &[Span]| spans.iter().filter(|span| span.name == "sign image").count();
    let spans = collector
        .wait_for(|spans| requests(spans) == 4 && has(spans, "finish signature"))
        .await;
    let lead = spans
        .iter()
        .find(|span| span.name == "lead" && path(&spans, span)[1] == "sign image");
    let lead = lead.expect("the work under the first who asked");
    let linked: Vec<&Span> = spans
        .iter()
        .filter(|span| span.links.contains(&lead.id))
        .collect();
    assert_eq!(linked.len(), 3, "{spans:#?}");
    assert!(
        linked
            .iter()
            .all(|span| span.name == "sign image" && span.trace != lead.trace)
    );
}

/// Shown to fail when spans wait for room in the queue instead of being dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_in_trouble_costs_spans_and_nothing_else() {
    let (collector, images) = (Collector::start().await, Images::new().await);
    let server = traced(&collector.url, "");
    let away = traced("http://127.0.0.1:1", "");
    let clock = SystemClock::new();
    for (round, mood) in [Mood::Silent, Mood::Fails].into_iter().enumerate() {
        collector.is(mood);
        let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str())];
        for (which, server) in [&server, &away].into_iter().enumerate() {
            let image = images.put(&format!("v{round}{which}")).await;
            let began = clock.monotonic();
            ran(server, &environment, &["sign", &image]).expect_ok();
            ran(server, &environment, &["verify", &image]).expect_ok();
            let took = clock.monotonic().since(began);
            println!("{mood:?}: signed and verified in {took:?}");
            // Each command waits for the silent collector for a second at its end.
            assert!(took < SIGN_MAX + Duration::from_secs(2), "{mood:?}: {took:?}");
        }
    }
    // More than the queue holds, while nobody takes anything: every answer comes as ever.
    collector.is(Mood::Silent);
    let patience = Duration::from_secs(10);
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(patience)
        .build()
        .unwrap();
    let url = format!("{}/api/v1/trust/trusted_root.json", server.url());
    let ask = async || assert_eq!(http.get(&url).send().await.unwrap().status(), 200);
    let began = clock.monotonic();
    for _ in 0..120 {
        join_all((0..50).map(|_| ask())).await;
    }
    let took = clock.monotonic().since(began);
    let untraced = Server::start(Setup::default()).unwrap();
    let plain = format!("{}/api/v1/trust/trusted_root.json", untraced.url());
    let ask = async || assert_eq!(http.get(&plain).send().await.unwrap().status(), 200);
    let began = clock.monotonic();
    for _ in 0..120 {
        join_all((0..50).map(|_| ask())).await;
    }
    let without = clock.monotonic().since(began);
    println!("6,000 requests beside a silent collector in {took:?}, without traces in {without:?}");
    assert!(
        took < without * 3 + Duration::from_secs(2),
        "{took:?}, without {without:?}"
    );
    let api = server.api().unwrap();
    let dropped = async || {
        let metrics = String::from_utf8(api.bytes("/metrics").await.unwrap()).unwrap();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("portcullis_trace_spans_dropped_total "));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(dropped().await > 1_000, "{}", dropped().await);
    let told = |server: &Server| server.log().matches("spans of traces are dropped").count();
    let began = clock.monotonic();
    while told(&server) == 0 || told(&away) == 0 {
        assert!(clock.monotonic().since(began) < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((told(&server), told(&away)), (1, 1), "it is said once");
    // Back again: so are the spans.
    collector.is(Mood::Takes);
    let image = images.put("last").await;
    ran(&server, &[], &["sign", &image]).expect_ok();
    collector.wait_for(|spans| has(spans, "finish signature")).await;
}
