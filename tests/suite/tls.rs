//! TLS to both servers, with certificates made here.

use test_support::{
    Postgres, PostgresOptions, RabbitMq, RabbitMqOptions, ServerTls,
    certificates::{Authority, Certificate},
};

use crate::world::{SOON, World, own_world};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

fn server_tls(certificate: Certificate, client_ca: Option<&Authority>) -> ServerTls {
    ServerTls {
        certificate_pem: certificate.pem,
        key_pem: certificate.key_pem,
        client_ca_pem: client_ca.map(Authority::pem),
    }
}

/// Servers that require client certificates of `authority`.
async fn tls_world(authority: &Authority) -> World {
    let mut world = own_world().await;
    let tls = |names: &[&str]| {
        Some(server_tls(
            authority.server(names).unwrap(),
            Some(authority),
        ))
    };
    let postgres = Postgres::start_with(PostgresOptions {
        tls: tls(&["localhost"]),
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let rabbitmq = RabbitMq::start_with(RabbitMqOptions {
        tls: tls(&["localhost"]),
        plugins: vec!["rabbitmq_auth_mechanism_ssl".to_owned()],
        config: vec!["ssl_cert_login_from = common_name".to_owned()],
    })
    .await
    .unwrap();
    *world.own().postgres = postgres;
    *world.own().rabbitmq = rabbitmq;
    world
}

#[tokio::test]
async fn certificates_are_verified_and_a_client_certificate_is_identity_enough() {
    let authority = Authority::new("outboxd tests").unwrap();
    let stranger = Authority::new("a stranger").unwrap();
    let world = tls_world(&authority).await;
    let files = Files {
        folder: tempfile::tempdir().unwrap(),
    };
    let client = authority.client("relay").unwrap();
    let ca = files.write("ca.pem", &authority.pem());
    let other_ca = files.write("other.pem", &stranger.pem());
    let cert = files.write("relay.pem", &client.pem);
    let key = files.write("relay.key", &client.key_pem);

    // This connects over the socket in the file system, because over TCP the server accepts only certificates.
    world
        .postgres()
        .execute("postgres", "CREATE ROLE relay LOGIN")
        .await
        .unwrap();
    world
        .postgres()
        .create_database("db", "relay")
        .await
        .unwrap();
    world
        .rabbitmq()
        .ctl(&["add_user", "relay", "never used"])
        .await
        .unwrap();
    world
        .rabbitmq()
        .ctl(&["set_permissions", "relay", ".*", ".*", ".*"])
        .await
        .unwrap();

    let database = |host: &str| {
        format!(
            "postgres://relay@{host}:{}/db?sslmode=verify-full",
            world.postgres().port()
        )
    };
    let broker = |host: &str| {
        format!(
            "amqps://{host}:{}/%2f",
            world.rabbitmq().tls_port().unwrap()
        )
    };
    let env = |database: String, broker: String, ca: &str, with_client: bool| {
        let mut env = vec![
            ("DATABASE_URL".to_owned(), database),
            ("AMQP_URL".to_owned(), broker),
            ("OUTBOXD__BROKER__AUTH".to_owned(), "external".to_owned()),
            ("OUTBOXD__BROKER__DECLARE".to_owned(), "true".to_owned()),
            ("OUTBOXD__ADMIN__LISTEN".to_owned(), "off".to_owned()),
            ("OUTBOXD__DATABASE__CA_FILE".to_owned(), ca.to_owned()),
            ("OUTBOXD__BROKER__CA_FILE".to_owned(), ca.to_owned()),
        ];
        if with_client {
            for (section, file, path) in [
                ("DATABASE", "CERT_FILE", &cert),
                ("DATABASE", "KEY_FILE", &key),
                ("BROKER", "CERT_FILE", &cert),
                ("BROKER", "KEY_FILE", &key),
            ] {
                env.push((format!("OUTBOXD__{section}__{file}"), path.clone()));
            }
        }
        env
    };
    let good = env(database("localhost"), broker("localhost"), &ca, true);
    let migrated = crate::world::run(&["migrate"], &good).await;
    migrated.ends(0, &[]);
    let checked = crate::world::run(&["check", "--connect"], &good).await;
    checked.ends(0, &[]);
    let doctor = crate::world::run(&["doctor", "--json"], &good).await;
    doctor.ends(0, &[]);
    let lines: Vec<serde_json::Value> = serde_json::from_str(&doctor.stdout).unwrap();
    for (code, says) in [
        ("D202", "the certificate is verified"),
        ("D203", "days left"),
        ("D803", "days left"),
        ("D804", "RabbitMQ "),
    ] {
        let line = lines.iter().find(|line| line["code"] == code).unwrap();
        let finding = line["finding"].as_str().unwrap();
        assert!(line["state"] == "ok" && finding.contains(says), "{line}");
    }

    // Three faults: a name that is not in the certificate, a chain to another authority, no client certificate.
    let by_address = env(database("127.0.0.1"), broker("127.0.0.1"), &ca, true);
    let unknown_ca = env(database("localhost"), broker("localhost"), &other_ca, true);
    let mut nameless = env(database("localhost"), broker("localhost"), &ca, false);
    nameless.retain(|(name, _)| name != "OUTBOXD__BROKER__AUTH" && name != "AMQP_URL");
    nameless.push(("AMQP_URL".to_owned(), broker("relay:x@localhost")));
    for (bad, what, code) in [
        (by_address, "name", 69),
        (unknown_ca, "chain", 69),
        // The server reports the fault itself, and waiting does not help.
        (nameless, "client", 78),
    ] {
        let refused = crate::world::run(&["status"], &bad).await;
        assert_eq!(refused.code, code, "PostgreSQL, {what}: {}", refused.stderr);
        // Only the broker is at fault; the database accepts the connection.
        let mut broker_only = bad.clone();
        broker_only
            .retain(|(name, _)| !name.starts_with("OUTBOXD__DATABASE") && name != "DATABASE_URL");
        broker_only.extend(
            good.iter()
                .filter(|(name, _)| name.starts_with("OUTBOXD__DATABASE") || name == "DATABASE_URL")
                .cloned(),
        );
        let refused = crate::world::run(&["check", "--connect"], &broker_only).await;
        refused.ends(69, &["RabbitMQ"]);
    }

    // And messages flow.
    let file = crate::world::default_exchange();
    let args = ["--config", file.as_str(), "run"];
    let relay = test_support::Daemon::start(&crate::world::binary(), &args, &good).unwrap();
    relay.line("connected to both servers", SOON).await;
    let client = world.postgres().connect("db").await.unwrap();
    client
        .execute("INSERT INTO outbox.message (aggregate_type, event_type, payload, exchange, routing_key) VALUES ('a', 'b', '1', '', 'q')", &[])
        .await
        .unwrap();
    let channel = world.channel().await;
    channel
        .queue_declare(
            crate::world::short("q"),
            Default::default(),
            Default::default(),
        )
        .await
        .unwrap();
    test_support::eventually("the mark", SOON, async || {
        let row = client
            .query_one("SELECT count(sent_at) FROM outbox.message", &[])
            .await
            .unwrap();
        (row.get::<_, i64>(0) == 1).then_some(())
    })
    .await;
}
