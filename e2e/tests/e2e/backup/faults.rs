//! Kills, full disks, and archives that are not what they should be.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Server, run};
use store::archive::{self, Member, Reader, Writer};
use testkit::{Postgres, wait_for};

use super::{World, restore, sign, target, text};
use crate::full_disk::SmallDisk;

/// The variable that arms a point at which a command dies.
const CRASH_VARIABLE: &str = "PORTCULLIS_TEST_CRASH_AT";

/// Runs the command, which dies at the point.
#[track_caller]
fn dies(command: &mut Command, point: &str) {
    let ran = run(command.env(CRASH_VARIABLE, point)).unwrap();
    assert_eq!(ran.code, None, "{point}: it did not die: {ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_killed_leaves_nothing_under_its_name_and_the_next_one_works() {
    let world = World::new(None).await;
    let (file, data) = (world.server.folder().join("b.tar"), text(&world.server.data()));
    let args = ["backup", &text(&file), "--data", &data];
    for point in ["backup.table", "backup.table:9", "backup.blobs", "backup.synced"] {
        dies(world.server.command().args(args), point);
        assert!(!file.exists(), "{point}: there is a backup");
    }
    world.server.run(&args).unwrap().expect_ok();
    let first = std::fs::read(&file).unwrap();
    // The second one to the same name: refused, and with --force killed at any step the old one stands.
    world.server.run(&args).unwrap().expect_refused("PC1717");
    let forced = [&args[..], &["--force"]].concat();
    dies(world.server.command().args(&forced), "backup.synced");
    assert!(
        std::fs::read(&file).unwrap() == first,
        "it was replaced by half of another"
    );
    world.server.run(&forced).unwrap().expect_ok();
    let others: Vec<_> = std::fs::read_dir(world.server.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("partial"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    restore(&target(None, ""), &file, &[]).expect_ok();
}

/// Killed at each step, a restore leaves a database on which nothing starts; done again it is whole, or, where rows were
/// put in already, asks for an empty one. It fails if `Db::migrate` does not look for the mark.
async fn restore_survives_kills(database: impl Fn() -> Option<String>) {
    let mut world = World::new(None).await;
    let (file, _) = world.backup("b.tar");
    world.server.kill();
    for (point, again) in [
        ("restore.marked", true),
        ("restore.loaded", true),
        ("restore.committed", false),
        ("restore.checked", false),
    ] {
        let mut server = target(database().as_deref(), world.server.token());
        let (file_text, data) = (text(&file), text(&server.data()));
        dies(
            server.command().args(["restore", &file_text, "--data", &data]),
            point,
        );
        assert!(
            !server.launch(None).unwrap(),
            "{point}: a server started on half of it"
        );
        assert!(server.log().contains("PC1109"), "{point}: {}", server.log());
        let unfinished = server.folder().join("unfinished.tar");
        let args = ["backup", &text(&unfinished), "--data", &data];
        server.run(&args).unwrap().expect_refused("PC1109");
        let second = restore(&server, &file, &[]);
        if !again {
            second.expect_refused("PC1110");
            continue;
        }
        second.expect_ok();
        server.restart().unwrap();
        let image = world.image("old").await;
        assert_eq!(sign(&server.api().unwrap(), &image).await.0, 200, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_sqlite_that_was_killed_is_no_server() {
    restore_survives_kills(|| None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_postgresql_that_was_killed_is_no_server() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    restore_survives_kills(|| Some(postgres.database())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_a_backup_and_a_restore_clearly() {
    let Some(disk) = SmallDisk::mount() else {
        return testkit::peers::skip("root (who may mount a small disk)");
    };
    let world = World::new(None).await;
    let (file, _) = world.backup("b.tar");
    let data = text(&world.server.data());
    disk.fill();
    let full = disk.path().join("b.tar");
    let refused = world
        .server
        .run(&["backup", &text(&full), "--data", &data])
        .unwrap();
    let refused = refused.expect_refused("PC1904");
    assert!(
        refused.code == Some(6) && refused.stderr.contains("No space"),
        "{refused:?}"
    );
    let names = || std::fs::read_dir(disk.path()).unwrap().count();
    assert_eq!(names(), 1, "something was left beside what fills the disk");

    let server = target(None, world.server.token());
    let onto = text(&disk.path().join("data"));
    let args = ["restore", &text(&file), "--data", &onto];
    let refused = server.run(&args).unwrap();
    assert!(
        !refused.ok() && refused.stderr.contains("error[PC11"),
        "{refused:?}"
    );
    // Nothing goes on by itself.
    assert!(!refused.stderr.contains("by themselves"), "{refused:?}");
    disk.empty();
    server.run(&args).unwrap().expect_ok();
    server.run(&["log", "fsck", &onto]).unwrap().expect_ok();
}

/// A backup with a whole tile and a sealed audit trail: both follow what was answered, on a slow disk some moments later.
fn backup_with_a_tile(world: &World) -> PathBuf {
    backup_with_tiles(world, 1)
}

/// The same, with a whole tile and entries after it in so many of the logs.
pub fn backup_with_tiles(world: &World, logs: usize) -> PathBuf {
    let mut made = (1..).map(|attempt| world.backup(&format!("b{attempt}.tar")).0);
    let good = wait_for(|| {
        let file = made.next()?;
        let found = members(&file).1.logs;
        let mut tiled = found.iter().take(logs);
        let whole = tiled.all(|log| log.tiled > 0 && log.size > log.tiled);
        (found.len() == 2 && found[1].size > 0 && whole).then_some(file)
    });
    good.expect("the server writes no tile, or seals no audit record")
}

/// The members of a backup, its manifest left out.
fn members(file: &Path) -> (Vec<Member>, archive::Manifest) {
    let mut reader = Reader::new(File::open(file).unwrap()).unwrap();
    let mut members = Vec::new();
    while let Some(member) = reader.member().unwrap() {
        members.push(member);
    }
    let manifest = archive::Manifest::parse(&members.pop().unwrap().bytes).unwrap();
    (members, manifest)
}

/// The backup with its members changed, under a manifest that agrees.
fn forged(file: &Path, to: &Path, change: impl FnOnce(&mut Vec<Member>, &mut archive::Manifest)) {
    let (mut members, mut manifest) = members(file);
    change(&mut members, &mut manifest);
    let mut writer = Writer::new(File::create(to).unwrap()).unwrap();
    for member in members {
        writer.add(&member.name, &member.bytes).unwrap();
    }
    writer.finish(manifest).unwrap();
}

fn member<'a>(members: &'a mut [Member], start: &str) -> &'a mut Member {
    let found = members.iter_mut().find(|member| member.name.starts_with(start));
    found.unwrap()
}

fn replace(member: &mut Member, from: &str, to: &str) {
    let text = String::from_utf8(std::mem::take(&mut member.bytes)).unwrap();
    assert!(text.contains(from), "{from} is not in {}", member.name);
    member.bytes = text.replacen(from, to, 1).into_bytes();
}

/// Refused, with nothing that starts left behind.
#[track_caller]
fn assert_refused(what: &str, file: &Path, code: &str) {
    let mut server = target(None, "");
    let refused = restore(&server, file, &[]);
    assert!(
        !refused.ok() && refused.stderr.contains(code),
        "{what}: {refused:?}"
    );
    if server.data().join("portcullis.db").exists() {
        assert!(!server.launch(None).unwrap(), "{what}: a server started");
        assert!(server.log().contains("PC1109"), "{what}: {}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_not_what_was_backed_up_is_refused_by_its_name() {
    let mut world = World::new(None).await;
    let good = backup_with_a_tile(&world);
    world.server.kill();
    // Other programs see the same in it.
    let listed = run(Command::new("tar").arg("-tf").arg(&good))
        .unwrap()
        .expect_ok();
    assert!(listed.stdout.contains("tables/token/00000001\n"), "{listed:?}");

    let bytes = std::fs::read(&good).unwrap();
    let bad = world.server.folder().join("bad.tar");
    for (what, content) in [
        ("cut in the middle", bytes[..bytes.len() / 2].to_vec()),
        ("without its end", bytes[..bytes.len() - 512].to_vec()),
        ("with something behind it", [&bytes[..], b"x"].concat()),
    ] {
        std::fs::write(&bad, content).unwrap();
        assert_refused(what, &bad, "PC1902");
    }
    std::fs::write(&bad, b"\x1f\x8b\x08\x00").unwrap();
    assert_refused("compressed", &bad, "PC1901");
    std::fs::write(&bad, b"SQLite format 3\0").unwrap();
    assert_refused("a database", &bad, "PC1901");

    type Change = fn(&mut Vec<Member>, &mut archive::Manifest);
    let changes: &[(&str, &str, Change)] = &[
        ("no such table", "PC1902", |members, _| {
            member(members, "tables/token").name = "tables/sqlite_master/00000001".to_owned();
        }),
        ("a table under another name", "PC1902", |members, _| {
            member(members, "tables/token").name = "tables/project/00000002".to_owned();
        }),
        ("no such column", "PC1902", |members, _| {
            replace(member(members, "tables/token"), "\"sha256\"", "\"sha255\"");
        }),
        ("a row less", "PC1902", |members, _| {
            members.retain(|member| !member.name.starts_with("tables/token"));
        }),
        ("a blob of nobody", "PC1902", |members, _| {
            member(members, "blobs/tlog").name = "blobs/tlog/tile/entries/999".to_owned();
        }),
        ("a secret of nobody", "PC1902", |members, _| {
            let name = "secrets/authorized_keys".to_owned();
            members.push(Member {
                name,
                bytes: b"x".to_vec(),
            });
        }),
        ("a newer schema", "PC1903", |_, manifest| {
            manifest.schema.insert("tlog".to_owned(), 999);
        }),
        ("an entry of the log changed", "PC1401", |members, _| {
            member(members, "blobs/tlog/tile/entries").bytes[100] ^= 1;
        }),
        ("the index of the log changed", "PC1401", |members, _| {
            replace(member(members, "tables/tlog_leaf"), ",0]", ",9999]");
        }),
        ("the checkpoint of another log", "PC1403", |members, manifest| {
            let text = manifest.logs[1].checkpoint.clone();
            manifest.logs[0].checkpoint = text;
            members.retain(|_| true);
        }),
    ];
    for (what, code, change) in changes {
        forged(&good, &bad, change);
        assert_refused(what, &bad, code);
    }
    std::fs::create_dir_all(world.server.folder().join("home")).unwrap();
    std::fs::write(world.server.folder().join("home/letter"), "x").unwrap();
    let home = text(&world.server.folder().join("home"));
    let args = ["restore", &text(&good), "--data", &home];
    world.server.run(&args).unwrap().expect_refused("PC1110");
    // A folder is no full disk.
    let folder = restore(&target(None, ""), world.server.folder(), &[]).expect_refused("PC1901");
    assert!(folder.stderr.contains("name the file that"), "{folder:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_were_left_out_have_to_be_there() {
    let mut world = World::new(None).await;
    let (file, data) = (world.server.folder().join("b.tar"), text(&world.server.data()));
    let made = ["backup", &text(&file), "--data", &data, "--without-secrets"];
    let made = world.server.run(&made).unwrap().expect_ok();
    assert!(made.stderr.contains("keep the folder secrets/"), "{made:?}");
    let (members, _) = members(&file);
    assert!(members.iter().all(|member| !member.name.starts_with("secrets/")));
    world.server.kill();
    let mut server: Server = target(None, world.server.token());
    restore(&server, &file, &[]).expect_refused("PC1705");
    let to = server.data().join("secrets");
    std::fs::create_dir_all(&to).unwrap();
    for name in ["log.json", "audit.json", "keys.password"] {
        std::fs::copy(world.server.data().join("secrets").join(name), to.join(name)).unwrap();
    }
    // Another server's password: it is noticed while the right one can still be found.
    let password = to.join("keys.password");
    let right = std::fs::read(&password).unwrap();
    std::fs::write(&password, "another").unwrap();
    let refused = restore(&server, &file, &[]).expect_refused("PC1705");
    assert!(refused.stderr.contains("does not open the key"), "{refused:?}");
    std::fs::write(&password, right).unwrap();
    restore(&server, &file, &[]).expect_ok();
    server.restart().unwrap();
    assert_eq!(
        sign(&server.api().unwrap(), &world.image("new").await).await.0,
        201
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_a_server_s_data_or_a_tile_is_refused() {
    let mut world = World::new(None).await;
    let (file, data) = (world.server.folder().join("b.tar"), world.server.data());
    let args = ["backup", &text(&file), "--data", &text(&data)];
    assert_eq!(world.server.stop().unwrap(), Some(0));
    let none = text(&world.server.folder().join("none"));
    let nothing = world
        .server
        .run(&["backup", &text(&file), "--data", &none])
        .unwrap();
    assert_eq!(nothing.expect_refused("PC1716").code, Some(4));
    let tile = data.join("blobs/tlog/tile/0/000");
    std::fs::rename(&tile, world.server.folder().join("000")).unwrap();
    let refused = world.server.run(&args).unwrap().expect_refused("PC1906");
    assert!(refused.stderr.contains("tlog/tile/0/000"), "{refused:?}");
    assert!(!file.exists(), "there is a backup that cannot be restored");
    std::fs::rename(world.server.folder().join("000"), &tile).unwrap();
    // Nor with a password that opens none of its keys, unless it is kept elsewhere.
    let password = data.join("secrets/keys.password");
    let right = std::fs::read(&password).unwrap();
    std::fs::write(&password, "another").unwrap();
    world.server.run(&args).unwrap().expect_refused("PC1705");
    assert!(!file.exists(), "there is a backup that cannot sign");
    std::fs::write(&password, right).unwrap();
    // Nor through a link that somebody put where it is written first.
    let (elsewhere, staged) = (
        world.server.folder().join("letter"),
        world.server.folder().join(".b.tar.partial"),
    );
    std::fs::write(&elsewhere, "dear").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &staged).unwrap();
    world.server.run(&args).unwrap().expect_refused("PC1717");
    assert_eq!(std::fs::read(&elsewhere).unwrap(), b"dear");
    std::fs::remove_file(&staged).unwrap();
    world.server.run(&args).unwrap().expect_ok();
    let mode = |path: &Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions())
    };
    assert_eq!(mode(&file) & 0o777, 0o600);
}
