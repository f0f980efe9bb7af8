//! The sections of the configuration of what watches the server: canary, dead man's switch, traces.

use std::path::PathBuf;

use access::TokenText;
use kernel::Repository;
use serde::Deserialize;

use crate::codes;
use crate::failure::Failure;

/// The shortest pause between two runs, in seconds: 144 signatures hang on the image of a day, and 256 may.
const CANARY_EVERY_SECONDS_MIN: u64 = 600;
/// Bounds of the pause, in seconds: with the shortest the alarm comes within a minute, the longest is a night.
const SIGN_OF_LIFE_EVERY_SECONDS_MIN: u64 = 5;
const SIGN_OF_LIFE_EVERY_SECONDS_MAX: u64 = 8 * 3_600;

/// The section `[canary]`; without it there is none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanarySection {
    /// A repository that it may push to and sign in.
    pub image: String,
    /// A token of its own, with the role signer.
    pub token_file: PathBuf,
    #[serde(default = "CanarySection::project_default")]
    pub project: String,
    #[serde(default = "CanarySection::every_seconds_default")]
    pub every_seconds: u64,
}

/// The section `[dead_mans_switch]`; without it there is none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadMansSwitchSection {
    /// Where the sign of life is posted.
    pub url: String,
    /// Where is posted instead while nothing can be signed; without it nothing is, which is the alarm too.
    #[serde(default)]
    pub fail_url: Option<String>,
    #[serde(default = "DeadMansSwitchSection::every_seconds_default")]
    pub every_seconds: u64,
}

/// The section `[tracing]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracingSection {
    /// A collector's base address.
    pub otlp_endpoint: Option<String>,
    /// Which part of the traces that begin here is kept, 0 to 1; callers decide about theirs.
    pub sample_ratio: Option<f64>,
}

impl TracingSection {
    /// What types cannot say.
    pub fn check(&self) -> Result<(), Failure> {
        let wrong = |why: String| Err(Failure::coded(1, &codes::CONFIG, format!("tracing.{why}")));
        if let Some(text) = &self.otlp_endpoint
            && let Err(why) = check_endpoint(text)
        {
            return wrong(format!("otlp_endpoint {why}"));
        }
        match self.sample_ratio {
            Some(ratio) if !(0.0..=1.0).contains(&ratio) => {
                wrong(format!("sample_ratio {ratio} is not within 0 and 1"))
            }
            _ => Ok(()),
        }
    }
}

/// The text is not repeated: an address with a password in it is one of those that are wrong.
pub fn check_endpoint(text: &str) -> Result<(), &'static str> {
    match url::Url::parse(text) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => Err("is not an http or https address"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Err("has a user in it; a collector's credentials are for OTEL_EXPORTER_OTLP_HEADERS")
        }
        Ok(_) => Ok(()),
        Err(_) => Err("is not an http or https address"),
    }
}

impl CanarySection {
    fn project_default() -> String {
        access::ProjectName::default_project().to_string()
    }

    fn every_seconds_default() -> u64 {
        900
    }

    /// The repository that it pushes to.
    pub fn repository(&self) -> Result<Repository, Failure> {
        let wrong = |why: String| Failure::coded(1, &codes::CONFIG, format!("canary.image: {why}"));
        let parsed: Result<Repository, _> = self.image.parse();
        parsed.map_err(|error| wrong(kernel::chain(&error)))
    }

    /// What it signs with.
    pub fn token(&self) -> Result<TokenText, Failure> {
        let wrong = |why: String| {
            let cause = format!("canary.token_file: {}: {why}", self.token_file.display());
            Failure::coded(1, &codes::CONFIG, cause)
        };
        let text = std::fs::read_to_string(&self.token_file).map_err(|error| wrong(error.to_string()))?;
        TokenText::parse(text.trim()).map_err(|error| wrong(kernel::chain(&error)))
    }

    /// What types cannot say.
    pub fn check(&self) -> Result<(), Failure> {
        self.repository()?;
        if self.every_seconds < CANARY_EVERY_SECONDS_MIN {
            let cause = format!("canary.every_seconds is below {CANARY_EVERY_SECONDS_MIN}");
            return Err(Failure::coded(1, &codes::CONFIG, cause));
        }
        Ok(())
    }
}

impl DeadMansSwitchSection {
    fn every_seconds_default() -> u64 {
        30
    }

    /// What types cannot say.
    pub fn check(&self) -> Result<(), Failure> {
        let wrong = |why: String| {
            Err(Failure::coded(
                1,
                &codes::CONFIG,
                format!("dead_mans_switch.{why}"),
            ))
        };
        for (name, url) in [("url", Some(&self.url)), ("fail_url", self.fail_url.as_ref())] {
            let is_address =
                |url: &String| url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            if url.is_some_and(|url| !is_address(url)) {
                return wrong(format!("{name} is not an http or https address"));
            }
        }
        if !(SIGN_OF_LIFE_EVERY_SECONDS_MIN..=SIGN_OF_LIFE_EVERY_SECONDS_MAX).contains(&self.every_seconds) {
            return wrong(format!(
                "every_seconds is not within {SIGN_OF_LIFE_EVERY_SECONDS_MIN} and {SIGN_OF_LIFE_EVERY_SECONDS_MAX}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_an_address_without_a_user_and_a_ratio_a_part() {
        let check = |endpoint: &str, sample_ratio| {
            let otlp_endpoint = Some(endpoint.to_owned());
            TracingSection {
                otlp_endpoint,
                sample_ratio,
            }
            .check()
        };
        assert!(TracingSection::default().check().is_ok());
        for good in ["http://127.0.0.1:4318", "https://collector.example/base/"] {
            assert!(check(good, Some(0.25)).is_ok(), "{good}");
        }
        for bad in ["collector:4318", "ftp://c", "", "https://user:s3cret@c"] {
            let line = check(bad, None).unwrap_err().line();
            assert!(line.contains("tracing.otlp_endpoint"), "{line}");
            assert!(!line.contains("s3cret"), "{line}");
        }
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(check("http://c", Some(bad)).is_err(), "{bad}");
        }
    }
}
