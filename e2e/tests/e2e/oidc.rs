//! Jobs of a build system, with tokens of an issuer that is a small web server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use e2e::{Answer, Api, Issuer, Mood, Ran, Server, Setup, run};
use registry::{Options, Registry};
use serde_json::{Value, json};
use testkit::wait_for;

const AUDIENCE: &str = "https://portcullis.example";

fn config(issuer: &Issuer) -> String {
    format!(
        "[[oidc]]\nname = \"release\"\nissuer = {:?}\naudience = {AUDIENCE:?}\nproject = \"default\"\n\
         role = \"signer\"\nclaims = {{ repository_id = \"74\", ref = \"refs/heads/main\" }}\n",
        issuer.url()
    )
}

fn setup(issuer: &Issuer) -> Setup {
    Setup {
        config: config(issuer),
        ..Setup::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "the server's clock is this machine's")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({
        "aud": AUDIENCE, "sub": "repo:octo/payments:ref:refs/heads/main", "iat": now(), "exp": now() + 300,
        "repository_id": "74", "ref": "refs/heads/main",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

async fn whoami(server: &Server, token: &str) -> Answer {
    let api = Api::new(&server.url(), token).unwrap();
    api.get("/api/v1/auth/whoami").await.unwrap()
}

fn code(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.body["code"].as_str().unwrap_or_default())
}

/// The files of keys that the server has kept.
fn kept(server: &Server) -> Vec<String> {
    let entries = std::fs::read_dir(server.data().join("oidc"))
        .into_iter()
        .flatten();
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap());
    names.collect()
}

/// Waits until the server has heard its issuer, and kept what it heard.
async fn heard(server: &Server, issuer: &Issuer) {
    for _ in 0..100 {
        let good = whoami(server, &issuer.token(&claims())).await.status == 200;
        if good && kept(server).iter().any(|name| name.ends_with(".json")) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the server never took a good token:\n{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_known_by_its_rule_in_answers_and_in_the_audit_trail() {
    let issuer = Issuer::start().unwrap();
    let server = Server::start(setup(&issuer)).unwrap();
    let actor = format!(
        "workload release (repo:octo/payments:ref:refs/heads/main of {})",
        issuer.url()
    );
    let good = issuer.token(&claims());
    let me = whoami(&server, &good).await;
    assert_eq!((me.status, &me.body["actor"]), (200, &json!(actor)));
    assert_eq!(
        (&me.body["role"], &me.body["everywhere"]),
        (&json!("signer"), &json!(false))
    );

    assert_eq!(me.body["rule"], "release");
    // `doctor` says whether this job can sign; that its token ends soon is as it should be.
    let mut doctor = server.command();
    doctor
        .env("PORTCULLIS_ID_TOKEN", &good)
        .env_remove("PORTCULLIS_TOKEN");
    let told = run(doctor.arg("doctor")).unwrap().expect_ok();
    assert!(told.stdout.contains("workload release"), "{}", told.text());

    // What a signer may not, a job may not; another project is not there for it.
    let job = Api::new(&server.url(), &good).unwrap();
    let key = json!({ "name": "own" });
    let denied = job.post("/api/v1/keys", &key).await.unwrap();
    assert_eq!(code(&denied), (403, "PC1602"));
    let elsewhere = job.in_project("other").get("/api/v1/keys").await.unwrap();
    assert_eq!(code(&elsewhere), (404, "PC1604"));

    // One that is over is its rule's all the same; one that no rule takes is nobody's.
    let post = |token: String| {
        let api = Api::new(&server.url(), &token).unwrap();
        async move { api.post("/api/v1/keys", &json!({ "name": "own" })).await.unwrap() }
    };
    let over = post(issuer.token(&with("exp", json!(now() - 100)))).await;
    assert_eq!(code(&over), (401, "PC1610"));
    let stranger = post(issuer.token(&with("repository_id", json!("666")))).await;
    assert_eq!(code(&stranger), (401, "PC1608"));
    let detail = stranger.body["detail"].as_str().unwrap();
    assert!(detail.ends_with("its repository_id is \"666\""), "{detail}");

    let recorded = || {
        let ran = server.run(&["audit", "list", "-o", "json"]).unwrap().expect_ok();
        let list: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
        let of = |code: &str| list.iter().find(|record| record["code"] == code).cloned();
        Some([of("PC1602")?, of("PC1610")?, of("PC1608")?])
    };
    let [denied, over, stranger] = wait_for(recorded).unwrap();
    for record in [denied, over] {
        assert_eq!(record["actor"], json!(actor), "{record}");
        assert_eq!(record["project"], "default", "{record}");
    }
    assert_eq!(stranger["actor"], "unknown", "{stranger}");
    let all = server.log() + &stranger.to_string();
    let (_, signature) = good.rsplit_once('.').unwrap();
    assert!(
        !all.contains(signature) && !all.contains("eyJ"),
        "a token was written down"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_are_401_with_a_code_of_their_own() {
    let issuer = Issuer::start().unwrap();
    let server = Server::start(setup(&issuer)).unwrap();
    heard(&server, &issuer).await;
    let none = {
        let token = issuer.token(&claims());
        let (_, payload) = token.split_once('.').unwrap();
        let (payload, _) = payload.split_once('.').unwrap();
        format!("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.{payload}.")
    };
    for (token, wanted) in [
        (none, "PC1607"),
        ("eyJ.eyJ.AAAA".to_owned(), "PC1607"),
        (
            issuer.token(&with("aud", json!("https://other.example"))),
            "PC1608",
        ),
        (issuer.token(&with("ref", json!("refs/heads/dev"))), "PC1608"),
        (issuer.token_by("k9", &claims()), "PC1609"),
        (Issuer::start().unwrap().token(&claims()), "PC1608"),
        (issuer.token(&with("exp", json!(now() - 61))), "PC1610"),
        (issuer.token(&with("nbf", json!(now() + 600))), "PC1610"),
    ] {
        let answer = whoami(&server, &token).await;
        assert_eq!(code(&answer), (401, wanted), "{answer:?}");
        assert!(!answer.body["hint"].as_str().unwrap().is_empty());
    }
    let asked = issuer.asked();
    for n in 0..50 {
        let answer = whoami(&server, &issuer.token_by(&format!("k{n}x"), &claims())).await;
        assert_eq!(code(&answer), (401, "PC1609"));
    }
    // Half a minute may have begun anew meanwhile, once.
    assert!(
        issuer.asked() <= asked + 2,
        "{} documents",
        issuer.asked() - asked
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_down_stops_nobody_whose_key_is_known_also_after_a_restart() {
    let issuer = Issuer::start().unwrap();
    let mut server = Server::start(setup(&issuer)).unwrap();
    heard(&server, &issuer).await;
    for mood in [Mood::Down, Mood::Garbage, Mood::Redirects] {
        issuer.is(mood);
        server.restart().unwrap();
        let me = whoami(&server, &issuer.token(&claims())).await;
        assert_eq!(me.status, 200, "{mood:?}: {me:?}");
        let unknown = whoami(&server, &issuer.token_by("k9", &claims())).await;
        assert_eq!(code(&unknown), (503, "PC1611"), "{mood:?}: {unknown:?}");
    }
    // `status` names it, with how old its keys are.
    let told = told(&server, "UNREACHABLE").await;
    assert_eq!(told["name"], issuer.url(), "{told}");
    let found = told["found"].as_str().unwrap();
    assert!(
        found.contains("sends us elsewhere") && found.contains("its keys are of 20"),
        "{found}"
    );
    // Without what was kept, nobody is known: neither yes nor no.
    std::fs::remove_dir_all(server.data().join("oidc")).unwrap();
    server.restart().unwrap();
    let me = whoami(&server, &issuer.token(&claims())).await;
    assert_eq!(code(&me), (503, "PC1611"), "{me:?}");
}

/// The issuer among the dependencies, once it is in this state.
async fn told(server: &Server, state: &str) -> Value {
    for _ in 0..200 {
        let answer = server.api().unwrap().get("/api/v1/dependencies").await.unwrap();
        let all = answer.body["dependencies"].as_array().unwrap().clone();
        let issuer = all.into_iter().find(|one| one["kind"] == "token-issuer").unwrap();
        if issuer["state"] == state {
            return issuer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the issuer is never {state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_while_it_keeps_keys_starts_again_and_keeps_them() {
    let issuer = Issuer::start().unwrap();
    let mut server = Server::start(Setup::default()).unwrap();
    server.kill();
    std::fs::write(server.folder().join("portcullis.toml"), config(&issuer)).unwrap();
    let _ = server.launch(Some("oidc.staged_keys")).unwrap();
    wait_for(|| (!server.is_running()).then_some(())).expect("it dies at the point");
    assert!(
        kept(&server).iter().all(|name| name.ends_with(".new")),
        "nothing half is in place"
    );
    assert_eq!(kept(&server).len(), 1);
    server.restart().unwrap();
    heard(&server, &issuer).await;
    issuer.is(Mood::Down);
    server.restart().unwrap();
    assert_eq!(whoami(&server, &issuer.token(&claims())).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_checked_whole_without_the_issuer() {
    let issuer = Issuer::start().unwrap();
    issuer.is(Mood::Down);
    let server = Server::start(setup(&issuer)).unwrap();
    let file = server.folder().join("wrong.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        server
            .run(&["config", "check", "--config", file.to_str().unwrap()])
            .unwrap()
    };
    check(&config(&issuer)).expect_ok();
    let whole = format!("[server]\nlisten = \"127.0.0.1:1\"\n{}", config(&issuer));
    let refused = check(&whole.replace("repository_id = \"74\", ", "")).expect_refused("PC1701");
    assert!(
        refused.stderr.contains("line 3") && refused.stderr.contains("rule release: at least one claim"),
        "{}",
        refused.stderr
    );
    let pattern = check(&whole.replace("refs/heads/main", "refs/heads/*")).expect_refused("PC1701");
    assert!(
        pattern.stderr.contains("claim ref is compared to the letter"),
        "{}",
        pattern.stderr
    );
    for (from, to) in [
        ("role = \"signer\"", "role = \"admin\""),
        ("audience =", "audiences ="),
        (issuer.url(), "http://ci.example"),
        (issuer.url(), "https://169.254.169.254"),
        ("claims =", "ca_file = \"/nowhere.pem\"\nclaims ="),
    ] {
        check(&whole.replace(from, to)).expect_refused("PC1701");
    }
    // The rule that the README shows.
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, block) = readme.split_once("```toml\n").unwrap();
    check(block.split_once("```").unwrap().0).expect_ok();
    let twice = format!("{}{}", config(&issuer), config(&issuer));
    check(&twice).expect_refused("PC1701");
}

/// The last job of an example, and what it runs.
fn example(path: &str, job: &str) -> (Vec<String>, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("examples").join(path)).unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let start = lines.iter().position(|line| line == job).unwrap();
    let lines = lines[start..].to_vec();
    let script = lines
        .iter()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .map(|line| line.strip_prefix("run: ").unwrap_or(line))
        .filter(|line| line.starts_with("portcullis "))
        .collect::<Vec<_>>()
        .join("\n");
    (lines, script)
}

/// Runs the script of an example's job as its runner would, with the variables of the job.
fn run_job(server: &Server, folder: &Path, script: &str, variables: &BTreeMap<&str, String>) -> Ran {
    let program: PathBuf = e2e::program().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let mut command = Command::new("sh");
    command
        .args(["-e", "-c", script])
        .env_clear()
        .env("PATH", path)
        .env("PORTCULLIS_SERVER", server.url())
        .envs(variables)
        .current_dir(folder);
    run(&mut command).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_sign_only_what_changed() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let issuer = Issuer::start().unwrap();
    let server = Server::start(setup(&issuer)).unwrap();
    heard(&server, &issuer).await;
    let mut list = Vec::new();
    for name in ["a", "b", "c"] {
        let digest = registry
            .put_image(&format!("team/{name}"), "v1", name)
            .await
            .unwrap();
        list.push(format!("{}/team/{name}@{digest}", running.host()));
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |images: &[String]| {
        std::fs::write(folder.path().join("images.txt"), images.join("\n")).unwrap();
    };

    let (github, script) = example("github/sign.yml", "  sign:");
    assert!(github.len() <= 12 && github.iter().any(|line| line.contains("id-token: write")));
    let mut variables: BTreeMap<&str, String> = issuer.job(claims()).into_iter().collect();
    variables.insert("PORTCULLIS_AUDIENCE", AUDIENCE.to_owned());
    write(&list[..2]);
    let first = run_job(&server, folder.path(), &script, &variables).expect_ok();
    assert!(
        first.stderr.contains("2 signed, 0 already signed, 0 failed"),
        "{}",
        first.text()
    );
    // One more, and one that is named twice.
    write(&[&list[..], &list[..1]].concat());
    let second = run_job(&server, folder.path(), &script, &variables).expect_ok();
    assert!(
        second.stderr.contains("1 signed, 2 already signed, 0 failed"),
        "{}",
        second.text()
    );
    for image in &list[..2] {
        assert!(
            second.stdout.contains(&format!("already  {image}")),
            "{}",
            second.stdout
        );
    }
    assert!(
        second.stdout.contains(&format!("signed   {}", list[2])),
        "{}",
        second.stdout
    );
    // Without the permission GitHub gives no token.
    variables.insert("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "another".to_owned());
    run_job(&server, folder.path(), &script, &variables).expect_refused("PC1720");
    // The audience is the server's address unless another is named; the rule wants another.
    let mut variables: BTreeMap<&str, String> = issuer.job(claims()).into_iter().collect();
    variables.insert("NO_COLOR", "1".to_owned());
    run_job(&server, folder.path(), &script, &variables).expect_refused("PC1608");

    let (gitlab, script) = example("gitlab/.gitlab-ci.yml", "sign:");
    assert!(gitlab.len() <= 12 && gitlab.iter().any(|line| line.contains("PORTCULLIS_ID_TOKEN")));
    let variables = BTreeMap::from([("PORTCULLIS_ID_TOKEN", issuer.token(&claims()))]);
    let third = run_job(&server, folder.path(), &script, &variables).expect_ok();
    assert!(
        third.stderr.contains("0 signed, 3 already signed, 0 failed"),
        "{}",
        third.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_only_asks_no_registry_for_what_is_signed_and_prints_names_of_what_is_new() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let server = Server::start(Setup::default()).unwrap();
    let digest = registry.put_image("team/app", "v1", "x").await.unwrap();
    let image = format!("{}/team/app@{digest}", running.host());
    let file = server.folder().join("images.txt");
    std::fs::write(&file, &image).unwrap();
    let sign = |more: &[&str]| {
        let args = ["sign", "--changed-only", "--from-file", file.to_str().unwrap()];
        server.run(&[&args[..], more].concat()).unwrap()
    };
    let new = sign(&["-o", "name"]).expect_ok();
    assert_eq!(new.stdout.trim(), image);
    // Its registry is gone.
    drop(running);
    let known = sign(&["-o", "name"]).expect_ok();
    assert_eq!(known.stdout, "");
    assert!(
        known.stderr.contains("0 signed, 1 already signed, 0 failed"),
        "{}",
        known.stderr
    );
    let json = sign(&["-o", "json"]).expect_ok();
    let lines: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(lines[0]["signature"]["deduplicated"], true, "{lines}");
    // What is new and cannot be read is told, beside what stands.
    let other = image.replace("team/app", "team/other");
    std::fs::write(&file, format!("{image}\n{other}\n")).unwrap();
    let failed = sign(&[]);
    assert_eq!(failed.code, Some(6), "{}", failed.text());
    assert!(
        failed.stderr.contains("0 signed, 1 already signed, 1 failed"),
        "{}",
        failed.text()
    );
    for more in [&["--release"][..], &["--repair"], &["--recursive"]] {
        assert_eq!(sign(more).code, Some(2));
    }
    assert_eq!(
        server.run(&["sign", "--changed-only", &image]).unwrap().code,
        Some(2)
    );
}
