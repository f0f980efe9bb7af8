//! What a person can say to have looked at.

use std::sync::Arc;

use access::{AccessError, Action, Context};
use kernel::{Clock, Random};

use crate::log_mark::LogMark;
use crate::loss::Losses;

/// Ends what is named until somebody has looked. Cheap to clone.
#[derive(Clone)]
pub struct Acknowledgements {
    pub losses: Losses,
    /// Of the external log, where there is one.
    pub external_log: Option<LogMark>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

impl Acknowledgements {
    /// That the external log which this server found last is the one, although it does not follow what was seen there
    /// before. The answer is both, in words.
    ///
    /// # Errors
    /// [`AccessError::Invalid`] if there is no external log; and those of [`LogMark::take`].
    pub(crate) async fn external_log(&self, context: &Context, reason: &str) -> Result<String, AccessError> {
        context.require(Action::ManageDependencies)?;
        let Some(mark) = &self.external_log else {
            return Err(AccessError::Invalid {
                what: "dependency",
                text: "external-log".to_owned(),
                why: "none is configured ([external_log])",
            });
        };
        let (seen, taken) = mark.take(context, reason, &*self.clock, &*self.random).await?;
        Ok(format!(
            "{seen} was seen; the log is {} from now on",
            taken.described()
        ))
    }
}
