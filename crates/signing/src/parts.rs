//! What signing is done with.

use std::sync::Arc;

use access::Access;
use flow::Rate;
use kernel::{Clock, Random};
use store::Db;
use tokio::runtime::Handle;

use crate::debt::standing::Debts;
use crate::door::Door;
use crate::flight::Flights;
use crate::operations::Operations;
use crate::ports::{Log, Registry};
use crate::request::{Ask, Signed};
use crate::tables::Wish;
use crate::tally::Counts;
use crate::verdicts::Verdicts;
use crate::{Formats, Keyring, SigningError};

/// What signing is made of.
pub struct Settings {
    pub db: Db,
    pub access: Access,
    pub keyring: Keyring,
    pub registry: Arc<dyn Registry>,
    pub log: Arc<dyn Log>,
    /// Whether each signature is owed to a log of somebody else's too; [`crate::debt::run`] pays.
    pub external_log: bool,
    pub formats: FormatsOf,
    /// New signatures that a project may make where it has no rate of its own.
    pub quota: Rate,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

/// What to write to a registry, by its host.
pub type FormatsOf = Box<dyn Fn(&str) -> Formats + Send + Sync>;

/// The same and what comes with it, shared by everything that is under way.
pub(crate) struct Parts {
    pub db: Db,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub access: Access,
    pub keyring: Keyring,
    pub registry: Arc<dyn Registry>,
    pub log: Arc<dyn Log>,
    pub external_log: bool,
    pub formats: FormatsOf,
    pub quota: Rate,
    /// Where work goes on, wherever it was asked for: the threads of connections have enough to do with who comes.
    pub runtime: Handle,
    pub door: Door,
    /// Requests that wait to be resolved.
    pub asked: Flights<Ask, Result<Vec<Signed>, Arc<SigningError>>>,
    /// Images that are being signed.
    pub flights: Flights<Wish, Result<Signed, Arc<SigningError>>>,
    pub verdicts: Verdicts,
    pub operations: Operations,
    pub counts: Counts,
    pub debts: Debts,
}
