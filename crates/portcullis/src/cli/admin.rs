//! Keys, projects, tokens, signatures: what is asked of the server and printed.

use std::process::ExitCode;

use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::args::{Auth, Globals, Key, Output, Project, Signature, Token};
use crate::cli::{NOT_ALLOWED, input, local_token};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{document, list, println, say, table};

const DONE: Result<ExitCode, Failure> = Ok(ExitCode::SUCCESS);

/// The columns of a list of things: header and JSON field.
pub type Columns = &'static [(&'static str, &'static str)];

const KEYS: Columns = &[
    ("NAME", "name"),
    ("VERSION", "version"),
    ("ID", "id"),
    ("VERIFIES UNTIL", "verify_until"),
];
const PROJECTS: Columns = &[("NAME", "name"), ("IMAGES", "images"), ("CREATED", "created_at")];
const TOKENS: Columns = &[
    ("ID", "id"),
    ("NAME", "name"),
    ("PROJECT", "project"),
    ("ROLE", "role"),
    ("EXPIRES", "expires_at"),
    ("REVOKED", "revoked_at"),
];
const SIGNATURES: Columns = &[
    ("ID", "id"),
    ("IMAGE", "image"),
    ("KEY", "key"),
    ("LOG INDEX", "log_index"),
    ("CREATED", "created_at"),
];

pub fn show(globals: &Globals, items: &Value, columns: Columns) {
    let cell = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    };
    let row = |item: &Value| {
        columns
            .iter()
            .map(|(_, field)| cell(&item[field]))
            .collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = items.as_array().into_iter().flatten().map(row).collect();
    let header: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    list(globals, items, &header, &rows);
}

/// All pages of a list, up to `max` items.
pub async fn pages(client: &Client, path: &str, max: usize) -> Result<Value, Failure> {
    let (mut items, mut next) = (Vec::new(), Some(path.to_owned()));
    while let Some(path) = next.filter(|_| items.len() < max) {
        let page: Value = client.get(path.trim_start_matches('/')).await?;
        items.extend(page["items"].as_array().cloned().unwrap_or_default());
        next = page["next"].as_str().map(str::to_owned);
    }
    items.truncate(max);
    Ok(Value::Array(items))
}

/// One thing: its JSON, its name, or its fields line by line.
fn one(globals: &Globals, item: &Value, name: &str) {
    match globals.output {
        Output::Json | Output::Yaml => document(globals, item),
        Output::Name => println(item[name].as_str().unwrap_or_default()),
        Output::Table => {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let fields = item.as_object().into_iter().flatten();
            let rows: Vec<_> = fields
                .map(|(name, value)| vec![name.clone(), text(value).trim().replace('\n', " ")])
                .collect();
            table(&["FIELD", "VALUE"], &rows);
        }
    }
}

/// A key that was made. People get its PEM where it can be copied from, not in a cell of a table.
fn made_key(globals: &Globals, mut key: Value) {
    let table = globals.output == Output::Table;
    if let Some(fields) = key.as_object_mut().filter(|_| table) {
        fields.remove("public_key");
    }
    one(globals, &key, "name");
    if table && !globals.quiet {
        let name = key["name"].as_str().unwrap_or_default();
        say(&format!("its public half: portcullis key get {name}"));
    }
}

/// A path with a name from outside in it, escaped.
pub fn path(parts: &[&str]) -> String {
    let mut url = Url::parse("http://x/").ok();
    if let Some(mut segments) = url.as_mut().and_then(|url| url.path_segments_mut().ok()) {
        segments.pop_if_empty().extend(parts);
    }
    url.map(|url| url.path().trim_start_matches('/').to_owned())
        .unwrap_or_default()
}

pub async fn key(globals: &Globals, own: Key) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    match own {
        Key::Create { name } => made_key(
            globals,
            client.post("api/v1/keys", &json!({ "name": name })).await?,
        ),
        Key::Import { name, file } => {
            let private = input::read_text(&file)?;
            let password = input::password();
            let body = json!({ "name": name, "private_key": private, "password": password.expose() });
            made_key(globals, client.post("api/v1/keys", &body).await?);
        }
        Key::List => show(globals, &pages(&client, "api/v1/keys", usize::MAX).await?, KEYS),
        Key::Get { name } if globals.output == Output::Table => {
            println(
                client
                    .text(&path(&["api", "v1", "keys", &name, "cosign.pub"]))
                    .await?
                    .trim_end(),
            );
        }
        Key::Get { name } => one(
            globals,
            &client.get(&path(&["api", "v1", "keys", &name])).await?,
            "name",
        ),
        Key::Rotate { name, verify_until } => {
            let body = verify_until.map_or_else(|| json!({}), |until| json!({ "verify_until": until }));
            let path = path(&["api", "v1", "keys", &format!("{name}:rotate")]);
            made_key(globals, client.post(&path, &body).await?);
        }
    }
    DONE
}

