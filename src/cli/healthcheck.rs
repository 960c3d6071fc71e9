//! `outboxd healthcheck`: one HTTP request to this host's relay, for containers whose images have no curl.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode, header::HOST},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::{CliError, output};
use crate::config::Config;

/// Container engines and kubelet give up after a few seconds, too.
const WITHIN: Duration = Duration::from_secs(3);
/// The relay answers with one short text; another server at the port may not.
const MAX_BODY_BYTES: usize = 64 * 1024;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Ask /livez instead: exit code 0 when the process runs, ready or not
    #[arg(long)]
    live: bool,
}

pub(super) async fn healthcheck(args: &Args, config: &Config) -> Result<(), CliError> {
    let Some(listen) = config.admin.listen else {
        return Err(CliError::Setup(
            "admin.listen is \"off\", so no relay can be asked".to_owned(),
        ));
    };
    let path = if args.live { "/livez" } else { "/readyz" };
    let unreachable =
        |why: String| CliError::Failure(format!("no relay answers on {listen}: {why}"));
    let (status, body) = timeout(WITHIN, get(reachable(listen), path))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", WITHIN.as_secs())))?
        .map_err(|e| unreachable(e.to_string()))?;
    let body = body.trim();
    if status.is_success() {
        Ok(output::line(body)?)
    } else {
        // The body of a 503 says why the relay is not ready.
        Err(CliError::Failure(body.to_owned()))
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, String), Box<dyn Error>> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    // It ends with the response: the runtime lives no longer than this command.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(Body::empty())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = to_bytes(Body::new(answer.into_body()), MAX_BODY_BYTES).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
