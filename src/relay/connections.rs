//! Which tasks get a connection when PostgreSQL has fewer connections for this relay than the relay wants.
//!
//! Without the scout the relay finds nothing, and without a worker it sends nothing: with these two it delivers. The other
//! tasks make the relay faster, or report on it. So when the server refuses a connection to a task, one task of lower
//! priority gives its own connection back. No number is configured: the limit may belong to the role, the database or the
//! server, other programs use it too, and it may change.

use std::{
    collections::BTreeSet,
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::RngExt;
use tokio::{sync::watch, time::Instant};

use crate::{
    config::Database,
    outbox::{
        OutboxError,
        session::{NotificationSink, Session},
    },
};

/// Which task gets a connection first: the lowest number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(usize);

impl Priority {
    pub const SCOUT: Self = Self(0);
    pub const FIRST_WORKER: Self = Self(1);
    /// Gauges, retention, audit.
    pub const MAINTENANCE: Self = Self(2);
    /// Only makes an idle relay quick.
    pub const LISTENER: Self = Self(3);

    pub fn worker(number: usize) -> Self {
        match number {
            0 => Self::FIRST_WORKER,
            n => Self(Self::LISTENER.0 + n),
        }
    }

    /// Workers lock their tables with NOWAIT, and wait for rows only.
    fn is_worker(self) -> bool {
        self == Self::FIRST_WORKER || self > Self::LISTENER
    }

    /// Without this task the relay delivers nothing.
    pub fn is_needed(self) -> bool {
        self <= Self::FIRST_WORKER
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SCOUT => f.write_str("scout"),
            Self::FIRST_WORKER => f.write_str("worker 0"),
            Self::MAINTENANCE => f.write_str("maintenance"),
            Self::LISTENER => f.write_str("listener"),
            Self(n) => write!(f, "worker {}", n - Self::LISTENER.0),
        }
    }
}

/// A task that the relay does not need tries again after this, and up to twice this, when the server refused it a
/// connection or it gave its connection back.
const RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct ConnectionBudget {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    holders: BTreeSet<Priority>,
    /// Refused by the server, and not connected since.
    refused: BTreeSet<Priority>,
    /// One at a time: a connection that is given back serves the next attempt.
    preemption: Option<Preemption>,
    /// A connection was just given back for this task: no other task takes it.
    reserved_for: Option<Priority>,
}

/// A task gives its connection back to a task of higher priority.
#[derive(Debug, Clone, Copy)]
struct Preemption {
    from: Priority,
    to: Priority,
}

/// A connection that a task holds.
#[derive(Debug)]
struct Permit {
    budget: Arc<ConnectionBudget>,
    priority: Priority,
}

/// A session with its permit.
pub struct PermittedSession {
    session: Session,
    permit: Permit,
}

