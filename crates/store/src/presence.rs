//! Whether PostgreSQL is there.
//!
//! A pool asks a database that is away again and again until each caller's patience ends. Here one task looks for it,
//! and everybody else is refused at once until it is back: a caller who can do without the database does so at once,
//! and one who cannot is told so at once. A failed call is only a reason to look: what decides is a new connection
//! that answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use tokio::sync::watch;

use crate::StoreError;

/// How long one look may take, in milliseconds: a new connection and its first answer.
const LOOK_MS_MAX: u64 = 1_000;
/// After how long without an answer somebody looks, in milliseconds.
const DOUBT_MS: u64 = 1_000;
/// The pause between two looks at a database that is away, in milliseconds: how long after its return it is used.
const PAUSE_MS: u64 = 250;
/// How long a statement may take, in milliseconds. None of ours takes a tenth of it; a host that vanished without a
/// word would be waited for until the network gives up, many minutes later.
pub(crate) const STATEMENT_MS_MAX: u64 = 5_000;

/// `read_only_sql_transaction` and `too_many_connections` (PostgreSQL, appendix A).
const READ_ONLY: &str = "25006";
pub(crate) const CROWDED: &str = "53300";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    There,
    /// A call failed in a way that may mean that it is gone; somebody looks.
    Doubted,
    Away,
}

/// What is known of the database's presence. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Presence(Arc<Watched>);

struct Watched {
    state: watch::Sender<State>,
    options: PgConnectOptions,
    /// The address as it may be shown.
    what: String,
    /// See [`Presence::is_read_only`].
    read_only: AtomicBool,
    /// Whether the last look was refused for lack of room.
    crowded: AtomicBool,
}

impl Presence {
    pub(crate) fn new(options: PgConnectOptions, what: String) -> Self {
        let state = watch::Sender::new(State::There);
        Self(Arc::new(Watched {
            state,
            options,
            what,
            read_only: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
        }))
    }

    /// Whether a write was refused because nothing may be written, and no session was found since that takes writes. A
    /// session keeps that from its beginning, also when the database takes writes again, so that each is then asked
    /// before it is kept.
    pub(crate) fn is_read_only(&self) -> bool {
        self.0.read_only.load(Ordering::Relaxed)
    }

    pub(crate) fn takes_writes(&self) {
        self.0.read_only.store(false, Ordering::Relaxed);
    }

    /// What `ask` answers; at once [`StoreError::Away`] if the database is away, or turns out to be while it is asked.
    pub(crate) async fn ask<T>(
        &self,
        operation: &'static str,
        ask: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let mut state = self.0.state.subscribe();
        let asked = tokio::time::timeout(Duration::from_millis(STATEMENT_MS_MAX), ask);
        let slow = async {
            tokio::time::sleep(Duration::from_millis(DOUBT_MS)).await;
            self.doubt();
            std::future::pending::<std::convert::Infallible>().await
        };
        let answer = tokio::select! {
            biased;
            _ = state.wait_for(|state| *state == State::Away) => return Err(self.away()),
            answer = asked => answer.unwrap_or_else(|_| Err(silent())),
            never = slow => match never {},
        };
        answer.map_err(|source| {
            if may_be_gone(&source) {
                self.doubt();
            }
            self.named(operation, source)
        })
    }

    /// What a failure is called: some are no absence, and have a name of their own.
    pub(crate) fn named(&self, operation: &'static str, source: sqlx::Error) -> StoreError {
        let what = || self.0.what.clone();
        if is(&source, READ_ONLY) {
            self.0.read_only.store(true, Ordering::Relaxed);
            return StoreError::ReadOnly { what: what() };
        }
        // The pool asks again until its patience ends, and then says no more than that.
        let waited = matches!(source, sqlx::Error::PoolTimedOut) && self.0.crowded.load(Ordering::Relaxed);
        if waited || is(&source, CROWDED) {
            return StoreError::Crowded { what: what() };
        }
        StoreError::query(operation, source)
    }

    /// Has somebody look whether the database is there.
    pub(crate) fn doubt(&self) {
        let begun = self.0.state.send_if_modified(|state| {
            let there = *state == State::There;
            if there {
                *state = State::Doubted;
            }
            there
        });
        if begun {
            tokio::spawn(self.clone().look_until_there());
        }
    }

    async fn look_until_there(self) {
        while let Err(error) = self.look().await {
            if self.0.state.send_replace(State::Away) == State::Doubted {
                tracing::error!(
                    database = self.0.what,
                    error = kernel::chain(&error),
                    "the database is away"
                );
            }
            tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
        }
        if self.0.state.send_replace(State::There) == State::Away {
            tracing::info!(database = self.0.what, "the database is back");
        }
    }

    async fn look(&self) -> Result<(), sqlx::Error> {
        let look = async {
            let mut connection = self.0.options.connect().await?;
            connection.execute("SELECT 1").await?;
            connection.close().await
        };
        let looked = tokio::time::timeout(Duration::from_millis(LOOK_MS_MAX), look).await;
        let crowded = matches!(&looked, Ok(Err(error)) if is(error, CROWDED));
        self.0.crowded.store(crowded, Ordering::Relaxed);
        match looked {
            // It has no room for one more connection, or says something else: those that there are may be used.
            Ok(Err(error)) if !may_be_gone(&error) => Ok(()),
            Ok(looked) => looked,
            Err(_) => Err(silent()),
        }
    }

    fn away(&self) -> StoreError {
        StoreError::Away {
            what: self.0.what.clone(),
        }
    }
}

fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// Whether an error is PostgreSQL's answer with this SQLSTATE.
pub(crate) fn is(error: &sqlx::Error, state: &str) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some(state))
}

/// Whether an error may mean that the database is gone, and not that it answered.
fn may_be_gone(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => true,
        // Class 08 is a broken connection, 57P an operator who stops the database (PostgreSQL, appendix A).
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("08") || code.starts_with("57P")),
        _ => false,
    }
}
