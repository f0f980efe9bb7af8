//! Tests of the running log on SQLite and a folder.

mod copies;
mod damage;
mod interface;
mod servers;
mod writes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use kernel::{Digest, SeededRandom};
use store::{Blobs, Db};

use crate::core::Settings;
use crate::entry::Accepted;
use crate::faults::Faults;
use crate::log::Tlog;
use crate::merkle::leaf_hash;
use crate::{HashedRekord, LogKey, MIGRATIONS, Name, TlogError, Verifier};

const ORIGIN: &str = "0192.log.example";

/// A data folder, and the log in it.
struct Data {
    folder: tempfile::TempDir,
    faults: Faults,
}

impl Data {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            faults: Faults::default(),
        }
    }

    fn blobs(&self) -> PathBuf {
        self.folder.path().join("blobs")
    }

    async fn db(&self) -> Db {
        let db = Db::open(&format!("sqlite:{}", self.folder.path().join("db").display()))
            .await
            .unwrap();
        let migrations = [store::MIGRATIONS, MIGRATIONS].concat();
        db.migrate(&migrations).await.unwrap();
        db
    }

    fn settings(&self, db: Db, holder: &str) -> Settings {
        Settings {
            name: Name::Signatures,
            db,
            blobs: Blobs::folder(&self.blobs()).unwrap(),
            key: key(1),
            holder: format!("{holder} (process 1)"),
            server: holder.to_owned(),
            lease_ttl: Duration::from_secs(30),
            shared: false,
            mark: None,
            owner: None,
        }
    }

    async fn open(&self) -> Tlog {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<Tlog, TlogError> {
        let settings = self.settings(self.db().await, "server-1");
        Tlog::open_with(settings, self.faults.clone()).await
    }

    async fn execute(&self, sql: &'static str) {
        let db = self.db().await;
        let mut tx = db.begin().await.unwrap();
        assert!(
            tx.execute(sql, store::args![]).await.unwrap() > 0,
            "{sql} changed nothing"
        );
        tx.commit().await.unwrap();
        db.close().await;
    }
}

fn key(seed: u64) -> LogKey {
    LogKey::new(ORIGIN, &LogKey::generate(&SeededRandom::new(seed)).unwrap()).unwrap()
}

/// An entry as large as a real one, without the cost of a signature.
fn accepted(number: u64) -> Accepted {
    let body = format!("{number:-<700}").into_bytes();
    Accepted {
        leaf: leaf_hash(&body),
        body,
    }
}

/// Appends the entries `from..to`, at most 512 at a time; each must get its own number as index.
async fn fill(tlog: &Tlog, from: u64, to: u64) {
    for start in (from..to).step_by(512) {
        let batch: Vec<u64> = (start..to.min(start + 512)).collect();
        let placed =
            futures::future::join_all(batch.iter().map(|number| tlog.place(accepted(*number)))).await;
        for (number, placed) in batch.into_iter().zip(placed) {
            assert_eq!(placed.unwrap().index, number);
        }
    }
}

/// Waits until every full bundle is in tiles.
async fn tiled(tlog: &Tlog) {
    for _ in 0..600 {
        let info = tlog.info().await.unwrap();
        if info.checkpoint.size - info.tiled < 256 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the tiles do not follow");
}

async fn fsck_is_clean(tlog: &Tlog) {
    let report = tlog.fsck(&mut |_| {}).await.unwrap();
    assert_eq!(report.damage, [], "{report:?}");
    assert_eq!(report.entries_checked, report.size);
}

/// A signature by a new P-256 key over `message`.
fn signed(message: &str) -> HashedRekord {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
    HashedRekord {
        digest: Digest::of(message.as_bytes()).as_bytes().to_vec(),
        signature: pair
            .sign(&SystemRandom::new(), message.as_bytes())
            .unwrap()
            .as_ref()
            .to_vec(),
        verifier: Verifier::PublicKey(spki.as_ref().to_vec()),
    }
}

/// Changes a file.
fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}
