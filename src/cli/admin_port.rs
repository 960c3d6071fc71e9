//! A request to this host's relay, at its admin port.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{
        Request, StatusCode,
        header::{HOST, SERVER},
    },
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin;

pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// It is a relay's.
    pub(super) is_ours: bool,
    pub(super) body: String,
}

/// Asks the port that `admin.listen` names. The caller bounds the time.
pub(super) async fn get(
    listen: SocketAddr,
    path: &str,
    most_bytes: usize,
) -> Result<Answer, Box<dyn Error>> {
    let address = reachable(listen);
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    // It ends with the response: the runtime lives no longer than this command.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(Body::empty())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let is_ours = answer
        .headers()
        .get(SERVER)
        .is_some_and(|name| name == admin::SERVER);
    // Another program's may have any size.
    let body = match is_ours {
        true => to_bytes(Body::new(answer.into_body()), most_bytes).await?,
        false => Bytes::new(),
    };
    Ok(Answer {
        status,
        is_ours,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
