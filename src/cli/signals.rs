//! What each signal asks of `outboxd run`.
//!
//! The default of most signals ends a process at once, which leaves duplicates; and systemd takes a death by SIGHUP for
//! a clean end. So every signal that can be taken and is no fault of the program has a meaning here, if only none.

use std::{future::poll_fn, io, task::Poll};

use nix::{libc, sys::signal::Signal as Name};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Drain and end; during a drain: end at once.
    Stop,
    Reload,
    /// By its name.
    Nothing(&'static str),
}

pub(super) struct Signals {
    /// Those that stop first.
    each: Vec<(Asked, Signal)>,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let named = Name::iterator().filter_map(|name| Some((asked(name)?, name as i32)));
        let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
        let real_time = real_time.map(|number| (Asked::Nothing("real-time"), number));
        let mut each = named
            .chain(real_time)
            .map(|(asked, number)| Ok((asked, signal(SignalKind::from_raw(number))?)))
            .collect::<io::Result<Vec<_>>>()?;
        each.sort_by_key(|(asked, _)| *asked != Asked::Stop);
        Ok(Self { each })
    }

    pub(super) async fn next(&mut self) -> Asked {
        poll_fn(|cx| {
            for (asked, signal) in &mut self.each {
                if signal.poll_recv(cx).is_ready() {
                    return Poll::Ready(*asked);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// `None`: left as it is.
fn asked(name: Name) -> Option<Asked> {
    match name {
        // SIGXCPU: the processor time of a soft limit is used up, and a drain fits before the hard one.
        Name::SIGTERM | Name::SIGINT | Name::SIGQUIT | Name::SIGXCPU => Some(Asked::Stop),
        Name::SIGHUP => Some(Asked::Reload),
        // They cannot be taken, or are a fault of the program, and a core dump is what is wanted.
        Name::SIGKILL
        | Name::SIGSTOP
        | Name::SIGSEGV
        | Name::SIGBUS
        | Name::SIGFPE
        | Name::SIGILL
        | Name::SIGABRT
        | Name::SIGTRAP
        | Name::SIGSYS => None,
        // They end nothing by default: job control, children, windows.
        Name::SIGCHLD
        | Name::SIGCONT
        | Name::SIGTSTP
        | Name::SIGTTIN
        | Name::SIGTTOU
        | Name::SIGURG
        | Name::SIGWINCH => None,
        // Rust's runtime ignores it: a write to a pipe that nobody reads is an error like any other.
        Name::SIGPIPE => None,
        other => Some(Asked::Nothing(other.as_str())),
    }
}
