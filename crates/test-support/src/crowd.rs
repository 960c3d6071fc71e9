//! Clients that occupy a port.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::Result;

/// Opens this many clients. Each sends `head`, reads nothing, and keeps its connection open.
pub async fn crowd(port: u16, head: &str, clients: usize) -> Result<Vec<TcpStream>> {
    // Each client takes a descriptor of this process, and tests that run at the same time share the limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let one = async || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        // The server may have closed the connection already, to make room.
        let _ = client.write_all(head.as_bytes()).await;
        Some(client)
    };
    // If the listener accepts no more, the other connects wait.
    let bounded = async || tokio::time::timeout(Duration::from_secs(10), one()).await;
    let all = join_all((0..clients).map(|_| bounded())).await;
    Ok(all.into_iter().filter_map(|client| client.ok()?).collect())
}
