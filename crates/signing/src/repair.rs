//! Putting back what a registry lost.
//!
//! A signature that was published once is known here for ever, and so is answered from the store. If the registry has
//! lost it (restored from an older copy, cleaned up by somebody, moved to another one), it is published again from
//! the same row: the same statement and signature, with the same place in the log.

use access::audit::{self, Record};

use crate::draft::Draft;
use crate::ports::Descriptor;
use crate::request::Signed;
use crate::tables::SignatureRow;
use crate::verify::{Authority, Policy, survey};
use crate::{Formats, SigningError, debt};

impl Draft {
    /// Looks whether the registry holds the signature of `row`, and publishes what it does not.
    ///
    /// # Errors
    /// Those of the registry and the log.
    #[tracing::instrument(name = "repair signature", skip_all)]
    pub(crate) async fn repair(
        &self,
        subject: &Descriptor,
        row: &SignatureRow,
    ) -> Result<Signed, SigningError> {
        let _turn = self.turn(1).await?;
        let (parts, caller) = (&self.parts, self.caller());
        // Another's signature by the same key without the log is not what the registry lost. The legacy format
        // carries no proof of this log.
        let own = |formats| Authority {
            formats,
            ..Authority::keys("own key", vec![self.key.public.clone()])
        };
        let own = Policy {
            authorities: vec![
                Authority {
                    log_required: true,
                    trust: Some(parts.log.trust().clone()),
                    ..own(Formats::BUNDLE)
                },
                own(Formats::LEGACY),
            ],
            ..Policy::of(own(Formats::BOTH))
        }
        .with_annotations(self.request.annotations.clone());
        let now = parts.clock.now();
        let found = survey(
            &*parts.registry,
            caller,
            self.repository(),
            subject.digest,
            &own,
            now,
        )
        .await?;
        let missing = Formats {
            bundle: row.formats.bundle && !found.accepted_in("bundle"),
            legacy: row.formats.legacy && !found.accepted_in("legacy"),
        };
        let stands = self.signed(row, true);
        let lost = missing != Formats::NONE;
        if lost {
            let lost = SignatureRow {
                formats: missing,
                legacy: row.legacy.clone().filter(|_| missing.legacy),
                ..row.clone()
            };
            let entry = self.log(&lost).await?;
            self.publish(subject, &lost, &entry).await?;
        }
        let mut tx = parts.db.begin().await?;
        let (image, now_us) = ((self.repository(), subject.digest), parts.clock.now_us());
        let evidence = debt::publish_again(&mut tx, &row.id, image, lost, now_us).await?;
        if !lost && !evidence {
            return Ok(stands);
        }
        let resource = self.repository().at(subject.digest).to_string();
        let what = match lost {
            true => missing.to_string(),
            false => "evidence of the external log".to_owned(),
        };
        let record = Record {
            action: "signature.repair",
            resource: &resource,
            detail: &format!("{} {what}", row.id),
        };
        audit::record(&mut tx, &self.context, &*parts.clock, &*parts.random, record).await?;
        tx.commit().await?;
        parts.verdicts.signed(std::iter::once(subject.digest));
        Ok(Signed {
            repaired: true,
            ..stands
        })
    }
}
