//! The client of somebody else's log against a Rekor v1 (a stub with real signatures and real proofs) and against what
//! is none. Rekor v2 is tried in `e2e`: with our own engine, and with rekor-tiles.

use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom as Rng;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kernel::Digest;
use probing::{Marks, Probe as _, References, State as Found};
use serde_json::{Value, json};
use tlog::merkle::{Hash, consistency_ranges, empty_root, inclusion_ranges, leaf_hash, node_hash};
use tlog::{HashedRekord, LogKey, Tlog, Verifier};
use upstream::rekor::{Api, Client, LogProbe, RekorError, RekorReason, Settings};

const HOST: &str = "rekor.example";
const TREE: &str = "1193050959916656506";

fn spki(pair: &EcdsaKeyPair) -> Vec<u8> {
    let der = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
    der.as_ref().to_vec()
}

fn pem(pair: &EcdsaKeyPair) -> String {
    let text = STANDARD.encode(spki(pair));
    format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
}

/// The root over a range of leaves (RFC 6962, section 2.1).
fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [one] => *one,
        many => {
            let middle = 1 << (many.len() - 1).ilog2();
            node_hash(&root(&many[..middle]), &root(&many[middle..]))
        }
    }
}

fn over(leaves: &[Hash], ranges: &[(u64, u64)]) -> Vec<String> {
    let hash = |&(from, to): &(u64, u64)| hex::encode(root(&leaves[from as usize..to as usize]));
    ranges.iter().map(hash).collect()
}

/// A Rekor v1, as much of it as a client of `hashedrekord` sees.
struct V1 {
    pair: EcdsaKeyPair,
    bodies: Mutex<Vec<Vec<u8>>>,
    lies: Lie,
}

/// How a log may answer a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    Not,
    /// With an entry that is in the log, and is not the one that was sent.
    AnotherEntry,
    /// With the entry that was sent, and a proof of another.
    AnotherProof,
}

impl V1 {
    fn leaves(&self) -> Vec<Hash> {
        self.bodies
            .lock()
            .unwrap()
            .iter()
            .map(|body| leaf_hash(body))
            .collect()
    }

    fn origin(&self, api: Api) -> String {
        match api {
            Api::V1 => format!("{HOST} - {TREE}"),
            _ => HOST.to_owned(),
        }
    }

    fn note(&self) -> String {
        self.signed(&self.origin(Api::V1))
    }

    fn signed(&self, origin: &str) -> String {
        let leaves = self.leaves();
        let text = format!("{origin}\n{}\n{}\n", leaves.len(), STANDARD.encode(root(&leaves)));
        let id = Digest::of(&spki(&self.pair));
        let signature = self.pair.sign(&Rng::new(), text.as_bytes()).unwrap();
        let line = [&id.as_bytes()[..4], signature.as_ref()].concat();
        format!("{text}\n— {HOST} {}\n", STANDARD.encode(line))
    }

    fn entry(&self, index: usize) -> Value {
        let leaves = self.leaves();
        let (shown, proven) = match self.lies {
            Lie::Not => (index, index),
            Lie::AnotherEntry => (0, 0),
            Lie::AnotherProof => (index, 0),
        };
        let (body, size) = (self.bodies.lock().unwrap()[shown].clone(), leaves.len() as u64);
        json!({ hex::encode(leaves[index]): {
            "body": STANDARD.encode(body), "integratedTime": 1_700_000_000, "logIndex": index + 1_000, "logID": "00",
            "verification": { "signedEntryTimestamp": "", "inclusionProof": {
                "checkpoint": self.note(), "hashes": over(&leaves, &inclusion_ranges(proven as u64, size)),
                "logIndex": proven, "rootHash": "", "treeSize": size,
            }},
        }})
    }
}

async fn info(State(log): State<Arc<V1>>) -> Json<Value> {
    let size = log.leaves().len();
    Json(json!({ "rootHash": "", "signedTreeHead": log.note(), "treeID": TREE, "treeSize": size }))
}

#[derive(serde::Deserialize)]
struct Sizes {
    #[serde(rename = "firstSize")]
    first: u64,
    #[serde(rename = "lastSize")]
    last: u64,
    #[serde(rename = "treeID")]
    tree: String,
}

