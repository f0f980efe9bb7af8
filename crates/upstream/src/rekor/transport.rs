//! One log as a place that can be called.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER, SERVER};
use reqwest::{StatusCode, Url};
use rustls::RootCertStore;

use super::config::ConfigError;
use super::document;
use super::error::RekorReason;
use crate::certificate::{self, Shown};
use crate::oci::header::http_date;
use crate::outgoing::{self, Whom};
use crate::tls::tls;

/// Bytes of an answer: a full entry with its proof has a few thousand, a tile 8,192.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Milliseconds for name resolution, TCP and TLS together.
const CONNECT_MS_MAX: u64 = 5_000;

/// Which connections a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connections {
    /// A new one: whoever the name leads to now answers, and not whoever it led to when a kept one was opened.
    Fresh,
    /// One that was kept from an earlier call, if there is one.
    Kept,
}

pub(super) struct Transport {
    pub base: Url,
    fresh: reqwest::Client,
    kept: Mutex<reqwest::Client>,
    tls: rustls::ClientConfig,
    call_seconds_max: u64,
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    pub date: Option<Timestamp>,
    pub certificate: Option<Shown>,
    pub location: Option<String>,
    retry_after: Option<u64>,
    server: Option<String>,
    content_type: Option<String>,
}

impl Transport {
    pub fn new(base: Url, ca_pem: Option<&str>, call_seconds_max: u64) -> Result<Self, ConfigError> {
        let mut roots = RootCertStore::empty();
        // One that cannot be read is one that nothing is verified with.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = tls(&roots, ca_pem).map_err(|error| ConfigError::Certificates(kernel::chain(&error)))?;
        let fresh = builder(&tls, call_seconds_max).pool_max_idle_per_host(0);
        Ok(Self {
            fresh: fresh.build().map_err(ConfigError::Http)?,
            kept: Mutex::new(
                builder(&tls, call_seconds_max)
                    .build()
                    .map_err(ConfigError::Http)?,
            ),
            tls,
            call_seconds_max,
            base,
        })
    }

    /// Uses no connection again that was kept until now: it may lead to where the name led once.
    pub fn let_go(&self) {
        match builder(&self.tls, self.call_seconds_max).build() {
            Ok(client) => *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = client,
            // It was built in the same way before.
            Err(error) => tracing::warn!(
                error = kernel::chain(&error),
                "connections to the log were not renewed"
            ),
        }
    }

    fn kept(&self) -> reqwest::Client {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// # Errors
    /// [`RekorReason::Unreachable`] or [`RekorReason::NotALog`]; any status is an answer.
    pub async fn get(&self, connections: Connections, path: &str) -> Result<Answer, RekorReason> {
        let client = match connections {
            Connections::Fresh => self.fresh.clone(),
            Connections::Kept => self.kept(),
        };
        self.exchange(client.get(self.address(path)?)).await
    }

    /// # Errors
    /// As for [`Transport::get`].
    pub async fn post(&self, path: &str, body: String) -> Result<Answer, RekorReason> {
        let request = self.kept().post(self.address(path)?);
        self.exchange(request.header(CONTENT_TYPE, "application/json").body(body))
            .await
    }

    fn address(&self, path: &str) -> Result<Url, RekorReason> {
        let bad = |error| RekorReason::NotALog(format!("the address {path}: {error}"));
        self.base.join(path).map_err(bad)
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Answer, RekorReason> {
        let mut response = outgoing::send(request, Whom::Known("rekor"))
            .await
            .map_err(unreachable)?;
        let header = |name: reqwest::header::HeaderName| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(kernel::words(value))
        };
        let mut answer = Answer {
            status: response.status(),
            date: header(DATE).and_then(|text| http_date(&text)),
            certificate: certificate::of(&response),
            location: header(LOCATION),
            retry_after: header(RETRY_AFTER).and_then(|text| text.parse().ok()),
            server: header(SERVER),
            content_type: header(CONTENT_TYPE),
            body: Bytes::new(),
        };
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let why = format!("an answer of more than {ANSWER_BYTES_MAX} bytes");
                return Err(RekorReason::NotALog(why));
            }
            body.extend_from_slice(&chunk);
        }
        answer.body = body.freeze();
        Ok(answer)
    }
}

impl Answer {
    /// The answer, if it holds what was asked for.
    pub fn found(self) -> Result<Self, RekorReason> {
        match self.status.as_u16() {
            200 => Ok(self),
            429 => Err(RekorReason::Throttled {
                after_seconds: self.retry_after,
            }),
            // Rekor v2 has one address to write to and another, of plain files, to read from.
            501 => Err(RekorReason::NotALog(
                self.described(&document::refusal(&self.body)),
            )),
            500..=599 => Err(RekorReason::Unreachable(
                self.described(&document::refusal(&self.body)),
            )),
            _ => Err(RekorReason::NotALog(
                self.described(&document::refusal(&self.body)),
            )),
        }
    }

    /// The answer in one line, for a person who wonders who it is that answers there.
    pub fn described(&self, why: &str) -> String {
        let mut text = format!("status {}", self.status.as_u16());
        if let Some(kind) = &self.content_type {
            text.push_str(&format!(", {kind}"));
        }
        if let Some(server) = &self.server {
            text.push_str(&format!(", from {server}"));
        }
        if !why.is_empty() {
            text.push_str(&format!(": {why}"));
        }
        kernel::words(&text)
    }
}

fn builder(tls: &rustls::ClientConfig, call_seconds_max: u64) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .tls_info(true)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // No environment variable decides where the log is.
        .no_proxy()
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
        .timeout(Duration::from_secs(call_seconds_max))
}

/// An exchange that failed. The text has no URL: it is in the error around this one.
fn unreachable(error: reqwest::Error) -> RekorReason {
    match certificate::refused(&error) {
        Some(refused) if refused.expired => return RekorReason::Expired(refused.why),
        Some(refused) => return RekorReason::Impostor(refused.why),
        None => {}
    }
    RekorReason::Unreachable(kernel::words(&kernel::chain(&error.without_url())))
}
