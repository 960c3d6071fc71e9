//! Applies each payment message once, even if the broker redelivers it. You can run any number of copies. The order of
//! a key is kept within a copy; across copies only with a single active consumer.
//!
//! The runner of the crate `outbox` does everything around the handlers: claim → handler → commit → ack, retries, dead
//! letters, reconnects and the stop.

use std::{env, error::Error, time::Duration};

use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, Reply, run},
    inbox::{Begun, Inbox, InboxError, Operation, OperationError},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::{Client, NoTls, Transaction};
use tokio_util::sync::CancellationToken;

struct Payments {
    database: String,
    provider: String,
    /// External effects are separate operations: the runner holds the message's claim until its end, but an effect's
    /// beginning must be committed earlier.
    effects: Inbox,
}

#[derive(Deserialize)]
struct Payment {
    order: String,
    cents: i64,
}

#[derive(Deserialize)]
struct Move {
    order: String,
    address: String,
}

impl Handler for Payments {
    /// The business key if there is one: a fact keeps it when it is published again under another message id.
    fn operation(&self, message: &Message) -> Result<Operation, OperationError> {
        let operation = match message.text_header("payment") {
            Some(payment) => message.operation_as(&payment)?,
            None => message.operation()?,
        };
        Ok(match (message.type_(), message.key(), message.position()) {
            ("order_moved", Some(entity), Some(position)) => operation.guarded(entity, position),
            _ => operation,
        })
    }

    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> Result<Reply, Failure> {
        match message.type_() {
            "order_placed" => order_placed(message, transaction).await,
            "order_moved" => order_moved(message, transaction).await,
            "payment_requested" => self.payment_requested(message, transaction).await,
            other => Err(Failure::Reject(format!("no handler for the type {other}"))),
        }
    }
}

async fn order_placed(message: &Message, transaction: &Transaction<'_>) -> Result<Reply, Failure> {
    let Payment { order, cents } = parse(message)?;
    let sql = "INSERT INTO payment (order_id, cents) VALUES ($1, $2)";
    transaction.execute(sql, &[&order, &cents]).await?;
    Reply::json(&json!({ "order": order, "paid": cents }))
}

async fn order_moved(message: &Message, transaction: &Transaction<'_>) -> Result<Reply, Failure> {
    let Move { order, address } = parse(message)?;
    if message.key().is_none() || message.position().is_none() {
        let error = "without outbox-key and outbox-position the newest address is unknown";
        return Err(Failure::Reject(error.to_owned()));
    }
    let sql = "INSERT INTO address (order_id, address) VALUES ($1, $2) \
               ON CONFLICT (order_id) DO UPDATE SET address = excluded.address";
    transaction.execute(sql, &[&order, &address]).await?;
    Reply::json(&json!({ "order": order, "address": address }))
}

impl Payments {
    /// While this copy holds the claim, another copy waits for it and then finds the record. If this copy dies,
    /// PostgreSQL releases the claim, and the next copy finds a beginning without a record: in doubt.
    async fn payment_requested(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> Result<Reply, Failure> {
        let Payment { order, cents } = parse(message)?;
        let operation = self.operation(message);
        let operation = operation.map_err(|error| Failure::Reject(error.to_string()))?;
        let client = connect(self.database.clone()).await?;
        match self.effects.begin_effect(&client, &operation).await {
            Ok(Begun::First) => {}
            Ok(Begun::Duplicate(stored)) => {
                return Reply::json(&stored.json::<Value>().map_err(again)?);
            }
            Ok(Begun::Conflict) => return Err(Failure::Reject("another charge".to_owned())),
            Ok(Begun::InDoubt) => {
                let error = "a charge was begun and not recorded";
                return Err(Failure::InDoubt(error.to_owned()));
            }
            Err(error) => return Err(again(error)),
        }
        // The intent is committed. From here on a crash can leave one charge, but not cause a second one.
        let request = (operation.key().to_owned(), order.clone(), cents);
        let charge = ask_provider(format!("{}/charges", self.provider), request).await;
        // After any error the card may have been charged.
        let charge = charge.map_err(|error| Failure::InDoubt(format!("the provider: {error}")))?;
        let sql = "INSERT INTO charge (order_id, cents, provider_id) VALUES ($1, $2, $3)";
        transaction.execute(sql, &[&order, &cents, &charge]).await?;
        let outcome = json!({ "order": order, "charge": charge });
        let recorded = self
            .effects
            .record_effect(transaction, operation.key(), &outcome);
        recorded.await.map_err(again)?;
        Reply::json(&outcome)
    }
}

fn again(error: InboxError) -> Failure {
    Failure::Retry(error.to_string())
}

fn parse<T: DeserializeOwned>(message: &Message) -> Result<T, Failure> {
    serde_json::from_slice(&message.body)
        .map_err(|error| Failure::Reject(format!("the body does not match its type: {error}")))
}

type Problem = Box<dyn Error + Send + Sync>;

async fn ask_provider(url: String, request: (String, String, i64)) -> Result<String, Problem> {
    #[derive(Deserialize)]
    struct Charge {
        id: String,
    }
    let (key, order, cents) = request;
    let ask = move || {
        let body = json!({ "order": order, "cents": cents }).to_string();
        let limit = Some(Duration::from_secs(10));
        let agent = ureq::Agent::config_builder().timeout_global(limit).build();
        let mut response = ureq::Agent::new_with_config(agent)
            .post(&url)
            .header("content-type", "application/json")
            .header("idempotency-key", &key)
            .send(&body)?;
        let charge: Charge = serde_json::from_str(&response.body_mut().read_to_string()?)?;
        Ok(charge.id)
    };
    tokio::task::spawn_blocking(ask).await?
}

async fn connect(database: String) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&database, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::main]
async fn main() -> Result<(), Problem> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let stop = CancellationToken::new();
    let (mut terminated, stopping) = (signal(SignalKind::terminate())?, stop.clone());
    tokio::spawn(async move {
        terminated.recv().await;
        stopping.cancel();
    });
    let database = env::var("DATABASE_URL")?;
    let payments = Payments {
        database: database.clone(),
        provider: env::var("PROVIDER_URL")?,
        effects: Inbox::new("payments at the provider")?,
    };
    let options = ConsumerOptions {
        max_attempts: 5,
        backoff_initial: Duration::from_millis(100),
        backoff_max: Duration::from_secs(5),
        ..ConsumerOptions::new(env::var("QUEUE")?)
    };
    let inbox = Inbox::new("payments")?;
    let connect = move || connect(database.clone());
    // The runner prunes only its own inbox.
    let (effects, retention, connecting) =
        (payments.effects.clone(), options.retention, connect.clone());
    tokio::spawn(async move { effects.forget_expired(retention, connecting, |c| c).await });
    Ok(run(
        &env::var("AMQP_URL")?,
        connect,
        inbox,
        options,
        payments,
        stop,
    )
    .await?)
}
