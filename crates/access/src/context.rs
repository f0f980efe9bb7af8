//! Who asks, with what right, in which request.

use std::fmt;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use kernel::Id;
use web::{Problem, ProblemDocument, RequestId};

use crate::audit::Asker;
use crate::oidc::token::is_jwt;
use crate::{Access, AccessError, Action, ProjectName, Role, TokenText};

/// Names the project of a request whose token is good for all of them.
const PROJECT_HEADER: &str = "x-portcullis-project";

/// Somebody who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A token, by its id and name.
    Token { id: Id, name: String },
    /// A job of a build system, by the trust rule that took its token, who vouches for it, and as whom.
    Workload {
        rule: String,
        issuer: String,
        subject: String,
    },
    /// The server itself, at its start or in the background.
    Server,
    /// A person at the command line who opens the database without a server.
    Local,
    /// Whoever asked for what is done now, possibly by a server that is gone.
    Earlier(String),
}

/// The first argument of everything that reads or changes: who, with what right, for which project, in which
/// request.
#[derive(Debug, Clone)]
pub struct Context {
    pub actor: Actor,
    pub role: Role,
    /// The project that the request is about.
    pub project: ProjectName,
    /// Whether the actor is bound to that project, or may name any.
    pub everywhere: bool,
    /// When the actor's token ends, if it is one.
    pub expires_at: Option<Timestamp>,
    pub request_id: String,
    asker: Asker,
}

/// A context in the database.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    actor: String,
    role: Role,
    project: String,
    everywhere: bool,
    request_id: String,
}

impl Context {
    /// The server's own context, for what it does unasked.
    #[must_use]
    pub fn server(project: ProjectName) -> Self {
        Self {
            actor: Actor::Server,
            role: Role::Admin,
            project,
            everywhere: true,
            expires_at: None,
            request_id: String::new(),
            asker: Asker::default(),
        }
    }

    /// Of a person who has the database itself before them.
    #[must_use]
    pub fn local(project: ProjectName) -> Self {
        Self {
            actor: Actor::Local,
            ..Self::server(project)
        }
    }

    /// For work that outlives the request: who asked, with what right. Read again by [`Self::from_json`].
    #[must_use]
    pub fn to_json(&self) -> String {
        let stored = Stored {
            actor: self.actor.to_string(),
            role: self.role,
            project: self.project.to_string(),
            everywhere: self.everywhere,
            request_id: self.request_id.clone(),
        };
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// Who asked for what is done now. `None` if the text is not one of [`Self::to_json`].
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        let stored: Stored = serde_json::from_str(text).ok()?;
        Some(Self {
            actor: Actor::Earlier(stored.actor),
            role: stored.role,
            everywhere: stored.everywhere,
            request_id: stored.request_id,
            ..Self::server(stored.project.parse().ok()?)
        })
    }

    /// Says what the request is about, where its path does not: for the record, should it be refused.
    pub fn about(&self, resource: &str) {
        self.asker.about(resource);
    }

    /// Has the refusal of one item recorded, in a request that as a whole is answered with success.
    pub fn item_refused(&self, action: &str, resource: &str, problem: &ProblemDocument) {
        self.asker.item_refused(action, resource, problem);
    }

    /// # Errors
    /// [`AccessError::Denied`] if the role does not allow `action`, [`AccessError::Everywhere`] if it is about the
    /// whole server and the actor is of one project.
    pub fn require(&self, action: Action) -> Result<(), AccessError> {
        let whole_server = matches!(
            action,
            Action::ManageProjects | Action::ManageDependencies | Action::ManageLog
        );
        if whole_server {
            self.require_everywhere(action)?;
        }
        if self.role.allows(action) {
            return Ok(());
        }
        Err(AccessError::Denied {
            actor: self.actor.to_string(),
            action,
            project: self.project.to_string(),
        })
    }

    /// # Errors
    /// [`AccessError::Everywhere`] if the actor is of one project.
    pub(crate) fn require_everywhere(&self, action: Action) -> Result<(), AccessError> {
        if self.everywhere {
            return Ok(());
        }
        let actor = self.actor.to_string();
        Err(AccessError::Everywhere { actor, action })
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id, name } => write!(f, "token {name} ({id})"),
            Self::Workload {
                rule,
                issuer,
                subject,
            } => write!(f, "workload {rule} ({subject} of {issuer})"),
            Self::Server => f.write_str("server"),
            Self::Local => f.write_str("local"),
            Self::Earlier(text) => f.write_str(text),
        }
    }
}

