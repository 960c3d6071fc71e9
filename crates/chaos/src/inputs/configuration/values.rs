//! Keys and values. Bad inputs 1 to 4.

use super::judge::{Judge, SECRET};
use crate::{
    arena::Setup,
    row::{Outcome, Result, Row, rows},
};

pub const CASES: &[Row] = rows! { setup;
    1, "unknown key (file or environment)" => unknown_key(setup);
    2, "empty, zero or negative batch, poll or timeout" => out_of_range(setup);
    3, "confirm timeout not below the idle-in-transaction limit" => confirm_timeout(setup);
    4, "heartbeat 0 or below 5 s" => heartbeat(setup);
};

async fn unknown_key(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let guess = &["relay.worker: unknown key", "did you mean relay.workers?"];
    judge.refuses(&[("relay.worker", SECRET)], guess).await?;
    judge
        .refuses_file("relay.worker = \"hunter2\"\n", guess)
        .await?;
    let set = ["--set", "relay.worker=hunter2"];
    judge.refuses_with(&set, &[], guess).await?;
    judge
        .refuses_file(
            "[nothing]\nhere = \"hunter2\"\n",
            &["nothing.here: unknown key in"],
        )
        .await?;
    judge
        .refuses_file(
            "[[source]]\nname = \"a\"\nrelay.workers = 1\n",
            &["source.0.relay.workers: unknown key in"],
        )
        .await?;
    judge
        .refuses(
            &[("OUTBOXD__DATABASE__PASSWORD", SECRET)],
            &[
                "database.password: unknown key",
                "did you mean database.password_file?",
            ],
        )
        .await?;
    judge.takes(&[]).await?;
    Ok(judge.outcome())
}

async fn out_of_range(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let whole = "must be a whole number from 1 to 10000";
    let duration = "must be a duration from";
    for (key, right, zero, negative) in [
        ("relay.batch_size", whole, "0", "-5"),
        ("relay.batch_bytes", "must be a size from", "0", "-1KiB"),
        ("relay.poll_interval", duration, "0s", "-5s"),
        ("relay.confirm_timeout", duration, "0s", "-5s"),
        ("relay.shutdown_grace", duration, "0s", "-5s"),
        ("database.connect_timeout", duration, "0s", "-5s"),
        ("database.statement_timeout", duration, "0s", "-5s"),
        ("database.lock_timeout", duration, "0s", "-5s"),
        (
            "database.idle_in_transaction_timeout",
            duration,
            "0s",
            "-5s",
        ),
        ("broker.connect_timeout", duration, "0s", "-5s"),
    ] {
        for value in ["", "0", zero, negative] {
            let named = format!("{key}: \"{value}\"");
            judge.refuses(&[(key, value)], &[&named, right]).await?;
        }
    }
    for (text, says) in [
        ("relay.batch_size = -5", "relay.batch_size: \"-5\""),
        ("relay.poll_interval = 0", "relay.poll_interval: \"0\""),
        (
            "relay.confirm_timeout = \"\"",
            "relay.confirm_timeout: \"\"",
        ),
    ] {
        judge.refuses_file(text, &[says]).await?;
    }
    Ok(judge.outcome())
}

async fn confirm_timeout(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let grace = ("relay.shutdown_grace", "10m");
    for timeout in ["48s", "55s", "60s", "5m"] {
        let settings = [("relay.confirm_timeout", timeout), grace];
        let says = [
            "relay.confirm_timeout: ",
            "must be below four fifths of database.idle_in_transaction_timeout (48s of 1m)",
        ];
        judge.refuses(&settings, &says).await?;
    }
    judge
        .refuses(
            &[("database.idle_in_transaction_timeout", "30s")],
            &["must be below four fifths of database.idle_in_transaction_timeout (24s of 30s)"],
        )
        .await?;
    judge
        .refuses_file(
            "[[source]]\nname = \"a\"\ndatabase.idle_in_transaction_timeout = \"10s\"\n",
            &["must be below four fifths of source.0.database.idle_in_transaction_timeout (8s of 10s)"],
        )
        .await?;
    judge
        .takes(&[("relay.confirm_timeout", "47s"), grace])
        .await?;
    Ok(judge.outcome())
}

async fn heartbeat(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for value in ["0", "0s", "1s", "4s", "4999ms"] {
        let says = ["broker.heartbeat: ", "must be a duration from 5s"];
        judge.refuses(&[("broker.heartbeat", value)], &says).await?;
    }
    judge.takes(&[("broker.heartbeat", "5s")]).await?;
    Ok(judge.outcome())
}
