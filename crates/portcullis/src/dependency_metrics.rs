//! Dependencies as metrics, made anew for each scrape from what was found last.
//!
//! Each dependency has a series for each state that it can be in, 0 or 1, so that a state that begins is an increase.
//! Names are those of probes, of which there is a bounded number; registries are those in use.

use kernel::Clock;
use probing::Status;
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// The text of all of them.
pub fn render(all: &[Status], clock: &dyn Clock) -> String {
    make(all, clock).unwrap_or_default()
}

fn make(all: &[Status], clock: &dyn Clock) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str, labels: &[&str]| {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok::<_, prometheus::Error>(gauge)
    };
    let states = IntGaugeVec::new(
        Opts::new(
            "portcullis_dependency_state",
            "1 for the state that a dependency is in, 0 for the others",
        ),
        &["dependency", "kind", "state"],
    )?;
    registry.register(Box::new(states.clone()))?;
    let own = &["dependency", "kind"];
    let latency = gauge(
        "portcullis_dependency_latency_seconds",
        "How long the last look at a dependency took",
        own,
    )?;
    let good = gauge(
        "portcullis_dependency_last_good_age_seconds",
        "Seconds since a dependency was last found as it has to be",
        own,
    )?;
    let days = gauge(
        "portcullis_dependency_certificate_days_left",
        "Days until the certificate or key of a dependency ends",
        own,
    )?;
    let now = clock.now();
    for status in all {
        let (name, kind) = (status.name.as_str(), status.kind.as_str());
        for state in status.kind.states() {
            let is = i64::from(*state == status.state);
            states.with_label_values(&[name, kind, state.as_str()]).set(is);
        }
        if let Some(took) = status.latency {
            latency.with_label_values(&[name, kind]).set(took.as_secs_f64());
        }
        if let Some(last) = status.last_good {
            let age = now.duration_since(last).as_secs_f64().max(0.0);
            good.with_label_values(&[name, kind]).set(age);
        }
        if let Some(left) = status.certificate_days_left {
            days.with_label_values(&[name, kind]).set(left as f64);
        }
    }
    TextEncoder::new().encode_to_string(&registry.gather())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kernel::TestClock;
    use probing::{Board, Finding, Kind, Probe, State, Watch};

    use super::*;

    struct Wrong;

    #[async_trait::async_trait]
    impl Probe for Wrong {
        fn name(&self) -> &str {
            "external-log"
        }

        fn kind(&self) -> Kind {
            Kind::ExternalLog
        }

        fn expected(&self) -> String {
            String::new()
        }

        async fn look(&self) -> Finding {
            Finding::new(State::WrongLog, "", "")
        }
    }

    #[tokio::test]
    async fn the_state_that_is_has_one_and_every_other_has_zero() {
        let clock = Arc::new(TestClock::at(jiff::Timestamp::UNIX_EPOCH));
        let board = Board::new(clock.clone());
        let watch = Watch::new(
            board.clone(),
            clock.clone(),
            Arc::new(kernel::SeededRandom::new(1)),
        );
        watch.add(Arc::new(Wrong));
        let before = render(&board.all(), &*clock);
        let line = |state: &str, value: u8| {
            format!(
                "portcullis_dependency_state{{dependency=\"external-log\",kind=\"external-log\",state=\"{state}\"}} {value}\n"
            )
        };
        assert!(before.contains(&line("WRONG_LOG", 0)), "{before}");
        while board.all()[0].checked_at.is_none() {
            tokio::task::yield_now().await;
        }
        let after = render(&board.all(), &*clock);
        assert!(after.contains(&line("WRONG_LOG", 1)), "{after}");
        assert!(after.contains(&line("OK", 0)), "{after}");
        assert!(after.contains(&line("UNKNOWN", 0)), "{after}");
        watch.close().await;
    }
}
