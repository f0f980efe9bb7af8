//! Adapters to what is outside: the OCI registries that hold images, a transparency log of somebody else's, and the
//! issuers of workloads' tokens.
//!
//! [`oci::Client`] implements `signing::ports::Registry`. It speaks the OCI distribution specification 1.1
//! over HTTPS and owns everything that makes this safe and steady towards a registry that may be slow,
//! wrong or hostile: credentials and tokens, retries and waits, caps on what is read, digests computed from
//! bytes, redirects, and the shared fallback tag of registries without a referrers API.
//!
//! ```text
//!   signing::ports::Registry
//!            │
//!        oci::Client ── config
//!            │
//!        read, write ── document (pure: manifests, indexes, tokens, errors)
//!            │
//!        session ── auth ── challenge (pure), docker ── login (pure: whose credentials)
//!            │
//!        transport ── egress (pure: which address may be called), header (pure: where next), wait (how long)
//!            │
//!         reqwest on rustls on aws-lc-rs
//! ```
//!
//! [`rekor::Client`] speaks to a Rekor, v1 or v2, and believes nothing that it says without proof. Both have probes for
//! `probing::Watch`, which ask who answers and not only whether somebody does.
//!
//! [`issuer::Client`] implements `access::oidc::Fetch` with the same rules about addresses.
//!
//! It does not know what a signature is, keeps nothing on disk, and reads no environment variable except
//! through [`oci::user_docker_config`], which only the command line calls.

pub mod certificate;
pub mod issuer;
pub mod oci;
pub mod outgoing;
pub mod rekor;
mod tls;
