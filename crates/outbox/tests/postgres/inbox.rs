//! Each business operation is applied once: raced, repeated, rolled back, cut off.

use std::time::Duration;

use outbox::inbox::{Advanced, Claimed, Inbox, InboxError, Operation, Stored, Transition};
use proptest::prelude::*;
use tokio::{
    sync::{Barrier, OnceCell},
    task::JoinSet,
};
use tokio_postgres::{Client, NoTls, error::SqlState};

use crate::{read, server};

static READY: OnceCell<()> = OnceCell::const_new();

/// A consumer of payments: rights on its own table, and the role `inbox_consumer`.
pub async fn consumer() -> Client {
    READY
        .get_or_init(|| async {
            let postgres = server().await;
            let roles = "CREATE ROLE inbox_owner LOGIN CREATEROLE PASSWORD 'o'";
            postgres.execute("postgres", roles).await.unwrap();
            postgres.create_database("payments", "inbox_owner").await.unwrap();
            // As the README says: psql, an owner without rights, ON_ERROR_STOP.
            for file in ["migrations/inbox/0001_inbox.sql", "deploy/postgres/inbox_roles.sql"] {
                postgres.psql("inbox_owner", "o", "payments", &read(file)).unwrap();
            }
            let tables = "CREATE TABLE account (id text PRIMARY KEY, cents bigint NOT NULL DEFAULT 0); \
                          CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL); \
                          CREATE ROLE payments LOGIN PASSWORD 'p' IN ROLE inbox_consumer; \
                          CREATE ROLE watcher LOGIN PASSWORD 'w' IN ROLE inbox_monitor; \
                          GRANT SELECT, INSERT, UPDATE ON account, orders TO payments";
            postgres.execute("payments", tables).await.unwrap();
        })
        .await;
    connect("payments", "p").await
}

