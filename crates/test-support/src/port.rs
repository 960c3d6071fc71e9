//! Ports for servers.

use crate::Result;

/// A port that nobody listens on right now. Below those that Linux gives to outgoing connections (32768 and above): one of
/// them could take it before the server does.
pub fn free_port() -> Result<u16> {
    use std::hash::{BuildHasher, Hasher, RandomState};
    for _ in 0..100 {
        let random = RandomState::new().build_hasher().finish();
        let port = 10_000 + u16::try_from(random % 22_000)?;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("a hundred ports were tried, and none is free".into())
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
