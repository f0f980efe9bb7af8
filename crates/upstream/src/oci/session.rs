//! Requests of one project to one repository: authorisation, redirects, and what a status means.

use std::pin::pin;

use flow::{Caller, Outcome, Pass};
use kernel::limits::MANIFEST_BYTES_MAX;
use kernel::{Digest, Monotonic};
use reqwest::header::{HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};
use signing::ports::RegistryReason;
use tokio::time::{sleep, timeout};

use super::auth::{Authenticator, Scope};
use super::document::{ACCEPT, error_words};
use super::header::address;
use super::silence::SILENT_AFTER;
use super::transport::{Answer, Ask, Cap, Retry, Route};

/// Redirects that are followed: storage behind a registry needs one, a mirror before it another.
const REDIRECTS_MAX: usize = 5;
/// The cap on documents.
pub const MANIFEST_CAP: Cap = Cap {
    name: "MANIFEST_BYTES_MAX",
    bytes_max: MANIFEST_BYTES_MAX,
};

/// Who talks to which repository.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    pub scope: Scope<'a>,
    pub auth: &'a Authenticator,
    pub caller: Caller<'a>,
}

impl<'a> Session<'a> {
    /// An address under `/v2/<repository>/`.
    pub fn url(&self, rest: &str) -> Url {
        let mut url = self.scope.host.origin.clone();
        url.set_path(&format!("/v2/{}/{rest}", self.scope.repository));
        url
    }

    /// A read.
    pub fn get(&self, url: Url, cap: Cap, accept: Option<&'static str>) -> Ask {
        Ask {
            method: Method::GET,
            url,
            route: Route::Home,
            retry: Retry::Again,
            cap,
            accept,
            body: None,
        }
    }

    /// A read of a manifest by tag or digest.
    pub fn get_manifest(&self, reference: &str) -> Ask {
        self.get(
            self.url(&format!("manifests/{reference}")),
            MANIFEST_CAP,
            Some(ACCEPT),
        )
    }

    /// Waits for a turn at this registry.
    ///
    /// # Errors
    /// `Unavailable` at once if it answers nobody, or if too many wait already; and if the turn does not come in the time
    /// that a call may take.
    pub async fn turn(&self) -> Result<Pass, RegistryReason> {
        let host = self.scope.host;
        let is_trial = host.silence.ask(self.now())?;
        let entered = timeout(host.call_ms_max, host.calls.enter(self.caller, 1));
        let entered = tokio::select! {
            biased;
            silent = host.silence.falls_silent(|| self.now()), if !is_trial => return Err(silent),
            entered = entered => entered,
        };
        match entered {
            Ok(entered) => entered.map_err(|error| RegistryReason::Unavailable(kernel::chain(&error))),
            Err(_) => {
                let (seconds, limit) = (host.call_ms_max.as_secs(), host.calls.standing().limit);
                Err(RegistryReason::Unavailable(format!(
                    "no turn within {seconds} s: the {limit} calls under way do not end"
                )))
            }
        }
    }

    fn now(&self) -> Monotonic {
        self.scope.clock.monotonic()
    }

