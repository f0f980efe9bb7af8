//! What a TLS certificate says of itself. It was verified by the handshake, or the handshake failed: here it is only
//! read, to be shown and to tell when it ends.

use std::error::Error;

use jiff::Timestamp;
use kernel::Digest;
use rustls::CertificateError;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

/// A certificate's bytes; those of the web have one to three KiB.
const CERTIFICATE_BYTES_MAX: usize = 64 << 10;

/// A certificate that a dependency showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// SHA-256 over its DER, in hexadecimal, as browsers and openssl print it.
    pub fingerprint: String,
    pub issuer: String,
    pub not_after: Timestamp,
}

/// Reads the DER of a certificate (RFC 5280). `None` if it is not one.
#[must_use]
pub fn read(der: &[u8]) -> Option<Shown> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return None;
    }
    let certificate = Certificate::from_der(der).ok()?;
    let body = certificate.tbs_certificate;
    let seconds = i64::try_from(body.validity.not_after.to_unix_duration().as_secs()).ok()?;
    let fingerprint = Digest::of(der).to_string();
    let (_, hexadecimal) = fingerprint.split_once(':')?;
    Some(Shown {
        fingerprint: hexadecimal.to_owned(),
        issuer: kernel::words(&body.issuer.to_string()),
        not_after: Timestamp::from_second(seconds).ok()?,
    })
}

/// The certificate of an answer that came over TLS.
pub(crate) fn of(response: &reqwest::Response) -> Option<Shown> {
    let tls = response.extensions().get::<reqwest::tls::TlsInfo>()?;
    read(tls.peer_certificate()?)
}

/// A certificate that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub why: String,
    /// It was the right one, and has ended.
    pub expired: bool,
}

/// Why a certificate was refused, if that is why an exchange failed.
pub(crate) fn refused(error: &reqwest::Error) -> Option<Refused> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        let tls = in_io(current).or_else(|| current.downcast_ref());
        if let Some(refused @ rustls::Error::InvalidCertificate(reason)) = tls {
            return Some(Refused {
                why: kernel::words(&refused.to_string()),
                expired: matches!(
                    reason,
                    CertificateError::Expired | CertificateError::ExpiredContext { .. }
                ),
            });
        }
        cause = current.source();
    }
    None
}

/// The TLS error inside an I/O error: `source()` of an I/O error passes over what it wraps.
pub(crate) fn in_io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut inside = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    while let Some(inner) = inside
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
    {
        inside = inner;
    }
    inside.downcast_ref()
}
