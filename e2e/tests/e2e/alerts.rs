//! Alerts, runbooks and the dashboard: what they speak of is what a real server shows, and a real Prometheus raises the
//! alarm when the log's name leads to another log.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Server, Setup, run};
use kernel::{Clock as _, SystemClock};
use probing::Kind;
use serde_json::{Value, json};
use testkit::{Process, peer};

use crate::outside::{OutsideLog, Target, entries};
use crate::wrong_log::World;

/// From the change of the name to the alert: 10 seconds until it is named, and a scrape and an evaluation of a second each.
const FIRES_WITHIN: Duration = Duration::from_secs(15);

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(tree(path)).unwrap()
}

/// What follows `start` in the lines of `text`, to the end of the line.
fn values<'a>(text: &'a str, start: &str) -> BTreeSet<&'a str> {
    let found = text.lines().filter_map(|line| line.trim().strip_prefix(start));
    found.map(str::trim).collect()
}

/// The words of letters, digits, `_` and `:` that begin with `start`.
fn words<'a>(text: &'a str, start: &str) -> BTreeSet<&'a str> {
    let other = |letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == ':');
    text.split(other).filter(|word| word.starts_with(start)).collect()
}

/// Without lines of comment, and of prose, which may name metrics as it likes.
fn rules() -> String {
    let text = read("deploy/prometheus/rules.yml");
    let lines = text.lines().filter(|line| !line.trim().starts_with('#'));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The alternatives of `label="A"` and `label=~"A|B"` in expressions, without those that are patterns.
fn matched(text: &str, label: &str) -> BTreeSet<String> {
    let text = text.replace("\\\"", "\"");
    let mut found = BTreeSet::new();
    for operator in ["=", "=~", "!~", "!="] {
        let start = format!("{label}{operator}\"");
        for rest in text.split(start.as_str()).skip(1) {
            let value = rest.split('"').next().unwrap_or_default();
            found.extend(value.split('|').map(str::to_owned));
        }
    }
    found.retain(|value| !value.contains(['.', '$', '(']));
    found
}

#[test]
fn promtool_takes_the_rules_and_every_alert_passes_its_tests() {
    let promtool = peer!("promtool");
    let folder = tree("deploy/prometheus");
    let check = run(Command::new(&promtool)
        .args(["check", "rules", "rules.yml"])
        .current_dir(&folder));
    check.unwrap().expect_ok();
    let test = run(Command::new(&promtool)
        .args(["test", "rules", "rules.test.yml", "burn.test.yml"])
        .current_dir(&folder));
    test.unwrap().expect_ok();
}

/// An alert without a test is one that nobody has seen fire; one that was never seen silent may always fire.
#[test]
fn every_alert_is_tested_to_fire_and_not_to_fire() {
    let rules = rules();
    let tests = read("deploy/prometheus/rules.test.yml") + &read("deploy/prometheus/burn.test.yml");
    for alert in values(&rules, "- alert: ") {
        let fires = format!("- labels: 'ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"");
        assert!(tests.contains(&fires), "no test sees {alert} fire");
        let question = format!("- expr: ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
        let mut asked = tests.split(question.as_str()).skip(1);
        let silent = asked.any(|rest| {
            let mut lines = rest.lines().skip(1).map(str::trim);
            lines.find(|line| line.starts_with("exp_samples")) == Some("exp_samples: []")
        });
        // The dead man's switch is never silent.
        assert_eq!(silent, alert != "PortcullisAlertsWork", "{alert}");
    }
}

#[test]
fn every_alert_has_its_runbook_and_every_runbook_its_alert() {
    let rules = rules();
    let base = "https://github.com/portcullis-project/portcullis/blob/main/";
    let mut pages = BTreeSet::new();
    for block in rules.split("- alert: ").skip(1) {
        let alert = block.lines().next().unwrap_or_default();
        for part in ["severity: ", "summary: ", "description: ", "runbook_url: "] {
            assert!(!values(block, part).is_empty(), "{alert} has no {part}");
        }
        for url in values(block, "runbook_url: ") {
            let page = url.strip_prefix(base).unwrap();
            let text = read(page);
            assert!(
                text.contains(&format!("Alert: `{alert}`")),
                "{page} is not about {alert}"
            );
            for heading in ["What it means", "How users notice", "Look", "Do", "Do not"] {
                assert!(
                    text.contains(&format!("\n## {heading}\n")),
                    "{page} has no {heading}"
                );
            }
            pages.insert(page.rsplit('/').next().unwrap_or_default().to_owned());
        }
    }
    let files = std::fs::read_dir(tree("docs/runbooks")).unwrap();
    let files: BTreeSet<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(pages, files);
}

/// Links between runbooks lead somewhere, and every command that they tell somebody to type is one.
#[test]
fn every_command_of_a_runbook_parses() {
    let program = e2e::program().unwrap();
    let mut commands = 0;
    for file in std::fs::read_dir(tree("docs/runbooks")).unwrap() {
        let page = file.unwrap().path();
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            assert!(page.with_file_name(link).is_file(), "{}: {link}", page.display());
        }
        // Code spans may be broken over lines; blocks may not.
        let spans = text.split('`').map(|span| span.replace('\n', " "));
        let lines = text.lines().map(str::to_owned);
        for command in spans.chain(lines) {
            let Some(arguments) = command.strip_prefix("portcullis ") else {
                continue;
            };
            let mut help = Command::new(&program);
            help.args(arguments.split_whitespace()).arg("--help");
            let ran = run(&mut help).unwrap();
            assert!(ran.ok(), "{}: {command}\n{}", page.display(), ran.text());
            commands += 1;
        }
    }
    assert!(commands > 50, "the runbooks have lost their commands");
}

/// A server on which everything is that can have a metric: an external log, and a trusted root of which something ends.
async fn full_server() -> (World, String) {
    let mut world = World::new().await;
    let api = world.server.api().unwrap();
    let mut root = api.get("/api/v1/trust/trusted_root.json").await.unwrap().body;
    root["tlogs"][0]["publicKey"]["validFor"]["end"] = json!("2099-01-01T00:00:00Z");
    let path = world.server.folder().join("ends.json");
    std::fs::write(&path, root.to_string()).unwrap();
    let file = world.server.folder().join("portcullis.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let path = path.display().to_string();
    std::fs::write(&file, format!("{config}\n[trusted_roots]\nends = {path:?}\n")).unwrap();
    world.server.restart().unwrap();
    let (clock, needed) = (SystemClock::new(), "portcullis_dependency_certificate_days_left{");
    let began = clock.monotonic();
    loop {
        let metrics = String::from_utf8(api.bytes("/metrics").await.unwrap()).unwrap();
        if metrics.contains(needed) {
            return (world, metrics);
        }
        let waited = clock.monotonic().since(began);
        assert!(waited < Duration::from_secs(30), "no {needed}:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_alerts_and_the_dashboard_is_one_of_a_real_server() {
    let (_world, metrics) = full_server().await;
    let dashboard = read("deploy/grafana/dashboard.json");
    let rules = rules();
    let shown = words(&metrics, "portcullis_");
    let recorded = values(&rules, "- record: ");
    for (file, text) in [("rules.yml", &rules), ("dashboard.json", &dashboard)] {
        let used = words(text, "portcullis_");
        assert!(used.len() > 5, "{file} has lost its metrics");
        for name in used {
            assert!(shown.contains(name), "{file} uses {name}, which no server shows");
        }
        for name in words(text, "job") {
            let rule = name.contains(':');
            assert!(
                !rule || recorded.contains(name),
                "{file} uses {name}, which no rule records"
            );
        }
    }
}

/// A state, kind or code that is misspelt in an expression is an alert that never fires.
#[test]
fn every_state_kind_and_code_of_the_alerts_and_the_dashboard_is_one() {
    let text = rules() + &read("deploy/grafana/dashboard.json");
    let states: BTreeSet<&str> = Kind::ALL
        .iter()
        .flat_map(|kind| kind.states())
        .map(|state| state.as_str())
        .collect();
    let used = matched(&text, "state");
    assert!(used.len() > 10, "{used:?}");
    for state in &used {
        assert!(states.contains(state.as_str()), "no state is called {state}");
    }
    // Nor may a state go unseen: each has its number in the dashboard.
    for state in states {
        assert!(used.contains(state), "nothing shows the state {state}");
    }
    for kind in matched(&text, "kind") {
        assert!(
            Kind::ALL.iter().any(|known| known.as_str() == kind),
            "no kind is called {kind}"
        );
    }
    let codes = matched(&text, "code");
    assert!(codes.contains("PC2003"), "{codes:?}");
    for code in codes {
        let known = run(Command::new(e2e::program().unwrap()).args(["explain", &code]));
        known.unwrap().expect_ok();
    }
}

/// The shape that Grafana imports: a data source to choose, and no two panels in one place.
#[test]
fn the_dashboard_can_be_imported() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(dashboard.get("id").is_none(), "an id belongs to one Grafana");
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        }
    }
}

/// The expressions of the panels of this title, or of all.
fn expressions(title: &str) -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let panels = panels.filter(|panel| title.is_empty() || panel["title"] == title);
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

/// A Prometheus with our rules, which looks at one server each second.
struct Prometheus {
    _process: Process,
    url: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(program: &Path, server: &Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [tree("deploy/prometheus/rules.yml").canonicalize().unwrap()],
            "scrape_configs": [{
                "job_name": "portcullis",
                "static_configs": [{ "targets": [server.url().trim_start_matches("http://")] }],
            }],
        });
        // JSON is YAML.
        std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
        let mut command = Command::new(program);
        command.current_dir(folder.path()).args([
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            "--web.listen-address=127.0.0.1:0",
        ]);
        let mut process = Process::start(&mut command, &folder.path().join("log")).unwrap();
        let listening = |log: &str| {
            let (_, rest) = log.split_once("msg=\"Listening on\" address=")?;
            Some(rest.split_once('\n')?.0.to_owned())
        };
        let address = process.wait_for_log(listening).unwrap();
        Self {
            _process: process,
            url: format!("http://{address}"),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            _folder: folder,
        }
    }

    /// `data` of an answer of its API; nothing while it starts.
    async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}/api/v1/{path}", self.url)).send().await;
        let text = answer.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        answer["data"].clone()
    }

    /// The values of an expression as a panel of the dashboard has it, with everything chosen.
    async fn panel(&self, expression: &str) -> Vec<String> {
        let expression = expression
            .replace("$job", ".+")
            .replace("$instance", ".+")
            .replace("$__rate_interval", "1m");
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("query?query={encoded}")).await;
        let found = answer["result"].as_array();
        let found = found.unwrap_or_else(|| panic!("Prometheus does not take {expression}"));
        let value = |one: &Value| one["value"][1].as_str().unwrap().to_owned();
        found.iter().map(value).collect()
    }

    /// The state of an alert, if it is one that is pending or fires.
    async fn alert(&self, name: &str) -> Option<Value> {
        let all = self.get("alerts").await;
        let mut all = all["alerts"].as_array().into_iter().flatten();
        all.find(|alert| alert["labels"]["alertname"] == name).cloned()
    }

    /// Waits until an alert is there, or no longer.
    async fn comes_to(&self, name: &str, there: bool, within: Duration) -> Option<Value> {
        let clock = SystemClock::new();
        let began = clock.monotonic();
        loop {
            let alert = self.alert(name).await;
            if alert.is_some() == there {
                return alert;
            }
            assert!(clock.monotonic().since(began) <= within, "{name}: {alert:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Shown to fail: with the state misspelt in the rule.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_raises_the_alarm_when_the_logs_name_leads_to_another_log() {
    let prometheus = peer!("prometheus");
    let world = World::new().await;
    let prometheus = Prometheus::start(&prometheus, &world.server);
    let minute = Duration::from_secs(60);
    prometheus.comes_to("PortcullisAlertsWork", true, minute).await;
    // That the server was not scraped yet is no alert either.
    prometheus.comes_to("PortcullisGone", false, minute).await;
    assert_eq!(prometheus.alert("PortcullisWrongLog").await, None);

    let other = OutsideLog::start("rekor.example", 2, &entries("entry", 301)).await;
    world.name.now_leads(Target::To(other.address));
    let alert = prometheus
        .comes_to("PortcullisWrongLog", true, FIRES_WITHIN)
        .await;
    let alert = alert.unwrap();
    assert_eq!(alert["state"], "firing", "{alert}");
    assert_eq!(alert["labels"]["severity"], "critical");
    assert_eq!(alert["labels"]["dependency"], "external-log");
    assert_eq!(alert["labels"]["state"], "WRONG_LOG");
    let shows = async |panel: &str| prometheus.panel(&expressions(panel)[0]).await;
    assert_eq!(shows("Wrong, rolled back, forked").await, ["1"]);
    assert_eq!(shows("Can we sign?").await, ["0"]);
    assert!(
        alert["annotations"]["runbook_url"]
            .as_str()
            .unwrap()
            .ends_with("/wrong-log.md")
    );

    world.name.now_leads(Target::To(world.log.address));
    prometheus
        .comes_to("PortcullisWrongLog", false, FIRES_WITHIN)
        .await;
    assert_eq!(shows("Wrong, rolled back, forked").await, ["0"]);
    for expression in expressions("") {
        prometheus.panel(&expression).await;
    }
    // Every rule was evaluated on the series of a real server, and none of them stumbled.
    let groups = prometheus.get("rules").await;
    let groups = groups["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() > 40, "{}", rules.len());
    for rule in rules {
        assert_eq!(rule["lastError"].as_str().unwrap_or_default(), "", "{rule}");
        assert_ne!(rule["health"], "err", "{rule}");
    }
}

/// What is refused for load or quota is counted by its code, from nothing on.
#[tokio::test(flavor = "multi_thread")]
async fn errors_are_counted_by_their_code() {
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let metrics = async || String::from_utf8(api.bytes("/metrics").await.unwrap()).unwrap();
    let before = metrics().await;
    for code in ["PC2001", "PC2002", "PC2003"] {
        let line = format!("portcullis_http_problems_total{{code=\"{code}\"}} 0\n");
        assert!(before.contains(&line), "no {line}");
    }
    let refused = api.get("/api/v1/projects/none").await.unwrap();
    let code = refused.body["code"].as_str().unwrap();
    let line = format!("portcullis_http_problems_total{{code=\"{code}\"}} 1\n");
    assert!(metrics().await.contains(&line), "no {line}");
}
