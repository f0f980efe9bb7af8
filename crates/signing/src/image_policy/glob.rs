//! Which images a policy is about: the globs of `ClusterImagePolicy`.

use kernel::{Digest, Repository};

/// A glob over references: `*` stands for any characters but a slash, `**` for any characters.
///
/// It is tried against the repository, the repository with the tag, and the repository with the digest: an image does
/// not leave a policy by being named differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

/// Longer than any reference, short enough to match quickly.
const GLOB_CHARS_MAX: usize = 400;

impl Glob {
    /// # Errors
    /// Why it is none, in words.
    pub fn new(text: &str) -> Result<Self, String> {
        let harmless = |b: u8| b.is_ascii_alphanumeric() || b"._-/:*@".contains(&b);
        if text.is_empty() || text.len() > GLOB_CHARS_MAX || !text.bytes().all(harmless) {
            return Err(format!(
                "a glob is 1 to {GLOB_CHARS_MAX} letters, digits and . _ - / : * @"
            ));
        }
        // These two are what policy-controller makes of them.
        let text = match text {
            "*" => "docker.io/library/*",
            "*/*" => "docker.io/*/*",
            text => text,
        };
        // One that no reference can meet would be a rule that is silently left out.
        access::completed(text).map(Self).map_err(str::to_owned)
    }

    #[must_use]
    pub fn matches(&self, repository: &Repository, tag: Option<&str>, digest: Option<Digest>) -> bool {
        let repository = repository.to_string();
        let tagged = tag.map(|tag| format!("{repository}:{tag}"));
        let pinned = digest.map(|digest| format!("{repository}@{digest}"));
        [Some(repository), tagged, pinned]
            .iter()
            .flatten()
            .any(|name| access::glob(&self.0, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, image: &str) -> bool {
        let image: kernel::Reference = image.parse().unwrap();
        Glob::new(glob)
            .unwrap()
            .matches(image.repository(), image.tag(), image.digest())
    }

    #[test]
    fn t34_an_image_does_not_leave_a_policy_by_its_name() {
        let digest = Digest::of(b"image");
        let table = [
            ("ghcr.io/team/*", true),
            ("ghcr.io/team/app", true),
            ("ghcr.io/team/app:*", true),
            ("ghcr.io/**", true),
            ("**", true),
            ("ghcr.io/*", false),
            ("ghcr.io/team/other", false),
            ("ghcr.io/team/app2", false),
            ("evil.example/ghcr.io/team/*", false),
            ("*", false),
        ];
        for (glob, expected) in table {
            assert_eq!(matches(glob, "ghcr.io/team/app:v1"), expected, "{glob}");
        }
        let pinned = format!("ghcr.io/team/app:v1@{digest}");
        for glob in [
            "ghcr.io/team/*",
            "ghcr.io/team/app",
            "ghcr.io/team/app@sha256:*",
            "ghcr.io/team/app:v1",
        ] {
            assert!(matches(glob, &pinned), "{glob}");
        }
        for glob in ["*", "index.docker.io/library/*", "docker.io/library/nginx"] {
            assert!(matches(glob, "nginx:1"), "{glob}");
        }
        assert!(matches("*/*", "team/app"));
        assert!(!matches("*/*", "ghcr.io/team/app"));
    }

    #[test]
    fn what_is_no_glob_is_refused() {
        for text in [
            "",
            "a b",
            "a?",
            "[a]",
            "team/app",
            "ghcr.io",
            &"a".repeat(GLOB_CHARS_MAX + 1),
        ] {
            assert!(Glob::new(text).is_err(), "{text}");
        }
    }
}
