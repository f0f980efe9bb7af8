//! The edge where refusals are seen: a layer around all handlers, and what they tell it of who asks for what.

use std::fmt;
use std::sync::{Arc, OnceLock};

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use web::{ProblemDocument, RequestId};

use super::operation::refused;
use super::refusals::Kind;
use super::{Outcome, Refusals, operation};
use crate::{Actor, ProjectName};

/// Whoever is not known.
const UNKNOWN: &str = "unknown";

/// Who asks in a request, told by whoever finds out, for the record of a refusal.
#[derive(Clone, Default)]
pub struct Asker(Option<Arc<Asked>>);

struct Asked {
    refusals: Refusals,
    request_id: String,
    actor: OnceLock<String>,
    project: OnceLock<String>,
    about: OnceLock<String>,
    crossed: OnceLock<()>,
}

impl Asker {
    fn of(refusals: Refusals, request_id: String) -> Self {
        Self(Some(Arc::new(Asked {
            refusals,
            request_id,
            actor: OnceLock::new(),
            project: OnceLock::new(),
            about: OnceLock::new(),
            crossed: OnceLock::new(),
        })))
    }

    /// Whose token it is, good or ended.
    pub(crate) fn is(&self, actor: &Actor) {
        if let Some(asked) = &self.0 {
            let _ = asked.actor.set(actor.to_string());
        }
    }

    /// The project that the request is about, or to which the token is bound.
    pub(crate) fn within(&self, project: &ProjectName) {
        if let Some(asked) = &self.0 {
            let _ = asked.project.set(project.to_string());
        }
    }

    /// Somebody asked for another project than his own, which is answered as if there were none.
    pub(crate) fn crosses(&self) {
        if let Some(asked) = &self.0 {
            let _ = asked.crossed.set(());
        }
    }

    /// What the request is about, where its path does not say.
    pub(crate) fn about(&self, resource: &str) {
        if let Some(asked) = &self.0 {
            let _ = asked.about.set(resource.to_owned());
        }
    }

    /// Notes the refusal of one item of a request that as a whole is answered with success.
    pub(crate) fn item_refused(&self, action: &str, resource: &str, problem: &ProblemDocument) {
        if let Some(asked) = &self.0
            && let Some(outcome) = refused(&axum::http::Method::POST, action, problem.status, false)
        {
            asked.note(action, resource, outcome, problem);
        }
    }
}

impl Asked {
    fn note(&self, action: &str, resource: &str, outcome: Outcome, problem: &ProblemDocument) {
        let actor = self.actor.get().map_or(UNKNOWN, String::as_str);
        let project = self.project.get().cloned().unwrap_or_default();
        let kind = Kind {
            // What nobody in particular asks for is his to choose: it is no reason for a record of its own.
            resource: if actor == UNKNOWN {
                String::new()
            } else {
                kernel::words(resource)
            },
            actor: kernel::words(actor),
            project,
            action: kernel::words(action),
            outcome,
            code: problem.code.clone(),
            detail: kernel::words(&problem.detail),
        };
        self.refusals.note(kind, self.request_id.clone());
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asker")
    }
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// The one place where refusals are seen: a layer around the handlers, below the one that gives requests their ids.
pub async fn layer(State(refusals): State<Refusals>, mut request: Request, next: Next) -> Response {
    let request_id = request
        .extensions()
        .get::<RequestId>()
        .map_or(String::new(), |id| id.0.clone());
    let asker = Asker::of(refusals, request_id);
    request.extensions_mut().insert(asker.clone());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|route| route.as_str().to_owned());
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    if let (Some(asked), Some(route), Some(problem)) =
        (&asker.0, route, response.extensions().get::<ProblemDocument>())
    {
        let (action, named) = operation(&method, &route, &path);
        let crossed = asked.crossed.get().is_some();
        if let Some(outcome) = refused(&method, &action, problem.status, crossed) {
            let resource = asked.about.get().unwrap_or(&named);
            asked.note(&action, resource, outcome, problem);
        }
    }
    response
}
