//! What a person can say to have looked at.

use std::sync::Arc;

use access::{AccessError, Action, Context};
use kernel::{Clock, Random};

use crate::board::Board;
use crate::log_mark::LogMark;
use crate::loss::Losses;
use crate::state::{Kind, State};

/// Ends what is named until somebody has looked. Cheap to clone.
#[derive(Clone)]
pub struct Acknowledgements {
    pub losses: Losses,
    /// Of the external log, where there is one.
    pub external_log: Option<LogMark>,
    pub board: Board,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

impl Acknowledgements {
    /// That the external log which answers now is the one, although it does not follow what was seen there before. The
    /// answer is what was forgotten and what was found, in words.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if there is no external log, or it contradicts nothing; and those of [`LogMark::forget`].
    pub(crate) async fn external_log(&self, context: &Context, reason: &str) -> Result<String, AccessError> {
        context.require(Action::ManageDependencies)?;
        let all = self.board.all();
        let status = all.into_iter().find(|status| status.kind == Kind::ExternalLog);
        let contradicts = |state| matches!(state, State::RolledBack | State::Forked | State::WrongLog);
        let (Some(mark), Some(status)) = (
            &self.external_log,
            status.filter(|status| contradicts(status.state)),
        ) else {
            return Err(AccessError::NotFound {
                what: access::LOSS,
                name: "external-log".to_owned(),
            });
        };
        let (clock, random) = (&*self.clock, &*self.random);
        let seen = mark.forget(context, &status.found, reason, clock, random).await?;
        Ok(format!(
            "{} was seen and is forgotten; what is found is {}",
            seen.described(),
            status.found
        ))
    }
}
