//! A proxy between two processes: a network that a test controls.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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

use crate::{Result, eventually, over, port::server};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Close all connections, and every new one.
    Cut,
    /// Keep connections and accept new ones, but move no byte.
    Stall,
    /// Forward bytes to the server, and hold its answers back.
    StallAnswers,
    /// Forward the server's bytes, and hold bytes to the server back.
    StallRequests,
    /// Reset the next connection that sends more than this many bytes to the server, after these bytes, also in the middle of a
    /// frame. Then forward.
    ResetAfter(usize),
    /// Delay every piece of data by this time, in each direction.
    Delay(Duration),
}

pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    mode: Arc<watch::Sender<Mode>>,
    /// Changes when the proxy forgets its open connections.
    forgetting: watch::Sender<()>,
    open: Arc<AtomicUsize>,
    resets: Arc<AtomicUsize>,
    turns: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Proxy {
    /// A proxy before the server that a URL of this machine names, and the URL by way of it.
    pub async fn before(url: &str) -> Result<(Self, String)> {
        let proxy = Self::start(server(url)?).await?;
        let url = over(url, proxy.port());
        Ok((proxy, url))
    }

    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::start_at(([127, 0, 0, 1], 0).into(), target).await
    }

    /// Listens on the given address.
    pub async fn start_at(listen: SocketAddr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let mode = Arc::new(watch::channel(Mode::Forward).0);
        let (target, targets) = watch::channel(target);
        let (forgetting, forgotten) = watch::channel(());
        let [open, resets, turns] = [const { AtomicUsize::new(0) }; 3].map(Arc::new);
        let (count, modes) = (Arc::clone(&open), Arc::clone(&mode));
        let (done, taken) = (Arc::clone(&resets), Arc::clone(&turns));
        let accepting = tokio::spawn(async move {
            // The set is dropped with this task, and so are the connections.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { continue };
                        let (modes, count, done) = (Arc::clone(&modes), Arc::clone(&count), Arc::clone(&done));
                        let turns = Turns { all: Arc::clone(&taken), asked: AtomicBool::new(false) };
                        let target = *targets.borrow();
                        let mut forgotten = forgotten.clone();
                        forgotten.mark_unchanged();
                        connections.spawn(async move {
                            count.fetch_add(1, Ordering::Relaxed);
                            if carry(client, target, modes.subscribe(), forgotten, &turns).await == Ended::Reset {
                                modes.send_replace(Mode::Forward);
                                done.fetch_add(1, Ordering::Relaxed);
                            }
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
            target,
            mode,
            forgetting,
            open,
            resets,
            turns,
            accepting,
        })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Ends every connection, and forwards new ones as before.
    pub async fn sever(&self, within: Duration) {
        self.set(Mode::Cut);
        // Wait until every connection has seen the cut.
        eventually("the connections to end", within, async || {
            (self.connections() == 0).then_some(())
        })
        .await;
        self.set(Mode::Forward);
    }

    /// Acts like a NAT or a firewall that lost its state: no byte of an open connection moves any more, nothing closes it, and
    /// new connections are forwarded as before.
    pub fn forget(&self) {
        self.forgetting.send_replace(());
    }

    /// Forwards new connections to this address from now on; open connections stay.
    pub fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Number of connections that `ResetAfter` has reset so far.
    pub fn resets(&self) -> usize {
        self.resets.load(Ordering::Relaxed)
    }

    /// Number of times that a client sent data after the server had sent data. These are round trips, if each question waits for
    /// the answer to the previous one.
    pub fn turns(&self) -> usize {
        self.turns.load(Ordering::Relaxed)
    }

    /// Number of connections that are open now.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Adds the turns of one connection to the turns of all.
struct Turns {
    all: Arc<AtomicUsize>,
    /// Whether the client sent data last.
    asked: AtomicBool,
}

impl Turns {
    fn spoke(&self, client: bool) {
        if client && !self.asked.load(Ordering::Relaxed) {
            self.all.fetch_add(1, Ordering::Relaxed);
        }
        self.asked.store(client, Ordering::Relaxed);
    }
}

/// The end of a connection through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Closed,
    Reset,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(
    client: TcpStream,
    target: SocketAddr,
    mut modes: watch::Receiver<Mode>,
    forgotten: watch::Receiver<()>,
    turns: &Turns,
) -> Ended {
    let mut cut = modes.clone();
    let work = async {
        // In a stalled network a connect does not reach the server.
        if modes.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
            return Ended::Closed;
        }
        let Ok(server) = TcpStream::connect(target).await else {
            return Ended::Closed;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (requests, answers) = (Mode::StallRequests, Mode::StallAnswers);
        let there = pump(from_client, to_server, modes.clone(), requests, turns, true);
        let back = pump(from_server, to_client, modes.clone(), answers, turns, false);
        let (there, back) = (
            or_forgotten(there, &forgotten),
            or_forgotten(back, &forgotten),
        );
        // The end of one side ends both, because no client here needs half-closed connections.
        tokio::select! {
            ended = there => ended,
            ended = back => ended,
        }
    };
    tokio::select! {
        // Check for the cut first: bytes that a stall held back must not pass with it.
        biased;
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => Ended::Closed,
        ended = work => ended,
    }
}

/// A forgotten connection never ends by itself.
async fn or_forgotten(work: impl Future<Output = Ended>, forgotten: &watch::Receiver<()>) -> Ended {
    let mut forgotten = forgotten.clone();
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        Ok(()) = forgotten.changed() => std::future::pending().await,
        ended = &mut work => ended,
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    held_by: Mode,
    turns: &Turns,
    to_server: bool,
) -> Ended {
    let mut buffer = vec![0; 64 * 1024];
    // Bytes until the reset, if a reset was requested.
    let mut left: Option<usize> = None;
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        turns.spoke(to_server);
        let moves = |mode: &Mode| *mode != Mode::Stall && *mode != held_by;
        let mode = match modes.wait_for(moves).await {
            Ok(mode) => *mode,
            Err(_) => return Ended::Closed,
        };
        match mode {
            Mode::Delay(by) => tokio::time::sleep(by).await,
            Mode::ResetAfter(bytes) if to_server => {
                let left = left.get_or_insert(bytes);
                if *left < n {
                    let _ = to.write_all(&buffer[..*left]).await;
                    // Close and discard unsent data, which the peer sees as a reset.
                    let _ = to.as_ref().set_zero_linger();
                    return Ended::Reset;
                }
                *left -= n;
            }
            _ => left = None,
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return Ended::Closed;
        }
    }
    Ended::Closed
}
