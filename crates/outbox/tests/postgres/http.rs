//! Commands over HTTP are applied once: repeated, raced, hung up on, failed half-way.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{Method, Request, header},
    routing::post,
};
use outbox::{
    http::{IdempotencyLayer, IdempotencyOptions},
    inbox::Inbox,
};
use test_support::eventually;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_postgres::Client;

use crate::service::{SOON, clean, request, send, service, service_with};

#[tokio::test]
async fn a_repetition_gets_the_first_answer_byte_for_byte() {
    let service = service("replayed").await;
    let body = b"\x00\xff not text";
    let send = async || service.with_body("/payments?x=1", "k", &body[..]).await;
    let first = send().await;
    assert_eq!((first.status, first.replayed), (201, false));
    assert!(first.headers.contains_key(header::SET_COOKIE));
    let again = send().await;
    assert_eq!((again.status, again.replayed), (201, true));
    assert_eq!((&again.body, &again.body[..]), (&first.body, &body[..]));
    for name in [header::LOCATION, header::CONTENT_TYPE] {
        assert_eq!(again.headers[&name], first.headers[&name]);
    }
    assert!(
        !again.headers.contains_key(header::SET_COOKIE),
        "only chosen headers are kept"
    );
    assert_eq!(service.payments().await, 1);
}

/// A proxy may spell a path as it likes, and a retry may take another proxy.
#[tokio::test]
async fn two_spellings_of_one_path_are_one_command() {
    let service = service("spellings").await;
    let mut applied = 0;
    for (key, spellings) in [
        (
            "k",
            &[
                "/orders/12?a=~",
                "/orders/1%32?a=~",
                "/orders/%31%32?a=%7E",
                "/orders/12?a=%7e",
            ][..],
        ),
        (
            "k",
            &[
                "/orders/caf%c3%a9",
                "/orders/caf%C3%A9",
                "/orders/ca%66%C3%a9",
            ],
        ),
        ("k", &["/orders/~", "/orders/%7e", "/orders/%7E"]),
        ("k", &["/files/a/b", "/files/%61/b"]),
    ] {
        for (n, path) in spellings.iter().enumerate() {
            let answer = service.post(path, key).await;
            assert_eq!((answer.status, answer.replayed), (201, n > 0), "{path}");
        }
        for path in spellings {
            let other = service.with_body(path, key, "another body").await;
            assert_eq!(other.status, 422, "{path}");
        }
        applied += 1;
        assert_eq!(service.payments().await, applied);
    }
}

/// As axum routes them: it compares the fixed parts of a route as they are written.
#[tokio::test]
async fn what_axum_takes_for_two_resources_is_two_commands() {
    let service = service("resources").await;
    let mut applied = 0;
    for path in [
        "/orders/all",
        // The route with the parameter.
        "/orders/al%6c",
        "/files/a/b",
        "/files/a%2fb",
        "/files/a//b",
        "/files/a/./b",
        "/files/a/b/",
    ] {
        let answer = service.post(path, "k").await;
        assert_eq!((answer.status, answer.replayed), (201, false), "{path}");
        applied += 1;
        assert_eq!(service.payments().await, applied, "{path}");
    }
    let again = service.post("/orders/%61ll", "k").await;
    assert!(again.replayed, "another spelling of /orders/al%6c");
}

/// The client is gone before its answer: it was applied all the same, and the next try gets that answer.
#[tokio::test]
async fn a_client_that_hung_up_finds_its_answer_when_it_asks_again() {
    let service = service("hung-up").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = service.app.clone();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let message = "POST /gate HTTP/1.1\r\nhost: x\r\nx-account: alice\r\nidempotency-key: \"lost\"\r\n\
                   connection: close\r\ncontent-length: 0\r\n\r\n";
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(message.as_bytes()).await.unwrap();
    service.gate.reached.notified().await;
    drop(client);
    // The server has seen it when it has let go of the connection's task; what it may not do is let go of the command.
    service.gate.open.notify_one();
    eventually("the commit", SOON, async || {
        (service.keys().await == 1).then_some(())
    })
    .await;
    assert_eq!(service.payments().await, 1);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(message.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("idempotent-replayed: true\r\n"), "{answer}");
    assert_eq!(service.payments().await, 1);
    server.abort();
}