async fn proof(State(log): State<Arc<V1>>, Query(sizes): Query<Sizes>) -> Json<Value> {
    assert_eq!(sizes.tree, TREE);
    let hashes = over(&log.leaves(), &consistency_ranges(sizes.first, sizes.last));
    Json(json!({ "rootHash": "", "hashes": hashes }))
}

async fn append(State(log): State<Arc<V1>>, Json(entry): Json<Value>) -> Response {
    let body = serde_json::to_vec(&entry).unwrap();
    let leaf = hex::encode(leaf_hash(&body));
    let there = {
        let mut bodies = log.bodies.lock().unwrap();
        let there = bodies.contains(&body);
        if !there {
            bodies.push(body);
        }
        there
    };
    if there {
        let location = format!("/api/v1/log/entries/{leaf}");
        return (StatusCode::CONFLICT, [(header::LOCATION, location)]).into_response();
    }
    let index = log.leaves().len() - 1;
    (StatusCode::CREATED, Json(log.entry(index))).into_response()
}

async fn one(State(log): State<Arc<V1>>, Path(uuid): Path<String>) -> Json<Value> {
    let leaves = log.leaves();
    let index = leaves.iter().position(|leaf| hex::encode(leaf) == uuid).unwrap();
    Json(log.entry(index))
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

async fn start(bodies: &[&str], lies: Lie) -> (String, Arc<V1>) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let (log, router) = log(pair, bodies, lies);
    (serve(router).await, log)
}

fn log(pair: EcdsaKeyPair, bodies: &[&str], lies: Lie) -> (Arc<V1>, Router) {
    let log = Arc::new(V1 {
        pair,
        bodies: Mutex::new(bodies.iter().map(|body| body.as_bytes().to_vec()).collect()),
        lies,
    });
    let router = Router::new()
        .route("/api/v1/log", get(info))
        .route("/api/v1/log/proof", get(proof))
        .route("/api/v1/log/entries", post(append))
        .route("/api/v1/log/entries/{uuid}", get(one))
        .with_state(log.clone());
    (log, router)
}

/// The same as a Rekor v2 of less than a tile shows it, where `api` is that.
async fn start_as(api: Api, pair: EcdsaKeyPair, bodies: &[&str]) -> (String, Arc<V1>) {
    let (log, mut router) = log(pair, bodies, Lie::Not);
    if api == Api::V2 {
        let v2 = Router::new()
            .route("/api/v2/checkpoint", get(v2_checkpoint))
            .route("/api/v2/tile/0/{*tile}", get(v2_tile));
        router = router.merge(v2.with_state(log.clone()));
    }
    (serve(router).await, log)
}

/// A client that expects the key of `pem` at `url`.
fn client(url: &str, pem: &str, api: Api) -> Client {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    Client::new(&Settings {
        url: url.to_owned(),
        origin: Some(HOST.to_owned()),
        public_key: Some(file.path().to_owned()),
        trusted_root: None,
        api,
        ca_pem: None,
        call_seconds_max: 5,
        entries_per_second_max: 50,
    })
    .unwrap()
}

fn rekord(message: &[u8]) -> HashedRekord {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    HashedRekord {
        digest: Digest::of(message).as_bytes().to_vec(),
        signature: pair.sign(&Rng::new(), message).unwrap().as_ref().to_vec(),
        verifier: Verifier::PublicKey(spki(&pair)),
    }
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, RekorError>) -> RekorReason {
    outcome.unwrap_err().reason
}

#[tokio::test]
async fn a_rekor_v1_is_found_out_and_its_growth_is_proven() {
    let (url, log) = start(&["a", "b", "c"], Lie::Not).await;
    let client = client(&url, &pem(&log.pair), Api::Auto);
    let first = client.checkpoint().await.unwrap();
    assert_eq!((first.api, first.checkpoint.size), (Api::V1, 3));
    for body in ["d", "e", "f", "g"] {
        log.bodies.lock().unwrap().push(body.as_bytes().to_vec());
    }
    let second = client.checkpoint().await.unwrap();
    client.follows(&first.checkpoint, &second).await.unwrap();
    client.follows(&second.checkpoint, &second).await.unwrap();
    // It forgets what it said.
    log.bodies.lock().unwrap()[1] = b"x".to_vec();
    let third = client.checkpoint().await.unwrap();
    for old in [&first.checkpoint, &second.checkpoint] {
        assert!(matches!(
            reason(client.follows(old, &third).await),
            RekorReason::Forked { .. }
        ));
    }
}

