//! Arguments of the commands that look at how things are.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use kernel::Reference;

use super::{ConfigFile, LocalRegistry};

#[derive(Debug, ClapArgs)]
pub struct Status {
    /// Look again every two seconds, until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// Say that you have looked: at what the database lost (ROLLED_BACK), or that the external log that answers now is the
    /// one (ROLLED_BACK, FORKED, WRONG_LOG); for administrators of the whole server
    #[arg(long, value_name = "NAME", value_parser = ["database", "external-log"], requires = "reason", conflicts_with = "watch")]
    pub acknowledge: Option<String>,
    /// What was looked for, and what was found; it stands in the audit trail
    #[arg(long, value_name = "TEXT", requires = "acknowledge")]
    pub reason: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Doctor {
    /// Try everything with this image, short of signing it
    #[arg(value_name = "REF")]
    pub image: Option<Reference>,
    #[command(flatten)]
    pub file: ConfigFile,
    /// A trusted_root.json that should be the server's
    #[arg(long, value_name = "FILE")]
    pub trusted_root: Option<PathBuf>,
    #[command(flatten)]
    pub registry: LocalRegistry,
}
