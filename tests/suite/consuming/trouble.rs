//! Faults around a message do not count against it; faults of the message itself do.

use lapin::options::{BasicGetOptions, BasicRejectOptions};
use metrics_exporter_prometheus::PrometheusHandle;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::Context;

use super::*;

/// The number of failures in a row that the runner counted, at each failure: the next pause depends on it.
#[derive(Clone, Default)]
pub struct Failures(Arc<Mutex<Vec<u64>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Failures {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
        if *event.metadata().level() <= tracing::Level::WARN {
            eprintln!("{event:?}");
        }
    }
}

impl Visit for Failures {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "failures" {
            self.0.lock().unwrap().push(value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Failures {
    /// Collects the log of this thread.
    pub fn seen() -> (Self, impl Drop) {
        let failures = Self::default();
        let guard = tracing_subscriber::registry()
            .with(failures.clone())
            .set_default();
        (failures, guard)
    }

    pub fn none(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }

    pub async fn until(&self, expected: &[u64]) {
        eventually("the failures", SOON, async || {
            let seen = self.0.lock().unwrap();
            assert!(
                seen.starts_with(expected) || expected.starts_with(&seen),
                "{seen:?}"
            );
            (seen.len() >= expected.len()).then_some(())
        })
        .await;
    }
}

/// The errors that are logged.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Errors {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Visit for Errors {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "error" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Errors {
    /// Collects the log of this thread.
    fn seen() -> (Self, impl Drop) {
        let errors = Self::default();
        let guard = tracing_subscriber::registry()
            .with(errors.clone())
            .set_default();
        (errors, guard)
    }

    /// Waits for what the function raises, with its hint.
    async fn until(&self, function: &str) {
        eventually(function, SOON, async || {
            let seen = self.0.lock().unwrap();
            let mut of_it = seen.iter().filter(|error| error.contains(function));
            let hint = " trigger ";
            of_it
                .next()
                .map(|error| assert!(error.contains(hint), "{error}"))
        })
        .await;
    }
}

/// Waits for this many attempts that ended because of the database, and for no dead letter.
async fn until_retried(metrics: &PrometheusHandle, times: f64) {
    eventually("retries because of the database", SOON, async || {
        let metrics = metrics.render();
        let dead = r#"inbox_dead_lettered_total{consumer="payments",reason="attempts_exhausted"}"#;
        assert_eq!(reading(&metrics, dead).unwrap_or_default(), 0.0);
        let retries = r#"inbox_retries_total{consumer="payments",reason="database"}"#;
        (reading(&metrics, retries)? >= times).then_some(())
    })
    .await;
}

/// A trigger on a table of the inbox.
async fn keeps(world: &World, table: &str, operations: &str, body: &str) {
    let trigger = format!(
        "CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$; \
         CREATE TRIGGER keep BEFORE {operations} ON inbox.{table} FOR EACH ROW EXECUTE FUNCTION keep()"
    );
    world.sql(&trigger).await;
}

/// A setting for the consumer's sessions.
async fn bound(world: &World, setting: &str) {
    let sql = format!(
        "ALTER ROLE payments IN DATABASE {} SET {setting}",
        world.database
    );
    world.sql(&sql).await;
}

/// Takes the only message as another consumer, and requeues or rejects it.
async fn reject(world: &World, requeue: bool) {
    let channel = world.channel().await;
    let message = eventually("the message", SOON, async || {
        let get = channel.basic_get(short(QUEUE), BasicGetOptions::default());
        get.await.unwrap()
    })
    .await;
    let reject = message.acker.reject(BasicRejectOptions { requeue });
    reject.await.unwrap();
    until_holds(world, QUEUE, usize::from(requeue)).await;
}

async fn attempts(world: &World) -> i32 {
    let sql = "SELECT coalesce(max(attempts), 0) FROM inbox.attempt";
    world.one(sql).await
}

/// The host of a consumer died, and the server still holds its claim. The next consumer of the message waits for that claim, and
/// must not give the message up before its handler ran once.
#[tokio::test]
async fn a_redelivered_message_that_cannot_be_claimed_is_counted_once_and_applied_in_the_end() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    // This declares the queues.
    let running = start(&world, Payments::default(), |_| ());
    until_holds(&world, QUEUE, 0).await;
    running.stopped().await;
    pays("m1", "a").to(&world).await;
    reject(&world, true).await;

