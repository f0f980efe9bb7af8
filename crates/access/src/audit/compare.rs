//! Holds rows against the leaves that were made of them, and names every record that does not fit. Pure.

use std::collections::HashMap;
use std::fmt;

use kernel::Digest;

use super::AuditRecord;

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wrong {
    /// It was sealed, and its row is gone.
    Removed,
    /// It has not the content that was sealed.
    Altered,
    /// It claims a place under the seal that it never had.
    Added,
    /// It was sealed in another place than the one that it claims.
    Reordered,
}

/// A record that is not what was sealed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub wrong: Wrong,
    /// Its id; empty if nothing tells.
    pub id: String,
    /// Its place under the seal, or the one that it claims.
    pub sequence: u64,
    pub detail: String,
    /// What was sealed, if it was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<AuditRecord>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = match self.wrong {
            Wrong::Removed => "removed",
            Wrong::Altered => "altered",
            Wrong::Added => "added",
            Wrong::Reordered => "reordered",
        };
        write!(
            f,
            "{wrong}: record {} (sequence {}): {}",
            self.id, self.sequence, self.detail
        )?;
        match &self.sealed {
            Some(sealed) => write!(
                f,
                "; sealed was: {} {} by {} at {}, {}",
                sealed.action,
                sealed.resource,
                sealed.actor,
                sealed.at(),
                sealed.outcome.as_str()
            ),
            None => Ok(()),
        }
    }
}

struct Leaf {
    id: String,
    digest: Digest,
    seen: bool,
}

/// The leaves of the seal, and which of them have been found among the rows.
#[derive(Default)]
pub struct Leaves {
    leaves: Vec<Leaf>,
    /// The first leaf of each record.
    places: HashMap<String, usize>,
    findings: Vec<Finding>,
    unsealed: u64,
}

impl Leaves {
    /// Takes the leaf at `index` in. They come in their order; one that comes again changes nothing, and one that is
    /// left out, because its bundle cannot be read, has a finding of its own elsewhere.
    pub fn leaf(&mut self, index: u64, body: &[u8]) {
        let at = self.leaves.len();
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index < at {
            return;
        }
        if index > at {
            self.leaves.resize_with(index, || Leaf {
                id: String::new(),
                digest: Digest::from_bytes([0; 32]),
                seen: true,
            });
        }
        let at = index;
        // A leaf that is no record was made by another program with our key; its row, if any, will not fit.
        let id = AuditRecord::parse(body).map_or(String::new(), |record| record.id);
        let first = *self.places.entry(id.clone()).or_insert(at);
        if first != at && !id.is_empty() {
            let detail = format!("it was sealed again with other content as sequence {at}");
            self.find(Wrong::Altered, &id, first as u64, detail);
        }
        self.leaves.push(Leaf {
            id,
            digest: Digest::of(body),
            seen: first != at,
        });
    }

    fn find(&mut self, wrong: Wrong, id: &str, sequence: u64, detail: String) {
        self.findings.push(Finding {
            wrong,
            id: id.to_owned(),
            sequence,
            detail,
            sealed: None,
        });
    }

    /// Takes a row into account. The same row may come twice: once before it was sealed, and once after.
    pub fn row(&mut self, record: &AuditRecord, sequence: Option<u64>) {
        let digest = Digest::of(&record.leaf());
        let Some(&place) = self.places.get(&record.id) else {
            match sequence {
                Some(sequence) => {
                    let detail = "it claims this place and was never sealed".to_owned();
                    self.find(Wrong::Added, &record.id, sequence, detail);
                }
                None => self.unsealed += 1,
            }
            return;
        };
        // One that was altered and sealed again claims the place of its second leaf; that finding stands already.
        let again = sequence.and_then(|sequence| self.leaves.get(usize::try_from(sequence).ok()?));
        if again.is_some_and(|leaf| leaf.id == record.id && leaf.digest == digest) {
            self.leaves[place].seen = true;
            return;
        }
        let was_seen = std::mem::replace(&mut self.leaves[place].seen, true);
        if let Some(sequence) = sequence.filter(|sequence| *sequence != place as u64) {
            let detail = format!("it was sealed as sequence {place}");
            self.find(Wrong::Reordered, &record.id, sequence, detail);
        }
        if self.leaves[place].digest != digest && !was_seen {
            let detail = "its row has other content than what was sealed".to_owned();
            self.find(Wrong::Altered, &record.id, place as u64, detail);
        }
    }

    /// What is wrong, now that every row was shown: of the first `complete` leaves each has to have its row.
    #[must_use]
    pub fn findings(mut self, complete: u64) -> Vec<Finding> {
        let complete = usize::try_from(complete).unwrap_or(usize::MAX);
        let gone = self
            .leaves
            .iter()
            .enumerate()
            .take(complete)
            .filter(|(_, leaf)| !leaf.seen);
        let gone = gone.map(|(place, leaf)| Finding {
            wrong: Wrong::Removed,
            id: leaf.id.clone(),
            sequence: place as u64,
            detail: "it was sealed and there is no row of it".to_owned(),
            sealed: None,
        });
        self.findings.extend(gone.collect::<Vec<_>>());
        self.findings
            .sort_by(|a, b| (a.sequence, &a.id).cmp(&(b.sequence, &b.id)));
        self.findings
    }

