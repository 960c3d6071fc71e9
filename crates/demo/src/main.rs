//! `cargo xtask demo`: shows the whole product with injected faults, and proves the result with a ledger.

mod payments;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use checker::{Committed, Delivered, Ledger, sha256};
use clap::Parser;
use test_support::{
    Daemon, Postgres, RabbitMq, Recorder, Result, SOON, amqp, commits::query_ids, drained,
};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use payments::{Paid, Payments};

#[derive(Parser)]
#[command(bin_name = "cargo xtask demo")]
struct Args {
    /// Duration of the writing
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    seconds: u64,
}

const WRITERS: usize = 4;
const CUSTOMERS: i32 = 50;

#[tokio::main]
async fn main() -> Result<()> {
    demo(&Args::parse()).await
}

struct Shop {
    url: String,
    committed: Mutex<Vec<Committed>>,
    rolled_back: Mutex<Vec<Uuid>>,
    closing: AtomicBool,
}

async fn demo(args: &Args) -> Result<()> {
    let began = Instant::now();
    let say = |text: &str| println!("{:>6.1}s  {text}", began.elapsed().as_secs_f64());
    let (postgres, rabbitmq) = tokio::join!(Postgres::start(), RabbitMq::start());
    let (postgres, mut rabbitmq) = (postgres?, rabbitmq?);
    say(&format!(
        "PostgreSQL listens on port {}, RabbitMQ on port {}; both private to this demo",
        postgres.port(),
        rabbitmq.port()
    ));

    postgres
        .execute(
            "postgres",
            "CREATE ROLE shop LOGIN CREATEROLE PASSWORD 'shop'",
        )
        .await?;
    postgres.create_database("shop", "shop").await?;
    let owner = postgres.url_for("shop", "shop", "shop");
    migrate(&owner).await?;
    let sql = std::fs::read_to_string("deploy/postgres/roles.sql")?;
    postgres.psql("shop", "shop", "shop", &sql)?;
    let tables = format!(
        "CREATE TABLE customer (id int PRIMARY KEY, ordered bigint NOT NULL DEFAULT 0); \
         INSERT INTO customer SELECT generate_series(0, {CUSTOMERS} - 1); \
         CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL REFERENCES customer, \
                              cents int NOT NULL)"
    );
    postgres.psql("shop", "shop", "shop", &tables)?;
    postgres
        .execute(
            "shop",
            "CREATE ROLE writer LOGIN PASSWORD 'writer' IN ROLE outbox_producer; \
             CREATE ROLE relay LOGIN PASSWORD 'relay' IN ROLE outbox_relay; GRANT INSERT ON orders TO writer; \
             GRANT SELECT, UPDATE ON customer TO writer",
        )
        .await?;
    say(
        "migrated the service's database with `outboxd migrate`; a writer may insert events, a relay may send them",
    );

    let channel = amqp::channel(&rabbitmq.url("/")).await?;
    amqp::exchange(&channel, "events").await?;
    amqp::queue_with(&channel, "orders", &[]).await?;
    amqp::bind_key(&channel, "events", "orders", "customer.#").await?;
    let consumer = Recorder::<Delivered>::start(&rabbitmq.url("/"), "orders");
    let payments = Payments::start(&postgres, &rabbitmq).await?;
    rabbitmq.remember().await?;
    say(
        "two payment services consume the same events: one uses the inbox, the other applies every delivery",
    );
    let env = vec![
        (
            "DATABASE_URL".to_owned(),
            postgres.url_for("relay", "relay", "shop"),
        ),
        ("AMQP_URL".to_owned(), rabbitmq.url("/")),
        ("OUTBOXD__BROKER__DECLARE".to_owned(), "true".to_owned()),
        ("OUTBOXD__ADMIN__LISTEN".to_owned(), "off".to_owned()),
        ("OUTBOXD__LOG__FORMAT".to_owned(), "json".to_owned()),
    ];
    let outboxd = test_support::outboxd()?;
    let relay = || Daemon::start(&outboxd, &["run"], &env);
    let (mut first, mut second) = (relay()?, relay()?);
    first.line("connected to both servers", SOON).await;
    second.line("connected to both servers", SOON).await;
    say(&format!(
        "two relays run: processes {} and {}",
        first.pid(),
        second.pid()
    ));

    let shop = Arc::new(Shop {
        url: postgres.url_for("writer", "writer", "shop"),
        committed: Mutex::default(),
        rolled_back: Mutex::default(),
        closing: AtomicBool::new(false),
    });
    let mut writers = JoinSet::new();
    for n in 0..WRITERS {
        writers.spawn(write(Arc::clone(&shop), n));
    }
    say(&format!(
        "{WRITERS} writers commit orders with their events; every eighth transaction is rolled back"
    ));

    let part = Duration::from_secs(args.seconds.max(6)) / 6;
    tokio::time::sleep(part).await;
    second.kill().await?;
    say(&format!(
        "SIGKILL to relay {}, in the middle of its work ({} delivered so far)",
        second.pid(),
        consumer.len()
    ));
    tokio::time::sleep(part).await;
    rabbitmq.kill().await;
    say(&format!(
        "SIGKILL to RabbitMQ ({} delivered so far); the writers continue to commit",
        consumer.len()
    ));
    tokio::time::sleep(part).await;
    rabbitmq.restart().await?;
    say("RabbitMQ is back");
    tokio::time::sleep(part / 2).await;
    payments.cut_the_network().await;
    say(
        "the network between the payment services and RabbitMQ was cut: unacknowledged payments are redelivered",
    );
    tokio::time::sleep(part).await;
    first.kill().await?;
    say(&format!(
        "SIGKILL to relay {} as well: no relay runs now, and the lag grows",
        first.pid()
    ));
    tokio::time::sleep(part).await;
    let mut third = relay()?;
    say(&format!("a new relay starts: process {}", third.pid()));
    tokio::time::sleep(part).await;
    shop.closing.store(true, Ordering::Relaxed);
    while let Some(result) = writers.join_next().await {
        result??;
    }
    let stopped = Instant::now();
    let client = postgres.connect("shop").await?;
    drained(&client).await;
    say(&format!(
        "the writers have stopped; the outbox was empty {:.1} s later",
        stopped.elapsed().as_secs_f64()
    ));
    let committed = shop.committed();
    let ids = committed.iter().map(|event| event.message_id);
    consumer.missing(ids).await;
    let args = [
        "replay",
        "--type",
        "order_placed",
        "--rate",
        "1000000",
        "--why",
        "demo",
        "--by",
        "demo",
        "--key",
    ];
    for customer in ["7", "8", "9"] {
        let mut command = tokio::process::Command::new(test_support::outboxd()?);
        let output = command
            .args(args)
            .arg(format!("customer/{customer}"))
            .envs(env.iter().cloned())
            .output()
            .await?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
    }
    drained(&client).await;
    say("replayed every order of three customers with `outboxd replay`");
    third.terminate()?;
    let status = third.ended(SOON).await?;
    say(&format!("SIGTERM to relay {}: {status}", third.pid()));

    let paid = payments.finish(&rabbitmq).await?;
    prove(&client, &shop, &consumer, &paid).await
}

