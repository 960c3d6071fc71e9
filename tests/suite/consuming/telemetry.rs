//! A consumer's metrics and spans.

use super::*;

#[tokio::test]
async fn every_metric_of_the_inbox_moves() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    // The runtime of a test has one thread, so this recorder counts exactly the work of this test.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    let begun = Operation::new("doubtful", "t", "c", b"").unwrap();
    Inbox::new("payments")
        .unwrap()
        .begin_effect(&world.client, &begun)
        .await
        .unwrap();
    let running = start(&world, Payments::default(), |options| {
        options.replay = ReplayPolicy::Skip;
        options.handler_timeout = UNHURRIED;
    });
    let replay = [("outbox-replay", AMQPValue::Boolean(true))];
    pays("m1", "a").to(&world).await;
    pays("m1", "a").to(&world).await;
    pays("m1", "another body").to(&world).await;
    pays("m2", "b").of("fails_twice").to(&world).await;
    pays("m3", "c").of("hangs_once").to(&world).await;
    pays("m4", "d").with(&replay).to(&world).await;
    until_empty(&world).await;
    let metrics = metrics.render();
    let value = |series: &str| {
        reading(&metrics, series).unwrap_or_else(|| panic!("{series} is missing in\n{metrics}"))
    };
    let outcome = |outcome: &str| {
        value(&format!(
            r#"inbox_messages_total{{consumer="payments",outcome="{outcome}"}}"#
        ))
    };
    assert_eq!(outcome("first"), 3.0);
    assert_eq!(outcome("duplicate"), 1.0);
    assert_eq!(outcome("conflict"), 1.0);
    assert_eq!(outcome("replay_skipped"), 1.0);
    assert_eq!(value("inbox_conflicts_total"), 1.0);
    let retries = |reason| {
        value(&format!(
            r#"inbox_retries_total{{consumer="payments",reason="{reason}"}}"#
        ))
    };
    assert_eq!(retries("failed"), 2.0);
    assert_eq!(retries("timed_out"), 1.0);
    let dead = r#"inbox_dead_lettered_total{consumer="payments",reason="conflict"}"#;
    assert_eq!(value(dead), 1.0);
    assert_eq!(value("inbox_in_doubt"), 1.0);
    assert!(value("inbox_oldest_in_doubt_age_seconds") > 0.0);
    let configured = UNHURRIED.as_secs_f64();
    assert_eq!(value("inbox_handler_timeout_seconds"), configured);
    // A counter is 0 before its first event, not absent: an alert on the first event needs the 0 before it.
    assert_eq!(value("inbox_lost_acknowledgements_total"), 0.0);
    let none = r#"inbox_dead_lettered_total{consumer="payments",reason="rejected"}"#;
    assert_eq!(value(none), 0.0);
    assert_eq!(
        value("inbox_handler_seconds_count"),
        6.0,
        "three that applied, two that failed, one that hung"
    );
    running.stopped().await;
}

/// The runner looks only after its own inbox. The service looks after an inbox for external effects.
#[tokio::test]
async fn an_inbox_of_external_effects_is_measured_and_pruned() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    let effects = Inbox::new("at the provider").unwrap();
    for key in ["charged", "doubtful"] {
        let begun = Operation::new(key, "t", "c", b"").unwrap();
        effects.begin_effect(&world.client, &begun).await.unwrap();
    }
    let recorded = effects.record_effect(&world.client, "charged", &"yes");
    recorded.await.unwrap();
    let older = "UPDATE inbox.message \
                 SET claimed_at = claimed_at - interval '1 h', recorded_at = recorded_at - interval '1 h'";
    world.sql(older).await;
    let database = world.url_of("payments");
    let kept = tokio::spawn(async move {
        let connect = async || connected(database.clone()).await;
        let hour = Duration::from_secs(3600);
        effects.forget_expired(hour, connect, |c| c).await;
    });
    eventually("the charge to be forgotten", SOON, async || {
        let left = world.count("inbox.message").await;
        (left == 1).then_some(())
    })
    .await;
    kept.abort();
    assert_eq!(world.count("inbox.in_doubt").await, 1);
    let doubts = r#"inbox_in_doubt{consumer="at the provider"}"#;
    assert_eq!(reading(&metrics.render(), doubts), Some(1.0));
}

/// An inbox that does not answer must not look like one without doubts and without retries.
#[tokio::test]
async fn a_database_that_is_away_is_counted_and_is_no_reading_of_zero() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    let stop = CancellationToken::new();
    let options = ConsumerOptions {
        declare: true,
        ..ConsumerOptions::new(QUEUE)
    };
    let url = world.broker_url();
    let token = stop.clone();
    let task = tokio::spawn(async move {
        // No server listens on this port.
        let connect = async || {
            let (client, _) = tokio_postgres::connect("host=127.0.0.1 port=1", NoTls).await?;
            Ok(client)
        };
        let handler = Shared(Arc::new(Payments::default()));
        let inbox = Inbox::new("payments").unwrap();
        run(&url, connect, inbox, options, handler, token)
            .await
            .unwrap();
    });
    pays("m1", "").to(&world).await;
    let retries = r#"inbox_retries_total{consumer="payments",reason="database"}"#;
    eventually("a retry", SOON, async || {
        (reading(&metrics.render(), retries)? > 0.0).then_some(())
    })
    .await;
    let metrics = metrics.render();
    for series in ["inbox_in_doubt", "inbox_oldest_in_doubt_age_seconds"] {
        let value = reading(&metrics, series).expect(series);
        assert!(value.is_nan(), "{series} is {value}");
    }
    stop.cancel();
    tokio::time::timeout(SOON, task)
        .await
        .expect("it ends")
        .unwrap();
}

/// The consumer's span continues the producer's trace.
#[tokio::test]
async fn a_consumer_s_span_continues_the_producer_s_trace() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    // With only one subscriber, tracing caches the decision of the first thread that reaches a span, and another test's thread has
    // no subscriber. With two subscribers, tracing asks both each time.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing_subscriber::registry().with(layer).set_default();
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", AMQPValue::LongString(parent.into()))];
    pays("m1", "a").with(&headers).to(&world).await;
    let span = eventually("the span", SOON, async || {
        let spans = exporter.get_finished_spans().unwrap();
        spans.into_iter().find(|span| span.name == "consume")
    })
    .await;
    let trace = span.span_context.trace_id().to_string();
    assert_eq!(trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
    running.stopped().await;
}
