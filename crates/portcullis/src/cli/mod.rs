//! The commands: each asks, prints, and says with its exit code what came of it.

mod admin;
mod audit;
mod backup;
mod blob;
mod doctor;
mod external_log;
mod image;
mod image_policy;
pub mod input;
mod local_token;
mod log;
mod serve;
mod settings;
mod sign;
mod status;
mod verify;

use std::process::ExitCode;

use clap::CommandFactory as _;
use kernel::Code;
use serde_json::{Value, json};

use crate::args::{Args, Command, Globals, Output};
use crate::failure::Failure;
use crate::output::{document, list, println};
use crate::{codes, explain};

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
        Command::ExternalLog(own) => external_log::run(globals, &own).await,
        Command::Audit(own) => audit::run(globals, own).await,
        Command::Project(own) => admin::project(globals, own).await,
        Command::Token(own) => admin::token(globals, own).await,
        Command::Auth(own) => admin::auth(globals, own).await,
        Command::Status(own) => status::run(globals, &own).await,
        Command::Doctor(own) => doctor::run(globals, &own).await,
        Command::Backup(own) => backup::backup(globals, &own).await,
        Command::Restore(own) => backup::restore(globals, own).await,
        Command::Serve(own) => serve::run(&own).await,
        Command::Init(own) => settings::init(&own),
        Command::Config(own) => settings::run(globals, own),
        Command::Demo(own) => crate::demo::run(own).await,
        Command::Explain { code } => explain_code(globals, code.as_deref()),
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            match globals.output {
                Output::Table => println(&format!("portcullis {version}")),
                Output::Name => println(version),
                _ => document(globals, &json!({ "name": "portcullis", "version": version })),
            }
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

fn explain_code(globals: &Globals, code: Option<&str>) -> Result<ExitCode, Failure> {
    let all = explain::all();
    let Some(wanted) = code else {
        let json = all.iter().copied().map(page).collect();
        match globals.output {
            Output::Table => all
                .iter()
                .for_each(|code| println(&format!("{}  {}", code.id, code.title))),
            _ => {
                let rows: Vec<_> = all.iter().map(|code| vec![code.id.to_owned()]).collect();
                list(globals, &json, &["CODE"], &rows);
            }
        }
        return Ok(ExitCode::SUCCESS);
    };
    let found = all.iter().find(|code| code.id.eq_ignore_ascii_case(wanted));
    let code =
        found.ok_or_else(|| Failure::coded(4, &codes::NO_CODE, format!("there is no code {wanted}")))?;
    match globals.output {
        Output::Table => println(&format!(
            "{}: {}\n\n{}\n\nWhat to do: {}",
            code.id, code.title, code.explanation, code.hint
        )),
        Output::Name => println(code.id),
        _ => document(globals, &page(code)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A code's page, for programs.
fn page(code: &Code) -> Value {
    json!({ "code": code.id, "title": code.title, "explanation": code.explanation, "hint": code.hint })
}
