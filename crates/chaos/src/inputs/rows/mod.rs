//! Rows: the message is dead with its reason, the relay never crashes, other keys never wait. Bad inputs 19 to 30.

mod specimens;
mod table;

use test_support::probe;
use uuid::Uuid;

use self::{
    specimens::{
        CONTROL_CHARACTERS, EMPTY,
        End::{Dead, Delivered, Waits},
        HEADERS, INTEGERS, NOT_ALLOWED, NOT_UTF8, STRANGE_JSON, TOO_LONG,
    },
    table::{Table, judged},
};
use super::stage::MAX_PAYLOAD;
use crate::{
    arena::{SOON, Setup},
    row::{Outcome, Result, Row, expect, rows},
};

pub const CASES: &[Row] = rows! { setup;
    19, "routing key, exchange, type or header name over 255 bytes" => judged(setup, "b19", TOO_LONG);
    20, "exchange outside the allow-list, where one is set" => allow_list(setup);
    21, "control characters in the key" => judged(setup, "b21", CONTROL_CHARACTERS);
    22, "far-future available_at waits, and shows in status" => far_future(setup);
    23, "attempts overflow saturates" => attempts_overflow(setup);
    24, "payload over the limit (size checked before the payload is fetched)" => payload_over_the_limit(setup);
    25, "empty body is valid" => judged(setup, "b25", EMPTY);
    26, r"JSON with \u0000, 1e400, duplicate keys, 23-digit integers, 10,000 levels deep: bytes pass through unchanged" => judged(setup, "b26", STRANGE_JSON);
    27, "bytes that are not UTF-8: shipped as they are" => judged(setup, "b27", NOT_UTF8);
    28, "headers that are not an object, nested deeper than 4, larger than a frame, empty or overlong names, names the relay reserves (x-*, CC, BCC, its own)" => judged(setup, "b28", HEADERS);
    29, "integers beyond 64 bits" => judged(setup, "b29", INTEGERS);
    30, "CR/LF in anything that reaches a log is escaped" => line_breaks(setup);
};

async fn allow_list(setup: &Setup) -> Result<Outcome> {
    let mut table = Table::new(setup, "b20").await?;
    let list = ("OUTBOXD__ROUTING__ALLOWED_EXCHANGES", "audit");
    table.apart("allow_list", list).await?;
    for (columns, end) in NOT_ALLOWED {
        table.insert(columns, *end).await?;
    }
    table.judged().await
}

async fn far_future(setup: &Setup) -> Result<Outcome> {
    const TIMES: [&str; 4] = [
        "available_at = clock_timestamp() + interval '100 years'",
        "available_at = '294276-12-31 23:59:59+00'",
        "available_at = 'infinity'",
        "available_at = clock_timestamp() + interval '1 hour', aggregate_id = NULL",
    ];
    let mut table = Table::new(setup, "b22").await?;
    for time in TIMES {
        table.insert(time, Waits).await?;
    }
    // What has been due for ever is due.
    table
        .insert("available_at = '-infinity'", Delivered)
        .await?;
    for row in table.written.iter().filter(|row| matches!(row.end, Waits)) {
        table.ended(row).await?;
    }
    let status: serde_json::Value =
        serde_json::from_str(&table.command(&["status", "--json"]).await?)?;
    let waiting = status["waiting"].as_u64().unwrap_or(0);
    expect(waiting >= TIMES.len() as u64, || {
        format!("status shows {waiting} waiting: {status}")
    })?;
    let lag = status["oldest_due_age_seconds"].as_f64();
    expect(lag.is_some_and(|lag| lag < 60.0), || {
        format!("what waits for its time counts as lag: {status}")
    })?;
    table.judged().await
}

async fn attempts_overflow(setup: &Setup) -> Result<Outcome> {
    let mut table = Table::new(setup, "b23").await?;
    // As many attempts as the column holds, and the next one is due.
    let exhausted = async |columns: &str, attempts: i32| {
        let insert = table.statement("exhausted", columns);
        let insert = insert.replace(
            "RETURNING message_id,",
            "RETURNING lane, id, message_id, aggregate_type, aggregate_id,",
        );
        let sql = format!(
            "WITH m AS ({insert}) \
             INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, due_at, due_since, attempts) \
             SELECT lane, id, message_id, outbox.key_hash(aggregate_type, aggregate_id), 'retry', \
                    clock_timestamp(), clock_timestamp(), {attempts} FROM m RETURNING message_id"
        );
        table
            .client
            .query_one(&sql, &[])
            .await
            .map(|row| row.get(0))
    };
    let unroutable = "exchange = 'unbound', aggregate_id = 'overflow'";
    let mut dead: Vec<Uuid> = Vec::new();
    for attempts in [i32::MAX, i32::MAX - 1] {
        dead.push(exhausted(unroutable, attempts).await?);
    }
    // Of those it only counts one more, into a header.
    let delivered: Uuid = exhausted("aggregate_id = 'works'", i32::MAX).await?;
    let refused: Uuid = exhausted("headers = '[]', aggregate_id = 'refused'", i32::MAX).await?;
    table.insert("", Delivered).await?;
    for id in dead {
        let (reason, attempts) = table.death(id).await?;
        expect(reason == "unroutable" && attempts == i32::MAX, || {
            format!("dead with {reason} after {attempts} attempts")
        })?;
    }
    let (reason, attempts) = table.death(refused).await?;
    expect(reason == "headers_invalid" && attempts == i32::MAX, || {
        format!("dead with {reason} after {attempts} attempts")
    })?;
    let missing = table.stage.deliveries.missing([delivered]).await;
    expect(missing == 0, || {
        format!("not delivered after {} attempts", i32::MAX)
    })?;
    let mut outcome = table.judged().await?;
    outcome.report.committed += 4;
    outcome.report.delivered += 1;
    outcome.report.dead += 3;
    outcome.notes = vec![format!(
        "4 with {} attempts: 2 dead (unroutable), 1 dead (headers_invalid), 1 delivered",
        i32::MAX
    )];
    Ok(outcome)
}

