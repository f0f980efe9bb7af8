//! `portcullis init` and `portcullis config`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;

use serde_json::json;

use crate::args::{Config, Globals, Init};
use crate::codes;
use crate::config::{EXAMPLE, Loaded};
use crate::failure::Failure;
use crate::output::{list, say};

pub fn init(own: &Init) -> Result<ExitCode, Failure> {
    let path = &own.file;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        // It is meant to hold passwords.
        .mode(0o600)
        .open(path)
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                let what = format!("{} is there already; it was left as it is", path.display());
                Failure::coded(7, &codes::STANDS, what)
            }
            _ => Failure::file("writing", path, &error),
        })?;
    file.write_all(EXAMPLE.as_bytes())
        .map_err(|error| Failure::file("writing", path, &error))?;
    say(&format!(
        "wrote {}; next: portcullis config check, portcullis serve",
        path.display()
    ));
    Ok(ExitCode::SUCCESS)
}

pub fn run(globals: &Globals, own: Config) -> Result<ExitCode, Failure> {
    match own {
        Config::Check(file) => {
            Loaded::read(&file)?;
            say("the configuration is valid");
        }
        Config::View { file, origin } => {
            let loaded = Loaded::read(&file)?.rows();
            let json = loaded
                .iter()
                .map(|[key, value, from]| json!({ "key": key, "value": value, "origin": from }))
                .collect();
            let width = if origin { 3 } else { 2 };
            let rows: Vec<Vec<String>> = loaded.iter().map(|row| row[..width].to_vec()).collect();
            list(globals, &json, &["KEY", "VALUE", "ORIGIN"][..width], &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn init_writes_a_file_that_only_its_user_reads() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("portcullis.toml");
        super::init(&super::Init { file: file.clone() }).unwrap();
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
