//! What every parser of outside bytes has to withstand.
//!
//! A target is a function of bytes that panics when something is wrong: the parser itself, or a rule about what it
//! accepts. `cargo fuzz` runs each for as long as it is let (`fuzz_targets/`), and the ordinary tests of `signing` run
//! the same functions for a second on mutated examples.
//!
//! ```text
//!   cargo +nightly fuzz run TARGET ──▶ fuzz_targets/TARGET.rs ──▶ TARGETS ◀── crates/signing/tests/it/fuzz.rs
//! ```

use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use kernel::{Digest, Reference, Repository, Secret, SeededRandom};
use signing::format::{legacy, statement};
use signing::key::PublicKey;
use signing::ports::Manifest;
use signing::trust::{LogIdentity, TrustRoot, trusted_root};
use signing::verify::{Policy, check_blob, check_bundle};
use tlog::tile::{TilePath, encode_bundle, parse_bundle, parse_hashes};
use tlog::{Checkpoint, LogKey};

/// A parser and the rules about it.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("bundle", bundle),
    ("checkpoint", checkpoint),
    ("digest", digest),
    ("entry_bundle", entry_bundle),
    ("key_file", key_file),
    ("legacy_manifest", legacy_manifest),
    ("pattern", pattern),
    ("public_key", public_key),
    ("reference", reference),
    ("rekor_request", rekor_request),
    ("simple_signing", simple_signing),
    ("statement_json", statement_json),
    ("tile_hashes", tile_hashes),
    ("tile_path", tile_path),
    ("token", token),
    ("trust_root", trust_root),
];

/// The image that [`bundle`] asks for.
pub const IMAGE: &[u8] = b"image";
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
const ORIGIN: &str = "fuzz.log.example";

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

/// Nothing is signed by this key: whatever is accepted is forged.
pub fn bundle(bytes: &[u8]) {
    let key = PublicKey::from_pem(PUBLIC_KEY).expect("a constant");
    let (image, now) = (Digest::of(IMAGE), Timestamp::UNIX_EPOCH);
    let plain = Policy::keys("fuzz", vec![key]);
    let logged = plain.clone().with_log(log().1.clone());
    for policy in [&plain, &logged] {
        assert!(check_bundle(bytes, image, policy, now).is_err());
        assert!(check_blob(bytes, image, Some(IMAGE), policy, now).is_err());
    }
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

pub fn digest(bytes: &[u8]) {
    if let Ok(digest) = text(bytes).parse::<Digest>() {
        assert_eq!(digest.to_string(), text(bytes));
    }
}

pub fn entry_bundle(bytes: &[u8]) {
    for width in [1, 2, 255, 256] {
        if let Ok(entries) = parse_bundle(bytes, width) {
            assert_eq!(encode_bundle(&entries).as_deref(), Ok(bytes));
        }
    }
}

pub fn key_file(bytes: &[u8]) {
    let _ = signing::key::decrypt(text(bytes), &Secret::new("fixture".to_owned()));
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

pub fn rekor_request(bytes: &[u8]) {
    if let Ok(entry) = tlog::parse_request(bytes) {
        let _ = entry.accept();
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

pub fn token(bytes: &[u8]) {
    if let Ok(token) = access::TokenText::parse(text(bytes)) {
        assert_eq!(token.expose(), text(bytes));
    }
}

pub fn trust_root(bytes: &[u8]) {
    let _ = TrustRoot::from_json(text(bytes));
}