/// Shown to fail: with `included` left out of `append_v1` a proof of another entry is believed, without the comparison
/// of the body another entry is.
#[tokio::test]
async fn an_entry_is_in_a_rekor_v1_once_and_proven() {
    let (url, log) = start(&["a", "b", "c"], Lie::Not).await;
    let own = client(&url, &pem(&log.pair), Api::Auto);
    let entry = rekord(b"signed");
    let new = own.append(&entry, None).await.unwrap();
    assert_eq!((new.index, new.already), (1_003, false));
    let evidence: Value = serde_json::from_str(new.entry.get()).unwrap();
    assert_eq!(evidence["logIndex"], "1003");
    assert_eq!(evidence["inclusionProof"]["logIndex"], "3");
    assert_eq!(evidence["kindVersion"]["version"], "0.0.1");
    assert_eq!(new.at.map(|at| at.as_second()), Some(1_700_000_000));
    // The retry of an answer that was lost.
    let again = own.append(&entry, None).await.unwrap();
    assert_eq!((again.index, again.already), (1_003, true));
    assert_eq!(log.leaves().len(), 4);

    for lie in [Lie::AnotherEntry, Lie::AnotherProof] {
        let (url, liar) = start(&["a", "b"], lie).await;
        let own = client(&url, &pem(&liar.pair), Api::V1);
        let found = reason(own.append(&entry, None).await);
        assert!(matches!(found, RekorReason::Unproven(_)), "{lie:?}: {found}");
    }
}

/// A log of our own engine that answers each write as rekor-tiles does one that it knows: with a bare 409. Its paths that
/// are read are kept.
async fn knows_all(
    origin: &str,
    entries: &[HashedRekord],
) -> (Tlog, String, Arc<Mutex<Vec<String>>>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let db = store::Db::open(&url).await.unwrap();
    let migrations = [store::MIGRATIONS, tlog::MIGRATIONS].concat();
    db.migrate(&migrations).await.unwrap();
    let pkcs8 = LogKey::generate(&kernel::SystemRandom).unwrap();
    let settings = tlog::Settings {
        db,
        blobs: store::Blobs::folder(&folder.path().join("blobs")).unwrap(),
        key: LogKey::new(origin, &pkcs8).unwrap(),
        name: tlog::Name::Signatures,
        holder: "test".to_owned(),
        server: "test".to_owned(),
        lease_ttl: std::time::Duration::from_secs(60),
        shared: false,
        mark: None,
        owner: None,
    };
    let log = Tlog::open(settings).await.unwrap();
    while log.append(&entries[0]).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for some in entries.chunks(500) {
        let all = futures::future::join_all(some.iter().map(|entry| log.append(entry))).await;
        assert!(all.iter().all(Result::is_ok));
    }
    let read = Arc::new(Mutex::new(Vec::new()));
    let own = read.clone();
    let known = move |request: Request, next: Next| {
        let own = own.clone();
        async move {
            if request.method() == axum::http::Method::POST {
                return StatusCode::CONFLICT.into_response();
            }
            own.lock().unwrap().push(request.uri().path().to_owned());
            next.run(request).await
        }
    };
    let router = tlog::router(log.clone()).layer(axum::middleware::from_fn(known));
    (log, serve(router).await, read, folder)
}

/// Shown to fail: without `last` in `Client::search`, all tiles from the newest on are read.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_a_rekor_v2_has_is_looked_for_where_it_was_first() {
    let mut entries = vec![rekord(b"the oldest")];
    entries.extend((0..2_600_u32).map(|number| rekord(&number.to_be_bytes())));
    let (log, url, read, _folder) = knows_all(HOST, &entries).await;
    let client = client(&url, &log.verifier().pem(), Api::V2);
    let found = async |last_index| {
        read.lock().unwrap().clear();
        let found = client.append(&entries[0], last_index).await.unwrap();
        assert_eq!((found.index, found.already), (0, true));
        let read = read.lock().unwrap();
        read.iter().filter(|path| path.contains("/tile/0/")).count()
    };
    // The tile that it lies in, and the newest, which is partial, for the proof.
    assert!(found(Some(0)).await <= 3);
    for elsewhere in [None, Some(2_600), Some(u64::MAX)] {
        assert!(found(elsewhere).await >= 11, "{elsewhere:?}");
    }
}

