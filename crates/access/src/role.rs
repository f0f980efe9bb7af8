//! Roles and what they allow.

use std::fmt;
use std::str::FromStr;

use crate::AccessError;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),* }

        impl $name {
            /// Every one, in the order in which they are documented.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = AccessError;
            fn from_str(text: &str) -> Result<Self, AccessError> {
                Self::ALL.iter().copied().find(|own| own.as_str() == text).ok_or_else(|| AccessError::Word {
                    what: $what,
                    text: text.chars().take(60).collect(),
                    known: Self::ALL.iter().map(|own| own.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

words! {
    /// A named set of [`Action`]s.
    Role, "role" {
        /// Reads signatures, public keys, image policies, the project and the state of dependencies; verifies images.
        Viewer = "viewer",
        /// A viewer that also signs images.
        Signer = "signer",
        /// A viewer that also reads the audit trail.
        Auditor = "auditor",
        /// Everything in its project; without a project, everything.
        Admin = "admin",
    }
}

words! {
    /// One thing that a request may want, as `verb-noun`.
    Action, "action" {
        ReadSignatures = "read-signatures",
        VerifyImages = "verify-images",
        SignImages = "sign-images",
        ReadKeys = "read-keys",
        ManageKeys = "manage-keys",
        ReadPolicies = "read-policies",
        ManagePolicies = "manage-policies",
        ReadProjects = "read-projects",
        ReadDependencies = "read-dependencies",
        /// Only for the administrator of the whole server.
        ManageProjects = "manage-projects",
        /// Only for the administrator of the whole server: acknowledging what was found.
        ManageDependencies = "manage-dependencies",
        ManageTokens = "manage-tokens",
        /// Only for the administrator of the whole server.
        ManageLog = "manage-log",
        ReadAudit = "read-audit",
    }
}

impl Role {
    /// Whether this role allows `action` within its project.
    #[must_use]
    pub fn allows(self, action: Action) -> bool {
        use Action::{
            ManageDependencies, ManageKeys, ManageLog, ManagePolicies, ManageProjects, ManageTokens,
            ReadAudit, ReadDependencies, ReadKeys, ReadPolicies, ReadProjects, ReadSignatures, SignImages,
            VerifyImages,
        };
        let viewer = matches!(
            action,
            ReadSignatures | VerifyImages | ReadKeys | ReadPolicies | ReadProjects | ReadDependencies
        );
        match self {
            Self::Viewer => viewer,
            Self::Signer => viewer || action == SignImages,
            Self::Auditor => viewer || action == ReadAudit,
            Self::Admin => {
                viewer
                    || matches!(
                        action,
                        SignImages
                            | ReadAudit
                            | ManageKeys
                            | ManagePolicies
                            | ManageTokens
                            | ManageProjects
                            | ManageDependencies
                            | ManageLog
                    )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_allows_what_its_name_says_and_no_more() {
        let allowed = |role: Role| {
            Action::ALL
                .iter()
                .filter(|action| role.allows(**action))
                .map(|action| action.as_str())
                .collect::<Vec<_>>()
        };
        let viewer = [
            "read-signatures",
            "verify-images",
            "read-keys",
            "read-policies",
            "read-projects",
            "read-dependencies",
        ];
        assert_eq!(allowed(Role::Viewer), viewer);
        assert_eq!(
            allowed(Role::Signer),
            [
                "read-signatures",
                "verify-images",
                "sign-images",
                "read-keys",
                "read-policies",
                "read-projects",
                "read-dependencies"
            ]
        );
        assert_eq!(allowed(Role::Auditor), [&viewer[..], &["read-audit"]].concat());
        assert_eq!(allowed(Role::Admin).len(), Action::ALL.len());
    }
}
