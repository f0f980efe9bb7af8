//! The HTTP interface, asked as a program would.

use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use serde_json::Value;

/// How long an answer may take, in seconds.
const ANSWER_SECONDS_MAX: u64 = 60;

/// A server and a token to ask it with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    url: String,
    token: String,
    project: Option<String>,
    prefer: Option<&'static str>,
}

/// An answer: its status, and its body as JSON; a body that is not JSON is a string.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// Seconds after which to come again, if it says so.
    pub retry_after: Option<u64>,
    pub body: Value,
}

impl Api {
    /// # Errors
    /// If the HTTP client cannot be made.
    pub fn new(url: &str, token: &str) -> Result<Self> {
        // A second installation changes nothing.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let timeout = Duration::from_secs(ANSWER_SECONDS_MAX);
        let http = reqwest::Client::builder().timeout(timeout).no_proxy().build()?;
        Ok(Self {
            http,
            url: url.to_owned(),
            token: token.to_owned(),
            project: None,
            prefer: None,
        })
    }

    /// The same token, for the project `name`.
    #[must_use]
    pub fn in_project(&self, name: &str) -> Self {
        Self {
            project: Some(name.to_owned()),
            ..self.clone()
        }
    }

    /// The same with a preference (RFC 7240).
    #[must_use]
    pub fn preferring(&self, prefer: &'static str) -> Self {
        Self {
            prefer: Some(prefer),
            ..self.clone()
        }
    }

    /// # Errors
    /// If there is no whole answer: what became of the request is then unknown.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.call(Method::GET, path, None).await
    }

    /// # Errors
    /// If there is no whole answer: what became of the request is then unknown.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.call(Method::POST, path, Some(body.to_string().into_bytes()))
            .await
    }

    /// Sends bytes as they are, as a JSON body.
    ///
    /// # Errors
    /// If there is no whole answer: what became of the request is then unknown.
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Result<Answer> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// # Errors
    /// If there is no whole answer.
    pub async fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        let request = self.http.get(format!("{}{path}", self.url));
        Ok(request.send().await?.error_for_status()?.bytes().await?.to_vec())
    }

    async fn call(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Answer> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token);
        if let Some(project) = &self.project {
            request = request.header("x-portcullis-project", project);
        }
        if let Some(prefer) = self.prefer {
            request = request.header("prefer", prefer);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = response.bytes().await?;
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer {
            status,
            retry_after,
            body,
        })
    }
}