async fn v2_checkpoint(State(log): State<Arc<V1>>) -> String {
    log.signed(HOST)
}

async fn v2_tile(State(log): State<Arc<V1>>, Path(tile): Path<String>) -> Response {
    let leaves = log.leaves();
    // The widths that it had before it grew are gone.
    if tile != format!("000.p/{}", leaves.len()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    leaves.concat().into_response()
}

/// A probe of `client` and the folder of its marks.
async fn probe(client: &Arc<Client>) -> (LogProbe, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("test.db").display());
    let db = store::Db::open(&url).await.unwrap();
    db.migrate(probing::MIGRATIONS).await.unwrap();
    (probe_on(&db, client), folder)
}

/// As one server of several that share `db`.
fn probe_on(db: &store::Db, client: &Arc<Client>) -> LogProbe {
    probe_with(LogProbe::mark(client, &Marks::new(db.clone())), client)
}

fn probe_with(mark: probing::LogMark, client: &Arc<Client>) -> LogProbe {
    let clock = Arc::new(kernel::SystemClock::new());
    LogProbe::new(client.clone(), mark, clock, References::default())
}

/// Two logs of one key, the second a copy of the first that went on by itself. Shown to fail: with `contains` believing
/// what verifies, what the copy answered is the log's; without `contradiction` in the probe, the log is found well.
#[tokio::test]
async fn what_a_fork_answered_is_none_of_the_log_that_was_found_well_and_is_named() {
    for api in [Api::V1, Api::V2] {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &Rng::new()).unwrap();
        let pair = || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).unwrap();
        let (url, log) = start_as(api, pair(), &["a", "b", "c"]).await;
        let (_, copy) = start_as(api, pair(), &["a", "b", "c"]).await;
        let own = Arc::new(client(&url, &pem(&log.pair), api));
        let (probe, _folder) = probe(&own).await;
        let head = |of: &V1| {
            let (leaves, origin) = (of.leaves(), of.origin(api));
            let (size, root) = (leaves.len() as u64, root(&leaves));
            signing::ports::TreeHead { origin, size, root }
        };
        let common = head(&log);
        let unknown = own.contains(std::slice::from_ref(&common)).await.remove(0);
        assert!(matches!(unknown, Some(Err(RekorReason::Unreachable(_)))));
        log.bodies.lock().unwrap().push(b"d".to_vec());
        copy.bodies.lock().unwrap().push(b"x".to_vec());
        let (own_head, others) = (head(&log), head(&copy));
        let same_size = own_head.clone();
        log.bodies.lock().unwrap().push(b"e".to_vec());
        assert_eq!(probe.look().await.state, Found::Ok);
        log.bodies.lock().unwrap().push(b"f".to_vec());
        let later = head(&log);
        log.bodies.lock().unwrap().pop();
        let heads = [common, own_head, others.clone(), later, same_size];
        let found = own.contains(&heads).await;
        let words: Vec<&str> = found
            .iter()
            .map(|one| match one {
                None => "not yet",
                Some(Ok(())) => "yes",
                Some(Err(RekorReason::Forked { .. })) => "no",
                Some(Err(other)) => panic!("{api:?}: {other}"),
            })
            .collect();
        assert_eq!(words, ["yes", "yes", "no", "not yet", "yes"], "{api:?}");
        // It is named once, and then by whoever meets it again.
        let named = probe.look().await;
        assert_eq!(named.state, Found::Forked);
        assert!(named.expected.contains("4 entries"), "{named:?}");
        assert_eq!(probe.look().await.state, Found::Ok);
        // A copy of the same size as the log.
        copy.bodies.lock().unwrap().push(b"y".to_vec());
        let found = own.contains(&[head(&copy)]).await.remove(0);
        assert!(matches!(found, Some(Err(RekorReason::Forked { .. }))), "{api:?}");
    }
}

