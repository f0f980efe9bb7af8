//! Every write of the log, failing and half failing, alone and against a second writer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kernel::Fault;

use super::*;
use crate::faults::{COMMITTED, CRASH_STEPS, PRUNED, READ_BACK, STAGED, UPPER_TILE_WRITTEN};
use crate::merkle::{verify_consistency, verify_inclusion};
use crate::shelf::CACHED_TILES_MAX;
use crate::tables::{Batch, Outcome};
use crate::tile::Tile;
use crate::{BATCH_ENTRIES_MAX, QUEUE_ENTRIES_MAX, TAIL_ENTRIES_MAX};

#[tokio::test]
async fn an_entry_is_durable_and_a_duplicate_gets_the_old_one_also_after_a_restart() {
    let data = Data::new();
    let tlog = data.open().await;
    let (first, second) = (signed("first"), signed("second"));
    let a = tlog.append(&first).await.unwrap();
    let b = tlog.append(&second).await.unwrap();
    assert_eq!((a.index, b.index), (0, 1));
    assert_eq!(tlog.append(&first).await.unwrap().index, 0);
    assert_eq!(tlog.checkpoint().await.unwrap().size, 2);
    tlog.close().await;
    assert_eq!(tlog.append(&first).await.unwrap_err().code().id, "PC1410");

    let tlog = data.open().await;
    assert_eq!(tlog.append(&second).await.unwrap().index, 1);
    assert_eq!(tlog.append(&signed("third")).await.unwrap().index, 2);
    let wrong = HashedRekord {
        digest: vec![0; 32],
        ..first
    };
    assert_eq!(tlog.append(&wrong).await.unwrap_err().code().id, "PC1411");
    fsck_is_clean(&tlog).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_and_fifty_six_at_once_get_one_index_each() {
    let data = Data::new();
    let tlog = data.open().await;
    let tasks: Vec<_> = (0..256)
        .map(|number| {
            let tlog = tlog.clone();
            // Every entry is sent twice at the same time.
            tokio::spawn(async move {
                tlog.place(accepted(number / 2))
                    .await
                    .map(|placed| (number / 2, placed))
            })
        })
        .collect();
    let mut indexes = std::collections::BTreeMap::new();
    for task in tasks {
        let (number, placed) = task.await.unwrap().unwrap();
        assert!(placed.index < placed.checkpoint.size);
        assert_eq!(*indexes.entry(number).or_insert(placed.index), placed.index);
    }
    assert_eq!(
        indexes.values().copied().collect::<BTreeSet<_>>(),
        (0..128).collect()
    );
    assert_eq!(tlog.checkpoint().await.unwrap().size, 128);
    fsck_is_clean(&tlog).await;
}

#[tokio::test]
async fn batches_of_every_size_are_whole() {
    let data = Data::new();
    let tlog = data.open().await;
    let mut size = 0;
    for batch in [
        1, 2, 3, 5, 7, 9, 11, 17, 31, 33, 63, 65, 100, 129, 191, 193, 255, 257, 300,
    ] {
        fill(&tlog, size, size + batch).await;
        size += batch;
    }
    assert_eq!(tlog.checkpoint().await.unwrap().size, size);
    fsck_is_clean(&tlog).await;
}

#[tokio::test]
async fn proofs_between_all_sorts_of_sizes_verify_from_memory_tail_and_tiles() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 1_300).await;
    tiled(&tlog).await;
    for cold in [false, true] {
        for (index, size) in [
            (0, 1),
            (0, 1_300),
            (255, 256),
            (256, 257),
            (511, 1_024),
            (1_299, 1_300),
            (1_030, 1_100),
        ] {
            if cold {
                tlog.core.shelf.forget();
            }
            let proof = tlog.proof(index, Some(size)).await.unwrap();
            assert_eq!(proof.leaf, accepted(index).leaf);
            verify_inclusion(&proof.leaf, index, size, &proof.hashes, &proof.root).unwrap();
        }
        for (old, new) in [
            (0, 5),
            (1, 1_300),
            (256, 512),
            (300, 1_299),
            (1_024, 1_300),
            (1_300, 1_300),
            (777, 778),
        ] {
            let proof = tlog.consistency(old, new).await.unwrap();
            verify_consistency(old, new, &proof.old_root, &proof.new_root, &proof.hashes).unwrap();
        }
    }
    assert_eq!(tlog.entry(1_300).await.unwrap_err().code().id, "PC1414");
    assert_eq!(tlog.proof(5, Some(5)).await.unwrap_err().code().id, "PC1414");
    assert_eq!(tlog.consistency(5, 1_301).await.unwrap_err().code().id, "PC1414");
    let info = tlog.info().await.unwrap();
    assert_eq!((info.tiled, info.leading), (1_280, true));
    let tail = tlog.core.tables.tail(1_280, 1_300).await.unwrap();
    assert_eq!(tail.map(|rows| rows.len()), Some(20));
    assert_eq!(tlog.core.tables.tail(1_279, 1_300).await.unwrap(), None);
    fsck_is_clean(&tlog).await;
}

