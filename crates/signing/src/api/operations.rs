//! Signing that nobody waits for: `Prefer: wait=N` (RFC 7240, section 4.3) bounds the wait, and what takes longer
//! becomes an operation.

use std::time::Duration;

use access::{Action, Context};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flow::Class;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use kernel::Kind;
use tokio::select;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use web::{Json, Problem};

use super::items::{self, BATCH_CONCURRENT_MAX, BatchLine, SignBody};
use crate::operations::{self, Open, Operation};
use crate::{Signing, SigningError};

/// The longest wait that is kept to, in seconds: what proxies let pass.
const WAIT_SECONDS_MAX: u64 = 50;
/// Seconds between two tries where the refusal says none.
const RETRY_SECONDS: u64 = 2;
/// The longest pause between two tries, in seconds.
const RETRY_SECONDS_MAX: u64 = 60;

/// What is to be signed, as it is stored.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Order {
    pub items: Vec<SignBody>,
    /// One statement over all.
    pub release: bool,
}

/// An operation.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct OperationBody {
    pub id: String,
    /// `running` or `done`.
    pub state: &'static str,
    pub created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// A line for each item, as a batch answers; when it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<BatchLine>>)]
    pub lines: Option<Box<serde_json::value::RawValue>>,
}

#[utoipa::path(get, path = "/api/v1/operations/{id}", tag = "signatures",
    responses((status = 200, body = OperationBody, description = "kept for a day after it is done")))]
pub(crate) async fn get(
    State(signing): State<Signing>,
    context: Context,
    Path(id): Path<String>,
) -> Result<Json<OperationBody>, Problem> {
    context.require(Action::ReadSignatures)?;
    let operation = signing.parts.operations.get(&context, &id).await?;
    Ok(Json(body_of(operation)))
}

/// How long the caller wants to wait, if it says so.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok());
    for preference in values.flat_map(|value| value.split(',')) {
        let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        if name.eq_ignore_ascii_case("respond-async") {
            return Some(Duration::ZERO);
        }
        if name.eq_ignore_ascii_case("wait")
            && let Ok(seconds) = value.parse::<u64>()
        {
            return Some(Duration::from_secs(seconds.min(WAIT_SECONDS_MAX)));
        }
    }
    None
}

/// Takes the order over from a caller who has waited long enough. The answer is durable before it is given.
pub(super) async fn accept(
    signing: &Signing,
    context: &Context,
    order: Order,
    waited: Duration,
) -> Result<Response, Problem> {
    let request = serde_json::to_string(&order).map_err(|_| SigningError::Lost)?;
    let operations = &signing.parts.operations;
    let operation = operations.accept(context, request, order.items.len()).await?;
    kernel::crash_point("operation.accepted");
    let location = format!("/api/v1/operations/{}", operation.id);
    let applied = format!("wait={}", waited.as_secs());
    signing.begin_operations().await;
    let headers = [
        (header::LOCATION, location),
        (HeaderName::from_static("preference-applied"), applied),
    ];
    Ok((StatusCode::ACCEPTED, headers, Json(body_of(operation))).into_response())
}

impl Signing {
    /// Takes over operations that no server works on, until `stop`. Runs beside the requests.
    pub async fn take_over_operations(self, stop: CancellationToken) {
        let mut rounds = interval(operations::ROUND);
        loop {
            select! {
                () = stop.cancelled() => return,
                _ = rounds.tick() => {}
            }
            if let Err(error) = self.parts.operations.forget().await {
                tracing::warn!(error = kernel::chain(&error), "forgetting finished operations");
            }
            self.begin_operations().await;
        }
    }

    /// Begins what nobody works on, as far as there is room. What is not begun now is looked for again within seconds.
    async fn begin_operations(&self) {
        match self.parts.operations.begin().await {
            Ok(begun) => begun
                .into_iter()
                .for_each(|(operation, room)| self.go_on_with(operation, room)),
            Err(error) => tracing::warn!(error = kernel::chain(&error), "looking for operations"),
        }
    }

