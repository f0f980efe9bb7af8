//! Where a connection stands: the rules by which it may stay, without sockets and without a clock.

use std::time::Duration;

use kernel::Monotonic;

/// How long a connection that is kept for probes may take for its request's header, in milliseconds: they give up after
/// a second or a few.
const VITAL_HEADER_MS_MAX: u64 = 2_000;

/// How long a connection may stay in each of its states.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the first byte of a request, or from the connection's beginning, to the end of the request's header.
    pub header: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Without taking a byte of an answer that waits for it.
    pub reader: Duration,
    /// Between two pieces of a request's body.
    pub body: Duration,
    /// For a whole request body.
    pub whole_body: Duration,
    /// For a whole request body, before the connection gives way to another if there are too many.
    pub body_in_a_crowd: Duration,
}

impl Patience {
    /// With a connection that is kept for probes of the server's life: they have it to ask one thing, at once, and send
    /// no body.
    pub(super) fn of_vital(self) -> Self {
        Self {
            header: self.header.min(Duration::from_millis(VITAL_HEADER_MS_MAX)),
            body_in_a_crowd: Duration::ZERO,
            ..self
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // A header fits in one packet or two.
            header: Duration::from_secs(10),
            // Longer than the 60 s for which proxies keep a connection, so that it is they who close it.
            idle: Duration::from_secs(75),
            // Somebody who pages through the lines of a batch by hand may pause.
            reader: Duration::from_secs(120),
            body: Duration::from_secs(30),
            // REQUEST_BYTES_MAX over a line of 70 kbit/s.
            whole_body: Duration::from_secs(120),
            // Nearly every body comes with its header.
            body_in_a_crowd: Duration::from_secs(2),
        }
    }
}

/// What a connection has waited too long for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// For the rest of a request.
    Header,
    /// For another request.
    Idle,
    /// For its peer to read.
    Reader,
}

/// What happens on one connection.
#[derive(Debug)]
pub(super) struct Standing {
    /// Requests whose answers are not finished; HTTP/2 has many.
    in_flight: u32,
    /// Those of them whose bodies have been waited for, and since when the first.
    bodies: u32,
    bodies_since: Option<Monotonic>,
    /// While nothing is in flight: since when the connection owes us a request, or is idle.
    since: Monotonic,
    /// Whether a request was begun. A connection that was just opened owes one too.
    begun: bool,
    /// Whether it speaks HTTP/2. There bytes between requests say nothing: windows, pings and settings come as they like.
    multiplexed: bool,
    /// Since when the peer takes nothing of what waits for it.
    stuck: Option<Monotonic>,
}

impl Standing {
    pub(super) fn new(now: Monotonic) -> Self {
        Self {
            in_flight: 0,
            bodies: 0,
            bodies_since: None,
            since: now,
            begun: true,
            multiplexed: false,
            stuck: None,
        }
    }

    /// Bytes came.
    pub(super) fn received(&mut self, now: Monotonic) {
        if self.in_flight == 0 && !self.begun && !self.multiplexed {
            (self.begun, self.since) = (true, now);
        }
    }

    /// A request's header is whole; what it came in tells whether the connection is `multiplexed` (HTTP/2). There a
    /// header that comes slowly counts as idleness, except for the first.
    pub(super) fn asked(&mut self, multiplexed: bool) {
        self.multiplexed = multiplexed;
        self.in_flight += 1;
        self.begun = false;
    }

