//! A worker and its connection to PostgreSQL.

use std::sync::{Arc, atomic::AtomicBool};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{dead_letter::DeadLetters, held::Held, session::Session, shared::Shared, turns::Turns};

pub(super) struct Worker<H> {
    pub shared: Arc<Shared<H>>,
    pub dead_letters: Arc<DeadLetters>,
    pub deliveries: mpsc::Receiver<Held>,
    pub stop: CancellationToken,
    /// Whether any message was acknowledged over this connection.
    pub settled: Arc<AtomicBool>,
    pub turns: Turns,
    /// If messages come one at a time, this reports that a message waits for a retry, so that later messages do not wait with
    /// it.
    pub waits: Option<CancellationToken>,
}

impl<H> Worker<H> {
    pub(super) async fn connected<'c>(
        &self,
        session: &'c mut Option<Session>,
    ) -> Result<&'c mut Session, String> {
        let usable = session.take().filter(|session| !session.client.is_closed());
        let connection = match usable {
            Some(connection) => connection,
            None => self.shared.session().await?,
        };
        Ok(session.insert(connection))
    }
}
