//! A misbehaving client of the admin port. Row H7 of the fault matrix has thousands of them.

use test_support::{eventually, probe::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::world::{SOON, world};

/// A slow client has limited time, and a limited request.
#[tokio::test]
async fn a_client_that_says_nothing_or_too_much_is_closed() {
    let world = world().await;
    let (_relay, port) = world.watched(&[]);
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

/// A web server that has the port says that all is well.
#[tokio::test]
async fn another_program_on_the_port_is_not_taken_for_the_relay() {
    let world = world().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    let _serving = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let answer = "HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 3\r\n\r\nok\n";
            let _ = client.read(&mut [0; 1024]).await;
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    for args in [&["healthcheck"] as &[&str], &["healthcheck", "--live"]] {
        let run = world
            .outboxd(args, &[("OUTBOXD__ADMIN__LISTEN", &listen)])
            .await;
        run.ends(1, &["another program listens there", &listen]);
    }
}
