//! Connections that do nothing, against a server with few file descriptors.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use e2e::{Server, Setup};
use registry::{Options, Registry};

/// A request that never ends.
const HALF: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Half";
/// Descriptors of the server; 192 of them for connections.
const DESCRIPTORS: u32 = 256;
/// Half requests, more than there are descriptors.
const HALVES: usize = 300;
/// How long an answer may take while they are there.
const SOON: Duration = Duration::from_secs(5);

/// A request whose body never ends, to a call that needs no token.
const HALF_BODY: &[u8] =
    b"POST /api/v2/log/entries HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{";

fn half_open(server: &Server, half: &[u8]) -> TcpStream {
    let address = server.url().replace("http://", "");
    let mut stream = TcpStream::connect(address).unwrap();
    // One that was turned away already is as good.
    let _ = stream.write_all(half);
    stream
}

/// Whether the server has closed it.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.read(&mut [0; 1_024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is measured is how long a user waits"
)]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test(flavor = "multi_thread")]
async fn half_requests_neither_stop_the_server_nor_stay() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry.put_image("app", "v1", "app").await.unwrap();
    let image = format!("{}/app:v1", running.host());
    let server = Server::start(Setup {
        descriptors: Some(DESCRIPTORS),
        ..Setup::default()
    })
    .unwrap();
    server.run(&["sign", &image]).unwrap().expect_ok();
    let mut halves: Vec<TcpStream> = (0..HALVES).map(|_| half_open(&server, HALF)).collect();
    let begun = now();
    let alive = server.api().unwrap().get("/livez").await.unwrap();
    assert_eq!(alive.status, 200);
    server.run(&["verify", &image]).unwrap().expect_ok();
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());

    let gone = testkit::wait_for(|| halves.iter_mut().all(is_closed).then_some(()));
    assert!(gone.is_some(), "half requests are still open after a minute");
    let said = server.log();
    assert!(said.contains("too many connections"), "{said}");
    assert!(
        said.contains("connections that did nothing were closed"),
        "{said}"
    );
}

/// Half bodies are work for a moment: whoever comes in it is told to come again, and then they give way.
#[tokio::test(flavor = "multi_thread")]
async fn half_bodies_give_way_to_who_has_something_to_ask() {
    let server = Server::start(Setup {
        descriptors: Some(DESCRIPTORS),
        ..Setup::default()
    })
    .unwrap();
    let _halves: Vec<TcpStream> = (0..HALVES).map(|_| half_open(&server, HALF_BODY)).collect();
    let begun = now();
    let api = server.api().unwrap();
    let answered = async || matches!(api.get("/livez").await, Ok(answer) if answer.status == 200);
    while !answered().await {
        assert!(begun.elapsed() < SOON, "nobody gave way in {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_half_request_does_not_hold_a_stop_up() {
    for half in [HALF, HALF_BODY] {
        let mut server = Server::start(Setup::default()).unwrap();
        let _half = half_open(&server, half);
        let _nothing = TcpStream::connect(server.url().replace("http://", "")).unwrap();
        let begun = now();
        assert_eq!(server.stop().unwrap(), Some(0));
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "it took {:?}",
            begun.elapsed()
        );
    }
}
