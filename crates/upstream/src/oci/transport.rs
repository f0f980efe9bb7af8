//! One registry as a place that can be called: its two HTTP clients, its limit, its retries.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flow::{Bounds, Gate, Limit};
use kernel::{Clock, Monotonic, Random};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use rustls::ClientConfig;
use signing::ports::RegistryReason;

use super::config::RegistryConfig;
use super::egress::{self, Home, HomeResolver, Refused, TargetResolver};
use super::header::retry_after;
use super::identity::Who;
use super::silence::Silence;
use super::wait::{ATTEMPTS_MAX, THROTTLE_SECONDS_MAX, backoff};
use crate::certificate::in_io;
use crate::outgoing::{self, Whom};

/// Milliseconds for name resolution, TCP and TLS together: three lost packets, and still time to retry.
const CONNECT_MS_MAX: u64 = 5_000;
/// Milliseconds between two pieces of an answer: a registry that says nothing for so long is not there.
const SILENCE_MS_MAX: u64 = 15_000;
/// Bytes of an error's body that are read: the specification's errors have a few hundred.
const ERROR_BYTES_MAX: usize = 16 << 10;

/// A cap with its name, for the error.
#[derive(Debug, Clone, Copy)]
pub struct Cap {
    pub name: &'static str,
    pub bytes_max: usize,
}

/// Which of the two clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To the registry itself.
    Home,
    /// To where the registry sent us: never with credentials of a redirect, only to allowed places.
    Away,
}

/// Whether a request that failed without a clear answer is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It changes nothing, or the same thing each time.
    Again,
    /// The caller must look first at what happened.
    Never,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: Method,
    pub url: Url,
    pub route: Route,
    pub retry: Retry,
    pub cap: Cap,
    pub accept: Option<&'static str>,
    pub body: Option<(String, Bytes)>,
}

/// An answer: all of it, within the cap.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub url: Url,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Calls to a registry that are always allowed: with one, a single call that hangs would stop everything.
const CALLS_MIN: usize = 2;
/// Calls under way at a registry that nothing is known of yet. One sign request makes about six.
const CALLS_START: usize = 16;
/// Calls that may wait for a registry: far over what the work in progress asks for, which has a bound of its own.
const CALLS_WAITING_MAX: usize = 16_384;

/// A registry.
#[derive(Debug)]
pub struct Host {
    /// As references name it.
    pub name: String,
    /// Scheme, host and port that are really called.
    pub origin: Url,
    pub call_ms_max: Duration,
    /// The calls under way, and those that wait for their turn.
    pub calls: Gate,
    pub config: RegistryConfig,
    /// The slowest recent read-modify-write of a tag, in microseconds; it fades.
    slowest_us: AtomicU64,
    /// Whether a blob in the `POST` of an upload was not taken here.
    opens_uploads_first: AtomicBool,
    home: Arc<Home>,
    client: reqwest::Client,
    away: reqwest::Client,
    /// Keeps no connection: whoever the name leads to now answers a probe.
    pub fresh: reqwest::Client,
    /// When it was last called.
    last_call: Mutex<Option<Monotonic>>,
    /// Whether it answers anybody.
    pub silence: Silence,
    /// Whom the first good probe found.
    pub known: Mutex<Option<Who>>,
}

