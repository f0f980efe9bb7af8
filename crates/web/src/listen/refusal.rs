//! Saying no in an orderly way: a 503 that arrives.
//!
//! A socket that is closed with unread bytes in it sends a reset, and the reset takes away what was written before it
//! (RFC 9112, section 9.6). So whoever is refused is read from for a moment after the answer.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use kernel::{Code, Fault, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::codes;
use crate::Problem;

/// How long whoever is refused is read from, in milliseconds: a round trip around the world, twice.
const LINGER_MS_MAX: u64 = 1_000;
/// How many of them at once: they take descriptors of those that are kept for our own work, of which there are 64 at
/// least. Whoever is refused beside them may get a reset.
const LINGERING_MAX: usize = 16;
/// How much of what they send is read, in bytes; most requests are a hundredth of it.
const LINGER_BYTES_MAX: usize = 64 << 10;
/// After how many seconds it makes sense to come again.
const RETRY_AFTER: &str = "2";
const CONTENT_TYPE: &str = "application/problem+json";

/// Why a connection is refused, or a request on one that is kept for others.
#[derive(Debug, thiserror::Error)]
#[error("every connection that the server can have is at work")]
struct Full;

impl Fault for Full {
    fn kind(&self) -> Kind {
        Kind::Overloaded
    }

    fn code(&self) -> &'static Code {
        &codes::FULL
    }
}

/// The answer to whoever finds no place.
pub(super) struct Refusal {
    body: String,
    /// The same as a whole message (RFC 9112), for a connection that is not served.
    message: Arc<str>,
    lingering: Arc<Semaphore>,
}

impl Refusal {
    pub(super) fn new() -> Self {
        let mut document = Problem::quiet(&Full).document().clone();
        document.status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
        let body = document.render();
        let message = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: {CONTENT_TYPE}\r\nRetry-After: {RETRY_AFTER}\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Self {
            body,
            message: message.into(),
            lingering: Arc::new(Semaphore::new(LINGERING_MAX)),
        }
    }

    /// Refuses a connection.
    pub(super) fn say(&self, stream: TcpStream) {
        let message = self.message.clone();
        match self.lingering.clone().try_acquire_owned() {
            Ok(permit) => drop(tokio::spawn(async move {
                let _permit = permit;
                // Whoever does not want to hear it has lost nothing.
                let _ = timeout(Duration::from_millis(LINGER_MS_MAX), linger(stream, &message)).await;
            })),
            Err(_) => drop(at_once(stream, &message)),
        }
    }

    /// Refuses a request, when its body is there: it was sent before the answer can be read.
    pub(super) async fn answer(&self, body: Body) -> Response {
        let body = Limited::new(body, LINGER_BYTES_MAX).collect();
        let _ = timeout(Duration::from_millis(LINGER_MS_MAX), body).await;
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        response
    }
}

async fn linger(mut stream: TcpStream, message: &str) -> std::io::Result<()> {
    stream.write_all(message.as_bytes()).await?;
    stream.shutdown().await?;
    let (mut bytes, mut left) = ([0; 4_096], LINGER_BYTES_MAX);
    while left > 0 {
        match stream.read(&mut bytes).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

/// Without waiting for anything.
fn at_once(stream: TcpStream, message: &str) -> std::io::Result<()> {
    let mut stream = stream.into_std()?;
    stream.write_all(message.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let (mut bytes, mut left) = ([0; 4_096], LINGER_BYTES_MAX);
    while left > 0 {
        match stream.read(&mut bytes)? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}
