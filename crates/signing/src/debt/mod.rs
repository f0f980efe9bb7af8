//! What is owed to somebody else's transparency log.
//!
//! Where an external log is configured, each signature owes it one entry: that of the signed statement, which the own
//! log holds too. A release is one statement and so one entry; the legacy format's own signature is logged nowhere. The
//! debt is written in the transaction that makes the signature DONE, and nobody waits for it to be paid: that log may be
//! away for a day.
//!
//! ```text
//!   sign … DONE + audit + debt (one transaction) ─▶ answer
//!                        │
//!                      owed ── entry sent, its place proven ──▶ logged ── evidence attached to the images ──▶ published
//!                        └────── the log refuses it ──────────▶ refused ── somebody looked ──▶ owed
//! ```
//!
//! One server pays at a time: it holds a lease, and each of its writes checks the lease's number, so that one that slept
//! writes nothing. It keeps to a rate and to what the log can do ([`rules`]). To ask again for what was paid does no harm,
//! because the log has each entry once; so what was under way when a server died is simply asked again.
//!
//! `logged` and `published` are two states, because they are two dependencies: a registry that is away delays the
//! second bundle of its own images, and no entry.

mod evidence;
mod held;
mod pay;
mod publish;
mod rules;
pub(crate) mod standing;
pub(crate) mod tables;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use access::audit::{self, Record};
use access::{AccessError, Action, Context};
use jiff::Timestamp;
use kernel::Repository;
use store::Lease;
use tokio::task::JoinError;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

pub(crate) use evidence::publish_again;
pub use standing::{Standing, Tally, Troubled};
pub(crate) use tables::{AGAIN_MIGRATION, DUE_MIGRATION, MIGRATION, PLACES_MIGRATION, at_image, owe};

use crate::ports::ExternalLog;
use crate::{Signing, SigningError};
use pay::Payer;
use publish::Publisher;
use tables::Again;

/// The duty's name on the lease.
const LEASE: &str = "external-log";
/// The pause after a failure of our own database.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// What is written down at once: meanwhile, for about a millisecond, nobody else writes to SQLite.
const SETTLED_MAX: usize = 32;
/// What is changed at once for a person: meanwhile, for about a twentieth of a second, nobody else writes to SQLite.
const CHANGED_MAX: u32 = 1_000;
/// How often is looked for what is new.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// Before everything that is due.
const BEGINNING: (i64, String) = (i64::MIN, String::new());
/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 300;

/// How the debt is paid.
pub struct Settings {
    pub log: Arc<dyn ExternalLog>,
    /// Never more in any second; at least 1.
    pub entries_per_second_max: u32,
    /// This server's name on leases.
    pub holder: String,
    pub lease_ttl: Duration,
}

