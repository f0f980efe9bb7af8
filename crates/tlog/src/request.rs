//! What clients post: `CreateEntryRequest` of rekor-tiles as protobuf JSON, from cosign, sigstore-go,
//! sigstore-python and our own signing.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Deserializer};

use crate::entry::{EntryError, HashedRekord, Verifier};

/// Protobuf JSON takes base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a request is not one.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the request nests deeper than {} levels", kernel::limits::JSON_DEPTH_MAX)]
    TooDeep,
    #[error("the request is not JSON of a CreateEntryRequest")]
    Json(#[source] serde_json::Error),
    #[error("the request has neither hashedRekordRequestV002 nor dsseRequestV002, or both")]
    Kind,
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("the envelope has {signatures} signatures and {verifiers} verifiers; the log takes one of each")]
    Several { signatures: usize, verifiers: usize },
    #[error(transparent)]
    Entry(#[from] EntryError),
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Create {
    #[serde(alias = "hashed_rekord_request_v002")]
    hashed_rekord_request_v002: Option<Hashed>,
    #[serde(alias = "dsse_request_v002")]
    dsse_request_v002: Option<Dsse>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Hashed {
    digest: Bytes,
    signature: Option<Signed>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Signed {
    content: Bytes,
    verifier: Option<Checker>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Checker {
    #[serde(alias = "public_key")]
    public_key: Option<Raw>,
    #[serde(alias = "x509_certificate")]
    x509_certificate: Option<Raw>,
    #[serde(alias = "key_details")]
    key_details: Option<KeyDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    #[serde(alias = "raw_bytes")]
    raw_bytes: Bytes,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Dsse {
    envelope: Option<Envelope>,
    verifiers: Vec<Checker>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Envelope {
    payload: Bytes,
    #[serde(alias = "payload_type")]
    payload_type: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DsseSignature {
    sig: Bytes,
}

/// An enumeration in protobuf JSON: a name or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum KeyDetails {
    Name(String),
    Number(u64),
}

/// A `bytes` field in protobuf JSON: base64, standard or URL alphabet.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(Self::default());
        };
        let text = text.replace('-', "+").replace('_', "/");
        BASE64.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Checker {
    /// The verifier, if the algorithm that the client names is the one that its key has.
    fn verifier(self) -> Result<Verifier, RequestError> {
        let verifier = match (self.public_key, self.x509_certificate) {
            (Some(key), None) => Verifier::PublicKey(key.raw_bytes.0),
            (None, Some(certificate)) => Verifier::Certificate(certificate.raw_bytes.0),
            _ => {
                return Err(RequestError::Missing(
                    "a verifier with either publicKey or x509Certificate",
                ));
            }
        };
        let algorithm = verifier.algorithm()?;
        let found = match self.key_details.ok_or(RequestError::Missing("keyDetails"))? {
            KeyDetails::Name(name) if name == algorithm.key_details => return Ok(verifier),
            KeyDetails::Number(number) if number == algorithm.key_details_number => return Ok(verifier),
            KeyDetails::Name(name) => name.chars().take(64).collect(),
            KeyDetails::Number(number) => number.to_string(),
        };
        Err(EntryError::KeyDetails {
            expected: algorithm.key_details,
            found,
        }
        .into())
    }
}

/// Reads a request. A DSSE envelope (sent by cosign before 3.1) becomes a hashedrekord over its
/// pre-authentication encoding, which is what newer clients send themselves.
///
/// # Errors
/// If it is not a request, or names another algorithm than its key has. The signature is not checked here.
pub fn parse_request(json: &[u8]) -> Result<HashedRekord, RequestError> {
    if kernel::limits::too_deep(json) {
        return Err(RequestError::TooDeep);
    }
    let request: Create = serde_json::from_slice(json).map_err(RequestError::Json)?;
    match (request.hashed_rekord_request_v002, request.dsse_request_v002) {
        (Some(hashed), None) => {
            let signature = hashed.signature.ok_or(RequestError::Missing("the signature"))?;
            let verifier = signature
                .verifier
                .ok_or(RequestError::Missing("the verifier"))?
                .verifier()?;
            Ok(HashedRekord {
                digest: hashed.digest.0,
                signature: signature.content.0,
                verifier,
            })
        }
        (None, Some(dsse)) => {
            let envelope = dsse.envelope.ok_or(RequestError::Missing("the envelope"))?;
            let (signatures, verifiers) = (envelope.signatures.len(), dsse.verifiers.len());
            let several = RequestError::Several {
                signatures,
                verifiers,
            };
            let (Ok([signature]), Ok([verifier])) = (
                <[_; 1]>::try_from(envelope.signatures),
                <[_; 1]>::try_from(dsse.verifiers),
            ) else {
                return Err(several);
            };
            let verifier = verifier.verifier()?;
            let pae = pre_authentication_encoding(&envelope.payload_type, &envelope.payload.0);
            Ok(HashedRekord {
                digest: verifier.algorithm()?.digest(&pae),
                signature: signature.sig.0,
                verifier,
            })
        }
        _ => Err(RequestError::Kind),
    }
}

/// PAE of the DSSE protocol, version 1.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> String {
        let head = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
        BASE64.encode([&head[..], &[4], &[9; 64]].concat())
    }

    #[test]
    fn both_requests_and_both_spellings_are_read() {
        let checker = format!(
            r#"{{"publicKey":{{"rawBytes":"{}"}},"keyDetails":"PKIX_ECDSA_P256_SHA_256"}}"#,
            key()
        );
        let snake = format!(
            r#"{{"public_key":{{"raw_bytes":"{}"}},"key_details":5}}"#,
            key().trim_end_matches('=')
        );
        let hashed = |checker: &str| {
            format!(
                r#"{{"hashedRekordRequestV002":{{"digest":"_-8=","signature":{{"content":"Zm9v","verifier":{checker}}}}}}}"#
            )
        };
        let first = parse_request(hashed(&checker).as_bytes()).unwrap();
        assert_eq!(
            (first.digest.as_slice(), first.signature.as_slice()),
            (&[0xff, 0xef][..], &b"foo"[..])
        );
        assert_eq!(parse_request(hashed(&snake).as_bytes()).unwrap(), first);

        let dsse = format!(
            r#"{{"dsseRequestV002":{{"envelope":{{"payload":"aGVsbG8gd29ybGQ=","payloadType":"http://example.com/HelloWorld",
            "signatures":[{{"sig":"Zm9v","keyid":""}}]}},"verifiers":[{checker}]}}}}"#
        );
        // The PAE is the example of the DSSE protocol.
        let pae = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(
            parse_request(dsse.as_bytes()).unwrap().digest,
            kernel::Digest::of(pae).as_bytes()
        );
        let two = dsse.replace(r#"{"sig":"Zm9v","keyid":""}"#, r#"{"sig":"Zm9v"},{"sig":"Zm9v"}"#);
        assert!(matches!(
            parse_request(two.as_bytes()),
            Err(RequestError::Several {
                signatures: 2,
                verifiers: 1
            })
        ));
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        let wrong = format!(
            r#"{{"hashedRekordRequestV002":{{"digest":"","signature":{{"content":"","verifier":{{"publicKey":{{"rawBytes":"{}"}},"keyDetails":12}}}}}}}}"#,
            key()
        );
        assert!(matches!(
            parse_request(wrong.as_bytes()),
            Err(RequestError::Entry(EntryError::KeyDetails { .. }))
        ));
        assert!(matches!(parse_request(b"{}"), Err(RequestError::Kind)));
        assert!(matches!(
            parse_request("[".repeat(10_000).as_bytes()),
            Err(RequestError::TooDeep)
        ));
        assert!(matches!(
            parse_request(b"{\"dsseRequestV002\":{}}"),
            Err(RequestError::Missing(_))
        ));
        assert!(matches!(
            parse_request(b"{\"hashedRekordRequestV002\":{\"digest\":\"%\"}}"),
            Err(RequestError::Json(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,60}") {
            let _ = parse_request(&bytes);
            let member = serde_json::to_string(&text).unwrap();
            let _ = parse_request(format!(r#"{{"hashedRekordRequestV002":{{"digest":{member},"signature":{{"content":{member}}}}}}}"#).as_bytes());
        }
    }
}