pub async fn connect(user: &str, password: &str) -> Client {
    let url = server().await.url_for(user, password, "payments");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub fn inbox(name: &str) -> Inbox {
    Inbox::new(name).unwrap()
}

pub fn operation(key: &str) -> Operation {
    Operation::new(key, "paid", "application/json", b"{}").unwrap()
}

/// The business write of every test: not idempotent by itself.
async fn pay(transaction: &tokio_postgres::Transaction<'_>, account: &str) {
    let sql = "INSERT INTO account AS a (id, cents) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET cents = a.cents + 1";
    transaction.execute(sql, &[&account]).await.unwrap();
}

async fn cents(client: &Client, account: &str) -> i64 {
    let sql = "SELECT coalesce(sum(cents), 0)::bigint FROM account WHERE id = $1";
    client.query_one(sql, &[&account]).await.unwrap().get(0)
}

/// Claim, business write, result, commit; as a handler does it. The account has the name of the consumer.
pub async fn apply(client: &mut Client, inbox: &Inbox, operation: &Operation) -> Claimed {
    apply_to(client, inbox, operation, inbox.consumer()).await
}

async fn apply_to(
    client: &mut Client,
    inbox: &Inbox,
    operation: &Operation,
    account: &str,
) -> Claimed {
    let transaction = client.transaction().await.unwrap();
    let claimed = inbox.claim(&transaction, operation).await.unwrap();
    if claimed == Claimed::First {
        pay(&transaction, account).await;
        inbox
            .complete(&transaction, operation, &serde_json::json!({ "paid": 1 }))
            .await
            .unwrap();
    }
    transaction.commit().await.unwrap();
    claimed
}

#[tokio::test]
async fn a_duplicate_gets_the_first_result_byte_for_byte_and_changes_nothing() {
    let mut client = consumer().await;
    let inbox = inbox("duplicate");
    let one = operation("m1");
    assert_eq!(apply(&mut client, &inbox, &one).await, Claimed::First);
    let Claimed::Duplicate(stored) = apply(&mut client, &inbox, &one).await else {
        panic!("not a duplicate")
    };
    assert_eq!(stored.bytes.as_deref(), Some(&br#"{"paid":1}"#[..]));
    assert_eq!(stored.content_type.as_deref(), Some("application/json"));
    assert_eq!(
        stored.json::<serde_json::Value>().unwrap().unwrap()["paid"],
        1
    );
    assert_eq!(cents(&client, "duplicate").await, 1);
    // Another consumer of the same message is another operation.
    let other = Inbox::new("duplicate-2").unwrap();
    assert_eq!(apply(&mut client, &other, &one).await, Claimed::First);
}

#[tokio::test]
async fn one_business_fact_under_two_message_ids_is_applied_once() {
    let mut client = consumer().await;
    let inbox = inbox("business-key");
    // The handler names pay_123 instead of either message id.
    for expected in [true, false] {
        let claimed = apply(&mut client, &inbox, &operation("pay_123")).await;
        assert_eq!(claimed == Claimed::First, expected);
    }
    assert_eq!(cents(&client, "business-key").await, 1);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_a_conflict() {
    let mut client = consumer().await;
    let inbox = inbox("conflict");
    apply(&mut client, &inbox, &operation("m1")).await;
    for other in [
        Operation::new("m1", "paid", "application/json", b"{ }").unwrap(),
        Operation::new("m1", "refunded", "application/json", b"{}").unwrap(),
        Operation::new("m1", "paid", "text/plain", b"{}").unwrap(),
    ] {
        assert_eq!(apply(&mut client, &inbox, &other).await, Claimed::Conflict);
    }
    assert_eq!(cents(&client, "conflict").await, 1);
}

#[tokio::test]
async fn a_key_that_the_crate_refuses_is_refused_by_the_schema_too() {
    let client = consumer().await;
    for (bytes, taken) in [(255, true), (256, false)] {
        let sql = "SELECT inbox.claim('overlong', $1, sha256('x'))";
        let claimed = client.query_one(sql, &[&"k".repeat(bytes)]).await;
        let code = claimed.err().and_then(|error| error.code().cloned());
        let check = SqlState::CHECK_VIOLATION;
        assert_eq!(code, (!taken).then_some(check), "{bytes} bytes");
    }
}

/// A service that is rewritten in another language finds its own history again.
#[tokio::test]
async fn sql_and_rust_compute_the_same_fingerprint() {
    let client = consumer().await;
    for (type_, content_type, body) in [
        ("paid", "application/json", &b"{}"[..]),
        ("", "", b""),
        ("gr\u{f6}\u{df}e", "text/plain", &[0, 159, 146, 150]),
    ] {
        let row = client
            .query_one(
                "SELECT inbox.fingerprint($1, $2, $3::bytea)",
                &[&type_, &content_type, &body],
            )
            .await
            .unwrap();
        let rust = Operation::new("k", type_, content_type, body).unwrap();
        assert_eq!(row.get::<_, &[u8]>(0), rust.fingerprint());
    }
    let row = client
        .query_one(
            "SELECT inbox.fingerprint(NULL, NULL, NULL) = inbox.fingerprint('', '', '')",
            &[],
        )
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0), "a missing part counts as empty");
}

#[tokio::test]
async fn an_older_position_of_an_entity_is_stale() {
    let mut client = consumer().await;
    let inbox = inbox("stale");
    for (key, entity, position, expected) in [
        ("m5", "order:1", 5, Claimed::First),
        ("m4", "order:1", 4, Claimed::Stale),
        // Also when repeated.
        ("m4", "order:1", 4, Claimed::Stale),
        ("m6", "order:1", 6, Claimed::First),
        ("m7", "order:2", 1, Claimed::First),
    ] {
        let guarded = operation(key).guarded(entity, position);
        let claimed = apply(&mut client, &inbox, &guarded).await;
        assert_eq!(claimed, expected, "{key}");
    }
    assert_eq!(cents(&client, "stale").await, 3);
}

#[tokio::test]
async fn a_handler_that_fails_half_way_leaves_nothing_behind() {
    let mut client = consumer().await;
    let inbox = inbox("half-way");
    for _ in 0..3 {
        let transaction = client.transaction().await.unwrap();
        assert_eq!(
            inbox.claim(&transaction, &operation("m1")).await.unwrap(),
            Claimed::First
        );
        pay(&transaction, "half-way").await;
        transaction.rollback().await.unwrap();
    }
    assert_eq!(cents(&client, "half-way").await, 0);
    assert_eq!(
        apply(&mut client, &inbox, &operation("m1")).await,
        Claimed::First
    );
    assert_eq!(cents(&client, "half-way").await, 1);
}

/// Killed after commit and before ack: the redelivery is a duplicate. Killed before commit: it is the first.
#[tokio::test]
async fn a_consumer_that_dies_around_its_commit_applies_once() {
    let mut client = consumer().await;
    let inbox = inbox("dies");
    let dying = connect("payments", "p").await;
    dying.batch_execute("BEGIN").await.unwrap();
    let claim = "SELECT outcome FROM inbox.claim('dies', 'm1', $1)";
    let row = dying
        .query_one(claim, &[&&operation("m1").fingerprint()[..]])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "first");
    drop(dying);
    assert_eq!(
        apply(&mut client, &inbox, &operation("m1")).await,
        Claimed::First
    );
    let mut next = connect("payments", "p").await;
    assert!(matches!(
        apply(&mut next, &inbox, &operation("m1")).await,
        Claimed::Duplicate(_)
    ));
    assert_eq!(cents(&client, "dies").await, 1);
}

/// A thousand messages, each brought to eight consumers at one moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_consumers_apply_each_message_once() {
    const CONSUMERS: usize = 8;
    const ROUNDS: usize = 1000;
    let onlooker = consumer().await;
    let barrier = std::sync::Arc::new(Barrier::new(CONSUMERS));
    let mut tasks = JoinSet::new();
    for _ in 0..CONSUMERS {
        let mut client = connect("payments", "p").await;
        let barrier = std::sync::Arc::clone(&barrier);
        tasks.spawn(async move {
            let mut firsts = 0;
            for round in 0..ROUNDS {
                barrier.wait().await;
                let claimed = apply(
                    &mut client,
                    &inbox("race"),
                    &operation(&format!("m{round}")),
                )
                .await;
                match claimed {
                    Claimed::First => firsts += 1,
                    Claimed::Duplicate(stored) => {
                        assert!(stored.bytes.is_some(), "the loser sees the result")
                    }
                    other => panic!("{other:?}"),
                }
            }
            firsts
        });
    }
    let firsts: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(firsts, ROUNDS);
    assert_eq!(
        cents(&onlooker, "race").await,
        i64::try_from(ROUNDS).unwrap()
    );
}

