//! A name that leads to another real PostgreSQL, to one that takes no writes, and back.

use std::path::PathBuf;
use std::sync::Arc;

use kernel::{Fault as _, SeededRandom, SystemClock};
use probing::{Finding, Marks, Probe as _, State};
use store::{Db, Recent, StoreError, args};
use testkit::{Postgres, Switch};

use crate::{clock, is, mark, probe};

/// Two servers, each with a database of an installation of its own and one name, and what leads to the first.
struct World {
    own: Postgres,
    other: Postgres,
    switch: Switch,
    /// Past the switch.
    direct: [Db; 2],
}

const COUNT: &str = "SELECT beat FROM installation";

fn socket(server: &Postgres) -> PathBuf {
    server.socket_folder().join(".s.PGSQL.5432")
}

impl World {
    async fn new() -> Option<Self> {
        let (own, other) = (Postgres::own()?, Postgres::own()?);
        let switch = Switch::start(&socket(&own)).unwrap();
        let migrations = [store::MIGRATIONS, access::MIGRATIONS, probing::MIGRATIONS].concat();
        let mut direct = Vec::new();
        for (server, seed) in [(&own, 1), (&other, 2)] {
            let db = Db::open(&server.database()).await.unwrap();
            db.migrate(&migrations).await.unwrap();
            let random = SeededRandom::new(seed);
            Marks::new(db.clone())
                .installation(&clock(), &random)
                .await
                .unwrap();
            direct.push(db);
        }
        let direct = direct.try_into().ok()?;
        Some(Self {
            own,
            other,
            switch,
            direct,
        })
    }

    /// As a server opens it, which knows from then on whose it is.
    async fn open(&self) -> Db {
        let url = format!("postgres://postgres@{}/test0", self.switch.address());
        let db = Db::open(&url).await.unwrap();
        let marks = Marks::new(db.clone());
        let id = marks.installation(&clock(), &SeededRandom::new(9)).await.unwrap();
        marks.require(&id);
        db
    }
}

async fn read_only(db: &Db, on: bool) {
    let mut tx = db.begin().await.unwrap();
    let statement = match on {
        true => "ALTER DATABASE test0 SET default_transaction_read_only = on",
        false => "ALTER DATABASE test0 RESET default_transaction_read_only",
    };
    tx.execute("SET TRANSACTION READ WRITE", args![]).await.unwrap();
    tx.execute(statement, args![]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn count(db: &Db) -> i64 {
    db.read_one(COUNT, args![])
        .await
        .unwrap()
        .unwrap()
        .int("beat")
        .unwrap()
}

/// Nobody looks between the switch and the questions. Shown to fail: without `Gate::admit` in `Postgres::open`, the other
/// one's rows are read and it is written to.
#[tokio::test(flavor = "multi_thread")]
async fn p14_of_another_postgresql_behind_the_name_nothing_is_read_and_nothing_written() {
    let Some(world) = World::new().await else { return };
    let (_folder, path) = mark();
    let db = world.open().await;
    let ours = probe(&db, &path);
    is(&ours.look().await, State::Ok);
    let recent = Recent::new("row", Arc::new(SystemClock::new()), |_, _: &u8, _: &String| true);
    let name = || async {
        let row = db.read_one("SELECT name FROM installation", args![]).await?;
        row.map(|row| row.text("name")).transpose()
    };
    let own = recent.read(1, name()).await.unwrap().unwrap();
    world.switch.lead_to(&socket(&world.other));
    let asked = futures::future::join_all((0..20).map(|_| async {
        let read = name().await;
        assert!(
            read.as_ref().map_or(true, |read| read.as_ref() == Some(&own)),
            "{read:?}"
        );
        let written = async {
            let mut tx = db.begin().await?;
            tx.execute("UPDATE installation SET beat = 1000", args![]).await?;
            tx.commit().await
        };
        written.await.unwrap_err()
    }));
    asked.await;
    let refused = db.begin().await.map(drop).unwrap_err();
    assert_eq!(refused.code().id, "PC1111", "{refused:?}");
    assert_eq!(name().await.unwrap_err().code().id, "PC1111");
    tokio::time::sleep(std::time::Duration::from_millis(store::STALE_MS_MAX)).await;
    assert_eq!(recent.read(1, name()).await.unwrap(), Some(own.clone()));
    assert_eq!(
        count(&world.direct[1]).await,
        0,
        "somebody else's database was written to"
    );
    is(&ours.look().await, State::WrongDatabase);
    world.switch.lead_to(&socket(&world.own));
    is(&ours.look().await, State::Ok);
    assert_eq!(name().await.unwrap(), Some(own));
    db.begin().await.unwrap();
}

fn takes_no_writes(finding: &Finding) {
    is(finding, State::Unreachable);
    assert!(finding.found.starts_with("PC1112"), "{finding:?}");
}

/// Shown to fail: with the count moved on before it is judged in `DatabaseProbe::look`, each of them is UNREACHABLE.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_wrong_or_older_postgresql_that_takes_no_writes_is_named_too() {
    let Some(world) = World::new().await else { return };
    let (_folder, path) = mark();
    let db = world.open().await;
    let ours = probe(&db, &path);
    for _ in 0..3 {
        is(&ours.look().await, State::Ok);
    }
    let [own, other] = &world.direct;
    read_only(other, true).await;
    world.switch.lead_to(&socket(&world.other));
    is(&ours.look().await, State::WrongDatabase);
    assert_eq!(db.begin().await.map(drop).unwrap_err().code().id, "PC1111");
    // The right one comes back, and takes no writes: it is read.
    read_only(own, true).await;
    world.switch.lead_to(&socket(&world.own));
    takes_no_writes(&ours.look().await);
    let mut last: Result<_, StoreError> = db.read_one(COUNT, args![]).await;
    for _ in 0..20 {
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        last = db.read_one(COUNT, args![]).await;
    }
    assert_eq!(last.unwrap().unwrap().int("beat").unwrap(), 3);
    // A standby that stopped following.
    read_only(own, false).await;
    let mut tx = own.begin().await.unwrap();
    tx.execute("SET TRANSACTION READ WRITE", args![]).await.unwrap();
    tx.execute("UPDATE installation SET beat = 1", args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    read_only(own, true).await;
    for _ in 0..2 {
        let older = ours.look().await;
        is(&older, State::RolledBack);
        assert!(older.found.contains("PC1112"), "{older:?}");
    }
    read_only(own, false).await;
    is(&ours.look().await, State::RolledBack);
    db.begin().await.unwrap();
}
