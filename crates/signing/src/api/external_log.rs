//! What is owed to the external log.

use access::{AccessError, Action, Context};
use axum::extract::{Path, Query, State};
use jiff::Timestamp;
use web::{Json, Problem};

use crate::Signing;
use crate::debt::{Standing, Troubled};

/// The debt of all servers together.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ExternalLogBody {
    /// Whether signatures are owed to an external log; if not, what follows is what was owed to one before.
    pub configured: bool,
    /// Entries that the log has yet to get.
    pub owed: u64,
    /// How long the oldest of them has been owed.
    pub oldest_age_seconds: f64,
    /// Entries that the log has, and whose evidence is not attached to their images yet.
    pub unpublished: u64,
    /// How long ago the oldest of these came into the log.
    pub oldest_unpublished_age_seconds: f64,
    /// Entries that the log refused.
    pub refused: u64,
    /// Over the last five seconds.
    pub paid_per_second: f64,
    /// What last went wrong with the entry that is owed the longest; empty if nothing did.
    pub last_error: String,
    /// The oldest of the caller's project, at most 20, among the oldest 10,000 of all projects.
    pub refused_entries: Vec<TroubledEntry>,
    /// Those whose evidence was tried to be attached to their images in vain; the oldest of the caller's project, at
    /// most 20, among the oldest 10,000 of all projects.
    pub unpublished_entries: Vec<TroubledEntry>,
}

/// An entry with a trouble of its own.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct TroubledEntry {
    /// The id of the signature.
    pub signature: String,
    /// In the words of the log, or of the registry.
    pub why: String,
}

#[utoipa::path(get, path = "/api/v1/external-log", tag = "dependencies",
    responses((status = 200, body = ExternalLogBody)))]
pub(crate) async fn get(
    State(signing): State<Signing>,
    context: Context,
) -> Result<Json<ExternalLogBody>, Problem> {
    context.require(Action::ReadDependencies)?;
    let refused_entries = signing.refused_debt(&context).await?;
    let unpublished_entries = signing.unpublished_debt(&context).await?;
    let Standing {
        owed,
        oldest,
        unpublished,
        oldest_unpublished,
        refused,
        paid_per_second,
        last_error,
    } = signing.debt().await?;
    Ok(Json(ExternalLogBody {
        configured: signing.owes(),
        owed,
        oldest_age_seconds: oldest.as_secs_f64(),
        unpublished,
        oldest_unpublished_age_seconds: oldest_unpublished.as_secs_f64(),
        refused,
        paid_per_second,
        last_error,
        refused_entries: refused_entries.into_iter().map(TroubledEntry::from).collect(),
        unpublished_entries: unpublished_entries.into_iter().map(TroubledEntry::from).collect(),
    }))
}

/// What is owed again.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct RetryBody {
    /// Entries, of all projects; with `dry_run` as many as would be.
    pub owed_again: u64,
    /// Whether signatures are owed to an external log; if not, nobody pays.
    pub configured: bool,
}

/// What of the paid entries is owed again.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetryQuery {
    /// What was paid from this time on, RFC 3339; for `paid:retry`, and needed there.
    since: Option<String>,
    /// Count, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Owes again what the log refused (`refused:retry`), or what was paid since a time (`paid:retry`), in every project. The
/// log has each entry once, whatever it said before.
#[utoipa::path(post, path = "/api/v1/external-log/{entries}:retry", tag = "dependencies",
    params(RetryQuery), responses((status = 200, body = RetryBody)))]
pub(crate) async fn retry(
    State(signing): State<Signing>,
    context: Context,
    Path(action): Path<String>,
    Query(query): Query<RetryQuery>,
) -> Result<Json<RetryBody>, Problem> {
    let paid_since = match (action.as_str(), &query.since) {
        ("refused:retry", None) => None,
        ("refused:retry", Some(since)) => {
            return Err(invalid("since", since, "all that was refused is owed again; leave it out").into());
        }
        ("paid:retry", Some(since)) => {
            let read = since.parse::<Timestamp>();
            let at =
                read.map_err(|_| invalid("since", since, "a time is RFC 3339, with + written as %2B"))?;
            if at > signing.parts.clock.now() {
                return Err(invalid("since", since, "it has not come yet").into());
            }
            Some(at)
        }
        ("paid:retry", None) => {
            return Err(invalid("since", "", "it says what was paid from when on").into());
        }
        (other, _) => {
            let why = "it is refused:retry, paid:retry or registry:give-up";
            return Err(invalid("action", other, why).into());
        }
    };
    let owed_again = match query.dry_run {
        true => signing.count_debt(&context, paid_since).await?,
        false => signing.retry_debt(&context, paid_since).await?,
    };
    Ok(Json(RetryBody {
        owed_again,
        configured: signing.owes(),
    }))
}

/// A registry that is gone for good.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GiveUpBody {
    /// As in the names of its images: a host, with its port if they have one.
    pub registry: String,
    /// It stands in the audit trail; 1 to 500 characters.
    pub reason: String,
}

/// What was given up.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct GivenUpBody {
    /// Entries whose evidence waited for the registry, of all projects.
    pub given_up: u64,
}

/// Gives the evidence up that waits for a registry which is gone for good, in every project. What is signed there from now
/// on gets its evidence.
#[utoipa::path(post, path = "/api/v1/external-log/registry:give-up", tag = "dependencies",
    request_body = GiveUpBody, responses((status = 200, body = GivenUpBody)))]
pub(crate) async fn give_up(
    State(signing): State<Signing>,
    context: Context,
    Json(body): Json<GiveUpBody>,
) -> Result<Json<GivenUpBody>, Problem> {
    let given_up = signing
        .give_up_evidence(&context, &body.registry, &body.reason)
        .await?;
    Ok(Json(GivenUpBody { given_up }))
}

fn invalid(what: &'static str, text: &str, why: &'static str) -> AccessError {
    AccessError::Invalid {
        what,
        text: text.chars().take(60).collect(),
        why,
    }
}

impl From<Troubled> for TroubledEntry {
    fn from(Troubled { signature, why }: Troubled) -> Self {
        Self { signature, why }
    }
}
