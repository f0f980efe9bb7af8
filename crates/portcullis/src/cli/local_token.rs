//! `portcullis token create --local`: the way back in when no token is left that could make one.
//!
//! Whoever can open the database and its folder could read and change everything in it anyway, so that this gives
//! nobody a right that they do not have. The audit trail calls its actor `local`.

use std::sync::Arc;

use access::api::TokenBody;
use access::{Access, Context, ProjectName};
use kernel::{SystemClock, SystemRandom};
use serde_json::Value;
use store::FolderLock;

use crate::args::{Globals, NewToken};
use crate::codes;
use crate::config::{Config, Loaded};
use crate::failure::Failure;
use crate::wiring;

/// Makes the token in one transaction with its audit record; the answer is what the server's would be.
pub async fn create(globals: &Globals, own: NewToken) -> Result<Value, Failure> {
    let config = Loaded::with_data(&own.file, own.data.as_deref())?.config;
    let named: Option<ProjectName> = globals.project.as_deref().map(str::parse).transpose()?;
    let new = access::NewToken {
        name: own.name,
        project: (!own.everywhere).then(|| named.clone().unwrap_or_else(ProjectName::default_project)),
        role: own.role,
        days: own.days,
    };
    let _lock = lock(&config)?;
    let db = wiring::open_database(&config).await?;
    let access = Access::new(db.clone(), Arc::new(SystemClock::new()), Arc::new(SystemRandom));
    // The first start makes project, keys and token together; a token before it would pass for that.
    if !access.has_tokens().await? {
        return Err(nothing_there(
            "no server has started on this database yet".to_owned(),
        ));
    }
    let context = match named {
        Some(named) => Context::local(access.project(&named).await?.name),
        None => Context::local(ProjectName::default_project()),
    };
    let (token, text) = access.create_token(&context, new).await?;
    db.close().await;
    let body = TokenBody {
        token: Some(text.expose().to_owned()),
        ..token.into()
    };
    serde_json::to_value(body).map_err(|error| Failure::local("writing the token down", &error))
}

/// SQLite belongs to one process, and a folder that no server has used is not made here. PostgreSQL is shared.
fn lock(config: &Config) -> Result<Option<FolderLock>, Failure> {
    if config
        .database
        .url
        .as_ref()
        .is_some_and(|url| url.starts_with("postgres"))
    {
        return Ok(None);
    }
    let folder = &config.data.folder;
    if !folder.join("lock").is_file() {
        return Err(nothing_there(format!(
            "{} is no server's data folder",
            folder.display()
        )));
    }
    FolderLock::take(folder).map(Some).map_err(|error| match error {
        error @ store::StoreError::Locked { .. } => {
            Failure::from(error).with_hint("stop the server first; it need not stop if it uses PostgreSQL")
        }
        error => error.into(),
    })
}

fn nothing_there(what: String) -> Failure {
    Failure::coded(4, &codes::NO_DATA, what)
}