pub async fn project(globals: &Globals, own: Project) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    match own {
        Project::Create { name, images } => {
            let body = json!({ "name": name, "images": images });
            one(globals, &client.post("api/v1/projects", &body).await?, "name");
        }
        Project::List => show(
            globals,
            &pages(&client, "api/v1/projects", usize::MAX).await?,
            PROJECTS,
        ),
        Project::Get { name } => one(
            globals,
            &client.get(&path(&["api", "v1", "projects", &name])).await?,
            "name",
        ),
        Project::Set(own) => {
            let mut body = json!({});
            if !own.images.is_empty() {
                body["images"] = json!(own.images);
            }
            if let Some((rate, burst)) = own.signatures_per_minute.zip(own.burst) {
                body["quota"] = json!({ "signatures_per_minute": rate, "burst": burst });
            }
            if own.default_quota {
                body["quota"] = Value::Null;
            }
            let path = path(&["api", "v1", "projects", &own.name]);
            one(globals, &client.patch(&path, &body).await?, "name");
        }
        Project::Quota => one(globals, &client.get("api/v1/quota").await?, "project"),
    }
    DONE
}

pub async fn token(globals: &Globals, own: Token) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    match own {
        Token::Create(own) => {
            let made = if own.local {
                local_token::create(globals, own).await?
            } else {
                let mut body = json!({ "name": own.name, "role": own.role, "everywhere": own.everywhere, "days": own.days });
                if let (Some(project), false) = (&globals.project, own.everywhere) {
                    body["project"] = json!(project);
                }
                client.post("api/v1/tokens", &body).await?
            };
            if globals.output == Output::Table {
                say(&format!(
                    "This is the only time that the token is shown. It ends {}.",
                    made["expires_at"].as_str().unwrap_or_default()
                ));
                println(made["token"].as_str().unwrap_or_default());
            } else {
                one(globals, &made, "token");
            }
        }
        Token::List => show(
            globals,
            &pages(&client, "api/v1/tokens", usize::MAX).await?,
            TOKENS,
        ),
        Token::Revoke { id } => {
            client
                .send(
                    Method::POST,
                    &path(&["api", "v1", "tokens", &format!("{id}:revoke")]),
                )
                .await?;
            say(&format!("revoked {id}"));
        }
    }
    DONE
}

pub async fn auth(globals: &Globals, own: Auth) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    match own {
        Auth::Whoami => one(globals, &client.get("api/v1/auth/whoami").await?, "actor"),
        Auth::CanI { action } => {
            let query = format!("api/v1/auth/can-i?action={}", path(&[action.as_str()]));
            let answer: Value = client.get(&query).await?;
            let allowed = answer["allowed"].as_bool().unwrap_or(false);
            match globals.output {
                Output::Json | Output::Yaml => document(globals, &answer),
                _ => println(if allowed { "yes" } else { "no" }),
            }
            return Ok(if allowed {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(NOT_ALLOWED)
            });
        }
    }
    DONE
}

pub async fn signature(globals: &Globals, own: Signature) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    match own {
        Signature::List { image, key, limit } => {
            let mut query = format!(
                "api/v1/signatures?limit={}",
                limit.clamp(1, kernel::limits::PAGE_ROWS_MAX)
            );
            let image = image.map(|image| image.to_string());
            for (name, value) in [("image", image), ("key", key)] {
                if let Some(value) = value {
                    query.push_str(&format!(
                        "&{name}={}",
                        path(&[&value]).replace('+', "%2B").replace('&', "%26")
                    ));
                }
            }
            show(
                globals,
                &pages(&client, &query, limit as usize).await?,
                SIGNATURES,
            );
        }
        Signature::Get { id } => {
            let page: Value = client.get(&path(&["api", "v1", "signatures", &id])).await?;
            show(globals, &page["items"], SIGNATURES);
        }
    }
    DONE
}
