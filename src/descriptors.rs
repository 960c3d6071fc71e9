//! The number of files and sockets that this process may open, and the admin port's share of it.
//!
//! The whole process has one limit. Without a share of its own, clients of the admin port could take the descriptors that the
//! relay needs to reconnect.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More than any configuration needs.
const ENOUGH: u64 = 65_536;
/// Connections of the admin port at once; each takes one descriptor.
const ADMIN: u64 = 32;
/// Least share, so that health checks are answered on the tightest system too.
const ADMIN_LEAST: u64 = 4;

/// Raises the soft limit towards the hard limit, and returns the new soft limit. Most systems have a low soft limit because of
/// select(), which nothing here uses.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let wanted = hard.min(ENOUGH);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        return wanted;
    }
    soft
}

/// The soft and the hard limit of this process; `None` if the system does not tell.
pub fn limits() -> Option<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).ok()
}

/// Descriptors that the relay itself needs. A worker has a connection to each server, and may open the next one before the
/// last is closed; a source has four more. The rest is for files, name resolution and the runtime.
pub fn needed(sources: usize, workers: usize) -> u64 {
    let sources = sources as u64;
    32 + sources * (4 * workers as u64 + 8)
}

/// With the whole share of the admin port.
pub fn needed_with_admin(sources: usize, workers: usize) -> u64 {
    needed(sources, workers) + ADMIN
}

/// The admin port's share.
pub fn for_admin(allowed: u64, needed: u64) -> usize {
    allowed.saturating_sub(needed).clamp(ADMIN_LEAST, ADMIN) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_port_gets_what_the_relay_leaves_and_never_much() {
        assert_eq!(for_admin(65_536, needed(1, 4)), 32);
        assert_eq!(for_admin(needed(1, 4) + 10, needed(1, 4)), 10);
        assert_eq!(for_admin(16, needed(1, 4)), 4);
    }

    #[test]
    fn the_soft_limit_is_raised_to_what_the_hard_one_allows() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(raise() >= hard.min(ENOUGH));
        assert!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0 >= hard.min(ENOUGH));
    }
}