impl Signing {
    /// How the debt of all servers stands.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn debt(&self) -> Result<Standing, SigningError> {
        standing::standing(&self.parts.db, self.parts.clock.now_us()).await
    }

    /// The oldest entries of the context's project that the external log refused.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn refused_debt(&self, context: &Context) -> Result<Vec<Troubled>, SigningError> {
        standing::refused(&self.parts.db, context.project.as_str()).await
    }

    /// The oldest entries of the context's project whose evidence could not be published to their images yet.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn unpublished_debt(&self, context: &Context) -> Result<Vec<Troubled>, SigningError> {
        standing::unpublished(&self.parts.db, context.project.as_str()).await
    }

    /// Owes again what the external log refused, in every project: for when it was not the log that refused it, or it would
    /// take it now. With a time, what was paid from then on: for when it went to a log that was not the one. The answer is how
    /// many entries. They are changed some at a time, each with its record.
    ///
    /// # Errors
    /// If the database does not answer, or if whoever asks is not the whole server's administrator.
    pub async fn retry_debt(
        &self,
        context: &Context,
        paid_since: Option<Timestamp>,
    ) -> Result<u64, SigningError> {
        context.require(Action::ManageLog)?;
        let parts = &self.parts;
        let again = self.again(paid_since).await?;
        let (resource, which) = match paid_since {
            None => ("refused", String::new()),
            Some(since) => ("paid", format!(" that were paid since {since}")),
        };
        let mut all = 0;
        loop {
            let mut tx = parts.db.begin().await?;
            // Whoever pays and publishes changes the same rows.
            store::lease::hold(&mut tx, LEASE).await?;
            let entries = tables::owe_again(&mut tx, again, parts.clock.now_us(), CHANGED_MAX).await?;
            if entries > 0 || all == 0 {
                let record = Record {
                    action: "external-log.retry",
                    resource,
                    detail: &format!("{entries} entries{which} owed again"),
                };
                audit::record(&mut tx, context, &*parts.clock, &*parts.random, record).await?;
            }
            tx.commit().await?;
            all += entries;
            if entries < u64::from(CHANGED_MAX) {
                return Ok(all);
            }
        }
    }

    /// How many entries [`Signing::retry_debt`] would owe again.
    ///
    /// # Errors
    /// As there.
    pub async fn count_debt(
        &self,
        context: &Context,
        paid_since: Option<Timestamp>,
    ) -> Result<u64, SigningError> {
        context.require(Action::ManageLog)?;
        tables::count(&self.parts.db, self.again(paid_since).await?).await
    }

    async fn again(&self, paid_since: Option<Timestamp>) -> Result<Again, SigningError> {
        Ok(match paid_since {
            None => Again::Refused,
            Some(since) => Again::Paid {
                since_us: since.as_microsecond(),
                until_us: tables::last_paid(&self.parts.db).await?,
            },
        })
    }

    /// Gives the evidence up that is to be attached to images at a registry, of all projects: for one that is gone for
    /// good. What is signed there from now on gets its evidence, and so does an image that is repaired. The answer is how
    /// many entries waited for it, also such that are owed; they are settled some hundreds in a second.
    ///
    /// # Errors
    /// [`SigningError::NothingUnpublished`] if none did; for no reason or one that is too long; if the database does not
    /// answer, or if whoever asks is not the whole server's administrator.
    pub async fn give_up_evidence(
        &self,
        context: &Context,
        registry: &str,
        reason: &str,
    ) -> Result<u64, SigningError> {
        context.require(Action::ManageLog)?;
        let (parts, reason) = (&self.parts, audit::reason(reason)?);
        let registry = host(registry)?;
        let entries = self.at(&registry, "owed", None).await? + self.at(&registry, "logged", None).await?;
        if entries == 0 {
            return Err(SigningError::NothingUnpublished(registry));
        }
        let now_us = parts.clock.now_us();
        let mut tx = parts.db.begin().await?;
        evidence::give_up(&mut tx, &registry, now_us).await?;
        let record = Record {
            action: "external-log.give-up",
            resource: &registry,
            detail: &reason,
        };
        audit::record(&mut tx, context, &*parts.clock, &*parts.random, record).await?;
        tx.commit().await?;
        // It is done; this only hastens it.
        if let Err(error) = self.at(&registry, "logged", Some(now_us)).await {
            tracing::warn!(
                error = kernel::chain(&error),
                registry,
                "what was given up is settled within the hour"
            );
        }
        Ok(entries)
    }

    /// How many entries in a state have an image at a registry; with a time they are due then.
    async fn at(&self, registry: &str, state: &str, due_us: Option<i64>) -> Result<u64, SigningError> {
        let db = &self.parts.db;
        let (mut all, mut after) = (0, Some(BEGINNING));
        while let Some(from) = after {
            let part = evidence::some_at(db, registry, state, &from, CHANGED_MAX).await?;
            if let Some(due_us) = due_us.filter(|_| !part.own.is_empty()) {
                let mut tx = db.begin_unsynced().await?;
                store::lease::hold(&mut tx, LEASE).await?;
                evidence::hasten(&mut tx, &part.own, due_us).await?;
                tx.commit().await?;
            }
            all += part.own.len() as u64;
            after = part.next;
        }
        Ok(all)
    }

    /// What this server has paid since its start.
    #[must_use]
    pub fn debt_tally(&self) -> Tally {
        self.parts.debts.tally()
    }

    /// Whether signatures are owed to an external log.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.parts.external_log
    }
}

