//! What a benchmark says.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

/// One measured figure beside its peer.
pub struct Figure {
    pub bench: &'static str,
    pub what: String,
    pub unit: &'static str,
    pub portcullis: f64,
    /// What it is compared with; empty for a plain limit.
    pub peer: &'static str,
    pub peer_value: Option<f64>,
    pub target: Target,
}

/// What the design asks for.
#[derive(Clone, Copy)]
pub enum Target {
    /// The peer's value is at least so many times ours.
    TimesLess(f64),
    /// Our value is at least so many times the peer's.
    TimesMore(f64),
    /// Our value is at most so many times the peer's.
    AtMostTimes(f64),
    /// Our value is at most this.
    AtMost(f64),
    /// Our value is at least this.
    AtLeast(f64),
}

impl Figure {
    fn ratio(&self) -> Option<f64> {
        let peer = self.peer_value?;
        Some(match self.target {
            Target::TimesLess(_) | Target::AtMost(_) => peer / self.portcullis,
            Target::TimesMore(_) | Target::AtMostTimes(_) | Target::AtLeast(_) => self.portcullis / peer,
        })
    }

    pub fn holds(&self) -> bool {
        match self.target {
            Target::TimesLess(times) | Target::TimesMore(times) => {
                self.ratio().is_some_and(|ratio| ratio >= times)
            }
            Target::AtMostTimes(times) => self.ratio().is_some_and(|ratio| ratio <= times),
            Target::AtMost(limit) => self.portcullis <= limit,
            Target::AtLeast(limit) => self.portcullis >= limit,
        }
    }

    fn target(&self) -> String {
        match self.target {
            Target::TimesLess(times) => format!(">= {times}x less"),
            Target::TimesMore(times) => format!(">= {times}x"),
            Target::AtMostTimes(times) => format!("<= {times}x"),
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::AtLeast(limit) => format!(">= {limit}"),
        }
    }

    pub fn json(&self) -> String {
        json!({
            "bench": self.bench, "what": self.what, "unit": self.unit, "portcullis": round(self.portcullis),
            "peer": self.peer, "peer_value": self.peer_value.map(round), "ratio": self.ratio().map(round),
            "target": self.target(), "holds": self.holds(),
        })
        .to_string()
    }

    pub fn line(&self) -> String {
        let peer = self
            .peer_value
            .map(|value| format!("{} {}", self.peer, round(value)))
            .unwrap_or_default();
        let ratio = self
            .ratio()
            .map(|ratio| format!("{}x", round(ratio)))
            .unwrap_or_default();
        let holds = if self.holds() { "holds" } else { "DOES NOT HOLD" };
        let what = format!("{}: {}", self.bench, self.what);
        format!(
            "{what:60} {:>12} {:6} {peer:28} {ratio:>10}  target {}: {holds}",
            round(self.portcullis),
            self.unit,
            self.target()
        )
    }

    fn row(&self) -> String {
        let peer = self.peer_value.map_or_else(
            || "–".to_owned(),
            |value| format!("{} {}", self.peer, round(value)),
        );
        let ratio = self
            .ratio()
            .map_or_else(|| "–".to_owned(), |ratio| format!("{}", round(ratio)));
        let holds = if self.holds() { "yes" } else { "**no**" };
        let Self {
            bench, what, unit, ..
        } = self;
        format!(
            "| `{bench}` | {what} | {} {unit} | {peer} | {ratio} | {} | {holds} |",
            round(self.portcullis),
            self.target()
        )
    }
}

/// Three figures that mean something.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powf(2.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

/// The part of RESULTS.md that people write, and that stays.
const NOTES: &str = "<!-- notes below this line are written by hand -->";

/// Writes `bench/RESULTS.md`.
pub fn write_results(figures: &[Figure]) -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.md");
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let notes = old.split_once(NOTES).map_or("\n", |(_, notes)| notes);
    let git = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .context("running git")?;
    let commit = String::from_utf8_lossy(&git.stdout).trim().to_owned();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let rows: Vec<String> = figures.iter().map(Figure::row).collect();
    let text = format!(
        "# Results\n\nPrinted by `cargo xtask bench all` at commit {commit} on {cores} cores of {model}, release profile, \
client, registry and server on the same machine.\n\n\
| bench | what | Portcullis | peer | ratio | target | holds |\n|---|---|---|---|---|---|---|\n{}\n\n{NOTES}{notes}",
        rows.join("\n"),
    );
    std::fs::write(path, text).context("writing bench/RESULTS.md")
}
