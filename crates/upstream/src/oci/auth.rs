//! Credentials and tokens: whose, for what, and where they may go.
//!
//! Credentials are found by (project, registry). They go to the registry itself, and to the token realm that
//! it names if that is on the same host, or on HTTPS at an allowed address. A token is kept for (project,
//! registry, scope) until shortly before it runs out.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kernel::{Clock, Monotonic, Random, Secret};
use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use signing::ports::RegistryReason;

use super::challenge::Challenge;
use super::docker;
use super::document::{self, error_words};
use super::login::Login;
use super::transport::{Answer, Ask, Cap, Host, Retry, Route};

/// The answer of a token endpoint, in bytes: tokens have a few thousand.
const TOKEN_CAP: Cap = Cap {
    name: "TOKEN_BYTES_MAX",
    bytes_max: 64 << 10,
};
/// Remembered challenges, logins and tokens each; when there are more, all are forgotten and asked for anew.
const REMEMBERED_MAX: usize = 10_000;

type Who = (String, String);

/// What is remembered between calls.
#[derive(Default)]
pub struct Authenticator {
    challenges: Mutex<HashMap<Who, Challenge>>,
    logins: Mutex<HashMap<Who, Option<Login>>>,
    tokens: Mutex<HashMap<(Who, String), TokenSlot>>,
    docker_config: Option<PathBuf>,
    docker_helpers: Option<PathBuf>,
}

/// One token; whoever holds the lock fetches it, and the others wait for it instead of fetching too.
type TokenSlot = Arc<tokio::sync::Mutex<Option<Token>>>;

struct Token {
    header: HeaderValue,
    fetched: Monotonic,
    good_for: Duration,
}

/// Who asks for what.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub project: &'a str,
    pub host: &'a Host,
    pub repository: &'a str,
    pub push: bool,
    pub clock: &'a dyn Clock,
    pub random: &'a dyn Random,
}

impl Scope<'_> {
    fn who(&self) -> Who {
        (self.project.to_owned(), self.host.name.clone())
    }

    fn text(&self) -> String {
        format!(
            "repository:{}:{}",
            self.repository,
            if self.push { "pull,push" } else { "pull" }
        )
    }
}

fn remember<K: Hash + Eq, V>(map: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if map.len() >= REMEMBERED_MAX {
        map.clear();
    }
    map.insert(key, value);
}

fn recall<K: Hash + Eq, V: Clone>(map: &Mutex<HashMap<K, V>>, key: &K) -> Option<V> {
    map.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(key)
        .cloned()
}

impl Authenticator {
    pub fn new(docker_config: Option<PathBuf>, docker_helpers: Option<PathBuf>) -> Self {
        Self {
            docker_config,
            docker_helpers,
            ..Self::default()
        }
    }

    /// The `Authorization` to send to the registry, if it has asked for one before.
    pub async fn authorization(&self, scope: Scope<'_>) -> Result<Option<HeaderValue>, RegistryReason> {
        match recall(&self.challenges, &scope.who()) {
            None => Ok(None),
            Some(Challenge::Basic) => match self.login(scope).await? {
                Some(Login::Password { username, password }) => basic(&username, &password).map(Some),
                Some(Login::IdentityToken(_)) => {
                    let why = "the registry asks for a password and the Docker configuration has a token";
                    Err(RegistryReason::Unauthenticated(why.to_owned()))
                }
                None => Ok(None),
            },
            Some(Challenge::Bearer { realm, service }) => {
                let slot = {
                    let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                    if tokens.len() >= REMEMBERED_MAX {
                        tokens.clear();
                    }
                    Arc::clone(tokens.entry((scope.who(), scope.text())).or_default())
                };
                let mut held = slot.lock().await;
                if let Some(token) = held.as_ref()
                    && scope.clock.monotonic().since(token.fetched) < token.good_for
                {
                    return Ok(Some(token.header.clone()));
                }
                let token = self.fetch(scope, &realm, service.as_deref()).await?;
                let header = token.header.clone();
                *held = Some(token);
                Ok(Some(header))
            }
        }
    }

