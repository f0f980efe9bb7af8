//! What every parser of outside bytes has to withstand.
//!
//! A target is a function of bytes that panics when something is wrong: the parser itself, or a rule about what it
//! accepts. `cargo fuzz` runs each for as long as it is let (`fuzz_targets/`), and the ordinary tests of `signing` run
//! the same functions for a second on mutated examples.
//!
//! ```text
//!   cargo +nightly fuzz run TARGET ──▶ fuzz_targets/TARGET.rs ──▶ TARGETS ◀── crates/signing/tests/it/fuzz.rs
//! ```

mod audit;
mod backup;
mod bearer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use kernel::limits::REFERRERS_MAX;
use kernel::{Cursor, Digest, Reference, Repository, Secret, SeededRandom, WORDS_CHARS_MAX};
use signing::format::{Annotations, legacy, statement};
use signing::image_policy::{ImagePolicy, Root};
use signing::key::PublicKey;
use signing::ports::{Manifest, RegistryReason};
use signing::trust::{LogIdentity, TrustRoot, trusted_root};
use signing::verify::{Policy, check_blob, check_bundle, check_legacy};
use tlog::tile::{TilePath, encode_bundle, parse_bundle, parse_hashes};
use tlog::{Checkpoint, LogKey, LogVerifier};
use upstream::certificate;
use upstream::oci::challenge::Challenge;
use upstream::oci::login::{DockerConfig, Login, helper_answer};
use upstream::oci::{document, header};
use upstream::rekor::document as answer;

pub use self::audit::{audit_export_line, audit_record};
pub use self::backup::{backup_archive, backup_manifest, backup_part};
pub use self::bearer::{KEYS as ISSUER_KEYS, issuer_description, issuer_keys, token, workload_token};

/// A parser and the rules about it.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("audit_export_line", audit_export_line),
    ("audit_record", audit_record),
    ("backup_archive", backup_archive),
    ("backup_manifest", backup_manifest),
    ("backup_part", backup_part),
    ("bundle", bundle),
    ("certificate", certificate),
    ("challenge", challenge),
    ("checkpoint", checkpoint),
    ("credential_helper", credential_helper),
    ("cursor", cursor),
    ("digest", digest),
    ("docker_config", docker_config),
    ("entry_bundle", entry_bundle),
    ("http_date", http_date),
    ("image_index", image_index),
    ("image_manifest", image_manifest),
    ("image_policy", image_policy),
    ("issuer_description", issuer_description),
    ("issuer_keys", issuer_keys),
    ("key_file", key_file),
    ("legacy_layer", legacy_layer),
    ("legacy_manifest", legacy_manifest),
    ("link", link),
    ("location", location),
    ("log_public_key", log_public_key),
    ("pattern", pattern),
    ("public_key", public_key),
    ("reference", reference),
    ("registry_error", registry_error),
    ("registry_token", registry_token),
    ("rekor_answer", rekor_answer),
    ("rekor_request", rekor_request),
    ("retry_after", retry_after),
    ("simple_signing", simple_signing),
    ("statement_json", statement_json),
    ("tile_hashes", tile_hashes),
    ("tile_path", tile_path),
    ("tls_certificate", tls_certificate),
    ("token", token),
    ("trust_root", trust_root),
    ("workload_token", workload_token),
];

/// The image that [`bundle`] asks for.
pub const IMAGE: &[u8] = b"image";
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
const ORIGIN: &str = "fuzz.log.example";
/// The registry that [`docker_config`] asks for.
const REGISTRY: &str = "r.example:5000";
/// The page that [`link`] and [`location`] start from.
const PAGE: &str = "https://r.example:5000/v2/team/app/referrers/x";

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn log() -> &'static (LogKey, Arc<TrustRoot>) {
    static LOG: OnceLock<(LogKey, Arc<TrustRoot>)> = OnceLock::new();
    LOG.get_or_init(|| {
        let pkcs8 = LogKey::generate(&SeededRandom::new(1)).expect("a key");
        let key = LogKey::new(ORIGIN, &pkcs8).expect("its own key");
        let identity = LogIdentity {
            origin: ORIGIN.to_owned(),
            public_key: key.verifier().spki(),
            id: key.verifier().log_id().to_vec(),
            since: Timestamp::UNIX_EPOCH,
        };
        let root = TrustRoot::from_json(&trusted_root(&identity)).expect("our own root");
        (key, Arc::new(root))
    })
}