async fn migrate(url: &str) -> Result<()> {
    let output = tokio::process::Command::new(test_support::outboxd()?)
        .args(["migrate", "--set", &format!("database.url={url}")])
        .output()
        .await?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(())
}

/// A service: one transaction contains the business change and its event.
async fn write(shop: Arc<Shop>, writer: usize) -> Result<()> {
    let (mut client, connection) = tokio_postgres::connect(&shop.url, NoTls).await?;
    tokio::spawn(connection);
    let mut n: i32 = 0;
    while !shop.closing.load(Ordering::Relaxed) {
        n += 1;
        let customer = (n * 7 + i32::try_from(writer)? * 13) % CUSTOMERS;
        let cents = n % 9000 + 100;
        let transaction = client.transaction().await?;
        // Update the customer's row first: its lock makes the events of one customer commit in the order of their
        // positions.
        transaction
            .execute(
                "UPDATE customer SET ordered = ordered + $2 WHERE id = $1",
                &[&customer, &i64::from(cents)],
            )
            .await?;
        transaction
            .execute(
                "INSERT INTO orders (customer, cents) VALUES ($1, $2)",
                &[&customer, &cents],
            )
            .await?;
        let event = outbox::Event::new("customer", "order_placed")
            .key(customer.to_string())
            .json(&serde_json::json!({ "customer": customer, "cents": cents, "writer": writer, "n": n }))?;
        let message_id = outbox::enqueue(&transaction, &event).await?;
        if n % 8 == 0 {
            transaction.rollback().await?;
            shop.rolled_back
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(message_id);
            continue;
        }
        transaction.commit().await?;
        shop.committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Committed {
                message_id,
                key: Some(customer.to_string()),
                // A producer may not read the outbox, so the position is added at the end.
                position: 0,
                body_sha256: sha256(event.body()),
            });
    }
    Ok(())
}