    /// An answer is finished, or was given up.
    pub(super) fn answered(&mut self, now: Monotonic) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.since = now;
    }

    /// A request's body is waited for, for the first time.
    pub(super) fn awaits_body(&mut self, now: Monotonic) {
        self.bodies += 1;
        self.bodies_since.get_or_insert(now);
    }

    /// A body that was waited for is whole, or given up.
    pub(super) fn has_body(&mut self) {
        self.bodies = self.bodies.saturating_sub(1);
        if self.bodies == 0 {
            self.bodies_since = None;
        }
    }

    /// Something was to be written, and some of it was taken or nothing.
    pub(super) fn wrote(&mut self, now: Monotonic, taken: bool) {
        if taken {
            self.stuck = None;
        } else {
            self.stuck.get_or_insert(now);
        }
    }

    /// Whether nothing is under way that a shutdown waits for.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.stuck.is_none()
    }

    pub(super) fn overdue(&self, now: Monotonic, patience: &Patience) -> Option<Overdue> {
        let (since, at_most, what) = match (self.stuck, self.in_flight, self.begun) {
            (Some(stuck), ..) => (stuck, patience.reader, Overdue::Reader),
            (None, 0, true) => (self.since, patience.header, Overdue::Header),
            (None, 0, false) => (self.since, patience.idle, Overdue::Idle),
            // How long our own work takes is not the connection's fault.
            (None, ..) => return None,
        };
        (now.since(since) >= at_most).then_some(what)
    }

    /// Since when this connection would give way to another if there are too many; `None` if it would not.
    pub(super) fn gives_way_since(&self, now: Monotonic, patience: &Patience) -> Option<Monotonic> {
        match (self.stuck, self.bodies_since) {
            (Some(stuck), _) => (now.since(stuck) >= patience.header).then_some(stuck),
            // Nothing is worked on: all that is in flight waits for its sender.
            (None, Some(since)) if self.bodies == self.in_flight => {
                (now.since(since) >= patience.body_in_a_crowd).then_some(since)
            }
            (None, _) => self.is_idle().then_some(self.since),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kernel::{Clock as _, TestClock};

    use super::*;

    fn after(clock: &TestClock, seconds: u64) -> Monotonic {
        clock.advance(Duration::from_secs(seconds));
        clock.monotonic()
    }

    #[test]
    fn a_half_header_is_given_ten_seconds_and_its_further_bytes_buy_no_more() {
        let (clock, patience) = (TestClock::at(Timestamp::UNIX_EPOCH), Patience::default());
        let mut standing = Standing::new(clock.monotonic());
        standing.received(after(&clock, 9));
        assert_eq!(standing.overdue(clock.monotonic(), &patience), None);
        assert_eq!(
            standing.overdue(after(&clock, 1), &patience),
            Some(Overdue::Header)
        );

        standing.asked(false);
        standing.answered(clock.monotonic());
        // Between requests it is idle; the next one's first byte begins its ten seconds.
        assert_eq!(standing.overdue(after(&clock, 70), &patience), None);
        standing.received(clock.monotonic());
        standing.received(after(&clock, 9));
        assert_eq!(standing.overdue(clock.monotonic(), &patience), None);
        assert_eq!(
            standing.overdue(after(&clock, 1), &patience),
            Some(Overdue::Header)
        );
    }

    #[test]
    fn frames_of_http_2_between_requests_are_neither_half_a_request_nor_a_life_line() {
        let (clock, patience) = (TestClock::at(Timestamp::UNIX_EPOCH), Patience::default());
        let mut standing = Standing::new(clock.monotonic());
        standing.received(clock.monotonic());
        // Whoever says only that it speaks HTTP/2 owes a request as all do.
        assert_eq!(
            standing.overdue(clock.monotonic(), &patience),
            None,
            "it was just opened"
        );
        standing.asked(true);
        standing.answered(clock.monotonic());
        for _ in 0..18 {
            standing.received(after(&clock, 4));
            assert_eq!(standing.overdue(clock.monotonic(), &patience), None);
        }
        standing.received(after(&clock, 3));
        assert_eq!(
            standing.overdue(clock.monotonic(), &patience),
            Some(Overdue::Idle)
        );
    }

    #[test]
    fn work_is_never_overdue_but_a_peer_that_does_not_read_is() {
        let (clock, patience) = (TestClock::at(Timestamp::UNIX_EPOCH), Patience::default());
        let mut standing = Standing::new(clock.monotonic());
        standing.asked(false);
        assert_eq!(standing.overdue(after(&clock, 3_600), &patience), None);
        assert_eq!(standing.gives_way_since(clock.monotonic(), &patience), None);
        let stuck = clock.monotonic();
        standing.wrote(stuck, false);
        assert_eq!(standing.gives_way_since(after(&clock, 9), &patience), None);
        standing.wrote(clock.monotonic(), false);
        assert_eq!(standing.gives_way_since(after(&clock, 1), &patience), Some(stuck));
        assert_eq!(
            standing.overdue(after(&clock, 110), &patience),
            Some(Overdue::Reader)
        );
        // It reads again.
        standing.wrote(clock.monotonic(), true);
        assert_eq!(standing.overdue(clock.monotonic(), &patience), None);
    }

    #[test]
    fn a_body_that_is_waited_for_gives_way_and_work_beside_it_does_not() {
        let (clock, patience) = (TestClock::at(Timestamp::UNIX_EPOCH), Patience::default());
        let mut standing = Standing::new(clock.monotonic());
        standing.asked(false);
        let since = clock.monotonic();
        standing.awaits_body(since);
        assert_eq!(standing.gives_way_since(after(&clock, 1), &patience), None);
        assert_eq!(standing.gives_way_since(after(&clock, 1), &patience), Some(since));
        standing.asked(false);
        assert_eq!(standing.gives_way_since(clock.monotonic(), &patience), None);
        standing.answered(clock.monotonic());
        standing.has_body();
        assert_eq!(standing.gives_way_since(after(&clock, 9), &patience), None);
    }

    #[test]
    fn an_idle_connection_gives_way_and_ends_after_a_while() {
        let (clock, patience) = (TestClock::at(Timestamp::UNIX_EPOCH), Patience::default());
        let mut standing = Standing::new(clock.monotonic());
        standing.asked(false);
        standing.asked(false);
        standing.answered(clock.monotonic());
        assert!(!standing.is_idle(), "one answer of two is not finished");
        let idle = after(&clock, 5);
        standing.answered(idle);
        assert!(standing.is_idle());
        assert_eq!(standing.gives_way_since(after(&clock, 1), &patience), Some(idle));
        assert_eq!(
            standing.overdue(after(&clock, 74), &patience),
            Some(Overdue::Idle)
        );
    }
}
