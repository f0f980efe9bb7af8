//! The client of issuers of workloads' tokens (OpenID Connect Discovery 1.0): two small documents by GET.
//!
//! Each issuer has a client of its own, with its own certificates. None follows a redirect, uses a proxy or sends
//! anything of ours, and the rules about addresses are those for registries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use access::oidc::{Fetch, FetchError};
use async_trait::async_trait;
use kernel::{Code, Fault, Kind};
use reqwest::Url;
use rustls::RootCertStore;

use crate::oci::egress::{Home, HomeResolver, Place, is_loopback};
use crate::outgoing::{self, Whom};
use crate::tls::tls;

/// Milliseconds for name resolution, TCP and TLS together.
const CONNECT_MS_MAX: u64 = 3_000;
/// Milliseconds for one document: `access` waits five seconds for both.
const DOCUMENT_MS_MAX: u64 = 5_000;

/// Why an issuer of the configuration cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("the certificates for the issuer {issuer} cannot be used: {why}")]
    Certificates { issuer: String, why: String },
    #[error("the issuer {issuer} is no address that is called: {why}")]
    Address { issuer: String, why: &'static str },
    #[error("making the client for the issuer {issuer}")]
    Client { issuer: String, source: reqwest::Error },
}

impl Fault for IssuerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Client { .. } => Kind::Bug,
            Self::Certificates { .. } | Self::Address { .. } => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static Code {
        &codes::ISSUER
    }
}

/// The codes of the configuration of issuers.
pub mod codes {
    use kernel::Code;

    pub const ISSUER: Code = Code {
        id: "PC1552",
        title: "an issuer of workloads' tokens cannot be used",
        explanation: "A trust rule ([[oidc]] in portcullis.toml) names an issuer by its https address. It is not at a \
link-local or metadata address, and ca_file, if there is one, holds one or more certificates in PEM.",
        hint: "run `portcullis config check`",
    };
    pub const ALL: &[&Code] = &[&ISSUER];
}

/// A client of every issuer of the configuration.
#[derive(Debug)]
pub struct Client {
    issuers: HashMap<String, reqwest::Client>,
}

impl Client {
    /// `issuers`: each address with the certificates (PEM) that are trusted there besides the system's.
    ///
    /// # Errors
    /// When an issuer cannot be asked, whether or not it is there.
    pub fn new(issuers: &[(String, Option<String>)]) -> Result<Self, IssuerError> {
        let mut roots = RootCertStore::empty();
        if !issuers.is_empty() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let mut clients = HashMap::new();
        for (issuer, ca_pem) in issuers {
            clients.insert(issuer.clone(), client(issuer, &roots, ca_pem.as_deref())?);
        }
        Ok(Self { issuers: clients })
    }
}

fn client(issuer: &str, roots: &RootCertStore, ca_pem: Option<&str>) -> Result<reqwest::Client, IssuerError> {
    let address = |why| IssuerError::Address {
        issuer: issuer.to_owned(),
        why,
    };
    let url = Url::parse(issuer).map_err(|_| address("it is none"))?;
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
        return Err(address("plain HTTP is only for loopback"));
    }
    let home = Arc::new(Home::new(&url, url.scheme() == "http"));
    if home.place() == Place::Forbidden {
        return Err(address("it is link-local, of a metadata service or multicast"));
    }
    let tls = tls(roots, ca_pem).map_err(|error| IssuerError::Certificates {
        issuer: issuer.to_owned(),
        why: kernel::chain(&error),
    })?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(HomeResolver(home))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // A proxy would resolve names itself, past the rule about addresses.
        .no_proxy()
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
        .timeout(Duration::from_millis(DOCUMENT_MS_MAX))
        .build()
        .map_err(|source| IssuerError::Client {
            issuer: issuer.to_owned(),
            source,
        })
}

#[async_trait]
impl Fetch for Client {
    async fn get(&self, issuer: &str, url: &Url, bytes_max: usize) -> Result<Vec<u8>, FetchError> {
        let path = url.path();
        let failed =
            |error: reqwest::Error| FetchError(format!("{path}: {}", kernel::chain(&error.without_url())));
        let Some(client) = self.issuers.get(issuer) else {
            return Err(FetchError(format!("{issuer} is not configured")));
        };
        let mut response = outgoing::send(client.get(url.clone()), Whom::Known("issuer"))
            .await
            .map_err(failed)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(FetchError(format!(
                "{path}: it sends us elsewhere, where its keys are not looked for"
            )));
        }
        if !status.is_success() {
            return Err(FetchError(format!("{path}: status {status}")));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > bytes_max {
                return Err(FetchError(format!("{path}: more than {bytes_max} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
