//! The signing path of the server.

use std::sync::Arc;

use access::{Action, Context};
use flow::{Caller, Rate};
use jiff::Timestamp;
use kernel::{Fault as _, Reference};
use tokio::runtime::Handle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::debt::standing::Debts;
use crate::door::{Door, DoorStanding};
use crate::draft::Draft;
use crate::flight::Flights;
use crate::format::Annotations;
use crate::operations::Operations;
use crate::parts::{Parts, Settings};
use crate::request::{SignRequest, Signed};
use crate::tally::{Counts, Tally};
use crate::verdicts::Verdicts;
use crate::{KeyInfo, Keyring, SigningError};

/// The key that is used when a request names none.
pub const DEFAULT_KEY: &str = "default";
/// Annotations of one signature: what fits a screen.
const ANNOTATIONS_MAX: usize = 64;
/// Bytes of one annotation's name or value.
const ANNOTATION_BYTES_MAX: usize = 4_096;

/// Signs images and remembers what it signed. Cheap to clone.
#[derive(Clone)]
pub struct Signing {
    pub(crate) parts: Arc<Parts>,
}

impl Signing {
    /// Puts the parts together. What is signed is signed on the runtime that this is called on.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let Settings {
            db,
            access,
            keyring,
            registry,
            log,
            external_log,
            formats,
            quota,
            clock,
            random,
        } = settings;
        let runtime = Handle::current();
        let (asked, flights) = (Flights::new(runtime.clone()), Flights::new(runtime.clone()));
        let verdicts = Verdicts::new(clock.clone());
        let door = Door::new(clock.clone());
        let operations = Operations::new(db.clone(), clock.clone(), random.clone());
        Self {
            parts: Arc::new(Parts {
                db,
                clock,
                random,
                access,
                keyring,
                registry,
                log,
                external_log,
                formats,
                quota,
                runtime,
                door,
                asked,
                flights,
                verdicts,
                operations,
                counts: Counts::default(),
                debts: Debts::default(),
            }),
        }
    }

    /// The server's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.parts.keyring
    }

    /// The rate of new signatures of the context's project, and how many it could make at once now.
    ///
    /// # Errors
    /// If there is no such project.
    pub async fn quota(&self, context: &Context) -> Result<(Rate, u32), SigningError> {
        let project = self.parts.access.project(&context.project).await?;
        let rate = project.quota.unwrap_or(self.parts.quota);
        Ok((rate, self.parts.door.left(project.name.as_str(), rate)))
    }

    /// What came of it since the start.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.parts.counts.read()
    }

    /// How the queues stand.
    #[must_use]
    pub fn standing(&self) -> DoorStanding {
        self.parts.door.standing()
    }

    /// Signs an image, or finds that it is signed already; with `recursive` the image comes first in the answer
    /// and the manifests under it follow.
    ///
    /// An image named by digest that this key signed before is answered from the store: no key, log or registry
    /// is touched. That it stands is known from the store alone: if the registry has lost it since, a request with
    /// `repair` looks there and puts it back.
    ///
    /// Who goes away cancels nothing: what is new is signed by a task of its own.
    ///
    /// # Errors
    /// Those of the context's rights, the registry, the key and the log; [`SigningError::Busy`], at once, if the
    /// project's quota is used up or too many wait. What is signed stays signed.
    pub async fn sign(&self, context: &Context, request: &SignRequest) -> Result<Vec<Signed>, SigningError> {
        let span = span("sign image", &request.image);
        let outcome = self.sign_now(context, request).instrument(span.clone()).await;
        failed(&span, &outcome);
        outcome
    }

    async fn sign_now(&self, context: &Context, request: &SignRequest) -> Result<Vec<Signed>, SigningError> {
        let caller = Caller::new(context.project.as_str(), request.class);
        let turn = self.parts.door.look_up(caller).await?;
        let draft = self.draft(context, request).await?;
        let plain = !request.recursive && !request.repair;
        if let (Some(digest), true) = (request.image.digest(), plain) {
            if let Some(row) = draft.known(digest).await? {
                return Ok(vec![draft.signed(&row, true)]);
            }
            drop(turn);
            return Ok(vec![draft.one(digest, None).await?]);
        }
        drop(turn);
        draft.by_name().await
    }

    async fn draft(&self, context: &Context, request: &SignRequest) -> Result<Draft, SigningError> {
        let images = std::slice::from_ref(&request.image);
        let admitted = self
            .admit(context, images, request.key.as_deref(), &request.annotations)
            .await?;
        let registry = request.image.repository().registry();
        Ok(Draft {
            parts: self.parts.clone(),
            context: context.clone(),
            key: admitted.key,
            quota: admitted.quota,
            formats: request.formats.unwrap_or_else(|| (self.parts.formats)(registry)),
            request: request.clone(),
        })
    }

    /// What has to be true before anything is done: the role, the project's patterns, sane annotations, a key.
    /// The key is read once for all `images`: what one statement says is signed by one key, also if it is rotated
    /// meanwhile.
    pub(crate) async fn admit(
        &self,
        context: &Context,
        images: &[Reference],
        key: Option<&str>,
        annotations: &Annotations,
    ) -> Result<Admitted, SigningError> {
        context.require(Action::SignImages)?;
        let project = self.parts.access.project(&context.project).await?;
        for image in images {
            project.require_image(image.repository())?;
        }
        require_sane(annotations)?;
        let name = key.unwrap_or(DEFAULT_KEY);
        Ok(Admitted {
            key: self.parts.keyring.current(context.project.as_str(), name).await?,
            quota: project.quota.unwrap_or(self.parts.quota),
        })
    }
}

/// A span around all that is done for one image.
pub(crate) fn span(name: &str, image: &Reference) -> Span {
    tracing::info_span!(
        "image",
        otel.name = name,
        portcullis.image = %image,
        error.type = Empty,
        otel.status_code = Empty,
    )
}

/// Notes in the span why it ended badly, if it did.
pub(crate) fn failed<T>(span: &Span, outcome: &Result<T, SigningError>) {
    if let Err(error) = outcome {
        span.record("error.type", error.code().id);
        span.record("otel.status_code", "ERROR");
    }
}

/// What a project may do: sign with this key, so often.
pub(crate) struct Admitted {
    pub key: KeyInfo,
    pub quota: Rate,
}

pub(crate) fn require_sane(annotations: &Annotations) -> Result<(), SigningError> {
    if annotations.len() > ANNOTATIONS_MAX {
        return Err(SigningError::Request(format!(
            "there are more than {ANNOTATIONS_MAX} annotations"
        )));
    }
    let long = |text: &String| text.len() > ANNOTATION_BYTES_MAX;
    match annotations
        .iter()
        .find(|(name, value)| name.is_empty() || long(name) || long(value))
    {
        Some((name, _)) => {
            let name: String = name.chars().take(60).collect();
            Err(SigningError::Request(format!(
                "annotation {name:?} is empty or over {ANNOTATION_BYTES_MAX} bytes"
            )))
        }
        None => Ok(()),
    }
}
