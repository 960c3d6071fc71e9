//! Rows: the message is dead with its reason, the relay never crashes, other keys never wait. Bad inputs 19 to 30.

use std::{collections::HashSet, time::Duration};

use checker::sha256;
use test_support::{Daemon, eventually};
use tokio_postgres::Client;
use uuid::Uuid;

use super::{
    program::outboxd,
    stage::{MAX_PAYLOAD, Stage, unharmed},
};
use crate::{
    arena::{self, DATABASE, SOON, Setup},
    probe,
    row::{Outcome, Result, Row, expect},
};

pub const CASES: &[Row] = &[
    Row {
        number: 19,
        fault: "routing key, exchange, type or header name over 255 bytes",
        long: false,
        run: |setup| Box::pin(judged(setup, "b19", TOO_LONG)),
    },
    Row {
        number: 20,
        fault: "exchange outside the allow-list, where one is set",
        long: false,
        run: |setup| Box::pin(allow_list(setup)),
    },
    Row {
        number: 21,
        fault: "control characters in the key",
        long: false,
        run: |setup| Box::pin(judged(setup, "b21", CONTROL_CHARACTERS)),
    },
    Row {
        number: 22,
        fault: "far-future available_at waits, and shows in status",
        long: false,
        run: |setup| Box::pin(far_future(setup)),
    },
    Row {
        number: 23,
        fault: "attempts overflow saturates",
        long: false,
        run: |setup| Box::pin(attempts_overflow(setup)),
    },
    Row {
        number: 24,
        fault: "payload over the limit (size checked before the payload is fetched)",
        long: false,
        run: |setup| Box::pin(payload_over_the_limit(setup)),
    },
    Row {
        number: 25,
        fault: "empty body is valid",
        long: false,
        run: |setup| Box::pin(judged(setup, "b25", EMPTY)),
    },
    Row {
        number: 26,
        fault: r"JSON with \u0000, 1e400, duplicate keys, 23-digit integers, 10,000 levels deep: bytes pass through unchanged",
        long: false,
        run: |setup| Box::pin(judged(setup, "b26", STRANGE_JSON)),
    },
    Row {
        number: 27,
        fault: "bytes that are not UTF-8: shipped as they are",
        long: false,
        run: |setup| Box::pin(judged(setup, "b27", NOT_UTF8)),
    },
    Row {
        number: 28,
        fault: "headers that are not an object, nested deeper than 4, larger than a frame, empty or overlong names, names the relay reserves (x-*, CC, BCC, its own)",
        long: false,
        run: |setup| Box::pin(judged(setup, "b28", HEADERS)),
    },
    Row {
        number: 29,
        fault: "integers beyond 64 bits",
        long: false,
        run: |setup| Box::pin(judged(setup, "b29", INTEGERS)),
    },
    Row {
        number: 30,
        fault: "CR/LF in anything that reaches a log is escaped",
        long: false,
        run: |setup| Box::pin(line_breaks(setup)),
    },
];

