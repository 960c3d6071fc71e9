//! A network between two processes that does what a test says.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Connections are closed, and new ones too.
    Cut,
    /// Connections stay, new ones are accepted, and no byte moves.
    Stall,
    /// Bytes reach the server; what it answers is held back.
    StallAnswers,
    /// Every piece of data takes this much longer, each way.
    Delay(Duration),
}

pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    open: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Forward);
        let open = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&open);
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and the connections with it.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { continue };
                        let (modes, count) = (modes.clone(), Arc::clone(&count));
                        connections.spawn(async move {
                            count.fetch_add(1, Ordering::Relaxed);
                            carry(client, target, modes).await;
                            count.fetch_sub(1, Ordering::Relaxed);
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        })
        .abort_handle();
        Ok(Self {
            address,
            mode,
            open,
            accepting,
        })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Connections that are open through it now.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(client: TcpStream, target: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let cut = modes.clone();
    let work = async {
        // A stalled network does not even reach the server.
        if modes.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
            return;
        }
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let there = pump(from_client, to_server, modes.clone(), &[]);
        let back = pump(from_server, to_client, modes.clone(), &[Mode::StallAnswers]);
        // One side's end ends both: nobody here needs half-closed connections.
        tokio::select! {
            () = there => {}
            () = back => {}
        }
    };
    let mut cut = cut;
    tokio::select! {
        // The cut first: what was held back by a stall must not slip through with it.
        biased;
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
        () = work => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    held_by: &[Mode],
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        let moves = |mode: &Mode| *mode != Mode::Stall && !held_by.contains(mode);
        let mode = match modes.wait_for(moves).await {
            Ok(mode) => *mode,
            Err(_) => return,
        };
        if let Mode::Delay(by) = mode {
            tokio::time::sleep(by).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
