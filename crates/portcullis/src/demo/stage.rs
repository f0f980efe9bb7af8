//! Runs the story's commands, shows them, and holds what came out against what was told.

use std::path::{Path, PathBuf};

use kernel::Clock as _;
use tokio::process::Command;

use crate::codes;
use crate::demo::server::ServerProcess;
use crate::failure::Failure;
use crate::output::println;

/// Lines of a command's output that are shown; a list of 400 is cut.
const LINES_MAX: usize = 8;
/// Lines that are shown of one that is cut.
const LINES_BEGINNING: usize = 3;

pub struct Stage {
    folder: PathBuf,
    url: String,
    token: String,
    clock: kernel::SystemClock,
    failed: u32,
    chapters: u32,
}

/// What a step has to come to.
pub struct Expect {
    code: i32,
    out: Vec<String>,
    err: Vec<String>,
    /// Where any are given, only lines that begin so are shown.
    shown: Vec<String>,
}

impl Expect {
    pub fn code(code: i32) -> Self {
        Self {
            code,
            out: Vec::new(),
            err: Vec::new(),
            shown: Vec::new(),
        }
    }

    /// Of what it prints, shows only the lines that begin so, and those of the others that are asked for.
    pub fn shows(mut self, start: &str) -> Self {
        self.shown.push(start.to_owned());
        self
    }

    pub fn prints(mut self, text: &str) -> Self {
        self.out.push(text.to_owned());
        self
    }

    pub fn prints_err(mut self, text: &str) -> Self {
        self.err.push(text.to_owned());
        self
    }
}

/// A command that runs.
pub struct Begun(tokio::task::JoinHandle<Result<Ran, Failure>>);

struct Ran {
    code: i32,
    out: String,
    err: String,
    seconds: f64,
}

impl Stage {
    pub fn new(folder: &Path, server: &ServerProcess) -> Self {
        let (url, token) = (server.url.clone(), server.token.clone());
        Self {
            folder: folder.to_owned(),
            url,
            token,
            clock: kernel::SystemClock::new(),
            failed: 0,
            chapters: 0,
        }
    }

    pub fn say(&self, text: &str) {
        println(text);
    }

