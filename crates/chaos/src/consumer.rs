//! A consumer as a process of its own, to be killed: `chaos consume`. Its business write is not idempotent by itself.

use std::time::Duration;

use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, Reply},
    inbox::{Begun, Inbox, Operation, OperationError},
};
use tokio_postgres::{Client, NoTls, Transaction};
use tokio_util::sync::CancellationToken;

/// Tables of its own. Nothing in them is unique: what keeps a row from being there twice is the inbox.
pub const TABLES: &str = "CREATE TABLE public.applied (message_id text NOT NULL); \
                          CREATE TABLE public.provider (idempotency_key text NOT NULL); \
                          CREATE ROLE consumer LOGIN PASSWORD 'consumer' IN ROLE inbox_consumer; \
                          GRANT SELECT, INSERT ON public.applied, public.provider TO consumer";

/// Runs until it is killed.
pub async fn run(database_url: &str, amqp_url: &str, queue: &str) -> test_support::Result<()> {
    let options = ConsumerOptions {
        prefetch: 50,
        handlers: 2,
        max_attempts: 4,
        backoff_initial: Duration::from_millis(50),
        backoff_max: Duration::from_millis(200),
        ..ConsumerOptions::new(queue)
    };
    let url = database_url.to_owned();
    let handler = Applier {
        database_url: url.clone(),
    };
    outbox::consumer::run(
        amqp_url,
        move || connect(url.clone()),
        Inbox::new("chaos")?,
        options,
        handler,
        CancellationToken::new(),
    )
    .await?;
    Ok(())
}

async fn connect(url: String) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

struct Applier {
    database_url: String,
}

impl Handler for Applier {
    /// The body of a `keyed` message is the business key.
    fn operation(&self, message: &Message) -> Result<Operation, OperationError> {
        match message.type_() {
            "keyed" => message.operation_as(&String::from_utf8_lossy(&message.body)),
            _ => message.operation(),
        }
    }

    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> Result<Reply, Failure> {
        let id = message.message_id().unwrap_or_default();
        let sql = "INSERT INTO public.applied (message_id) VALUES ($1)";
        transaction.execute(sql, &[&id]).await?;
        match message.type_() {
            "charge" => self.charge(id).await,
            _ => Ok(Reply::none()),
        }
    }
}

impl Applier {
    /// Dies between the provider's answer and its record.
    async fn charge(&self, id: &str) -> Result<Reply, Failure> {
        let retry = |error: &dyn std::fmt::Display| Failure::Retry(error.to_string());
        let effects = Inbox::new("chaos-charges").map_err(|e| retry(&e))?;
        let operation = Operation::new(id, "charge", "", b"").map_err(|e| retry(&e))?;
        let client = connect(self.database_url.clone()).await?;
        match effects.begin_effect(&client, &operation).await {
            Ok(Begun::First) => {
                let sql = "INSERT INTO public.provider (idempotency_key) VALUES ($1)";
                client.execute(sql, &[&id]).await?;
                std::process::abort();
            }
            Ok(Begun::Duplicate(_)) => Ok(Reply::none()),
            Ok(Begun::InDoubt | Begun::Conflict) => Err(Failure::InDoubt(
                "the provider was asked, and its answer was never recorded".to_owned(),
            )),
            Err(error) => Err(retry(&error)),
        }
    }
}
