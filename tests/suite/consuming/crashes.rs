//! Consumers as separate processes, which messages end.

use std::{os::unix::process::ExitStatusExt, path::PathBuf, sync::LazyLock};

use test_support::Daemon;
use tokio::sync::{Notify, watch};

use super::*;

const MAX_ATTEMPTS: u32 = 4;

/// This is not a test but the consumer process that the other tests start, and that a message may end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests beside it"]
async fn a_process_that_consumes() {
    let Ok(database) = std::env::var("CONSUMER_DATABASE") else {
        return;
    };
    let told = |name: &str| std::env::var(name).unwrap();
    let single = told("CONSUMER_SINGLE") == "true";
    let options = options(single, told("CONSUMER_HANDLERS").parse().unwrap());
    let broker = told("CONSUMER_BROKER");
    consume(database, broker, options, CancellationToken::new()).await;
}

fn options(single: bool, handlers: usize) -> ConsumerOptions {
    ConsumerOptions {
        declare: true,
        single_active_consumer: single,
        handlers,
        max_attempts: MAX_ATTEMPTS,
        backoff_initial: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        ..ConsumerOptions::new(QUEUE)
    }
}

async fn consume(
    database: String,
    broker: String,
    options: ConsumerOptions,
    stop: CancellationToken,
) {
    let connect = move || connected(database.clone());
    let inbox = Inbox::new("payments").unwrap();
    run(&broker, connect, inbox, options, Mortal, stop)
        .await
        .unwrap();
}

/// Number of messages of the types `slow` and `held` that handlers work on.
static SLOW: LazyLock<watch::Sender<usize>> = LazyLock::new(watch::Sender::default);
/// The file that a message of the type `held` waits for.
static RELEASED: Notify = Notify::const_new();
/// How long a message waits for a `slow` message before it ends the process.
const COMPANY: Duration = Duration::from_millis(1500);

struct Mortal;

impl Handler for Mortal {
    fn operation(&self, message: &Message) -> Result<Operation, OperationError> {
        if message.type_() == "aborts_at_once" {
            std::process::abort();
        }
        message.operation()
    }

    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> Result<Reply, Failure> {
        match message.type_() {
            // By then every other handler that may run is at work.
            "aborts" => {
                let mut slow = SLOW.subscribe();
                let company = slow.wait_for(|slow| *slow >= 3);
                let _ = tokio::time::timeout(COMPANY, company).await;
                std::process::abort();
            }
            "slow" => {
                SLOW.send_modify(|slow| *slow += 1);
                // Its work: the crash beside it must come before its end.
                tokio::time::sleep(COMPANY * 2).await;
                SLOW.send_modify(|slow| *slow -= 1);
            }
            "held" => {
                SLOW.send_modify(|slow| *slow += 1);
                RELEASED.notified().await;
            }
            // If two messages of a key were handled at the same time, their order would break.
            "uneven" => {
                let n = message.position().unwrap_or(0).unsigned_abs();
                tokio::time::sleep(Duration::from_millis(20 * (n / 5 % 2))).await;
                return write(message, transaction).await;
            }
            _ => {}
        }
        write(message, transaction).await
    }
}

async fn write(message: &Message, transaction: &Transaction<'_>) -> Result<Reply, Failure> {
    let id = message.message_id().unwrap_or_default();
    let sql = "INSERT INTO applied (id, key, position) VALUES ($1, $2, $3)";
    let (key, position) = (message.key(), message.position());
    transaction.execute(sql, &[&id, &key, &position]).await?;
    Ok(Reply::none())
}

struct Stage {
    world: World,
    handlers: usize,
    single: bool,
}

impl Stage {
    async fn set(handlers: usize, single: bool) -> Self {
        let world = world().await;
        let table = "CREATE TABLE applied (n bigint GENERATED ALWAYS AS IDENTITY, id text, key text, position bigint); \
                     GRANT INSERT ON applied TO payments";
        world.sql(table).await;
        let stage = Self {
            world,
            handlers,
            single,
        };
        // This declares the queues.
        let mut consumer = stage.start();
        eventually("the queues", SOON, async || {
            let listed = ["list_queues", "-q", "-p", &stage.world.vhost, "name"];
            let listed = stage.world.rabbitmq().ctl(&listed).await.unwrap();
            let there = |queue| listed.lines().any(|line| line == queue);
            (there(QUEUE) && there(DEAD)).then_some(())
        })
        .await;
        consumer.kill().await.unwrap();
        stage
    }

    fn database(&self) -> String {
        let postgres = self.world.postgres();
        postgres.url_for("payments", "payments", &self.world.database)
    }

