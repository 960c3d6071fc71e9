//! The questions to PostgreSQL that only `outboxd doctor` asks: about the server, and about the condition of the outbox.

use tokio_postgres::config::SslMode;

use super::{
    checks::{
        BLOAT, CLOCK, CONNECTED, CONNECTIONS, Check, DATABASE_VERSION, DEAD, HELD, HORIZON, LAG,
        MARKS, PRODUCERS, RELAYS, RELAYS_STATE, RETENTION, SETTINGS,
    },
    judge_outbox, judge_server,
    line::Line,
};
use crate::{
    config::{Config, Source},
    outbox::{
        OutboxError,
        condition::{self, Returned},
        held,
        server::{self, Server},
        session::Session,
        status::{self, RelaySeen, Status},
    },
};

/// Destinations that are counted.
const DESTINATIONS: i32 = 20;

/// The answers that the bundle and the broker's checks use, too.
#[derive(Default)]
pub struct Known {
    pub server: Option<Server>,
    pub status: Option<Status>,
    pub relays: Vec<RelaySeen>,
    pub returned: Option<Returned>,
}

/// Adds a line for each answer, or for its failure.
struct Asking<'a> {
    session: &'a Session,
    lines: &'a mut Vec<Line>,
}

impl Asking<'_> {
    async fn ask<T>(
        &mut self,
        check: &'static Check,
        question: impl Future<Output = Result<T, OutboxError>>,
        judge: impl FnOnce(&T) -> Line,
    ) -> Option<T> {
        if self.session.is_closed() {
            self.lines.push(Line::not_checked(
                check,
                "the connection to PostgreSQL ended",
            ));
            return None;
        }
        match question.await {
            Ok(answer) => {
                self.lines.push(judge(&answer));
                Some(answer)
            }
            Err(error) => {
                let line = Line::of_postgres(check, &error, self.lines);
                self.lines.push(line);
                None
            }
        }
    }
}

/// Asks everything, one question after the other.
pub async fn examine(
    session: &Session,
    source: &Source,
    config: &Config,
    lines: &mut Vec<Line>,
) -> Known {
    let mut asking = Asking { session, lines };
    let server = about_the_server(&mut asking, source, config).await;
    let sees_others = server.as_ref().is_some_and(|server| server.sees_others);
    about_what_holds_back(&mut asking, sees_others).await;
    let mut known = about_messages(&mut asking, config).await;
    known.server = server;
    known
}

async fn about_the_server(
    asking: &mut Asking<'_>,
    source: &Source,
    config: &Config,
) -> Option<Server> {
    let session = asking.session;
    let server = server::server(session);
    let server = asking
        .ask(&DATABASE_VERSION, server, judge_server::database_version)
        .await;
    if let Some(server) = &server {
        // It says more than that the connect succeeded.
        asking.lines.retain(|line| line.check != &CONNECTED);
        asking.lines.push(judge_server::connected(server));
        let database = &source.database;
        let mode = database.current().map(|config| config.get_ssl_mode());
        let verified = mode.is_ok_and(|mode| mode == SslMode::Require);
        let on_this_host = database.is_on_this_host();
        asking
            .lines
            .push(judge_server::database_tls(server, on_this_host, verified));
    }
    asking
        .ask(&CONNECTIONS, server::connections(session), |found| {
            judge_server::connections(found, config.relay.workers)
        })
        .await;
    asking
        .ask(&CLOCK, server::clocks(session), |found| {
            judge_server::clock(*found)
        })
        .await;
    asking
        .ask(&SETTINGS, server::harmful_settings(session), |found| {
            judge_server::settings(found)
        })
        .await;
    asking
        .ask(&PRODUCERS, condition::producers(session), |found| {
            judge_outbox::producers(found)
        })
        .await;
    server
}

async fn about_what_holds_back(asking: &mut Asking<'_>, sees_others: bool) {
    let session = asking.session;
    asking
        .ask(&MARKS, condition::marks(session), |found| {
            judge_outbox::marks(found, sees_others)
        })
        .await;
    asking
        .ask(&BLOAT, condition::tables(session), |found| {
            judge_outbox::bloat(found)
        })
        .await;
    asking
        .ask(&HORIZON, condition::horizon(session), |found| {
            judge_outbox::horizon(found, sees_others)
        })
        .await;
}

async fn about_messages(asking: &mut Asking<'_>, config: &Config) -> Known {
    let session = asking.session;
    let status = asking
        .ask(&LAG, status::status(session), judge_outbox::lag)
        .await;
    if let Some(status) = &status {
        let line = judge_outbox::dead(status);
        asking.lines.push(line);
    } else {
        asking
            .lines
            .push(Line::not_checked(&DEAD, "the state cannot be read (D701)"));
    }
    asking
        .ask(&HELD, held::destinations(session, DESTINATIONS), |found| {
            judge_outbox::held(found, DESTINATIONS as usize)
        })
        .await;
    let relays = asking
        .ask(&RELAYS, status::relays(session), |found| {
            judge_outbox::relays(found)
        })
        .await;
    asking.lines.push(match &relays {
        Some(found) => judge_outbox::relays_state(found, env!("CARGO_PKG_VERSION")),
        None => Line::not_checked(&RELAYS_STATE, "the relays cannot be read (D705)"),
    });
    let retention = &config.retention;
    asking
        .ask(&RETENTION, condition::oldest_sent(session), |oldest| {
            judge_outbox::retention(*oldest, retention.sent, retention.interval)
        })
        .await;
    Known {
        server: None,
        status,
        relays: relays.unwrap_or_default(),
        // Without an answer nothing is known of returns, which is not a fault of its own.
        returned: condition::returned(session).await.ok(),
    }
}