    let mut other = world.postgres().connect(&world.database).await.unwrap();
    let transaction = other.transaction().await.unwrap();
    let operation = Operation::new("m1", "pays", "text/plain", b"a").unwrap();
    let inbox = Inbox::new("payments").unwrap();
    inbox.claim(&transaction, &operation).await.unwrap();
    // The server ends the claim: first its statement, and later its session.
    bound(&world, "statement_timeout = '1s'").await;
    let running = start(&world, Payments::default(), |options| {
        options.max_attempts = 2
    });
    let retries = r#"inbox_retries_total{consumer="payments",reason="database"}"#;
    until_retried(&metrics, 4.0).await;
    bound(&world, "statement_timeout = '0'").await;
    eventually("claims whose session was ended", SOON, async || {
        let waits = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        world.client.execute(waits, &[]).await.unwrap();
        (reading(&metrics.render(), retries)? >= 8.0).then_some(())
    })
    .await;
    assert_eq!(attempts(&world).await, 1, "counted for its delivery, once");
    transaction.rollback().await.unwrap();
    until_empty(&world).await;
    assert_eq!(cents(&world).await["a"], 1);
    assert_eq!(attempts(&world).await, 0, "forgiven");
    running.stopped().await;
}

#[tokio::test]
async fn an_attempt_whose_session_was_ended_under_the_handler_counts() {
    let world = world().await;
    bound(&world, "idle_in_transaction_session_timeout = '100ms'").await;
    let running = start(&world, Payments::default(), |options| {
        options.max_attempts = 3
    });
    // One handler learns it at its own statement, the other would learn it at the COMMIT.
    for (id, type_) in [
        ("m1", "outlives_its_session_and_writes"),
        ("m2", "outlives_its_session"),
    ] {
        pays(id, id).of(type_).to(&world).await;
    }
    let consumer = world.consume(DEAD).await;
    for dead in consumer.until(2).await {
        assert_dead(&dead, "attempts_exhausted", 3);
    }
    until_empty(&world).await;
    assert_eq!(running.payments.tried.lock().unwrap().len(), 6);
    assert!(cents(&world).await.is_empty());
    running.stopped().await;
}

/// An open connection alone is no progress. Otherwise the runner would reconnect at once, forever, and each time every prefetched
/// message would count one more delivery.
#[tokio::test]
async fn what_fails_on_every_connection_backs_off_further_each_time() {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let (failures, _guard) = Failures::seen();
    let world = world().await;
    let full = [
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    world.bind(QUEUE, "nothing", &[]).await;
    world.bind(DEAD, "full", &full).await;
    let channel = world.channel().await;
    let (to, none) = (short(DEAD), BasicProperties::default());
    let publish = channel.basic_publish(short(""), to, Default::default(), b"", none);
    publish.await.unwrap().await.unwrap();
    let running = start(&world, Payments::default(), |options| {
        options.declare = false;
        options.backoff_max = SOON;
    });
    pays("m1", "a").of("wrong").to(&world).await;
    failures.until(&[1, 2, 3, 4]).await;
    running.stopped().await;
}

#[tokio::test]
async fn panics_back_off_until_something_is_acknowledged() {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let (failures, _guard) = Failures::seen();
    let world = world().await;
    let running = start(&world, Payments::default(), |options| {
        options.max_attempts = 2;
        options.backoff_max = SOON;
    });
    pays("m1", "m1").of("panics").to(&world).await;
    // The message is tried once and redelivered twice. At the third redelivery it is dead-lettered and acknowledged.
    failures.until(&[1, 2, 3]).await;
    until_empty(&world).await;
    pays("m2", "m2").of("panics").to(&world).await;
    // A consumer that takes one message at a time took this message once without trying it, so it was redelivered.
    failures.until(&[1, 2, 3, 1, 2]).await;
    until_empty(&world).await;
    until_holds(&world, DEAD, 2).await;
    running.stopped().await;
}

/// The same for a message above the `delivery-limit`, which RabbitMQ 4 has by default.
#[tokio::test]
async fn what_the_broker_gives_up_lands_in_the_dead_letter_queue() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    until_holds(&world, QUEUE, 0).await;
    running.stopped().await;
    pays("m1", "a").to(&world).await;
    reject(&world, false).await;
    let consumer = world.consume(DEAD).await;
    let dead = &consumer.until(1).await[0];
    assert_eq!(
        (dead.message_id.as_str(), dead.body.as_slice()),
        ("m1", &b"a"[..])
    );
    assert!(dead.header("x-death").is_some());
    // The queues exist as the runner would declare them.
    let running = start(&world, Payments::default(), |_| ());
    pays("m2", "a").to(&world).await;
    until_paid(&world, "a").await;
    running.stopped().await;
}

/// This is the behaviour that docs/guides/consuming.md describes.
#[tokio::test]
async fn a_queue_that_was_declared_elsewhere_gets_its_dead_letters_by_a_policy() {
    let world = world().await;
    let quorum = [("x-queue-type", AMQPValue::LongString("quorum".into()))];
    world.bind(QUEUE, "nothing", &quorum).await;
    world.bind(DEAD, "nothing", &quorum).await;
    let policy = r#"{"dead-letter-exchange": "", "dead-letter-routing-key": "payments.dead", "delivery-limit": 2}"#;
    let words = ["--apply-to", "queues", "payments", "^payments$", policy];
    let set = [&["set_policy", "-p", &world.vhost], &words[..]].concat();
    world.rabbitmq().ctl(&set).await.unwrap();
    pays("m1", "").to(&world).await;
    let (queue, dead) = (world.channel().await, world.channel().await);
    let dead = eventually("the dead letter", SOON, async || {
        let get = BasicGetOptions::default();
        if let Some(again) = queue.basic_get(short(QUEUE), get).await.unwrap() {
            let reject = again.acker.reject(BasicRejectOptions { requeue: true });
            reject.await.unwrap();
        }
        dead.basic_get(short(DEAD), get).await.unwrap()
    })
    .await;
    let id = dead.delivery.properties.message_id().as_ref();
    assert_eq!(id.map(|id| id.as_str()), Some("m1"));
}

/// A missing right, a policy, or a schema that does not exist yet: the message waits, and is not given up.
#[tokio::test]
async fn a_claim_that_the_database_refuses_is_not_held_against_the_message() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    let revoke = "REVOKE INSERT ON inbox.message FROM inbox_consumer";
    world.sql(revoke).await;
    let running = start(&world, Payments::default(), |options| {
        options.max_attempts = 2
    });
    pays("m1", "a").to(&world).await;
    until_retried(&metrics, 4.0).await;
    assert_eq!(attempts(&world).await, 0);
    let grant = "GRANT INSERT ON inbox.message TO inbox_consumer";
    world.sql(grant).await;
    until_paid(&world, "a").await;
    until_empty(&world).await;
    until_holds(&world, DEAD, 0).await;
    running.stopped().await;
}

