//! Reading the documents of a registry: manifests, indexes, tokens, errors. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use kernel::limits::{REFERRERS_MAX, too_deep};
use kernel::{Digest, DigestError, Secret, words};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use signing::ports::{Descriptor, RegistryReason};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What we can read, for `Accept`; and the artifact manifest that was dropped before specification 1.1, which older
/// tools left behind as referrers. We do not read it, but a registry that withheld it would leave us without an answer.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.oci.artifact.manifest.v1+json";

/// Seconds that a token lives when the answer does not say (distribution, "Token Authentication
/// Specification").
const TOKEN_SECONDS_DEFAULT: u64 = 60;
/// Seconds that a token is kept at most, whatever the answer says: a revoked user is out after that.
const TOKEN_SECONDS_MAX: u64 = 3_600;
fn malformed(why: impl Into<String>) -> RegistryReason {
    RegistryReason::Malformed(why.into())
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, RegistryReason> {
    if too_deep(bytes) {
        return Err(malformed("JSON nested deeper than the cap JSON_DEPTH_MAX"));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        malformed(format!(
            "not the JSON of a manifest: {}",
            words(&error.to_string())
        ))
    })
}

/// The media type without parameters.
pub fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// The media type of a manifest or index, when header and document can be read in one way only: what one
/// reader takes for an image and another for an index is refused (OCI advisory GHSA-mc8v-mgrf-8f4m,
/// GHSA-5j5w-g665-5m35).
///
/// # Errors
/// `Malformed` with the reason.
pub fn media_type(content_type: Option<&str>, bytes: &[u8]) -> Result<String, RegistryReason> {
    let outline: Outline = parse(bytes)?;
    if outline.layers.is_some() && outline.manifests.is_some() {
        return Err(malformed("the document has both `layers` and `manifests`"));
    }
    let sent = content_type.map(essence);
    let known = |kind: &String| is_index(kind) || is_manifest(kind);
    let media_type = match (outline.media_type, sent) {
        (Some(own), Some(sent)) if known(&sent) && own != sent => {
            return Err(malformed(format!(
                "the document says {:?}, the header {:?}",
                words(&own),
                words(&sent)
            )));
        }
        (Some(own), _) => own,
        (None, Some(sent)) => sent,
        (None, None) => return Err(malformed("the document has no media type")),
    };
    if is_index(&media_type) && outline.manifests.is_none() {
        return Err(malformed("an index without `manifests`"));
    }
    if is_manifest(&media_type) && outline.manifests.is_some() {
        return Err(malformed("an image manifest with `manifests`"));
    }
    if !known(&media_type) {
        return Err(malformed(format!(
            "the media type {:?} is not that of a manifest",
            words(&media_type)
        )));
    }
    Ok(media_type)
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, INDEX | DOCKER_LIST)
}

fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, MANIFEST | DOCKER_MANIFEST)
}

#[derive(serde::Deserialize)]
struct Index {
    /// Absent and null are errors: an object without entries is no index.
    manifests: Vec<Entry>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Adds the entries of one page or index to `found`, each digest once.
///
/// # Errors
/// `Malformed`, or `TooManyReferrers` when there are more than `REFERRERS_MAX`.
pub fn collect(bytes: &[u8], found: &mut Vec<Descriptor>) -> Result<(), RegistryReason> {
    let index: Index = parse(bytes)?;
    for entry in index.manifests {
        let digest = match entry.digest.parse::<Digest>() {
            Ok(digest) => digest,
            // Content that we cannot name we did not sign either; it must not hide the rest.
            Err(DigestError::Algorithm) => continue,
            Err(error) => return Err(malformed(format!("an entry of the index: {error}"))),
        };
        if found.iter().any(|known| known.digest == digest) {
            continue;
        }
        if found.len() == REFERRERS_MAX {
            return Err(RegistryReason::TooManyReferrers);
        }
        found.push(Descriptor {
            media_type: entry.media_type,
            digest,
            size: entry.size,
            artifact_type: entry.artifact_type.filter(|kind| !kind.is_empty()),
            annotations: entry.annotations.unwrap_or_default(),
        });
    }
    Ok(())
}

/// The fallback index (distribution specification, "Referrers Tag Schema") as it is, if it is there.
///
/// # Errors
/// `Malformed` when the tag holds something else than an index.
pub fn fallback_entries(current: Option<&[u8]>) -> Result<(Value, Vec<Value>), RegistryReason> {
    let mut index: Value = match current {
        Some(bytes) => parse(bytes)?,
        None => json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }),
    };
    match index.get_mut("manifests").map(Value::take) {
        Some(Value::Array(entries)) => Ok((index, entries)),
        _ => Err(malformed("the fallback tag does not hold an index")),
    }
}

/// What a token realm answers (distribution, "Token Authentication Specification"): the token, and how long to
/// keep it, a tenth less than it lives so that it does not run out on the way.
///
/// # Errors
/// `Malformed` without a token.
pub fn token(body: &[u8]) -> Result<(Secret, Duration), RegistryReason> {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        token: Option<Secret>,
        #[serde(default)]
        access_token: Option<Secret>,
        #[serde(default)]
        expires_in: Option<u64>,
    }
    // The parser's own message may quote the token.
    let no_token = || malformed("the token realm's answer has no token");
    let body: Body = serde_json::from_slice(body).map_err(|_| no_token())?;
    let token = body
        .token
        .or(body.access_token)
        .filter(|token| !token.expose().is_empty())
        .ok_or_else(no_token)?;
    let seconds = body
        .expires_in
        .unwrap_or(TOKEN_SECONDS_DEFAULT)
        .min(TOKEN_SECONDS_MAX);
    Ok((token, Duration::from_secs(seconds).mul_f64(0.9)))
}

