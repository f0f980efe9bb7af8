//! The command line; exit codes are in the README.

mod audit;
mod backup;
mod log;
mod token;
mod watching;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use kernel::Reference;
use signing::Formats;

pub use self::audit::{Audit, AuditFilter, ExportFormat};
pub use self::backup::{Backup, Restore};
pub use self::log::{ExternalLog, Log, LogArgs};
pub use self::token::{NewToken, Token};
pub use self::watching::{Doctor, Status};

/// Signs and verifies container images, with a transparency log of its own.
///
/// A security control must never become the outage.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Args {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// How to print what was found
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// The server to ask
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_SERVER",
        default_value = "http://127.0.0.1:7480",
        value_name = "URL"
    )]
    pub server: String,
    /// The token to ask with: one of Portcullis (pcl_…), or that of a build system's job
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub token: Option<String>,
    /// The audience of the token that a job of GitHub Actions asks for itself, if it is given none; the server's
    /// address if left out
    #[arg(long, global = true, env = "PORTCULLIS_AUDIENCE", value_name = "TEXT")]
    pub audience: Option<String>,
    /// The project that the request is about; only for tokens that are good for every project, and of no meaning
    /// where no project is asked (log, image tree, --local)
    #[arg(long, global = true, env = "PORTCULLIS_PROJECT", value_name = "NAME")]
    pub project: Option<String>,
    /// Seconds to wait for the server, or for the registry where no server is asked
    #[arg(long, global = true, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Say each call to the server on standard error
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Print nothing but errors and what was asked for
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Yaml,
    Name,
}

