//! What goes to standard output and standard error.
//!
//! An output that cannot be written must change neither the work nor its outcome: `verify REFUSED >/dev/full` is still a
//! refusal, and `sign A B C | true` still signs three images. So nothing here ends the program. A reader that went away
//! (`| head`) has what it wanted; any other lost output is remembered ([`lost`]), told at the end, and makes a success
//! a failure. `println!` and `eprintln!`, which panic instead, are forbidden in this program (see `main.rs`).

use std::collections::HashSet;
use std::io::{Error, ErrorKind, IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::args::{Globals, Output};

/// The first error that lost output.
static LOST: OnceLock<Error> = OnceLock::new();
/// Whether a reader closed the output, which loses nothing.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints a table with a header, columns as wide as they need.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println(padded.join("  ").trim_end());
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// Prints rows in the form that was asked for: the JSON as it is, or a table, or the names of the first column, each
/// once, though a rotated key has a row for each version.
pub fn list(globals: &Globals, json: &serde_json::Value, header: &[&str], rows: &[Vec<String>]) {
    match globals.output {
        Output::Json | Output::Yaml => document(globals, json),
        Output::Name => {
            let mut named = HashSet::new();
            let names = rows.iter().map(|row| row[0].as_str());
            names.filter(|name| named.insert(*name)).for_each(println);
        }
        Output::Table => table(header, rows),
    }
}

/// Prints one document, as JSON unless YAML was asked for.
pub fn document(globals: &Globals, value: &serde_json::Value) {
    let text = match globals.output {
        Output::Yaml => serde_saphyr::to_string(value).unwrap_or_default(),
        _ => serde_json::to_string_pretty(value).unwrap_or_default(),
    };
    println(text.trim_end());
}

/// Prints a line.
pub fn println(line: &str) {
    let _ = try_println(line);
}

/// Prints a line and says whether it went out; a loss is remembered all the same.
pub fn try_println(line: &str) -> bool {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    let went_out = written.is_ok();
    remember(written);
    went_out
}

/// Says a line on standard error. Where nobody hears it, there is nobody left to tell.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Keeps the first error that lost output; a pipe that its reader closed lost nothing that was wanted.
pub fn remember(written: std::io::Result<()>) {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let _ = LOST.set(error);
        }
        Err(_) => CLOSED.store(true, Ordering::Relaxed),
        Ok(()) => {}
    }
}

/// Whether nobody reads the output any more: its reader closed it, or it was lost.
pub fn closed() -> bool {
    lost().is_some() || CLOSED.load(Ordering::Relaxed)
}

/// What lost output, if any was lost.
pub fn lost() -> Option<&'static Error> {
    LOST.get()
}

/// Shows how far long work is: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet.
pub struct Progress {
    bar: Option<indicatif::ProgressBar>,
    total: u64,
    done: u64,
    quiet: bool,
}

/// Plain progress lines a piece of work prints at most.
const LINES_MAX: u64 = 10;

impl Progress {
    pub fn new(globals: &Globals, total: u64) -> Self {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let quiet = globals.quiet || total < 2;
        let bar = (terminal && !quiet).then(|| indicatif::ProgressBar::new(total));
        Self {
            bar,
            total,
            done: 0,
            quiet,
        }
    }

    pub fn step(&mut self) {
        self.reach(self.done + 1);
    }

    /// So much of the total is done.
    pub fn reach(&mut self, done: u64) {
        let every = (self.total / LINES_MAX).max(1);
        let line = done / every > self.done / every || done == self.total;
        self.done = done;
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.quiet || !line => {}
            None => say(&format!("{done}/{}", self.total)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
