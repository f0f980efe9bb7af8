//! The command line's side of the API.

use std::time::Duration;

use kernel::{Clock as _, SystemClock};
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use crate::args::Globals;
use crate::bearer::Bearer;
use crate::codes;
use crate::failure::Failure;
use crate::output::say;
use crate::traces::context::into_headers;

/// What whoever asked without a token is told.
const HOW_TO_GET_A_TOKEN: &str = "no token is given: set PORTCULLIS_TOKEN, or give --token. The first start of \
`portcullis serve` prints the administrator's, who makes others: portcullis token create NAME --role signer. A job of \
GitHub Actions or GitLab needs none if a trust rule names it ([[oidc]]) and it has `id-token: write` or PORTCULLIS_ID_TOKEN";

/// A server, asked with a token.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    bearer: Bearer,
    project: Option<String>,
    verbose: bool,
}

impl Client {
    pub fn new(globals: &Globals) -> Result<Self, Failure> {
        let text = format!("{}/", globals.server.trim_end_matches('/'));
        let base = Url::parse(&text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let base = base.ok_or_else(|| {
            Failure::usage(
                format!("--server {:?} is not an http or https address", globals.server),
                "write http://HOST:PORT",
            )
        })?;
        let http = crate::client::http(Duration::from_secs(globals.timeout))?;
        Ok(Self {
            http,
            base,
            bearer: Bearer::new(globals)?,
            project: globals.project.clone().filter(|project| !project.is_empty()),
            verbose: globals.verbose,
        })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.json(Method::GET, path, None).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, Failure> {
        self.json(Method::POST, path, Some(body)).await
    }

    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value) -> Result<T, Failure> {
        self.json(Method::PUT, path, Some(body)).await
    }

    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, Failure> {
        self.json(Method::PATCH, path, Some(body)).await
    }

    /// A call whose answer has no body, or one that does not matter.
    pub async fn send(&self, method: Method, path: &str) -> Result<(), Failure> {
        self.call(method, path, None).await.map(|_| ())
    }

    pub async fn text(&self, path: &str) -> Result<String, Failure> {
        let bytes = self.call(Method::GET, path, None).await?;
        String::from_utf8(bytes).map_err(|_| self.nonsense(path, "it is not text"))
    }

    pub async fn bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.call(Method::GET, path, None).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<T, Failure> {
        let bytes = self.call(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.nonsense(path, &error.to_string()))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Vec<u8>, Failure> {
        let response = self.sent(self.request(method, path, body).await?).await?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            Ok(bytes.to_vec())
        } else {
            Err(self.refused(path, status, &bytes))
        }
    }

    /// A call whose answer is read as it comes.
    pub async fn stream(&self, path: &str, body: &serde_json::Value) -> Result<reqwest::Response, Failure> {
        let request = self
            .request(Method::POST, path, Some(body))
            .await?
            .header("accept", "application/x-ndjson");
        let response = self.sent(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        Err(self.refused(path, status, &bytes))
    }

    /// Sends a request, and says so if asked to.
    async fn sent(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let mut request = request.build().map_err(|error| self.unreachable(&error))?;
        let span = upstream::outgoing::span(&request, request.url().path());
        into_headers(&span, request.headers_mut());
        let (method, url, clock) = (
            request.method().clone(),
            request.url().clone(),
            SystemClock::new(),
        );
        let start = clock.monotonic();
        let response = self.http.execute(request).instrument(span.clone()).await;
        upstream::outgoing::ended(&span, &response);
        if self.verbose {
            let ms = clock.monotonic().since(start).as_millis();
            let answer = match &response {
                Ok(response) => response.status().to_string(),
                Err(_) => "no answer".to_owned(),
            };
            say(&format!("{method} {url}  {answer}  {ms} ms"));
        }
        response.map_err(|error| self.unreachable(&error))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<reqwest::RequestBuilder, Failure> {
        let url = self
            .base
            .join(path)
            .map_err(|error| Failure::local(format!("making the address of {path}"), &error))?;
        let mut request = self.http.request(method, url);
        if let Some(token) = self.bearer.token(&self.http).await? {
            request = request.bearer_auth(token);
        }
        if let Some(project) = &self.project {
            request = request.header("x-portcullis-project", project);
        }
        Ok(match body {
            Some(body) => request.json(body),
            None => request,
        })
    }

    pub fn unreachable(&self, error: &reqwest::Error) -> Failure {
        Failure::coded(6, &codes::SERVER, kernel::chain(error))
    }

    fn refused(&self, path: &str, status: StatusCode, bytes: &[u8]) -> Failure {
        match serde_json::from_slice::<serde_json::Value>(bytes) {
            Ok(document) if document["code"].is_string() => {
                let failure = Failure::problem(status.as_u16(), document);
                if status == StatusCode::UNAUTHORIZED && self.bearer.is_nobody() {
                    failure.with_hint(HOW_TO_GET_A_TOKEN)
                } else {
                    failure
                }
            }
            Ok(document) if document["message"].is_string() => {
                let cause = document["message"].as_str().unwrap_or_default().to_owned();
                let exit = if status == StatusCode::NOT_FOUND { 4 } else { 6 };
                // The interface of Rekor has no member for a code; there it stands behind the words.
                let coded = cause.rsplit_once(" [").and_then(|(words, id)| {
                    let all = crate::explain::all();
                    let code = all
                        .into_iter()
                        .find(|code| id.strip_suffix(']') == Some(code.id))?;
                    Some((words.to_owned(), code))
                });
                let (cause, code) = coded.unwrap_or((cause, &codes::SERVER));
                Failure::coded(exit, code, cause)
            }
            _ => self.nonsense(path, &format!("status {status}")),
        }
    }

    fn nonsense(&self, path: &str, why: &str) -> Failure {
        let cause = format!(
            "{}{path} did not answer like a Portcullis server: {why}",
            self.base
        );
        Failure::coded(6, &codes::SERVER, cause)
    }
}

/// An HTTP client on the one TLS library of the program.
pub fn http(timeout: Duration) -> Result<reqwest::Client, Failure> {
    // A second installation fails, and changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .build();
    client.map_err(|error| Failure::local("starting the HTTP client", &error))
}