impl Shop {
    fn committed(&self) -> Vec<Committed> {
        self.committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn prove(
    client: &Client,
    shop: &Shop,
    consumer: &Recorder<Delivered>,
    paid: &Paid,
) -> Result<()> {
    let mut committed = shop.committed();
    let rows = client
        .query(
            "SELECT message_id, id, sent_at IS NOT NULL FROM outbox.message",
            &[],
        )
        .await?;
    let positions: std::collections::HashMap<Uuid, i64> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for entry in &mut committed {
        entry.position = positions
            .get(&entry.message_id)
            .copied()
            .unwrap_or(i64::MAX);
    }
    let ledger = Ledger {
        committed,
        delivered: consumer.seen(),
        dead: query_ids(client, "SELECT message_id FROM outbox.dead").await?,
        marked_sent: rows
            .iter()
            .filter(|row| row.get(2))
            .map(|row| row.get(0))
            .collect(),
    };
    let report = ledger.check();
    let orders: i64 = client
        .query_one("SELECT count(*) FROM orders", &[])
        .await?
        .get(0);
    let rolled_back = shop
        .rolled_back
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let ghosts = ledger
        .delivered
        .iter()
        .filter(|d| rolled_back.contains(&d.message_id))
        .count();
    println!();
    println!("  orders in the database              {orders}");
    println!("  events committed with them          {}", report.committed);
    println!(
        "  transactions rolled back            {}",
        rolled_back.len()
    );
    println!("  deliveries                          {}", report.delivered);
    println!(
        "  events lost                         {}",
        report.lost.len()
    );
    println!("  events of rolled back transactions  {ghosts}");
    println!(
        "  bodies altered                      {}",
        report.altered.len()
    );
    println!(
        "  first deliveries out of order       {}",
        report.reordered.len()
    );
    println!(
        "  marked sent but never delivered     {}",
        report.sent_without_delivery.len()
    );
    println!("  dead                                {}", report.dead);
    println!(
        "  duplicates, same message id         {} (three kills; at most 2000 for each kill are allowed)",
        report.duplicates
    );
    println!("  replayed on purpose                 {}", report.replayed);
    println!();
    let cents: i64 = client
        .query_one("SELECT sum(cents)::bigint FROM orders", &[])
        .await?
        .get(0);
    let off = |paid: i64| {
        if paid == cents {
            "exact".to_owned()
        } else {
            format!("{:+} cents", paid - cents)
        }
    };
    println!("  ordered                             {cents} cents");
    println!(
        "  paid by the service with the inbox  {} cents, {}",
        paid.exact,
        off(paid.exact)
    );
    println!(
        "  paid by the service without it      {} cents, {}",
        paid.naive,
        off(paid.naive)
    );
    println!();
    let whole = orders == i64::try_from(report.committed)?;
    if report.is_clean()
        && whole
        && ghosts == 0
        && report.dead == 0
        && report.duplicates <= 6000
        && paid.exact == cents
    {
        println!(
            "proved: every committed event arrived, in order within its key, under its own message id; each was paid once"
        );
        return Ok(());
    }
    Err(format!("the ledger does not add up: {report}").into())
}