/// Neither the claim nor the result of a message is written: that is not the message's fault, and the log names the trigger.
#[tokio::test]
async fn a_message_that_a_trigger_keeps_from_the_inbox_waits_and_is_applied_without_the_trigger() {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _metrics = metrics::set_default_local_recorder(&recorder);
    let (errors, _guard) = Errors::seen();
    let world = world().await;
    let running = start(&world, Payments::default(), |options| {
        options.max_attempts = 2
    });
    for (account, operation, body, function, retried) in [
        ("a", "INSERT", "RETURN NULL;", "inbox.claim: ", 4.0),
        ("b", "UPDATE", "RETURN OLD;", "inbox.complete: ", 8.0),
    ] {
        keeps(&world, "message", operation, body).await;
        pays(account, account).to(&world).await;
        until_retried(&metrics, retried).await;
        errors.until(function).await;
        assert_eq!(attempts(&world).await, 0);
        assert!(!cents(&world).await.contains_key(account));
        world.sql("DROP TRIGGER keep ON inbox.message").await;
        until_paid(&world, account).await;
        until_empty(&world).await;
        let results = "SELECT DISTINCT convert_from(result, 'UTF8') FROM inbox.message";
        let paid: String = world.one(results).await;
        assert_eq!(paid, r#""paid""#);
    }
    until_holds(&world, DEAD, 0).await;
    running.stopped().await;
}

/// An attempt that cannot be counted does not exhaust the attempts, and a count that cannot be deleted lets nothing be applied.
#[tokio::test]
async fn a_redelivered_message_whose_count_a_trigger_keeps_waits_and_is_applied_without_the_trigger()
 {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _metrics = metrics::set_default_local_recorder(&recorder);
    let (errors, _guard) = Errors::seen();
    let world = world().await;
    // This declares the queues.
    let running = start(&world, Payments::default(), |_| ());
    until_holds(&world, QUEUE, 0).await;
    running.stopped().await;
    pays("m1", "a").of("fails_until_other").to(&world).await;
    reject(&world, true).await;
    let body = "IF TG_OP = 'UPDATE' THEN RETURN OLD; END IF; RETURN NULL;";
    keeps(&world, "attempt", "UPDATE OR DELETE", body).await;
    let running = start(&world, Payments::default(), |options| {
        options.max_attempts = 1
    });
    until_retried(&metrics, 4.0).await;
    errors.until("inbox.fail: ").await;
    let tried = &running.payments.tried;
    tried.lock().unwrap().push("other".to_owned());
    errors.until("inbox.forgive: ").await;
    assert!(cents(&world).await.is_empty());
    world.sql("DROP TRIGGER keep ON inbox.attempt").await;
    until_paid(&world, "a").await;
    until_empty(&world).await;
    assert_eq!(attempts(&world).await, 0, "forgiven");
    until_holds(&world, DEAD, 0).await;
    running.stopped().await;
}

/// The broker forgets an acknowledged message, so a crash of the server must not lose its effect.
#[tokio::test]
async fn a_commit_waits_for_the_disk_whatever_the_role_s_default_is() {
    let world = world().await;
    let look = "CREATE TABLE seen (setting text); GRANT INSERT ON seen TO payments; \
                CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS \
                $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$; \
                CREATE CONSTRAINT TRIGGER look AFTER INSERT ON account DEFERRABLE INITIALLY DEFERRED \
                FOR EACH ROW EXECUTE FUNCTION look()";
    world.sql(look).await;
    bound(&world, "synchronous_commit = off").await;
    let running = start(&world, Payments::default(), |_| ());
    for (id, type_) in [("m1", "pays"), ("m2", "fails_twice")] {
        pays(id, id).of(type_).to(&world).await;
    }
    until_empty(&world).await;
    let sql = "SELECT string_agg(setting, ' ') FROM seen";
    let seen: String = world.one(sql).await;
    assert_eq!(seen, "on on");
    running.stopped().await;
}