    fn go_on_with(&self, operation: Operation, room: OwnedSemaphorePermit) {
        let order = serde_json::from_str::<Order>(&operation.request);
        let context = Context::from_json(&operation.asker);
        match (order, context) {
            (Ok(order), Some(context)) => {
                tracing::debug!(operation.id = operation.id.as_str(), "an operation is begun");
                let own = self.clone();
                let work = async move {
                    work(own.clone(), context, operation, order).await;
                    drop(room);
                    // Its place is another's at once.
                    own.begin_operations().await;
                };
                self.parts.runtime.spawn(work.in_current_span());
            }
            // Its claim ends again and again, and each time this is said.
            _ => tracing::error!(
                operation.id = operation.id.as_str(),
                "a stored operation does not read"
            ),
        }
    }

    /// What was accepted and is not finished, of all servers.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn open_operations(&self) -> Result<Open, SigningError> {
        self.parts.operations.open().await
    }
}

/// Does what was ordered and stores what came of it; keeps the claim meanwhile.
async fn work(signing: Signing, context: Context, operation: Operation, order: Order) {
    let (operations, id) = (&signing.parts.operations, &operation.id);
    let mut rounds = interval(operations::ROUND);
    let mut lines = std::pin::pin!(fulfil(&signing, &context, order));
    let lines = loop {
        select! {
            lines = &mut lines => break lines,
            _ = rounds.tick() => {
                if let Err(error) = operations.renew(id).await {
                    tracing::warn!(operation.id = id.as_str(), error = kernel::chain(&error), "keeping a claim");
                }
            }
        }
    };
    kernel::crash_point("operation.fulfilled");
    let answer = serde_json::to_string(&lines).unwrap_or_default();
    if let Err(error) = operations.finish(id, &answer).await {
        tracing::warn!(
            operation.id = id.as_str(),
            error = kernel::chain(&error),
            "storing an answer"
        );
    }
}

async fn fulfil(signing: &Signing, context: &Context, order: Order) -> Vec<BatchLine> {
    if order.release {
        let images: Vec<String> = order.items.iter().map(|item| item.image.clone()).collect();
        let attempt = || items::release(signing, context, order.items.clone());
        return match persistently(attempt).await {
            Ok(lines) => lines,
            Err(problem) => images
                .into_iter()
                .enumerate()
                .map(|(at, image)| items::line(at, image, Err(problem.copy())))
                .collect(),
        };
    }
    stream::iter(order.items.into_iter().enumerate())
        .map(|(at, item)| async move {
            let image = item.image.clone();
            let attempt = || items::sign(signing, context, item.clone(), Class::Batch);
            items::told(context, items::line(at, image, persistently(attempt).await))
        })
        .buffered(BATCH_CONCURRENT_MAX)
        .collect()
        .await
}

/// What was accepted is not refused for load, however long that lasts: it is tried again.
async fn persistently<T, F>(attempt: impl Fn() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    loop {
        let outcome = attempt().await;
        let Err(problem) = &outcome else { return outcome };
        let load = matches!(problem.kind(), Kind::Quota | Kind::Overloaded);
        if !load {
            return outcome;
        }
        let wait = problem
            .retry_after()
            .map_or(RETRY_SECONDS, |wait| wait.as_secs() + 1);
        sleep(Duration::from_secs(wait.min(RETRY_SECONDS_MAX))).await;
    }
}

fn body_of(operation: Operation) -> OperationBody {
    let time = |us: i64| {
        Timestamp::from_microsecond(us)
            .unwrap_or(Timestamp::MAX)
            .to_string()
    };
    OperationBody {
        id: operation.id.to_string(),
        state: match operation.finished_at {
            Some(_) => "done",
            None => "running",
        },
        created_at: time(operation.created_at),
        finished_at: operation.finished_at.map(time),
        lines: operation
            .answer
            .and_then(|answer| serde_json::value::RawValue::from_string(answer).ok()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_wait_is_read_as_rfc_7240_writes_it() {
        let wait_of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("prefer", HeaderValue::from_str(value).unwrap());
            }
            wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait_of(&[]), None);
        assert_eq!(wait_of(&["wait=5"]), Some(5));
        assert_eq!(wait_of(&["handling=lenient, WAIT = \"7\""]), Some(7));
        assert_eq!(wait_of(&["return=minimal", "respond-async"]), Some(0));
        assert_eq!(wait_of(&["wait=999999"]), Some(WAIT_SECONDS_MAX));
        for none in [
            "wait",
            "wait=",
            "wait=soon",
            "wait=-1",
            "waits=5",
            "return=minimal",
        ] {
            assert_eq!(wait_of(&[none]), None, "{none}");
        }
    }
}
