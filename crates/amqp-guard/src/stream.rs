//! The guard as a stream, and a runtime with which lapin accepts this stream.

use std::{
    fmt, io,
    io::{Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, TokioRuntime, traits::Reactor, util::RuntimeParts};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::tcp::AsyncTcpStream;

use super::{bounds::FRAME_MAX, frames};

/// A connection to the broker, with or without TLS.
pub type Plain = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Bytes per read from the socket.
const CHUNK: usize = 32 * 1024;

/// Holds each frame back until it is complete, and passes it on if it is harmless.
pub struct Guarded<S> {
    stream: S,
    frame_max: u32,
    /// Not yet checked: less than a frame.
    held: Vec<u8>,
    /// Checked; lapin has read the bytes before `read`.
    passed: Vec<u8>,
    read: usize,
    chunk: Box<[u8]>,
}

/// Wraps a connection in the guard, inside of its TLS. `frame_max`: maximum size of a frame in bytes.
pub fn guard(stream: Plain, frame_max: u32) -> AsyncTcpStream<Guarded<Plain>> {
    AsyncTcpStream::Plain(Guarded::new(stream, frame_max))
}

impl<S> Guarded<S> {
    fn new(stream: S, frame_max: u32) -> Self {
        Self {
            stream,
            frame_max,
            held: Vec::new(),
            passed: Vec::new(),
            read: 0,
            chunk: vec![0; CHUNK].into_boxed_slice(),
        }
    }
}

impl<S> fmt::Debug for Guarded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let waiting = &this.passed[this.read..];
            if !waiting.is_empty() {
                let count = waiting.len().min(buffer.len());
                buffer[..count].copy_from_slice(&waiting[..count]);
                this.read += count;
                return Poll::Ready(Ok(count));
            }
            this.passed.clear();
            this.read = 0;
            let count = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut this.chunk))?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            this.held.extend_from_slice(&this.chunk[..count]);
            let done = frames::pass(&this.held, &mut this.frame_max, &mut this.passed)
                .map_err(|refused| io::Error::new(io::ErrorKind::InvalidData, refused))?;
            this.held.drain(..done);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}

/// Tokio with guarded streams.
pub type Kit = RuntimeParts<Tokio, GuardedTokio>;

/// The runtime for [`lapin::Connection::connector`]. Call it inside of a Tokio runtime.
pub fn runtime() -> Runtime<Kit> {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), GuardedTokio(tokio)))
}

/// The runtime that opens the connection.
pub fn tokio() -> TokioRuntime {
    Runtime::tokio_current()
}

#[derive(Debug, Clone)]
pub struct GuardedTokio(Tokio);

impl Reactor for GuardedTokio {
    type TcpStream = Guarded<Plain>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move {
            let stream = AsyncTcpStream::Plain(connecting.await?);
            Ok(Guarded::new(stream, FRAME_MAX))
        }
    }
}
