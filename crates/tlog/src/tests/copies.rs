//! Copies of the log: what is read from files that nobody vouches for is proven, and a copy is never overwritten by
//! a log that contradicts it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kernel::{Fault, Kind, chain};

use super::*;
use crate::tile::TilePath;
use crate::{Files, Folder, View};

/// Every file under a folder, with its bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// A log whose first entry is `first`, and a copy of it.
async fn copied(first: u64, size: u64) -> (Data, Tlog, tempfile::TempDir) {
    let (data, copy) = (Data::new(), tempfile::tempdir().unwrap());
    let tlog = data.open().await;
    tlog.place(accepted(first)).await.unwrap();
    for number in 1..size {
        tlog.place(accepted(number)).await.unwrap();
    }
    tlog.export(copy.path(), &mut |_| {}).await.unwrap();
    (data, tlog, copy)
}

/// Exports over a copy and expects a conflict that says all of `words`, with the copy as it was.
async fn diverges(tlog: &Tlog, copy: &Path, words: &[&str]) {
    let before = files(copy);
    let error = tlog.export(copy, &mut |_| {}).await.unwrap_err();
    let text = chain(&error);
    assert_eq!(
        (error.code().id, error.kind()),
        ("PC1418", Kind::Conflict),
        "{text}"
    );
    let checkpoint = Folder::open(copy, None).await.unwrap().checkpoint().clone();
    let own = tlog.checkpoint().await.unwrap();
    for word in [hex::encode(checkpoint.root), hex::encode(own.root)] {
        assert!(text.contains(&word), "{word} is not in: {text}");
    }
    for word in words {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    assert_eq!(before, files(copy), "the copy was written to");
}

#[tokio::test]
async fn a_fork_a_smaller_log_and_another_log_leave_the_copy_as_it_is() {
    let (_data, _, copy) = copied(0, 5).await;
    let (_other, fork, _) = copied(1_000, 5).await;
    diverges(&fork, copy.path(), &["5 entries"]).await;
    fill(&fork, 5, 300).await;
    diverges(&fork, copy.path(), &["5 entries", "300 entries"]).await;
    let (_small, smaller, _) = copied(0, 3).await;
    diverges(&smaller, copy.path(), &["5 entries", "3 entries", "smaller"]).await;

    let data = Data::new();
    let settings = Settings {
        key: key(2),
        ..data.settings(data.db().await, "server-1")
    };
    let other = Tlog::open(settings).await.unwrap();
    fill(&other, 0, 9).await;
    diverges(&other, copy.path(), &["another log", "9 entries"]).await;
}

#[tokio::test]
async fn a_copy_that_grows_from_any_size_is_a_new_copy() {
    let data = Data::new();
    let (tlog, grown) = (data.open().await, tempfile::tempdir().unwrap());
    let mut last = 0;
    for size in [0, 1, 1, 255, 256, 257, 512, 700] {
        fill(&tlog, last, size).await;
        last = size;
        tlog.export(grown.path(), &mut |_| {}).await.unwrap();
        let fresh = tempfile::tempdir().unwrap();
        tlog.export(fresh.path(), &mut |_| {}).await.unwrap();
        for (path, bytes) in files(fresh.path()) {
            let own = grown.path().join(path.strip_prefix(fresh.path()).unwrap());
            assert!(std::fs::read(&own).unwrap() == bytes, "{size}: {}", own.display());
        }
    }
}

#[tokio::test]
async fn a_damaged_copy_is_named_and_not_written_to() {
    let (_data, tlog, copy) = copied(0, 300).await;
    fill(&tlog, 300, 600).await;
    let path = copy.path().join("tile/entries/000");
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[9] ^= 1;
    std::fs::write(&path, bad).unwrap();
    let before = files(copy.path());
    let error = tlog.export(copy.path(), &mut |_| {}).await.unwrap_err();
    assert_eq!(error.code().id, "PC1401");
    assert!(
        error.to_string().contains("tile/entries/000 in the copy"),
        "{error}"
    );
    assert_eq!(before, files(copy.path()));
    std::fs::write(&path, good).unwrap();
    tlog.export(copy.path(), &mut |_| {}).await.unwrap();
    let folder = Folder::open(copy.path(), None).await.unwrap();
    let report = folder.fsck(&mut |_| {}).await.unwrap();
    assert_eq!((report.size, report.damage), (600, vec![]));
}

#[tokio::test]
async fn the_damaged_one_of_a_bundle_and_its_tile_is_named() {
    for size in [300, 7] {
        let (_data, tlog, copy) = copied(0, size).await;
        let width = if size == 7 { ".p/7" } else { "" };
        for name in ["tile/entries/000", "tile/0/000"].map(|name| format!("{name}{width}")) {
            let path = copy.path().join(&name);
            let good = std::fs::read(&path).unwrap();
            let mut bad = good.clone();
            bad[40] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let folder = Folder::open(copy.path(), None).await.unwrap();
            let report = folder.fsck(&mut |_| {}).await.unwrap();
            let found: Vec<&str> = report.damage.iter().map(|damage| damage.what.as_str()).collect();
            assert_eq!(found, [name.as_str()], "{report:?}");
            let error = folder.proof(0, None).await.unwrap_err();
            assert_eq!(error.code().id, "PC1404", "{}", chain(&error));
            assert!(
                error.to_string().contains(&format!("; {name} is damaged")),
                "{error}"
            );
            assert!(error.is_damage());
            std::fs::write(&path, good).unwrap();
        }
        fsck_is_clean(&tlog).await;
    }
}

/// The log's own tiles, counted, with one bundle forged if need be.
struct Wire {
    tlog: Tlog,
    forge: bool,
    asked: AtomicUsize,
}

impl Files for Wire {
    async fn file(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut bytes = self.tlog.tile(path).await?;
        if self.forge && path.level.is_none() {
            bytes[2] ^= 1;
        }
        Ok(Some(bytes.into()))
    }
}

#[tokio::test]
async fn an_entry_from_the_wire_is_proven_with_a_handful_of_files() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 2_600).await;
    let note = tlog.checkpoint().await.unwrap().note;
    let view = |forge| {
        let (tlog, verifier) = (tlog.clone(), tlog.verifier().clone());
        let asked = AtomicUsize::new(0);
        View::new(Wire { tlog, forge, asked }, verifier, &note).unwrap()
    };
    let honest = view(false);
    assert_eq!(honest.entry(512).await.unwrap(), accepted(512).body);
    assert_eq!(
        honest.proof(512, None).await.unwrap(),
        tlog.proof(512, None).await.unwrap()
    );
    let asked = honest.files().asked.load(Ordering::Relaxed);
    assert!(asked <= 6, "{asked} files for one entry and its proof");
    let error = view(true).entry(512).await.unwrap_err();
    assert_eq!(error.code().id, "PC1404");
    assert!(
        error.to_string().contains("; tile/entries/002 is damaged"),
        "{error}"
    );

    // A copy over the wire is the copy from the store, and a forged one is refused with nothing promised.
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let by_name = |folder: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let relative = |path: PathBuf| path.strip_prefix(folder).unwrap().to_owned();
        files(folder)
            .into_iter()
            .map(|(path, bytes)| (relative(path), bytes))
            .collect()
    };
    honest.export(a.path(), &mut |_| {}).await.unwrap();
    tlog.export(b.path(), &mut |_| {}).await.unwrap();
    assert_eq!(by_name(a.path()), by_name(b.path()));
    let forged = tempfile::tempdir().unwrap();
    let error = view(true).export(forged.path(), &mut |_| {}).await.unwrap_err();
    assert_eq!(error.code().id, "PC1404");
    assert!(!forged.path().join("checkpoint").exists());
}
