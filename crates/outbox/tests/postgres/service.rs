//! A service with commands over HTTP, as the tests see it.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    http::{HeaderMap, Request, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use deadpool_postgres::{Manager, Object, Pool};
use outbox::{
    http::{Command, CommandError, IdempotencyLayer, IdempotencyOptions},
    inbox::Inbox,
};
use test_support::eventually;
use tokio::sync::{Notify, OnceCell};
use tokio_postgres::{Client, NoTls};
use tower::ServiceExt;

use crate::{read, server};

/// A slow machine gets this long.
pub const SOON: Duration = Duration::from_secs(180);
static READY: OnceCell<()> = OnceCell::const_new();

/// A database with the inbox, a table whose writes are not idempotent by themselves, and a service's role.
async fn onlooker() -> Client {
    READY
        .get_or_init(|| async {
            let postgres = server().await;
            postgres.create_database("commands", "postgres").await.unwrap();
            for sql in [
                &read("migrations/inbox/0001_inbox.sql"),
                "GRANT USAGE ON SCHEMA inbox TO PUBLIC; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA inbox TO PUBLIC; \
                 CREATE TABLE payment (id bigint GENERATED ALWAYS AS IDENTITY, test text, caller text, cents bigint); \
                 CREATE TABLE single (id text CONSTRAINT single_at_commit UNIQUE DEFERRABLE INITIALLY DEFERRED); \
                 CREATE ROLE commands LOGIN PASSWORD 'c'; GRANT SELECT, INSERT ON payment, single TO commands",
            ] {
                postgres.execute("commands", sql).await.unwrap();
            }
        })
        .await;
    server().await.connect("commands").await.unwrap()
}

/// A service of one test, under a consumer name of its own.
pub struct Service {
    pub name: &'static str,
    pub app: Router,
    pub layer: IdempotencyLayer,
    pub db: Client,
    /// What `/gate` waits for, and says when it got there.
    pub gate: Arc<Gate>,
}

#[derive(Default)]
pub struct Gate {
    pub reached: Notify,
    pub open: Notify,
}

pub async fn service(name: &'static str) -> Service {
    service_with(name, |_| {}).await
}

pub async fn service_with(name: &'static str, change: fn(&mut IdempotencyOptions)) -> Service {
    let db = onlooker().await;
    let url = server().await.url_for("commands", "c", "commands");
    let mut url: tokio_postgres::Config = url.parse().unwrap();
    url.application_name(name);
    let manager = Manager::new(url, NoTls);
    let pool = Pool::builder(manager).max_size(8).build().unwrap();
    // No handler, and no connection, is given up because the machine is busy.
    let mut options = IdempotencyOptions {
        connect_timeout: SOON,
        handler_timeout: SOON,
        ..Default::default()
    };
    change(&mut options);
    let layer = IdempotencyLayer::new(
        Inbox::new(name).unwrap(),
        options,
        move || {
            let pool = pool.clone();
            async move { pool.get().await }
        },
        |object: &Object| object,
        |request: &Parts| Some(request.headers.get("x-account")?.to_str().ok()?.to_owned()),
    )
    .unwrap();
    let gate = Arc::new(Gate::default());
    let commands = Router::new()
        .route("/payments", post(pay).get(count))
        .route("/other", post(pay))
        .route("/gate", post(gated))
        .route("/status/{code}", post(status))
        .route("/orders/{id}", post(pay))
        .route("/orders/all", post(pay))
        .route("/files/{*path}", post(pay))
        .route("/panic", post(panics))
        .route("/commits/{code}/{sql}", post(commits))
        .route("/keeps", post(keeps))
        .route("/broken", post(broken))
        .route("/refused-late", post(refused_at_commit))
        .route("/large", post(large))
        .route("/many-headers", post(many_headers))
        .route_layer(layer.clone())
        .layer(Extension(name))
        .layer(Extension(Arc::clone(&gate)));
    let app = Router::new().merge(commands).route("/", get(|| async {}));
    Service {
        name,
        app,
        layer,
        db,
        gate,
    }
}

/// The business write of every command: a row more each time.
async fn write(command: &Command, test: &str, headers: &HeaderMap) -> Result<i64, CommandError> {
    let caller = headers.get("x-account").unwrap().to_str().unwrap();
    let sql = "INSERT INTO payment (test, caller, cents) VALUES ($1, $2, 1) RETURNING id";
    Ok(command.query_one(sql, &[&test, &caller]).await?.get(0))
}

type Name = Extension<&'static str>;

async fn pay(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, CommandError> {
    let id = write(&command, test, &headers).await?;
    let mut response = (
        StatusCode::CREATED,
        [("location", format!("/payments/{id}"))],
        body,
    )
        .into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        "application/vnd.payment".parse().unwrap(),
    );
    headers.insert(header::SET_COOKIE, "session=1".parse().unwrap());
    Ok(response)
}

async fn count() -> &'static str {
    "not a command"
}

