//! A server that nobody wrote in good faith. H6.

use std::{net::SocketAddr, time::Duration};

use test_support::{Proxy, eventually, liar};

use super::bounds::bounded;
use crate::{
    arena::{Arena, SOON, Setup, WINDOW},
    row::{Outcome, Result, Row, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    6, "a PostgreSQL that lies: rows of 2 GB" => endless_rows(setup);
};

async fn endless_rows(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let honest = ([127, 0, 0, 1], arena.postgres.port()).into();
    let database = arena.database_proxy().await?;
    arena.set("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "1s");
    let mut scene = Scene::of(arena).await?;
    let (liar, serving) = liar::endless_postgres(ENDLESS).await?;
    instead(&database, liar).await;
    // So that whatever it takes is taken.
    eventually("a few attempts", SOON, async || {
        let lines = scene.relay.lines();
        let failed = lines
            .iter()
            .filter(|line| line.contains("PostgreSQL failed"));
        (failed.count() >= 4).then_some(())
    })
    .await;
    serving.abort();
    instead(&database, honest).await;
    scene.endured(AGAIN, WINDOW).await?;
    scene.flow.note(bounded(&scene.relay)?);
    scene.end().await
}

const AGAIN: Duration = Duration::from_secs(20);
/// Of a row that is announced to be of 2 GB, on each of five sessions. What a server sends within a statement's time-out is
/// kept until then, however much it is: the driver has no bound of its own.
const ENDLESS: usize = 16 << 20;

/// Whoever connects gets there; nobody stays where he is.
async fn instead(proxy: &Proxy, address: SocketAddr) {
    proxy.retarget(address);
    proxy.sever(SOON).await;
}
