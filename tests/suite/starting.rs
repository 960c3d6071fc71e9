//! The start of a relay: its addresses, and several sources that share nothing but the process.

use std::path::PathBuf;

use test_support::{Daemon, Mode, Proxy, eventually, free_port, probe};
use tokio::{io::AsyncReadExt, net::TcpListener};

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
    let producer = world.url_of("producer");
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

/// Before anything is claimed. `check` takes no port.
#[tokio::test]
async fn an_admin_port_that_is_in_use_is_named_with_the_cure() {
    let world = world().await;
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let listen = [("OUTBOXD__ADMIN__LISTEN", address.as_str())];
    let named = format!("admin.listen = \"{address}\"");
    let cure = "Free the port, or set admin.listen to another";
    world
        .outboxd(&["run"], &listen)
        .await
        .ends(78, &[&named, cure]);
}

/// The literal is an address of this host, and not what `localhost` resolves to.
#[tokio::test]
async fn an_ipv6_literal_of_a_broker_is_its_address_and_never_localhost() {
    let world = world().await;
    let meant = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = meant.local_addr().unwrap().port();
    let localhost = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let url = format!("amqp://u:p@[::ffff:127.0.0.2]:{port}");
    let _relay = world.relay(&[
        ("AMQP_URL", &url),
        ("OUTBOXD__BROKER__ALLOW_PLAINTEXT", "true"),
    ]);
    let connected = async {
        tokio::select! {
            connected = meant.accept() => connected.unwrap().0,
            _ = localhost.accept() => panic!("the literal was resolved to localhost"),
        }
    };
    let mut connected = tokio::time::timeout(SOON, connected).await.unwrap();
    let mut greeting = [0; 4];
    connected.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"AMQP");
}
