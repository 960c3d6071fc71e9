//! Ports for servers.
//!
//! A server that is stopped or not yet started does not listen on its port, and another test could take it meanwhile. So the
//! owner of a port holds a lock on one byte of a file, which all processes of a user share: the byte at the port's number. The
//! kernel frees the locks of a process that has ended.

use std::{
    collections::BTreeSet,
    fs::File,
    net::TcpListener,
    sync::{Mutex, OnceLock, PoisonError},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::Result;

/// Below the ports that Linux gives to outgoing connections (32768 and above): one of them could take the port first.
const LOWEST: u16 = 10_000;
const PORTS: u16 = 22_000;

/// A port of 127.0.0.1 that no other test gets, until this is dropped.
#[derive(Debug)]
pub(crate) struct Port(u16);

/// The ports of this process.
static OURS: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

impl Port {
    /// A port that nobody has, and nobody listens on.
    pub fn free() -> Result<Self> {
        for _ in 0..1000 {
            let number = LOWEST + rand::random_range(0..PORTS);
            if let Some(port) = Self::take(number)?
                && TcpListener::bind(("127.0.0.1", number)).is_ok()
            {
                return Ok(port);
            }
        }
        Err("a thousand ports were tried, and none is free".into())
    }

    pub fn number(&self) -> u16 {
        self.0
    }

    /// `None` if somebody has it.
    fn take(number: u16) -> Result<Option<Self>> {
        let file = locks()?;
        // Two locks of one open file do not exclude each other.
        let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        if !ours.insert(number) {
            return Ok(None);
        }
        if lock(file, number, libc::F_WRLCK) {
            return Ok(Some(Self(number)));
        }
        ours.remove(&number);
        Ok(None)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(file) = locks() {
            lock(file, self.0, libc::F_UNLCK);
        }
        ours.remove(&self.0);
    }
}

/// A port for somebody else's server, which is ours until this process ends.
pub fn free_port() -> Result<u16> {
    let port = Port::free()?;
    let number = port.number();
    std::mem::forget(port);
    Ok(number)
}

fn open() -> std::io::Result<File> {
    let user = nix::unistd::Uid::effective();
    let path = std::env::temp_dir().join(format!("outboxd-ports-{user}"));
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path)
}

/// The file of the locks, opened once: the locks belong to the open file.
fn locks() -> Result<&'static File> {
    static LOCKS: OnceLock<std::io::Result<File>> = OnceLock::new();
    let file = LOCKS.get_or_init(open).as_ref();
    file.map_err(|error| format!("the file of the ports in use: {error}").into())
}

/// Locks or frees the byte of a port; `false` if another process has it.
fn lock(file: &File, port: u16, kind: i32) -> bool {
    let byte = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: port.into(),
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&byte)).is_ok()
}

/// The port of a URL whose host is a number.
fn port(url: &str) -> Option<u16> {
    url.rsplit_once(':')?.1.split('/').next()?.parse().ok()
}

/// The same URL by way of another port.
pub fn over(url: &str, other: u16) -> String {
    let Some(port) = port(url) else {
        panic!("a URL without a port");
    };
    url.replace(&format!(":{port}/"), &format!(":{other}/"))
}

/// The server that a URL of this machine names.
pub(crate) fn server(url: &str) -> Result<std::net::SocketAddr> {
    let port = port(url).ok_or("a URL without a port")?;
    Ok(([127, 0, 0, 1], port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_belongs_to_its_owner_while_nobody_listens() {
        let port = Port::free().unwrap();
        let number = port.number();
        assert!(Port::take(number).unwrap().is_none());
        // As another process opens it.
        let other = open().unwrap();
        assert!(!lock(&other, number, libc::F_WRLCK));
        drop(port);
        assert!(lock(&other, number, libc::F_WRLCK));
        assert!(Port::take(number).unwrap().is_none());
        drop(other);
        assert!(Port::take(number).unwrap().is_some());
    }

    #[test]
    fn a_port_that_was_given_away_stays_taken() {
        let number = free_port().unwrap();
        assert!(Port::take(number).unwrap().is_none());
    }
}
