//! `portcullis token` on the command line.

use std::path::PathBuf;

use access::Role;
use clap::{Args as ClapArgs, Subcommand};

use super::{ConfigFile, name};

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token; it is shown once
    Create(NewToken),
    /// List tokens
    List,
    /// End a token at once
    Revoke {
        #[arg(value_parser = name)]
        id: String,
    },
}

#[derive(Debug, ClapArgs)]
pub struct NewToken {
    /// What it is for
    #[arg(value_parser = name)]
    pub name: String,
    /// viewer, signer, auditor or admin
    #[arg(long)]
    pub role: Role,
    /// For every project; only the server's administrator may
    #[arg(long)]
    pub everywhere: bool,
    /// Days until it ends, 1 to 90
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(i64).range(1..=access::LIFE_DAYS_MAX))]
    pub days: i64,
    /// Make it in the database itself, when no token is left to ask with: beside a stopped server, or in PostgreSQL
    #[arg(long)]
    pub local: bool,
    #[command(flatten)]
    pub file: ConfigFile,
    /// With --local, where the stopped server keeps everything
    #[arg(long, value_name = "DIR", requires = "local")]
    pub data: Option<PathBuf>,
}