/// What a registry says about an error (distribution specification, "Error Codes"): its code and message,
/// short and without control characters, since it comes from outside and goes into logs.
pub fn error_words(status: u16, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let parsed = if too_deep(body) {
        None
    } else {
        serde_json::from_slice::<Errors>(body).ok()
    };
    match parsed.and_then(|errors| errors.errors.into_iter().next()) {
        Some(one) => words(&format!("{status} {} {}", one.code, one.message)),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kernel::WORDS_CHARS_MAX;

    use super::*;

    #[test]
    fn t29_a_document_that_can_be_read_in_two_ways_is_refused() {
        let refused: [(&str, &str); 7] = [
            (MANIFEST, r#"{"layers":[],"manifests":[]}"#),
            (INDEX, r#"{"layers":[],"manifests":[]}"#),
            (
                MANIFEST,
                r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
            ),
            (MANIFEST, r#"{"manifests":[]}"#),
            (INDEX, r#"{"layers":[]}"#),
            (MANIFEST, r#"{"layers":[],"layers":[]}"#),
            ("text/html", r#"{"layers":[]}"#),
        ];
        for (content_type, body) in refused {
            let answer = media_type(Some(content_type), body.as_bytes());
            assert!(
                matches!(answer, Err(RegistryReason::Malformed(_))),
                "{content_type} {body}: {answer:?}"
            );
        }
    }

    #[test]
    fn the_media_type_comes_from_the_document_or_the_header() {
        let own = format!(r#"{{"mediaType":"{INDEX}","manifests":[]}}"#);
        assert_eq!(
            media_type(Some("application/json"), own.as_bytes()).unwrap(),
            INDEX
        );
        assert_eq!(media_type(None, own.as_bytes()).unwrap(), INDEX);
        let header = format!("{MANIFEST}; charset=utf-8");
        assert_eq!(media_type(Some(&header), br#"{"config":{}}"#).unwrap(), MANIFEST);
        assert!(media_type(None, br#"{"config":{}}"#).is_err());
    }

    #[test]
    fn entries_are_collected_once_and_capped() {
        let entry = |digest: Digest| json!({ "mediaType": MANIFEST, "digest": digest, "size": 1 });
        let index = |entries: Vec<Value>| json!({ "manifests": entries }).to_string();
        let mut found = Vec::new();
        let same = index(vec![entry(Digest::of(b"x")), entry(Digest::of(b"x"))]);
        collect(same.as_bytes(), &mut found).unwrap();
        assert_eq!(found.len(), 1);
        let sha512 = json!({ "mediaType": MANIFEST, "digest": "sha512:00", "size": 1, "annotations": null });
        let mixed = index(vec![sha512, entry(Digest::of(b"y"))]);
        collect(mixed.as_bytes(), &mut found).unwrap();
        assert_eq!(
            found.len(),
            2,
            "a digest of another algorithm does not hide the rest"
        );
        let garbled = index(vec![
            json!({ "mediaType": MANIFEST, "digest": "sha256:00", "size": 1 }),
        ]);
        assert!(collect(garbled.as_bytes(), &mut found).is_err());
        let many = index(
            (0..=REFERRERS_MAX as u64)
                .map(|n| entry(Digest::of(&n.to_be_bytes())))
                .collect(),
        );
        let answer = collect(many.as_bytes(), &mut Vec::new());
        assert!(matches!(answer, Err(RegistryReason::TooManyReferrers)));
        for no_index in ["{}", r#"{"manifests":null}"#, "[]", "", r#"{"manifests":[{}]}"#] {
            assert!(
                collect(no_index.as_bytes(), &mut Vec::new()).is_err(),
                "{no_index}"
            );
        }
    }

    #[test]
    fn deep_json_is_refused_before_it_is_parsed() {
        let deep = format!("{{\"manifests\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(collect(deep.as_bytes(), &mut Vec::new()).is_err());
        assert!(media_type(Some(INDEX), deep.as_bytes()).is_err());
        assert!(fallback_entries(Some(deep.as_bytes())).is_err());
        assert_eq!(error_words(400, deep.as_bytes()), "400");
    }

    #[test]
    fn words_of_a_registry_are_short_and_clean() {
        let body = json!({ "errors": [{ "code": "DENIED", "message": format!("no\r\nfake log line{}", "x".repeat(9999)) }] });
        let text = error_words(403, body.to_string().as_bytes());
        assert!(
            text.starts_with("403 DENIED no  fake log line") && text.len() <= WORDS_CHARS_MAX,
            "{text}"
        );
        assert_eq!(error_words(502, b"<html>"), "502");
        // The parser of JSON quotes what it found, as long as it is.
        let long = json!({ "manifests": "x".repeat(1 << 20) }).to_string();
        let Err(RegistryReason::Malformed(text)) = collect(long.as_bytes(), &mut Vec::new()) else {
            panic!("a text is no list");
        };
        assert!(text.len() < 2 * WORDS_CHARS_MAX, "{} characters", text.len());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = media_type(Some(MANIFEST), &bytes);
            let _ = collect(&bytes, &mut Vec::new());
            let _ = fallback_entries(Some(&bytes));
            let _ = error_words(400, &bytes);
        }
    }
}