/// What becomes of a row.
#[derive(Clone, Copy)]
enum End {
    /// With this reason, at the first attempt: no retry mends it.
    Dead(&'static str),
    /// With the bytes that the producer wrote.
    Delivered,
    /// Until its time has come.
    Waits,
}
use End::{Dead, Delivered, Waits};

/// Columns as SQL, and the end of the row. What is left out is as it should be.
type Variant = (&'static str, End);

const TOO_LONG: &[Variant] = &[
    (
        "routing_key = repeat('k', 256)",
        Dead("routing_key_too_long"),
    ),
    // Bytes, not characters.
    (
        "routing_key = repeat('é', 128)",
        Dead("routing_key_too_long"),
    ),
    // By the pattern of the route.
    (
        "event_type = repeat('t', 256)",
        Dead("routing_key_too_long"),
    ),
    ("exchange = repeat('e', 256)", Dead("exchange_invalid")),
    ("exchange = repeat('e', 100000)", Dead("exchange_invalid")),
    (
        "event_type = repeat('t', 256), routing_key = 'r'",
        Dead("type_invalid"),
    ),
    (
        "event_type = repeat('t', 100000), routing_key = 'r'",
        Dead("type_invalid"),
    ),
    (
        "headers = json_build_object(repeat('n', 256), 1)",
        Dead("headers_invalid"),
    ),
    (
        "headers = json_build_object('a', json_build_object(repeat('n', 256), 1))",
        Dead("headers_invalid"),
    ),
    ("routing_key = repeat('k', 255)", Delivered),
    (
        "event_type = repeat('t', 255), routing_key = 'r'",
        Delivered,
    ),
    (
        "headers = json_build_object(repeat('n', 255), 1)",
        Delivered,
    ),
];

const NOT_ALLOWED: &[Variant] = &[
    ("exchange = 'elsewhere'", Dead("exchange_not_allowed")),
    ("exchange = 'Audit'", Dead("exchange_not_allowed")),
    ("exchange = 'audit '", Dead("exchange_not_allowed")),
    // The default exchange publishes into any queue.
    (
        "exchange = '', routing_key = 'all'",
        Dead("exchange_not_allowed"),
    ),
    ("exchange = 'amq.topic'", Dead("exchange_not_allowed")),
    ("exchange = 'audit'", Delivered),
    ("exchange = 'events'", Delivered),
];

const CONTROL_CHARACTERS: &[Variant] = &[
    (r"aggregate_id = E'a\x01b'", Dead("key_invalid")),
    (r"aggregate_id = E'a\nb'", Dead("key_invalid")),
    (r"aggregate_id = E'a\x7f'", Dead("key_invalid")),
    // A C1 control, two bytes in UTF-8.
    (r"aggregate_id = E'a\u0085b'", Dead("key_invalid")),
    (r"aggregate_type = E'a\tb'", Dead("key_invalid")),
    (
        r"aggregate_type = E'a\rb', aggregate_id = NULL",
        Dead("key_invalid"),
    ),
    (r"routing_key = E'a\nb'", Dead("routing_key_invalid")),
    ("aggregate_id = 'ключ 🔑'", Delivered),
];

const EMPTY: &[Variant] = &[
    ("payload = NULL, binary_payload = ''", Delivered),
    (
        "payload = NULL, binary_payload = '', headers = '{}'",
        Delivered,
    ),
    (r#"payload = '""'"#, Delivered),
    ("payload = 'null'", Delivered),
];

const STRANGE_JSON: &[Variant] = &[
    (r#"payload = '{"a\u0000b":"\u0000"}'"#, Delivered),
    (r#"payload = '{"n":1e400,"m":-1e-400}'"#, Delivered),
    (r#"payload = '{"a":1,"a":2,"b":{"a":1,"a":1}}'"#, Delivered),
    (
        r#"payload = '{"n":12345678901234567890123,"m":-12345678901234567890123}'"#,
        Delivered,
    ),
    // PostgreSQL's own limit is its stack.
    (
        "payload = (repeat('[', 10000) || repeat(']', 10000))::json",
        Delivered,
    ),
    (
        r#"payload = (repeat('{"a":', 5000) || '1' || repeat('}', 5000))::json"#,
        Delivered,
    ),
    // Not what a parser would write again.
    (
        r#"payload = E' {\n\t"a" : 1.0,  "b":1E+2 , "\\u0041":"\\/" } '"#,
        Delivered,
    ),
    (r#"payload = '"\ud83d\ude00 é"'"#, Delivered),
];

const NOT_UTF8: &[Variant] = &[
    (r"payload = NULL, binary_payload = '\xff'", Delivered),
    (
        r"payload = NULL, binary_payload = '\xc328fe00c0808041'",
        Delivered,
    ),
    (r"payload = NULL, binary_payload = '\xeda080'", Delivered),
    (
        "payload = NULL, binary_payload = (SELECT string_agg(set_byte('\\x00', 0, i), '' ORDER BY i) FROM generate_series(0, 255) i)",
        Delivered,
    ),
    (
        r"payload = NULL, binary_payload = '\x1f8b0800', content_type = 'application/gzip'",
        Delivered,
    ),
];

const HEADERS: &[Variant] = &[
    ("headers = '[1]'", Dead("headers_invalid")),
    (r#"headers = '"text"'"#, Dead("headers_invalid")),
    ("headers = '1'", Dead("headers_invalid")),
    ("headers = 'true'", Dead("headers_invalid")),
    ("headers = 'null'", Dead("headers_invalid")),
    (
        r#"headers = '{"a":{"b":{"c":{"d":{}}}}}'"#,
        Dead("headers_invalid"),
    ),
    (r#"headers = '{"a":{"b":{"c":{"d":1}}}}'"#, Delivered),
    (r#"headers = '{"a":[[[[1]]]]}'"#, Dead("headers_invalid")),
    // Deeper than a parser's own limit.
    (
        r#"headers = ('{"a":' || repeat('[', 5000) || repeat(']', 5000) || '}')::json"#,
        Dead("headers_invalid"),
    ),
    (
        "headers = json_build_object('big', repeat('x', 131072))",
        Dead("headers_too_large"),
    ),
    // The text fits a frame; with the properties it does not.
    (
        "headers = json_build_object('big', repeat('x', 131000))",
        Dead("headers_too_large"),
    ),
    (
        "headers = json_build_object('big', repeat('x', 10000000))",
        Dead("headers_too_large"),
    ),
    // So does the key: it is a header, too.
    (
        "aggregate_id = repeat('k', 200000)",
        Dead("headers_too_large"),
    ),
    (r#"headers = '{"":1}'"#, Dead("headers_invalid")),
    (r#"headers = '{"a":{"":1}}'"#, Dead("headers_invalid")),
    (
        "headers = json_build_object(repeat('n', 256), 1)",
        Dead("headers_invalid"),
    ),
    (r#"headers = '{"x-death":[]}'"#, Dead("header_reserved")),
    (r#"headers = '{"x-anything":1}'"#, Dead("header_reserved")),
    (r#"headers = '{"CC":["a"]}'"#, Dead("header_reserved")),
    (r#"headers = '{"BCC":["a"]}'"#, Dead("header_reserved")),
    (
        r#"headers = '{"outbox-key":"forged"}'"#,
        Dead("header_reserved"),
    ),
    (
        r#"headers = '{"outbox-position":1}'"#,
        Dead("header_reserved"),
    ),
    (
        r#"headers = '{"outbox-replay":true}'"#,
        Dead("header_reserved"),
    ),
    (
        r#"headers = '{"correlation_id":1}'"#,
        Dead("headers_invalid"),
    ),
    (r#"headers = '{"a":{"b":{"c":[]}}}'"#, Delivered),
    (
        "headers = json_build_object('big', repeat('x', 100000))",
        Delivered,
    ),
    (
        r#"headers = '{"a":true,"b":-5,"c":1.5,"d":"x","e":null,"f":[1,{"g":2}]}'"#,
        Delivered,
    ),
    ("headers = '{}'", Delivered),
];

const INTEGERS: &[Variant] = &[
    (
        r#"headers = '{"n":9223372036854775808}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":-9223372036854775809}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":18446744073709551616}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":12345678901234567890123}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"a":[{"n":9223372036854775808}]}'"#,
        Dead("number_out_of_range"),
    ),
    (r#"headers = '{"n":1e400}'"#, Dead("number_out_of_range")),
    (
        r#"headers = ('{"n":' || repeat('9', 400) || '}')::json"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":9223372036854775807,"m":-9223372036854775808}'"#,
        Delivered,
    ),
    // A body is nobody's business.
    (r#"payload = '{"n":9223372036854775808}'"#, Delivered),
];

/// A message of another key is delivered within this, whatever stands before it.
const PROMPT: Duration = Duration::from_secs(10);

/// A row that was committed.
struct Written {
    columns: String,
    message_id: Uuid,
    /// Of the body that the producer wrote.
    sha256: String,
    end: End,
}

/// The rows of one case, on the stage.
struct Table<'a> {
    setup: &'a Setup,
    stage: &'a Stage,
    client: Client,
    /// Of this case alone.
    aggregate_type: &'static str,
    /// With settings of this case; else the stage's relay.
    own_relay: Option<Daemon>,
    written: Vec<Written>,
    healthy: Vec<Uuid>,
}

async fn judged(
    setup: &Setup,
    aggregate_type: &'static str,
    variants: &[Variant],
) -> Result<Outcome> {
    let mut table = Table::new(setup, aggregate_type).await?;
    for (columns, end) in variants {
        table.insert(columns, *end).await?;
    }
    table.judged().await
}

impl<'a> Table<'a> {
    async fn new(setup: &'a Setup, aggregate_type: &'static str) -> Result<Self> {
        let stage = setup.stage.get(setup).await?;
        Ok(Self {
            setup,
            stage,
            client: stage.postgres.connect(DATABASE).await?,
            aggregate_type,
            own_relay: None,
            written: Vec::new(),
            healthy: Vec::new(),
        })
    }

    /// From here on, a database and a relay of this case alone, with one more setting.
    async fn apart(&mut self, database: &str, setting: (&str, &str)) -> Result<()> {
        let stage = self.stage;
        arena::schemas(self.setup, &stage.postgres, database).await?;
        self.client = stage.postgres.connect(database).await?;
        let url = stage.postgres.url_for("relay", "relay", database);
        let mut env = stage.env.clone();
        for (name, value) in [("DATABASE_URL", url.as_str()), setting] {
            env.push((name.to_owned(), value.to_owned()));
        }
        let relay = Daemon::start(&self.setup.outboxd, &["run"], &env)?;
        relay.line("connected to both servers", SOON).await;
        self.own_relay = Some(relay);
        Ok(())
    }

    /// A row with these columns, each of a key of its own unless they name one; then a healthy one of another key.
    async fn insert(&mut self, columns: &str, end: End) -> Result<()> {
        let key = format!("bad {}", self.written.len());
        let row = self
            .client
            .query_one(&self.statement(&key, columns), &[])
            .await
            .map_err(|error| format!("{columns}: {error:?}"))?;
        let body: Vec<u8> = row.get(1);
        self.written.push(Written {
            columns: columns.to_owned(),
            message_id: row.get(0),
            sha256: sha256(&body),
            end,
        });
        let healthy = self.statement("healthy", "");
        self.healthy
            .push(self.client.query_one(&healthy, &[]).await?.get(0));
        Ok(())
    }

    fn statement(&self, key: &str, columns: &str) -> String {
        let mut values = vec![
            ("aggregate_type", format!("'{}'", self.aggregate_type)),
            ("aggregate_id", format!("'{key}'")),
            ("event_type", "'x'".to_owned()),
            ("payload", "'{}'".to_owned()),
        ];
        for (column, value) in assignments(columns) {
            values.retain(|(known, _)| *known != column);
            values.push((column, value.to_owned()));
        }
        let (columns, values): (Vec<&str>, Vec<String>) = values.into_iter().unzip();
        format!(
            "INSERT INTO outbox.message ({}) VALUES ({}) \
             RETURNING message_id, coalesce(binary_payload, convert_to(payload::text, 'UTF8'))",
            columns.join(", "),
            values.join(", ")
        )
    }

    /// Each row came to its end, and nobody else was kept from theirs.
    async fn judged(self) -> Result<Outcome> {
        let healthy = self.healthy.iter().copied();
        let late = self.stage.deliveries.missing(healthy, PROMPT).await;
        expect(late == 0, || {
            format!("{late} healthy messages of another key did not arrive within {PROMPT:?}")
        })?;
        for row in &self.written {
            let ended = self.ended(row).await;
            ended.map_err(|error| format!("{}: {error}", shown(&row.columns)))?;
        }
        unharmed(self.own_relay.as_ref().unwrap_or(&self.stage.relay))?;
        self.outcome()
    }

    async fn ended(&self, row: &Written) -> Result<()> {
        let id = row.message_id;
        match row.end {
            Dead(expected) => {
                let (reason, attempts) = self.death(id).await?;
                expect(reason == expected && attempts == 1, || {
                    format!("dead with {reason} after {attempts} attempts, not {expected} after 1")
                })?;
            }
            Delivered => {
                let missing = self.stage.deliveries.missing([id], PROMPT).await;
                expect(missing == 0, || "it was not delivered".into())?;
            }
            Waits => {
                let sql =
                    "SELECT FROM outbox.waiting WHERE message_id = $1 AND cause = 'scheduled'";
                eventually("it to wait", PROMPT, async || {
                    (self.client.query(sql, &[&id]).await.ok()?.len() == 1).then_some(())
                })
                .await;
            }
        }
        let deliveries = self.stage.deliveries.all();
        let seen: Vec<_> = deliveries.iter().filter(|d| d.message_id == id).collect();
        let allowed = usize::from(matches!(row.end, Delivered));
        expect(seen.len() == allowed, || {
            format!("it was delivered {} times", seen.len())
        })?;
        expect(seen.iter().all(|d| d.body_sha256 == row.sha256), || {
            "its body was changed".into()
        })
    }

    /// Reason and attempts.
    async fn death(&self, id: Uuid) -> Result<(String, i32)> {
        let sql = "SELECT reason, attempts FROM outbox.dead WHERE message_id = $1";
        let row = tokio::time::timeout(PROMPT, async {
            loop {
                if let Some(row) = self.client.query_opt(sql, &[&id]).await? {
                    return Ok::<_, tokio_postgres::Error>(row);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .map_err(|_| format!("it is not dead after {PROMPT:?}"))??;
        Ok((row.get(0), row.get(1)))
    }

    /// Runs a command beside the relay.
    async fn command(&self, args: &[&str]) -> Result<String> {
        let ran = outboxd(self.setup, args, self.stage.env.iter().cloned()).await?;
        expect(ran.code == 0, || format!("{args:?}: {}", ran.said()))?;
        Ok(ran.said())
    }

    fn outcome(&self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let count =
            |fits: fn(&End) -> bool| self.written.iter().filter(|row| fits(&row.end)).count();
        let (dead, delivered) = (
            count(|end| matches!(end, Dead(_))),
            count(|end| matches!(end, Delivered)),
        );
        outcome.report.committed = self.written.len() + self.healthy.len();
        outcome.report.delivered = delivered + self.healthy.len();
        outcome.report.dead = dead;
        let reasons: HashSet<&str> = self
            .written
            .iter()
            .filter_map(|row| match row.end {
                Dead(reason) => Some(reason),
                Delivered | Waits => None,
            })
            .collect();
        let mut reasons: Vec<&str> = reasons.into_iter().collect();
        reasons.sort_unstable();
        let (waiting, variants) = (self.written.len() - dead - delivered, self.written.len());
        outcome.notes.push(format!(
            "{variants} variants: {delivered} delivered byte for byte, {waiting} waiting, {dead} dead {}",
            if dead == 0 { String::new() } else { format!("({})", reasons.join(", ")) }
        ));
        Ok(outcome)
    }
}

/// `a = x, b = y`: a comma begins another column only before a name and ` = `.
fn assignments(columns: &str) -> Vec<(&str, &str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    let mut rest = columns;
    while let Some((column, value)) = rest.split_once(" = ") {
        let end = value.match_indices(", ").map(|(at, _)| at).find(|at| {
            let next = value[at + 2..].split_once(" = ").map(|(name, _)| name);
            next.is_some_and(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        });
        let (value, after) = match end {
            Some(at) => (&value[..at], &value[at + 2..]),
            None => (value, ""),
        };
        found.push((column, value));
        rest = after;
    }
    found
}

/// The beginning of it.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

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
    let missing = table.stage.deliveries.missing([delivered], PROMPT).await;
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
        let ran = outboxd(setup, &["run"], env).await?;
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

#[cfg(test)]
mod tests {
    use super::assignments;

    #[test]
    fn commas_within_a_value_do_not_end_it() {
        assert_eq!(
            assignments("a = f('x', 1), b_c = NULL, d = '{\"e\":1, \"f\":2}'"),
            [
                ("a", "f('x', 1)"),
                ("b_c", "NULL"),
                ("d", "'{\"e\":1, \"f\":2}'")
            ]
        );
        assert!(assignments("").is_empty());
    }
}
