//! Answers that are not believed yet. Pure: what is known of the log is an argument.
//!
//! ```text
//!   answered ── a look that began later found the log well ──▶ looked after ── its tree head proven ──▶ free
//!      │  └── a refusal has no tree head ──────────────────────────│──────────────────────────────────▶ free
//!      └── a look found somebody else ──▶ dropped ◀── it is a fork's, or larger than the log stays ─────┘
//! ```
//!
//! Time alone proves nothing where one name leads to two logs in turns: a look may find the one, and the answer be the
//! other's. Many answers share a tree head, and each head is proven once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use kernel::Monotonic;

use super::tables::{Outcome, Unlogged};
use crate::ports::{Contained, Looks, TreeHead};

/// Tree heads that are proven at once. Rekor v1 has one for each entry, and is asked about each.
const HEADS_MAX: usize = 512;
/// Proven tree heads that are remembered, of a hundred bytes each: answers of one batch come before and after a look.
const PROVEN_MAX: usize = 4_096;
/// How long a log may stay smaller than an answer says it is. Who reads it through a cache sees it as it was a minute ago.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// An answer that is not believed yet.
pub(super) struct Held {
    pub id: String,
    /// When it was asked for, and when it came.
    pub began: Monotonic,
    pub answered: Monotonic,
    pub outcome: Outcome,
    /// What it was proven under; a refusal is not.
    pub head: Option<TreeHead>,
}

impl Held {
    /// Whether it was asked for before a look that makes it worth nothing: it may be somebody else's. A refusal is nobody's
    /// proof, so that each look that did not find the log well does that; else one that found somebody else.
    fn is_in_vain(&self, looks: &Looks) -> bool {
        let after = match self.outcome {
            Outcome::Not(Unlogged::Refused(_)) => looks.ill,
            _ => looks.wrong,
        };
        after.is_some_and(|after| self.began <= after)
    }
}

/// All answers that are held.
#[derive(Default)]
pub(super) struct Answers {
    /// No look came since, in the order in which they came.
    waiting: VecDeque<Held>,
    looked_after: HashMap<TreeHead, Vec<Held>>,
    /// Of these, what was not asked about since the last look.
    to_prove: VecDeque<TreeHead>,
    proven: HashSet<TreeHead>,
    free: VecDeque<Held>,
    /// All of them.
    count: usize,
    /// What was known of the log when they were last gone through.
    judged: Looks,
}

/// Answers that are worth nothing: their ids, and why.
pub(super) type Dropped = (Vec<String>, String);

impl Answers {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn push(&mut self, held: Held) {
        self.count += 1;
        self.waiting.push_back(held);
    }

    /// One that is believed.
    pub fn pop(&mut self) -> Option<Held> {
        let held = self.free.pop_front()?;
        self.count -= 1;
        Some(held)
    }

    /// Goes through them by what is known of the log now; the ids of those that are worth nothing.
    pub fn judge(&mut self, looks: &Looks) -> Vec<String> {
        let mut dropped = Vec::new();
        // One that was just answered may have been asked for before a look that was judged already.
        if *looks != self.judged || self.waiting.back().is_some_and(|last| last.is_in_vain(looks)) {
            let mut stays = |held: &Held| {
                let stays = !held.is_in_vain(looks);
                if !stays {
                    dropped.push(held.id.clone());
                }
                stays
            };
            self.waiting.retain(&mut stays);
            self.looked_after.retain(|_, answers| {
                answers.retain(&mut stays);
                !answers.is_empty()
            });
            if (looks.wrong, looks.taken) != (self.judged.wrong, self.judged.taken) {
                // What the log was may not be what it is.
                self.proven.clear();
            }
            if looks.well != self.judged.well {
                self.to_prove = self.looked_after.keys().cloned().collect();
            }
            self.judged = *looks;
        }
        let well = looks.well;
        while let Some(held) = self
            .waiting
            .pop_front_if(|held| well.is_some_and(|well| well > held.answered))
        {
            match &held.head {
                Some(head) if !self.proven.contains(head) => {
                    let answers = self.looked_after.entry(head.clone()).or_default();
                    if answers.is_empty() {
                        self.to_prove.push_back(head.clone());
                    }
                    answers.push(held);
                }
                _ => self.free.push_back(held),
            }
        }
        self.count -= dropped.len();
        dropped
    }

    /// Tree heads that are to be proven now; each is asked for once after a look.
    pub fn next_heads(&mut self) -> Vec<TreeHead> {
        let some = self.to_prove.len().min(HEADS_MAX);
        let heads = self.to_prove.drain(..some);
        heads
            .filter(|head| self.looked_after.contains_key(head))
            .collect()
    }

    /// Learns whether the log was once as `heads` say. What another log answered is dropped.
    pub fn learn(&mut self, heads: Vec<TreeHead>, found: Vec<Contained>, now: Monotonic) -> Vec<Dropped> {
        let mut dropped: Vec<Dropped> = Vec::new();
        for (head, contained) in heads.into_iter().zip(found) {
            let Some(answers) = self.looked_after.get_mut(&head) else {
                continue;
            };
            match contained {
                Contained::Yes => {
                    self.free.extend(answers.drain(..));
                    if self.proven.len() >= PROVEN_MAX {
                        self.proven.clear();
                    }
                    self.looked_after.remove(&head);
                    self.proven.insert(head);
                }
                Contained::No(why) => {
                    let answers = self.looked_after.remove(&head).unwrap_or_default();
                    dropped.push((answers.into_iter().map(|held| held.id).collect(), why));
                }
                Contained::NotYet => {
                    let late = |held: &mut Held| now.since(held.answered) > AHEAD_MAX;
                    let late: Vec<Held> = answers.extract_if(.., late).collect();
                    if answers.is_empty() {
                        self.looked_after.remove(&head);
                    }
                    if !late.is_empty() {
                        let why = format!(
                            "the log does not come to the {} entries that it told of",
                            head.size
                        );
                        dropped.push((late.into_iter().map(|held| held.id).collect(), why));
                    }
                }
                // A later look asks again.
                Contained::Unknown(why) => tracing::debug!(why, "a tree head was not proven"),
            }
        }
        self.count -= dropped.iter().map(|(ids, _)| ids.len()).sum::<usize>();
        dropped
    }
}
