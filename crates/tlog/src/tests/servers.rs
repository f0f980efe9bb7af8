//! Several servers of one log. They share a SQLite file here, as they would a PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kernel::Fault;
use store::args;

use super::*;
use crate::merkle::verify_inclusion;

/// Long enough for a slow machine to renew it, short enough to wait for its end.
const LEASE: Duration = Duration::from_millis(1_200);

async fn server(data: &Data, db: &Db, holder: &str) -> Tlog {
    let settings = Settings {
        lease_ttl: LEASE,
        shared: true,
        ..data.settings(db.clone(), holder)
    };
    Tlog::open(settings).await.unwrap()
}

/// Ends a server's tasks in the middle of whatever they do, as a kill would.
fn kill(tlog: &Tlog) {
    for task in tlog.tasks.lock().unwrap().drain(..) {
        task.abort();
    }
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what} did not happen within ten seconds");
}

async fn execute(db: &Db, sql: &'static str, args: Vec<store::Value>) {
    let mut tx = db.begin().await.unwrap();
    tx.execute(sql, args).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_server_takes_entries_and_one_appends_them() {
    let data = Data::new();
    let db = data.db().await;
    let servers = [
        server(&data, &db, "server-1").await,
        server(&data, &db, "server-2").await,
        server(&data, &db, "server-3").await,
    ];
    let placed = (0..300_u64).map(|number| {
        // Some entries are asked for at two servers at once.
        let [first, second] = [0, number % 7].map(|next| &servers[((number + next) % 3) as usize]);
        futures::future::join(
            first.append(Box::leak(Box::new(signed(&number.to_string())))),
            second.place(accepted(number)),
        )
    });
    let mut indexes = std::collections::BTreeSet::new();
    for (entry, place) in futures::future::join_all(placed).await {
        assert!(indexes.insert(entry.unwrap().index));
        let place = place.unwrap();
        assert!(place.checkpoint.size > place.index);
        assert!(indexes.insert(place.index));
    }
    assert_eq!(indexes, (0..600).collect());
    let leading = servers.iter().filter(|server| server.leads()).count();
    assert_eq!(leading, 1);
    assert!(
        db.read("SELECT leaf FROM tlog_waiting", args![])
            .await
            .unwrap()
            .is_empty()
    );
    for server in &servers {
        fsck_is_clean(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_appends_after_the_leader_stopped_or_died() {
    let data = Data::new();
    let db = data.db().await;
    let first = server(&data, &db, "server-1").await;
    assert_eq!(first.place(accepted(0)).await.unwrap().index, 0);
    let second = server(&data, &db, "server-2").await;
    let third = server(&data, &db, "server-3").await;
    // It gives the lease back, and nobody is refused meanwhile.
    first.close().await;
    let places = futures::future::join(second.place(accepted(1)), third.place(accepted(2))).await;
    assert_eq!(
        std::collections::BTreeSet::from([places.0.unwrap().index, places.1.unwrap().index]),
        [1, 2].into()
    );
    // It dies with the lease in its hand.
    let (leader, other) = match second.leads() {
        true => (second, third),
        false => (third, second),
    };
    kill(&leader);
    let clock = kernel::SystemClock::new();
    let began = kernel::Clock::monotonic(&clock);
    assert_eq!(other.place(accepted(3)).await.unwrap().index, 3);
    let took = kernel::Clock::monotonic(&clock).since(began);
    assert!(took < LEASE * 3, "{took:?}");
    fsck_is_clean(&other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_handed_over_and_is_damaged_is_left_out() {
    let data = Data::new();
    let db = data.db().await;
    let leader = server(&data, &db, "server-1").await;
    assert_eq!(leader.place(accepted(0)).await.unwrap().index, 0);
    let sql = "INSERT INTO tlog_waiting (leaf, body) VALUES ($1, $2)";
    execute(&db, sql, args![vec![7_u8; 32], b"another body".to_vec()]).await;
    // More than are read at once, whose hash is none.
    let mut tx = db.begin().await.unwrap();
    for number in 0..1_100_u16 {
        let args = args![number.to_be_bytes().to_vec(), b"a body".to_vec()];
        tx.execute(sql, args).await.unwrap();
    }
    tx.commit().await.unwrap();
    let good = accepted(1);
    execute(&db, sql, args![good.leaf.to_vec(), good.body.clone()]).await;
    until("taking in", async || {
        db.read("SELECT leaf FROM tlog_waiting", args![])
            .await
            .unwrap()
            .is_empty()
    })
    .await;
    assert_eq!(leader.checkpoint().await.unwrap().size, 2);
    assert_eq!(leader.place(good).await.unwrap().index, 1);
    fsck_is_clean(&leader).await;
}

/// A server whose configuration names another place for blobs moves nothing there. Shown to fail by taking
/// `require_owner` out: the first 256 entries are then in the wrong place, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_tiled_into_a_store_that_is_not_known_to_be_ours() {
    let data = Data::new();
    let db = data.db().await;
    let owner = crate::Owner {
        blob: "installation",
        id: "ins_1".to_owned(),
    };
    let settings = Settings {
        lease_ttl: LEASE,
        shared: true,
        owner: Some(owner),
        ..data.settings(db.clone(), "server-1")
    };
    let tlog = Tlog::open(settings).await.unwrap();
    fill(&tlog, 0, 300).await;
    let whose = data.blobs().join("installation");
    for found in [None, Some("ins_2")] {
        if let Some(found) = found {
            std::fs::write(&whose, found).unwrap();
        }
        let error = crate::tiler::tile_all(&tlog.core).await.unwrap_err();
        assert_eq!(error.code().id, "PC1421", "{}", kernel::chain(&error));
        assert!(error.to_string().contains(found.unwrap_or("nothing")), "{error}");
        assert_eq!(tlog.info().await.unwrap().tiled, 0);
        assert!(!data.blobs().join("tlog").exists());
    }
    // Meanwhile it is one log, out of the database; and it is tiled as soon as the store is ours.
    fsck_is_clean(&tlog).await;
    std::fs::write(&whose, "ins_1").unwrap();
    tiled(&tlog).await;
    fsck_is_clean(&tlog).await;
}

/// P11, "0 forks": shown to fail by taking the condition on `*_seen` out of the statement that moves the checkpoint,
/// together with `check_seen`: the second server then appends entry 5 a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_appends_to_a_copy_that_lost_what_any_server_has_seen() {
    let data = Data::new();
    let db = data.db().await;
    let first = server(&data, &db, "server-1").await;
    fill(&first, 0, 5).await;
    let old = first.checkpoint().await.unwrap();
    let second = server(&data, &db, "server-2").await;
    // Nobody but the leader sees these; a server that was just started has seen nothing.
    fill(&first, 5, 9).await;
    let fence = first.core.fence.load(Ordering::Acquire);
    kill(&second);
    for sql in [
        "DELETE FROM tlog_tail WHERE entry_index >= 5",
        "DELETE FROM tlog_leaf WHERE entry_index >= 5",
    ] {
        execute(&db, sql, args![]).await;
    }
    let back = "UPDATE tlog_checkpoint SET size = $1, note = $2 WHERE id = 1";
    execute(&db, back, args![5_i64, &old.note]).await;
    let refused = first.place(accepted(100)).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code().id, "PC1405", "{}", kernel::chain(&refused));
    until("telling", async || {
        let told = db
            .read("SELECT server FROM tlog_seen WHERE size = 9", args![])
            .await;
        told.unwrap().len() == 1
    })
    .await;
    // The leader is gone for good; the others know only what it told.
    kill(&first);
    let third = server(&data, &db, "server-3").await;
    let refused = third.place(accepted(5_000)).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code().id, "PC1405", "{}", kernel::chain(&refused));
    assert!(
        kernel::chain(&refused).contains("server-1 has seen"),
        "{}",
        kernel::chain(&refused)
    );
    // Nor does one that leads already and has not heard.
    let entries = [accepted(5_000)];
    let moved = third
        .core
        .tables
        .commit(&crate::tables::Batch {
            fence,
            old: &old,
            new: &key(1).sign(6, [0; 32]),
            entries: &entries,
            handed: &[],
        })
        .await;
    assert!(!matches!(moved, crate::tables::Outcome::Moved), "{moved:?}");
    assert_eq!(third.checkpoint().await.unwrap().size, 5);
    // The newest copy is put back, and the log goes on.
    execute(&db, "DELETE FROM tlog_seen", args![]).await;
    until("going on", async || third.place(accepted(5)).await.is_ok()).await;
    fsck_is_clean(&third).await;
}

/// A server saw another log of the same key, a copy that went on by itself. What is dismissed stops nobody, is held against
/// the database by nobody, from the table, the memory or the file, and is not told again; a higher one stops the log.
/// Shown to fail: with `was_dismissed` always false the first server never goes on, and without the filter in `mark` it
/// does not start; without `*_dismissed` in the statement that moves the checkpoint nobody appends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_dismissed_stops_nobody_and_a_higher_one_does() {
    let data = Data::new();
    let db = data.db().await;
    let mark = data.folder.path().join("log.checkpoint");
    let open = async || {
        let settings = Settings {
            lease_ttl: LEASE,
            shared: true,
            mark: Some(mark.clone()),
            ..data.settings(db.clone(), "server-1")
        };
        Tlog::open(settings).await.unwrap()
    };
    let (first, second) = (open().await, server(&data, &db, "server-2").await);
    fill(&first, 0, 5).await;
    let seen = |size: u64| Arc::new(key(1).sign(size, [7; 32]));
    first.core.remember(&seen(9));
    until("telling", async || {
        !crate::told(&db, Name::Signatures).await.unwrap().is_empty()
    })
    .await;
    assert!(second.place(accepted(5)).await.is_err());
    let told = crate::told(&db, Name::Signatures).await.unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&*told[0].server, told[0].size, told[0].stops),
        ("server-1", 9, true)
    );
    assert_eq!(told[0].root, hex::encode([7; 32]));

    let dismiss = async |size| {
        let mut tx = db.begin().await.unwrap();
        let done = crate::dismiss(&mut tx, Name::Signatures, size, "a copy", 1).await;
        tx.commit().await.unwrap();
        done
    };
    assert_eq!(dismiss(8).await.unwrap_err().code().id, "PC1422");
    assert_eq!(dismiss(9).await.unwrap(), [hex::encode([7; 32])]);
    assert_eq!(dismiss(9).await.unwrap_err().code().id, "PC1422");
    for tlog in [&second, &first] {
        until("going on", async || tlog.place(accepted(5)).await.is_ok()).await;
    }
    assert_eq!(first.seen().map(|seen| seen.size), Some(6));
    let told = crate::told(&db, Name::Signatures).await.unwrap();
    assert_eq!(told[0].dismissed, Some(("a copy".to_owned(), 1)));
    assert!(!told[0].stops && crate::told(&db, Name::Audit).await.unwrap().is_empty());

    // Told again: by its memory, and by its file at the next start.
    first.core.tables.tell("server-1", &seen(9)).await.unwrap();
    first.core.remember(&seen(9));
    until("going on", async || first.place(accepted(6)).await.is_ok()).await;
    first.close().await;
    std::fs::write(&mark, &seen(9).note).unwrap();
    let first = open().await;
    assert_eq!(first.place(accepted(7)).await.unwrap().index, 7);
    until("writing the file", async || {
        !std::fs::read_to_string(&mark).unwrap().contains(&seen(9).note)
    })
    .await;
    assert_eq!(second.told().await.unwrap(), None);

    // One that nobody dismissed, of another root or higher, stops the log, although its server's row is a dismissed one.
    first.core.tables.tell("server-1", &seen(10)).await.unwrap();
    assert!(second.place(accepted(8)).await.is_err());
    assert_eq!(second.told().await.unwrap(), Some(("server-1".to_owned(), 10)));
    assert_eq!(second.checkpoint().await.unwrap().size, 8);
    fsck_is_clean(&second).await;
}

/// A server that does not append learns of the newest tiles by reading, and only what it does not have yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_append_proves_while_the_log_grows_under_it() {
    let data = Data::new();
    let db = data.db().await;
    let first = server(&data, &db, "server-1").await;
    fill(&first, 0, 10).await;
    let other = server(&data, &db, "server-2").await;
    let mut size = 10;
    for step in [1, 100, 145, 1, 255, 256, 257, 700] {
        fill(&first, size, size + step).await;
        size += step;
        if step % 2 == 1 {
            tiled(&first).await;
        }
        let proofs = (0..40).map(|number| {
            let index = size - 1 - (number * 37) % size;
            let other = &other;
            async move { (index, other.proof(index, Some(size)).await.unwrap()) }
        });
        for (index, proof) in futures::future::join_all(proofs).await {
            assert_eq!(proof.leaf, accepted(index).leaf);
            verify_inclusion(&proof.leaf, index, size, &proof.hashes, &proof.root).unwrap();
        }
    }
    fsck_is_clean(&other).await;
}
