//! A real process, a real PostgreSQL, and a network that loses answers.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use test_support::{Daemon, Mode, Postgres, Proxy, eventually};
use tokio_postgres::Client;

/// Long enough for a slow machine.
const SOON: Duration = Duration::from_secs(180);

struct World {
    postgres: Postgres,
    db: Client,
}

impl World {
    async fn start() -> Self {
        let postgres = Postgres::start().await.unwrap();
        postgres
            .create_database("payments", "postgres")
            .await
            .unwrap();
        for file in [
            "migrations/outbox/0001_outbox.sql",
            "deploy/postgres/roles.sql",
            "migrations/inbox/0001_inbox.sql",
            "deploy/postgres/inbox_roles.sql",
            "examples/commands/payments.sql",
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../..")
                .join(file);
            let sql = std::fs::read_to_string(path).unwrap();
            postgres.execute("payments", &sql).await.unwrap();
        }
        let db = postgres.connect("payments").await.unwrap();
        Self { postgres, db }
    }

    /// The service and its address.
    async fn service(&self) -> (Daemon, SocketAddr) {
        let url = self
            .postgres
            .url_for("payments_api", "payments", "payments");
        let env = [
            ("DATABASE_URL".to_owned(), url),
            ("LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_payments-api"));
        let service = Daemon::start(&binary, &[], &env).unwrap();
        let line = service.line("listening on ", SOON).await;
        let address = line.rsplit("listening on ").next().unwrap().trim();
        (service, address.parse().unwrap())
    }

    async fn count(&self, of: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {of}");
        self.db.query_one(&sql, &[]).await.unwrap().get(0)
    }

    /// Exactly one payment, with exactly one event.
    async fn paid_once(&self) {
        assert_eq!(self.count("payment").await, 1);
        assert_eq!(self.count("outbox.message").await, 1);
    }
}

struct Answer {
    status: u16,
    replayed: bool,
    location: Option<String>,
    body: String,
}

/// `POST /payments`; `None` when no answer came back within `bound`.
async fn pay(address: SocketAddr, key: &'static str, bound: Duration) -> Option<Answer> {
    let sending = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(bound))
            .http_status_as_error(false)
            .build()
            .into();
        let mut response = agent
            .post(format!("http://{address}/payments"))
            .header("x-account", "alice")
            .header("idempotency-key", key)
            .send_json(serde_json::json!({ "order_id": "1042", "cents": 1999 }))
            .ok()?;
        let text = |name: &str| {
            let value = response.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        Some(Answer {
            status: response.status().as_u16(),
            replayed: text("idempotent-replayed").is_some(),
            location: text("location"),
            body: response.body_mut().read_to_string().ok()?,
        })
    });
    sending.await.unwrap()
}

#[tokio::test]
async fn a_lost_response_is_given_again() {
    let world = World::start().await;
    let (mut service, address) = world.service().await;
    let network = Proxy::start(address).await.unwrap();
    let through: SocketAddr = ([127, 0, 0, 1], network.port()).into();
    network.set(Mode::StallAnswers);
    let first = tokio::spawn(pay(through, "\"k\"", SOON));
    eventually("the payment", SOON, async || {
        (world.count("payment").await == 1).then_some(())
    })
    .await;
    network.set(Mode::Cut);
    assert!(first.await.unwrap().is_none(), "the answer was lost");

    // The client does not know the outcome, so it sends the request again.
    let again = pay(address, "\"k\"", SOON).await.unwrap();
    assert_eq!((again.status, again.replayed), (201, true));
    let sql = "SELECT '/payments/' || id FROM payment";
    let location: String = world.db.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(again.location, Some(location));
    world.paid_once().await;

    // The answer is the same after a restart and from another instance: no state is in memory.
    service.terminate().unwrap();
    assert!(service.ended(SOON).await.unwrap().success());
    let (_other, address) = world.service().await;
    let third = pay(address, "k", SOON).await.unwrap();
    assert_eq!((third.replayed, &third.body), (true, &again.body));
    world.paid_once().await;
}

#[tokio::test]
async fn a_service_that_dies_half_way_leaves_nothing_and_the_retry_pays() {
    let world = World::start().await;
    let (mut service, address) = world.service().await;
    // The payment is written, and the event waits for this lock.
    let mut blocker = world.postgres.connect("payments").await.unwrap();
    let lock = blocker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE outbox.message IN EXCLUSIVE MODE")
        .await
        .unwrap();
    let first = tokio::spawn(pay(address, "k", SOON));
    let sessions = "pg_stat_activity WHERE usename = 'payments_api'";
    let waiting = format!("{sessions} AND wait_event_type = 'Lock'");
    eventually("the handler to be half-way", SOON, async || {
        (world.count(&waiting).await == 1).then_some(())
    })
    .await;
    service.kill().await.unwrap();
    assert!(first.await.unwrap().is_none());
    lock.rollback().await.unwrap();
    eventually("its session to end", SOON, async || {
        (world.count(sessions).await == 0).then_some(())
    })
    .await;
    assert_eq!(world.count("payment").await, 0);

    let (_service, address) = world.service().await;
    let retry = pay(address, "k", SOON).await.unwrap();
    assert_eq!((retry.status, retry.replayed), (201, false));
    world.paid_once().await;
}