impl Host {
    /// Makes the clients of the registry that references call `name`.
    ///
    /// # Errors
    /// `Malformed` when the name is no host, `Address` when it is an address that is never called.
    pub fn new(
        name: &str,
        config: RegistryConfig,
        tls: ClientConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RegistryReason> {
        // Docker Hub's registry is not where its name points (docker/cli, "registry-1.docker.io").
        let host = if name == "index.docker.io" {
            "registry-1.docker.io"
        } else {
            name
        };
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{host}/"));
        let url = parse("https")
            .map_err(|_| RegistryReason::Malformed("the registry's name is no host".to_owned()))?;
        let loopback = egress::is_loopback(&url);
        let plain = config.plain_http.unwrap_or(loopback && config.ca_pem.is_none());
        let origin = parse(if plain { "http" } else { "https" }).unwrap_or(url);
        let home = Arc::new(Home::new(&origin, plain && config.plain_http.is_none()));
        if home.place() == egress::Place::Forbidden {
            return Err(RegistryReason::Address(
                Refused::Registry {
                    host: host.to_owned(),
                }
                .to_string(),
            ));
        }
        let build = |tls: ClientConfig| {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                // A proxy would resolve names itself, past the rule about addresses.
                .no_proxy()
                .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
                .read_timeout(Duration::from_millis(SILENCE_MS_MAX))
        };
        let made = |built: reqwest::Result<reqwest::Client>| built.map_err(|error| unavailable(&error));
        Ok(Self {
            name: name.to_owned(),
            call_ms_max: Duration::from_secs(config.call_seconds_max),
            calls: Gate::new(
                format!("a call to {name}"),
                Limit::new(CALLS_MIN, CALLS_START, config.concurrent_calls_max),
                Bounds {
                    project_max: CALLS_WAITING_MAX,
                    waiting_max: CALLS_WAITING_MAX,
                },
                clock,
            ),
            slowest_us: AtomicU64::new(0),
            opens_uploads_first: AtomicBool::new(false),
            client: made(
                build(tls.clone())
                    .dns_resolver(HomeResolver(Arc::clone(&home)))
                    .build(),
            )?,
            away: made(
                build(tls.clone())
                    .dns_resolver(TargetResolver(Arc::clone(&home)))
                    .build(),
            )?,
            fresh: made(
                build(tls)
                    .dns_resolver(HomeResolver(Arc::clone(&home)))
                    .pool_max_idle_per_host(0)
                    .tls_info(true)
                    .build(),
            )?,
            last_call: Mutex::new(None),
            silence: Silence::new(),
            known: Mutex::new(None),
            home,
            origin,
            config,
        })
    }

    /// Checks where the registry sends us, before anything is sent there.
    ///
    /// # Errors
    /// `Redirect` or `PlainHttp`.
    pub fn check_target(&self, url: &Url) -> Result<(), RegistryReason> {
        match url.scheme() {
            "https" => {}
            "http" if self.origin.scheme() == "http" => {}
            "http" => return Err(RegistryReason::PlainHttp),
            _ => return Err(RegistryReason::Redirect(format!("the scheme {}", url.scheme()))),
        }
        self.home
            .check_target(url)
            .map_err(|refused| RegistryReason::Redirect(refused.to_string()))
    }

    /// Sends a request until there is an answer worth returning: waits when asked to, tries again what may
    /// be tried again, each within a bound.
    ///
    /// # Errors
    /// `Throttled`, `TooLarge`, `Redirect`, `PlainHttp`, or `Unavailable` when the connection fails.
    pub async fn exchange(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
        clock: &dyn Clock,
        random: &dyn Random,
    ) -> Result<Answer, RegistryReason> {
        let (mut failures, mut throttles, mut waited) = (0, 0, Duration::ZERO);
        *self.last_call.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock.monotonic());
        loop {
            let outcome = self.once(ask, authorization).await;
            if outcome.is_ok() && ask.route == Route::Home {
                self.silence.heard(clock.monotonic());
            }
            let wait = match &outcome {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    let asked = answer
                        .header(RETRY_AFTER.as_str())
                        .and_then(|value| retry_after(value, clock.now()));
                    throttles += 1;
                    let wait = asked.unwrap_or_default().max(backoff(throttles, random));
                    let patience = Duration::from_secs(THROTTLE_SECONDS_MAX);
                    if ask.retry == Retry::Never || waited.saturating_add(wait) > patience {
                        return Err(RegistryReason::Throttled { retry_after: asked });
                    }
                    waited += wait;
                    wait
                }
                Ok(answer) if !is_passing(answer.status) => return outcome,
                Err(reason) if !matches!(reason, RegistryReason::Unavailable(_)) => return outcome,
                _ => {
                    failures += 1;
                    if ask.retry == Retry::Never || failures >= ATTEMPTS_MAX {
                        return outcome;
                    }
                    backoff(failures, random)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn once(&self, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Answer, RegistryReason> {
        let (client, whom) = match ask.route {
            Route::Home => (&self.client, Whom::Registry),
            Route::Away => (&self.away, Whom::Stranger),
        };
        let mut request = client.request(ask.method.clone(), ask.url.clone());
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some((content_type, body)) = &ask.body {
            request = request.header(CONTENT_TYPE, content_type).body(body.clone());
        } else if matches!(ask.method, Method::POST | Method::PUT) {
            request = request.body(Bytes::new());
        }
        let mut response = outgoing::send(request, whom).await.map_err(failure)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = BytesMut::new();
        if ask.method != Method::HEAD {
            let Cap { name, bytes_max } = ask.cap;
            let too_large = || RegistryReason::TooLarge { name, bytes_max };
            if status.is_success()
                && response
                    .content_length()
                    .is_some_and(|length| length > bytes_max as u64)
            {
                return Err(too_large());
            }
            while let Some(chunk) = response.chunk().await.map_err(failure)? {
                match status.is_success() {
                    true if body.len() + chunk.len() > bytes_max => return Err(too_large()),
                    false if body.len() + chunk.len() > ERROR_BYTES_MAX => break,
                    _ => body.extend_from_slice(&chunk),
                }
            }
        }
        Ok(Answer {
            status,
            headers,
            body: body.freeze(),
            url: ask.url.clone(),
        })
    }

    /// When it was last called, if it ever answered; what never did may be whatever a caller made up.
    pub fn last_use(&self) -> Option<Monotonic> {
        let last = *self.last_call.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|_| self.silence.was_heard())
    }

    /// Whether a blob may be in the `POST` of its upload, as far as is known.
    pub fn takes_blobs_at_once(&self) -> bool {
        !self.opens_uploads_first.load(Ordering::Relaxed)
    }

    /// Notes that this registry wants an upload to be opened first.
    pub fn takes_no_blobs_at_once(&self) {
        self.opens_uploads_first.store(true, Ordering::Relaxed);
    }

    /// Notes how long a read-modify-write of a tag took.
    pub fn note_write(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let faded = self.slowest_us.load(Ordering::Relaxed) / 8 * 7;
        self.slowest_us.store(us.max(faded), Ordering::Relaxed);
    }

    /// The slowest recent read-modify-write of a tag here.
    pub fn slowest_write(&self) -> Duration {
        Duration::from_micros(self.slowest_us.load(Ordering::Relaxed))
    }
}

/// Server errors that may pass. 501 says that it is not done here, and 505 and the like do not change.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504 | 520..=529)
}

/// What a failed exchange means. The text has no URL: those of redirects carry signatures.
fn failure(error: reqwest::Error) -> RegistryReason {
    let error = error.without_url();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        match current.downcast_ref::<Refused>() {
            Some(refused @ Refused::Target { .. }) => return RegistryReason::Redirect(refused.to_string()),
            Some(Refused::NotLoopback { .. }) => return RegistryReason::PlainHttp,
            Some(refused @ Refused::Registry { .. }) => return RegistryReason::Address(refused.to_string()),
            None => {}
        }
        if let Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) =
            in_io(current)
        {
            // The peer does not speak TLS at all.
            return RegistryReason::PlainHttp;
        }
        cause = current.source();
    }
    unavailable(&error)
}

