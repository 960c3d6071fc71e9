//! What the workers of a consumer share, and how each gets its connection to PostgreSQL.

use std::{pin::Pin, time::Duration};

use tokio_postgres::Client;

use super::{ConsumerOptions, attempt::UNENDED, session::Session};
use crate::inbox::Inbox;

/// Within which a server must answer, or is left.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

type Connected = Pin<Box<dyn Future<Output = Result<Client, tokio_postgres::Error>> + Send>>;
pub(super) type Connect = Box<dyn Fn() -> Connected + Send + Sync>;

/// What the workers of a consumer share.
pub(super) struct Shared<H> {
    pub handler: H,
    pub inbox: Inbox,
    pub options: ConsumerOptions,
    pub connect: Connect,
}

impl<H> Shared<H> {
    /// A new connection for a worker.
    pub async fn session(&self) -> Result<Session, String> {
        let client = self.connect().await?;
        let session = Session::new(client, &self.inbox, self.options.prepared_statements);
        match tokio::time::timeout(ANSWER, session).await {
            Ok(session) => session.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {ANSWER:?}")),
        }
    }

    /// A new connection to PostgreSQL.
    pub async fn connect(&self) -> Result<Client, String> {
        match tokio::time::timeout(ANSWER, (self.connect)()).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no connection within {ANSWER:?}")),
        }
    }

    /// Whether a message may have ended its consumer. Where that cannot be found out, it may.
    pub async fn is_suspected(&self) -> bool {
        let look = async {
            let client = self.connect().await?;
            let any = self.inbox.any_ending_with(&client, UNENDED).await;
            any.map_err(|error| error.to_string())
        };
        match tokio::time::timeout(ANSWER * 2, look).await {
            Ok(Ok(any)) => any,
            Ok(Err(_)) | Err(_) => true,
        }
    }
}
