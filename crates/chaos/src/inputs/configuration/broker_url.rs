//! The AMQP URL. Bad inputs 5 to 9.

use tokio::{io::AsyncReadExt, net::TcpListener};

use super::judge::Judge;
use crate::{
    arena::{self, Setup},
    row::{Outcome, Result, Row, expect, rows},
};

pub const CASES: &[Row] = rows! { setup;
    5, "no broker credentials (no silent guest/guest)" => no_credentials(setup);
    6, "IPv6 literal or several hosts in an AMQP URI: either honoured or refused, never resolved to something else" => broker_hosts(setup);
    7, "empty virtual host by a trailing /" => empty_vhost(setup);
    8, "unknown AMQP query parameter" => broker_parameter(setup);
    9, "invalid percent-encoding" => percent_encoding(setup);
};

async fn no_credentials(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for url in [
        "amqp://localhost",
        "amqp://localhost:5672/%2f",
        "amqp://relay@localhost",
        "amqp://relay:@localhost",
        "amqp://:hunter2@localhost",
        "amqp://:@localhost",
        "amqps://mq.example",
    ] {
        let says = [
            "broker.url: names no user and password",
            "amqp://user:password@host",
            "guest is never assumed",
        ];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    Ok(judge.outcome())
}

async fn broker_hosts(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for (url, says) in [
        (
            "amqp://u:hunter2@localhost,127.0.0.1",
            "names several hosts",
        ),
        (
            "amqp://u:hunter2@localhost:5672,[::1]:5672",
            "names several hosts",
        ),
        ("amqp://u:hunter2@::1", "has a host that is no name"),
        ("amqp://u:hunter2@[::1", "has a host that is no name"),
        ("amqp://u:hunter2@[::1]x", "has a host that is no name"),
        ("amqp://u:hunter2@[localhost]", "has a host that is no name"),
        ("amqp://u:hunter2@127.1", "has a host that is no name"),
    ] {
        let says = ["broker.url: ", says];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    judge
        .takes(&[("AMQP_URL", "amqp://u:hunter2@[::1]:5672")])
        .await?;
    ipv6_is_honoured(setup).await?;
    let mut outcome = judge.outcome();
    outcome
        .notes
        .push("an IPv6 literal was connected to, and nothing else".to_owned());
    Ok(outcome)
}

/// An IPv6 literal that is an address of this host, and not what `localhost` resolves to.
async fn ipv6_is_honoured(setup: &Setup) -> Result<()> {
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
    expect(&greeting == b"AMQP", || format!("it says {greeting:?}"))
}

async fn empty_vhost(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for url in [
        "amqp://u:hunter2@localhost/",
        "amqp://u:hunter2@localhost:5672/",
        "amqps://u:hunter2@mq.example/",
    ] {
        let says = ["broker.url: ends in \"/\"", "write %2f"];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    judge
        .takes(&[("AMQP_URL", "amqp://u:hunter2@localhost/%2f")])
        .await?;
    Ok(judge.outcome())
}

async fn broker_parameter(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for (parameter, name) in [
        ("heartbeat=0", "heartbeat"),
        ("hartbeat=5", "hartbeat"),
        ("connection_timeout=1&heartbeat=5", "connection_timeout"),
        ("auth_mechanism=external", "auth_mechanism"),
        ("verify=verify_none", "verify"),
        ("", ""),
    ] {
        let url = format!("amqp://u:hunter2@localhost/%2f?{parameter}");
        let named = format!("broker.url: has the parameter \"{name}\"");
        let says = [named.as_str(), "the heartbeat is broker.heartbeat"];
        judge.refuses(&[("AMQP_URL", &url)], &says).await?;
    }
    Ok(judge.outcome())
}

async fn percent_encoding(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for (url, part) in [
        ("amqp://u:hunter2%zz@localhost", "password"),
        ("amqp://u:hunter2%@localhost", "password"),
        ("amqp://u:hunter2%2@localhost", "password"),
        ("amqp://u:hunter2%ff@localhost", "password"),
        ("amqp://u%g1:hunter2@localhost", "user name"),
        ("amqp://u:hunter2@localhost/%2", "virtual host"),
    ] {
        let named = format!("broker.url: has an invalid percent-encoding in its {part}");
        let says = [named.as_str(), "write % as %25"];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    judge
        .takes(&[("AMQP_URL", "amqp://u:hunter2%25@localhost/a%2fb")])
        .await?;
    Ok(judge.outcome())
}
