//! Caps on what comes from outside, shared by those who write and those who read.

/// A request body of the API, in bytes: the largest batch of 1,000 references fits four times.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// A manifest or index, in bytes: what the distribution specification asks registries to accept.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// A bundle or signature layer that we read, in bytes: larger than any with 1,000 subjects, small enough to hold.
pub const SIGNATURE_BLOB_BYTES_MAX: usize = 1 << 20;
/// Referrers that are looked at for one image; one more is an error that names this cap.
pub const REFERRERS_MAX: usize = 256;
/// Nesting of JSON that we parse.
pub const JSON_DEPTH_MAX: usize = 64;
/// Images in one batch request.
pub const BATCH_ITEMS_MAX: usize = 1_000;
/// Manifests under one index that `recursive` follows, over all levels.
pub const INDEX_MANIFESTS_MAX: usize = 256;
/// Subjects of one release statement: a whole batch; cosign and sigstore-go read up to 1,024.
pub const RELEASE_SUBJECTS_MAX: usize = BATCH_ITEMS_MAX;
/// Rows of one page of a list.
pub const PAGE_ROWS_MAX: u32 = 200;

/// Whether `json` nests deeper than [`JSON_DEPTH_MAX`], found without recursion and without building a
/// value, so that it can run before any parser.
#[must_use]
pub fn too_deep(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_strings_only() {
        assert!(!too_deep("[".repeat(64).as_bytes()));
        assert!(too_deep("[".repeat(65).as_bytes()));
        assert!(too_deep("[".repeat(10_000).as_bytes()));
        assert!(!too_deep(
            format!("\"{}\\\"{}\"", "[".repeat(60), "[".repeat(60)).as_bytes()
        ));
        assert!(!too_deep("[[]]".repeat(1_000).as_bytes()));
    }
}
