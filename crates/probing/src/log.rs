//! What a log's newest checkpoint means beside the last good one. The signature has been checked by whoever reads it.

/// A checkpoint, as far as it is compared.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// The name in its first line.
    pub origin: String,
    pub size: u64,
    /// The root hash, in hexadecimal.
    pub root: String,
    /// The signed note, as evidence.
    pub note: String,
}

/// How a checkpoint stands to the last good one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The first, or the same again.
    Good,
    /// Larger: whether it follows has to be proven.
    Prove,
    /// Smaller.
    RolledBack,
    /// As large, and another.
    Forked,
    /// Of the same key, under another name: another tree.
    Renamed,
}

/// Compares `now` with the `last` good one.
#[must_use]
pub fn compare(last: Option<&Seen>, now: &Seen) -> Step {
    let Some(last) = last else { return Step::Good };
    if last.origin != now.origin {
        return Step::Renamed;
    }
    match now.size.cmp(&last.size) {
        std::cmp::Ordering::Less => Step::RolledBack,
        std::cmp::Ordering::Equal if now.root == last.root => Step::Good,
        std::cmp::Ordering::Equal => Step::Forked,
        std::cmp::Ordering::Greater => Step::Prove,
    }
}

impl Seen {
    /// In one line.
    #[must_use]
    pub fn described(&self) -> String {
        let root: String = self.root.chars().take(12).collect();
        format!("{}, {} entries, root {root}…", self.origin, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(size: u64, root: &str) -> Seen {
        Seen {
            origin: "log".to_owned(),
            size,
            root: root.to_owned(),
            note: String::new(),
        }
    }

    #[test]
    fn each_way_to_differ_has_its_name() {
        let last = seen(5, "aa");
        assert_eq!(compare(None, &last), Step::Good);
        for (now, step) in [
            (seen(5, "aa"), Step::Good),
            (seen(6, "bb"), Step::Prove),
            (seen(4, "bb"), Step::RolledBack),
            (seen(0, "bb"), Step::RolledBack),
            (seen(5, "bb"), Step::Forked),
        ] {
            assert_eq!(compare(Some(&last), &now), step);
        }
        let renamed = Seen {
            origin: "log - 2".to_owned(),
            ..seen(9, "aa")
        };
        assert_eq!(compare(Some(&last), &renamed), Step::Renamed);
    }
}