/// The loser of a race goes first when the winner rolls back.
#[tokio::test]
async fn a_waiting_claimant_is_first_when_the_other_one_rolls_back() {
    let mut winner = consumer().await;
    let mut loser = connect("payments", "p").await;
    let transaction = winner.transaction().await.unwrap();
    assert_eq!(
        inbox("waits")
            .claim(&transaction, &operation("m1"))
            .await
            .unwrap(),
        Claimed::First
    );
    let waiting =
        tokio::spawn(async move { apply(&mut loser, &inbox("waits"), &operation("m1")).await });
    let onlooker = server().await.connect("payments").await.unwrap();
    test_support::eventually(
        "the other one to wait",
        Duration::from_secs(180),
        async || {
            let sql =
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
            (onlooker.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
        },
    )
    .await;
    transaction.rollback().await.unwrap();
    assert_eq!(waiting.await.unwrap(), Claimed::First);
}

/// The same keys in opposite orders: claimed in the order of the keys, so that nobody deadlocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_claims_do_not_deadlock() {
    let _ready = consumer().await;
    let mut tasks = JoinSet::new();
    for reversed in [false, true, false, true] {
        let mut client = connect("payments", "p").await;
        tasks.spawn(async move {
            for round in 0..200 {
                let mut operations: Vec<Operation> = (0..10)
                    .map(|i| operation(&format!("r{round}-{i}")))
                    .collect();
                if reversed {
                    operations.reverse();
                }
                let transaction = client.transaction().await.unwrap();
                let answers = inbox("batch")
                    .claim_all(&transaction, &operations)
                    .await
                    .unwrap();
                for (answer, operation) in answers.iter().zip(&operations) {
                    if *answer == Claimed::First {
                        pay(&transaction, &format!("batch-{}", operation.key())).await;
                    }
                }
                transaction.commit().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let client = server().await.connect("payments").await.unwrap();
    let sql =
        "SELECT count(*), count(*) FILTER (WHERE cents = 1) FROM account WHERE id LIKE 'batch-%'";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2000, 2000));
}

#[tokio::test]
async fn failed_attempts_are_counted_outside_the_transaction_that_is_rolled_back() {
    let mut client = consumer().await;
    let inbox = inbox("attempts");
    for expected in 1..=3 {
        let transaction = client.transaction().await.unwrap();
        inbox.claim(&transaction, &operation("m1")).await.unwrap();
        transaction.rollback().await.unwrap();
        assert_eq!(
            inbox.fail(&client, "m1", "no\0thing").await.unwrap(),
            expected
        );
    }
}

#[tokio::test]
async fn a_state_moves_once_and_never_from_where_it_is_not() {
    let mut client = consumer().await;
    client
        .execute("INSERT INTO orders VALUES (1, 'pending')", &[])
        .await
        .unwrap();
    let orders = Transition::new("public.orders", "id", "state");
    let transaction = client.transaction().await.unwrap();
    let advance = async |id: i64, from: &str, to: &str| {
        orders.advance(&transaction, &id, from, to).await.unwrap()
    };
    assert_eq!(advance(1, "pending", "authorized").await, Advanced::Done);
    assert_eq!(advance(1, "pending", "authorized").await, Advanced::Already);
    assert_eq!(
        advance(1, "pending", "cancelled").await,
        Advanced::Impossible {
            found: "authorized".to_owned()
        }
    );
    assert_eq!(advance(2, "pending", "authorized").await, Advanced::Missing);
}

/// PostgreSQL pads `char(12)`: the state that is stored is not the text that was written.
#[tokio::test]
async fn states_are_compared_as_their_column_compares_them() {
    let mut client = consumer().await;
    let transaction = client.transaction().await.unwrap();
    let table = "CREATE TEMPORARY TABLE parcel (id bigint PRIMARY KEY, state char(12)); \
                 INSERT INTO parcel VALUES (1, 'packed')";
    transaction.batch_execute(table).await.unwrap();
    let parcels = Transition::new("parcel", "id", "state");
    let advance = async |from: &str, to: &str| {
        parcels
            .advance(&transaction, &1_i64, from, to)
            .await
            .unwrap()
    };
    assert_eq!(advance("packed", "sent").await, Advanced::Done);
    assert_eq!(advance("packed", "sent").await, Advanced::Already);
    let found = "sent".to_owned();
    let impossible = Advanced::Impossible { found };
    assert_eq!(advance("packed", "lost").await, impossible);
}

#[tokio::test]
async fn a_result_above_the_cap_is_refused_and_one_without_is_told_apart() {
    let mut client = consumer().await;
    let inbox = inbox("results");
    let transaction = client.transaction().await.unwrap();
    inbox.claim(&transaction, &operation("m1")).await.unwrap();
    let huge = "x".repeat(outbox::inbox::MAX_RESULT);
    let refused = inbox
        .complete(&transaction, &operation("m1"), &huge)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, InboxError::ResultTooLarge { .. }),
        "{refused}"
    );
    transaction.commit().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let claimed = inbox.claim(&transaction, &operation("m1")).await.unwrap();
    assert_eq!(
        claimed,
        Claimed::Duplicate(Stored::default()),
        "applied, without a result"
    );
    let unclaimed = inbox
        .complete(&transaction, &operation("m2"), &1)
        .await
        .unwrap_err();
    assert!(
        format!("{unclaimed:?}").contains("was not claimed"),
        "{unclaimed:?}"
    );
}

