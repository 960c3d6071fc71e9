//! Clients of the process, and of a service that uses the inbox. H7 to H9.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use axum::{Extension, Router, http::request::Parts, response::IntoResponse, routing::post};
use deadpool_postgres::{Manager, Object, Pool};
use futures_util::future::join_all;
use nix::{sys::stat::Mode as FileMode, unistd::mkfifo};
use outbox::{
    Event,
    http::{Command, CommandError, IdempotencyLayer, IdempotencyOptions},
    inbox::Inbox,
};
use test_support::{Proxy, commits::RECORDED, crowd, eventually, probe};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::NoTls;

use super::bounds::bounded;
use crate::{
    arena::{Arena, DATABASE, SOON, Setup, WINDOW},
    inputs::configuration::judge::{Judge, NO_BROKER_URL, NO_DATABASE_URL, SECRET, file},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    7, "clients of the admin port: idle, half-sent heads, never reading, 2,000 of them, no descriptors left" => admin_port(setup);
    8, "secret files that are FIFOs, endless, group-writable, at the start and at work" => secret_files(setup);
    9, "HTTP keys: two spellings of one path, one after the other and at once" => spellings(setup);
};

const AGAIN: Duration = Duration::from_secs(15);

/// More than the admin port takes, and more than the process may open.
const CLIENTS: usize = 2000;
/// Of files and sockets: little more than the relay needs.
const FEW: usize = 96;
/// Of them, for what the relay has to open meanwhile.
const LEFT: usize = 24;

/// Does it, and says how many descriptors a process had open at most meanwhile.
async fn most_open<T>(pid: u32, work: impl Future<Output = T>) -> Result<(T, usize)> {
    let mut work = std::pin::pin!(work);
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let mut most = 0;
    loop {
        tokio::select! {
            done = &mut work => return Ok((done, most.max(probe::descriptors(pid)?))),
            _ = looks.tick() => most = most.max(probe::descriptors(pid)?),
        }
    }
}

async fn admin_port(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let database = arena.database_proxy().await?;
    let mut scene = Scene::of(arena).await?;
    scene.stop().await?;
    let limit = format!("--nofile={FEW}:{FEW}");
    let program = setup.outboxd.display().to_string();
    let env = scene.arena.env();
    scene.relay = setup.logs.start(
        "relay",
        Path::new("prlimit"),
        &[&limit, &program, "run"],
        env,
    )?;
    scene.flow.steady(100).await?;
    for head in [
        "",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let pid = scene.relay.pid();
        let (clients, open) = most_open(pid, crowd(scene.port, head, CLIENTS)).await?;
        eventually("/livez", SOON, async || {
            let (status, _) = probe::get(scene.port, "/livez").await?;
            (status == 200).then_some(())
        })
        .await;
        expect(open + LEFT <= FEW, || {
            format!("{open} descriptors of {FEW} were open: too few are left for the work")
        })?;
        // What the relay has to open again, it can.
        database.sever(SOON).await;
        scene.endured(AGAIN, WINDOW).await?;
        scene.flow.note(format!(
            "{} clients held on, at most {open} descriptors",
            clients?.len()
        ));
    }
    scene.end().await
}

/// Files that must not be taken for a secret, and what is said of each.
const TRAPS: [(&str, &str); 5] = [
    ("pipe", "it is a pipe, and must be a file"),
    ("huge", "it has more than MOST bytes; is it the right file?"),
    ("link", "it is a device, and must be a file"),
    ("group", "can be changed by its group (mode 660); chmod g-w"),
    ("open", "is open to everybody (mode 604); chmod o="),
];

async fn secret_files(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    mkfifo(&at("pipe"), FileMode::from_bits_truncate(0o600))?;
    let huge = std::fs::File::create(at("huge"))?;
    huge.set_len(3 << 30)?;
    huge.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::symlink("/dev/zero", at("link"))?;
    file(folder.path(), "group", SECRET.as_bytes(), 0o660)?;
    file(folder.path(), "open", SECRET.as_bytes(), 0o604)?;
    let mut judge = Judge::new(setup);
    let nothing = ("OUTBOXD__NOTHING_IN_ITS_WAY", "");
    let keys = [
        // The largest secret, and the largest file of any kind.
        ("database.url_file", NO_DATABASE_URL, 64 << 10),
        ("broker.url_file", NO_BROKER_URL, 64 << 10),
        (
            "database.password_file",
            ("DATABASE_URL", "postgres://relay@127.0.0.1:1/shop"),
            64 << 10,
        ),
        (
            "broker.password_file",
            ("AMQP_URL", "amqp://relay@127.0.0.1:1"),
            64 << 10,
        ),
        ("broker.ca_file", nothing, 4 << 20),
    ];
    for (trap, says) in TRAPS {
        let path = at(trap).display().to_string();
        for (key, room, most) in keys {
            // A certificate is no secret: others may read it, and its group may write it.
            if ["group", "open"].contains(&trap) && key.ends_with("ca_file") {
                continue;
            }
            let says = says.replace("MOST", &most.to_string());
            judge
                .refuses(&[room, (key, &path)], &[key, &path, &says])
                .await?;
        }
    }

    // At work it is read again at each connect.
    let password = file(folder.path(), "password", b"relay", 0o600)?;
    let url = arena.database_url().replace("relay:relay@", "relay@");
    let (database, url) = Proxy::before(&url).await?;
    arena.set("DATABASE_URL", &url);
    arena.set("OUTBOXD__DATABASE__PASSWORD_FILE", &password);
    let mut scene = Scene::of(arena).await?;
    for (trap, says) in TRAPS {
        std::fs::rename(at("password"), at("kept"))?;
        std::fs::rename(at(trap), at("password"))?;
        database.sever(SOON).await;
        scene.says(503, "database.password_file").await?;
        let says = says.replace("MOST", &(64 << 10).to_string());
        scene.says(503, &says).await?;
        std::fs::rename(at("password"), at(trap))?;
        std::fs::rename(at("kept"), at("password"))?;
        scene.endured(AGAIN, WINDOW).await?;
    }
    scene.flow.note(bounded(&scene.relay)?);
    for note in judge.outcome().notes {
        scene.flow.note(note);
    }
    scene.end().await
}