/// The project that the request names. A name that is none is never taken for no name.
fn wanted_project(headers: &HeaderMap) -> Result<Option<ProjectName>, AccessError> {
    let mut values = headers.get_all(PROJECT_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let invalid = |why| AccessError::Invalid {
        what: "header X-Portcullis-Project",
        text: String::from_utf8_lossy(value.as_bytes())
            .chars()
            .take(100)
            .collect(),
        why,
    };
    if values.next().is_some() {
        return Err(invalid("a request is about one project, and it names more"));
    }
    let text = value.to_str().map_err(|_| invalid("a project name is ASCII"))?;
    text.parse().map(Some)
}

/// Who shows a token, and what it gives.
struct Bearer {
    actor: Actor,
    role: Role,
    /// Its one project, or all of them.
    project: Option<ProjectName>,
    expires_at: Timestamp,
}

async fn token(access: &Access, text: &str, asker: &Asker) -> Result<Bearer, AccessError> {
    let token = access.find_token(&TokenText::parse(text)?).await?;
    let actor = Actor::Token {
        id: token.id.clone(),
        name: token.name.clone(),
    };
    asker.is(&actor);
    if let Some(own) = &token.project {
        asker.within(own);
    }
    access.require_valid(&token)?;
    Ok(Bearer {
        actor,
        role: token.role,
        project: token.project,
        expires_at: token.expires_at,
    })
}

async fn workload(
    access: &Access,
    text: &str,
    headers: &HeaderMap,
    asker: &Asker,
) -> Result<Bearer, AccessError> {
    // Whoever no rule takes is anybody, and stays unknown: his subject is his to choose.
    let workload = access.oidc.identify(text).await?;
    let wanted = wanted_project(headers).ok().flatten();
    let rule = workload.rule(wanted.as_ref());
    let actor = workload.actor(rule);
    asker.is(&actor);
    asker.within(&rule.project);
    access.oidc.require_current(&workload)?;
    // A rule may name a project before it is made.
    let project = access.project(&rule.project).await?.name;
    Ok(Bearer {
        actor,
        role: rule.role,
        project: Some(project),
        expires_at: workload.expires_at(),
    })
}

impl<S> FromRequestParts<S> for Context
where
    S: Sync,
    Access: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let access = Access::from_ref(state);
        let asker = Asker::from_request_parts(parts, state).await.unwrap_or_default();
        let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().ok_or(AccessError::NoToken)?;
        if values.next().is_some() {
            return Err(AccessError::BadToken("the request has two of them").into());
        }
        let value = value
            .to_str()
            .map_err(|_| AccessError::BadToken("it is not text"))?;
        let text = value
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, text)| text.trim())
            .ok_or(AccessError::BadToken("the scheme is not Bearer"))?;
        let bearer = match is_jwt(text) {
            true => workload(&access, text, &parts.headers, &asker).await?,
            false => token(&access, text, &asker).await?,
        };
        let Bearer {
            actor,
            role,
            project,
            expires_at,
        } = bearer;
        let wanted = wanted_project(&parts.headers)?;
        let RequestId(request_id) = RequestId::from_request_parts(parts, state)
            .await
            .unwrap_or(RequestId(String::new()));
        let everywhere = project.is_none();
        let project = match (project, wanted) {
            (Some(own), Some(wanted)) if own != wanted => {
                // Whether that project exists is not this token's to know.
                asker.crosses();
                return Err(AccessError::NotFound {
                    what: "project",
                    name: wanted.to_string(),
                }
                .into());
            }
            (Some(own), _) => own,
            // One that does not exist has no keys and no images: what is meant is another.
            (None, Some(wanted)) => access.project(&wanted).await?.name,
            (None, None) => ProjectName::default_project(),
        };
        asker.within(&project);
        tracing::Span::current().record("portcullis.project", project.as_str());
        Ok(Self {
            actor,
            role,
            project,
            everywhere,
            expires_at: Some(expires_at),
            request_id,
            asker,
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_project_header_that_is_no_name_is_refused_and_never_the_default() {
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(PROJECT_HEADER, HeaderValue::from_bytes(value).unwrap());
            }
            wanted_project(&headers)
        };
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[b"team-a"]).unwrap().unwrap().as_str(), "team-a");
        for wrong in [
            &[&b"t\xc3\xa9am"[..]][..],
            &[b""],
            &[b"Team"],
            &[b"a", b"b"],
            &[b"a/b"],
        ] {
            let error = read(wrong).unwrap_err();
            assert!(matches!(error, AccessError::Invalid { .. }), "{wrong:?}: {error}");
        }
    }
}
