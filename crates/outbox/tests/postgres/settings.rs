//! The inbox runs in the service's session, whose settings are not ours: whatever a role, a database or a table's owner
//! set there, nobody is told `first` twice.

use std::sync::Arc;

use outbox::inbox::{Begun, Claimed, Inbox, InboxError, Operation};
use tokio::{
    sync::{Barrier, OnceCell},
    task::JoinSet,
};
use tokio_postgres::{Client, NoTls, error::SqlState};

use crate::{read, server};

static READY: OnceCell<()> = OnceCell::const_new();

/// A database of a test's own, since its inbox is changed; and the inbox's owner, who is no superuser.
pub async fn owner(database: &str) -> Client {
    let postgres = server().await;
    READY
        .get_or_init(|| async {
            let roles = "CREATE ROLE settings_owner LOGIN CREATEROLE PASSWORD 'o'; \
                         CREATE ROLE settings_service LOGIN PASSWORD 's'";
            postgres.execute("postgres", roles).await.unwrap();
        })
        .await;
    let created = postgres.create_database(database, "settings_owner");
    created.await.unwrap();
    let inbox = read("migrations/inbox/0001_inbox.sql");
    postgres
        .psql("settings_owner", "o", database, &inbox)
        .unwrap();
    let role = "GRANT USAGE ON SCHEMA inbox TO settings_service; \
                GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA inbox TO settings_service";
    postgres.execute(database, role).await.unwrap();
    connect(database, "settings_owner", "o").await
}

async fn connect(database: &str, user: &str, password: &str) -> Client {
    let url = server().await.url_for(user, password, database);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub async fn service(database: &str, settings: &[&str]) -> Client {
    let client = connect(database, "settings_service", "s").await;
    for setting in settings {
        client
            .batch_execute(&format!("SET {setting}"))
            .await
            .unwrap();
    }
    client
}

fn operation(key: &str) -> Operation {
    Operation::new(key, "paid", "text/plain", br"a \ backslash").unwrap()
}

fn code(error: &InboxError) -> Option<&SqlState> {
    match error {
        InboxError::Database(error) => error.code(),
        _ => None,
    }
}

const HOSTILE: [&[&str]; 8] = [
    &["default_transaction_isolation = 'serializable'"],
    &["default_transaction_isolation = 'repeatable read'"],
    &[
        "standard_conforming_strings = off",
        "escape_string_warning = off",
    ],
    &["bytea_output = 'escape'"],
    &["plpgsql.variable_conflict = 'error'"],
    &["plpgsql.variable_conflict = 'use_variable'"],
    &["transform_null_equals = on"],
    &[
        "datestyle = 'German, DMY'",
        "timezone = 'Asia/Kathmandu'",
        "intervalstyle = 'sql_standard'",
    ],
];

#[tokio::test]
async fn under_every_setting_of_a_session_an_operation_is_first_once_and_its_result_the_same() {
    let _owner = owner("settings_all").await;
    for (n, settings) in HOSTILE.iter().enumerate() {
        let mut client = service("settings_all", settings).await;
        let inbox = Inbox::new(format!("settings-{n}")).unwrap();
        let guarded = operation("k").guarded("entity", 7);
        let transaction = client.transaction().await.unwrap();
        let claimed = inbox.claim(&transaction, &guarded).await.unwrap();
        assert_eq!(claimed, Claimed::First, "{settings:?}");
        let result = b"\\x00 \xff";
        let completed = inbox.complete_with(&transaction, &guarded, result, "x");
        completed.await.unwrap();
        transaction.commit().await.unwrap();

        let transaction = client.transaction().await.unwrap();
        let claimed = inbox.claim(&transaction, &guarded).await.unwrap();
        let Claimed::Duplicate(stored) = claimed else {
            panic!("{settings:?}: {claimed:?}")
        };
        assert_eq!(stored.bytes.as_deref(), Some(&result[..]), "{settings:?}");
        let older = operation("older").guarded("entity", 6);
        let claimed = inbox.claim(&transaction, &older).await.unwrap();
        assert_eq!(claimed, Claimed::Stale, "{settings:?}");
        transaction.commit().await.unwrap();

        for expected in [1, 2] {
            assert_eq!(inbox.fail(&client, "k", "why").await.unwrap(), expected);
        }
        assert_eq!(
            inbox.begin_effect(&client, &operation("e")).await.unwrap(),
            Begun::First
        );
        assert_eq!(
            inbox.begin_effect(&client, &operation("e")).await.unwrap(),
            Begun::InDoubt
        );
        inbox.record_effect(&client, "e", &"yes").await.unwrap();
        let prune = inbox.prune(&client, std::time::Duration::ZERO, 10);
        assert_eq!(prune.await.unwrap(), 3, "{settings:?}");
        let fingerprint = "SELECT inbox.fingerprint('paid', 'text/plain', $1::bytea)";
        let body: &[u8] = br"a \ backslash";
        let row = client.query_one(fingerprint, &[&body]).await.unwrap();
        assert_eq!(
            row.get::<_, Vec<u8>>(0),
            operation("k").fingerprint(),
            "{settings:?}"
        );
    }
}

/// One is told `first`; the others `duplicate`, or to try again.
#[tokio::test]
async fn racing_claims_under_every_isolation_level_are_first_once() {
    let _owner = owner("settings_races").await;
    for level in ["read committed", "repeatable read", "serializable"] {
        let setting = format!("default_transaction_isolation = '{level}'");
        let inbox = Inbox::new(format!("races under {level}")).unwrap();
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(service("settings_races", &[&setting]).await);
        }
        for round in 0..25 {
            let together = Arc::new(Barrier::new(clients.len()));
            let mut racing = JoinSet::new();
            for mut client in clients.drain(..) {
                let (inbox, together) = (inbox.clone(), Arc::clone(&together));
                racing.spawn(async move {
                    let operation = operation(&format!("k{round}")).guarded("entity", round);
                    together.wait().await;
                    let mut again = 0;
                    let first = loop {
                        let transaction = client.transaction().await.unwrap();
                        let claimed = match inbox.claim(&transaction, &operation).await {
                            Ok(claimed) => transaction.commit().await.map(|()| claimed),
                            Err(InboxError::Database(error)) => Err(error),
                            Err(other) => panic!("{other}"),
                        };
                        match claimed {
                            Ok(claimed) => break claimed == Claimed::First,
                            Err(error) => {
                                assert_eq!(
                                    error.code(),
                                    Some(&SqlState::T_R_SERIALIZATION_FAILURE)
                                );
                                again += 1;
                                assert!(again < 100, "it never ends");
                            }
                        }
                    };
                    (client, first)
                });
            }
            let mut first = 0;
            while let Some(ended) = racing.join_next().await {
                let (client, was_first) = ended.unwrap();
                first += usize::from(was_first);
                clients.push(client);
            }
            assert_eq!(first, 1, "round {round} under {level}");
        }
    }
}

