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
const HALF_BODY: &[u8] = b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
/// Longer than anything here may take, in seconds.
const SOON_SECONDS: u64 = 8;

struct Running {
    address: SocketAddr,
    drain: CancellationToken,
    task: JoinHandle<Result<(), ListenError>>,
}

async fn start(connections: usize) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    run(
        listener,
        connections,
        Arc::new(SystemClock::new()),
        CancellationToken::new(),
    )
}

fn run(
    listener: TcpListener,
    connections: usize,
    clock: Arc<dyn Clock>,
    drain: CancellationToken,
) -> Running {
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
        .route("/livez", get(|| async { "alive\n" }))
        .route("/thread", get(whose))
        .route("/json", post(|Json(_): Json<serde_json::Value>| async {}));
    let address = listener.local_addr().unwrap();
    let limits = Limits {
        connections,
        patience,
        vital: &["/livez"],
    };
    let task = tokio::spawn(serve(listener, router, limits, clock, drain.clone()));
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
    let expected = format!("Some(\"connections\") {}\n", (own + FRONT.nice).min(19));
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
    let answer = all(server.send(HALF_BODY).await).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("PC1805"),
        "{answer}"
    );
    // A byte now and then does not buy more than the whole body's time.
    let (mut read, mut write) = server.send(HALF_BODY).await.into_split();
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
    // Each answer is short; that they are never read fills the buffers in the end, however large they are.
    let asks = ASK.repeat(1 << 14);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let write = async { while stream.write_all(&asks).await.is_ok() {} };
    let closed = timeout(Duration::from_secs(SOON_SECONDS), write);
    closed.await.expect("the server closes");
}

/// What HTTP/2 begins with, and empty settings (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// RFC 9113, section 6.7.
const PING: &[u8] = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00portcull";

/// `GET /fast` on a stream (RFC 9113, section 6.2; RFC 7541: method, scheme and path by the static table, no index).
fn headers(stream: u8) -> Vec<u8> {
    let block = b"\x82\x86\x04\x05/fast\x01\x01x";
    let mut frame = vec![0, 0, block.len() as u8, 1, 0x5, 0, 0, 0, stream];
    frame.extend_from_slice(block);
    frame
}

/// Reads frames until one with data on this stream.
async fn data(read: &mut (impl tokio::io::AsyncRead + Unpin), stream: u8) -> std::io::Result<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        read.read_exact(&mut head).await?;
        let mut body = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        read.read_exact(&mut body).await?;
        if head[3] == 0 && head[8] == stream {
            return Ok(body);
        }
    }
}

#[tokio::test]
async fn http_2_without_tls_is_spoken_too() {
    let server = start(10).await;
    let mut stream = server.send(PREFACE).await;
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the answer is not a SETTINGS frame: {frame:?}");
}

#[tokio::test]
async fn pings_of_http_2_are_no_half_request_and_keep_nothing_for_ever() {
    let server = start(10).await;
    let (mut read, mut write) = server.send(PREFACE).await.into_split();
    write.write_all(&headers(1)).await.unwrap();
    assert_eq!(data(&mut read, 1).await.unwrap(), b"ok\n");
    // Longer than a header may take, and than the second after which somebody looks.
    for _ in 0..19 {
        sleep(Duration::from_millis(100)).await;
        write
            .write_all(PING)
            .await
            .expect("a ping was taken for half a request");
    }
    write.write_all(&headers(3)).await.unwrap();
    let second = timeout(Duration::from_secs(SOON_SECONDS), data(&mut read, 3));
    assert_eq!(
        second.await.unwrap().expect("cut before it was idle for long"),
        b"ok\n"
    );
    let pings = tokio::spawn(async move {
        while write.write_all(PING).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let end = timeout(Duration::from_secs(SOON_SECONDS), data(&mut read, 5));
    assert!(end.await.expect("pings keep the connection for ever").is_err());
    pings.abort();
}

#[tokio::test]
async fn half_a_header_on_a_connection_that_was_kept_is_closed_soon() {
    let server = start(10).await;
    let mut kept = server.send(ASK).await;
    first(&mut kept).await;
    kept.write_all(HALF).await.unwrap();
    // An idle one would stay for two and a half seconds.
    let mut bytes = [0; 64];
    let closed = timeout(Duration::from_millis(2_200), kept.read(&mut bytes));
    assert_eq!(closed.await.expect("half a header stays").unwrap_or(0), 0);
}

#[tokio::test]
async fn whoever_waits_at_the_door_when_the_server_stops_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(ASK).await.unwrap();
        waiting.push(stream);
    }
    let drain = CancellationToken::new();
    drain.cancel();
    let server = run(listener, 200, Arc::new(SystemClock::new()), drain);
    for (number, stream) in waiting.into_iter().enumerate() {
        let answer = all(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "number {number}: {answer:?}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_arrives_though_the_request_comes_after_it_in_pieces() {
    let server = start(3).await;
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut stream = server.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        first(&mut stream).await;
        slow.push(stream);
    }
    for _ in 0..3 {
        let mut stream = server
            .send(b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n")
            .await;
        for _ in 0..4 {
            sleep(Duration::from_millis(20)).await;
            let piece = stream.write_all(&[b' '; 1_000]).await;
            piece.expect("a reset before all was sent");
        }
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer).await;
        read.expect("a reset instead of a 503");
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("PC1806"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn the_last_places_are_for_whoever_asks_whether_the_server_lives() {
    // Two of them are kept.
    let server = start(16).await;
    let mut slow = Vec::new();
    for _ in 0..14 {
        let mut stream = server.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        first(&mut stream).await;
        slow.push(stream);
    }
    let alive = b"GET /livez?verbose HTTP/1.1\r\nHost: x\r\n\r\n";
    for _ in 0..5 {
        // Everything else is refused there, and whoever says nothing gives way.
        let post = b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
        let refused = all(server.send(post).await).await;
        assert!(
            refused.starts_with("HTTP/1.1 503") && refused.contains("PC1806"),
            "{refused}"
        );
        let _halves = [server.send(HALF).await, server.send(HALF).await];
        let _bodies = [server.send(HALF_BODY).await, server.send(HALF_BODY).await];
        sleep(Duration::from_millis(50)).await;
        let answer = all(server.send(alive).await).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("alive\n"),
            "{answer}"
        );
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    drop(slow);
}

/// A clock that breaks.
struct Broken;

impl Clock for Broken {
    fn now(&self) -> jiff::Timestamp {
        panic!("a defect")
    }

    fn monotonic(&self) -> kernel::Monotonic {
        panic!("a defect")
    }
}

#[tokio::test]
async fn a_defect_that_ends_the_listener_is_no_orderly_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = run(listener, 10, Arc::new(Broken), CancellationToken::new());
    let ended = timeout(Duration::from_secs(SOON_SECONDS), server.task);
    let error = ended.await.expect("it ends").unwrap().unwrap_err();
    assert_eq!(kernel::Fault::code(&error).id, "PC1808");
    assert_ne!(kernel::Fault::kind(&error).exit_code(), 0);
    assert!(kernel::chain(&error).contains("a defect"), "{error:?}");
}