    pub fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        println(&format!("\n{}. {title}\n", self.chapters));
    }

    /// Steps that did not come out as told.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Writes a list of images for `--from-file`.
    pub fn write(&self, name: &str, lines: &[String]) -> Result<String, Failure> {
        let path = self.folder.join(name);
        std::fs::write(&path, lines.join("\n") + "\n")
            .map_err(|error| Failure::file("writing", &path, &error))?;
        Ok(name.to_owned())
    }

    /// Runs one command of the story.
    pub async fn run(&mut self, words: &[&str], expect: Expect) -> Result<(), Failure> {
        println(&format!("$ portcullis {}", typed(words)));
        let ran = self.command(words).await?;
        self.judge(&ran, &expect);
        Ok(())
    }

    /// Begins a command that runs beside the next ones.
    pub fn begin(&self, words: &[&str]) -> Begun {
        println(&format!("$ portcullis {} &", typed(words)));
        let (stage, words) = (self.other(), words.iter().map(|word| (*word).to_owned()));
        let words: Vec<String> = words.collect();
        Begun(tokio::spawn(async move {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            stage.command(&words).await
        }))
    }

    /// Waits for its end.
    pub async fn end(&mut self, begun: Begun, expect: Expect) -> Result<(), Failure> {
        let ran = begun.0.await;
        let ran = ran.map_err(|error| Failure::local("waiting for a command", &error))??;
        self.judge(&ran, &expect);
        Ok(())
    }

    fn other(&self) -> Self {
        Self {
            folder: self.folder.clone(),
            url: self.url.clone(),
            token: self.token.clone(),
            clock: self.clock,
            failed: 0,
            chapters: 0,
        }
    }

    fn judge(&mut self, ran: &Ran, expect: &Expect) {
        if expect.shown.is_empty() {
            show(&ran.out);
            show(&ran.err);
        }
        let is_shown = |line: &&str| expect.shown.iter().any(|start| line.starts_with(start));
        for line in ran.out.lines().filter(is_shown) {
            println(&format!("  {line}"));
        }
        println(&format!("  ({:.2} s, exit code {})", ran.seconds, ran.code));
        let missing_out = expect.out.iter().filter(|text| !ran.out.contains(*text));
        let missing_err = expect.err.iter().filter(|text| !ran.err.contains(*text));
        let missing: Vec<&String> = missing_out.chain(missing_err).collect();
        if ran.code != expect.code || !missing.is_empty() {
            self.failed += 1;
            println(&format!(
                "  NOT AS TOLD: expected exit code {} and {missing:?}",
                expect.code
            ));
        }
    }

    /// Compares a number with what it has to be.
    pub fn check(&mut self, what: &str, found: u64, expected: u64) {
        if found == expected {
            println(&format!("  {what}: {found}"));
        } else {
            self.failed += 1;
            println(&format!("  NOT AS TOLD: {what}: {found}, expected {expected}"));
        }
    }

    pub async fn log_size(&self) -> Result<u64, Failure> {
        let ran = self.command(&["log", "info", "-o", "json"]).await?;
        let info: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_default();
        info["size"]
            .as_u64()
            .ok_or_else(|| Failure::coded(1, &codes::DEMO, format!("log info said: {}", ran.err)))
    }

    pub async fn signatures(&self) -> Result<u64, Failure> {
        let ran = self
            .command(&["signature", "list", "--limit", "10000", "-o", "json"])
            .await?;
        let list: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_default();
        let count = list.as_array().map(|list| list.len() as u64);
        count.ok_or_else(|| Failure::coded(1, &codes::DEMO, format!("signature list said: {}", ran.err)))
    }

    /// What a command says as a document, without showing it.
    pub async fn document(&self, words: &[&str]) -> Result<serde_json::Value, Failure> {
        let ran = self.command(&[words, &["-o", "json"]].concat()).await?;
        let cause = |_| format!("{} said: {}", words.join(" "), ran.err);
        serde_json::from_str(&ran.out).map_err(|error| Failure::coded(1, &codes::DEMO, cause(error)))
    }

    async fn command(&self, words: &[&str]) -> Result<Ran, Failure> {
        let failed =
            |error: std::io::Error| Failure::local(format!("running portcullis {}", words.join(" ")), &error);
        let began = self.clock.monotonic();
        let output = Command::new(std::env::current_exe().map_err(failed)?)
            .args(words)
            .current_dir(&self.folder)
            .env("PORTCULLIS_SERVER", &self.url)
            .env("PORTCULLIS_TOKEN", &self.token)
            .env_remove("PORTCULLIS_PROJECT")
            .output()
            .await
            .map_err(failed)?;
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            seconds: self.clock.monotonic().since(began).as_secs_f64(),
        })
    }
}

/// Shows what a command printed; of a long list its beginning, of progress only the end.
fn show(text: &str) {
    let lines: Vec<&str> = text.lines().filter(|line| !is_progress(line)).collect();
    let shown = if lines.len() > LINES_MAX {
        LINES_BEGINNING
    } else {
        lines.len()
    };
    lines[..shown]
        .iter()
        .for_each(|line| println(&format!("  {line}")));
    if lines.len() > shown {
        println(&format!("  … and {} lines more", lines.len() - shown));
    }
}

/// `120/400`, which commands print where there is no terminal.
fn is_progress(line: &str) -> bool {
    line.split_once('/')
        .is_some_and(|(done, all)| done.parse::<u32>().is_ok() && all.parse::<u32>().is_ok())
}

/// A command line as a person would type it into a shell.
fn typed(words: &[&str]) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@=,%+".contains(&byte);
    let typed = words
        .iter()
        .map(|word| match !word.is_empty() && word.bytes().all(is_plain) {
            true => (*word).to_owned(),
            false => format!("'{word}'"),
        });
    typed.collect::<Vec<_>>().join(" ")
}
