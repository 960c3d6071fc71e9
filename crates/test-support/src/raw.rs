//! Hand-made AMQP bytes: messages that a publisher can send, but none of our libraries would.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::Result;

pub const HEADERS: u16 = 1 << 13;
pub const MESSAGE_ID: u16 = 1 << 7;
pub const TYPE: u16 = 1 << 5;

/// Class and method: <https://www.rabbitmq.com/amqp-0-9-1-reference>.
type Kind = (u16, u16);

const ACK: Kind = (60, 80);
const NACK: Kind = (60, 120);

pub struct Publisher(TcpStream);

impl Publisher {
    /// Connects and logs in, with channel 1 in confirm mode.
    pub async fn connect(port: u16, vhost: &str) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port));
        let mut publisher = Self(socket.await?);
        publisher.0.write_all(b"AMQP\0\0\x09\x01").await?;
        publisher.until(&[(10, 10)]).await?;
        // The answer: no properties, PLAIN, guest.
        let mut start = vec![0, 0, 0, 0];
        start.extend(short("PLAIN"));
        start.extend(long(b"\0guest\0guest"));
        start.extend(short("en_US"));
        publisher.method(0, 10, 11, &start).await?;
        let (_, tune) = publisher.until(&[(10, 30)]).await?;
        publisher.method(0, 10, 31, &tune).await?;
        let open = [short(vhost), vec![0, 0]].concat();
        publisher.method(0, 10, 40, &open).await?;
        publisher.until(&[(10, 41)]).await?;
        publisher.method(1, 20, 10, &[0]).await?;
        publisher.until(&[(20, 11)]).await?;
        publisher.method(1, 85, 10, &[0]).await?;
        publisher.until(&[(85, 11)]).await?;
        Ok(publisher)
    }

    /// Publishes to a queue, with the bytes of the properties after their flags, until the broker has taken the message: a
    /// busy quorum queue drops a message that nobody wants confirmed.
    pub async fn publish(
        &mut self,
        queue: &str,
        flags: u16,
        properties: &[u8],
        body: &[u8],
    ) -> Result<()> {
        let to = [vec![0, 0], short(""), short(queue), vec![0]].concat();
        let mut header = vec![0, 60, 0, 0];
        header.extend(u64::try_from(body.len())?.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend(properties);
        loop {
            self.method(1, 60, 40, &to).await?;
            self.frame(2, 1, &header).await?;
            self.frame(3, 1, body).await?;
            if self.until(&[ACK, NACK]).await?.0 == ACK {
                return Ok(());
            }
        }
    }

    /// Closes the channel.
    pub async fn done(mut self) -> Result<()> {
        let close = [&200_u16.to_be_bytes()[..], &short("bye"), &[0; 4]].concat();
        self.method(1, 20, 40, &close).await?;
        self.until(&[(20, 41)]).await.map(drop)
    }

    async fn method(
        &mut self,
        channel: u16,
        class: u16,
        method: u16,
        arguments: &[u8],
    ) -> Result<()> {
        let what = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.frame(1, channel, &[&what, arguments].concat()).await
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(long(payload));
        frame.push(0xce);
        Ok(self.0.write_all(&frame).await?)
    }

    /// Waits for the broker's next method of one of these kinds, and returns its kind and its arguments.
    async fn until(&mut self, kinds: &[Kind]) -> Result<(Kind, Vec<u8>)> {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).await?;
            let size = u32::from_be_bytes(head[3..].try_into()?);
            let mut payload = vec![0; usize::try_from(size)? + 1];
            self.0.read_exact(&mut payload).await?;
            payload.pop();
            let [a, b, c, d, ..] = payload[..] else {
                continue;
            };
            let kind = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            if head[0] != 1 {
                continue;
            }
            if kinds.contains(&kind) {
                return Ok((kind, payload.split_off(4)));
            }
            if matches!(kind, (20, 40) | (10, 50)) {
                return Err(format!("refused: {}", String::from_utf8_lossy(&payload)).into());
            }
        }
    }
}

pub fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

pub fn long(bytes: &[u8]) -> Vec<u8> {
    let size = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&size[..], bytes].concat()
}

/// The entries of a nested table: each table has one entry without a name, which is the next table.
pub fn nested(levels: usize) -> Vec<u8> {
    let mut inner = Vec::new();
    // Build from the inside out; each level follows its length.
    for _ in 0..levels {
        let size = u32::try_from(inner.len()).unwrap().to_be_bytes();
        // The bytes are reversed, so that each level is appended.
        inner.extend(size.iter().rev());
        inner.extend([b'F', 0]);
    }
    inner.reverse();
    inner
}
