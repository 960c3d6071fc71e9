//! The signals of `outboxd run`, and their effects.
//!
//! By default most signals end a process at once, which leaves duplicates, and systemd takes a death by SIGHUP for a clean
//! end. So the relay handles every signal that it can catch and that is no fault of the program; some have no effect.

use std::{future::poll_fn, io, task::Poll};

use nix::{libc, sys::signal::Signal as Name};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Drain and end; during a drain: end at once.
    Stop,
    Reload,
    /// No effect; holds the signal's name.
    Nothing(&'static str),
}

pub(super) struct Signals {
    /// Signals that stop come first.
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

/// `None`: the default action stays.
fn asked(name: Name) -> Option<Asked> {
    match name {
        // SIGXCPU: the soft limit of processor time is reached, and a drain ends before the hard limit.
        Name::SIGTERM | Name::SIGINT | Name::SIGQUIT | Name::SIGXCPU => Some(Asked::Stop),
        Name::SIGHUP => Some(Asked::Reload),
        // These cannot be caught, or are a fault of the program, where a core dump helps.
        Name::SIGKILL
        | Name::SIGSTOP
        | Name::SIGSEGV
        | Name::SIGBUS
        | Name::SIGFPE
        | Name::SIGILL
        | Name::SIGABRT
        | Name::SIGTRAP
        | Name::SIGSYS => None,
        // These do not end a process by default: job control, children, windows.
        Name::SIGCHLD
        | Name::SIGCONT
        | Name::SIGTSTP
        | Name::SIGTTIN
        | Name::SIGTTOU
        | Name::SIGURG
        | Name::SIGWINCH => None,
        // Rust's runtime ignores SIGPIPE: a write to a pipe without a reader is an ordinary error.
        Name::SIGPIPE => None,
        other => Some(Asked::Nothing(other.as_str())),
    }
}
