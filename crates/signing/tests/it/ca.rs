//! A certificate authority as Fulcio is one: root, intermediate, short-lived certificates with the identity and the
//! promise of a certificate transparency log (RFC 6962) in them.

use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use jiff::Timestamp;
use kernel::Digest;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use serde_json::{Value, json};
use signing::key::LocalSigner;
use x509_cert::der::{Decode as _, Encode as _};

use crate::forge::{ago, b64};

pub const IDENTITY: &str = "builder@example.com";
pub const ISSUER: &str = "https://issuer.example.com";
const ISSUER_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 57264, 1, 8];
const SCT_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2];

/// A window of validity, in seconds before now.
pub type Window = (i64, i64);

pub struct Ca {
    root: Certificate,
    intermediate: Certificate,
    key: KeyPair,
    params: CertificateParams,
    log: EcdsaKeyPair,
}

/// A certificate with its key.
pub struct Issued {
    pub der: Vec<u8>,
    pub pem: String,
    pub signer: LocalSigner,
}

fn params(name: &str, window: Window) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let time = |time: Timestamp| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(time.as_second()).unwrap())
    };
    (params.not_before, params.not_after) = (time(ago(window.0)), time(ago(window.1)));
    params
}

fn authority(name: &str, window: Window) -> CertificateParams {
    let mut params = params(name, window);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params
}

impl Ca {
    pub fn new(root: Window, intermediate: Window) -> Self {
        let (root_params, root_key) = (authority("root", root), KeyPair::generate().unwrap());
        let root = root_params.self_signed(&root_key).unwrap();
        let (params, key) = (
            authority("intermediate", intermediate),
            KeyPair::generate().unwrap(),
        );
        let intermediate = params
            .signed_by(&key, &Issuer::new(root_params, root_key))
            .unwrap();
        let log = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        Self {
            root,
            intermediate,
            key,
            params,
            log,
        }
    }

    pub fn intermediate_der(&self) -> &[u8] {
        self.intermediate.der()
    }

    pub fn intermediate_pem(&self) -> String {
        self.intermediate.pem()
    }

    /// Its part of a trusted root; `whole` names the intermediate too, as the public one does.
    pub fn trusted(&self, tlogs: &[Value], whole: bool) -> Value {
        let certificate = |certificate: &Certificate| json!({ "rawBytes": b64(certificate.der()) });
        let mut chain = vec![certificate(&self.root)];
        if whole {
            chain.insert(0, certificate(&self.intermediate));
        }
        let window = json!({ "start": ago(10_000).to_string() });
        let spki = self.log_spki();
        json!({
            "tlogs": tlogs,
            "certificateAuthorities": [{
                "subject": { "organization": "test", "commonName": "root" }, "uri": "https://ca.example",
                "certChain": { "certificates": chain }, "validFor": window,
            }],
            "ctlogs": [{
                "baseUrl": "https://ct.example", "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64(&spki), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": window,
                },
                "logId": { "keyId": b64(Digest::of(&spki).as_bytes()) },
            }],
        })
    }

    fn log_spki(&self) -> Vec<u8> {
        AsDer::<PublicKeyX509Der<'_>>::as_der(self.log.public_key())
            .unwrap()
            .as_ref()
            .to_vec()
    }

    pub fn issue(&self, window: Window) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut leaf = params("leaf", window);
        leaf.serial_number = Some(SerialNumber::from(vec![1]));
        leaf.subject_alt_names = vec![SanType::Rfc822Name(IDENTITY.try_into().unwrap())];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let issuer = [&[0x0c, u8::try_from(ISSUER.len()).unwrap()], ISSUER.as_bytes()].concat();
        leaf.custom_extensions
            .push(CustomExtension::from_oid_content(ISSUER_OID, issuer));
        let by = Issuer::from_params(&self.params, &self.key);
        // What the log promises is the certificate without the promise.
        let before = leaf.signed_by(&key, &by).unwrap();
        let before = x509_cert::Certificate::from_der(before.der())
            .unwrap()
            .tbs_certificate
            .to_der()
            .unwrap();
        let promise = self.promise(&before, ago(window.0));
        leaf.custom_extensions
            .push(CustomExtension::from_oid_content(SCT_OID, promise));
        let certificate = leaf.signed_by(&key, &by).unwrap();
        Issued {
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            signer: LocalSigner::from_pkcs8(&key.serialize_der()).unwrap(),
        }
    }

    /// A list of one signed certificate timestamp (RFC 6962, section 3.2 and 3.3), DER.
    fn promise(&self, certificate: &[u8], time: Timestamp) -> Vec<u8> {
        let time = u64::try_from(time.as_millisecond()).unwrap().to_be_bytes();
        let issuer = Digest::of(&self.key.subject_public_key_info());
        let length = u32::try_from(certificate.len()).unwrap().to_be_bytes();
        let message = [
            &[0, 0],
            &time[..],
            &[0, 1],
            issuer.as_bytes(),
            &length[1..],
            certificate,
            &[0, 0],
        ]
        .concat();
        let signature = self.log.sign(&SystemRandom::new(), &message).unwrap();
        let log = Digest::of(&self.log_spki());
        let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
        let sct = [
            &[0][..],
            log.as_bytes(),
            &time[..],
            &[0, 0, 4, 3],
            &sized(signature.as_ref()),
        ]
        .concat();
        let list = sized(&sized(&sct));
        assert!(list.len() < 256);
        match u8::try_from(list.len()).unwrap() {
            short @ 0..=0x7f => [&[4, short], &list[..]].concat(),
            long => [&[4, 0x81, long], &list[..]].concat(),
        }
    }
}
