//! The client of issuers of workloads' tokens.

use std::time::Duration;

use access::oidc::Fetch as _;
use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use tokio::net::TcpListener;
use upstream::issuer::{Client, IssuerError};

/// Serves plain HTTP on loopback until the test's runtime ends.
async fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new()
        .route("/keys", get(|| async { "x".repeat(1_000) }))
        .route("/elsewhere", get(|| async { Redirect::temporary("/keys") }))
        .route("/silent", get(std::future::pending::<()>));
    tokio::spawn(axum::serve(listener, router).into_future());
    url
}

fn client(issuer: &str, ca_pem: Option<&str>) -> Result<Client, IssuerError> {
    Client::new(&[(issuer.to_owned(), ca_pem.map(str::to_owned))])
}

#[tokio::test]
async fn a_document_is_read_within_its_cap_and_nothing_is_followed() {
    let issuer = serve().await;
    let client = client(&issuer, None).unwrap();
    let read = async |path: &str, most| {
        let url = format!("{issuer}{path}").parse().unwrap();
        client.get(&issuer, &url, most).await.map_err(|error| error.0)
    };
    assert_eq!(read("/keys", 1_000).await.unwrap().len(), 1_000);
    assert_eq!(
        read("/keys", 999).await.unwrap_err(),
        "/keys: more than 999 bytes"
    );
    let away = read("/elsewhere", 1_000).await.unwrap_err();
    assert!(away.contains("sends us elsewhere"), "{away}");
    let none = read("/nothing", 1_000).await.unwrap_err();
    assert!(none.contains("404"), "{none}");
    let url = "http://127.0.0.1:1/keys".parse().unwrap();
    assert!(
        client.get("http://127.0.0.1:1", &url, 1).await.is_err(),
        "it is not configured"
    );
}

#[tokio::test]
async fn an_issuer_that_is_silent_or_gone_is_given_up() {
    let issuer = serve().await;
    let client = client(&issuer, None).unwrap();
    let url = format!("{issuer}/silent").parse().unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(8), client.get(&issuer, &url, 1_000)).await;
    assert!(answer.unwrap().is_err());

    let gone = "http://127.0.0.1:1";
    let client = super::issuer::client(gone, None).unwrap();
    let url = format!("{gone}/keys").parse().unwrap();
    assert!(client.get(gone, &url, 1_000).await.is_err());
}

#[tokio::test]
async fn t25_addresses_that_are_never_called_are_refused_as_issuers() {
    for issuer in [
        "https://169.254.169.254",
        "https://[fe80::1]",
        "https://[fd00:ec2::254]",
        "https://100.100.100.200",
        "http://ci.example",
        "http://10.0.0.1",
        "nonsense",
    ] {
        let made = client(issuer, None);
        assert!(
            matches!(made, Err(IssuerError::Address { .. })),
            "{issuer}: {made:?}"
        );
    }
    for issuer in ["https://ci.example", "https://10.0.0.1", "http://127.0.0.1:1"] {
        client(issuer, None).unwrap();
    }
}

#[tokio::test]
async fn an_issuer_behind_tls_needs_its_certificate() {
    let (host, ca_pem) = super::tls::serve().await;
    let issuer = format!("https://{host}");
    // A registry answers here; what matters is who is believed.
    let url = format!("{issuer}/v2/").parse().unwrap();
    let known = client(&issuer, Some(&ca_pem)).unwrap();
    known.get(&issuer, &url, 1_000).await.unwrap();
    let unknown = client(&issuer, None).unwrap();
    let error = unknown.get(&issuer, &url, 1_000).await.unwrap_err();
    assert!(error.0.contains("certificate"), "{error}");
    for pem in [
        "",
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let made = client(&issuer, Some(pem));
        assert!(matches!(made, Err(IssuerError::Certificates { .. })), "{pem:?}");
    }
}
