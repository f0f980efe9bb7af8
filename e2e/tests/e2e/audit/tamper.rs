//! Tampering with the database and the files under a running server, as somebody who has both in hand.

use e2e::{Server, Setup};
use store::{Db, Value, args};
use testkit::Postgres;

use super::{assert_found, assert_whole, records, sealed, token};

/// Records that make a full tile and a few more.
const RECORDS: usize = 262;

/// What is done, what it changes, how it is undone, and what is found.
struct Tampering {
    what: &'static str,
    does: &'static str,
    undoes: &'static str,
    found: &'static [&'static str],
}

/// The third and the fourth record are `$1` and `$2`.
const TAMPERINGS: &[Tampering] = &[
    Tampering {
        what: "an actor changed",
        does: "UPDATE audit SET actor = actor || 'x' WHERE id = $1 OR id = $2 AND 1 = 0",
        undoes: "UPDATE audit SET actor = SUBSTR(actor, 1, LENGTH(actor) - 1) WHERE id = $1 OR id = $2 AND 1 = 0",
        found: &["altered: record $1 (sequence 3)", "sealed was: token.create"],
    },
    Tampering {
        what: "an outcome changed to a word of somebody's own",
        does: "UPDATE audit SET outcome = 'fine' WHERE id = $1 OR id = $2 AND 1 = 0",
        undoes: "UPDATE audit SET outcome = 'success' WHERE id = $1 OR id = $2 AND 1 = 0",
        found: &["altered: record $1 (sequence 3)"],
    },
    Tampering {
        what: "a time changed",
        does: "UPDATE audit SET at = at + 1 WHERE id = $1 OR id = $2 AND 1 = 0",
        undoes: "UPDATE audit SET at = at - 1 WHERE id = $1 OR id = $2 AND 1 = 0",
        found: &["altered: record $1 (sequence 3)"],
    },
    Tampering {
        what: "two records exchanged",
        does: "UPDATE audit SET sequence = 7 - sequence WHERE id = $1 OR id = $2",
        undoes: "UPDATE audit SET sequence = 7 - sequence WHERE id = $1 OR id = $2",
        found: &[
            "reordered: record $1 (sequence 4)",
            "reordered: record $2 (sequence 3)",
        ],
    },
    Tampering {
        what: "one record in the place of another",
        does: "UPDATE audit SET id = id || 'x' WHERE id = $1 OR id = $2 AND 1 = 0",
        undoes: "UPDATE audit SET id = $1 WHERE id = $1 || 'x' OR id = $2 AND 1 = 0",
        found: &[
            "removed: record $1 (sequence 3)",
            "added: record $1x (sequence 3)",
        ],
    },
    Tampering {
        what: "a place that the seal has not reached",
        does: "UPDATE audit SET sequence = 1000000 WHERE id = $1 OR id = $2 AND 1 = 0",
        undoes: "UPDATE audit SET sequence = 3 WHERE id = $1 OR id = $2 AND 1 = 0",
        found: &["$1"],
    },
];

async fn execute(db: &Db, sql: &'static str, args: Vec<Value>) -> u64 {
    let mut tx = db.begin().await.unwrap();
    let rows = tx.execute(sql, args).await.unwrap();
    tx.commit().await.unwrap();
    rows
}

pub async fn started(config: String) -> Server {
    let server = Server::start(Setup {
        config,
        ..Setup::default()
    })
    .unwrap();
    let api = server.api().unwrap();
    for number in 0..RECORDS - 3 {
        token(&api, &format!("t{number}"), "viewer").await;
    }
    sealed(&api, RECORDS).await;
    assert_whole(&server);
    server
}

