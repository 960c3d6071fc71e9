//! The start of a relay with several sources: they share nothing but the process.

use std::path::PathBuf;

use test_support::{Daemon, Mode, Proxy, eventually, free_port, probe};

use crate::world::{Run, SOON, World, binary, run, world};

/// A configuration file with these sources: name, URL of the database.
struct Sources {
    file: PathBuf,
    env: Vec<(String, String)>,
    _folder: tempfile::TempDir,
}

impl Sources {
    fn new(world: &World, sources: &[(&str, &str)], more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outboxd.toml");
        let broker = world.broker_url();
        let text: String = sources
            .iter()
            .map(|(name, database)| {
                format!(
                    "[[source]]\nname = \"{name}\"\n[source.database]\nurl = \"{database}\"\n\
                     [source.broker]\nurl = \"{broker}\"\n"
                )
            })
            .collect();
        std::fs::write(&file, text).unwrap();
        let mut env = world.env(more);
        env.retain(|(name, _)| name != "DATABASE_URL" && name != "AMQP_URL");
        Self {
            file,
            env,
            _folder: folder,
        }
    }

    fn args(&self) -> [&str; 3] {
        ["--config", self.file.to_str().unwrap(), "run"]
    }

    fn start(&self) -> Daemon {
        Daemon::start(&binary(), &self.args(), &self.env).unwrap()
    }

    async fn ends(&self) -> Run {
        run(&self.args(), &self.env).await
    }
}

#[tokio::test]
async fn a_source_whose_server_hangs_keeps_no_other_from_work() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (proxy, hangs) = Proxy::before(&world.database_url()).await.unwrap();
    proxy.set(Mode::Stall);
    let port = free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let sources = [("hangs", hangs.as_str()), ("works", &world.database_url())];
    let more = [
        ("OUTBOXD__ADMIN__LISTEN", listen.as_str()),
        ("OUTBOXD__DATABASE__CONNECT_TIMEOUT", "5m"),
    ];
    let sources = Sources::new(&world, &sources, &more);
    let relay = sources.start();
    eventually("/livez during the checks of the start", SOON, async || {
        (probe::get(port, "/livez").await?.0 == 200).then_some(())
    })
    .await;
    world.commit(&[(Some("1"), "created", "{}")]).await;
    consumer.until(1).await;
    world.clean(&consumer, 0).await;
    let said = relay.line("has not answered the checks", SOON).await;
    assert!(said.contains(r#""source":"hangs""#), "{said}");
    let (code, body) = probe::get(port, "/readyz").await.unwrap();
    assert_eq!(code, 503, "{body}");
}

#[tokio::test]
async fn the_start_ends_with_the_faults_of_all_sources() {
    let world = world().await;
    world.declare_exchange("events").await;
    let producer = world
        .postgres()
        .url_for("producer", "producer", &world.database);
    let (_, empty) = world.another("empty").await;
    let works = world.database_url();
    let sources = [("one", &*producer), ("two", &*empty), ("works", &*works)];
    let ended = Sources::new(&world, &sources, &[]).ends().await;
    ended.ends(
        78,
        &[
            "one: this role lacks privileges that a relay needs",
            "two: ",
            "no outbox schema",
        ],
    );
    assert!(!ended.stderr.contains("works: "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("relay started"), "{}", ended.stderr);
}
