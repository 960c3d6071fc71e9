//! The servers start, die, start again, and leave nothing behind.

use std::time::Instant;

use test_support::{Postgres, RabbitMq, Result, SOON, amqp, eventually};

fn processes(of: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(of))
        })
        .count()
}

#[tokio::test]
async fn postgresql_starts_dies_comes_back_and_leaves_nothing() {
    let began = Instant::now();
    let mut postgres = Postgres::start().await.unwrap();
    eprintln!("PostgreSQL started in {:?}", began.elapsed());
    let place = postgres.folder().display().to_string();
    postgres
        .execute(
            "postgres",
            "CREATE TABLE t (a int); INSERT INTO t VALUES (7)",
        )
        .await
        .unwrap();
    postgres.stop().await.unwrap();
    assert!(postgres.connect("postgres").await.is_err());
    postgres.restart().await.unwrap();
    postgres.kill().await;
    assert!(postgres.connect("postgres").await.is_err());
    postgres.restart().await.unwrap();
    assert_eq!(
        postgres
            .psql("postgres", "postgres", "postgres", "SELECT a FROM t;")
            .unwrap(),
        "7\n"
    );
    assert!(
        postgres
            .psql("postgres", "postgres", "postgres", "SELECT 1/0;")
            .is_err()
    );
    assert!(processes(&place) > 0);
    drop(postgres);
    eventually("every process to end", SOON, async || {
        (processes(&place) == 0).then_some(())
    })
    .await;
}

/// The number of durable bindings of a durable queue.
async fn bind(url: &str) -> Result<usize> {
    const BINDINGS: usize = 50;
    let channel = amqp::channel(url).await?;
    amqp::queue_with(&channel, "q", &[]).await?;
    for n in 0..BINDINGS {
        amqp::bind_key(&channel, "amq.topic", "q", &n.to_string()).await?;
    }
    Ok(BINDINGS)
}

#[tokio::test]
async fn rabbitmq_starts_dies_comes_back_and_leaves_nothing() {
    let began = Instant::now();
    let mut broker = RabbitMq::start().await.unwrap();
    eprintln!("RabbitMQ started in {:?}", began.elapsed());
    let name = broker.folder().display().to_string();
    broker
        .create_vhosts(&["a".to_owned(), "b".to_owned()])
        .await
        .unwrap();
    let url = broker.url("b");
    let bound = bind(&url).await.unwrap();
    broker.remember().await.unwrap();
    broker.kill().await;
    broker.restart().await.unwrap();
    let words = ["list_bindings", "-q", "-p", "b", "source_name"];
    let listed = broker.ctl(&words).await.unwrap();
    let kept = listed.lines().filter(|line| *line == "amq.topic").count();
    assert_eq!(kept, bound, "bindings are there after a SIGKILL");
    broker.stop().await.unwrap();
    broker.restart().await.unwrap();
    lapin::Connection::connect(&url, lapin::ConnectionProperties::default())
        .await
        .unwrap();
    assert!(processes(&name) > 0);
    drop(broker);
    eventually("every process to end", SOON, async || {
        (processes(&name) == 0).then_some(())
    })
    .await;
}