/// Why a holder of the duty stops.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    /// Another server holds it.
    #[error("another server has taken over")]
    Lost,
    #[error(transparent)]
    Failed(#[from] SigningError),
}

impl From<store::StoreError> for Stopped {
    fn from(error: store::StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// Pays whenever it is this server's turn, until `stop`.
pub async fn run(signing: Signing, settings: Settings, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let pause = match Box::pin(duty(&signing, &settings, &stop)).await {
            Ok(()) => settings.lease_ttl / 3,
            Err(Stopped::Lost) => {
                tracing::warn!("another server pays the debt to the external log now");
                settings.lease_ttl / 3
            }
            Err(Stopped::Failed(error)) => {
                tracing::warn!(
                    error = kernel::chain(&error),
                    "paying the debt to the external log"
                );
                FAILED_PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Takes the lease, if it is free, and pays for as long as it is held.
async fn duty(signing: &Signing, settings: &Settings, stop: &CancellationToken) -> Result<(), Stopped> {
    let db = &signing.parts.db;
    let Some(lease) = Lease::acquire(db, LEASE, &settings.holder, settings.lease_ttl).await? else {
        return Ok(());
    };
    let mut payer = Payer::new(signing.parts.clone(), settings, lease.fence());
    let mut publisher = Publisher::new(signing.parts.clone(), lease.fence());
    let outcome = tokio::select! {
        stopped = renew(&lease, settings.lease_ttl) => stopped,
        stopped = payer.run() => stopped,
        stopped = publisher.run() => stopped,
        () = stop.cancelled() => {
            // What it does may hold the turn to write.
            drop(publisher);
            // What was answered meanwhile need not be asked again by the next.
            payer.settle().await?;
            lease.release().await?;
            return Ok(());
        }
    };
    outcome.map(|never| match never {})
}

/// Keeps the lease for as long as it can be kept.
async fn renew(lease: &Lease, ttl: Duration) -> Result<Infallible, Stopped> {
    let mut renewal = interval(ttl / 3);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        renewal.tick().await;
        match lease.renew().await {
            Ok(true) => {}
            Ok(false) => return Err(Stopped::Lost),
            // Every write checks the fence, so going on without a renewed lease is safe.
            Err(error) => tracing::warn!(
                error = kernel::chain(&error),
                "renewing the lease on the external log"
            ),
        }
    }
}

/// A registry as the names of its images have it, in lower case.
fn host(registry: &str) -> Result<String, AccessError> {
    let of_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if registry.is_empty() || !registry.bytes().all(of_host) {
        return Err(AccessError::Invalid {
            what: "registry",
            text: registry.chars().take(60).collect(),
            why: "it is the part of an image's name before the first slash: a host, with its port if there is one",
        });
    }
    let registry = registry.to_ascii_lowercase();
    let is_host = registry.contains(['.', ':']) || registry == "localhost";
    // Docker Hub has a name of its own.
    Ok(match format!("{registry}/image").parse::<Repository>() {
        Ok(repository) if is_host => repository.registry().to_owned(),
        _ => registry,
    })
}

/// What came of a task that was not stopped.
fn ended<T>(joined: Result<Result<T, Stopped>, JoinError>) -> Result<T, Stopped> {
    joined.unwrap_or_else(|_| Err(Stopped::Failed(SigningError::Lost)))
}

/// As much of an error as is kept.
fn shortened(error: &str) -> String {
    error.chars().take(ERROR_CHARS_MAX).collect()
}
