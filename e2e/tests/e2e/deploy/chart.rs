//! The Helm chart and the plain manifests, before a real API server.

use std::path::Path;
use std::process::Command;

use e2e::{Ran, Server, Setup, run};
use registry::{Options, Registry};
use serde_json::{Value, json};
use testkit::{ApiServer, Postgres, peer};

use super::{read, tree};

/// The version that the chart is rendered for, which is that of the API server.
const KUBERNETES: &str = "1.36.3";
/// Values that switch on what is off, and off what is on.
const SETS: &[(&str, &[&str])] = &[
    ("default", &[]),
    (
        "one server",
        &[
            "replicas=1",
            "networkPolicy.enabled=false",
            "podDisruptionBudget.maxUnavailable=0",
        ],
    ),
    (
        "a bucket",
        &[
            "blobs.url=s3://bucket/portcullis",
            "blobs.existingSecret=bucket",
            "data.storageClass=fast",
        ],
    ),
    (
        "an ingress",
        &[
            "ingress.enabled=true",
            "ingress.host=sign.example",
            "ingress.className=nginx",
            "ingress.annotations.a=b",
            "publicUrl=https://sign.example",
            "service.type=NodePort",
        ],
    ),
    (
        "everything else",
        &[
            "image.digest=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "image.pullSecrets[0].name=pull",
            "extraSecrets[0].name=roots",
            "extraSecrets[0].secretName=portcullis-roots",
            "blobs.volume.existingClaim=shared",
            "networkPolicy.from[0].podSelector.matchLabels.app=ci",
            "networkPolicy.database.to[0].podSelector.matchLabels.app=postgres",
            "networkPolicy.egress[0].ports[0].port=5000",
            "tolerations[0].operator=Exists",
            "nodeSelector.disk=ssd",
            "podAnnotations.a=b",
            "podLabels.team=platform",
        ],
    ),
];

fn helm(args: &[&str], sets: &[&str]) -> Option<Ran> {
    let mut helm = Command::new(peer!("helm-3.22.0"));
    helm.args(args).arg(tree("deploy/helm/portcullis"));
    sets.iter().for_each(|set| {
        helm.args(["--set", set]);
    });
    Some(run(&mut helm).unwrap())
}

fn template(sets: &[&str]) -> Option<Ran> {
    let args = [
        "template",
        "portcullis",
        "--namespace",
        "portcullis",
        "--kube-version",
        KUBERNETES,
    ];
    helm(&args, sets)
}

/// What is rendered, from the first document on: Helm says on the same stream that it follows a link.
fn rendered(sets: &[&str]) -> Option<String> {
    let text = template(sets)?.expect_ok().stdout;
    let from = text.find("---\n").unwrap();
    Some(text[from..].to_owned())
}

