//! Who may come in: everybody, or one user by basic or bearer authentication.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kernel::{Digest, Random as _, SystemRandom};

use crate::answer::Refusal;

/// How a caller proves who they are.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Nobody is asked.
    None,
    /// Basic authentication (RFC 7617) on every call.
    Basic { username: String, password: String },
    /// Bearer tokens for one repository and its actions, from `/token` of the same process, which asks for
    /// basic authentication (distribution, "Token Authentication Specification").
    Bearer {
        username: String,
        password: String,
        token_seconds: u64,
    },
}

/// The door.
pub struct Access {
    auth: Auth,
    /// Digests of tokens handed out, with the scope of each.
    tokens: Mutex<HashSet<(Digest, String)>>,
}

impl Access {
    pub fn new(auth: Auth) -> Self {
        Self {
            auth,
            tokens: Mutex::new(HashSet::new()),
        }
    }

    pub fn revoke(&self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether a call with these headers may do `action` (`pull` or `push`) in `repository`. `Err` is the
    /// challenge for `WWW-Authenticate`.
    pub fn check(
        &self,
        headers: &HeaderMap,
        repository: &str,
        action: &str,
        realm: Option<&str>,
    ) -> Result<(), String> {
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        match &self.auth {
            Auth::None => Ok(()),
            Auth::Basic { username, password } => {
                if sent == Some(basic(username, password).as_str()) {
                    return Ok(());
                }
                Err("Basic realm=\"portcullis\"".to_owned())
            }
            Auth::Bearer { .. } => {
                if repository.is_empty() && sent.is_some() {
                    return Ok(());
                }
                if sent
                    .and_then(|sent| sent.strip_prefix("Bearer "))
                    .is_some_and(|token| self.holds(token, &format!("{repository}:{action}")))
                {
                    return Ok(());
                }
                let host = headers
                    .get(header::HOST)
                    .and_then(|host| host.to_str().ok())
                    .unwrap_or_default();
                let realm = realm.map_or_else(|| format!("http://{host}/token"), str::to_owned);
                let actions = if action == "push" { "pull,push" } else { "pull" };
                Err(format!(
                    "Bearer realm=\"{realm}\",service=\"portcullis\",scope=\"repository:{repository}:{actions}\""
                ))
            }
        }
    }

    fn holds(&self, token: &str, permission: &str) -> bool {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.contains(&(Digest::of(token.as_bytes()), permission.to_owned()))
    }

    /// A token for the scopes in `query`, as the JSON of the token endpoint.
    ///
    /// # Errors
    /// 401 when the credentials are not the right ones, 404 when there are no tokens here.
    pub fn token(&self, headers: &HeaderMap, query: &[(String, String)]) -> Result<String, Refusal> {
        let Auth::Bearer {
            username,
            password,
            token_seconds,
        } = &self.auth
        else {
            return Err(Refusal::not_found("UNSUPPORTED"));
        };
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if sent != Some(basic(username, password).as_str()) {
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "UNAUTHORIZED",
                "wrong user or password",
            ));
        }
        let mut secret = [0; 32];
        SystemRandom.fill(&mut secret);
        let token = Digest::from_bytes(secret).hex();
        let key = Digest::of(token.as_bytes());
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, scope) in query.iter().filter(|(name, _)| name == "scope") {
            let Some((repository, actions)) = scope
                .strip_prefix("repository:")
                .and_then(|scope| scope.rsplit_once(':'))
            else {
                continue;
            };
            for action in actions.split(',') {
                tokens.insert((key, format!("{repository}:{action}")));
            }
        }
        Ok(serde_json::json!({ "token": token, "expires_in": token_seconds }).to_string())
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}
