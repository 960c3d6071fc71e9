//! A broker that lies in the handshake, and a PostgreSQL server that sends endless rows.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use amq_protocol::{
    frame::{AMQPFrame, gen_frame, parse_frame},
    protocol::{AMQPClass, connection},
};
use lapin::types::FieldTable;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use crate::Result;

/// An AMQP server that sends `start`, then `tune`, and records the answers.
pub struct Liar {
    address: SocketAddr,
    agreed: Arc<Mutex<Vec<u32>>>,
}

impl Liar {
    pub async fn start(start: Vec<u8>, tune: Vec<u8>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let agreed: Arc<Mutex<Vec<u32>>> = Arc::default();
        let into = Arc::clone(&agreed);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (start, tune, into) = (start.clone(), tune.clone(), Arc::clone(&into));
                // The test expects the peer to hang up.
                tokio::spawn(async move { answer(stream, &start, &tune, &into).await });
            }
        });
        Ok(Self { address, agreed })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The `frame_max` of each tune-ok.
    pub fn agreed(&self) -> Vec<u32> {
        lock(&self.agreed).clone()
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}", self.address)
    }
}

fn lock(agreed: &Mutex<Vec<u32>>) -> MutexGuard<'_, Vec<u32>> {
    agreed.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    mut stream: TcpStream,
    start: &[u8],
    tune: &[u8],
    agreed: &Mutex<Vec<u32>>,
) -> Option<()> {
    let mut header = [0; 8];
    stream.read_exact(&mut header).await.ok()?;
    stream.write_all(start).await.ok()?;
    let mut held = Vec::new();
    loop {
        match parse_frame(&held[..]).map(|(rest, frame)| (rest.len(), frame)) {
            Ok((rest, frame)) => {
                held.drain(..held.len() - rest);
                let AMQPFrame::Method(_, AMQPClass::Connection(method)) = frame else {
                    continue;
                };
                match method {
                    connection::AMQPMethod::StartOk(_) => stream.write_all(tune).await.ok()?,
                    connection::AMQPMethod::TuneOk(ok) => {
                        lock(agreed).push(ok.frame_max);
                    }
                    _ => {}
                }
            }
            Err(_) => {
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer).await.ok()? {
                    0 => return None,
                    n => held.extend_from_slice(&buffer[..n]),
                }
            }
        }
    }
}

fn bytes(method: connection::AMQPMethod) -> Vec<u8> {
    let frame = AMQPFrame::Method(0, AMQPClass::Connection(method));
    let mut buffer = vec![0; 4096];
    let (_, size) = gen_frame(&frame)(buffer.as_mut_slice().into())
        .unwrap()
        .into_inner();
    buffer.truncate(usize::try_from(size).unwrap());
    buffer
}

pub fn start() -> Vec<u8> {
    bytes(connection::AMQPMethod::Start(connection::Start {
        version_major: 0,
        version_minor: 9,
        server_properties: FieldTable::default(),
        mechanisms: "PLAIN".into(),
        locales: "en_US".into(),
    }))
}

pub fn tune(frame_max: u32) -> Vec<u8> {
    bytes(connection::AMQPMethod::Tune(connection::Tune {
        channel_max: 0,
        frame_max,
        heartbeat: 60,
    }))
}

/// `connection.start` with properties nested `levels` deep. It is written by hand, because lapin's writer recurses too.
pub fn nested_start(levels: u32) -> Vec<u8> {
    let mut payload = vec![0, 10, 0, 10, 0, 9];
    for inside in (1..=levels).rev() {
        payload.extend((inside * 6).to_be_bytes());
        payload.extend([0, b'F']);
    }
    payload.extend([0; 4]);
    for text in ["PLAIN", "en_US"] {
        payload.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        payload.extend(text.as_bytes());
    }
    let mut frame = vec![1, 0, 0];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    frame
}

/// A PostgreSQL server that accepts every login, and answers every statement with a row of two gigabytes, of which it sends this
/// many bytes. The connections end with the returned task.
pub async fn endless_postgres(bytes: usize) -> Result<(SocketAddr, AbortHandle)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            // The test expects the client to hang up.
            connections.spawn(async move { drop(endless_row(stream, bytes).await) });
        }
    });
    Ok((address, serving.abort_handle()))
}

async fn endless_row(mut stream: TcpStream, bytes: usize) -> std::io::Result<()> {
    let mut asked = [0; 4096];
    // Read the startup message, whatever it contains.
    let _ = stream.read(&mut asked).await?;
    // Answer: login accepted, version 15, ready for a query.
    let mut greeting = vec![b'R', 0, 0, 0, 8, 0, 0, 0, 0];
    let version = b"server_version\x0015.0\0";
    greeting.extend([b'S', 0, 0, 0, 4 + 20]);
    greeting.extend(version);
    greeting.extend([b'Z', 0, 0, 0, 5, b'I']);
    stream.write_all(&greeting).await?;
    if stream.read(&mut asked).await? > 0 {
        stream.write_all(&[b'D', 0x7f, 0xff, 0xff, 0xff]).await?;
        let block = vec![0; 1 << 20];
        for _ in 0..bytes >> 20 {
            stream.write_all(&block).await?;
        }
        // Then send nothing more.
        while stream.read(&mut asked).await? > 0 {}
    }
    Ok(())
}
