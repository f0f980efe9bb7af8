//! A registry behind TLS with a certificate of its own authority.

use flow::Caller;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::Listener;
use registry::Options;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use signing::ports::{Registry as _, RegistryReason};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
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
pub async fn serve() -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (host, ca_pem, _) = serve_on(listener).await;
    (host, ca_pem)
}

async fn serve_on(listener: TcpListener) -> (String, String, JoinHandle<std::io::Result<()>>) {
    let key = rcgen::KeyPair::generate().unwrap();
    serve_until(listener, &key, 4_000).await
}

/// With the certificate of `key` that ends in this year.
async fn serve_until(
    listener: TcpListener,
    key: &rcgen::KeyPair,
    year: i32,
) -> (String, String, JoinHandle<std::io::Result<()>>) {
    let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let signed = params.self_signed(key).unwrap();
    let certificate = CertificateDer::from(signed.der().to_vec());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let fake = registry::Registry::memory(Options::default());
    fake.put_image("team/app", "v1", "hello").await.unwrap();
    let tls = Tls {
        listener,
        acceptor: TlsAcceptor::from(Arc::new(config)),
    };
    let task = tokio::spawn(axum::serve(tls, fake.router()).into_future());
    (host, signed.pem(), task)
}

#[tokio::test]
async fn p18_a_registry_whose_certificate_has_ended_is_named_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let (host, ca_pem, task) = serve_until(listener, &key, 4_000).await;
    let registry = RegistryConfig {
        plain_http: Some(false),
        ca_pem: Some(ca_pem),
        ..RegistryConfig::default()
    };
    let client = Arc::new(client(Config {
        registries: [(host.clone(), registry)].into(),
        ..Config::default()
    }));
    let image = format!("{host}/team/app:v1").parse().unwrap();
    client.manifest(Caller::LOCAL, &image).await.unwrap();
    let clock: Arc<dyn kernel::Clock> = Arc::new(kernel::SystemClock::new());
    let probes = upstream::oci::RegistryProbe::in_use(client.clone(), clock, probing::References::default());
    let probe = probes.now().remove(0);
    assert_eq!(probe.look().await.state, probing::State::Ok);
    task.abort();
    let _ = task.await;
    let _ended = serve_until(TcpListener::bind(address).await.unwrap(), &key, 2_001).await;
    let ended = probe.look().await;
    assert_eq!(ended.state, probing::State::Expired, "{ended:?}");
}

/// Shown to fail: without `certificate::refused`, the impostor is only UNREACHABLE.
#[tokio::test]
async fn p14_a_registry_that_does_not_prove_its_name_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (host, ca_pem, task) = serve_on(listener).await;
    let registry = RegistryConfig {
        plain_http: Some(false),
        ca_pem: Some(ca_pem),
        ..RegistryConfig::default()
    };
    let registries = [(host.clone(), registry)].into();
    let client = Arc::new(client(Config {
        registries,
        ..Config::default()
    }));
    let image = format!("{host}/team/app:v1").parse().unwrap();
    client.manifest(Caller::LOCAL, &image).await.unwrap();
    let clock: Arc<dyn kernel::Clock> = Arc::new(kernel::SystemClock::new());
    let probes = upstream::oci::RegistryProbe::in_use(client.clone(), clock, probing::References::default());
    let probe = probes.now().remove(0);
    let own = probe.look().await;
    assert_eq!(own.state, probing::State::Ok, "{own:?}");
    assert!(
        own.found.contains("certificate by") && own.certificate_days_left > Some(1_000),
        "{own:?}"
    );
    task.abort();
    let _ = task.await;
    // Another certificate for the same name, by somebody who is not trusted for it.
    let _other = serve_on(TcpListener::bind(address).await.unwrap()).await;
    let impostor = probe.look().await;
    assert_eq!(impostor.state, probing::State::WrongRegistry, "{impostor:?}");
    assert!(impostor.found.contains("certificate"), "{impostor:?}");
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