    async fn until_two_consume(&self) {
        let listed = [
            "list_consumers",
            "-q",
            "-p",
            &self.world.vhost,
            "queue_name",
        ];
        eventually("two consumers", SOON, async || {
            let listed = self.world.rabbitmq().ctl(&listed).await.unwrap();
            let lines = listed.lines().filter(|line| *line == QUEUE);
            (lines.count() == 2).then_some(())
        })
        .await;
    }

    fn start(&self) -> Daemon {
        let env = [
            ("CONSUMER_DATABASE", self.database()),
            ("CONSUMER_BROKER", self.world.broker_url()),
            ("CONSUMER_HANDLERS", self.handlers.to_string()),
            ("CONSUMER_SINGLE", self.single.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let me: PathBuf = std::env::current_exe().unwrap();
        let test = "consuming::crashes::a_process_that_consumes";
        let args = [test, "--exact", "--ignored", "--nocapture"];
        Daemon::start(&me, &args, &env).unwrap()
    }

    /// Publishes all messages at once.
    async fn send(&self, messages: &[Planned]) {
        let channel = self.world.channel().await;
        let mut confirms = Vec::new();
        for message in messages {
            let mut headers = FieldTable::default();
            let key = AMQPValue::LongString(message.key.as_str().into());
            headers.insert("outbox-key".into(), key);
            let position = AMQPValue::LongLongInt(message.position);
            headers.insert("outbox-position".into(), position);
            let properties = BasicProperties::default()
                .with_type(message.type_.into())
                .with_message_id(short(&message.id))
                .with_headers(headers);
            let (to, options) = (short(QUEUE), BasicPublishOptions::default());
            let publish = channel.basic_publish(short(""), to, options, b"", properties);
            confirms.push(publish.await.unwrap());
        }
        for confirm in confirms {
            confirm.await.unwrap();
        }
    }

    /// Starts the consumer again each time that it ends, until the queue is empty; returns the number of starts.
    async fn until_empty(&self, at_most: usize) -> usize {
        let mut crashes = 0;
        loop {
            let mut consumer = self.start();
            tokio::select! {
                () = until_empty(&self.world) => {
                    consumer.kill().await.unwrap();
                    return crashes;
                }
                ended = consumer.ended(SOON * 5) => {
                    let status = ended.unwrap();
                    assert_eq!(status.signal(), Some(6), "{:?}", consumer.lines());
                    crashes += 1;
                    assert!(crashes <= at_most, "{crashes} crashes");
                }
            }
        }
    }

    async fn applied(&self) -> Vec<(String, String, i64)> {
        let sql = "SELECT id, key, position FROM applied ORDER BY n";
        let rows = self.world.all(sql).await;
        let row = |row: &tokio_postgres::Row| (row.get(0), row.get(1), row.get(2));
        rows.iter().map(row).collect()
    }
}

struct Planned {
    id: String,
    type_: &'static str,
    key: String,
    position: i64,
}

fn message(n: i64, type_: &'static str, key: &str) -> Planned {
    Planned {
        id: format!("{type_}-{n}"),
        type_,
        key: key.to_owned(),
        position: n + 1,
    }
}

fn innocent(messages: &[Planned]) -> HashSet<String> {
    let innocent = messages.iter().filter(|m| !m.type_.starts_with("aborts"));
    innocent.map(|m| m.id.clone()).collect()
}

/// The runner gives the culprits up, with their reason. All messages beside, after and before them are applied once.
async fn only_the_culprits_are_given_up(stage: &Stage, messages: &[Planned], at_most: usize) {
    stage.send(messages).await;
    let crashes = stage.until_empty(at_most).await;
    let culprits: HashSet<String> = messages
        .iter()
        .filter(|m| m.type_.starts_with("aborts"))
        .map(|m| m.id.clone())
        .collect();
    let dead = stage.world.consume(DEAD).await;
    let dead = dead.until(culprits.len()).await;
    for letter in &dead {
        let reason = letter.text_header("outbox-dead-reason");
        assert_eq!(reason.as_deref(), Some("attempts_exhausted"));
    }
    let dead: HashSet<_> = dead.into_iter().map(|letter| letter.message_id).collect();
    assert_eq!(dead, culprits, "after {crashes} crashes");
    let applied = stage.applied().await;
    let ids: HashSet<_> = applied.iter().map(|(id, ..)| id.clone()).collect();
    assert_eq!((ids, applied.len()), (innocent(messages), applied.len()));
    assert_eq!(applied.len(), innocent(messages).len(), "each once");
    assert_in_order(&applied);
    let suspected = "inbox.attempt WHERE last_error LIKE 'delivered again%'";
    assert_eq!(stage.world.count(suspected).await, 0);
}

fn assert_in_order(applied: &[(String, String, i64)]) {
    let mut last: HashMap<&str, i64> = HashMap::new();
    for (id, key, position) in applied {
        let before = last.insert(key, *position);
        assert!(before < Some(*position), "{id} of {key} behind {before:?}");
    }
}

/// Each crash hits every message that a handler works on at that moment.
#[tokio::test]
async fn what_is_handled_beside_a_message_that_kills_its_consumer_is_applied() {
    let stage = Stage::set(4, false).await;
    let mut messages = vec![message(100, "aborts", "culprit")];
    messages.extend((0..8).map(|n| message(n, "slow", &format!("slow{n}"))));
    messages
        .extend((0..40).map(|n| message(200 + n, "pays", ["culprit", "a", "b"][n as usize % 3])));
    only_the_culprits_are_given_up(&stage, &messages, 1 + MAX_ATTEMPTS as usize).await;
}

/// Two culprits are among messages that are applied without a pause. The broker has a limit, and counts each crash for every
/// prefetched message.
#[tokio::test]
async fn what_is_prefetched_behind_messages_that_kill_their_consumer_is_applied() {
    let stage = Stage::set(1, false).await;
    let policy = r#"{"delivery-limit": 7}"#;
    let words = ["--apply-to", "queues", "limit", "^payments$", policy];
    let set = [&["set_policy", "-p", &stage.world.vhost], &words[..]].concat();
    stage.world.rabbitmq().ctl(&set).await.unwrap();
    let mut messages: Vec<_> = (0..60)
        .map(|n| message(n, "pays", ["a", "b", "c"][n as usize % 3]))
        .collect();
    messages[10] = message(10, "aborts", "b");
    messages[30] = message(30, "aborts_at_once", "a");
    only_the_culprits_are_given_up(&stage, &messages, 2 * (1 + MAX_ATTEMPTS as usize)).await;
}

/// docs/guides/consuming.md says: copies share the messages of a key, unless the queue has a single active consumer.
#[tokio::test]
async fn two_copies_on_a_queue_with_a_single_active_consumer_keep_the_order_of_a_key() {
    let stage = Stage::set(4, true).await;
    let mut copies = vec![stage.start(), stage.start()];
    let messages: Vec<_> = (0..300)
        .map(|n| message(n, "uneven", ["a", "b", "c", "d", "e"][n as usize % 5]))
        .collect();
    for (n, part) in messages.chunks(100).enumerate() {
        stage.until_two_consume().await;
        stage.send(part).await;
        let some = n * 100 + 20;
        eventually("some of them to be applied", SOON, async || {
            let applied = stage.world.count("applied").await;
            (usize::try_from(applied).unwrap() >= some).then_some(())
        })
        .await;
        // One of these kills was of the active copy.
        copies.remove(0).kill().await.unwrap();
        copies.push(stage.start());
    }
    until_empty(&stage.world).await;
    let applied = stage.applied().await;
    assert_eq!(applied.len(), messages.len(), "each once");
    assert_in_order(&applied);
}

/// A rolling deployment: the copy that stops finishes its messages, and the next copy must not begin before that.
#[tokio::test]
async fn a_copy_that_stops_hands_its_messages_over_in_order() {
    let stage = Stage::set(4, true).await;
    let stop = CancellationToken::new();
    let first = ConsumerOptions {
        prefetch: 2,
        ..options(true, 4)
    };
    let first = consume(
        stage.database(),
        stage.world.broker_url(),
        first,
        stop.clone(),
    );
    let first = tokio::spawn(first);
    let mut messages = vec![message(0, "held", "k")];
    messages.extend((1..10).map(|n| message(n, "pays", "k")));
    stage.send(&messages).await;
    eventually("the held one to be in work", SOON, async || {
        (*SLOW.borrow() == 1).then_some(())
    })
    .await;
    let second = stage.start();
    stage.until_two_consume().await;
    stop.cancel();
    // Give the second copy time to break the rule.
    let listed = ["list_consumers", "-q", "-p", &stage.world.vhost];
    stage.world.rabbitmq().ctl(&listed).await.unwrap();
    assert_eq!(stage.world.count("applied").await, 0);
    RELEASED.notify_one();
    tokio::time::timeout(SOON, first).await.unwrap().unwrap();
    until_empty(&stage.world).await;
    let applied = stage.applied().await;
    assert_eq!(applied.len(), messages.len(), "each once");
    assert_in_order(&applied);
    drop(second);
}
