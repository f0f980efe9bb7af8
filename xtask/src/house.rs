//! The rules of the house, held against `cargo metadata` and the files.
//!
//! `ARCHITECTURE.md` draws the floors; this is the same in a form that fails. Only dependencies that are part
//! of the program count: what tests depend on is free.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::run;

/// Each crate with the crates of this workspace that it may depend on. A new crate gets its line here, and
/// with it the question on which floor it stands.
const EDGES: &[(&str, &[&str])] = &[
    // Floor 0.
    ("kernel", &[]),
    // Floor 1.
    ("flow", &["kernel"]),
    ("store", &["kernel"]),
    ("web", &["kernel"]),
    ("registry", &["kernel"]),
    // Floor 2.
    ("access", &["kernel", "flow", "store", "web"]),
    // Floor 3: siblings, which never know each other.
    ("signing", &["kernel", "flow", "store", "web", "access"]),
    ("tlog", &["kernel", "store", "web", "access"]),
    ("probing", &["kernel", "store", "web", "access"]),
    // Floor 4: adapters outward, which implement the ports of floors 2 and 3; the client of somebody else's log checks
    // what it is told with the rules of our own.
    (
        "upstream",
        &["kernel", "flow", "access", "signing", "tlog", "probing"],
    ),
    // Floor 5: the one place where siblings meet.
    (
        "portcullis",
        &[
            "kernel", "flow", "store", "web", "registry", "access", "signing", "tlog", "probing", "upstream",
        ],
    ),
    // Not part of the program.
    ("testkit", &[]),
    ("xtask", &["testkit"]),
    (
        "e2e",
        &[
            "kernel", "store", "web", "registry", "access", "signing", "tlog", "probing", "upstream",
            "testkit",
        ],
    ),
    (
        "bench",
        &[
            "kernel", "store", "web", "registry", "access", "signing", "tlog", "probing", "upstream",
            "testkit",
        ],
    ),
];

/// Heavy or delicate crates (by name, or by the beginning of it with a `*`) and who alone may have them.
const HOMES: &[(&str, &[&str])] = &[
    ("sqlx", &["store"]),
    ("sigstore-*", &["signing"]),
    ("reqwest", &["upstream", "portcullis", "e2e", "bench"]),
    ("object_store", &["store", "registry", "portcullis"]),
    ("opentelemetry*", &["portcullis", "e2e"]),
    ("tracing-opentelemetry", &["portcullis"]),
    ("anyhow", &["portcullis", "xtask", "e2e", "bench"]),
];

/// Names that say nothing, and so attract everything.
const BAD_NAMES: &[&str] = &[
    "common", "core", "utils", "util", "types", "helpers", "manager", "service",
];
/// Crates on the longest path of dependencies within the workspace.
const PATH_CRATES_MAX: usize = 6;
/// Lines of a file of the program: what a reader keeps in mind.
const FILE_LINES_MAX: usize = 500;

/// The workspace as far as the rules look at it: each crate with what it depends on.
type Crates = BTreeMap<String, Vec<String>>;

/// Prints what is wrong with the house.
pub fn report() -> Result<ExitCode> {
    let violations = violations()?;
    for violation in &violations {
        println!("{violation}");
    }
    if violations.is_empty() {
        println!("the house is in order");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn violations() -> Result<Vec<String>> {
    let crates = crates(&run::metadata()?)?;
    let mut found = edges(&crates);
    found.extend(homes(&crates));
    found.extend(names(&crates));
    found.extend(longest_path(&crates));
    for folder in ["crates", "xtask", "e2e", "bench"] {
        long_files(&run::root().join(folder), &mut found)?;
    }
    Ok(found)
}

/// Reads the normal and build dependencies of every crate of the workspace.
fn crates(metadata: &Value) -> Result<Crates> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut crates = Crates::new();
    for package in packages {
        let name = package["name"].as_str().context("a package has no name")?;
        let dependencies = package["dependencies"]
            .as_array()
            .context("a package has no dependencies")?;
        let of_program = dependencies
            .iter()
            .filter(|dependency| dependency["kind"] != "dev");
        let names = of_program.filter_map(|dependency| dependency["name"].as_str().map(str::to_owned));
        crates.insert(name.to_owned(), names.collect());
    }
    Ok(crates)
}

fn edges(crates: &Crates) -> Vec<String> {
    let mut found = Vec::new();
    for (name, dependencies) in crates {
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| known == name) else {
            found.push(format!(
                "{name}: it is not in the table of crates in xtask/src/house.rs"
            ));
            continue;
        };
        for dependency in dependencies
            .iter()
            .filter(|dependency| crates.contains_key(*dependency))
        {
            if !allowed.contains(&dependency.as_str()) {
                found.push(format!("{name}: it may not depend on {dependency}"));
            }
        }
    }
    found
}