async fn gated(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    Extension(gate): Extension<Arc<Gate>>,
    headers: HeaderMap,
) -> Result<String, CommandError> {
    let id = write(&command, test, &headers).await?;
    gate.reached.notify_one();
    gate.open.notified().await;
    Ok(id.to_string())
}

async fn status(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    axum::extract::Path(code): axum::extract::Path<u16>,
    headers: HeaderMap,
) -> Result<(StatusCode, String), CommandError> {
    let id = write(&command, test, &headers).await?;
    Ok((StatusCode::from_u16(code).unwrap(), id.to_string()))
}

async fn panics(Extension(command): Extension<Command>, Extension(test): Name, headers: HeaderMap) {
    write(&command, test, &headers).await.unwrap();
    panic!("half-way");
}

/// A handler that ends the transaction itself, and may begin another one; then answers with this status, or panics if
/// that is none.
async fn commits(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    axum::extract::Path((code, sql)): axum::extract::Path<(u16, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, CommandError> {
    write(&command, test, &headers).await?;
    command.batch_execute(&sql).await?;
    Ok(StatusCode::from_u16(code).unwrap())
}

/// A handler that keeps its command, and writes when everything is over.
async fn keeps(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    Extension(gate): Extension<Arc<Gate>>,
    headers: HeaderMap,
) {
    tokio::spawn(async move {
        gate.open.notified().await;
        assert!(
            write(&command, test, &headers).await.is_err(),
            "the session was ended"
        );
        gate.reached.notify_one();
    });
}

/// A handler that does not notice that its statement failed.
async fn broken(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    headers: HeaderMap,
) -> Result<(), CommandError> {
    write(&command, test, &headers).await?;
    command.batch_execute("SELECT 1/0").await.unwrap_err();
    Ok(())
}

/// What a deferred constraint refuses at the commit.
async fn refused_at_commit(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    headers: HeaderMap,
) -> Result<(), CommandError> {
    write(&command, test, &headers).await?;
    Ok(command
        .batch_execute("INSERT INTO single VALUES ('x'), ('x')")
        .await?)
}

async fn large(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    headers: HeaderMap,
) -> Result<String, CommandError> {
    write(&command, test, &headers).await?;
    Ok("x".repeat(1 << 20))
}

/// More header lines than are stored.
async fn many_headers(
    Extension(command): Extension<Command>,
    Extension(test): Name,
    headers: HeaderMap,
) -> Result<HeaderMap, CommandError> {
    write(&command, test, &headers).await?;
    Ok((0..65).map(|n| (header::ETAG, n.into())).collect())
}

/// An answer as a test looks at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub replayed: bool,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn problem(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(
            self.headers[header::CONTENT_TYPE],
            "application/problem+json"
        );
        assert_eq!(problem["status"], self.status);
        let name = problem["type"].as_str().unwrap();
        name.strip_prefix("urn:outboxd:idempotency:")
            .unwrap()
            .to_owned()
    }

    pub fn said(&self) -> (u16, String) {
        (self.status, self.problem())
    }
}

/// `account alice`, with this key.
pub fn request(path: &str, key: &str) -> axum::http::request::Builder {
    Request::post(path)
        .header("x-account", "alice")
        .header("idempotency-key", key)
}

impl Service {
    pub async fn send(&self, request: Request<Body>) -> Answer {
        send(self.app.clone(), request).await
    }

    /// With a key, and `{}` as its body.
    pub async fn post(&self, path: &str, key: &str) -> Answer {
        self.with_body(path, key, "{}").await
    }

    pub async fn with_body(&self, path: &str, key: &str, body: impl Into<Body>) -> Answer {
        self.send(request(path, key).body(body.into()).unwrap())
            .await
    }

    /// How often the business write was committed.
    pub async fn payments(&self) -> i64 {
        let sql = "SELECT count(*) FROM payment WHERE test = $1";
        self.db.query_one(sql, &[&self.name]).await.unwrap().get(0)
    }

    pub async fn keys(&self) -> i64 {
        let sql = "SELECT count(*) FROM inbox.message WHERE consumer = $1";
        self.db.query_one(sql, &[&self.name]).await.unwrap().get(0)
    }
}

pub async fn send(app: Router, request: Request<Body>) -> Answer {
    let answer = app.oneshot(request).await.unwrap();
    let (head, body) = answer.into_parts();
    Answer {
        status: head.status.as_u16(),
        replayed: head
            .headers
            .get("idempotent-replayed")
            .is_some_and(|v| v == "true"),
        headers: head.headers,
        body: axum::body::to_bytes(body, usize::MAX).await.unwrap(),
    }
}

/// No connection of the service is left in a transaction.
pub async fn clean(service: &Service) {
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE application_name = $1 AND state LIKE 'idle in transaction%'";
    eventually("every transaction to end", SOON, async || {
        let row = service.db.query_one(sql, &[&service.name]).await.unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}
