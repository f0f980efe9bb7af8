//! Which token a command asks with: the one that it was given, or the one that its build system gives to the job.
//!
//! GitHub Actions gives a token on request to jobs with the permission `id-token: write`; GitLab puts one into the
//! variable that the job names under `id_tokens`.

use std::time::Duration;

use kernel::{Clock as _, Monotonic, SystemClock};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::args::Globals;
use crate::codes;
use crate::failure::Failure;

/// The variable for a token of GitLab's `id_tokens`.
const ID_TOKEN: &str = "PORTCULLIS_ID_TOKEN";
/// Where GitHub Actions gives tokens, and with what it is asked ("OpenID Connect reference" of its documentation).
const GITHUB_URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const GITHUB_TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";
/// Seconds that a token of GitHub is used before the next is asked for; it lives five minutes.
const FRESH_SECONDS: u64 = 120;

/// A source of tokens.
pub struct Bearer {
    source: Source,
    clock: SystemClock,
    last: Mutex<Option<(Monotonic, String)>>,
}

enum Source {
    Nobody,
    Given(String),
    Github { url: Url, token: String },
}

/// What GitHub answers.
#[derive(Deserialize)]
struct Answer {
    value: String,
}

impl Bearer {
    /// What the command line and the environment give. An empty variable is one that is not set.
    pub fn new(globals: &Globals) -> Result<Self, Failure> {
        let set = |text: &String| !text.trim().is_empty();
        let variable = |name: &str| std::env::var(name).ok().filter(set);
        let source = match globals.token.clone().filter(set).or_else(|| variable(ID_TOKEN)) {
            Some(token) => Source::Given(token),
            None => match (variable(GITHUB_URL), variable(GITHUB_TOKEN)) {
                (Some(url), Some(token)) => Source::Github {
                    url: github_url(&url, globals)?,
                    token,
                },
                _ => Source::Nobody,
            },
        };
        Ok(Self {
            source,
            clock: SystemClock::new(),
            last: Mutex::new(None),
        })
    }

    /// Whether there is none to ask with.
    pub fn is_nobody(&self) -> bool {
        matches!(self.source, Source::Nobody)
    }

    /// The token for the next request.
    pub async fn token(&self, http: &reqwest::Client) -> Result<Option<String>, Failure> {
        let (url, token) = match &self.source {
            Source::Nobody => return Ok(None),
            Source::Given(token) => return Ok(Some(token.clone())),
            Source::Github { url, token } => (url, token),
        };
        let mut last = self.last.lock().await;
        let now = self.clock.monotonic();
        if let Some((at, token)) = &*last
            && now.since(*at) < Duration::from_secs(FRESH_SECONDS)
        {
            return Ok(Some(token.clone()));
        }
        let token = ask_github(http, url, token).await?;
        *last = Some((now, token.clone()));
        Ok(Some(token))
    }
}

/// Where to ask for a token with the audience that the rules want: the server's address unless another is given.
fn github_url(text: &str, globals: &Globals) -> Result<Url, Failure> {
    let mut url = Url::parse(text)
        .map_err(|_| Failure::coded(6, &codes::NO_ID_TOKEN, format!("{GITHUB_URL} is no address")))?;
    let given = globals.audience.as_deref().filter(|text| !text.is_empty());
    let audience = given.unwrap_or_else(|| globals.server.trim_end_matches('/'));
    url.query_pairs_mut().append_pair("audience", audience);
    Ok(url)
}

async fn ask_github(http: &reqwest::Client, url: &Url, token: &str) -> Result<String, Failure> {
    let failed = |why: String| Failure::coded(6, &codes::NO_ID_TOKEN, why);
    let response = http.get(url.clone()).bearer_auth(token).send().await;
    let response = response.map_err(|error| failed(kernel::chain(&error.without_url())))?;
    if response.status() != StatusCode::OK {
        return Err(failed(format!(
            "GitHub Actions answered with status {}",
            response.status()
        )));
    }
    let answer: Answer = response
        .json()
        .await
        .map_err(|_| failed("GitHub Actions answered with something else than a token".to_owned()))?;
    Ok(answer.value)
}
