//! What is measured of the queues: how much waits, for how long, and how much is under way.

use flow::{Class, Standing};
use prometheus::{GaugeVec, IntCounter, IntGaugeVec, Opts, Registry};
use signing::{DoorStanding, Tally};

/// See [`DoorStanding`]: `gate` is `lookup` or `work`, `class` one of [`Class::ALL`].
pub struct Queues {
    waiting: IntGaugeVec,
    age: GaugeVec,
    running: IntGaugeVec,
    limit: IntGaugeVec,
    new: IntCounter,
    known: IntCounter,
}

impl Queues {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let own = Self {
            waiting: IntGaugeVec::new(
                Opts::new("portcullis_queue_waiting", "Requests that wait for their turn"),
                &["gate", "class"],
            )?,
            age: GaugeVec::new(
                Opts::new(
                    "portcullis_queue_age_seconds",
                    "How long the request that came first has waited for its turn, in seconds",
                ),
                &["gate", "class"],
            )?,
            running: IntGaugeVec::new(
                Opts::new("portcullis_queue_running", "Requests that are worked on"),
                &["gate"],
            )?,
            limit: IntGaugeVec::new(
                Opts::new("portcullis_queue_limit", "Requests that may be worked on at once"),
                &["gate"],
            )?,
            new: IntCounter::new("portcullis_signatures_new_total", "Images that were signed")?,
            known: IntCounter::new(
                "portcullis_signatures_known_total",
                "Requests to sign an image that was signed already",
            )?,
        };
        registry.register(Box::new(own.waiting.clone()))?;
        registry.register(Box::new(own.age.clone()))?;
        registry.register(Box::new(own.running.clone()))?;
        registry.register(Box::new(own.limit.clone()))?;
        registry.register(Box::new(own.new.clone()))?;
        registry.register(Box::new(own.known.clone()))?;
        Ok(own)
    }

    /// Called by one scrape at a time.
    pub fn set(&self, standing: &DoorStanding, tally: Tally) {
        self.gate("lookup", &standing.lookups);
        self.gate("work", &standing.work);
        self.new.inc_by(tally.new.saturating_sub(self.new.get()));
        self.known.inc_by(tally.known.saturating_sub(self.known.get()));
    }

    fn gate(&self, gate: &str, standing: &Standing) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.running
            .with_label_values(&[gate])
            .set(number(standing.running));
        self.limit.with_label_values(&[gate]).set(number(standing.limit));
        for (at, class) in Class::ALL.iter().enumerate() {
            let labels = &[gate, class.as_str()];
            self.waiting
                .with_label_values(labels)
                .set(number(standing.waiting[at]));
            self.age
                .with_label_values(labels)
                .set(standing.oldest[at].as_secs_f64());
        }
    }
}
