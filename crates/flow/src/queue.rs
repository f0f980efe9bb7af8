//! Who goes next. Pure: no clock, no waiting.

use std::collections::{HashMap, VecDeque};

use crate::Class;

/// The most that one item may cost: an item waits for at most so many turns of the others.
pub const COST_MAX: u32 = 16;
/// What a project may spend more on each of its turns: one ordinary item, so that ordinary items go one by one.
const QUANTUM: u32 = 1;

/// A queue for each project in each class. `pop` serves the classes by weight and the projects of a class in turn,
/// each by the cost of its items: who asks for one thing waits for one turn, however much the others ask for.
#[derive(Debug)]
pub struct FairQueue<T> {
    classes: [Line<T>; Class::ALL.len()],
}

/// One class.
#[derive(Debug)]
struct Line<T> {
    flows: HashMap<String, Flow<T>>,
    /// The projects that wait, in the order of their turns.
    turns: VecDeque<String>,
    /// Grows by the weight while it waits, shrinks when it is served (smooth weighted round robin).
    credit: i64,
    waiting: usize,
}

/// One project in one class.
#[derive(Debug)]
struct Flow<T> {
    items: VecDeque<(u32, T)>,
    /// What is left to spend on this turn.
    deficit: u32,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            classes: std::array::from_fn(|_| Line {
                flows: HashMap::new(),
                turns: VecDeque::new(),
                credit: 0,
                waiting: 0,
            }),
        }
    }
}

impl<T> FairQueue<T> {
    /// Puts an item at the end of its project's queue. A `cost` of 1 is one ordinary item; it is kept within 1 and
    /// [`COST_MAX`].
    pub fn push(&mut self, class: Class, project: &str, cost: u32, item: T) {
        let line = &mut self.classes[class.index()];
        line.waiting += 1;
        let item = (cost.clamp(1, COST_MAX), item);
        if let Some(flow) = line.flows.get_mut(project) {
            flow.items.push_back(item);
            return;
        }
        let flow = Flow {
            items: VecDeque::from([item]),
            deficit: 0,
        };
        line.flows.insert(project.to_owned(), flow);
        line.turns.push_back(project.to_owned());
    }

    /// Takes the item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let mut best: Option<usize> = None;
        let mut total = 0;
        for class in Class::ALL {
            let at = class.index();
            if self.classes[at].waiting == 0 {
                // Who did not wait has nothing to come.
                self.classes[at].credit = 0;
                continue;
            }
            total += class.weight();
            self.classes[at].credit += class.weight();
            if best.is_none_or(|best| self.classes[at].credit > self.classes[best].credit) {
                best = Some(at);
            }
        }
        let line = &mut self.classes[best?];
        line.credit -= total;
        line.pop()
    }

    /// Items that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.iter().map(|line| line.waiting).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items that wait in one class.
    #[must_use]
    pub fn waiting(&self, class: Class) -> usize {
        self.classes[class.index()].waiting
    }

    /// Items of one project that wait, in all classes.
    #[must_use]
    pub fn waiting_of(&self, project: &str) -> usize {
        let flows = self.classes.iter().filter_map(|line| line.flows.get(project));
        flows.map(|flow| flow.items.len()).sum()
    }

    /// The item of a class that came first, of all projects.
    pub fn oldest<K: Ord>(&self, class: Class, came: impl Fn(&T) -> K) -> Option<K> {
        let flows = self.classes[class.index()].flows.values();
        flows
            .filter_map(|flow| flow.items.front())
            .map(|(_, item)| came(item))
            .min()
    }
}