    /// Leaves that there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// Rows that wait for the seal.
    #[must_use]
    pub fn unsealed(&self) -> u64 {
        self.unsealed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Outcome;
    use super::*;

    fn record(number: u64) -> AuditRecord {
        AuditRecord {
            action: "key.create".to_owned(),
            actor: "server".to_owned(),
            at_us: 0,
            code: String::new(),
            detail: String::new(),
            id: format!("aud_{number}"),
            outcome: Outcome::Success,
            project: "default".to_owned(),
            request_id: String::new(),
            resource: "k".to_owned(),
            times: 1,
        }
    }

    fn check(rows: &[(AuditRecord, Option<u64>)], sealed: u64) -> Vec<(Wrong, String)> {
        let mut leaves = Leaves::default();
        (0..sealed).for_each(|number| leaves.leaf(number, &record(number).leaf()));
        rows.iter()
            .for_each(|(record, sequence)| leaves.row(record, *sequence));
        leaves
            .findings(sealed)
            .into_iter()
            .map(|found| (found.wrong, found.id))
            .collect()
    }

    fn rows(count: u64) -> Vec<(AuditRecord, Option<u64>)> {
        (0..count).map(|number| (record(number), Some(number))).collect()
    }

    fn found(wrong: Wrong, number: u64) -> (Wrong, String) {
        (wrong, format!("aud_{number}"))
    }

    #[test]
    fn whole_trails_are_clean_also_while_they_are_sealed() {
        assert_eq!(check(&rows(5), 5), []);
        let mut pending = rows(5);
        pending[4].1 = None;
        assert_eq!(check(&pending, 5), [], "a leaf whose number is not written yet");
        assert_eq!(
            check(&[pending, rows(5)].concat(), 5),
            [],
            "seen before and after"
        );
        assert_eq!(check(&[rows(5), vec![(record(5), None)]].concat(), 5), []);
    }

    #[test]
    fn each_kind_of_tampering_is_named_with_its_record() {
        let mut gone = rows(5);
        gone.remove(2);
        assert_eq!(check(&gone, 5), [found(Wrong::Removed, 2)]);
        let mut altered = rows(5);
        altered[3].0.actor = "token other".to_owned();
        assert_eq!(check(&altered, 5), [found(Wrong::Altered, 3)]);
        altered[3].1 = None;
        assert_eq!(
            check(&altered, 5),
            [found(Wrong::Altered, 3)],
            "and its number taken away"
        );
        assert_eq!(
            check(&[rows(5), vec![(record(9), Some(5))]].concat(), 5),
            [found(Wrong::Added, 9)]
        );
        let mut swapped = rows(5);
        (swapped[1].1, swapped[2].1) = (Some(2), Some(1));
        assert_eq!(
            check(&swapped, 5),
            [found(Wrong::Reordered, 2), found(Wrong::Reordered, 1)]
        );
        let mut replaced = rows(5);
        replaced[2].0.id = "aud_x".to_owned();
        let mut names: Vec<Wrong> = check(&replaced, 5).into_iter().map(|(wrong, _)| wrong).collect();
        names.sort_by_key(|wrong| format!("{wrong:?}"));
        assert_eq!(names, [Wrong::Added, Wrong::Removed]);
    }

    #[test]
    fn a_record_that_was_altered_and_sealed_again_is_named() {
        let mut second = record(1);
        second.detail = "other".to_owned();
        let bodies = [record(0).leaf(), record(1).leaf(), second.leaf()];
        let mut leaves = Leaves::default();
        (0..)
            .zip(&bodies)
            .for_each(|(index, body)| leaves.leaf(index, body));
        leaves.row(&record(0), Some(0));
        leaves.row(&second, Some(2));
        let findings = leaves.findings(3);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].wrong, findings[0].sequence), (Wrong::Altered, 1));
    }

    proptest! {
        /// Whatever is done to rows: nothing is found if and only if they are what was sealed.
        #[test]
        fn something_is_found_exactly_if_the_rows_are_not_the_sealed_ones(
            edits in proptest::collection::vec((0..4_u8, 0..6_usize, 0..6_u64), 0..4)
        ) {
            let mut changed = rows(6);
            for (edit, at, number) in edits {
                let Some(row) = changed.get_mut(at) else { continue };
                match edit {
                    0 => { changed.remove(at); }
                    1 => row.0.detail = if number == 0 { String::new() } else { format!("{number}") },
                    2 => row.1 = Some(number),
                    _ => row.0.id = format!("aud_{number}"),
                }
            }
            changed.sort_by(|a, b| a.0.id.cmp(&b.0.id));
            changed.dedup_by(|a, b| a.0.id == b.0.id);
            prop_assert_eq!(check(&changed, 6).is_empty(), changed == rows(6));
        }
    }
}
