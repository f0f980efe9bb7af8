//! Reading many things, a few at a time, for a bounded while.

use std::pin::{Pin, pin};

use futures::future::{Either, select};
use futures::stream::{self, StreamExt};
use tokio::time::Sleep;

/// What is read at once for one image: a slow registry with hundreds of candidates is read eight times as fast, and
/// one image takes half of the calls that may be under way at a registry.
const AT_ONCE_MAX: usize = 8;

/// Reads `items` up to the first that is `enough`, and says whether there was time for that. The order in which they
/// are answered does not matter: what is read comes in the order of `items`, and the first failure in that order is
/// the answer unless something before it is enough. The first item is read alone: mostly it is the signature.
///
/// Out of time, everything that was read by then is the answer, also behind what still hangs.
///
/// # Errors
/// The first of `read`.
pub(super) async fn in_order<I, T, E, F>(
    items: Vec<I>,
    read: impl Fn(I) -> F,
    enough: impl Fn(&T) -> bool,
    mut deadline: Pin<&mut Sleep>,
) -> Result<(Vec<T>, bool), E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut all = Vec::with_capacity(items.len());
    let mut items = items.into_iter();
    let first: Vec<I> = items.by_ref().take(1).collect();
    for part in [first, items.collect()] {
        let mut found: Vec<Option<Result<T, E>>> = part.iter().map(|_| None).collect();
        let mut next = 0;
        let reading = part.into_iter().enumerate().map(|(at, item)| {
            let reading = read(item);
            async move { (at, reading.await) }
        });
        let mut reading = pin!(stream::iter(reading).buffer_unordered(AT_ONCE_MAX));
        loop {
            match select(reading.next(), deadline.as_mut()).await {
                Either::Left((Some((at, outcome)), _)) => found[at] = Some(outcome),
                Either::Left((None, _)) => break,
                Either::Right(_) => {
                    all.extend(found.into_iter().flatten().filter_map(Result::ok));
                    return Ok((all, false));
                }
            }
            while let Some(outcome) = found.get_mut(next).and_then(Option::take) {
                all.push(outcome?);
                next += 1;
                if all.last().is_some_and(&enough) {
                    return Ok((all, true));
                }
            }
        }
    }
    Ok((all, true))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    /// Reads numbers: each takes its own time in milliseconds, and those over 1,000 never end.
    async fn run(times: &[u64], enough: u64, ms: u64) -> (Result<(Vec<u64>, bool), String>, usize, usize) {
        let (running, most, begun) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let read = async |time: u64| {
            begun.fetch_add(1, Ordering::SeqCst);
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(Duration::from_millis(if time > 1_000 { 1_000_000 } else { time })).await;
            running.fetch_sub(1, Ordering::SeqCst);
            if time == 13 {
                Err("a failure".to_owned())
            } else {
                Ok(time)
            }
        };
        let deadline = pin!(sleep(Duration::from_millis(ms)));
        let outcome = in_order(times.to_vec(), read, |time| *time == enough, deadline).await;
        (outcome, most.into_inner(), begun.into_inner())
    }

    #[tokio::test]
    async fn eight_are_read_at_once_and_the_answer_is_in_order() {
        let times: Vec<u64> = (0..40).map(|at| (at * 7) % 12).collect();
        let (outcome, most, _) = run(&times, 99, 60_000).await;
        assert_eq!((outcome, most), (Ok((times, true)), AT_ONCE_MAX));
        assert_eq!(run(&[], 99, 60_000).await.0, Ok((Vec::new(), true)));
    }

    #[tokio::test]
    async fn the_first_that_is_enough_ends_it_and_the_first_failure_too() {
        // The first is read alone.
        assert_eq!(run(&[1, 2, 3], 1, 60_000).await, (Ok((vec![1], true)), 1, 1));
        // What is behind does not matter, however fast it is.
        assert_eq!(run(&[5, 40, 13, 2], 40, 60_000).await.0, Ok((vec![5, 40], true)));
        let failed = run(&[5, 13, 40, 2], 40, 60_000).await.0;
        assert_eq!(failed, Err("a failure".to_owned()));
    }

    #[tokio::test]
    async fn out_of_time_what_was_read_is_the_answer_also_behind_what_hangs() {
        let (outcome, ..) = run(&[1, 2, 9_999, 4, 5], 99, 300).await;
        assert_eq!(outcome, Ok((vec![1, 2, 4, 5], false)));
        let (outcome, ..) = run(&[9_999, 2], 2, 100).await;
        assert_eq!(outcome, Ok((Vec::new(), false)));
    }
}
