//! What is measured of the debt to the external log.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use signing::debt::{Standing, Tally};
use signing::ports::ExternalLogError;

/// Gauges are of all servers together, as the database has them; counters are of this one.
pub struct Debt {
    entries: IntGaugeVec,
    age: Gauge,
    unpublished_age: Gauge,
    paid: IntCounter,
    failures: IntCounterVec,
}

impl Debt {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let own = Self {
            entries: IntGaugeVec::new(
                Opts::new(
                    "portcullis_external_log_entries",
                    "Entries owed to the external log, in it but not published, or refused by it",
                ),
                &["stage"],
            )?,
            age: Gauge::new(
                "portcullis_external_log_debt_age_seconds",
                "How long the oldest entry has been owed to the external log, in seconds",
            )?,
            unpublished_age: Gauge::new(
                "portcullis_external_log_unpublished_age_seconds",
                "How long the oldest entry has been in the external log without its evidence at the images, in seconds",
            )?,
            paid: IntCounter::new(
                "portcullis_external_log_paid_total",
                "Entries that this server had the external log include",
            )?,
            failures: IntCounterVec::new(
                Opts::new(
                    "portcullis_external_log_failures_total",
                    "Entries that this server could not have the external log include, by reason",
                ),
                &["reason"],
            )?,
        };
        registry.register(Box::new(own.entries.clone()))?;
        registry.register(Box::new(own.age.clone()))?;
        registry.register(Box::new(own.unpublished_age.clone()))?;
        registry.register(Box::new(own.paid.clone()))?;
        registry.register(Box::new(own.failures.clone()))?;
        own.stands(&Standing::default());
        own.came_to(Tally::default());
        Ok(own)
    }

    pub fn stands(&self, standing: &Standing) {
        let counts = [
            ("owed", standing.owed),
            ("unpublished", standing.unpublished),
            ("refused", standing.refused),
        ];
        for (stage, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.entries.with_label_values(&[stage]).set(count);
        }
        self.age.set(standing.oldest.as_secs_f64());
        self.unpublished_age
            .set(standing.oldest_unpublished.as_secs_f64());
    }

    /// Nobody knows: no value is better than an old one.
    pub fn is_unknown(&self) {
        self.entries.reset();
        self.age.set(f64::NAN);
        self.unpublished_age.set(f64::NAN);
    }

    /// Called by one scrape at a time.
    pub fn came_to(&self, tally: Tally) {
        self.paid.inc_by(tally.paid.saturating_sub(self.paid.get()));
        for (reason, count) in ExternalLogError::REASONS.iter().zip(tally.failures) {
            let failures = self.failures.with_label_values(&[*reason]);
            failures.inc_by(count.saturating_sub(failures.get()));
        }
    }
}