fn unavailable(error: &(dyn Error + 'static)) -> RegistryReason {
    RegistryReason::Unavailable(kernel::chain(error))
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;

    use super::*;
    use crate::tls::tls;

    fn host(name: &str, config: RegistryConfig) -> Result<Host, RegistryReason> {
        Host::new(
            name,
            config,
            tls(&RootCertStore::empty(), None).unwrap(),
            Arc::new(kernel::SystemClock::new()),
        )
    }

    #[test]
    fn plain_http_is_only_for_loopback_unless_allowed() {
        let scheme = |name: &str, plain_http| {
            host(
                name,
                RegistryConfig {
                    plain_http,
                    ..RegistryConfig::default()
                },
            )
            .unwrap()
            .origin
            .scheme()
            .to_owned()
        };
        for loopback in ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"] {
            assert_eq!(scheme(loopback, None), "http", "{loopback}");
            assert_eq!(scheme(loopback, Some(false)), "https", "{loopback}");
        }
        for other in ["r.example", "10.0.0.1:5000", "192.168.1.1", "r.local:80"] {
            assert_eq!(scheme(other, None), "https", "{other}");
        }
        assert_eq!(scheme("10.0.0.1:5000", Some(true)), "http");
    }

    #[test]
    fn t25_link_local_addresses_are_no_registries() {
        for name in [
            "169.254.169.254",
            "169.254.169.254:80",
            "[fe80::1]:5000",
            "[fd00:ec2::254]",
            "2852039166:80",
        ] {
            let answer = host(name, RegistryConfig::default());
            assert!(matches!(answer, Err(RegistryReason::Address(_))), "{name}");
        }
    }

    #[test]
    fn t24_a_registry_on_tls_cannot_send_us_to_plain_http() {
        let public = host("r.example", RegistryConfig::default()).unwrap();
        let check = |text: &str| public.check_target(&text.parse().unwrap());
        assert!(check("https://storage.example/x").is_ok());
        assert!(matches!(
            check("http://storage.example/x"),
            Err(RegistryReason::PlainHttp)
        ));
        assert!(matches!(
            check("file:///etc/passwd"),
            Err(RegistryReason::Redirect(_))
        ));
        for inside in [
            "https://127.0.0.1/",
            "https://10.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/",
            "https://0x7f.1/",
        ] {
            assert!(
                matches!(check(inside), Err(RegistryReason::Redirect(_))),
                "{inside}"
            );
        }
    }

    #[test]
    fn docker_hub_is_called_at_its_registry() {
        let hub = host("index.docker.io", RegistryConfig::default()).unwrap();
        assert_eq!(hub.origin.as_str(), "https://registry-1.docker.io/");
    }
}