/// Shown to fail: with a look that ends when another server moved the mark on, as it did, a server knows nothing of what
/// the log has become since its last lucky look.
#[tokio::test(flavor = "multi_thread")]
async fn each_server_learns_of_a_log_that_grows_though_all_look_at_once() {
    let (url, log) = start(&["a"], Lie::Not).await;
    let clients: Vec<_> = (0..6)
        .map(|_| Arc::new(client(&url, &pem(&log.pair), Api::V1)))
        .collect();
    let (_, folder) = probe(&clients[0]).await;
    let database = format!("sqlite:{}", folder.path().join("test.db").display());
    let db = store::Db::open(&database).await.unwrap();
    let probes: Vec<_> = clients.iter().map(|client| probe_on(&db, client)).collect();
    let head = || {
        let leaves = log.leaves();
        let (size, root, origin) = (leaves.len() as u64, root(&leaves), log.origin(Api::V1));
        signing::ports::TreeHead { origin, size, root }
    };
    for round in 0..10 {
        let before = head();
        let grows = async {
            for number in 0..10_u8 {
                log.bodies.lock().unwrap().push(vec![round, number]);
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        let (looks, ()) = futures::future::join(
            futures::future::join_all(probes.iter().map(probing::Probe::look)),
            grows,
        )
        .await;
        assert!(looks.iter().all(|found| found.state == Found::Ok), "{looks:?}");
        for client in &clients {
            let found = client.contains(std::slice::from_ref(&before)).await.remove(0);
            assert!(matches!(found, Some(Ok(()))), "round {round}: {found:?}");
        }
    }
}

/// Two servers on one database, whose names lead to two copies of one log. Shown to fail: with a `LogProbe::held` that
/// asks only what this server saw, both find it well, and each believes its own copy.
#[tokio::test]
async fn p14_two_servers_whose_name_leads_to_two_copies_believe_one_of_them() {
    for api in [Api::V1, Api::V2] {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &Rng::new()).unwrap();
        let pair = || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).unwrap();
        let (url, log) = start_as(api, pair(), &["a", "b", "c"]).await;
        let (copy_url, copy) = start_as(api, pair(), &["a", "b"]).await;
        let own = Arc::new(client(&url, &pem(&log.pair), api));
        let (first, folder) = probe(&own).await;
        let database = format!("sqlite:{}", folder.path().join("test.db").display());
        let db = store::Db::open(&database).await.unwrap();
        db.migrate(access::MIGRATIONS).await.unwrap();
        let misled = Arc::new(client(&copy_url, &pem(&log.pair), api));
        let second = probe_on(&db, &misled);
        assert_eq!(first.look().await.state, Found::Ok);
        let named = second.look().await;
        assert_eq!(named.state, Found::RolledBack, "{api:?}: {named:?}");
        assert!(named.expected.contains("3 entries"), "{named:?}");
        copy.bodies.lock().unwrap().push(b"x".to_vec());
        assert_eq!(second.look().await.state, Found::Forked, "{api:?}");
        copy.bodies.lock().unwrap().push(b"y".to_vec());
        assert_eq!(second.look().await.state, Found::Forked, "{api:?}");
        let head = |of: &V1| {
            let (leaves, origin) = (of.leaves(), of.origin(api));
            let (size, root) = (leaves.len() as u64, root(&leaves));
            signing::ports::TreeHead { origin, size, root }
        };
        // Nor is anything proven by it.
        let found = misled.contains(&[head(&copy)]).await.remove(0);
        assert!(matches!(found, Some(Err(RekorReason::Unreachable(_)))), "{api:?}");
        assert_eq!(first.look().await.state, Found::Ok);
        // A process that starts anew knows it too.
        assert_eq!(probe_on(&db, &misled).look().await.state, Found::Forked);

        // A person says to the server that found the copy that it is the log, and not to one that found nothing wrong.
        let context = access::Context::local("default".parse().unwrap());
        let (clock, random) = (kernel::SystemClock::new(), kernel::SeededRandom::new(1));
        let mark_of = |client: &Arc<Client>| LogProbe::mark(client, &Marks::new(db.clone()));
        let (right, wrong) = (mark_of(&own), mark_of(&misled));
        let first = probe_with(right.clone(), &own);
        let second = probe_with(wrong.clone(), &misled);
        assert_eq!(first.look().await.state, Found::Ok);
        assert_eq!(second.look().await.state, Found::Forked);
        let nothing = right.take(&context, "it was put back", &clock, &random).await;
        assert_eq!(kernel::Fault::kind(&nothing.unwrap_err()), kernel::Kind::NotFound);
        assert_eq!(misled.taken(), 0);
        let (seen, taken) = wrong
            .take(&context, "it was put back", &clock, &random)
            .await
            .unwrap();
        assert!(seen.contains("3 entries"), "{seen}");
        assert_eq!(taken.size, 4);
        // Whoever looks first, it is the copy.
        assert_ne!(first.look().await.state, Found::Ok, "{api:?}");
        assert_eq!(second.look().await.state, Found::Ok, "{api:?}");
        assert_eq!(misled.taken(), 1);
        assert!(matches!(
            misled.contains(&[head(&copy)]).await.remove(0),
            Some(Ok(()))
        ));
        assert_eq!(first.look().await.state, Found::RolledBack, "{api:?}");
    }
}