#[tokio::test]
async fn while_the_first_one_runs_the_second_is_told_so() {
    let service = service("busy").await;
    let first = tokio::spawn(send(
        service.app.clone(),
        request("/gate", "k").body("".into()).unwrap(),
    ));
    service.gate.reached.notified().await;
    let second = service.with_body("/gate", "k", "").await;
    assert_eq!(second.said(), (409, "in-progress".into()));
    assert_eq!(second.headers[header::RETRY_AFTER], "1");
    // Neither another key nor another caller waits.
    assert_eq!(service.post("/payments", "k2").await.status, 201);
    service.gate.open.notify_one();
    let first = first.await.unwrap();
    let third = service.with_body("/gate", "k", "").await;
    assert_eq!(
        (first.replayed, third.replayed, &third.body),
        (false, true, &first.body)
    );
    assert_eq!(service.payments().await, 2);
}

#[tokio::test]
async fn racing_requests_are_applied_once() {
    let service = service_with("raced", |options| {
        options.busy_wait = SOON;
    })
    .await;
    for round in 0..100 {
        let mut racing = JoinSet::new();
        for _ in 0..4 {
            let request = request("/payments", &format!("k{round}"))
                .body("{}".into())
                .unwrap();
            racing.spawn(send(service.app.clone(), request));
        }
        let answers = racing.join_all().await;
        assert_eq!(
            answers.iter().filter(|a| !a.replayed).count(),
            1,
            "{answers:?}"
        );
        assert!(answers.iter().all(|a| a.status == 201 && a.headers["location"] == answers[0].headers["location"]));
    }
    assert_eq!(service.payments().await, 100);
}

#[tokio::test]
async fn the_same_key_for_another_request_is_refused() {
    let service = service("reused").await;
    assert_eq!(service.post("/payments", "k").await.status, 201);
    let reused = (422, "key-reused".to_owned());
    let other_body = service.with_body("/payments", "k", "{ }").await;
    assert_eq!(other_body.said(), reused);
    let other_query = service.post("/payments?a=b", "k").await;
    assert_eq!(other_query.said(), reused);
    let other_type = request("/payments", "k").header("content-type", "text/plain");
    let other_type = service.send(other_type.body("{}".into()).unwrap()).await;
    assert_eq!(other_type.said(), reused);
    assert_eq!(service.payments().await, 1);
    assert!(
        service.post("/payments", "k").await.replayed,
        "the first one stands"
    );
}

/// HTTP/2 puts scheme and host into the URI, HTTP/1.1 only the path.
#[tokio::test]
async fn the_same_request_by_another_way_to_the_service_is_a_repetition() {
    let service = service("ways").await;
    assert_eq!(service.post("/payments?a=b", "k").await.status, 201);
    for uri in [
        "https://payments.example/payments?a=b",
        "http://10.0.0.7:8080/payments?a=b",
    ] {
        let again = service.post(uri, "k").await;
        assert_eq!((again.status, again.replayed), (201, true), "{uri}");
    }
    let other_query = service.post("https://payments.example/payments?a=c", "k");
    assert_eq!(other_query.await.said(), (422, "key-reused".into()));
    assert_eq!(service.payments().await, 1);
}

#[tokio::test]
async fn a_key_belongs_to_a_caller_and_a_route() {
    let service = service("scoped").await;
    let as_bob = || {
        Request::post("/payments")
            .header("x-account", "bob")
            .header("idempotency-key", "k")
    };
    for _ in 0..2 {
        service.post("/payments", "k").await;
        service.post("/other", "k").await;
        service.send(as_bob().body("{}".into()).unwrap()).await;
    }
    assert_eq!(service.payments().await, 3);
    let nobody = Request::post("/payments").header("idempotency-key", "k");
    let nobody = service.send(nobody.body("{}".into()).unwrap()).await;
    assert_eq!(nobody.said(), (401, "caller-unknown".into()));
}

