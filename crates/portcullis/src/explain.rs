//! Every code with its page, offline.

use kernel::Code;

use crate::codes;

/// Every code of the program, in order.
pub fn all() -> Vec<&'static Code> {
    let mut all: Vec<&Code> = [
        &[&kernel::reference_codes::REFERENCE][..],
        store::codes::ALL,
        store::archive::codes::ALL,
        crate::backup::codes::ALL,
        signing::codes::ALL,
        signing::ports::codes::ALL,
        tlog::codes::ALL,
        upstream::oci::codes::ALL,
        upstream::rekor::codes::ALL,
        upstream::issuer::codes::ALL,
        access::codes::ALL,
        access::oidc::codes::ALL,
        web::body_codes::ALL,
        web::route::codes::ALL,
        web::listen::codes::ALL,
        flow::codes::ALL,
        codes::ALL,
    ]
    .concat();
    all.sort_by_key(|code| code.id);
    all
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_code_stands_once_and_has_its_page() {
        let all = super::all();
        for pair in all.windows(2) {
            assert_ne!(pair[0].id, pair[1].id);
        }
        for code in all {
            assert!(code.id.len() == 6 && code.id.starts_with("PC"), "{}", code.id);
            assert!(
                code.explanation.len() > 40 && !code.hint.is_empty(),
                "{}",
                code.id
            );
        }
    }
}
