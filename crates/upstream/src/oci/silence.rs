//! Whether a registry answers anybody.
//!
//! One that accepts calls and says nothing would keep each caller until the deadline, and those who wait for their turn
//! much longer: of a thousand, sixty-four at a time, the last one for minutes. So once a call has waited long and nobody
//! was answered meanwhile, every caller is told at once, and one call every few seconds finds out whether it answers
//! again. Any answer counts, also a refusal: what it says is judged elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kernel::Monotonic;
use signing::ports::RegistryReason;
use tokio::sync::watch;

/// How long a call waits without anybody being answered until the registry is called silent: a registry's slowest answers,
/// of large uploads, take a few seconds.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);
/// The pause between two calls that find out, in milliseconds.
const TRIAL_MS: u64 = 2_000;

/// What is known of it.
#[derive(Debug)]
pub struct Silence {
    state: Mutex<State>,
    /// Whether it is silent: those who wait for a turn are told.
    silent: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    heard: Option<Monotonic>,
    /// Since when it has been silent, and when the next call may find out.
    silent: Option<(Monotonic, Monotonic)>,
}

impl Silence {
    pub fn new() -> Self {
        Self {
            state: Mutex::default(),
            silent: watch::Sender::new(false),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        let silent = state.silent.is_some();
        self.silent
            .send_if_modified(|told| std::mem::replace(told, silent) != silent);
        result
    }

    /// An answer came.
    pub fn heard(&self, now: Monotonic) {
        self.change(|state| (state.heard, state.silent) = (Some(now), None));
    }

    /// Whether it ever answered.
    pub fn was_heard(&self) -> bool {
        self.change(|state| state.heard.is_some())
    }

    /// A call that began at `began` was given up, or waits still, because nothing came; calls may take `call_max`.
    pub fn missed(&self, began: Monotonic, now: Monotonic, call_max: Duration) {
        let long = SILENT_AFTER.min(call_max);
        self.change(|state| {
            let somebody_was_answered = state.heard.is_some_and(|heard| heard >= began);
            if state.silent.is_none() && !somebody_was_answered && now.since(began) >= long {
                // The next call finds out at once: nothing may be wrong but with what this one asked for.
                state.silent = Some((began, now));
            }
        });
    }

    /// Whether it may be called: always while it answers, once in a while when it does not. The answer is whether this is
    /// such a trial.
    ///
    /// # Errors
    /// `Unavailable`, at once.
    pub fn ask(&self, now: Monotonic) -> Result<bool, RegistryReason> {
        self.change(|state| match &mut state.silent {
            None => Ok(false),
            Some((_, next)) if now >= *next => {
                *next = now.after(Duration::from_millis(TRIAL_MS));
                Ok(true)
            }
            Some((since, _)) => Err(silent(now.since(*since))),
        })
    }

    /// Ends when it has become silent.
    pub async fn falls_silent(&self, now: impl Fn() -> Monotonic) -> RegistryReason {
        // An error is that this is gone, which it is not.
        let _ = self.silent.subscribe().wait_for(|silent| *silent).await;
        let since = self.change(|state| state.silent.map(|(since, _)| since));
        silent(since.map_or(Duration::ZERO, |since| now().since(since)))
    }
}

fn silent(time: Duration) -> RegistryReason {
    RegistryReason::Unavailable(format!(
        "it has answered nobody for {} s; one call every {} s finds out whether it does again",
        time.as_secs(),
        TRIAL_MS / 1_000
    ))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kernel::{Clock as _, TestClock};

    use super::*;

    const CALL: Duration = Duration::from_secs(30);

    #[test]
    fn it_is_silent_when_a_long_call_ended_and_nobody_was_answered_meanwhile() {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let silence = Silence::new();
        let began = clock.monotonic();
        clock.advance(Duration::from_secs(9));
        // A connection that was refused says nothing about those that were not.
        silence.missed(began, clock.monotonic(), CALL);
        assert_eq!(silence.ask(clock.monotonic()).ok(), Some(false));
        silence.heard(clock.monotonic());
        clock.advance(Duration::from_secs(21));
        silence.missed(began, clock.monotonic(), CALL);
        assert_eq!(
            silence.ask(clock.monotonic()).ok(),
            Some(false),
            "another was answered"
        );
        let began = clock.monotonic();
        clock.advance(Duration::from_secs(10));
        silence.missed(began, clock.monotonic(), CALL);
        assert_eq!(
            silence.ask(clock.monotonic()).ok(),
            Some(true),
            "the next one finds out"
        );
        let told = silence.ask(clock.monotonic()).unwrap_err();
        assert!(matches!(told, RegistryReason::Unavailable(why) if why.contains("for 10 s")));
        // One call every two seconds finds out.
        clock.advance(Duration::from_secs(2));
        assert_eq!(silence.ask(clock.monotonic()).ok(), Some(true));
        silence.ask(clock.monotonic()).unwrap_err();
        silence.heard(clock.monotonic());
        assert_eq!(silence.ask(clock.monotonic()).ok(), Some(false));
        assert!(silence.was_heard());
    }
}
