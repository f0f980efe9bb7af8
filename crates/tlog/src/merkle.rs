//! The Merkle tree of RFC 6962 section 2.1: hashes, which nodes a proof needs, and how a proof is checked.
//! Pure: nothing here knows where hashes are stored.

use aws_lc_rs::digest::{Context, SHA256};

/// A SHA-256 hash of a leaf or node.
pub type Hash = [u8; 32];

/// A node over a complete subtree: it covers the entries `index << height .. (index + 1) << height`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    pub height: u8,
    pub index: u64,
}

/// Why a proof does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the index is not in a tree of this size")]
    Range,
    #[error("the proof has the wrong number of hashes for this index and size")]
    Length,
    #[error("the hashes of the proof do not lead to the root")]
    Root,
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The root of the tree with no entries.
#[must_use]
pub fn empty_root() -> Hash {
    sha256(&[])
}

/// The hash of an entry.
#[must_use]
pub fn leaf_hash(body: &[u8]) -> Hash {
    sha256(&[&[0], body])
}

/// The hash of a node over its two children.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// The complete subtrees that together cover the entries `from..to`, left to right. `from..to` must be a
/// range that the definition of the tree splits off, as [`inclusion_ranges`] and [`consistency_ranges`] give.
#[must_use]
pub fn cover(from: u64, to: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut at = from;
    while at < to {
        let fits = (to - at).ilog2();
        let height = if at == 0 {
            fits
        } else {
            fits.min(at.trailing_zeros())
        };
        nodes.push(Node {
            height: height as u8,
            index: at >> height,
        });
        at += 1 << height;
    }
    nodes
}

/// The hash over the subtrees of [`cover`], given theirs. `None` for no hashes.
#[must_use]
pub fn fold(hashes: &[Hash]) -> Option<Hash> {
    let (last, rest) = hashes.split_last()?;
    Some(
        rest.iter()
            .rev()
            .fold(*last, |right, left| node_hash(left, &right)),
    )
}

/// Where the tree over `from..to` is split: the left part is the largest complete subtree.
fn middle(from: u64, to: u64) -> u64 {
    from + (1 << (to - from - 1).ilog2())
}

/// The ranges of entries whose hashes make up the inclusion proof of entry `index` in a tree of `size`
/// entries, in the order of the proof (RFC 6962, section 2.1.1). Needs `index < size`.
#[must_use]
pub fn inclusion_ranges(index: u64, size: u64) -> Vec<(u64, u64)> {
    let (mut from, mut to) = (0, size);
    let mut ranges = Vec::new();
    while index < size && to - from > 1 {
        let middle = middle(from, to);
        if index < middle {
            ranges.push((middle, to));
            to = middle;
        } else {
            ranges.push((from, middle));
            from = middle;
        }
    }
    ranges.reverse();
    ranges
}

/// The ranges of entries whose hashes make up the consistency proof between trees of `old` and `new`
/// entries, in the order of the proof (RFC 6962, section 2.1.2). Empty if `old` is 0 or not below `new`.
#[must_use]
pub fn consistency_ranges(old: u64, new: u64) -> Vec<(u64, u64)> {
    if old == 0 || old >= new {
        return Vec::new();
    }
    let (mut from, mut to, mut known) = (0, new, true);
    let mut ranges = Vec::new();
    while old != to {
        let middle = middle(from, to);
        if old <= middle {
            ranges.push((middle, to));
            to = middle;
        } else {
            ranges.push((from, middle));
            from = middle;
            known = false;
        }
    }
    if !known {
        ranges.push((from, to));
    }
    ranges.reverse();
    ranges
}