/// Shown to fail: with a mark that does not read taken for none, whatever answers is believed.
#[tokio::test]
async fn p14_a_damaged_mark_is_named_and_nothing_is_believed() {
    let (url, log) = start(&["a", "b", "c"], Lie::Not).await;
    let own = Arc::new(client(&url, &pem(&log.pair), Api::V1));
    let (probe, folder) = probe(&own).await;
    assert_eq!(probe.look().await.state, Found::Ok);
    let database = format!("sqlite:{}", folder.path().join("test.db").display());
    let db = store::Db::open(&database).await.unwrap();
    let well = "SELECT mark FROM probe_mark";
    let well = db.read_one(well, Vec::new()).await.unwrap().unwrap();
    let well = well.text("mark").unwrap();
    assert!(well.contains("\"size\""), "{well}");
    for damaged in ["x".to_owned(), well.replace("\"size\"", "\"sise\"")] {
        let mut tx = db.begin().await.unwrap();
        let damage = "UPDATE probe_mark SET mark = $1";
        tx.execute(damage, store::args![damaged]).await.unwrap();
        tx.commit().await.unwrap();
        for probe in [&probe, &probe_on(&db, &own)] {
            let named = probe.look().await;
            assert_eq!(named.state, Found::Forked, "{named:?}");
            assert!(named.found.contains("does not read"), "{named:?}");
        }
    }
}

/// Shown to fail: with `found_well` outside of what the database confirmed, the answer is "yes".
#[tokio::test]
async fn without_the_database_a_log_is_well_and_proves_nothing_new() {
    let (url, log) = start(&["a", "b"], Lie::Not).await;
    let own = Arc::new(client(&url, &pem(&log.pair), Api::V1));
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("test.db").display());
    let db = store::Db::open(&database).await.unwrap();
    // Without its tables every question fails.
    let probe = probe_on(&db, &own);
    let head = signing::ports::TreeHead {
        origin: log.origin(Api::V1),
        size: 2,
        root: root(&log.leaves()),
    };
    assert_eq!(probe.look().await.state, Found::Ok);
    let unknown = own.contains(std::slice::from_ref(&head)).await.remove(0);
    assert!(matches!(unknown, Some(Err(RekorReason::Unreachable(_)))));
    // What it saw by itself counts until the database is back, and no longer.
    let last = log.bodies.lock().unwrap().pop().unwrap();
    assert_eq!(probe.look().await.state, Found::RolledBack);
    db.migrate(probing::MIGRATIONS).await.unwrap();
    assert_eq!(probe.look().await.state, Found::Ok);
    log.bodies.lock().unwrap().push(last);
    assert_eq!(probe.look().await.state, Found::Ok);
    assert!(matches!(own.contains(&[head]).await.remove(0), Some(Ok(()))));
}

#[tokio::test]
async fn a_tile_that_the_checkpoint_promises_and_is_not_there_is_told_as_what_it_may_be() {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let (url, log) = start_as(Api::V2, pair, &["a", "b", "c"]).await;
    let own = client(&url, &pem(&log.pair), Api::V2);
    let first = own.checkpoint().await.unwrap();
    log.bodies.lock().unwrap().push(b"d".to_vec());
    let second = own.checkpoint().await.unwrap();
    // Whoever answers next is the older copy.
    log.bodies.lock().unwrap().pop();
    let RekorReason::Unreachable(why) = reason(own.follows(&first.checkpoint, &second).await) else {
        panic!("it is told as something else");
    };
    assert!(
        why.contains("tile/0/000.p/4") && why.contains("several servers"),
        "{why}"
    );
}