async fn rows_are_held_against_the_seal(server: &Server, db: &Db) {
    let api = server.api().unwrap();
    let all = records(&api, "order=sequence").await;
    let id = |at: usize| all[at]["id"].as_str().unwrap();
    let (third, fourth) = (id(3), id(4));
    for Tampering {
        what,
        does,
        undoes,
        found,
    } in TAMPERINGS
    {
        assert!(execute(db, does, args![third, fourth]).await > 0, "{what}");
        let words: Vec<String> = found
            .iter()
            .map(|text| text.replace("$1", third).replace("$2", fourth))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_found(what, &server.run(&["audit", "verify"]).unwrap(), &words);
        assert!(execute(db, undoes, args![third, fourth]).await > 0, "{what}");
        assert_whole(server);
    }
    // Forged, in a place that is taken: also where a page of the list ends, and where no list begins.
    for place in [3, 199, -5] {
        let forge = "INSERT INTO audit (id, at, actor, project, action, resource, detail, request_id, outcome, code, \
             times, sequence) SELECT 'aud_forged', at, actor, project, action, resource, detail, request_id, outcome, \
             code, times, $2 FROM audit WHERE id = $1";
        assert_eq!(execute(db, forge, args![third, place as i64]).await, 1);
        assert_found(
            "forged",
            &server.run(&["audit", "verify"]).unwrap(),
            &["added: record aud_forged"],
        );
        execute(db, "DELETE FROM audit WHERE id = $1", args!["aud_forged"]).await;
        assert_whole(server);
    }
    // Removed: first one, then the newest, then all of one actor's.
    let newest = id(all.len() - 1);
    execute(db, "DELETE FROM audit WHERE id = $1", args![third]).await;
    execute(db, "DELETE FROM audit WHERE id = $1", args![newest]).await;
    let words = [
        format!("removed: record {third} (sequence 3)"),
        format!("removed: record {newest} (sequence {})", all.len() - 1),
    ];
    let verified = server.run(&["audit", "verify"]).unwrap();
    assert_found("two removed", &verified, &[&words[0], &words[1], "in 2 places"]);
    let json = server.run(&["audit", "verify", "-o", "json"]).unwrap();
    let verdict: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (json.code, &verdict["verified"]),
        (Some(8), &serde_json::json!(false))
    );
    assert_eq!(
        verdict["findings"][0]["sealed"]["id"], third,
        "what was sealed is still there"
    );
    // Altered, and given to the server to seal again.
    execute(
        db,
        "UPDATE audit SET detail = 'x', sequence = NULL WHERE id = $1",
        args![fourth],
    )
    .await;
    sealed(&api, 1).await;
    let verified = server.run(&["audit", "verify"]).unwrap();
    let word = format!("altered: record {fourth} (sequence 4): it was sealed again");
    assert_found("sealed again", &verified, &[&word]);
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_names_every_row_that_was_tampered_with_on_sqlite() {
    let server = started(String::new()).await;
    let url = format!("sqlite:{}", server.data().join("portcullis.db").display());
    let db = Db::open(&url).await.unwrap();
    rows_are_held_against_the_seal(&server, &db).await;
    db.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_names_every_row_that_was_tampered_with_on_postgresql() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let url = postgres.database();
    let server = started(format!(
        "[database]\nurl = {url:?}\n[blobs]\nurl = \"FOLDER/data/blobs\"\n"
    ))
    .await;
    let db = Db::open(&url).await.unwrap();
    rows_are_held_against_the_seal(&server, &db).await;
    db.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_names_every_part_of_the_seal_that_was_tampered_with() {
    let mut server = started(String::new()).await;
    let tile = |name: &str| server.data().join("blobs/audit").join(name);
    let (bundle, hashes) = (tile("tile/entries/000"), tile("tile/0/000"));
    assert!(
        testkit::wait_for(|| hashes.is_file().then_some(())).is_some(),
        "no tile was written"
    );
    let verify = |server: &Server| server.run(&["audit", "verify"]).unwrap();
    for (path, named) in [(&bundle, "tile/entries/000"), (&hashes, "tile/0/000")] {
        let good = std::fs::read(path).unwrap();
        let mut changed = good.clone();
        changed[100] ^= 1;
        for bytes in [Some(changed), Some(good[..50].to_vec()), None] {
            match &bytes {
                Some(bytes) => std::fs::write(path, bytes).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            // What the server has in memory is as good as ever; that would hide it.
            server.restart().unwrap();
            assert_found(named, &verify(&server), &["tile/"]);
            let api = server.api().unwrap();
            assert_eq!(
                api.get("/api/v1/keys").await.unwrap().status,
                200,
                "the server works without its seal"
            );
        }
        std::fs::write(path, good).unwrap();
        server.restart().unwrap();
        assert_whole(&server);
    }
    let url = format!("sqlite:{}", server.data().join("portcullis.db").display());
    let db = Db::open(&url).await.unwrap();
    for (what, sql) in [
        (
            "a row of the right edge",
            "UPDATE audit_tail SET body = X'00' WHERE entry_index = 260",
        ),
        ("the checkpoint", "UPDATE audit_checkpoint SET size = size - 1"),
    ] {
        assert_eq!(execute(&db, sql, args![]).await, 1, "{what}");
        assert_found(what, &verify(&server), &["PC1620"]);
        // Damaged for good: the rest is looked at with it.
    }
    db.close().await;
}