impl Deref for PermittedSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl PermittedSession {
    /// Resolves when a task of higher priority needs this connection.
    pub async fn preempted(&self) {
        let Permit { budget, priority } = &self.permit;
        let mut changed = budget.changed.subscribe();
        while budget.state().preempted() != Some(*priority) {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

impl State {
    fn preempted(&self) -> Option<Priority> {
        self.preemption.map(|preemption| preemption.from)
    }
}

impl ConnectionBudget {
    /// The server refused a connection to this task. True the first time since it was connected: then it is logged.
    pub fn refused(&self, priority: Priority) -> bool {
        let mut state = self.state();
        let new = state.refused.insert(priority);
        state.reserved_for.take_if(|task| *task == priority);
        if state.preemption.is_none() {
            let last = state.holders.last().copied();
            state.preemption = last
                .filter(|last| *last > priority)
                .map(|from| Preemption { from, to: priority });
        }
        drop(state);
        self.changed.send_replace(());
        new
    }

    /// Connects, when it is this task's turn.
    pub async fn connect(
        self: &Arc<Self>,
        priority: Priority,
        database: &Database,
        name: &str,
        sink: Option<NotificationSink>,
    ) -> Result<PermittedSession, OutboxError> {
        self.turn(priority).await;
        let session = match priority.is_worker() {
            true => Session::connect_with_sink(database, name, sink).await?,
            false => Session::connect_with_sink(&database.yielding(), name, sink).await?,
        };
        Ok(PermittedSession {
            session,
            permit: self.permit(priority),
        })
    }

    fn permit(self: &Arc<Self>, priority: Priority) -> Permit {
        let mut state = self.state();
        state.refused.remove(&priority);
        state.reserved_for.take_if(|task| *task == priority);
        // It found a connection that nobody gave back for it.
        state.preemption.take_if(|p| p.to == priority);
        state.holders.insert(priority);
        drop(state);
        self.changed.send_replace(());
        Permit {
            budget: Arc::clone(self),
            priority,
        }
    }

    async fn turn(&self, priority: Priority) {
        let since = Instant::now();
        let retry_after = RETRY_AFTER.mul_f64(rand::rng().random_range(1.0..=2.0));
        let mut changed = self.changed.subscribe();
        loop {
            let (reserved, was_refused, others_first) = {
                let state = self.state();
                let others_first = state.refused.first().is_some_and(|first| *first < priority);
                let refused = state.refused.contains(&priority);
                (state.reserved_for == Some(priority), refused, others_first)
            };
            if priority.is_needed() || reserved || !was_refused && !others_first {
                return;
            }
            // Bounded: the task of higher priority may be away for another reason.
            if tokio::time::timeout_at(since + retry_after, changed.changed())
                .await
                .is_err()
            {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.holders.remove(&self.priority);
        if state.preempted() == Some(self.priority) {
            state.reserved_for = state.preemption.take().map(|preemption| preemption.to);
            // It waits like a task that was refused.
            state.refused.insert(self.priority);
        }
        drop(state);
        self.budget.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preempted(budget: &ConnectionBudget) -> Option<Priority> {
        budget.state().preempted()
    }

    #[test]
    fn the_lowest_priority_gives_its_connection_back_one_for_each_refusal() {
        let budget = Arc::new(ConnectionBudget::default());
        let workers: Vec<Priority> = (0..4).map(Priority::worker).collect();
        let mut held: Vec<Permit> = workers.iter().map(|w| budget.permit(*w)).collect();
        assert!(budget.refused(Priority::SCOUT));
        assert_eq!(preempted(&budget), Some(workers[3]));
        assert!(!budget.refused(Priority::SCOUT));
        assert_eq!(preempted(&budget), Some(workers[3]), "it still has it");
        held.pop();
        assert_eq!(preempted(&budget), None);
        let scout = budget.permit(Priority::SCOUT);
        budget.refused(Priority::MAINTENANCE);
        assert_eq!(preempted(&budget), Some(workers[2]));
        drop((held, scout));
    }

    #[test]
    fn no_task_gives_its_connection_to_one_that_has_found_another() {
        let budget = Arc::new(ConnectionBudget::default());
        let last = Priority::worker(3);
        let _held = [Priority::worker(0), last].map(|task| budget.permit(task));
        budget.refused(Priority::SCOUT);
        budget.refused(Priority::MAINTENANCE);
        assert_eq!(preempted(&budget), Some(last));
        let _maintenance = budget.permit(Priority::MAINTENANCE);
        assert_eq!(preempted(&budget), Some(last), "the scout has none yet");
        let _scout = budget.permit(Priority::SCOUT);
        assert_eq!(preempted(&budget), None);
    }

    #[test]
    fn no_task_gives_its_connection_to_one_of_lower_priority() {
        let budget = Arc::new(ConnectionBudget::default());
        let _held = [Priority::SCOUT, Priority::FIRST_WORKER].map(|task| budget.permit(task));
        for task in [
            Priority::MAINTENANCE,
            Priority::LISTENER,
            Priority::worker(1),
        ] {
            budget.refused(task);
            assert_eq!(preempted(&budget), None, "{task:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_tasks_try_again_slowly_and_those_that_are_needed_at_once() {
        let budget = Arc::new(ConnectionBudget::default());
        for task in [Priority::SCOUT, Priority::FIRST_WORKER, Priority::worker(1)] {
            budget.refused(task);
        }
        let took = async |task| {
            let since = Instant::now();
            budget.turn(task).await;
            since.elapsed()
        };
        assert_eq!(took(Priority::SCOUT).await, Duration::ZERO);
        assert_eq!(took(Priority::FIRST_WORKER).await, Duration::ZERO);
        assert!(took(Priority::worker(1)).await >= RETRY_AFTER);
        // The task for which a connection was given back takes it before any other.
        let last = budget.permit(Priority::worker(5));
        budget.refused(Priority::MAINTENANCE);
        drop(last);
        assert_eq!(took(Priority::MAINTENANCE).await, Duration::ZERO);
        assert!(
            took(Priority::worker(2)).await >= RETRY_AFTER,
            "it lets the others go first"
        );
    }
}
