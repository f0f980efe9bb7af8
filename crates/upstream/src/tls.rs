//! What every client here speaks, and whom it believes.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Why there is no TLS for a client.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificates that are to be believed besides.
    #[error("{0}")]
    Certificates(String),
    #[error("setting up TLS")]
    Setup(#[from] rustls::Error),
}

/// The TLS side of every client: aws-lc-rs, named here and not taken from a global.
///
/// # Errors
/// When the certificates or the protocol versions cannot be used.
pub fn tls(roots: &RootCertStore, ca_pem: Option<&str>) -> Result<ClientConfig, TlsError> {
    let mut roots = roots.clone();
    if let Some(pem) = ca_pem {
        let wrong = |why: String| TlsError::Certificates(why);
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            added += 1;
        }
        if added == 0 {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut tls = versions.with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_without_a_certificate_is_an_error() {
        for pem in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let answer = tls(&RootCertStore::empty(), Some(pem));
            assert!(matches!(answer, Err(TlsError::Certificates(_))), "{pem:?}");
        }
    }
}
