//! `portcullis image-policy`.

use std::process::ExitCode;

use reqwest::Method;
use serde_json::Value;

use crate::args::{Globals, ImagePolicy, Output};
use crate::cli::admin::{pages, path};
use crate::cli::input;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{document, list, println, say};

pub async fn run(globals: &Globals, own: ImagePolicy) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    let place = |name: &str| path(&["api", "v1", "image-policies", name]);
    match own {
        ImagePolicy::Apply { file } => {
            for policy in input::image_policies(&file)? {
                let name = policy["metadata"]["name"].as_str().unwrap_or_default();
                if name.is_empty() {
                    let what = format!("{} has no metadata.name", file.display());
                    return Err(Failure::usage(what, "give the policy a name"));
                }
                let written: Value = client.put(&place(name), &policy).await?;
                match globals.output {
                    Output::Json | Output::Yaml => document(globals, &written),
                    Output::Name => println(name),
                    Output::Table => println(&format!("applied  {name}")),
                }
            }
        }
        ImagePolicy::List => {
            let policies = pages(&client, "api/v1/image-policies", usize::MAX).await?;
            let words = |policy: &Value, list: &str, of: fn(&Value) -> String| {
                let parts = policy["spec"][list].as_array().into_iter().flatten();
                parts.map(of).collect::<Vec<_>>().join(" ")
            };
            let row = |policy: &Value| {
                vec![
                    policy["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                    words(policy, "images", |image| {
                        image["glob"].as_str().unwrap_or_default().to_owned()
                    }),
                    words(policy, "authorities", authority),
                ]
            };
            let rows: Vec<_> = policies.as_array().into_iter().flatten().map(row).collect();
            list(globals, &policies, &["NAME", "IMAGES", "AUTHORITIES"], &rows);
        }
        ImagePolicy::Get { name } => {
            let policy: Value = client.get(&place(&name)).await?;
            match globals.output {
                Output::Name => println(&name),
                // A policy is a document; what is printed can be edited and applied.
                Output::Table => document(
                    &Globals {
                        output: Output::Yaml,
                        ..globals.clone()
                    },
                    &policy,
                ),
                _ => document(globals, &policy),
            }
        }
        ImagePolicy::Delete { name } => {
            client.send(Method::DELETE, &place(&name)).await?;
            say(&format!("deleted {name}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Its name, or what kind it is.
fn authority(spec: &Value) -> String {
    let kind = if spec["key"].is_object() { "key" } else { "keyless" };
    spec["name"].as_str().unwrap_or(kind).to_owned()
}