    /// One call in its turn and under its deadline, from which the registry's limit learns.
    ///
    /// # Errors
    /// Those of [`Self::turn`] and of the work, and `Unavailable` at the deadline.
    pub async fn counted<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, RegistryReason>>,
    ) -> Result<T, RegistryReason> {
        let turn = self.turn().await?;
        let outcome = self.within(work).await;
        turn.end(|took| match &outcome {
            Err(RegistryReason::Throttled { .. } | RegistryReason::Unavailable(_)) => Outcome::Overloaded,
            Err(RegistryReason::Address(_) | RegistryReason::PlainHttp) => Outcome::Unknown,
            _ => Outcome::Answered(call, took),
        });
        outcome
    }

    /// Work under the deadline of one call.
    ///
    /// # Errors
    /// Those of the work, and `Unavailable` at the deadline.
    pub async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, RegistryReason>>,
    ) -> Result<T, RegistryReason> {
        let (host, began) = (self.scope.host, self.now());
        let mut ended = pin!(timeout(host.call_ms_max, work));
        let outcome = tokio::select! {
            ended = &mut ended => ended,
            // It goes on to its own deadline; the others need not wait for that to learn that nobody is answered.
            () = sleep(SILENT_AFTER) => {
                host.silence.missed(began, self.now(), host.call_ms_max);
                ended.await
            }
        };
        let outcome = outcome.unwrap_or_else(|_| {
            let seconds = host.call_ms_max.as_secs();
            Err(RegistryReason::Unavailable(format!(
                "no end within {seconds} s (call_seconds_max)"
            )))
        });
        if matches!(outcome, Err(RegistryReason::Unavailable(_))) {
            host.silence.missed(began, self.now(), host.call_ms_max);
        }
        outcome
    }

    /// Sends a request: answers a challenge once, follows redirects of reads.
    ///
    /// # Errors
    /// Those of the transport; any status is an answer.
    pub async fn send(&self, ask: &Ask) -> Result<Answer, RegistryReason> {
        if ask.route == Route::Away {
            self.scope.host.check_target(&ask.url)?;
            return self.exchange(ask, None).await;
        }
        let mut sent = self.auth.authorization(self.scope).await?;
        let mut answer = self.exchange(ask, sent.as_ref()).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            self.auth.learn(self.scope, &answer, sent.as_ref())?;
            sent = self.auth.authorization(self.scope).await?;
            if sent.is_some() {
                answer = self.exchange(ask, sent.as_ref()).await?;
            }
        }
        self.follow(ask, answer).await
    }

    async fn exchange(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryReason> {
        self.scope
            .host
            .exchange(ask, authorization, self.scope.clock, self.scope.random)
            .await
    }

    /// Follows redirects of reads without credentials. Writes are not redirected: an upload's address comes
    /// in a 202.
    async fn follow(&self, ask: &Ask, mut answer: Answer) -> Result<Answer, RegistryReason> {
        let mut hops = 0;
        while matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            if !matches!(ask.method, Method::GET | Method::HEAD) {
                return Err(RegistryReason::Redirect(format!(
                    "a {} was redirected",
                    ask.method
                )));
            }
            if hops == REDIRECTS_MAX {
                return Err(RegistryReason::Redirect(format!(
                    "more than {REDIRECTS_MAX} redirects"
                )));
            }
            hops += 1;
            let url = location(&answer)?;
            self.scope.host.check_target(&url)?;
            answer = self
                .exchange(
                    &Ask {
                        url,
                        route: Route::Away,
                        ..ask.clone()
                    },
                    None,
                )
                .await?;
        }
        Ok(answer)
    }
}

/// The address in `Location`.
///
/// # Errors
/// `Malformed` without one. Those of [`address`].
pub fn location(answer: &Answer) -> Result<Url, RegistryReason> {
    let target = answer.header(LOCATION.as_str());
    let target =
        target.ok_or_else(|| RegistryReason::Malformed("the answer has no usable Location".to_owned()))?;
    address(target, &answer.url)
}

/// What an unsuccessful status means.
pub fn refusal(answer: &Answer) -> RegistryReason {
    let status = answer.status.as_u16();
    let words = error_words(status, &answer.body);
    match status {
        401 => RegistryReason::Unauthenticated(words),
        403 => RegistryReason::Denied(words),
        404 => RegistryReason::NotFound,
        429 => RegistryReason::Throttled { retry_after: None },
        400..=499 => RegistryReason::Refused(words),
        500..=599 => RegistryReason::Unavailable(format!("the registry answered {words}")),
        _ => RegistryReason::Malformed(format!("an answer with status {status}")),
    }
}

/// The answer, if it is one that holds what was asked for.
pub fn found(answer: Answer) -> Result<Answer, RegistryReason> {
    if answer.status == StatusCode::OK {
        Ok(answer)
    } else {
        Err(refusal(&answer))
    }
}

/// Checks bytes against the digest that they were asked for by.
pub fn hash_to(bytes: &[u8], expected: Digest) -> Result<(), RegistryReason> {
    let found = Digest::of(bytes);
    if found == expected {
        Ok(())
    } else {
        Err(RegistryReason::DigestMismatch { expected, found })
    }
}
