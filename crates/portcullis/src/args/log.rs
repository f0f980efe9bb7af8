//! `portcullis log` on the command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::ConfigFile;

#[derive(Debug, ClapArgs)]
pub struct LogArgs {
    /// The log's public key, as `log.pub` of an exported copy; without it the server's or the copy's own word is taken
    #[arg(long, value_name = "FILE", global = true)]
    pub log_key: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Log,
}

#[derive(Debug, Subcommand)]
pub enum ExternalLog {
    /// The entries that the external log refused, and the evidence that no registry took, of a project; the oldest
    List,
    /// Owe again what the external log refused, in every project; for administrators of the whole server
    ///
    /// For when it was not the log that refused it, or the log would take it now. It has each entry once, however often it
    /// is sent. It stands in the audit trail.
    Retry {
        /// Owe again what was paid from this time on instead, RFC 3339 or how long ago: it went to a log that was not the
        /// one
        #[arg(long, value_name = "TIME")]
        paid_since: Option<String>,
        /// Count, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Give up the evidence that waits for a registry which is gone for good; for administrators of the whole server
    ///
    /// Signatures and the external log's entries stay. What is signed at the registry from now on gets its evidence. It
    /// stands in the audit trail.
    GiveUp {
        /// As in the names of its images: a host, with its port if they have one
        #[arg(long, value_name = "HOST")]
        registry: String,
        /// Why; it is kept in the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Log {
    /// What the log is and how far it is
    Info,
    /// Print an entry
    Entry { index: u64 },
    /// Print an inclusion proof, verified here
    Proof {
        index: u64,
        /// For the log when it had so many entries
        #[arg(long)]
        size: Option<u64>,
        /// An exported folder instead of the server
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Hash everything again and compare with the checkpoint
    Fsck {
        /// An exported folder, or a stopped server's data folder (read with its configuration), instead of the server
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// What servers have seen of the log that the database does not have; or have it count no more
    ///
    /// As long as such a checkpoint counts, nobody appends: the database is an older copy, or that server was on another
    /// one. Dismiss a checkpoint only if it was never this log's, because a server was by mistake on a copy that went on by
    /// itself, or if what is missing is lost for good. Whoever holds that checkpoint will see a fork, and can prove it. A
    /// higher one stops the log again.
    Seen {
        /// Dismiss the checkpoint of so many entries; needs the administrator of the whole server
        #[arg(long, value_name = "SIZE", requires = "reason")]
        dismiss: Option<u64>,
        /// Why; it is kept in the audit trail
        #[arg(long, value_name = "TEXT", requires = "dismiss")]
        reason: Option<String>,
        /// Dismiss one of the audit trail's log, not of the transparency log
        #[arg(long, requires = "dismiss")]
        audit: bool,
    },
    /// Copy the whole log into a folder that any tlog-tiles tool reads
    ///
    /// A copy that is in the folder already is checked and only grows: another log, a smaller one or a fork is refused
    /// with exit code 7.
    Export {
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}
