//! `outboxd healthcheck`: one HTTP request to this host's relay, for containers whose images have no curl.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
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
use tokio::{net::TcpStream, time::timeout};

use super::{CliError, output};
use crate::{admin, config::Config};

/// Container engines and kubelet give up after a few seconds, too.
const WITHIN: Duration = Duration::from_secs(3);
/// The relay answers with one short text.
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
    let answer = timeout(WITHIN, get(reachable(listen), path))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", WITHIN.as_secs())))?
        .map_err(|e| unreachable(e.to_string()))?;
    let Answer {
        status,
        is_ours,
        body,
    } = answer;
    // Another program's 200 says nothing of the relay, and its text is none of ours to repeat.
    if !is_ours {
        return Err(CliError::Failure(format!(
            "no relay answers on {listen}: another program listens there. See that the relay runs, and that admin.listen is its \
             own port"
        )));
    }
    let body = body.trim();
    if status.is_success() {
        Ok(output::line(body)?)
    } else {
        // The body of a 503 says why the relay is not ready.
        Err(CliError::Failure(body.to_owned()))
    }
}

struct Answer {
    status: StatusCode,
    /// It is a relay's.
    is_ours: bool,
    body: String,
}

async fn get(address: SocketAddr, path: &str) -> Result<Answer, Box<dyn Error>> {
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
        true => to_bytes(Body::new(answer.into_body()), MAX_BODY_BYTES).await?,
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
