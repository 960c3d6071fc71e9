//! Bad clients of a port.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::Result;

/// So many clients that all say `head`, read nothing, and hold on.
pub async fn crowd(port: u16, head: &str, clients: usize) -> Result<Vec<TcpStream>> {
    // They are as many descriptors here, for everybody who does so now.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let one = async || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        // It may have been closed already, to make room.
        let _ = client.write_all(head.as_bytes()).await;
        Some(client)
    };
    // A listener that takes no more leaves the others waiting.
    let bounded = async || tokio::time::timeout(Duration::from_secs(10), one()).await;
    let all = join_all((0..clients).map(|_| bounded())).await;
    Ok(all.into_iter().filter_map(|client| client.ok()?).collect())
}
