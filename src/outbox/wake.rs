//! Falling asleep so that a producer's commit wakes us, at no cost to producers while anybody is awake.
//!
//! **Why.** `NOTIFY` takes a lock on the whole cluster at commit; sixteen busy writers with an unconditional trigger
//! fall to a quarter of their speed. So the trigger `outbox.wake` notifies only when somebody sleeps.
//!
//! **Authority.** One advisory lock. A relay that sleeps holds it exclusively. The trigger tries it shared, for
//! its transaction: refused means that somebody sleeps, so notify at commit; granted means that nobody does, and
//! keeps anybody from falling asleep until that transaction has ended.
//!
//! **The race it closes.** Between "nothing to do" and sleep, a row can be committed. It was inserted either while
//! nobody slept, in a transaction that held the lock shared, so that we could not have taken it before its end; or
//! after we took it, so that it notifies. Hence: take the lock, *then* look once more, then sleep.
//!
//! **Floods.** Whoever may connect may notify on this channel, and a listening connection hears all of it. So the lock is
//! held and the channel heard on a connection of their own (`relay::listener`), and nothing that must go on waits for it.
//!
//! **Failures.** A lost connection frees the lock with it, and a lost notification costs at most `poll_interval`:
//! polling is the truth, this only makes it early. Behind PgBouncer in transaction mode there is no session to
//! hold the lock or to listen: set `database.listen = false`.
//! <https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS>

use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
};

/// The ASCII bytes of `outbox`; the same number stands in the migration's trigger.
pub const SLEEPER: i64 = 0x6f75_7462_6f78;

const TRY_SLEEP: Query = Query {
    action: "fall asleep",
    sql: "SELECT pg_try_advisory_lock($1) AS asleep",
    types: &[Type::INT8],
};
const GET_UP: Query = Query {
    action: "wake up",
    sql: "SELECT pg_advisory_unlock($1) AS up",
    types: &[Type::INT8],
};

/// A listener that never reads keeps every notification of the cluster. When the queue is full, a commit that notifies
/// fails, so nobody is to notify long before.
const FILLING: Query = Query {
    action: "look at the notification queue",
    sql: "SELECT pg_notification_queue_usage() > 0.25 AS filling",
    types: &[],
};

pub async fn is_queue_filling(session: &Session) -> Result<bool, OutboxError> {
    match session.query(&FILLING, &[]).await?.first() {
        Some(row) => get(row, "filling"),
        None => Ok(false),
    }
}

pub async fn listen(session: &Session) -> Result<(), OutboxError> {
    session.batch("listen", "LISTEN outbox_wake").await
}

/// `false`: another relay sleeps, or a producer that will not notify is still in its transaction.
pub async fn try_sleep(session: &Session) -> Result<bool, OutboxError> {
    match session.query(&TRY_SLEEP, &[&SLEEPER]).await?.first() {
        Some(row) => get(row, "asleep"),
        None => Ok(false),
    }
}

pub async fn get_up(session: &Session) -> Result<(), OutboxError> {
    session.query(&GET_UP, &[&SLEEPER]).await.map(drop)
}