    /// Learns from a 401. `sent` is the authorization that was not accepted, which is forgotten.
    ///
    /// # Errors
    /// `Unauthenticated` when the registry asks for nothing that we can give.
    pub fn learn(
        &self,
        scope: Scope<'_>,
        answer: &Answer,
        sent: Option<&HeaderValue>,
    ) -> Result<(), RegistryReason> {
        let values = answer
            .headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let challenge = Challenge::choose(values).ok_or_else(|| {
            RegistryReason::Unauthenticated(error_words(answer.status.as_u16(), &answer.body))
        })?;
        if sent.is_some() {
            let key = (scope.who(), scope.text());
            self.tokens
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            self.logins
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&scope.who());
        }
        remember(&self.challenges, scope.who(), challenge);
        Ok(())
    }

    /// The credentials of this project for this registry. The Docker configuration is only for the empty
    /// project: a person at the command line.
    async fn login(&self, scope: Scope<'_>) -> Result<Option<Login>, RegistryReason> {
        if let Some(own) = scope.host.config.credentials.get(scope.project) {
            let login = Login::Password {
                username: own.username.clone(),
                password: own.password.clone(),
            };
            return Ok(Some(login));
        }
        let Some(config) = self.docker_config.as_deref().filter(|_| scope.project.is_empty()) else {
            return Ok(None);
        };
        if let Some(known) = recall(&self.logins, &scope.who()) {
            return Ok(known);
        }
        let login = docker::login(config, self.docker_helpers.as_deref(), &scope.host.name).await;
        let login = login.map_err(RegistryReason::Unauthenticated)?;
        remember(&self.logins, scope.who(), login.clone());
        Ok(login)
    }

    /// Asks the realm for a token: `GET` with basic authentication (or none, for what is public), `POST`
    /// with a refresh token (distribution, "Token Authentication Specification" and "Oauth2 Token
    /// Authentication").
    async fn fetch(
        &self,
        scope: Scope<'_>,
        realm: &str,
        service: Option<&str>,
    ) -> Result<Token, RegistryReason> {
        let (mut url, route) = realm_route(scope.host, realm)?;
        let login = self.login(scope).await?;
        let mut query = vec![("scope", scope.text())];
        query.extend(service.map(|service| ("service", service.to_owned())));
        let mut ask = Ask {
            method: Method::GET,
            url: url.clone(),
            route,
            retry: Retry::Again,
            cap: TOKEN_CAP,
            accept: None,
            body: None,
        };
        let mut authorization = None;
        match login {
            Some(Login::IdentityToken(token)) => {
                query.push(("grant_type", "refresh_token".to_owned()));
                query.push(("client_id", "portcullis".to_owned()));
                query.push(("refresh_token", token.expose().to_owned()));
                let mut form = url.clone();
                form.query_pairs_mut().clear().extend_pairs(&query);
                let body = form.query().unwrap_or_default().to_owned();
                ask.method = Method::POST;
                ask.body = Some(("application/x-www-form-urlencoded".to_owned(), body.into()));
            }
            Some(Login::Password { username, password }) => {
                query.push(("account", username.clone()));
                authorization = Some(basic(&username, &password)?);
                url.query_pairs_mut().extend_pairs(&query);
            }
            None => {
                url.query_pairs_mut().extend_pairs(&query);
            }
        }
        ask.url = url;
        let fetched = scope.clock.monotonic();
        let answer = scope
            .host
            .exchange(&ask, authorization.as_ref(), scope.clock, scope.random)
            .await?;
        read_token(&answer, fetched)
    }
}

/// Where tokens are asked for. The same host is the registry itself; any other must be on TLS and at a place
/// that the registry may send us to.
fn realm_route(host: &Host, realm: &str) -> Result<(Url, Route), RegistryReason> {
    let url = Url::parse(realm)
        .map_err(|_| RegistryReason::Malformed("the token realm is no address".to_owned()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(RegistryReason::Malformed(
            "the token realm has a user in it".to_owned(),
        ));
    }
    let same_host = url.host_str() == host.origin.host_str();
    if url.origin() == host.origin.origin() {
        return Ok((url, Route::Home));
    }
    if !same_host && url.scheme() != "https" {
        return Err(RegistryReason::Redirect(format!(
            "a token realm without TLS at {}",
            kernel::words(url.authority())
        )));
    }
    host.check_target(&url)?;
    Ok((url, Route::Away))
}

fn basic(username: &str, password: &Secret) -> Result<HeaderValue, RegistryReason> {
    let encoded = STANDARD.encode(format!("{username}:{}", password.expose()));
    secret_header(&format!("Basic {encoded}"))
}

fn secret_header(text: &str) -> Result<HeaderValue, RegistryReason> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        RegistryReason::Unauthenticated("the credentials have forbidden characters".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn read_token(answer: &Answer, fetched: Monotonic) -> Result<Token, RegistryReason> {
    let status = answer.status;
    if status.is_server_error() {
        return Err(RegistryReason::Unavailable(format!(
            "the token realm answered {status}"
        )));
    }
    if !status.is_success() {
        let words = error_words(status.as_u16(), &answer.body);
        return Err(RegistryReason::Unauthenticated(format!(
            "the token realm answered {words}"
        )));
    }
    let (token, good_for) = document::token(&answer.body)?;
    Ok(Token {
        header: secret_header(&format!("Bearer {}", token.expose()))?,
        fetched,
        good_for,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::config::RegistryConfig;
    use crate::tls::tls;

    #[test]
    fn t24_credentials_go_to_a_realm_on_tls_or_on_the_same_host_only() {
        let host = |name: &str| {
            let tls = tls(&rustls::RootCertStore::empty(), None).unwrap();
            Host::new(
                name,
                RegistryConfig::default(),
                tls,
                Arc::new(kernel::SystemClock::new()),
            )
            .unwrap()
        };
        let public = host("r.example");
        let allowed = [
            ("https://r.example/token", Route::Home),
            ("https://auth.example/token", Route::Away),
            ("https://r.example:444/t", Route::Away),
        ];
        for (realm, route) in allowed {
            assert_eq!(realm_route(&public, realm).unwrap().1, route, "{realm}");
        }
        for realm in [
            "http://r.example/token",
            "http://auth.example/token",
            "https://10.0.0.1/token",
            "https://127.0.0.1/token",
            "https://169.254.169.254/latest",
            "https://user:pass@auth.example/",
            "ftp://r.example/",
            "nonsense",
            "",
        ] {
            assert!(realm_route(&public, realm).is_err(), "{realm}");
        }
        let local = host("127.0.0.1:5000");
        assert_eq!(
            realm_route(&local, "http://127.0.0.1:5000/token").unwrap().1,
            Route::Home
        );
        assert_eq!(
            realm_route(&local, "http://127.0.0.1:5001/token").unwrap().1,
            Route::Away
        );
        for realm in [
            "http://auth.example/",
            "http://10.0.0.1/",
            "https://10.0.0.1/",
            "http://127.0.0.2/",
        ] {
            assert!(realm_route(&local, realm).is_err(), "{realm}");
        }
    }
}
