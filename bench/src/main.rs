//! Measures Portcullis beside what a user would have instead, in one run on one machine.
//!
//! Each benchmark prints a line for each figure: what was measured, the peer's value in the same run, their ratio,
//! the target of the design, and whether it holds. Processor time is read from `/proc`, so that other work on the
//! machine does not count. `cargo xtask bench all` writes `bench/RESULTS.md`.

mod apart;
mod core_limits;
mod debt;
mod failover;
mod figures;
mod fleet;
mod load;
mod log_memory;
mod overload;
mod peers;
mod place;
mod race;
mod server;
mod signing_cost;
mod soak;
mod storm;
mod transparency;
mod verifying;
mod wrong_log;

use anyhow::{Result, bail};
use figures::Figure;

/// Every benchmark, in the order of the table in RESULTS.md.
const NAMES: &[&str] = &[
    "sign-cpu",
    "sign-memory",
    "dedup",
    "signing-core",
    "log-append",
    "log-memory",
    "verify-cold",
    "verify-warm",
    "referrers-race",
    "storm",
    "clients",
    "overload",
    "wrong-log",
    "failover",
    "debt",
];

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = &args[..]
        && first == storm::RUSH
    {
        return storm::rush(rest).await;
    }
    // A second installation fails, and changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let [first, minutes, seed] = &args[..]
        && first == "soak"
    {
        let figures = soak::soak(minutes.parse()?, seed.parse()?).await?;
        figures.iter().for_each(|figure| println!("{}", figure.line()));
        anyhow::ensure!(
            figures.iter().all(Figure::holds),
            "the soak found what must not be"
        );
        return Ok(());
    }
    let json = args.iter().any(|arg| arg == "--json");
    let mut names: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|arg| *arg != "--json")
        .collect();
    let all = names == ["all"];
    if all {
        names = NAMES.to_vec();
    }
    if names.is_empty() {
        bail!(
            "name benchmarks: all, {}\nby name log-memory fills a log of {} entries, which takes most of an hour; in all, {}\n\
             debt:N drains N entries instead of {}",
            NAMES.join(", "),
            log_memory::LONG,
            log_memory::SHORT,
            debt::ENTRIES
        );
    }
    let mut figures = Vec::new();
    for name in names {
        eprintln!("{name} …");
        for figure in run(name, all).await? {
            println!("{}", if json { figure.json() } else { figure.line() });
            figures.push(figure);
        }
    }
    if all {
        figures::write_results(&figures)?;
    }
    Ok(())
}

async fn run(name: &str, all: bool) -> Result<Vec<Figure>> {
    match name {
        "sign-cpu" => signing_cost::cpu().await,
        "sign-memory" => signing_cost::memory().await,
        "dedup" => signing_cost::dedup().await,
        "signing-core" => core_limits::signing(),
        "log-append" => transparency::append().await,
        "log-memory" if all => log_memory::memory(log_memory::SHORT).await,
        "log-memory" => log_memory::memory(log_memory::LONG).await,
        "verify-cold" => verifying::cold().await,
        "verify-warm" => verifying::warm().await,
        "referrers-race" => race::referrers().await,
        "storm" => storm::storm().await,
        "clients" => overload::clients().await,
        "overload" => overload::overload().await,
        "wrong-log" => wrong_log::named().await,
        "failover" => failover::gaps().await,
        "debt" => debt::drained(debt::ENTRIES).await,
        _ if let Some(count) = name.strip_prefix("debt:") => debt::drained(count.parse()?).await,
        _ => bail!(
            "there is no benchmark {name}; there are: all, {}",
            NAMES.join(", ")
        ),
    }
}