/// What the broker, the network and the handler may do to a message.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Delivered, applied, acknowledged or not: that makes no difference here.
    Deliver(usize),
    /// Delivered, and the handler fails after its write.
    FailHalfWay(usize),
    /// Delivered, and the connection dies before the commit.
    Crash(usize),
    /// Delivered to two consumers at one moment.
    Race(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..5usize;
    let step = prop_oneof![
        3 => key.clone().prop_map(Step::Deliver),
        2 => key.clone().prop_map(Step::FailHalfWay),
        2 => key.clone().prop_map(Step::Crash),
        1 => key.prop_map(Step::Race),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Whatever happens in whatever order: each key that was delivered to its end at least once is applied exactly once.
#[test]
fn any_interleaving_of_deliveries_crashes_and_retries_applies_each_key_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        ..ProptestConfig::default()
    });
    // Of its own: the shared one belongs to another runtime.
    let case = std::sync::atomic::AtomicUsize::new(0);
    let ready = runtime.block_on(consumer());
    drop(ready);
    runner
        .run(&steps(), |steps| {
            let case = case.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            runtime
                .block_on(play(case, &steps))
                .map_err(TestCaseError::fail)
        })
        .unwrap();
}

async fn play(case: usize, steps: &[Step]) -> Result<(), String> {
    let inbox = inbox(&format!("model-{case}"));
    let account = |key: usize| format!("model-{case}-{key}");
    let named = |key: usize| operation(&format!("k{key}"));
    let mut applied = [false; 5];
    let mut client = connect("payments", "p").await;
    for step in steps {
        match *step {
            Step::Deliver(key) => {
                let claimed = apply_to(&mut client, &inbox, &named(key), &account(key)).await;
                if (claimed == Claimed::First) == applied[key] {
                    return Err(format!(
                        "{claimed:?} for a key that was applied: {}",
                        applied[key]
                    ));
                }
                applied[key] = true;
            }
            Step::FailHalfWay(key) => {
                let transaction = client.transaction().await.unwrap();
                if inbox.claim(&transaction, &named(key)).await.unwrap() == Claimed::First {
                    pay(&transaction, &account(key)).await;
                }
                transaction.rollback().await.unwrap();
            }
            Step::Crash(key) => {
                let mut dying = connect("payments", "p").await;
                let transaction = dying.transaction().await.unwrap();
                if inbox.claim(&transaction, &named(key)).await.unwrap() == Claimed::First {
                    pay(&transaction, &account(key)).await;
                }
                std::mem::drop(transaction);
                drop(dying);
            }
            Step::Race(key) => {
                let mut other = connect("payments", "p").await;
                let (one, two) = (named(key), named(key));
                let (account_one, account_two) = (account(key), account(key));
                let (a, b) = tokio::join!(
                    apply_to(&mut client, &inbox, &one, &account_one),
                    apply_to(&mut other, &inbox, &two, &account_two)
                );
                let firsts = usize::from(a == Claimed::First) + usize::from(b == Claimed::First);
                if firsts != usize::from(!applied[key]) {
                    return Err(format!("{firsts} of two racing claims were first"));
                }
                applied[key] = true;
            }
        }
    }
    for (key, applied) in applied.into_iter().enumerate() {
        let cents = cents(&client, &account(key)).await;
        if cents != i64::from(applied) {
            return Err(format!("key {key} was applied {cents} times"));
        }
    }
    Ok(())
}