impl<T> Line<T> {
    fn pop(&mut self) -> Option<T> {
        loop {
            let project = self.turns.front()?;
            let flow = self.flows.get_mut(project)?;
            let cost = flow.items.front()?.0;
            if cost > flow.deficit {
                flow.deficit += QUANTUM;
            }
            if cost > flow.deficit {
                // It saves for a dear item, and the others have their turns.
                self.turns.rotate_left(1);
                continue;
            }
            let (_, item) = flow.items.pop_front()?;
            flow.deficit -= cost;
            self.waiting -= 1;
            match flow.items.front() {
                // Who has nothing to ask for saves nothing.
                None => {
                    self.flows.remove(project);
                    self.turns.pop_front();
                }
                Some((next, _)) if *next > flow.deficit => self.turns.rotate_left(1),
                Some(_) => {}
            }
            return Some(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn filled(items: &[(Class, &'static str, u32, usize)]) -> FairQueue<(Class, &'static str, u32)> {
        let mut queue = FairQueue::default();
        for (class, project, cost, count) in items {
            for _ in 0..*count {
                queue.push(*class, project, *cost, (*class, *project, *cost));
            }
        }
        queue
    }

    #[test]
    fn who_asks_for_one_thing_waits_for_one_turn() {
        let mut queue = filled(&[(Class::Sign, "storm", 1, 1_200), (Class::Sign, "other", 1, 1)]);
        let first: Vec<_> = (0..2)
            .filter_map(|_| queue.pop())
            .map(|(_, project, _)| project)
            .collect();
        assert_eq!(first, ["storm", "other"]);
        assert_eq!(
            (queue.len(), queue.waiting_of("storm"), queue.waiting_of("other")),
            (1_199, 1_199, 0)
        );
    }

    #[test]
    fn dear_items_count_as_many() {
        let mut queue = filled(&[(Class::Sign, "dear", 8, 100), (Class::Sign, "cheap", 1, 800)]);
        let mut spent = HashMap::<&str, u32>::new();
        for _ in 0..450 {
            let (_, project, cost) = queue.pop().unwrap();
            *spent.entry(project).or_default() += cost;
        }
        assert!(spent["dear"].abs_diff(spent["cheap"]) <= COST_MAX, "{spent:?}");
    }

    #[test]
    fn the_classes_are_served_by_weight_and_none_starves() {
        let mut queue = filled(&[
            (Class::Verify, "a", 1, 1_000),
            (Class::Sign, "a", 1, 1_000),
            (Class::Batch, "b", 1, 1_000),
        ]);
        let mut served = HashMap::<Class, i64>::new();
        for _ in 0..130 {
            *served.entry(queue.pop().unwrap().0).or_default() += 1;
        }
        for class in Class::ALL {
            assert_eq!(served[&class], class.weight() * 10, "{served:?}");
        }
        // Alone it has everything.
        let mut queue = filled(&[(Class::Batch, "b", 1, 10)]);
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), 10);
    }

    proptest! {
        /// Nothing is lost, nothing comes twice, each project's items come in their order.
        #[test]
        fn what_goes_in_comes_out_in_its_order(items in proptest::collection::vec((0..3_usize, 0..5_u8, 0..40_u32), 0..200)) {
            let mut queue = FairQueue::default();
            let mut expected = HashMap::<(usize, u8), Vec<usize>>::new();
            for (number, (class, project, cost)) in items.iter().enumerate() {
                queue.push(Class::ALL[*class], &project.to_string(), *cost, (*class, *project, number));
                expected.entry((*class, *project)).or_default().push(number);
            }
            prop_assert_eq!(queue.len(), items.len());
            let mut found = HashMap::<(usize, u8), Vec<usize>>::new();
            while let Some((class, project, number)) = queue.pop() {
                found.entry((class, project)).or_default().push(number);
            }
            prop_assert_eq!(found, expected);
            prop_assert!(queue.is_empty() && queue.pop().is_none());
        }

        /// While two projects wait, neither gets more than the other by more than one dear item.
        #[test]
        fn projects_that_wait_are_served_alike(costs in proptest::collection::vec((1..=COST_MAX, 1..=COST_MAX), 300)) {
            let mut queue = FairQueue::default();
            for (one, other) in &costs {
                queue.push(Class::Sign, "one", *one, (true, *one));
                queue.push(Class::Sign, "other", *other, (false, *other));
            }
            let (mut one, mut other) = (0_u32, 0_u32);
            while queue.waiting_of("one") > 0 && queue.waiting_of("other") > 0 {
                match queue.pop().unwrap() {
                    (true, cost) => one += cost,
                    (false, cost) => other += cost,
                }
                prop_assert!(one.abs_diff(other) <= 2 * COST_MAX, "{} {}", one, other);
            }
        }
    }
}