#[test]
fn the_chart_passes_helms_own_check_with_every_set_of_values() {
    for (name, sets) in SETS {
        let Some(lint) = helm(&["lint", "--strict", "--kube-version", KUBERNETES], sets) else {
            return;
        };
        assert!(lint.ok(), "{name}: {lint:?}");
        assert!(rendered(sets).unwrap().contains("kind: StatefulSet"), "{name}");
    }
    let monitored = rendered(&["podMonitor.enabled=true", "prometheusRule.enabled=true"]).unwrap();
    assert!(monitored.contains("kind: PodMonitor") && monitored.contains("kind: PrometheusRule"));
    // The alerts are those that promtool tests, to the line.
    let indented = |line: &str| format!("\n  {line}\n");
    for line in read("deploy/prometheus/rules.yml")
        .lines()
        .filter(|line| line.contains("alert:"))
    {
        assert!(monitored.contains(&indented(line)), "{line} is not in the chart");
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    for (set, says) in [
        ("replicas=0", "replicas"),
        ("replica=3", "replica"),
        ("image.digest=sha256:abc", "digest"),
        ("blobs.url=/tmp", "url"),
        (
            "terminationGracePeriodSeconds=49",
            "at least lameDuckSeconds and 40 more",
        ),
    ] {
        let Some(refused) = template(&[set]) else { return };
        assert!(
            !refused.ok() && refused.stderr.contains(says),
            "{set}: {refused:?}"
        );
    }
}

#[test]
fn the_plain_manifests_are_the_chart_with_its_own_values() {
    let Some(now) = rendered(&[]) else { return };
    let now = format!(
        "# Made of deploy/helm/portcullis and its own values; its README has the steps. A test holds the two against each\n\
         # other: PORTCULLIS_UPDATE_SNAPSHOTS=1 cargo test -p e2e plain_manifests writes this anew.\n{now}"
    );
    let path = tree("deploy/kubernetes/portcullis.yaml");
    if std::env::var_os("PORTCULLIS_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == now,
        "deploy/kubernetes/portcullis.yaml is not what the chart makes"
    );
}

/// An API server with the namespace in it, for real, which is then held to the strictest Pod Security Standard.
struct Cluster(ApiServer);

impl Cluster {
    fn start() -> Option<Self> {
        let own = Self(ApiServer::start()?);
        let namespace = tree("deploy/kubernetes/namespace.yaml").display().to_string();
        own.kubectl(&["apply", "--server-side", "-f", &namespace])
            .expect_ok();
        own.kubectl(&["create", "serviceaccount", "default", "--namespace", "portcullis"])
            .expect_ok();
        Some(own)
    }

    fn kubectl(&self, args: &[&str]) -> Ran {
        let output = self.0.kubectl(args).unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What the server would make of the manifests, were they meant.
    fn dry_run(&self, manifests: &str) -> Ran {
        let file = self.0.folder().join("manifests.yaml");
        std::fs::write(&file, manifests).unwrap();
        let file = file.display().to_string();
        self.kubectl(&[
            "apply",
            "--server-side",
            "--dry-run=server",
            "--namespace=portcullis",
            "--output=json",
            "-f",
            &file,
        ])
    }
}

fn items(ran: &Ran) -> Vec<Value> {
    let list: Value = serde_json::from_str(&ran.stdout).unwrap();
    list["items"].as_array().unwrap().clone()
}

fn of_kind<'a>(items: &'a [Value], kind: &str) -> &'a Value {
    items.iter().find(|item| item["kind"] == kind).unwrap()
}

/// A pod as the StatefulSet would make it.
fn pod(items: &[Value]) -> Value {
    let set = of_kind(items, "StatefulSet");
    let mut spec = set["spec"]["template"]["spec"].clone();
    let volumes = spec["volumes"].as_array_mut().unwrap();
    volumes.push(json!({ "name": "data", "persistentVolumeClaim": { "claimName": "data-portcullis-0" } }));
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "portcullis-0" }, "spec": spec })
}

#[test]
fn a_real_api_server_takes_the_chart_and_the_manifests_under_the_restricted_standard() {
    let (Some(_), Some(cluster)) = (rendered(&[]), Cluster::start()) else {
        return;
    };
    let mut texts: Vec<(&str, String)> = SETS
        .iter()
        .map(|(name, sets)| (*name, rendered(sets).unwrap()))
        .collect();
    texts.push(("plain manifests", read("deploy/kubernetes/portcullis.yaml")));
    for (name, text) in &texts {
        let taken = cluster.dry_run(text);
        assert!(taken.ok(), "{name}: {}", taken.stderr);
        assert!(!taken.stderr.contains("Warning"), "{name}: {}", taken.stderr);
        let items = items(&taken);
        let expected = text.matches("\nkind: ").count();
        assert_eq!(items.len(), expected, "{name}");
        // The set itself is only warned about; its pods are refused, so one is sent.
        let pod = cluster.dry_run(&pod(&items).to_string());
        assert!(pod.ok() && !pod.stderr.contains("Warning"), "{name}: {pod:?}");
    }

    // It can fail: each promise of the pod taken away is refused, and a field that there is not.
    let good = &texts[0].1;
    for (line, says) in [
        ("runAsNonRoot: true", "runAsNonRoot != true"),
        ("type: RuntimeDefault", "seccompProfile"),
        ("drop: [\"ALL\"]", "unrestricted capabilities"),
        (
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation != false",
        ),
    ] {
        assert!(good.contains(line), "{line} is not in the chart");
        let with = match line {
            "drop: [\"ALL\"]" => "drop: [\"KILL\"]",
            "type: RuntimeDefault" => "type: Unconfined",
            "runAsNonRoot: true" => "runAsNonRoot: false",
            _ => "allowPrivilegeEscalation: true",
        };
        let taken = cluster.dry_run(&good.replace(line, with)).expect_ok();
        assert!(
            taken.stderr.contains("Warning") && taken.stderr.contains(says),
            "{line}: {taken:?}"
        );
        let refused = cluster.dry_run(&pod(&items(&taken)).to_string());
        assert!(
            !refused.ok() && refused.stderr.contains(says),
            "{line}: {refused:?}"
        );
    }
    let unknown = cluster.dry_run(&good.replace("maxUnavailable:", "maxUnavailabel:"));
    assert!(
        !unknown.ok() && unknown.stderr.contains("maxUnavailabel"),
        "{unknown:?}"
    );
}

