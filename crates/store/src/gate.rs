//! Whether the database is the one that it has to be, and what of it is refused while it is not.
//!
//! A name that leads to another PostgreSQL brings new connections: those that there were lead to the old one or are cut.
//! So each new connection is asked whose database it leads to before it is used ([`Gate::admit`]), and the first one that
//! leads elsewhere closes the gate, before a row of it was read or written. Whoever waits for a connection meanwhile is
//! refused then too.

use std::sync::{Mutex, PoisonError};

use sqlx::{PgConnection, Row as _};
use tokio::sync::watch;

use crate::{StoreError, presence};

/// `undefined_table` (PostgreSQL, appendix A).
pub(crate) const NO_TABLE: &str = "42P01";

/// By what a database is known: the first column of the first row of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub sql: &'static str,
    pub value: String,
}

/// Why nothing may be used, if somebody found that this is not the database that it has to be.
#[derive(Default)]
pub(crate) struct Gate {
    wrong: watch::Sender<Option<String>>,
    own: Mutex<Option<Identity>>,
}

impl Gate {
    pub(crate) fn set(&self, found: Option<String>) {
        self.wrong.send_replace(found);
    }

    pub(crate) fn require(&self, own: Identity) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
    }

    pub(crate) fn pass(&self) -> Result<(), StoreError> {
        let wrong = self.wrong.borrow().clone();
        wrong.map_or(Ok(()), |found| Err(StoreError::Wrong { found }))
    }

    /// What `ask` answers, unless the gate is closed or is closed meanwhile.
    pub(crate) async fn guard<T>(
        &self,
        ask: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut wrong = self.wrong.subscribe();
        tokio::select! {
            biased;
            _ = wrong.wait_for(Option::is_some) => Err(self.pass().err().unwrap_or_else(closed)),
            answer = ask => answer,
        }
    }

    /// Asks a new connection whose database it leads to, once that is known; one that leads elsewhere closes the gate.
    pub(crate) async fn admit(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(own) = own else { return Ok(()) };
        // It is prepared for nobody else: the connection is new.
        let found = match sqlx::query(own.sql)
            .persistent(false)
            .fetch_optional(connection)
            .await
        {
            Err(error) if presence::is(&error, NO_TABLE) => None,
            found => found?,
        };
        let found: Option<String> = found.map(|row| row.try_get(0)).transpose()?;
        if found.as_ref() == Some(&own.value) {
            return Ok(());
        }
        let found = found.map_or_else(
            || "a database without an installation".to_owned(),
            |found| format!("installation {found}"),
        );
        tracing::error!(
            expected = own.value,
            found,
            "a connection leads to another database"
        );
        self.set(Some(found.clone()));
        Err(sqlx::Error::Configuration(found.into()))
    }
}

/// The gate was closed and opened again while somebody was asked; what the answer is from is not known.
fn closed() -> StoreError {
    StoreError::Wrong {
        found: "another one a moment ago".to_owned(),
    }
}
