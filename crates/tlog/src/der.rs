//! Just enough DER (ITU-T X.690) to see what kind of key a SubjectPublicKeyInfo holds, and to find it in a
//! certificate. The signature check itself parses the key again, in aws-lc.

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xa0;

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const P521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// The kinds of key that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    P256,
    P384,
    P521,
    Rsa { bits: usize },
    Ed25519,
}

/// One element: its tag, its content, and what follows it. Only definite lengths of minimal form.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit));
            let minimal = digits[0] != 0 && length >= 0x80;
            (minimal.then_some(length)?, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    element(bytes)
        .filter(|(found, ..)| *found == tag)
        .map(|(_, content, rest)| (content, rest))
}

/// What kind of key `spki` holds (RFC 5280, section 4.1.2.7). `None` if it is not exactly one
/// SubjectPublicKeyInfo of a known kind.
#[must_use]
pub fn key_kind(spki: &[u8]) -> Option<KeyKind> {
    let (content, after) = expect(spki, SEQUENCE)?;
    let (algorithm, rest) = expect(content, SEQUENCE)?;
    let (key, end) = expect(rest, BIT_STRING)?;
    if !after.is_empty() || !end.is_empty() {
        return None;
    }
    let (identifier, parameters) = expect(algorithm, OBJECT_IDENTIFIER)?;
    match identifier {
        EC_PUBLIC_KEY => match expect(parameters, OBJECT_IDENTIFIER)? {
            (P256, []) => Some(KeyKind::P256),
            (P384, []) => Some(KeyKind::P384),
            (P521, []) => Some(KeyKind::P521),
            _ => None,
        },
        RSA => {
            let (&0, key) = key.split_first()? else {
                return None;
            };
            let (numbers, _) = expect(key, SEQUENCE)?;
            let (modulus, _) = expect(numbers, INTEGER)?;
            let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            let bits = modulus.get(zeros).map_or(0, |top| {
                (modulus.len() - zeros) * 8 - top.leading_zeros() as usize
            });
            Some(KeyKind::Rsa { bits })
        }
        ED25519 => Some(KeyKind::Ed25519),
        _ => None,
    }
}

/// The SubjectPublicKeyInfo inside a certificate (RFC 5280, section 4.1), with its own tag and length.
/// Nothing else of the certificate is checked.
#[must_use]
pub fn certificate_spki(certificate: &[u8]) -> Option<&[u8]> {
    let (content, after) = expect(certificate, SEQUENCE)?;
    let (mut fields, _) = expect(content, SEQUENCE)?;
    if !after.is_empty() {
        return None;
    }
    if let Some((_, rest)) = expect(fields, VERSION) {
        fields = rest;
    }
    // serial number, signature algorithm, issuer, validity, subject
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE] {
        (_, fields) = expect(fields, tag)?;
    }
    let (_, rest) = expect(fields, SEQUENCE)?;
    Some(&fields[..fields.len() - rest.len()])
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair};
    use proptest::prelude::*;

    use super::*;

    fn spki(algorithm: &'static signature::EcdsaSigningAlgorithm) -> Vec<u8> {
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
            .unwrap()
            .as_ref()
            .to_vec()
    }

    #[test]
    fn each_kind_is_seen() {
        assert_eq!(
            key_kind(&spki(&signature::ECDSA_P256_SHA256_ASN1_SIGNING)),
            Some(KeyKind::P256)
        );
        assert_eq!(
            key_kind(&spki(&signature::ECDSA_P384_SHA384_ASN1_SIGNING)),
            Some(KeyKind::P384)
        );
        assert_eq!(
            key_kind(&spki(&signature::ECDSA_P521_SHA512_ASN1_SIGNING)),
            Some(KeyKind::P521)
        );
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let rsa = AsDer::<PublicKeyX509Der<'_>>::as_der(rsa.public_key()).unwrap();
        assert_eq!(key_kind(rsa.as_ref()), Some(KeyKind::Rsa { bits: 2048 }));
        let mut trailing = spki(&signature::ECDSA_P256_SHA256_ASN1_SIGNING);
        trailing.push(0);
        assert_eq!(key_kind(&trailing), None);
    }

    #[test]
    fn the_key_is_found_in_a_certificate() {
        let key = spki(&signature::ECDSA_P256_SHA256_ASN1_SIGNING);
        let wrap = |tag: u8, content: Vec<u8>| {
            let length = u8::try_from(content.len()).unwrap();
            let head = if length < 0x80 {
                vec![tag, length]
            } else {
                vec![tag, 0x81, length]
            };
            [head, content].concat()
        };
        let empty = || vec![SEQUENCE, 0];
        let fields = [
            vec![VERSION, 3, INTEGER, 1, 2, INTEGER, 1, 9],
            empty(),
            empty(),
            empty(),
            empty(),
            key.clone(),
        ];
        let certificate = wrap(
            SEQUENCE,
            [wrap(SEQUENCE, fields.concat()), empty(), vec![BIT_STRING, 1, 0]].concat(),
        );
        assert_eq!(certificate_spki(&certificate), Some(key.as_slice()));
        assert_eq!(certificate_spki(&certificate[..certificate.len() - 1]), None);
        assert_eq!(certificate_spki(&key), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), tag in prop::sample::select(vec![0x30_u8, 0x02, 0x03, 0x06]),
        ) {
            let _ = (key_kind(&bytes), certificate_spki(&bytes).is_some());
            bytes.splice(0..0, [0x30, 0x0d, tag, 0x03]);
            let _ = (key_kind(&bytes), certificate_spki(&bytes).is_some());
        }

        #[test]
        fn a_changed_key_is_read_without_a_panic(at in 0_usize..91, value: u8) {
            let mut key = [
                &[0x30, 0x59, 0x30, 0x13, 0x06, 0x07][..], EC_PUBLIC_KEY, &[0x06, 0x08], P256, &[0x03, 0x42, 0, 4], &[9; 64],
            ].concat();
            prop_assert_eq!(key_kind(&key), Some(KeyKind::P256));
            key[at] = value;
            let _ = key_kind(&key);
        }
    }
}
