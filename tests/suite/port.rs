//! Misbehaving clients of the admin port.

use std::{path::Path, time::Duration};

use test_support::{Daemon, Mode, Proxy, crowd, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    seeing::get,
    world::{SOON, World, binary, world},
};

/// More clients than the admin port takes, and more than the process has descriptors.
const CLIENTS: usize = 2000;
/// Limit of descriptors: little more than the relay needs.
const DESCRIPTORS: usize = 96;

/// A relay with few descriptors, whose connection to PostgreSQL the test can cut.
async fn relay(world: &World) -> (Daemon, Proxy, u16) {
    let port = test_support::free_port().unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], world.postgres().port()).into())
        .await
        .unwrap();
    let url = world.database_url().replace(
        &format!(":{}/", world.postgres().port()),
        &format!(":{}/", proxy.port()),
    );
    let env = world.env(&[
        ("DATABASE_URL", &url),
        ("OUTBOXD__ADMIN__LISTEN", &format!("127.0.0.1:{port}")),
    ]);
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let program = binary().display().to_string();
    let relay = Daemon::start(Path::new("prlimit"), &[&limit, &program, "run"], &env).unwrap();
    relay.line("connected to both servers", SOON).await;
    (relay, proxy, port)
}

fn descriptors(relay: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", relay.pid()))
        .unwrap()
        .count()
}

async fn healthy(port: u16) {
    eventually("/livez", SOON, async || {
        let answer = tokio::time::timeout(Duration::from_secs(30), get(port, "/livez")).await;
        (answer.ok()??.0 == 200).then_some(())
    })
    .await;
}

async fn withstands(head: &str) {
    let world = world().await;
    let consumer = world.consumer().await;
    let (relay, proxy, port) = relay(&world).await;
    world.commit_many(100, 10).await;
    consumer.until(100).await;

    let clients = crowd(port, head, CLIENTS).await.unwrap();
    healthy(port).await;
    assert!(
        descriptors(&relay) < DESCRIPTORS,
        "some are left for the work"
    );
    // The relay can reopen its connections.
    proxy.set(Mode::Cut);
    relay.line("PostgreSQL failed", SOON).await;
    proxy.set(Mode::Forward);
    world.commit_many(200, 10).await;
    consumer.until(300).await;
    healthy(port).await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean(), "{report}");
    drop(clients);
}

#[tokio::test]
async fn two_thousand_idle_clients_of_the_admin_port_keep_nobody_from_the_work() {
    withstands("").await;
}

#[tokio::test]
async fn two_thousand_half_sent_requests_keep_nobody_from_the_work() {
    withstands("GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
}

#[tokio::test]
async fn two_thousand_clients_that_never_read_their_answer_keep_nobody_from_the_work() {
    withstands("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
}

/// A slow client has limited time, and a limited request.
#[tokio::test]
async fn a_client_that_says_nothing_or_too_much_is_closed() {
    let world = world().await;
    let port = test_support::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let _relay = world.relay(&[("OUTBOXD__ADMIN__LISTEN", &listen)]);
    eventually("/livez", SOON, async || get(port, "/livez").await).await;

    let half = "GET /metrics HTTP/1.1\r\nHost: x\r\n";
    for head in ["", half] {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(SOON, client.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "{head:?}: still open");
    }
    let mut endless = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let line = "X: ".to_owned() + &"x".repeat(1000) + "\r\n";
    endless.write_all(half.as_bytes()).await.unwrap();
    let refused = async { while endless.write_all(line.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(SOON, refused)
        .await
        .expect("a head has an end");
    let (status, _) = get(port, "/livez").await.unwrap();
    assert_eq!(status, 200);
}
