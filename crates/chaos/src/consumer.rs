//! A consumer whose business write is not idempotent by itself.

use std::time::Duration;

use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, Reply},
    inbox::Inbox,
};
use tokio_postgres::{Client, NoTls, Transaction};
use tokio_util::sync::CancellationToken;

/// Tables of its own. Nothing in them is unique: what keeps a row from being there twice is the inbox.
pub const TABLES: &str = "CREATE TABLE public.applied (message_id text NOT NULL); \
                          CREATE ROLE consumer LOGIN PASSWORD 'consumer' IN ROLE inbox_consumer; \
                          GRANT SELECT, INSERT ON public.applied TO consumer";

/// Runs until it is aborted.
pub async fn run(database_url: String, amqp_url: String, queue: &str) -> test_support::Result<()> {
    let options = ConsumerOptions {
        prefetch: 50,
        handlers: 2,
        max_attempts: 4,
        backoff_initial: Duration::from_millis(50),
        backoff_max: Duration::from_millis(200),
        ..ConsumerOptions::new(queue)
    };
    outbox::consumer::run(
        &amqp_url,
        move || connect(database_url.clone()),
        Inbox::new("chaos")?,
        options,
        Applier,
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

struct Applier;

impl Handler for Applier {
    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> Result<Reply, Failure> {
        let id = message.message_id().unwrap_or_default();
        let sql = "INSERT INTO public.applied (message_id) VALUES ($1)";
        transaction.execute(sql, &[&id]).await?;
        Ok(Reply::none())
    }
}