/// Policies that nothing satisfies: nobody signs with their key. Whatever is accepted is forged.
fn policies() -> [Policy; 2] {
    let key = PublicKey::from_pem(PUBLIC_KEY).expect("a constant");
    let plain = Policy::keys("fuzz", vec![key]);
    let logged = plain.clone().with_log(log().1.clone());
    [plain, logged]
}

/// What quotes others stays in its line and does not flood it.
fn assert_short(text: &str) {
    assert!(text.chars().count() < 2 * WORDS_CHARS_MAX, "{} bytes", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
}

fn assert_refusal(reason: &RegistryReason) {
    assert_short(&reason.to_string());
}

pub fn bundle(bytes: &[u8]) {
    let (image, now) = (Digest::of(IMAGE), Timestamp::UNIX_EPOCH);
    for policy in &policies() {
        let rejected = check_bundle(bytes, image, policy, now).expect_err("nobody signed it");
        assert_short(&rejected.detail);
        let rejected = check_blob(bytes, image, Some(IMAGE), policy, now).expect_err("nobody signed it");
        assert_short(&rejected.detail);
    }
}

/// The key that is found in a certificate lies in it, and is one element of its own.
pub fn certificate(bytes: &[u8]) {
    let _ = tlog::key_kind(bytes);
    if let Some(spki) = tlog::certificate_spki(bytes) {
        assert!(spki.len() < bytes.len() && spki.first() == Some(&0x30));
        assert_eq!(
            tlog::certificate_spki(&[bytes, &[0]].concat()),
            None,
            "something follows the certificate"
        );
        let _ = tlog::key_kind(spki);
    }
}

/// Several headers, one a line. What is chosen does not depend on headers that say nothing.
pub fn challenge(bytes: &[u8]) {
    let chosen = Challenge::choose(text(bytes).lines());
    assert_eq!(Challenge::choose(text(bytes).lines().chain(["", " ,"])), chosen);
    if let Some(Challenge::Bearer { realm, service }) = &chosen {
        assert!(!realm.is_empty() && service.as_ref().is_none_or(|service| !service.is_empty()));
    }
    // Whatever else is offered, a registry that asks for a token is asked for one.
    let with = text(bytes)
        .lines()
        .chain([r#"Bearer realm="https://r.example/token""#]);
    assert!(matches!(Challenge::choose(with), Some(Challenge::Bearer { .. })));
}

pub fn checkpoint(bytes: &[u8]) {
    let note = text(bytes);
    let _ = Checkpoint::parse(note);
    if let Ok(checkpoint) = log().0.verifier().verify(note) {
        assert_eq!(
            log().0.sign(checkpoint.size, checkpoint.root).root,
            checkpoint.root
        );
    }
}

pub fn credential_helper(bytes: &[u8]) {
    let output = Secret::new(text(bytes).to_owned());
    if let Some(login) = helper_answer(&output) {
        let printed = format!("{login:?}");
        match &login {
            Login::Password { password: secret, .. } | Login::IdentityToken(secret) => {
                assert!(secret.expose().len() < 24 || !printed.contains(secret.expose()));
            }
        }
    }
}

pub fn cursor(bytes: &[u8]) {
    if let Ok(cursor) = Cursor::decode(text(bytes)) {
        assert_eq!(cursor.encode(), text(bytes).to_ascii_lowercase());
    }
    assert_eq!(
        Cursor::decode(&Cursor::after(text(bytes)).encode()),
        Ok(Cursor::after(text(bytes)))
    );
}

pub fn digest(bytes: &[u8]) {
    if let Ok(digest) = text(bytes).parse::<Digest>() {
        assert_eq!(digest.to_string(), text(bytes));
    }
}

/// A file that does not name a registry has no login for it, and no helper leads out of its folder.
pub fn docker_config(bytes: &[u8]) {
    let Ok(config) = DockerConfig::parse(bytes) else {
        return;
    };
    for registry in [REGISTRY, "index.docker.io"] {
        if let Ok(Some(program)) = config.helper(registry) {
            assert!(program.starts_with("docker-credential-") && !program.contains(['/', '\\', '\0']));
        }
    }
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return;
    };
    let named = json["auths"]
        .as_object()
        .is_some_and(|auths| auths.keys().any(|key| key.contains(REGISTRY)));
    match config.login(REGISTRY) {
        Ok(Some(_)) => assert!(named),
        Ok(None) => {}
        Err(sentence) => assert_short(&sentence),
    }
}

pub fn entry_bundle(bytes: &[u8]) {
    for width in [1, 2, 255, 256] {
        if let Ok(entries) = parse_bundle(bytes, width) {
            assert_eq!(encode_bundle(&entries).as_deref(), Ok(bytes));
        }
    }
}

/// Referrers are collected within their cap, each once, and page after page gives the same.
pub fn image_index(bytes: &[u8]) {
    let mut found = Vec::new();
    match document::collect(bytes, &mut found) {
        Ok(()) => {
            let before = found.len();
            assert!(before <= REFERRERS_MAX);
            document::collect(bytes, &mut found).expect("what was read once");
            assert_eq!(found.len(), before);
        }
        Err(reason) => assert_refusal(&reason),
    }
    match document::fallback_entries(Some(bytes)) {
        Ok((mut index, entries)) => {
            index["manifests"] = entries.clone().into();
            let again = document::fallback_entries(Some(index.to_string().as_bytes()));
            assert_eq!(again.expect("what we wrote").1, entries);
        }
        Err(reason) => assert_refusal(&reason),
    }
}

/// A document is an image or an index, never both, and the header cannot turn one into the other.
pub fn image_manifest(bytes: &[u8]) {
    let index = |kind: &str| kind.contains("index") || kind.contains("list");
    let mut read = Vec::new();
    for header in [
        None,
        Some(document::MANIFEST),
        Some(document::INDEX),
        Some("text/plain"),
    ] {
        match document::media_type(header, bytes) {
            Ok(kind) => read.push(index(&kind)),
            Err(reason) => assert_refusal(&reason),
        }
    }
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    if json
        .get("manifests")
        .is_some_and(|manifests| !manifests.is_null())
    {
        assert!(read.iter().all(|index| *index));
    }
    if json["mediaType"].is_string() {
        assert!(read.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

/// A policy that reads asks somebody for something, and has no part that is not known.
pub fn image_policy(bytes: &[u8]) {
    let Ok(mut document) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return;
    };
    let roots = |_: Root<'_>| Some(log().1.clone());
    let policy = match ImagePolicy::read(&document, &roots) {
        Ok(policy) => policy,
        Err(error) => return assert_short(&error.to_string()),
    };
    let image: Reference = "r.example/team/app:v1".parse().expect("a constant");
    if let Ok(policy) = policy.policy_for(&image) {
        assert!(!policy.authorities.is_empty());
        for own in &policy.authorities {
            assert_ne!(own.keys.is_empty(), own.identities.is_empty());
            assert!(own.identities.is_empty() || own.log_required);
            // Time is given to a debt only where its log is asked for.
            assert!(own.within.is_none() || own.log_required && own.identities.is_empty());
        }
        let again = ImagePolicy::read(&document, &roots).and_then(|again| again.policy_for(&image));
        assert_eq!(
            again.expect("what was read once").fingerprint(),
            policy.fingerprint()
        );
    }
    if let Some(spec) = document
        .get_mut("spec")
        .and_then(serde_json::Value::as_object_mut)
    {
        spec.insert("unknown".to_owned(), true.into());
        assert!(ImagePolicy::read(&document, &roots).is_err());
    }
}

pub fn key_file(bytes: &[u8]) {
    let _ = signing::key::decrypt(text(bytes), &Secret::new("fixture".to_owned()));
}

/// The annotations of a legacy layer, which carry its signature, certificates and log entry.
pub fn legacy_layer(bytes: &[u8]) {
    let Ok(layer) = serde_json::from_slice::<Annotations>(bytes) else {
        return;
    };
    let (image, now) = (Digest::of(IMAGE), Timestamp::UNIX_EPOCH);
    let repository: Repository = "r.example/team/app".parse().expect("a constant");
    let payload = legacy::payload(&repository, image, &Annotations::new());
    for policy in &policies() {
        let rejected = check_legacy(&payload, &layer, image, policy, now).expect_err("nobody signed it");
        assert_short(&rejected.detail);
    }
}

/// What is added to a tag that reads is there afterwards, and nothing that was there is lost.
pub fn legacy_manifest(bytes: &[u8]) {
    let manifest = Manifest {
        media_type: String::new(),
        digest: Digest::of(bytes),
        bytes: bytes.to_vec().into(),
    };
    let Ok(before) = legacy::layers(&manifest) else {
        return;
    };
    let key = PublicKey::from_pem(PUBLIC_KEY).expect("a constant");
    if let Ok(Some(new)) = legacy::add(Some(&manifest), &key, b"payload", b"signature") {
        let manifest = Manifest {
            media_type: new.media_type,
            digest: Digest::of(&new.bytes),
            bytes: new.bytes.into(),
        };
        let after = legacy::layers(&manifest).expect("what we wrote");
        assert_eq!(after[..before.len()], before);
        assert_eq!(after.len(), before.len() + 1);
    }
}

/// Several headers, one a line. The next page is at the registry, whatever it says.
pub fn link(bytes: &[u8]) {
    let page = PAGE.parse().expect("a constant");
    match header::next_page(text(bytes).lines(), &page) {
        Ok(Some(next)) => {
            assert_eq!(next.origin(), page.origin());
            assert!(next.username().is_empty() && next.password().is_none());
        }
        Ok(None) => {}
        Err(reason) => assert_refusal(&reason),
    }
}

/// An address is whole and carries no user, since requests there carry our credentials or none.
pub fn location(bytes: &[u8]) {
    let base = PAGE.parse().expect("a constant");
    match header::address(text(bytes), &base) {
        Ok(url) => {
            assert!(url.username().is_empty() && url.password().is_none());
            assert_eq!(header::address(url.as_str(), &base).ok(), Some(url));
        }
        Err(reason) => assert_refusal(&reason),
    }
}

/// The `log.pub` of an exported log.
pub fn log_public_key(bytes: &[u8]) {
    let keys = [
        LogVerifier::from_spki(ORIGIN, bytes),
        LogVerifier::from_pem(ORIGIN, text(bytes)),
    ];
    for key in keys.into_iter().flatten() {
        let again = LogVerifier::from_pem(ORIGIN, &key.pem()).expect("what we wrote");
        assert_eq!(again.log_id(), key.log_id());
    }
}

/// A date is a time, whoever wrote it.
pub fn http_date(bytes: &[u8]) {
    let _ = header::http_date(text(bytes));
}

/// Whatever a log answers is an answer or an error of a few words, which stay in their line.
pub fn rekor_answer(bytes: &[u8]) {
    if let Ok(note) = answer::note(bytes) {
        assert!(Checkpoint::parse(&note).is_ok());
    }
    // What becomes evidence reads as the entry that it was.
    if let Ok(included) = answer::v1_entry(bytes)
        && let Ok(checkpoint) = Checkpoint::parse(&included.checkpoint)
    {
        let evidence = answer::v1_evidence(&checkpoint.root, &included, &checkpoint);
        let evidence = evidence.expect("strings have a JSON form");
        let evidence: serde_json::Value =
            serde_json::from_str(evidence.get()).expect("what was just written");
        assert_eq!(evidence["logIndex"], included.log_index.to_string());
    }
    let said = [
        answer::signed_tree_head(bytes).map(drop).err(),
        answer::consistency_proof(bytes).map(drop).err(),
        answer::v1_entry(bytes).map(drop).err(),
        answer::v2_entry(bytes).map(drop).err(),
        answer::trusted_logs(bytes).map(drop).err(),
        Some(answer::refusal(bytes)),
    ];
    for words in said.into_iter().flatten() {
        assert!(words.chars().count() <= WORDS_CHARS_MAX && !words.contains(char::is_control));
    }
}

/// What a certificate says of itself stays in its line.
pub fn tls_certificate(bytes: &[u8]) {
    if let Some(shown) = certificate::read(bytes) {
        assert_eq!(shown.fingerprint.len(), 64);
        assert!(!shown.issuer.contains(char::is_control));
    }
}

/// A pattern without stars matches its own name only.
pub fn pattern(bytes: &[u8]) {
    let Ok(pattern) = text(bytes).parse::<access::Pattern>() else {
        return;
    };
    assert_eq!(
        pattern.to_string().parse::<access::Pattern>().ok().as_ref(),
        Some(&pattern)
    );
    let other: Repository = "r.example/team/app".parse().expect("a constant");
    if pattern.matches(&other) && !text(bytes).contains('*') {
        assert_eq!(text(bytes), other.to_string());
    }
}

pub fn public_key(bytes: &[u8]) {
    for key in [PublicKey::from_spki(bytes), PublicKey::from_pem(text(bytes))]
        .into_iter()
        .flatten()
    {
        assert_eq!(PublicKey::from_pem(&key.to_pem()).as_ref(), Ok(&key));
        assert!(!key.verifies(bytes, bytes));
    }
}

pub fn reference(bytes: &[u8]) {
    if let Ok(reference) = text(bytes).parse::<Reference>() {
        assert_eq!(
            reference.to_string().parse::<Reference>().ok().as_ref(),
            Some(&reference)
        );
    }
    if let Ok(repository) = text(bytes).parse::<Repository>() {
        assert_eq!(
            repository.to_string().parse::<Repository>().ok().as_ref(),
            Some(&repository)
        );
    }
}

pub fn registry_error(bytes: &[u8]) {
    assert_short(&document::error_words(400, bytes));
}

/// A token is kept for an hour at most, and its text is not shown.
pub fn registry_token(bytes: &[u8]) {
    match document::token(bytes) {
        Ok((token, good_for)) => {
            assert!(!token.expose().is_empty());
            assert!(good_for <= Duration::from_secs(3_600));
        }
        Err(reason) => {
            assert_eq!(
                reason.to_string(),
                document::token(b"").expect_err("nothing is no token").to_string()
            );
        }
    }
}

pub fn rekor_request(bytes: &[u8]) {
    if let Ok(entry) = tlog::parse_request(bytes) {
        let _ = entry.accept();
    }
}

/// A wait ends, and a date that has passed is no wait.
pub fn retry_after(bytes: &[u8]) {
    let now = Timestamp::UNIX_EPOCH;
    if let Some(wait) = header::retry_after(text(bytes), now) {
        let later = header::retry_after(text(bytes), Timestamp::MAX).expect("it reads at any time");
        assert!(later <= wait);
    }
}

pub fn simple_signing(bytes: &[u8]) {
    let _ = legacy::read_payload(bytes);
}

pub fn statement_json(bytes: &[u8]) {
    if let Ok(statement) = statement::read(bytes) {
        assert!(!statement.subjects.is_empty());
    }
}

pub fn tile_hashes(bytes: &[u8]) {
    for width in [1, 2, 255, 256] {
        if let Ok(hashes) = parse_hashes(bytes, width) {
            assert_eq!(hashes.concat(), bytes);
        }
    }
}

pub fn tile_path(bytes: &[u8]) {
    if let Ok(path) = TilePath::parse(text(bytes)) {
        assert_eq!(path.to_string(), format!("tile/{}", text(bytes)));
    }
}

pub fn trust_root(bytes: &[u8]) {
    if let Ok(root) = TrustRoot::from_json(text(bytes)) {
        let _ = root.ends();
    }
}
