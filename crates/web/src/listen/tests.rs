//! The listener on a real socket, with little patience.

use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use futures::StreamExt as _;
use kernel::SystemClock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::Json;

const ASK: &[u8] = b"GET /fast HTTP/1.1\r\nHost: x\r\n\r\n";
const HALF: &[u8] = b"GET /fast HTTP/1.1\r\nHos";
/// Longer than anything here may take, in seconds.
const SOON_SECONDS: u64 = 8;

struct Running {
    address: SocketAddr,
    drain: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

async fn start(connections: usize) -> Running {
    let ms = Duration::from_millis;
    let patience = Patience {
        header: ms(300),
        idle: ms(2_500),
        reader: ms(1_000),
        body: ms(300),
        whole_body: ms(2_000),
        body_in_a_crowd: ms(200),
    };
    let slow = || async {
        let pieces = futures::stream::iter(0..6).then(|number| async move {
            sleep(Duration::from_millis(400)).await;
            Ok::<_, Infallible>(Bytes::from(format!("{number}\n")))
        });
        Body::from_stream(pieces)
    };
    let router = Router::new()
        .route("/fast", get(|| async { "ok\n" }))
        .route("/slow", get(slow))
        .route("/thread", get(whose))
        .route("/json", post(|Json(_): Json<serde_json::Value>| async {}));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, drain) = (listener.local_addr().unwrap(), CancellationToken::new());
    let limits = Limits {
        connections,
        patience,
    };
    let task = tokio::spawn(serve(
        listener,
        router,
        limits,
        Arc::new(SystemClock::new()),
        drain.clone(),
    ));
    Running { address, drain, task }
}

use std::convert::Infallible;

/// The name of the thread that answers, and how nice it is.
async fn whose() -> String {
    let nice = rustix::process::getpriority_process(None).unwrap();
    format!("{:?} {nice}\n", std::thread::current().name())
}

impl Running {
    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }
}

/// Everything up to where the server closes; a reset closes too.
async fn all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(Duration::from_secs(SOON_SECONDS), stream.read_to_end(&mut bytes));
    let _ = read.await.expect("the server closes the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first bytes of an answer.
async fn first(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4_096];
    let read = timeout(Duration::from_secs(SOON_SECONDS), stream.read(&mut bytes));
    let read = read.await.expect("the server answers").unwrap();
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

#[tokio::test]
async fn half_a_header_is_closed_and_an_idle_connection_may_ask_again() {
    let server = start(10).await;
    let (half, nothing) = (server.send(HALF).await, server.send(b"").await);
    let mut kept = server.send(ASK).await;
    assert!(first(&mut kept).await.starts_with("HTTP/1.1 200"));
    assert_eq!(all(half).await, "");
    assert_eq!(all(nothing).await, "");
    // More than the header's time has passed, less than the idle one's.
    kept.write_all(ASK).await.unwrap();
    assert!(first(&mut kept).await.starts_with("HTTP/1.1 200"));
    assert_eq!(all(kept).await, "");
}

#[tokio::test]
async fn who_comes_is_heard_on_threads_that_give_way_to_work() {
    let server = start(10).await;
    let mut stream = server.send(b"GET /thread HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let own = rustix::process::getpriority_process(None).unwrap();
    let expected = format!("Some(\"connections\") {}\n", (own + front::NICE).min(19));
    let answer = first(&mut stream).await;
    assert!(answer.ends_with(&expected), "{answer}: not {expected}");
}

#[tokio::test]
async fn the_longest_idle_gives_way_and_work_does_not() {
    let server = start(3).await;
    let mut halves = Vec::new();
    for _ in 0..12 {
        halves.push(server.send(HALF).await);
    }
    let mut asked = server.send(ASK).await;
    assert!(first(&mut asked).await.starts_with("HTTP/1.1 200"));
    // Nobody of those who work gives way: whoever comes is told, and they come to their end.
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut stream = server
            .send(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await;
        first(&mut stream).await;
        slow.push(stream);
    }
    let refused = all(server.send(b"").await).await;
    assert!(
        refused.starts_with("HTTP/1.1 503") && refused.contains("Retry-After") && refused.contains("PC1806")
    );
    for stream in slow {
        assert!(all(stream).await.contains("5\n"), "a long answer was cut");
    }
}

#[tokio::test]
async fn half_a_body_is_408_and_a_slow_one_too() {
    let server = start(10).await;
    let head = b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    let answer = all(server.send(head).await).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("PC1805"),
        "{answer}"
    );
    // A byte now and then does not buy more than the whole body's time.
    let (mut read, mut write) = server.send(head).await.into_split();
    let drip = tokio::spawn(async move {
        while write.write_all(b" ").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let mut bytes = [0; 4_096];
    let read = timeout(Duration::from_secs(SOON_SECONDS), read.read(&mut bytes));
    let read = read.await.expect("a dripping body ends").unwrap();
    assert!(String::from_utf8_lossy(&bytes[..read]).starts_with("HTTP/1.1 408"));
    drip.abort();
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_waits_for_nobody_else() {
    let server = start(10).await;
    let (_half, _nothing) = (server.send(HALF).await, server.send(b"").await);
    let mut kept = server.send(ASK).await;
    first(&mut kept).await;
    server.drain.cancel();
    let soon = timeout(Duration::from_secs(1), server.task);
    soon.await
        .expect("nobody works, so it ends within a second")
        .unwrap()
        .unwrap();

    let server = start(10).await;
    let slow = server.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    sleep(Duration::from_millis(100)).await;
    server.drain.cancel();
    assert!(all(slow).await.contains("5\n"));
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_never_reads_is_closed() {
    let server = start(10).await;
    // Each answer is short; that they are never read fills the buffers in the end.
    let asks = ASK.repeat(1 << 18);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let write = timeout(Duration::from_secs(SOON_SECONDS), stream.write_all(&asks));
    assert!(write.await.expect("the server closes").is_err());
}

#[tokio::test]
async fn http_2_without_tls_is_spoken_too() {
    let server = start(10).await;
    let mut stream = server
        .send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        .await;
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the answer is not a SETTINGS frame: {frame:?}");
}
