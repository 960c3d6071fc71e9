//! A payment provider that charges once per `Idempotency-Key`, and may fail to say so.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Answer,
    /// Charges, and closes the connection instead of answering.
    LoseTheResponse,
    /// Charges, and answers when the mode changes.
    Hold,
}

pub struct Provider {
    url: String,
    mode: watch::Sender<Mode>,
    asked: Arc<Mutex<Vec<String>>>,
    accepting: AbortHandle,
}

impl Provider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (mode, modes) = watch::channel(Mode::Answer);
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, modes) = (Arc::clone(&seen), modes.clone());
                // A client that was killed has nobody to tell.
                tokio::spawn(async move { answer(stream, &seen, modes).await.ok() });
            }
        })
        .abort_handle();
        Self {
            url,
            mode,
            asked,
            accepting,
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// The idempotency key of each request, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(
    stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    mut modes: watch::Receiver<Mode>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut headers = HashMap::new();
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        line.clear();
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok());
    let mut body = vec![0; length.expect("a request with a length")];
    stream.read_exact(&mut body).await?;
    let key = headers.get("idempotency-key").cloned().unwrap_or_default();
    asked.lock().unwrap().push(key.clone());
    let mode = *modes.borrow_and_update();
    match mode {
        Mode::Answer => {}
        Mode::LoseTheResponse => return Ok(()),
        Mode::Hold => drop(modes.wait_for(|mode| *mode != Mode::Hold).await),
    }
    let body = format!(r#"{{"id":"charge of {key}"}}"#);
    let response = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await
}
