//! `portcullis verify-blob`.

use std::process::ExitCode;

use kernel::{Clock as _, Digest, SystemClock};
use serde_json::json;
use signing::verify::check_blob;

use crate::args::{Globals, VerifyBlob};
use crate::cli::{NOT_VERIFIED, input};
use crate::codes;
use crate::failure::Failure;
use crate::output::{document, println};

/// A bundle is a few KiB; one with a large statement a megabyte.
const BUNDLE_BYTES_MAX: u64 = 16 << 20;

pub fn run(globals: &Globals, own: &VerifyBlob) -> Result<ExitCode, Failure> {
    let policy = input::policy(&own.authority)?;
    let failed = |path: &std::path::Path, error: std::io::Error| Failure::file("reading", path, &error);
    let size = std::fs::metadata(&own.bundle)
        .map_err(|error| failed(&own.bundle, error))?
        .len();
    if size > BUNDLE_BYTES_MAX {
        let what = format!("{} is larger than {BUNDLE_BYTES_MAX} bytes", own.bundle.display());
        return Err(
            Failure::coded(1, &codes::CONTENT, what).with_hint("give the bundle that the signer wrote")
        );
    }
    let bundle = std::fs::read(&own.bundle).map_err(|error| failed(&own.bundle, error))?;
    let (digest, content) = match own.file.parse::<Digest>() {
        Ok(digest) => (digest, None),
        Err(_) => {
            let path = std::path::Path::new(&own.file);
            let content = std::fs::read(path).map_err(|error| failed(path, error))?;
            (Digest::of(&content), Some(content))
        }
    };
    match check_blob(
        &bundle,
        digest,
        content.as_deref(),
        &policy,
        SystemClock::new().now(),
    ) {
        Ok(accepted) => {
            if globals.output.is_document() {
                let body = json!({
                    "verified": true, "digest": digest, "key_id": accepted.key_id, "identity": accepted.identity,
                    "issuer": accepted.issuer, "logged": accepted.logged, "log_index": accepted.log_index,
                });
                document(globals, &body);
            } else {
                println(&format!("verified  {}  {digest}", own.file));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(rejected) => {
            if globals.output.is_document() {
                let body = json!({ "verified": false, "digest": digest, "reason": rejected.reason, "detail": rejected.detail });
                document(globals, &body);
                return Ok(ExitCode::from(NOT_VERIFIED));
            }
            let cause = format!("{}: {}", rejected.reason, rejected.detail);
            Err(Failure::coded(NOT_VERIFIED, &codes::BLOB_NOT_VERIFIED, cause))
        }
    }
}
