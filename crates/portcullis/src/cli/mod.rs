//! The commands: each asks, prints, and says with its exit code what came of it.

mod admin;
mod blob;
mod image;
mod image_policy;
mod input;
mod local_token;
mod log;
mod serve;
mod settings;
mod sign;
mod verify;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::{Args, Command};
use crate::explain;
use crate::failure::Failure;
use crate::output::println;

/// The exit code of "looked at, and not verified".
pub const NOT_VERIFIED: u8 = 8;
/// The exit code of "may not".
pub const NOT_ALLOWED: u8 = 5;

/// Runs one command.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    let globals = &args.globals;
    match args.command {
        Command::Sign(own) => sign::run(globals, own).await,
        Command::Verify(own) => verify::run(globals, own).await,
        Command::VerifyBlob(own) => blob::run(globals, &own),
        Command::Image(own) => image::run(globals, own).await,
        Command::Signature(own) => admin::signature(globals, own).await,
        Command::ImagePolicy(own) => image_policy::run(globals, own).await,
        Command::Key(own) => admin::key(globals, own).await,
        Command::Log(own) => log::run(globals, own).await,
        Command::Project(own) => admin::project(globals, own).await,
        Command::Token(own) => admin::token(globals, own).await,
        Command::Auth(own) => admin::auth(globals, own).await,
        Command::Serve(own) => serve::run(&own).await,
        Command::Init(own) => settings::init(&own),
        Command::Config(own) => settings::run(globals, own),
        Command::Demo(own) => crate::demo::run(own).await,
        Command::Explain { code } => explain_code(code.as_deref()),
        Command::Version => {
            println(&format!("portcullis {}", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "portcullis", &mut script);
            println(String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn explain_code(code: Option<&str>) -> Result<ExitCode, Failure> {
    let all = explain::all();
    let Some(wanted) = code else {
        all.iter()
            .for_each(|code| println(&format!("{}  {}", code.id, code.title)));
        return Ok(ExitCode::SUCCESS);
    };
    let found = all.iter().find(|code| code.id.eq_ignore_ascii_case(wanted));
    let code = found.ok_or_else(|| {
        Failure::plain(
            4,
            format!("there is no code {wanted}"),
            "portcullis explain lists them",
        )
    })?;
    println(&format!(
        "{}: {}\n\n{}\n\nWhat to do: {}",
        code.id, code.title, code.explanation, code.hint
    ));
    Ok(ExitCode::SUCCESS)
}