#[tokio::test]
async fn a_checkpoint_of_another_key_or_host_is_named() {
    let (url, log) = start(&["a"], Lie::Not).await;
    let stranger = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let own = client(&url, &pem(&stranger), Api::Auto);
    let RekorReason::WrongLog { expected, found } = reason(own.checkpoint().await) else {
        panic!("another log is not named");
    };
    let id = |pair: &EcdsaKeyPair| hex::encode(&Digest::of(&spki(pair)).as_bytes()[..4]);
    assert!(expected.contains(&id(&stranger)), "{expected}");
    assert!(found.contains(&id(&log.pair)) && found.contains(TREE), "{found}");
    // Nothing is written into it either.
    assert!(matches!(
        reason(own.append(&rekord(b"x"), None).await),
        RekorReason::WrongLog { .. }
    ));
    assert_eq!(log.leaves().len(), 1);
}

#[tokio::test]
async fn what_a_log_refuses_or_puts_off_is_told_apart() {
    let answers = |status: u16| async move {
        let status = StatusCode::from_u16(status).unwrap();
        let body = json!({ "code": 3, "message": "no such key details\u{1b}[2J" });
        serve(Router::new().fallback(move || async move {
            (status, [(header::RETRY_AFTER, "7")], Json(body.clone())).into_response()
        }))
        .await
    };
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    for (status, expected) in [
        (400, "refused"),
        // It may say that it has the entry: that is no proof.
        (409, "no log"),
        (429, "throttled"),
        (503, "unreachable"),
        (404, "no log"),
    ] {
        let client = client(&answers(status).await, &pem(&pair), Api::V2);
        let outcome = client.append(&rekord(b"x"), None).await;
        let found = match &outcome {
            Ok(_) => "logged",
            Err(error) => match &error.reason {
                RekorReason::Refused(why) => {
                    assert!(
                        why.contains("no such key details") && !why.contains('\u{1b}'),
                        "{why}"
                    );
                    "refused"
                }
                RekorReason::Throttled { after_seconds } => {
                    assert_eq!(*after_seconds, Some(7));
                    "throttled"
                }
                RekorReason::Unreachable(_) => "unreachable",
                RekorReason::NotALog(_) => "no log",
                other => panic!("{other}"),
            },
        };
        assert_eq!(found, expected, "{status}");
    }
}

#[test]
fn settings_are_checked_without_the_log() {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let key = file("rekor.pub", &pem(&pair));
    let root = json!({ "tlogs": [
        { "baseUrl": "https://other.example", "publicKey": { "rawBytes": "AAAA" } },
        { "baseUrl": "https://rekor.example", "publicKey": {
            "rawBytes": STANDARD.encode(spki(&pair)), "validFor": { "end": "2030-01-01T00:00:00Z" },
        }},
    ]});
    let root = file("trusted_root.json", &root.to_string());
    let settings = |text: String| toml::from_str::<Settings>(&text).map(|settings| Client::new(&settings));
    let url = "url = \"https://rekor.example\"";
    let by_key = settings(format!("{url}\npublic_key = {key:?}")).unwrap().unwrap();
    assert_eq!(by_key.trusted().verifier.origin(), "rekor.example");
    let by_root = settings(format!("{url}\ntrusted_root = {root:?}"))
        .unwrap()
        .unwrap();
    assert_eq!(by_root.trusted().verifier, by_key.trusted().verifier);
    assert!(by_root.trusted().ends.is_some());
    let bad_key = file("bad.pub", "nonsense");
    for wrong in [
        url.to_owned(),
        format!("{url}\npublic_key = {key:?}\ntrusted_root = {root:?}"),
        format!("{url}\npublic_key = \"/no/such/file\""),
        format!("{url}\npublic_key = {bad_key:?}"),
        format!("{url}\norigin = \"third.example\"\ntrusted_root = {bad_key:?}"),
        format!("url = \"http://rekor.example\"\npublic_key = {key:?}"),
        format!("url = \"https://u@rekor.example\"\npublic_key = {key:?}"),
        format!("url = \"https://rekor.example?x\"\npublic_key = {key:?}"),
        format!("{url}\npublic_key = {key:?}\ncall_seconds_max = 0"),
        format!("{url}\npublic_key = {key:?}\nentries_per_second_max = 0"),
        format!("{url}\npublic_key = {key:?}\nca_pem = \"nonsense\""),
    ] {
        assert!(settings(wrong.clone()).unwrap().is_err(), "{wrong}");
    }
    assert!(settings(format!("{url}\nkey = \"x\"")).is_err());
}