/// One payment, and its event, in the transaction of the command.
async fn pay(
    Extension(command): Extension<Command>,
) -> std::result::Result<impl IntoResponse, CommandError> {
    command
        .execute("INSERT INTO public.payment DEFAULT VALUES", &[])
        .await?;
    let event = Event::new("payment", "taken").json(&serde_json::json!({}))?;
    outbox::enqueue(&*command, &event).await?;
    Ok((axum::http::StatusCode::CREATED, "paid"))
}

/// The service, on a port of its own.
async fn service(url: &str) -> Result<(u16, tokio::task::AbortHandle)> {
    let pool = Pool::builder(Manager::new(url.parse()?, NoTls))
        .max_size(8)
        .build()?;
    let layer = IdempotencyLayer::new(
        Inbox::new("payments")?,
        IdempotencyOptions::default(),
        move || {
            let pool = pool.clone();
            async move { pool.get().await }
        },
        |object: &Object| object,
        |request: &Parts| Some(request.headers.get("x-account")?.to_str().ok()?.to_owned()),
    )?;
    let app = Router::new()
        .route("/orders/{id}", post(pay))
        .route_layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
    Ok((port, serving.abort_handle()))
}

/// Its answer.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    replayed: bool,
    body: String,
}

async fn pays(port: u16, path: &str, account: &str, key: &str, body: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-account: {account}\r\nidempotency-key: {key}\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        replayed: head.contains("idempotent-replayed: true"),
        body: body.to_owned(),
    })
}

async fn spellings(setup: &Setup) -> Result<Outcome> {
    const PATHS: [&str; 4] = [
        "/orders/12?a=~",
        "/orders/1%32?a=~",
        "/orders/%31%32?a=%7E",
        "/orders/12?a=%7e",
    ];
    let mut scene = Scene::start(setup).await?;
    scene
        .sql(
            "CREATE ROLE payments LOGIN PASSWORD 'payments' IN ROLE inbox_consumer, outbox_producer; \
             CREATE TABLE public.payment (id bigint GENERATED ALWAYS AS IDENTITY); \
             GRANT INSERT ON public.payment TO payments",
        )
        .await?;
    let (port, serving) = service(
        &scene
            .arena
            .postgres
            .url_for("payments", "payments", DATABASE),
    )
    .await?;
    let asked = async |path: &str, account: &str, key: &str, body: &str| {
        // Told that it runs already, a client comes again.
        eventually("an answer", SOON, async || {
            let answer = pays(port, path, account, key, body).await?;
            (answer.status != 409).then_some(answer)
        })
        .await
    };
    let mut commands = 0;
    for n in 0..20 {
        let key = format!("key-{n}");
        let paid = |path: &'static str| asked(path, "alice", &key, "{}");
        let answers = if n % 2 == 0 {
            join_all(PATHS.map(paid)).await
        } else {
            let mut answers = Vec::new();
            for path in PATHS {
                answers.push(paid(path).await);
            }
            answers
        };
        // One was taken, and the others are told what it was told.
        let taken = answers.iter().filter(|answer| !answer.replayed).count();
        let alike = answers
            .iter()
            .all(|answer| answer.status == 201 && answer.body == "paid");
        expect(alike && taken == 1, || format!("{key}: {answers:?}"))?;
        commands += 1;
    }
    // However it is spelled, another body or another query is no repetition.
    let bodies = PATHS.map(|path| (path, "{\"other\":1}"));
    for (path, body) in bodies.into_iter().chain([("/orders/12?a=b", "{}")]) {
        let other = asked(path, "alice", "key-0", body).await;
        expect(other.status == 422, || format!("{path}, {body}: {other:?}"))?;
    }
    // Another resource and another caller are another command each, whatever its key.
    for (path, account) in [
        ("/orders/13?a=~", "alice"),
        ("/orders/1%2F2?a=~", "alice"),
        ("/orders/1+2?a=~", "alice"),
        ("/orders/1%2B2?a=~", "alice"),
        ("/orders/12?a=~", "bob"),
    ] {
        let other = asked(path, account, "key-0", "{}").await;
        commands += 1;
        expect(other.status == 201 && !other.replayed, || {
            format!("{path} of {account}: {other:?}")
        })?;
    }
    let payments = scene.arena.count("public.payment").await?;
    expect(payments == commands, || {
        format!("{commands} commands, {payments} payments")
    })?;
    let events = format!("SELECT {RECORDED} FROM outbox.message WHERE aggregate_type = 'payment'");
    let events = scene.flow.records(&scene.owner, &events).await?;
    expect(events.len() == usize::try_from(commands)?, || {
        format!("{} events", events.len())
    })?;
    scene.endured(AGAIN, 0).await?;
    serving.abort();
    scene.flow.note(format!(
        "{commands} commands in {} requests: {payments} payments, as many events",
        21 * PATHS.len() + 6
    ));
    scene.end().await
}