fn homes(crates: &Crates) -> Vec<String> {
    let matches = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    };
    let mut found = Vec::new();
    for (name, dependencies) in crates {
        for dependency in dependencies {
            for (_, homes) in HOMES.iter().filter(|(pattern, _)| matches(pattern, dependency)) {
                if !homes.contains(&name.as_str()) {
                    found.push(format!("{name}: {dependency} is only for {}", homes.join(", ")));
                }
            }
        }
    }
    found
}

fn names(crates: &Crates) -> Vec<String> {
    let bad = crates
        .keys()
        .filter(|name| name.split(['-', '_']).any(|word| BAD_NAMES.contains(&word)));
    bad.map(|name| format!("{name}: the name does not say what is in it"))
        .collect()
}

/// The longest path, if it is too long. Cargo refuses circles, so this ends.
fn longest_path(crates: &Crates) -> Option<String> {
    fn from<'a>(name: &'a str, crates: &'a Crates) -> Vec<&'a str> {
        let below = crates
            .get(name)
            .into_iter()
            .flatten()
            .filter(|name| crates.contains_key(*name));
        let mut path = below
            .map(|name| from(name, crates))
            .max_by_key(Vec::len)
            .unwrap_or_default();
        path.push(name);
        path
    }
    let longest = crates
        .keys()
        .map(|name| from(name, crates))
        .max_by_key(Vec::len)?;
    (longest.len() > PATH_CRATES_MAX).then(|| {
        format!(
            "the path {} has more than {PATH_CRATES_MAX} crates",
            longest.join(" < ")
        )
    })
}

/// Finds files of the program, and of the tests' own support, that are too long. Tests themselves may be as
/// long as what they show.
fn long_files(folder: &Path, found: &mut Vec<String>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            if name != "tests" && name != "target" {
                long_files(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs" {
            let lines = std::fs::read_to_string(&path)?.lines().count();
            if lines > FILE_LINES_MAX {
                let path = path.strip_prefix(run::root()).unwrap_or(&path).display();
                found.push(format!("{path}: {lines} lines are more than {FILE_LINES_MAX}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(crates: &[(&str, &[&str])]) -> Crates {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        crates
            .iter()
            .map(|(name, below)| ((*name).to_owned(), own(below)))
            .collect()
    }

    #[test]
    fn the_house_is_in_order() {
        assert_eq!(violations().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn siblings_and_strangers_are_found() {
        let found = edges(&house(&[
            ("signing", &["tlog", "serde"]),
            ("tlog", &[]),
            ("attic", &[]),
        ]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("attic: it is not in the table"));
        assert_eq!(found[1], "signing: it may not depend on tlog");
    }

    #[test]
    fn heavy_crates_stay_in_their_homes() {
        let found = homes(&house(&[
            ("signing", &["sqlx", "sigstore-types", "sigstore"]),
            ("store", &["sqlx", "sigstore-types"]),
        ]));
        assert_eq!(
            found,
            [
                "signing: sqlx is only for store",
                "store: sigstore-types is only for signing"
            ]
        );
    }

    #[test]
    fn empty_names_and_long_paths_are_found() {
        assert_eq!(names(&house(&[("web-utils", &[]), ("futile", &[])])).len(), 1);
        let tower: &[(&str, &[&str])] = &[
            ("a", &[]),
            ("b", &["a"]),
            ("c", &["b"]),
            ("d", &["c"]),
            ("e", &["d"]),
            ("f", &["e", "a"]),
        ];
        assert_eq!(longest_path(&house(tower)), None);
        let higher = [tower, &[("g", &["f"])]].concat();
        let found = longest_path(&house(&higher)).unwrap();
        assert!(found.contains("a < b < c < d < e < f < g"), "{found}");
    }

    #[test]
    fn dependencies_of_tests_do_not_count() {
        let package = serde_json::json!({ "packages": [{ "name": "store", "dependencies": [
            { "name": "kernel", "kind": null }, { "name": "testkit", "kind": "dev" },
            { "name": "tlog", "kind": "build" },
        ] }] });
        assert_eq!(
            crates(&package).unwrap(),
            house(&[("store", &["kernel", "tlog"])])
        );
    }
}