#[tokio::test]
async fn a_log_past_a_tile_of_level_one_starts_again_from_tiles_alone() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 30_000).await;
    tiled(&tlog).await;
    let copy = tempfile::tempdir().unwrap();
    tlog.export(copy.path(), &mut |_| {}).await.unwrap();
    // The one write that no smaller log gets to fails once after it is durable.
    data.faults.arm(UPPER_TILE_WRITTEN);
    fill(&tlog, 30_000, 66_000).await;
    tiled(&tlog).await;
    assert!(!data.faults.is_armed());
    assert!(data.blobs().join("tlog/tile/1/000").exists());
    tlog.close().await;
    let tlog = data.open().await;
    tlog.core.shelf.forget();
    let proof = tlog.proof(3, None).await.unwrap();
    verify_inclusion(&accepted(3).leaf, 3, 66_000, &proof.hashes, &proof.root).unwrap();
    fill(&tlog, 66_000, 66_001).await;
    let proof = tlog.consistency(65_536, 66_001).await.unwrap();
    verify_consistency(65_536, 66_001, &proof.old_root, &proof.new_root, &proof.hashes).unwrap();
    assert!(tlog.core.shelf.cached_tiles() <= CACHED_TILES_MAX);
    fsck_is_clean(&tlog).await;
    assert!(tlog.core.shelf.cached_tiles() <= CACHED_TILES_MAX);
    // Only what is new is read for the copy: 30,000 entries are 117 bundles and a part of one.
    let mut bundles = 0;
    tlog.export(copy.path(), &mut |_| bundles += 1).await.unwrap();
    assert_eq!(bundles, 66_001_u64.div_ceil(256) - 117);
    let copy = crate::Folder::open(copy.path(), None).await.unwrap();
    let report = copy.fsck(&mut |_| {}).await.unwrap();
    assert_eq!((report.entries_checked, report.damage), (66_001, vec![]));
}

#[tokio::test]
async fn the_tiles_in_memory_are_bounded() {
    let data = Data::new();
    let tlog = data.open().await;
    for index in 0..10 * CACHED_TILES_MAX as u64 {
        tlog.core
            .shelf
            .remember(0, index, Arc::new(Tile::of(&[[0; 32]; 256])));
    }
    assert_eq!(tlog.core.shelf.cached_tiles(), CACHED_TILES_MAX);
}

/// Each write fails once: before it is durable (`staged`) or after. The truth is told, nothing is lost, and
/// the log goes on.
#[tokio::test]
async fn p12_each_write_of_the_log_may_fail_or_fail_and_yet_persist() {
    for point in CRASH_STEPS.iter().filter(|point| **point != UPPER_TILE_WRITTEN) {
        let data = Data::new();
        let tlog = data.open().await;
        fill(&tlog, 0, 200).await;
        data.faults.arm(point);
        let placed = tlog.place(accepted(200)).await;
        match *point {
            STAGED => assert!(placed.is_err(), "nothing was stored"),
            _ => assert_eq!(placed.map(|placed| placed.index).ok(), Some(200), "it was stored"),
        }
        fill(&tlog, if *point == STAGED { 200 } else { 201 }, 600).await;
        tiled(&tlog).await;
        assert!(!data.faults.is_armed(), "{point} was not passed");
        assert_eq!(tlog.place(accepted(200)).await.unwrap().index, 200);
        assert_eq!(tlog.checkpoint().await.unwrap().size, 600);
        fsck_is_clean(&tlog).await;
    }
}

