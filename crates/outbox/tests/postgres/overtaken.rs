//! Writes that wait for another session: each acts on what that session left, and none blames a trigger for it.

use test_support::{SOON, eventually};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use crate::settings::{owner, service};

/// What is in the inbox before a case.
const ROWS: &str = "\
    TRUNCATE inbox.message, inbox.entity, inbox.attempt; \
    SELECT inbox.claim('c', 'applied', inbox.fingerprint('t', 'x', ''::text)); \
    SELECT inbox.begin_effect('c', 'begun', inbox.fingerprint('t', 'x', ''::text)); \
    SELECT inbox.fail('c', 'failed', 'why'); \
    SELECT inbox.fail('c', 'failed', 'why')";

/// What is in it afterwards.
const LEFT: &str = "\
    SELECT concat_ws('; ', \
        (SELECT string_agg(concat_ws(' ', idempotency_key, state, convert_from(result, 'UTF8')), ', ' \
                           ORDER BY idempotency_key) FROM inbox.message), \
        (SELECT string_agg(idempotency_key || ' ' || attempts, ', ') FROM inbox.attempt))";

const CLAIM: &str =
    "SELECT outcome FROM inbox.claim('c', 'applied', inbox.fingerprint('t', 'x', ''::text))";
const LATER: &str =
    "SELECT inbox.claim('c', 'later', inbox.fingerprint('t', 'x', ''::text), 'entity', 6)";
const EARLIER: &str = "SELECT outcome FROM inbox.claim('c', 'earlier', inbox.fingerprint('t', 'x', ''::text), 'entity', 5)";
const PRUNE: &str = "SELECT inbox.prune('c', interval '0')";
const COMPLETE: &str = "SELECT inbox.complete('c', 'applied', 'done'::text)";
const BEGIN: &str =
    "SELECT outcome FROM inbox.begin_effect('c', 'begun', inbox.fingerprint('t', 'x', ''::text))";
const RECORD: &str = "SELECT inbox.record_effect('c', 'begun', 'late'::text)";
const ABANDON: &str = "SELECT inbox.abandon_effect('c', 'begun')";
const FAIL: &str = "SELECT inbox.fail('c', 'failed', 'why')";
const FORGIVE: &str = "SELECT inbox.forgive('c', 'failed')";

struct Case {
    /// Of the other session, in its order.
    first: &'static [&'static str],
    then: &'static str,
    /// What the second session gets, as text.
    answer: Result<&'static str, &'static SqlState>,
    left: &'static str,
}

const GONE: Result<&str, &SqlState> = Err(&SqlState::NO_DATA_FOUND);

/// Every write that can wait for a row of the inbox, behind every write that can let it go or change it.
const CASES: [Case; 16] = [
    Case {
        first: &[FORGIVE],
        then: FAIL,
        answer: Ok("1"),
        left: "applied applied, begun begun; failed 1",
    },
    Case {
        first: &[PRUNE],
        then: FAIL,
        answer: Ok("1"),
        left: "begun begun; failed 1",
    },
    Case {
        first: &[FAIL],
        then: FAIL,
        answer: Ok("4"),
        left: "applied applied, begun begun; failed 4",
    },
    Case {
        first: &[FORGIVE, FAIL],
        then: FAIL,
        answer: Ok("2"),
        left: "applied applied, begun begun; failed 2",
    },
    Case {
        first: &[FAIL],
        then: FORGIVE,
        answer: Ok(""),
        left: "applied applied, begun begun",
    },
    Case {
        first: &[FORGIVE],
        then: FORGIVE,
        answer: Ok(""),
        left: "applied applied, begun begun",
    },
    Case {
        first: &[FORGIVE, FAIL],
        then: FORGIVE,
        answer: Ok(""),
        left: "applied applied, begun begun; failed 1",
    },
    Case {
        first: &[PRUNE],
        then: CLAIM,
        answer: Ok("first"),
        left: "applied applied, begun begun",
    },
    Case {
        first: &[LATER],
        then: EARLIER,
        answer: Ok("stale"),
        left: "applied applied, begun begun, earlier stale, later applied; failed 2",
    },
    Case {
        first: &[ABANDON],
        then: BEGIN,
        answer: Ok("first"),
        left: "applied applied, begun begun; failed 2",
    },
    Case {
        first: &[PRUNE],
        then: COMPLETE,
        answer: GONE,
        left: "begun begun",
    },
    Case {
        first: &[PRUNE, CLAIM],
        then: COMPLETE,
        answer: Ok(""),
        left: "applied applied done, begun begun",
    },
    Case {
        first: &[RECORD],
        then: RECORD,
        answer: GONE,
        left: "applied applied, begun applied late; failed 2",
    },
    Case {
        first: &[ABANDON, BEGIN],
        then: RECORD,
        answer: GONE,
        left: "applied applied, begun begun; failed 2",
    },
    Case {
        first: &[RECORD],
        then: ABANDON,
        answer: GONE,
        left: "applied applied, begun applied late; failed 2",
    },
    Case {
        first: &[ABANDON, BEGIN],
        then: ABANDON,
        answer: GONE,
        left: "applied applied, begun begun; failed 2",
    },
];

async fn text(client: &Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(rows.collect())
}

async fn pid(client: &Client) -> String {
    text(client, "SELECT pg_backend_pid()").await.unwrap()
}

#[tokio::test]
async fn a_write_that_waited_acts_on_what_the_other_session_left() {
    let owner = owner("overtaken").await;
    let first = service("overtaken", &[]).await;
    for case in CASES {
        let Case { then, left, .. } = case;
        let what = format!("{then} behind {}", case.first.join(", "));
        owner.batch_execute(ROWS).await.unwrap();
        first.batch_execute("BEGIN").await.unwrap();
        for write in case.first {
            first.batch_execute(write).await.expect(&what);
        }
        let second = service("overtaken", &[]).await;
        let waits = format!(
            "SELECT pg_blocking_pids({}) @> ARRAY[{}]",
            pid(&second).await,
            pid(&first).await
        );
        let second = tokio::spawn(async move { text(&second, then).await });
        eventually(&what, SOON, async || {
            assert!(!second.is_finished(), "{what} does not wait");
            (text(&owner, &waits).await.unwrap() == "t").then_some(())
        })
        .await;
        first.batch_execute("COMMIT").await.unwrap();
        let answer = second.await.unwrap();
        let answer = match &answer {
            Ok(answer) => Ok(answer.as_str()),
            Err(error) => Err(error.code().expect(&what)),
        };
        assert_eq!(answer, case.answer, "{what}");
        assert_eq!(text(&owner, LEFT).await.unwrap(), left, "{what}");
    }
}