#[tokio::test]
async fn a_missing_or_malformed_key_is_refused_before_anything_happens() {
    let service = service("malformed").await;
    let post = || Request::post("/payments").header("x-account", "alice");
    let missing = service.send(post().body("{}".into()).unwrap()).await;
    assert_eq!(missing.said(), (400, "key-missing".into()));
    for key in ["", "a b", "a, b", "\"open", &"k".repeat(256)] {
        let answer = service.post("/payments", key).await;
        assert_eq!(answer.said(), (400, "key-malformed".into()), "{key}");
    }
    let twice = post()
        .header("idempotency-key", "a")
        .header("idempotency-key", "a");
    assert_eq!(
        service.send(twice.body("{}".into()).unwrap()).await.said(),
        (400, "key-malformed".into())
    );
    assert_eq!((service.payments().await, service.keys().await), (0, 0));
    // Quoted or bare, it is one key; and as long as one may be.
    assert!(!service.post("/payments", "\"k\"").await.replayed);
    assert!(service.post("/payments", "k").await.replayed);
    let long = "k".repeat(255);
    assert!(!service.post("/payments", &long).await.replayed);
    assert!(service.post("/payments", &long).await.replayed);
    assert_eq!(service.payments().await, 2);
}

#[tokio::test]
async fn a_body_is_bounded() {
    let service = service_with("bounded", |options| options.max_request = 10).await;
    let large = service.with_body("/payments", "k", vec![0; 11]).await;
    assert_eq!(large.said(), (413, "body-too-large".into()));
    let fits = service.with_body("/payments", "k", vec![0; 10]).await;
    assert_eq!(fits.status, 201);
}

#[tokio::test]
async fn a_failure_leaves_nothing_and_frees_the_key() {
    // What frees the key may be on its way when the next one asks.
    let service = service_with("failing", |o| o.busy_wait = SOON).await;
    for code in ["500", "503", "401", "403", "409", "425", "429"] {
        for _ in 0..2 {
            let answer = service.post(&format!("/status/{code}"), "k").await;
            assert_eq!(
                (answer.status.to_string(), answer.replayed),
                (code.to_owned(), false)
            );
        }
    }
    for (path, said) in [
        ("/panic", (500, "failed")),
        ("/broken", (500, "internal")),
        ("/refused-late", (500, "internal")),
        ("/large", (500, "response-too-large")),
        ("/many-headers", (500, "response-too-large")),
    ] {
        for _ in 0..2 {
            assert_eq!(
                service.post(path, "k").await.said(),
                (said.0, said.1.to_owned()),
                "{path}"
            );
        }
    }
    assert_eq!((service.payments().await, service.keys().await), (0, 0));
    clean(&service).await;
}

#[tokio::test]
async fn a_handler_that_hangs_is_ended_and_frees_the_key() {
    let service = service_with("hanging", |o| {
        o.handler_timeout = Duration::from_millis(500);
        o.busy_wait = o.handler_timeout;
    })
    .await;
    for _ in 0..2 {
        let answer = service.post("/gate", "k").await;
        assert_eq!(answer.said(), (503, "timed-out".into()));
        clean(&service).await;
    }
    assert_eq!((service.payments().await, service.keys().await), (0, 0));
}

#[tokio::test]
async fn a_refusal_is_remembered_and_what_the_handler_wrote_is_not() {
    let service = service("refusing").await;
    for code in ["400", "404", "422"] {
        let first = service.post(&format!("/status/{code}"), "k").await;
        let again = service.post(&format!("/status/{code}"), "k").await;
        assert_eq!(
            (first.status.to_string(), first.replayed),
            (code.to_owned(), false)
        );
        assert_eq!(
            (again.status, again.replayed, again.body),
            (first.status, true, first.body)
        );
    }
    assert_eq!((service.payments().await, service.keys().await), (0, 3));
}