/// The tasks are cut off at each step, as under `kill -9`; what was acknowledged is there afterwards.
#[tokio::test]
async fn a_restart_at_each_step_loses_nothing() {
    for point in CRASH_STEPS.iter().filter(|point| **point != UPPER_TILE_WRITTEN) {
        let data = Data::new();
        let tlog = data.open().await;
        fill(&tlog, 0, 255).await;
        data.faults.arm(point);
        let placed = tokio::select! {
            placed = tlog.place(accepted(255)) => placed.ok(),
            () = async {
                while data.faults.is_armed() {
                    tokio::task::yield_now().await;
                }
            } => None,
        };
        while data.faults.is_armed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for task in tlog.tasks.lock().unwrap().iter() {
            task.abort();
        }
        drop(tlog);
        let tlog = data.open().await;
        let size = tlog.checkpoint().await.unwrap().size;
        assert!(
            size == 256 || (size == 255 && placed.is_none()),
            "{point}: {size} entries"
        );
        fill(&tlog, 0, 600).await;
        tiled(&tlog).await;
        assert_eq!(tlog.checkpoint().await.unwrap().size, 600);
        fsck_is_clean(&tlog).await;
        assert!(point != &PRUNED || tlog.info().await.unwrap().tiled == 512);
    }
}

#[tokio::test]
async fn a_second_server_waits_and_a_stale_one_cannot_write() {
    let data = Data::new();
    let db = data.db().await;
    let first = Tlog::open(data.settings(db.clone(), "server-1")).await.unwrap();
    fill(&first, 0, 10).await;
    let second = Tlog::open(data.settings(db.clone(), "server-2")).await.unwrap();
    let refused = second.place(accepted(10)).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code().id, "PC1406");
    // It answers all that needs no lease.
    assert_eq!(second.proof(3, None).await.unwrap().size, 10);

    // A third that calls itself server-1 takes the lease over, as after a restart; the first is now stale.
    let third = Tlog::open(data.settings(db.clone(), "server-1")).await.unwrap();
    let stale = first.core.fence.load(Ordering::Acquire);
    fill(&third, 10, 20).await;
    let old = first.checkpoint().await.unwrap();
    let entries = [accepted(20)];
    let new = key(1).sign(21, [0; 32]);
    let outcome = first
        .core
        .tables
        .commit(&Batch {
            fence: stale,
            old: &old,
            new: &new,
            entries: &entries,
            handed: &[],
        })
        .await;
    assert!(matches!(outcome, Outcome::StaleFence), "{outcome:?}");
    assert!(!first.core.tables.prune(stale, 0, 0).await.unwrap());
    let refused = first.place(accepted(20)).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code().id, "PC1406");
    assert_eq!(third.checkpoint().await.unwrap().size, 20);
    fsck_is_clean(&third).await;
}