/// A tenant's policy, forced on the owner, too. Each answer is right, or an error; a filtered row is never "nothing there".
#[tokio::test]
async fn behind_row_level_security_nothing_is_first_twice_or_silently_left_out() {
    let owner = owner("settings_rls").await;
    let mut client = service("settings_rls", &[]).await;
    let inbox = Inbox::new("policies").unwrap();
    let transaction = client.transaction().await.unwrap();
    let known = operation("known").guarded("known", 7);
    inbox.claim(&transaction, &known).await.unwrap();
    transaction.commit().await.unwrap();
    inbox
        .begin_effect(&client, &operation("doubt"))
        .await
        .unwrap();
    inbox.fail(&client, "known", "why").await.unwrap();

    for policy in [
        // None at all: everything is filtered.
        "",
        // Rows of another tenant are hidden, and may be written.
        "CREATE POLICY tenant ON inbox.message USING (consumer <> 'policies') WITH CHECK (true); \
         CREATE POLICY tenant ON inbox.entity USING (consumer <> 'policies') WITH CHECK (true); \
         CREATE POLICY tenant ON inbox.attempt USING (consumer <> 'policies') WITH CHECK (true);",
    ] {
        let on = "ALTER TABLE inbox.message ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; \
                  ALTER TABLE inbox.entity ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; \
                  ALTER TABLE inbox.attempt ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;";
        owner
            .batch_execute(&format!("{on} {policy}"))
            .await
            .unwrap();

        let transaction = client.transaction().await.unwrap();
        let claimed = inbox.claim(&transaction, &known).await;
        assert!(claimed.is_err(), "{policy}: {claimed:?}");
        transaction.rollback().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let older = operation("new").guarded("known", 6);
        let claimed = inbox.claim(&transaction, &older).await;
        assert!(
            claimed.is_err(),
            "{policy}: the guard's row is hidden: {claimed:?}"
        );
        transaction.rollback().await.unwrap();
        let begun = inbox.begin_effect(&client, &operation("doubt")).await;
        assert!(begun.is_err(), "{policy}: {begun:?}");
        assert!(inbox.record_effect(&client, "doubt", &"x").await.is_err());
        assert!(inbox.fail(&client, "known", "why").await.is_err());
        let pruned = inbox.prune(&client, std::time::Duration::ZERO, 10).await;
        let refused = pruned.as_ref().err().and_then(code);
        assert_eq!(
            refused,
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{policy}: {pruned:?}"
        );
        let measured = owner
            .query_one("SELECT in_doubt FROM inbox.status", &[])
            .await;
        assert!(measured.is_err(), "{policy}: it says {measured:?}");
        let listed = client.query("SELECT FROM inbox.in_doubt", &[]).await;
        assert!(
            listed.is_err(),
            "{policy}: {} doubts",
            listed.unwrap().len()
        );
    }
    let off = "ALTER TABLE inbox.message DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY; \
               ALTER TABLE inbox.entity DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY; \
               ALTER TABLE inbox.attempt DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY";
    owner.batch_execute(off).await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let claimed = inbox.claim(&transaction, &known).await.unwrap();
    assert!(matches!(claimed, Claimed::Duplicate(_)), "{claimed:?}");
}
