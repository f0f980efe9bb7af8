//! A server stops also when PostgreSQL is there and says nothing.

use std::time::Duration;

use e2e::Fleet;
use kernel::{Clock as _, SystemClock};
use testkit::{Postgres, Process};

/// The drain is over at once, closing is given up after 10 s; the rest is the machine's.
const STOPPED_MAX: Duration = Duration::from_secs(20);
/// How soon a signal ends a process that is stopping hard.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A server whose database has just been frozen.
fn frozen(postgres: &Postgres) -> (Fleet, Process) {
    let mut fleet = Fleet::start(postgres, 1, "").unwrap();
    let process = fleet.server(0).take_process().unwrap();
    postgres.freeze().unwrap();
    (fleet, process)
}

/// Shown to fail without the limit in `lifecycle::close`: the process was there a minute later.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_stopped_though_postgresql_is_frozen() {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    let (_fleet, mut process) = frozen(&postgres);
    let clock = SystemClock::new();
    let asked = clock.monotonic();
    process.signal("TERM").unwrap();
    let gone = testkit::wait_for(|| (!process.is_running()).then_some(()));
    let took = clock.monotonic().since(asked);
    assert!(
        gone.is_some() && took < STOPPED_MAX,
        "it takes more than {took:?}"
    );
    assert_eq!(process.wait().unwrap().code(), Some(0));
    let said = process.log().text();
    assert!(said.contains("did not close in time"), "{said}");
    postgres.thaw().unwrap();
}

/// Shown to fail without the wait for a signal after the hard step: the last one was taken and nothing came of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_after_the_hard_stop_ends_the_process_at_once() {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let (_fleet, mut process) = frozen(&postgres);
        for said in ["stopping: no new requests", "stopping hard"] {
            process.signal("TERM").unwrap();
            process
                .wait_for_log(|log| log.contains(said).then_some(()))
                .unwrap();
        }
        let clock = SystemClock::new();
        let asked = clock.monotonic();
        process.signal(signal).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(code));
        let took = clock.monotonic().since(asked);
        assert!(took < AT_ONCE, "{signal}: {took:?}");
        postgres.thaw().unwrap();
    }
}
