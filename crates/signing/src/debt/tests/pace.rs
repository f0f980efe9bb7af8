//! How fast is paid while answers are held and written down.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kernel::Clock as _;

use super::world::World;
use super::{LONG, MINUTE};

/// Each answer has a tree head of its own, as with Rekor v1. Shown to fail: with 4,096 answers that may be held, nothing is sent for a part of each ten seconds; with 64 for
/// `HEADS_MAX`, proofs do not keep up and 32 seconds' entries take 57.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_look_every_five_or_ten_seconds_the_rate_is_reached_and_what_is_held_is_bounded() {
    const PER_SECOND: u32 = 500;
    const SECONDS: u32 = 32;
    /// A step of the test, the time in which answers are written down, in which some are proven, and that of a look; in
    /// milliseconds.
    const STEP: u32 = 4;
    const WRITE: u32 = 40;
    const PROVE: u32 = 400;
    const LOOK: u32 = 400;
    for every in [5_000, 10_000] {
        let folder = tempfile::tempdir().unwrap();
        let world = World::on(&format!("sqlite:{}", folder.path().join("test.db").display())).await;
        world.owe(i64::from(PER_SECOND * SECONDS)).await;
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer_at(&lease, PER_SECOND);
        world.outside.is_looked_at(true);
        let (mut written_at, mut held, mut began) = (None, 0, world.clock.monotonic());
        for step in 1..=(2 * SECONDS * 1_000 / STEP) {
            let now = step * STEP;
            world.clock.advance(Duration::from_millis(u64::from(STEP)));
            payer.start().await.unwrap();
            while payer.answer().await {}
            if now.is_multiple_of(PROVE) {
                payer.prove().await;
            }
            held = held.max(payer.held());
            if payer.is_to_settle() && written_at.is_none() {
                written_at = Some(now + WRITE);
            }
            if written_at.is_some_and(|at| at <= now) {
                payer.settle().await.unwrap();
                written_at = None;
            }
            match now % every {
                0 => began = world.clock.monotonic(),
                LOOK => world.outside.looks.lock().unwrap().as_mut().unwrap().well = Some(began),
                _ => {}
            }
        }
        let asked = world.outside.asked.lock().unwrap().clone();
        let took = asked[asked.len() - 1] - asked[0];
        assert_eq!(asked.len(), (PER_SECOND * SECONDS + 1) as usize);
        assert!(
            took <= i64::from(SECONDS) * 1_040_000,
            "{took} us with a look every {every} ms"
        );
        assert!(held <= 8_000, "{held} are held");
        assert_eq!(world.standing().await.owed, 0);
    }
}

/// Shown to fail: with `settle` awaited in `Payer::run`, no more than what is answered until the first write is sent.
#[tokio::test(flavor = "multi_thread")]
async fn while_answers_are_being_written_down_entries_go_on_being_sent() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(&format!("sqlite:{}", folder.path().join("test.db").display())).await;
    world.owe(400).await;
    let lease = world.lease("server-1", LONG).await;
    let mut payer = world.payer_at(&lease, 500);
    world.outside.knows.store(true, Ordering::SeqCst);
    // Somebody else writes for as long as entries are sent.
    let other = world.db.begin().await.unwrap();
    let asked = async {
        for _ in 0..2_000 {
            world.clock.advance(Duration::from_millis(4));
            tokio::time::sleep(Duration::from_millis(1)).await;
            if world.outside.asked.lock().unwrap().len() > 400 {
                break;
            }
        }
        world.outside.asked.lock().unwrap().len()
    };
    let asked = tokio::select! {
        stopped = payer.run() => panic!("{:?}", stopped.err()),
        asked = asked => asked,
    };
    assert_eq!(asked, 401);
    assert_eq!(world.standing().await.owed, 401);
    drop(other);
    payer.settle().await.unwrap();
    world.pays_for(&mut payer, MINUTE).await;
    assert_eq!(world.standing().await.owed, 0);
}
