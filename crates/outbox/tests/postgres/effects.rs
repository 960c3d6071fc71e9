//! External effects, and what is remembered of them for how long.

use std::time::Duration;

use outbox::inbox::{Begun, Claimed, Inbox, Operation};

use tokio_postgres::Client;

use crate::{
    inbox::{apply, connect, consumer, inbox, operation},
    server,
};

async fn begun(client: &Client, inbox: &Inbox, effect: &Operation) -> Begun {
    inbox.begin_effect(client, effect).await.unwrap()
}

#[tokio::test]
async fn an_effect_that_was_begun_and_not_recorded_is_in_doubt_until_somebody_settles_it() {
    let mut client = consumer().await;
    let inbox = inbox("effects");
    let charge = operation("pay_1");
    assert_eq!(begun(&client, &inbox, &charge).await, Begun::First);
    // The process dies here. What comes next is told so, by whatever way it asks.
    assert_eq!(begun(&client, &inbox, &charge).await, Begun::InDoubt);
    assert_eq!(apply(&mut client, &inbox, &charge).await, Claimed::InDoubt);
    let doubts = inbox.in_doubt(&client, Duration::ZERO, 10).await.unwrap();
    assert_eq!(
        doubts.iter().map(|d| d.key.as_str()).collect::<Vec<_>>(),
        ["pay_1"]
    );
    assert!(
        inbox
            .in_doubt(&client, Duration::from_secs(3600), 10)
            .await
            .unwrap()
            .is_empty()
    );
    let watcher = connect("watcher", "w").await;
    let status = watcher
        .query_one(
            "SELECT in_doubt, oldest_in_doubt_age_seconds FROM inbox.status",
            &[],
        )
        .await
        .unwrap();
    assert!(status.get::<_, i64>(0) >= 1 && status.get::<_, f64>(1) > 0.0);

    // The provider says that it was charged.
    inbox
        .record_effect(&client, "pay_1", &"charged")
        .await
        .unwrap();
    let Begun::Duplicate(stored) = begun(&client, &inbox, &charge).await else {
        panic!("not a duplicate")
    };
    assert_eq!(stored.json::<String>().unwrap().as_deref(), Some("charged"));
    assert!(
        inbox
            .record_effect(&client, "pay_1", &"again")
            .await
            .is_err(),
        "recorded once"
    );

    // Of another one it says that nothing happened.
    assert_eq!(
        begun(&client, &inbox, &operation("pay_2")).await,
        Begun::First
    );
    inbox.abandon_effect(&client, "pay_2").await.unwrap();
    assert_eq!(
        begun(&client, &inbox, &operation("pay_2")).await,
        Begun::First
    );
    let other = Operation::new("pay_2", "paid", "application/json", b"other").unwrap();
    assert_eq!(begun(&client, &inbox, &other).await, Begun::Conflict);
}

#[tokio::test]
async fn pruning_forgets_what_is_older_than_the_horizon_and_never_what_is_in_doubt() {
    let mut client = consumer().await;
    let inbox = inbox("prune");
    for n in 0..25 {
        apply(&mut client, &inbox, &operation(&format!("old{n}"))).await;
    }
    begun(&client, &inbox, &operation("doubt")).await;
    inbox.fail(&client, "failed", "boom").await.unwrap();
    let admin = server().await.connect("payments").await.unwrap();
    let age = "UPDATE inbox.message \
               SET claimed_at = claimed_at - interval '2 days', recorded_at = recorded_at - interval '2 days' \
               WHERE consumer = 'prune'; \
               UPDATE inbox.attempt SET last_at = last_at - interval '2 days' WHERE consumer = 'prune'";
    admin.batch_execute(age).await.unwrap();
    apply(&mut client, &inbox, &operation("young")).await;
    let day = Duration::from_secs(24 * 3600);
    let mut steps = Vec::new();
    loop {
        match inbox.prune(&client, day, 10).await.unwrap() {
            0 => break,
            n => steps.push(n),
        }
    }
    assert_eq!(steps, [10, 10, 5], "in bounded steps");
    assert!(matches!(
        apply(&mut client, &inbox, &operation("young")).await,
        Claimed::Duplicate(_)
    ));
    assert_eq!(
        begun(&client, &inbox, &operation("doubt")).await,
        Begun::InDoubt
    );
    assert_eq!(
        apply(&mut client, &inbox, &operation("old0")).await,
        Claimed::First,
        "past the horizon"
    );
}

/// A person settles a doubt after weeks: the message in the dead-letter queue may be given back only then.
#[tokio::test]
async fn an_effect_recorded_late_is_remembered_from_its_record() {
    let client = consumer().await;
    let inbox = inbox("late");
    let effect = operation("charge");
    begun(&client, &inbox, &effect).await;
    let admin = server().await.connect("payments").await.unwrap();
    let age = async |column: &str| {
        let sql = format!(
            "UPDATE inbox.message SET {column} = {column} - interval '2 days' WHERE consumer = 'late'"
        );
        admin.batch_execute(&sql).await.unwrap();
    };
    age("claimed_at").await;
    inbox
        .record_effect(&client, "charge", &"charged")
        .await
        .unwrap();
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(inbox.prune(&client, day, 10).await.unwrap(), 0);
    assert!(matches!(
        begun(&client, &inbox, &effect).await,
        Begun::Duplicate(_)
    ));
    age("recorded_at").await;
    assert_eq!(inbox.prune(&client, day, 10).await.unwrap(), 1);
}
