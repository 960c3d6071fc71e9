//! The AMQP URL. Bad input 6.

use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::{
    arena::{self, Setup},
    row::{Outcome, Result, Row, expect, rows},
};

pub const CASES: &[Row] = rows! { setup;
    6, "IPv6 literal in an AMQP URI: honoured, never resolved to something else" => ipv6_is_honoured(setup);
};

/// An IPv6 literal that is an address of this host, and not what `localhost` resolves to.
async fn ipv6_is_honoured(setup: &Setup) -> Result<Outcome> {
    let meant = TcpListener::bind("127.0.0.2:0").await?;
    let port = meant.local_addr()?.port();
    let localhost = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("amqp://u:hunter2@[::ffff:127.0.0.2]:{port}");
    let stage = setup.stage.get(setup).await?;
    let mut env = stage.env.clone();
    env.push(("AMQP_URL".to_owned(), url));
    let allowed = "OUTBOXD__BROKER__ALLOW_PLAINTEXT";
    env.push((allowed.to_owned(), "true".to_owned()));
    let _relay = setup.logs.start("relay", &setup.outboxd, &["run"], &env)?;
    let connected = async {
        tokio::select! {
            connected = meant.accept() => Ok(connected?.0),
            _ = localhost.accept() => Err("the literal was resolved to localhost".into()),
        }
    };
    let connected: Result<_> = tokio::time::timeout(arena::SOON, connected).await?;
    let mut greeting = [0; 4];
    connected?.read_exact(&mut greeting).await?;
    expect(&greeting == b"AMQP", || format!("it says {greeting:?}"))?;
    Ok(Outcome::default())
}
