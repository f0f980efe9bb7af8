//! What tests break, and what they count.
//!
//! A registry misbehaves in few ways; each is one field of [`Plan`]. With the default plan, which is all
//! that anything but a test ever sees, nothing here has an effect.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the registry does wrong. Numbers count down: `throttle_calls: 3` is three wrong answers.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Never answer.
    pub hang: bool,
    /// Wait so long before every answer.
    pub latency: Duration,
    /// Answer this many calls with 429.
    pub throttle_calls: u32,
    /// `Retry-After` of those answers, in seconds; none when absent.
    pub retry_after_seconds: Option<u32>,
    /// `Retry-After` of those answers as a date (RFC 9110, section 5.6.7).
    pub retry_after_date: Option<String>,
    /// Send half of each manifest, and then nothing more.
    pub stall_manifests: bool,
    /// Answer this many writes (POST, PATCH, PUT) with 500 and do nothing.
    pub fail_writes: u32,
    /// Answer this many reads with 500.
    pub fail_reads: u32,
    /// Do this many manifest or blob `PUT`s, then drop the connection without an answer.
    pub cut_after_puts: u32,
    /// Every second read of a manifest gets other bytes.
    pub flip_flop: bool,
    /// `Docker-Content-Digest` names other content.
    pub wrong_digest_header: bool,
    /// Manifests have a body without end.
    pub endless_manifest: bool,
    /// The referrers API answers with this status.
    pub listing_status: Option<u16>,
    /// The referrers API answers with this content type.
    pub listing_content_type: Option<String>,
    /// Every page of the referrers API is empty and links to one more.
    pub endless_listing: bool,
    /// `GET` of a blob redirects to this origin, followed by the same path.
    pub redirect_blobs: Option<String>,
    /// The referrers API redirects (303) to this origin, followed by the same path.
    pub redirect_listings: Option<String>,
    /// What a `POST` with a blob in it is answered with: 202 opens an upload, as the specification allows; any
    /// other status is a refusal.
    pub blob_post_status: Option<u16>,
    /// Uploads are to be sent to this origin, followed by the upload's path.
    pub upload_origin: Option<String>,
    /// The token realm that a challenge names.
    pub realm: Option<String>,
}

/// Calls by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    pub pings: u64,
    pub tokens: u64,
    pub manifest_reads: u64,
    pub manifest_writes: u64,
    pub blob_reads: u64,
    /// `POST`, `PATCH` and `PUT` of uploads.
    pub blob_writes: u64,
    pub referrer_lists: u64,
    pub tag_lists: u64,
    /// Calls of any kind that carried an `Authorization` header.
    pub authorized: u64,
    /// Most calls that were under way at the same time.
    pub concurrent_max: u64,
}

impl Calls {
    /// Calls of every kind.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.pings
            + self.tokens
            + self.manifest_reads
            + self.manifest_writes
            + self.blob_reads
            + self.blob_writes
            + self.referrer_lists
            + self.tag_lists
    }
}

#[derive(Default)]
pub struct Faults {
    plan: Mutex<Plan>,
    calls: Mutex<(Calls, u64)>,
}

/// Which countdown of the plan.
#[derive(Clone, Copy)]
pub enum Countdown {
    Throttle,
    Write,
    Read,
    Cut,
}

/// One call under way; dropped when it was answered.
pub struct UnderWay<'a>(&'a Faults);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.calls).1 -= 1;
    }
}

impl Faults {
    pub fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut lock(&self.plan));
    }

    pub fn plan(&self) -> Plan {
        lock(&self.plan).clone()
    }

    /// Whether this call is one of those counted down.
    pub fn take(&self, which: Countdown) -> bool {
        let mut plan = lock(&self.plan);
        let left = match which {
            Countdown::Throttle => &mut plan.throttle_calls,
            Countdown::Write => &mut plan.fail_writes,
            Countdown::Read => &mut plan.fail_reads,
            Countdown::Cut => &mut plan.cut_after_puts,
        };
        let taken = *left > 0;
        *left = left.saturating_sub(1);
        taken
    }

    pub fn count(&self, add: impl FnOnce(&mut Calls)) -> UnderWay<'_> {
        let mut calls = lock(&self.calls);
        add(&mut calls.0);
        calls.1 += 1;
        calls.0.concurrent_max = calls.0.concurrent_max.max(calls.1);
        UnderWay(self)
    }

    pub fn calls(&self) -> Calls {
        lock(&self.calls).0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