/// No handler can take its writes out of the transaction that holds the claim, but by committing it; and then nobody is
/// told that nothing was applied.
#[tokio::test]
async fn a_handler_that_ends_or_keeps_its_transaction_is_not_answered_as_done() {
    let service = service("escaping").await;
    let committing = [
        "/commits/200/COMMIT",
        "/commits/200/COMMIT;BEGIN",
        "/commits/404/COMMIT",
        "/commits/0/COMMIT",
    ];
    for path in committing {
        for _ in 0..2 {
            let answer = service.post(path, "k").await;
            assert_eq!(answer.said(), (500, "may-be-applied".into()), "{path}");
        }
    }
    let committed = committing.len() as i64;
    assert_eq!(
        service.payments().await,
        committed,
        "what they committed, once"
    );
    assert_eq!(
        service.post("/keeps", "k2").await.said(),
        (500, "internal".into())
    );
    service.gate.open.notify_one();
    tokio::time::timeout(SOON, service.gate.reached.notified())
        .await
        .unwrap();
    assert_eq!(service.payments().await, committed);
    // The pool has lost a connection, and nothing else.
    assert_eq!(service.post("/payments", "k3").await.status, 201);
    clean(&service).await;
}

#[tokio::test]
async fn other_methods_pass_and_keys_may_be_optional() {
    let service = service_with("optional", |options| options.required = false).await;
    let get = Request::get("/payments").body(Body::empty()).unwrap();
    assert_eq!(service.send(get).await.body, "not a command");
    for n in 1..=2 {
        let unkeyed = Request::post("/payments")
            .header("x-account", "alice")
            .body("{}".into())
            .unwrap();
        let answer = service.send(unkeyed).await;
        assert_eq!((answer.status, answer.replayed), (201, false));
        assert_eq!(
            service.payments().await,
            n,
            "committed, and applied each time"
        );
    }
    let failed = Request::post("/status/404")
        .header("x-account", "alice")
        .body("{}".into())
        .unwrap();
    assert_eq!(service.send(failed).await.status, 404);
    assert_eq!((service.payments().await, service.keys().await), (2, 0));
    service.post("/payments", "k").await;
    assert!(service.post("/payments", "k").await.replayed);
    clean(&service).await;
}

/// A key is forgotten when its time is over, and not before.
#[tokio::test]
async fn a_key_expires() {
    let service = service("expiring").await;
    assert_eq!(service.post("/payments", "old").await.status, 201);
    let age = "UPDATE inbox.message \
               SET claimed_at = claimed_at - interval '25 h', recorded_at = recorded_at - interval '25 h' \
               WHERE consumer = 'expiring'";
    service.db.batch_execute(age).await.unwrap();
    assert_eq!(service.post("/payments", "new").await.status, 201);
    let layer = service.layer.clone();
    let forgetting = tokio::spawn(async move { layer.forget_expired().await });
    eventually("the old key to be forgotten", SOON, async || {
        (service.keys().await == 1).then_some(())
    })
    .await;
    forgetting.abort();
    assert!(service.post("/payments", "new").await.replayed);
    assert!(!service.post("/payments", "old").await.replayed);
    assert_eq!(service.payments().await, 3);
}

/// A service whose connections come from `connect`.
fn connecting<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Router
where
    F: Future<Output = Result<Box<Client>, &'static str>> + Send + 'static,
{
    let options = IdempotencyOptions {
        connect_timeout: Duration::from_millis(200),
        ..Default::default()
    };
    let inbox = Inbox::new("away").unwrap();
    let layer = IdempotencyLayer::new(inbox, options, connect, |c| c, |_| Some(String::new()));
    Router::new()
        .route("/", post(|| async {}))
        .route_layer(layer.unwrap())
}

#[tokio::test]
async fn without_a_database_a_command_is_told_to_come_again() {
    for app in [
        connecting(|| async { Err("refused") }),
        connecting(std::future::pending),
    ] {
        let answer = send(app, request("/", "k").body("".into()).unwrap()).await;
        assert_eq!(answer.said(), (503, "unavailable".into()));
        assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    }
}

#[test]
fn get_is_no_command() {
    let options = IdempotencyOptions {
        methods: vec![Method::GET],
        ..Default::default()
    };
    let connect = || async { Err::<Box<Client>, _>("never asked") };
    let layer = IdempotencyLayer::new(Inbox::new("x").unwrap(), options, connect, |c| c, |_| None);
    assert_eq!(layer.err().unwrap().option, "methods");
}