impl Output {
    /// Whether it is for programs, who get everything as one document.
    pub fn is_document(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign images
    Sign(Sign),
    /// Verify images
    Verify(Verify),
    /// Verify a Sigstore bundle over a plain file
    VerifyBlob(VerifyBlob),
    /// Look at an image
    #[command(subcommand)]
    Image(Image),
    /// Signatures that this server made
    #[command(subcommand)]
    Signature(Signature),
    /// Rules that say who has to have signed which images
    #[command(subcommand)]
    ImagePolicy(ImagePolicy),
    /// Signing keys
    #[command(subcommand)]
    Key(Key),
    /// The transparency log
    Log(LogArgs),
    /// What is owed to the external log
    #[command(subcommand)]
    ExternalLog(ExternalLog),
    /// The audit trail: every change and every refusal, under a seal
    #[command(subcommand)]
    Audit(Audit),
    /// Projects, the unit of separation
    #[command(subcommand)]
    Project(Project),
    /// Tokens
    #[command(subcommand)]
    Token(Token),
    /// Who am I, and what may I do
    #[command(subcommand)]
    Auth(Auth),
    /// Can we deploy right now? What the server found of everything that it depends on
    Status(Status),
    /// Check everything from here to the server; exit code 9 if there are problems
    Doctor(Doctor),
    /// Write everything that the server keeps to one file, while it runs
    Backup(Backup),
    /// Put a backup into an empty data folder and database
    Restore(Restore),
    /// Run the server
    Serve(Serve),
    /// Write a commented portcullis.toml
    Init(Init),
    /// Check and show the configuration
    #[command(subcommand)]
    Config(Config),
    /// Show what Portcullis does, on this machine, without network
    Demo(Demo),
    /// Explain an error code, or list them all
    Explain {
        /// Such as PC1201
        code: Option<String>,
    },
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Print the version
    Version,
}

/// Which images.
#[derive(Debug, Clone, ClapArgs)]
pub struct Images {
    /// registry/repository:tag or registry/repository@sha256:…
    #[arg(value_name = "REF", required_unless_present = "from_file")]
    pub images: Vec<Reference>,
    /// A file with one reference a line; - for standard input
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
    /// Also every manifest under a multi-platform index
    #[arg(short, long)]
    pub recursive: bool,
    /// NAME=VALUE; may be given many times
    #[arg(short, long = "annotation", value_name = "NAME=VALUE", value_parser = annotation)]
    pub annotations: Vec<(String, String)>,
}

/// Registries for commands that call them without a server.
#[derive(Debug, Clone, ClapArgs)]
pub struct LocalRegistry {
    /// A registry that may be called by plain HTTP though it is not on this machine
    #[arg(long, value_name = "HOST:PORT")]
    pub allow_plain_http: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Sign {
    #[command(flatten)]
    pub images: Images,
    /// The server's key by its name; with --local, a cosign key file
    #[arg(long, value_name = "KEY", value_parser = name)]
    pub key: Option<String>,
    /// One statement, one signature and one log entry over all images
    #[arg(long, conflicts_with_all = ["local", "recursive", "formats"])]
    pub release: bool,
    /// bundle, legacy, or both separated by a comma
    #[arg(long, value_name = "FORMATS")]
    pub formats: Option<Formats>,
    /// Look into the registry for signatures that stand already, and put back what it has lost
    #[arg(long, conflicts_with_all = ["local", "release"])]
    pub repair: bool,
    /// Sign what is new in the file and list what is signed already; -o name prints only what is new
    #[arg(long, requires = "from_file", conflicts_with_all = ["local", "release", "repair", "recursive"])]
    pub changed_only: bool,
    /// Sign here, without a server; the key file's password is read from COSIGN_PASSWORD
    #[arg(long, requires = "key")]
    pub local: bool,
    #[command(flatten)]
    pub registry: LocalRegistry,
}

/// Who has to have signed.
#[derive(Debug, Clone, ClapArgs)]
pub struct Authority {
    /// A file with a public key (cosign.pub); may be given many times
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// A trusted_root.json: the logs and authorities to believe
    #[arg(long, value_name = "FILE")]
    pub trusted_root: Option<PathBuf>,
    /// Keyless: who the certificate names
    #[arg(long, value_name = "IDENTITY", requires = "certificate_oidc_issuer")]
    pub certificate_identity: Option<String>,
    /// Keyless: who vouched for the identity
    #[arg(long, value_name = "URL", requires = "certificate_identity")]
    pub certificate_oidc_issuer: Option<String>,
    /// Accept a key's signature without proof of a log
    #[arg(long)]
    pub insecure_ignore_log: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Verify {
    #[command(flatten)]
    pub images: Images,
    #[command(flatten)]
    pub authority: Authority,
    /// The server's image policy by its name; with --local, a file with a ClusterImagePolicy
    #[arg(long, value_name = "POLICY", value_parser = name, conflicts_with_all = ["key", "certificate_identity", "insecure_ignore_log"])]
    pub policy: Option<String>,
    /// Verify here, without a server
    #[arg(long)]
    pub local: bool,
    #[command(flatten)]
    pub registry: LocalRegistry,
}

#[derive(Debug, ClapArgs)]
pub struct VerifyBlob {
    /// A file, or sha256:DIGEST of one
    #[arg(value_name = "FILE|DIGEST")]
    pub file: String,
    /// The bundle
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
    #[command(flatten)]
    pub authority: Authority,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Draw everything that is attached to an image
    Tree {
        #[arg(value_name = "REF")]
        image: Reference,
        #[command(flatten)]
        registry: LocalRegistry,
    },
}

#[derive(Debug, Subcommand)]
pub enum Signature {
    /// List signatures
    List {
        /// Of one image
        #[arg(long, value_name = "REF")]
        image: Option<Reference>,
        /// Of one key
        #[arg(long, value_name = "NAME", value_parser = name)]
        key: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show one signature
    Get {
        #[arg(value_parser = name)]
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum ImagePolicy {
    /// Write policies, new ones and over those that stand
    Apply {
        /// ClusterImagePolicy, YAML or JSON, one or many in a file; - for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List policies
    List,
    /// Print a policy
    Get {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Remove a policy
    Delete {
        #[arg(value_parser = name)]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key
    Create {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Take a cosign key file in; its password is read from COSIGN_PASSWORD
    Import {
        #[arg(value_parser = name)]
        name: String,
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List keys
    List,
    /// Print a key's public half, as cosign.pub
    Get {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Replace a key; what the old one signed verifies until a date
    Rotate {
        #[arg(value_parser = name)]
        name: String,
        /// RFC 3339; a year from now if left out
        #[arg(long, value_name = "TIME")]
        verify_until: Option<Timestamp>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Project {
    /// Make a project
    Create {
        #[arg(value_parser = name)]
        name: String,
        /// Repositories that it may sign: registry.example/team/*; may be given many times
        #[arg(long = "image", value_name = "PATTERN", required = true)]
        images: Vec<String>,
    },
    /// List projects
    List,
    /// Show a project
    Get {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Change a project; what is not named stays. A rate and its burst are given together
    Set(ProjectChange),
    /// Show how many new signatures the project may make, and what is left of that now
    Quota,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
pub struct ProjectChange {
    #[arg(value_parser = name)]
    pub name: String,
    /// Repositories that it may sign, instead of those of now; may be given many times
    #[arg(long = "image", value_name = "PATTERN", group = "change")]
    pub images: Vec<String>,
    /// New signatures that it may make; 0 for none
    #[arg(long, value_name = "COUNT", requires = "burst", group = "change")]
    pub signatures_per_minute: Option<u32>,
    /// New signatures that it may make at once after a rest
    #[arg(long, value_name = "COUNT", requires = "signatures_per_minute")]
    pub burst: Option<u32>,
    /// The server's quota again
    #[arg(long, conflicts_with = "signatures_per_minute", group = "change")]
    pub default_quota: bool,
}

#[derive(Debug, Subcommand)]
pub enum Auth {
    /// Who this token is
    Whoami,
    /// Whether this token may do something; exit code 5 if not
    CanI {
        /// Such as sign-images
        action: access::Action,
    },
}

#[derive(Debug, Clone, ClapArgs)]
pub struct ConfigFile {
    /// The configuration; ./portcullis.toml if it is there
    #[arg(long, env = "PORTCULLIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct Serve {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Allow plain HTTP on an address that is not loopback, behind a proxy that speaks TLS
    #[arg(long)]
    pub insecure_http: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Init {
    /// The file to write
    #[arg(default_value = "portcullis.toml", value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Check the configuration whole
    Check(ConfigFile),
    /// Show the configuration as it counts
    View {
        #[command(flatten)]
        file: ConfigFile,
        /// Say where each value comes from
        #[arg(long)]
        origin: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Demo {
    /// End after the story; 0 only if every step came out as told
    #[arg(long)]
    pub exit: bool,
    /// Keep the demo's data here instead of a folder that is removed
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// A name that can be asked for: of nothing, `.` and `..` no address can be made.
fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a name is not empty".to_owned()),
        "." | ".." => Err("this is not a name".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

fn annotation(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("an annotation is NAME=VALUE")?;
    if name.is_empty() {
        Err("an annotation is NAME=VALUE".to_owned())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}
