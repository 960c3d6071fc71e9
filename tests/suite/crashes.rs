//! The relay is told to stop, and cannot. Rows 1 to 9 of the fault matrix kill, stall and stop it at work.

use nix::sys::signal::Signal;

use crate::world::{FAR, FARTHER, SOON, world};

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let world = world().await;
    let _consumer = world.consumer().await;
    let mut relay = world.relay(&[
        ("OUTBOXD_FAILPOINT", "confirm.before_settle=hang"),
        ("OUTBOXD__RELAY__SHUTDOWN_GRACE", FAR),
    ]);
    world.commit_many(10, 1).await;
    relay.line("failpoint reached", SOON).await;
    relay.terminate().unwrap();
    relay.line("stopping", SOON).await;
    relay.terminate().unwrap();
    assert_eq!(relay.ended(SOON).await.unwrap().code(), Some(1));
}

#[tokio::test]
async fn the_grace_period_bounds_a_stop_and_sighup_does_not_cut_it_short() {
    let world = world().await;
    let _consumer = world.consumer().await;
    let mut relay = world.relay(&[
        ("OUTBOXD_FAILPOINT", "confirm.before_settle=hang"),
        ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "1s"),
        ("OUTBOXD__RELAY__SHUTDOWN_GRACE", "2s"),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FARTHER),
    ]);
    world.commit_many(10, 1).await;
    relay.line("failpoint reached", SOON).await;
    relay.signal(Signal::SIGQUIT).unwrap();
    relay.line("stopping", SOON).await;
    // From an operator or a supervisor, this is not a second stop.
    relay.signal(Signal::SIGHUP).unwrap();
    // The hanging worker would hang until the database ends its claim.
    relay.line("the grace period is over", SOON).await;
    relay.ended(SOON).await.unwrap();
    let locks = "pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() \
                 AND l.locktype = 'relation' AND l.pid <> pg_backend_pid()";
    world.until("its locks to be gone", locks, 0).await;
}
