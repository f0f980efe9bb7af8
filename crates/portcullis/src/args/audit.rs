//! `portcullis audit` on the command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum Audit {
    /// List records, the newest first
    List {
        #[command(flatten)]
        filter: AuditFilter,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Write sealed records line by line, in the order of the seal
    ///
    /// As jsonl each line carries its proof, and beside FILE are written FILE.checkpoint and FILE.pub: what `audit
    /// verify --file` needs. As ocsf each line is an event of the Open Cybersecurity Schema Framework.
    Export {
        #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
        format: ExportFormat,
        /// Where to; standard output if left out. An export that is there is replaced, if the trail follows its checkpoint
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        filter: AuditFilter,
    },
    /// Find every record that was removed, altered, added or moved; exit code 8 if there is one
    Verify {
        /// An export (jsonl) instead of the server
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The export was narrowed down: that records are missing between others means nothing
        #[arg(long, requires = "file")]
        partial: bool,
        /// The key of the seal, as FILE.pub of an export; without it the server's or the export's own word is taken
        #[arg(long, value_name = "FILE")]
        audit_key: Option<PathBuf>,
        /// A checkpoint: of a server one that was kept, which the seal has to have grown from; of an export its own, if it
        /// is not FILE.checkpoint
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    Jsonl,
    Ocsf,
}

/// Which audit records.
#[derive(Debug, Clone, ClapArgs)]
pub struct AuditFilter {
    /// Of whom: a part of the actor, such as a token's name or id
    #[arg(long, value_name = "TEXT")]
    pub actor: Option<String>,
    /// Of one action, such as signature.create; * stands for anything
    #[arg(long, value_name = "ACTION")]
    pub action: Option<String>,
    /// About one resource; * stands for anything
    #[arg(long, value_name = "RESOURCE")]
    pub resource: Option<String>,
    /// success, denied or failed
    #[arg(long, value_name = "OUTCOME")]
    pub outcome: Option<String>,
    /// From this time on: RFC 3339, or how long ago, such as 24h
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Before this time: RFC 3339, or how long ago
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}