/// Checks an inclusion proof (RFC 9162, section 2.1.3.2).
///
/// # Errors
/// If `index` is not below `size`, the proof has the wrong length, or it leads to another root.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range);
    }
    let (mut position, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if position & 1 == 1 || position == last {
            hash = node_hash(sibling, &hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    match (last, hash == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}

/// Checks a consistency proof (RFC 9162, section 2.1.4.2).
///
/// # Errors
/// If `old` is larger than `new`, the proof has the wrong length, or it leads to other roots.
pub fn verify_consistency(
    old: u64,
    new: u64,
    old_root: &Hash,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Range);
    }
    if old == 0 || old == new {
        let same = if old == new {
            old_root == new_root
        } else {
            *old_root == empty_root()
        };
        return match (proof.is_empty(), same) {
            (true, true) => Ok(()),
            (true, false) => Err(ProofError::Root),
            (false, _) => Err(ProofError::Length),
        };
    }
    // A tree whose size is a power of two is itself the first node of the path.
    let path = if old.is_power_of_two() {
        [&[*old_root], proof].concat()
    } else {
        proof.to_vec()
    };
    let (first, rest) = path.split_first().ok_or(ProofError::Length)?;
    let shift = (old - 1).trailing_ones();
    let (mut position, mut last) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if position & 1 == 1 || position == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    match (last, old_hash == *old_root && new_hash == *new_root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// MTH of RFC 6962 section 2.1, word for word.
    fn naive_root(leaves: &[Hash]) -> Hash {
        match leaves.len() {
            0 => empty_root(),
            1 => leaves[0],
            n => {
                let k = n.next_power_of_two() / 2;
                node_hash(&naive_root(&leaves[..k]), &naive_root(&leaves[k..]))
            }
        }
    }

    /// PATH of RFC 6962 section 2.1.1.
    fn naive_path(m: usize, leaves: &[Hash]) -> Vec<Hash> {
        if leaves.len() == 1 {
            return Vec::new();
        }
        let k = leaves.len().next_power_of_two() / 2;
        if m < k {
            [naive_path(m, &leaves[..k]), vec![naive_root(&leaves[k..])]].concat()
        } else {
            [naive_path(m - k, &leaves[k..]), vec![naive_root(&leaves[..k])]].concat()
        }
    }

    /// SUBPROOF of RFC 6962 section 2.1.2.
    fn naive_subproof(m: usize, leaves: &[Hash], known: bool) -> Vec<Hash> {
        if m == leaves.len() {
            return if known {
                Vec::new()
            } else {
                vec![naive_root(leaves)]
            };
        }
        let k = leaves.len().next_power_of_two() / 2;
        if m <= k {
            [
                naive_subproof(m, &leaves[..k], known),
                vec![naive_root(&leaves[k..])],
            ]
            .concat()
        } else {
            [
                naive_subproof(m - k, &leaves[k..], false),
                vec![naive_root(&leaves[..k])],
            ]
            .concat()
        }
    }

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    /// The hash over a range through `cover` and `fold`, each complete node computed on its own.
    fn range(leaves: &[Hash], (from, to): (u64, u64)) -> Hash {
        let nodes = cover(from, to);
        let hashes: Vec<Hash> = nodes
            .iter()
            .map(|node| {
                let start = (node.index << node.height) as usize;
                naive_root(&leaves[start..start + (1 << node.height)])
            })
            .collect();
        fold(&hashes).unwrap()
    }

    #[test]
    fn the_roots_of_the_reference_test_vectors() {
        // Inputs and roots of the Certificate Transparency reference implementation's Merkle tests.
        let inputs: [&str; 8] = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let leaves: Vec<Hash> = inputs
            .iter()
            .map(|input| leaf_hash(&hex::decode(input).unwrap()))
            .collect();
        for (count, root) in (1..=8).zip(roots) {
            assert_eq!(hex::encode(range(&leaves, (0, count))), root, "{count} entries");
        }
        assert_eq!(
            hex::encode(empty_root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    proptest! {
        #[test]
        fn proofs_equal_the_definition_and_verify(size in 1_usize..600, at in 0_usize..600, old in 0_usize..600) {
            let leaves = leaves(size);
            let root = naive_root(&leaves);
            let (index, old) = (at % size, old % (size + 1));

            let proof: Vec<Hash> =
                inclusion_ranges(index as u64, size as u64).into_iter().map(|r| range(&leaves, r)).collect();
            prop_assert_eq!(&proof, &naive_path(index, &leaves));
            prop_assert_eq!(verify_inclusion(&leaves[index], index as u64, size as u64, &proof, &root), Ok(()));

            let proof: Vec<Hash> =
                consistency_ranges(old as u64, size as u64).into_iter().map(|r| range(&leaves, r)).collect();
            let expected = if old == 0 { Vec::new() } else { naive_subproof(old, &leaves, true) };
            prop_assert_eq!(&proof, &expected);
            let old_root = naive_root(&leaves[..old]);
            prop_assert_eq!(verify_consistency(old as u64, size as u64, &old_root, &root, &proof), Ok(()));
        }

        #[test]
        fn a_changed_proof_does_not_verify(size in 2_usize..300, at in 0_usize..300, flip in 0_usize..300) {
            let leaves = leaves(size);
            let root = naive_root(&leaves);
            let index = at % size;
            let mut proof = naive_path(index, &leaves);
            let which = flip % proof.len();
            proof[which][flip % 32] ^= 1;
            prop_assert!(verify_inclusion(&leaves[index], index as u64, size as u64, &proof, &root).is_err());
            proof[which][flip % 32] ^= 1;
            proof.pop();
            prop_assert!(verify_inclusion(&leaves[index], index as u64, size as u64, &proof, &root).is_err());

            let old = 1 + at % (size - 1);
            let old_root = naive_root(&leaves[..old]);
            let mut proof = naive_subproof(old, &leaves, true);
            let which = flip % proof.len();
            proof[which][flip % 32] ^= 1;
            prop_assert!(verify_consistency(old as u64, size as u64, &old_root, &root, &proof).is_err());
            prop_assert!(verify_consistency(old as u64, size as u64, &old_root, &root, &[]).is_err() || old.is_power_of_two());
        }

        #[test]
        fn any_proof_is_checked_without_a_panic(
            index in any::<u64>(), size in any::<u64>(), proof in prop::collection::vec(any::<[u8; 32]>(), 0..70),
        ) {
            let _ = verify_inclusion(&[0; 32], index, size, &proof, &[1; 32]);
            let _ = verify_consistency(index, size, &[0; 32], &[1; 32], &proof);
        }
    }
}
