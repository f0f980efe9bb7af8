//! What is measured of operations: work that was accepted and that nobody waits for.

use prometheus::{Gauge, Registry};
use signing::Open;

/// Of all servers together, as the database has them.
pub struct Operations {
    open: Gauge,
    age: Gauge,
}

impl Operations {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let own = Self {
            open: Gauge::new(
                "portcullis_operations_open",
                "Operations that were accepted and are not finished",
            )?,
            age: Gauge::new(
                "portcullis_operation_age_seconds",
                "How long ago the oldest operation that is not finished was accepted, in seconds",
            )?,
        };
        registry.register(Box::new(own.open.clone()))?;
        registry.register(Box::new(own.age.clone()))?;
        own.are(Some(&Open::default()));
        Ok(own)
    }

    /// How they are, or that nobody knows: no value is better than an old one.
    pub fn are(&self, open: Option<&Open>) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of operations are far below 2^52"
        )]
        let count = open.map_or(f64::NAN, |open| open.operations as f64);
        self.open.set(count);
        self.age
            .set(open.map_or(f64::NAN, |open| open.oldest.as_secs_f64()));
    }
}
