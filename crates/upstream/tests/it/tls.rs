//! A registry behind TLS with a certificate of its own authority.

use flow::Caller;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::Listener;
use registry::Options;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use signing::ports::{Registry as _, RegistryReason};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use upstream::oci::{Config, RegistryConfig};

use super::{client, reason};

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // A client that does not trust us hangs up here.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Serves a registry with an image behind TLS until the test's runtime ends; its address and the authority.
async fn serve() -> (String, String) {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = CertificateDer::from(certified.cert.der().to_vec());
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let fake = registry::Registry::memory(Options::default());
    fake.put_image("team/app", "v1", "hello").await.unwrap();
    let tls = Tls {
        listener,
        acceptor: TlsAcceptor::from(Arc::new(config)),
    };
    tokio::spawn(axum::serve(tls, fake.router()).into_future());
    (host, certified.cert.pem())
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_for_its_registry_only() {
    let (host, ca_pem) = serve().await;
    let (other, _) = serve().await;
    let registry = |ca_pem| RegistryConfig {
        plain_http: Some(false),
        ca_pem,
        ..RegistryConfig::default()
    };
    let registries = [
        (host.clone(), registry(Some(ca_pem))),
        (other.clone(), registry(None)),
    ]
    .into();
    let client = client(Config {
        registries,
        ..Config::default()
    });
    client
        .manifest(Caller::LOCAL, &format!("{host}/team/app:v1").parse().unwrap())
        .await
        .unwrap();
    let refused = reason(
        client
            .manifest(Caller::LOCAL, &format!("{other}/team/app:v1").parse().unwrap())
            .await,
    );
    let RegistryReason::Unavailable(text) = refused else {
        panic!("{refused:?}")
    };
    assert!(text.contains("certificate"), "{text}");
}
