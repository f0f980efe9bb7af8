//! Load and the times it took.

use std::future::Future;
use std::time::Instant;

use anyhow::Result;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

/// Answers' times, sorted, in milliseconds, and the seconds that all took.
pub struct Times {
    sorted: Vec<f64>,
    pub seconds: f64,
}

impl Times {
    /// Of calls that were made by somebody else.
    pub fn of(mut sorted: Vec<f64>) -> Self {
        sorted.sort_unstable_by(f64::total_cmp);
        Self { sorted, seconds: 0.0 }
    }

    /// The time under which a share of the answers stayed.
    pub fn quantile(&self, share: f64) -> f64 {
        let at = ((self.sorted.len() as f64 * share) as usize).min(self.sorted.len().saturating_sub(1));
        self.sorted.get(at).copied().unwrap_or_default()
    }

    pub fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.seconds
    }
}

/// Does `call` for 0, 1, … `count`, with so many at once.
pub async fn run<F>(count: usize, at_once: usize, call: impl Fn(usize) -> F) -> Result<Times>
where
    F: Future<Output = Result<()>>,
{
    let began = now();
    let timed = |number| {
        let work = call(number);
        async move {
            let began = now();
            work.await?;
            Ok::<f64, anyhow::Error>(began.elapsed().as_secs_f64() * 1_000.0)
        }
    };
    let mut sorted: Vec<f64> = stream::iter(0..count)
        .map(timed)
        .buffer_unordered(at_once)
        .try_collect()
        .await?;
    sorted.sort_unstable_by(f64::total_cmp);
    Ok(Times {
        sorted,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// The machine's own clock: here it is what is measured with.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub fn now() -> Instant {
    Instant::now()
}