async fn payload_over_the_limit(setup: &Setup) -> Result<Outcome> {
    const HUGE: usize = 48 << 20;
    let mut table = Table::new(setup, "b24").await?;
    let of = |bytes: usize| {
        format!(
            "payload = ('\"' || repeat('x', {}) || '\"')::json",
            bytes - 2
        )
    };
    let binary = |bytes: usize| {
        format!("payload = NULL, binary_payload = decode(repeat('ff', {bytes}), 'hex')")
    };
    let before = probe::peak_kib(table.stage.relay.pid())?;
    for columns in [of(HUGE), of(MAX_PAYLOAD + 1), binary(MAX_PAYLOAD + 1)] {
        table.insert(&columns, Dead("payload_too_large")).await?;
    }
    for columns in [of(MAX_PAYLOAD), binary(MAX_PAYLOAD)] {
        table.insert(&columns, Delivered).await?;
    }
    let pid = table.stage.relay.pid();
    let mut outcome = table.judged().await?;
    let grew = probe::peak_kib(pid)?.saturating_sub(before) / 1024;
    expect(grew < (HUGE >> 20) as u64 / 2, || {
        format!("the relay grew by {grew} MiB: it fetched the body to refuse it")
    })?;
    outcome.notes.push(format!(
        "the relay's memory peaked {grew} MiB higher, with a body of {} MiB among them",
        HUGE >> 20
    ));
    Ok(outcome)
}

async fn line_breaks(setup: &Setup) -> Result<Outcome> {
    const FORGED: &str = "2026-01-01T00:00:00Z ERROR forged";
    let mut table = Table::new(setup, "b30").await?;
    let forging = format!(r"E'x\r\n{FORGED}'");
    for (columns, end) in [
        ("aggregate_type = $", Dead("key_invalid")),
        ("aggregate_id = $", Dead("key_invalid")),
        ("event_type = $", Dead("routing_key_invalid")),
        ("event_type = $, routing_key = 'r'", Dead("type_invalid")),
        ("routing_key = $", Dead("routing_key_invalid")),
        ("exchange = $", Dead("exchange_invalid")),
        ("content_type = $", Dead("content_type_invalid")),
        ("headers = json_build_object($, 1)", Dead("headers_invalid")),
        (
            "headers = json_build_object('x-' || $, 1)",
            Dead("headers_invalid"),
        ),
        (
            "headers = json_build_object('correlation_id', $)",
            Dead("headers_invalid"),
        ),
        // Values are the consumers' business, and reach no log.
        ("headers = json_build_object('a', $)", Delivered),
        ("payload = to_json($::text)", Delivered),
    ] {
        table.insert(&columns.replace('$', &forging), end).await?;
    }
    let given_up = table
        .written
        .iter()
        .filter(|row| matches!(row.end, Dead(_)));
    let given_up: Vec<Uuid> = given_up.map(|row| row.message_id).collect();
    for id in &given_up {
        table.death(*id).await?;
    }
    let mut said = vec![table.command(&["dead", "list"]).await?];
    said.push(table.command(&["dead", "list", "--json"]).await?);
    for id in &given_up {
        said.push(table.command(&["dead", "show", &id.to_string()]).await?);
    }
    // Settings reach a log, too: the one of whoever starts it.
    let text = format!("5\r\n{FORGED}");
    for name in [
        "OUTBOXD__RELAY__BATCH_SIZE",
        "OUTBOXD__RELAY__POLL_INTERVAL",
        "OUTBOXD__ADMIN__LISTEN",
        "OUTBOXD__LOG__LEVEL",
        "OUTBOXD__ROUTING__EXCHANGE",
        "OUTBOXD__ROUTING__ROUTING_KEY",
        "OUTBOXD__BROKER__CA_FILE",
        "OUTBOXD__BROKER__URL",
        "OUTBOXD__DATABASE__PASSWORD_FILE",
        "OUTBOXD__SOURCE__0__NAME",
        "OUTBOXD__X\r\n2026-01-01T00:00:00Z ERROR forged",
    ] {
        let mut env = table.stage.env.clone();
        env.push((name.to_owned(), text.clone()));
        let ran = setup.outboxd(&["run"], env).await?;
        expect(ran.code == 78, || {
            format!("{name:?} was taken: {}", ran.said())
        })?;
        said.push(ran.said());
    }
    table.stage.relay.line("given up", SOON).await;
    said.push(table.stage.relay.lines().join("\n"));
    let lines = said.iter().flat_map(|text| text.split('\n'));
    let broken = lines.clone().find(|line| {
        let forged = line.to_lowercase();
        forged.starts_with(&FORGED.to_lowercase()) || line.contains('\r')
    });
    expect(broken.is_none(), || {
        format!("a row or a setting wrote a line of its own: {broken:?}")
    })?;
    let count = lines.count();
    let mut outcome = table.judged().await?;
    outcome.notes.push(format!(
        "{count} lines of log, commands and refused settings: none was forged"
    ));
    Ok(outcome)
}