/// `portcullis.toml` out of the rendered ConfigMap: its lines, without their indent.
fn configuration(manifests: &str) -> String {
    let (_, rest) = manifests.split_once("  portcullis.toml: |\n").unwrap();
    let lines = rest
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "));
    lines
        .map(|line| format!("{}\n", line.trim_start_matches("    ")))
        .collect()
}

fn check(config: &str) -> Ran {
    let server = Server::prepare(Setup::default(), "").unwrap();
    std::fs::write(server.folder().join("portcullis.toml"), config).unwrap();
    server.run(&["config", "check"]).unwrap()
}

#[test]
fn the_chart_s_configuration_is_one_that_the_program_takes() {
    for (name, sets) in SETS {
        let Some(text) = rendered(sets) else { return };
        let config = configuration(&text);
        assert!(config.contains("insecure_http = true"), "{config}");
        let checked = check(&config);
        assert!(checked.ok(), "{name}: {checked:?}");
    }
    let more = rendered(&["config=[log]\nsurname = 1"]).unwrap();
    check(&configuration(&more)).expect_refused("PC1701");
    // The variables of the pod are such that the program reads.
    let text = rendered(&[]).unwrap();
    let variables = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- name: PORTCULLIS_"));
    let example = read("crates/portcullis/src/portcullis.example.toml");
    for variable in variables {
        let (section, key) = variable.split_once('_').unwrap();
        let section = example
            .split_once(&format!("[{}]", section.to_lowercase()))
            .unwrap()
            .1;
        assert!(
            section.contains(&format!("{} = ", key.to_lowercase())),
            "{variable}"
        );
    }
}

/// The steps of the chart's README: secrets of a server that is thrown away, an empty database, the chart's configuration.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_with_the_chart_s_configuration_and_given_secrets() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let Some(text) = rendered(&[]) else { return };
    let mut first = Server::start(Setup::default()).unwrap();
    first.kill();
    let folder = tempfile::tempdir().unwrap();
    let put = |config: String, from: &str, to: &Path| {
        assert!(config.contains(from), "{from} is not in {config}");
        config.replace(from, &to.display().to_string())
    };
    let config = configuration(&text);
    let config = put(config, "/var/lib/portcullis-blobs", &folder.path().join("blobs"));
    let config = put(config, "/etc/portcullis/secrets", &first.data().join("secrets"));
    let url = ("PORTCULLIS_DATABASE_URL".to_owned(), postgres.database());
    let setup = Setup {
        config,
        environment: vec![url],
        ..Setup::default()
    };
    let server = Server::start(setup).unwrap();
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry.put_image("team/app", "v1", "one").await.unwrap();
    let image = json!({ "image": format!("{}/team/app:v1", running.host()) });
    let signed = server
        .api()
        .unwrap()
        .post("/api/v1/signatures", &image)
        .await
        .unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");
}
