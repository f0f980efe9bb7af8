//! What stands between a command and its server: somebody who changes answers, and a server that dies in one.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::{Ran, Server, Setup, run};
use serde_json::{Value, json};

use crate::ledger::{Ledger, Signatures, send};

/// Answers each connection, one request each, with what `answer` makes of the request's head; where it listens.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let bytes = answer(&head(&mut stream));
            let _ = stream.write_all(&bytes);
        }
    });
    format!("http://{address}")
}

/// Reads a request with its body; gives its head.
fn head(stream: &mut TcpStream) -> String {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return head.to_owned();
            }
        }
        match stream.read(&mut piece).unwrap() {
            0 => return text,
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

/// Passes GET requests on to `server`; counts those of tiles, and has each answer changed by `change`.
fn proxy(
    server: &Server,
    change: impl Fn(&str, &mut Vec<u8>) + Send + 'static,
) -> (String, Arc<AtomicUsize>) {
    let (behind, tiles) = (server.url(), Arc::new(AtomicUsize::new(0)));
    let seen = tiles.clone();
    let url = serve(move |head| {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if path.contains("/tile/") {
            seen.fetch_add(1, Ordering::Relaxed);
        }
        let address = behind.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        change(&path, &mut answer);
        answer
    });
    (url, tiles)
}

fn at(url: &str, server: &Server, args: &[&str]) -> Ran {
    run(server.command().env("PORTCULLIS_SERVER", url).args(args)).unwrap()
}

/// A server with a log of so many entries.
async fn logged(entries: usize) -> Server {
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let ledger = Ledger::new(&api).await;
    let mut signatures = Signatures::new();
    let requests: Vec<Value> = (0..entries).map(|_| signatures.request()).collect();
    assert_eq!(send(&api, &ledger, &requests).await.len(), entries);
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_entry_is_not_printed_and_a_proof_needs_few_tiles() {
    let server = logged(1_100).await;
    let (honest, tiles) = proxy(&server, |_, _| {});
    for args in [&["log", "entry", "300"][..], &["log", "proof", "300"]] {
        tiles.store(0, Ordering::Relaxed);
        let ran = at(&honest, &server, args).expect_ok();
        assert_eq!(ran.stdout, server.run(args).unwrap().expect_ok().stdout);
        let asked = tiles.load(Ordering::Relaxed);
        assert!((1..=6).contains(&asked), "{args:?}: {asked} tiles");
    }
    let (forging, _) = proxy(&server, |path, answer| {
        let word = b"\"hashedrekord\"";
        let found = answer.windows(word.len()).position(|window| window == word);
        if let (true, Some(found)) = (path.contains("/tile/entries/"), found) {
            answer[found + 1] = b'H';
        }
    });
    for args in [
        &["log", "entry", "0"][..],
        &["log", "proof", "0"],
        &["log", "fsck"],
    ] {
        let ran = at(&forging, &server, args);
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.text());
        assert!(
            ran.stderr.contains("tile/entries/000"),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(!ran.stdout.contains("Hashedrekord"), "{args:?}: {}", ran.stdout);
    }
    let gone = server.run(&["log", "entry", "1100"]).unwrap();
    assert_eq!(gone.code, Some(4), "{}", gone.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_not_replaced_by_another_log() {
    let (a, b) = (logged(3).await, logged(1).await);
    let copy = a.folder().join("copy");
    let to = copy.display().to_string();
    a.run(&["log", "export", &to]).unwrap().expect_ok();
    let kept = || ["checkpoint", "log.pub"].map(|name| std::fs::read(copy.join(name)).unwrap());
    let before = kept();
    let ran = b.run(&["log", "export", &to]).unwrap();
    assert_eq!(ran.code, Some(7), "{}", ran.text());
    for word in ["PC1418", "3 entries", "1 entries", "another log", "hint:"] {
        assert!(ran.stderr.contains(word), "{word} is not in {}", ran.stderr);
    }
    assert_eq!(before, kept());
    a.run(&["log", "export", &to]).unwrap().expect_ok();
    a.run(&["log", "fsck", &to]).unwrap().expect_ok();

    // Damage of a copy names the right file and is no "try later".
    let bundle = copy.join("tile/entries/000.p/3");
    let mut bytes = std::fs::read(&bundle).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&bundle, bytes).unwrap();
    for args in [
        &["log", "fsck", &to][..],
        &["log", "proof", "0", "--folder", &to],
        &["log", "export", &to],
    ] {
        let ran = a.run(args).unwrap();
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.text());
        assert!(
            ran.stderr.contains("tile/entries/000.p/3"),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("tile/0/000"), "{args:?}: {}", ran.stderr);
    }
    std::fs::write(copy.join("checkpoint"), "no note").unwrap();
    for args in [
        &["log", "fsck", &to][..],
        &["log", "proof", "0", "--folder", &to],
        &["log", "export", &to],
    ] {
        let ran = a.run(args).unwrap();
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.text());
        assert!(ran.stderr.contains("PC1402"), "{args:?}: {}", ran.stderr);
    }
    assert_eq!(std::fs::read(copy.join("checkpoint")).unwrap(), b"no note");
}

/// Answers a batch with its first two images and dies.
fn dying() -> String {
    serve(|_| {
        let line = |number: u32| {
            let image = format!("registry.example/app@sha256:{number:064}");
            json!({ "image": image, "signature": { "image": image, "log_index": number } })
        };
        let piece = format!("{}\n{}\n", line(0), line(1));
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked";
        format!("{head}\r\n\r\n{:x}\r\n{piece}\r\n", piece.len()).into_bytes()
    })
}

#[test]
fn a_server_that_dies_in_a_batch_leaves_the_tally_and_what_to_do() {
    let server = Server::start(Setup::default()).unwrap();
    let images = ["a", "b", "c"].map(|name| format!("registry.example/{name}:1"));
    let mut args = vec!["sign"];
    args.extend(images.iter().map(String::as_str));
    let url = dying();
    let ran = at(&url, &server, &args);
    assert_eq!(ran.code, Some(6), "{}", ran.text());
    assert_eq!(ran.stdout.matches("signed   registry.example/app@").count(), 2);
    for word in [
        "2 signed, 0 already signed, 0 failed",
        "for 2 of 3 images and went away",
        "run the same command again",
    ] {
        assert!(ran.stderr.contains(word), "{word} is not in {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("chunk"), "{}", ran.stderr);
    let ran = at(&url, &server, &[&["-o", "json"][..], &args].concat());
    let lines: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, lines.as_array().unwrap().len()), (Some(6), 2));
    assert!(
        ran.stderr.contains("run the same command again"),
        "{}",
        ran.stderr
    );
}