#[tokio::test]
async fn who_loses_the_compare_and_swap_steps_down_and_nothing_forks() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 10).await;
    // A writer with the right fence and the wrong idea of the size.
    let fence = tlog.core.fence.load(Ordering::Acquire);
    let old = key(1).sign(9, [0; 32]);
    let new = key(1).sign(10, [0; 32]);
    let entries = [accepted(77)];
    let outcome = tlog
        .core
        .tables
        .commit(&Batch {
            fence,
            old: &old,
            new: &new,
            entries: &entries,
            handed: &[],
        })
        .await;
    assert!(matches!(outcome, Outcome::Lost), "{outcome:?}");
    fsck_is_clean(&tlog).await;

    // A writer that moves the checkpoint behind the sequencer's back.
    let mut edge = crate::tile::Edge::default();
    (0..11).for_each(|number| edge.push(accepted(number).leaf, &mut Vec::new()));
    let (old, new) = (tlog.checkpoint().await.unwrap(), key(1).sign(11, edge.root()));
    let entries = [accepted(10)];
    let outcome = tlog
        .core
        .tables
        .commit(&Batch {
            fence,
            old: &old,
            new: &new,
            entries: &entries,
            handed: &[],
        })
        .await;
    assert!(matches!(outcome, Outcome::Moved), "{outcome:?}");
    let lost = tlog.place(accepted(11)).await.map(|_| ()).unwrap_err();
    assert_eq!(lost.code().id, "PC1407");
    // It reads where the log stands and goes on from there.
    assert_eq!(tlog.place(accepted(11)).await.unwrap().index, 11);
    assert_eq!(tlog.place(accepted(10)).await.unwrap().index, 10);
    fsck_is_clean(&tlog).await;
}

#[tokio::test]
async fn a_stale_server_does_not_answer_for_entries_that_it_does_not_know() {
    let data = Data::new();
    let db = data.db().await;
    let stale = Tlog::open(data.settings(db.clone(), "server-1")).await.unwrap();
    fill(&stale, 0, 10).await;
    let newer = Tlog::open(data.settings(db.clone(), "server-1")).await.unwrap();
    fill(&newer, 10, 20).await;
    let lost = stale.place(accepted(15)).await.map(|_| ()).unwrap_err();
    assert_eq!(lost.code().id, "PC1407");
    assert_eq!(newer.place(accepted(15)).await.unwrap().index, 15);
}

#[tokio::test]
async fn what_is_over_a_cap_is_refused_at_once_and_what_was_accepted_is_answered() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 1).await;
    // Nobody gets the one write lock while this is held.
    let held = tlog.core.tables.db.begin().await.unwrap();
    let all = (QUEUE_ENTRIES_MAX + 2 * BATCH_ENTRIES_MAX) as u64;
    let places = (1..=all).map(|number| {
        let tlog = tlog.clone();
        tokio::spawn(async move { tlog.place(accepted(number)).await.map(|placed| placed.index) })
    });
    let places: Vec<_> = places.collect();
    while places.iter().filter(|place| place.is_finished()).count() < BATCH_ENTRIES_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(held);
    let (mut stored, mut refused) = (0, 0);
    for place in places {
        match place.await.unwrap() {
            Ok(_) => stored += 1,
            Err(error) => {
                assert_eq!(error.code().id, "PC1409");
                refused += 1;
            }
        }
    }
    assert!(refused >= BATCH_ENTRIES_MAX && stored >= QUEUE_ENTRIES_MAX);
    assert_eq!(tlog.checkpoint().await.unwrap().size, stored as u64 + 1);

    tlog.core
        .size
        .store(TAIL_ENTRIES_MAX + 1_000_000, Ordering::Release);
    let refused = tlog.place(accepted(0)).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code().id, "PC1409");
    assert!(refused.to_string().contains("TAIL_ENTRIES_MAX"));
}

#[tokio::test]
async fn while_the_outcome_cannot_be_read_nothing_is_guessed() {
    // The database answers again in time: the truth is told.
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 10).await;
    [COMMITTED, READ_BACK]
        .iter()
        .for_each(|point| data.faults.arm(point));
    assert_eq!(tlog.place(accepted(10)).await.unwrap().index, 10);
    // It does not: the caller is told that nobody knows, and finds the entry when asking again.
    data.faults.arm(COMMITTED);
    (0..5).for_each(|_| data.faults.arm(READ_BACK));
    let unknown = tlog.place(accepted(11)).await.map(|_| ()).unwrap_err();
    assert_eq!(unknown.code().id, "PC1408");
    assert!(!data.faults.is_armed());
    assert_eq!(tlog.place(accepted(12)).await.unwrap().index, 12);
    assert_eq!(tlog.place(accepted(11)).await.unwrap().index, 11);
    fsck_is_clean(&tlog).await;
}
