//! `portcullis backup` and `portcullis restore` on the command line.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::ConfigFile;

#[derive(Debug, ClapArgs)]
pub struct Backup {
    /// The file to write; whoever reads it can sign, so keep it as you keep keys
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// Leave the log's key, the audit trail's key and the password of the signing keys out; without them the backup is
    /// of no use, so keep them elsewhere
    #[arg(long)]
    pub without_secrets: bool,
    #[command(flatten)]
    pub config: ConfigFile,
    /// Where the server keeps everything
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct Restore {
    /// The file that was written
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// A checkpoint of the log that anybody kept: a monitor, an export, the data folder of another server
    /// (log.checkpoint); - for standard input. A backup that holds less than it says is refused; may be given many times
    #[arg(long = "checkpoint", value_name = "FILE")]
    pub checkpoints: Vec<PathBuf>,
    #[command(flatten)]
    pub config: ConfigFile,
    /// Where the restored server will keep everything
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}
