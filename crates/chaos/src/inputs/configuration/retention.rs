//! The consumer's options. Bad input 17.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, Reply},
    inbox::Inbox,
};
use tokio_postgres::Transaction;
use tokio_util::sync::CancellationToken;

use super::judge::SECRET;
use crate::{
    arena::{SOON, Setup},
    row::{Outcome, Result, Row, expect, rows},
};

pub const CASES: &[Row] = rows! { setup;
    17, "inbox retention shorter than the redelivery horizon" => inbox_retention(setup);
};

struct Never;

impl Handler for Never {
    async fn handle(
        &self,
        _: &Message,
        _: &Transaction<'_>,
    ) -> std::result::Result<Reply, Failure> {
        Err(Failure::Retry("never called".to_owned()))
    }
}

/// The consumer is a library: a service chooses its exit code, and gets an error before anything is opened.
async fn inbox_retention(_: &Setup) -> Result<Outcome> {
    let horizon = Duration::from_secs(7 * 24 * 3600);
    let nowhere = "amqp://relay:hunter2@127.0.0.1:1";
    for retention in [Duration::ZERO, horizon / 2, horizon] {
        let options = ConsumerOptions {
            retention,
            redelivery_horizon: horizon,
            ..ConsumerOptions::new("work")
        };
        let asked = Arc::new(AtomicBool::new(false));
        let asks = Arc::clone(&asked);
        let run = outbox::consumer::run(
            nowhere,
            move || {
                asks.store(true, Ordering::Relaxed);
                async {
                    let nobody = "host=127.0.0.1 port=1 user=u";
                    let (client, _) =
                        tokio_postgres::connect(nobody, tokio_postgres::NoTls).await?;
                    Ok::<_, tokio_postgres::Error>(client)
                }
            },
            Inbox::new("refused")?,
            options,
            Never,
            CancellationToken::new(),
        );
        let ended = tokio::time::timeout(SOON, run).await;
        let said = match ended {
            Ok(Err(error)) => error.to_string(),
            _ => return Err(format!("{retention:?} was taken; the horizon is {horizon:?}").into()),
        };
        expect(
            said.starts_with("retention: must be longer than redelivery_horizon")
                && !said.contains(SECRET),
            || format!("it says {said}"),
        )?;
        expect(!asked.load(Ordering::Relaxed), || {
            "it connected before it refused".into()
        })?;
    }
    let mut outcome = Outcome::default();
    outcome.notes.push(
        "3 refused by the consumer's runner, before it connects; the exit code is the service's"
            .to_owned(),
    );
    Ok(outcome)
}
