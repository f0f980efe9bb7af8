//! How a command fails: one shape for people, one for programs, one exit code.

use std::path::Path;
use std::process::ExitCode;

use kernel::{Code, Fault};
use tlog::TlogError;

use crate::args::Globals;
use crate::codes;
use crate::output::{document, lost, say};

/// A command's failure; boxed, so that results stay small where nothing goes wrong.
#[derive(Debug)]
pub struct Failure(Box<Parts>);

#[derive(Debug)]
struct Parts {
    exit: u8,
    code: String,
    what: String,
    cause: Vec<String>,
    hint: String,
    /// The server's own problem document, for `-o json`.
    document: Option<serde_json::Value>,
}

/// Exit code of wrong usage.
pub const USAGE: u8 = 2;

impl Failure {
    /// The command line contradicts itself, or asks for nothing.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::coded(USAGE, &codes::USAGE, what.into()).with_hint(hint)
    }

    /// Something on this machine did not work.
    pub fn local(what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::caused(&codes::MACHINE, what, error)
    }

    /// A file could not be read or written.
    pub fn file(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::caused(&codes::FILE, format!("{doing} {}", path.display()), error)
    }

    /// What a file holds, or a server answered, is not what was expected there.
    pub fn content(what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::caused(&codes::CONTENT, what, error)
    }

    fn caused(code: &'static Code, what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::coded(1, code, format!("{}: {}", what.into(), kernel::chain(error)))
    }

    /// A failure with its code; `cause` says what it is about.
    pub fn coded(exit: u8, code: &'static Code, cause: String) -> Self {
        Self(Box::new(Parts {
            exit,
            code: code.id.to_owned(),
            what: code.title.to_owned(),
            cause: vec![cause],
            hint: code.hint.to_owned(),
            document: None,
        }))
    }

    /// What the server said, `application/problem+json`.
    pub fn problem(status: u16, document: serde_json::Value) -> Self {
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let exit = match status {
            401 | 403 => 5,
            404 => 4,
            409 | 412 => 7,
            429 | 502..=504 | 507 => 6,
            _ => 1,
        };
        let mut cause = vec![text("detail")];
        for error in document["errors"].as_array().into_iter().flatten() {
            cause.extend(error["detail"].as_str().map(str::to_owned));
        }
        let request = text("request_id");
        if status >= 500 && !request.is_empty() {
            cause.push(format!("request {request}"));
        }
        Self(Box::new(Parts {
            exit,
            code: text("code"),
            what: text("title"),
            cause,
            hint: text("hint"),
            document: Some(document),
        }))
    }

    /// The same with another hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = hint.into();
        self
    }

    /// A failure of the log. Damage is no reason to try later; what stopped the fetching of a file speaks for itself.
    pub fn log(error: TlogError) -> Self {
        let error = match error {
            TlogError::Fetch { what, source } => match source.downcast::<Self>() {
                Ok(own) => return *own,
                Err(source) => TlogError::Fetch { what, source },
            },
            other => other,
        };
        let damage = error.is_damage();
        let mut failure = Self::from(error);
        if damage {
            failure.0.exit = 1;
        }
        failure
    }

    /// The code that `portcullis explain` knows.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// The exit code.
    pub fn exit(&self) -> u8 {
        self.0.exit
    }

    /// What to do next.
    pub fn hint(&self) -> &str {
        &self.0.hint
    }

    /// One line, for lists of outcomes.
    pub fn line(&self) -> String {
        let code = &self.0.code;
        match self.0.cause.first() {
            Some(cause) => format!("{code}: {cause}"),
            None => format!("{code}: {}", self.0.what),
        }
    }

    /// Prints it and gives the exit code.
    pub fn report(self, globals: &Globals) -> ExitCode {
        if globals.output.is_document() {
            let own = || serde_json::json!({ "code": self.0.code, "title": self.0.what, "detail": self.0.cause.join("; "), "hint": self.0.hint });
            document(globals, &self.0.document.clone().unwrap_or_else(own));
        }
        self.explain();
        ExitCode::from(self.0.exit)
    }

    /// Says it to people, on standard error.
    pub fn explain(&self) {
        say(&format!("error[{}]: {}", self.0.code, self.0.what));
        let causes = self.0.cause.iter();
        for cause in causes.filter(|cause| !cause.is_empty() && **cause != self.0.what) {
            say(&format!("  cause: {cause}"));
        }
        if !self.0.hint.is_empty() {
            say(&format!("  hint: {}", self.0.hint));
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.line())
    }
}

impl std::error::Error for Failure {}

impl<F: Fault> From<F> for Failure {
    fn from(fault: F) -> Self {
        Self(Box::new(Parts {
            exit: fault.kind().exit_code(),
            code: fault.code().id.to_owned(),
            what: fault.code().title.to_owned(),
            cause: vec![kernel::chain(&fault)],
            hint: fault.hint(),
            document: None,
        }))
    }
}

/// The exit code of a command that ended with `code`: lost output is told, and is no success.
pub fn settle(code: ExitCode) -> ExitCode {
    let Some(error) = lost() else { return code };
    let cause = format!("writing to standard output: {error}");
    Failure::coded(1, &codes::OUTPUT, cause).explain();
    if code == ExitCode::SUCCESS {
        ExitCode::FAILURE
    } else {
        code
    }
}
