//! Configuration: the program refuses to start with exit code 78, names the key and what would be right, and never
//! shows a secret. Bad inputs 1 to 18.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, Reply},
    inbox::Inbox,
};
use test_support::certificates::Authority;
use tokio::{io::AsyncReadExt, net::TcpListener};
use tokio_postgres::Transaction;
use tokio_util::sync::CancellationToken;

use super::program::{Ran, outboxd};
use crate::{
    arena::{self, Setup},
    row::{Outcome, Result, Row, expect},
};

pub const CASES: &[Row] = &[
    Row {
        number: 1,
        fault: "unknown key (file or environment)",
        long: false,
        run: |setup| Box::pin(unknown_key(setup)),
    },
    Row {
        number: 2,
        fault: "empty, zero or negative batch, poll or timeout",
        long: false,
        run: |setup| Box::pin(out_of_range(setup)),
    },
    Row {
        number: 3,
        fault: "confirm timeout not below the idle-in-transaction limit",
        long: false,
        run: |setup| Box::pin(confirm_timeout(setup)),
    },
    Row {
        number: 4,
        fault: "heartbeat 0 or below 5 s",
        long: false,
        run: |setup| Box::pin(heartbeat(setup)),
    },
    Row {
        number: 5,
        fault: "no broker credentials (no silent guest/guest)",
        long: false,
        run: |setup| Box::pin(no_credentials(setup)),
    },
    Row {
        number: 6,
        fault: "IPv6 literal or several hosts in an AMQP URI: either honoured or refused, never resolved to something else",
        long: false,
        run: |setup| Box::pin(broker_hosts(setup)),
    },
    Row {
        number: 7,
        fault: "empty virtual host by a trailing /",
        long: false,
        run: |setup| Box::pin(empty_vhost(setup)),
    },
    Row {
        number: 8,
        fault: "unknown AMQP query parameter",
        long: false,
        run: |setup| Box::pin(broker_parameter(setup)),
    },
    Row {
        number: 9,
        fault: "invalid percent-encoding",
        long: false,
        run: |setup| Box::pin(percent_encoding(setup)),
    },
    Row {
        number: 10,
        fault: "plaintext to a non-loopback host unless allowed explicitly",
        long: false,
        run: |setup| Box::pin(plaintext(setup)),
    },
    Row {
        number: 11,
        fault: "opportunistic TLS (prefer) to a non-loopback host",
        long: false,
        run: |setup| Box::pin(opportunistic_tls(setup)),
    },
    Row {
        number: 12,
        fault: "unreadable, empty or world-readable secret file (one trailing newline is trimmed)",
        long: false,
        run: |setup| Box::pin(secret_file(setup)),
    },
    Row {
        number: 13,
        fault: "both a value and its _file",
        long: false,
        run: |setup| Box::pin(value_and_file(setup)),
    },
    Row {
        number: 14,
        fault: "table, column or privilege missing: said at start with the GRANT or the command that mends it",
        long: false,
        run: |setup| Box::pin(schema_or_grant(setup)),
    },
    Row {
        number: 15,
        fault: "admin port in use",
        long: false,
        run: |setup| Box::pin(admin_port(setup)),
    },
    Row {
        number: 16,
        fault: "non-loopback admin address without the opt-in",
        long: false,
        run: |setup| Box::pin(admin_address(setup)),
    },
    Row {
        number: 17,
        fault: "inbox retention shorter than the redelivery horizon",
        long: false,
        run: |_| Box::pin(inbox_retention()),
    },
    Row {
        number: 18,
        fault: "CA, certificate and key that do not match or have expired",
        long: false,
        run: |setup| Box::pin(certificates(setup)),
    },
];

/// Stands in every secret that is given, and must not be seen again.
const SECRET: &str = "hunter2";

/// Complete, and nobody listens there.
const ENOUGH: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://relay:hunter2@127.0.0.1:1/shop"),
    ("AMQP_URL", "amqp://relay:hunter2@127.0.0.1:1"),
    ("OUTBOXD__ADMIN__LISTEN", "off"),
];
/// The first of which is set when the second is not: a variable that is empty counts as unset.
const NO_DATABASE_URL: (&str, &str) = ("DATABASE_URL", "");
const NO_BROKER_URL: (&str, &str) = ("AMQP_URL", "");

/// Keys (`relay.workers`) or variables (`AMQP_URL`) and their values.
type Settings<'a> = &'a [(&'a str, &'a str)];

struct Judge<'a> {
    setup: &'a Setup,
    refused: usize,
    taken: usize,
}

impl<'a> Judge<'a> {
    fn new(setup: &'a Setup) -> Self {
        Self {
            setup,
            refused: 0,
            taken: 0,
        }
    }

    /// With these settings beside what is enough, neither starts, and both say all of this.
    async fn refuses(&mut self, settings: Settings<'_>, says: &[&str]) -> Result<()> {
        self.refuses_with(&[], settings, says).await
    }

    async fn refuses_with(
        &mut self,
        args: &[&str],
        settings: Settings<'_>,
        says: &[&str],
    ) -> Result<()> {
        for command in ["run", "check"] {
            let args = [&[command], args].concat();
            let ran = outboxd(self.setup, &args, environment(settings)).await;
            let judged = ran.and_then(|ran| refused(&ran, says));
            judged.map_err(|error| format!("{args:?} with {settings:?}: {error}"))?;
        }
        self.refused += 1;
        Ok(())
    }

    async fn refuses_file(&mut self, text: &str, says: &[&str]) -> Result<()> {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile()?;
        file.write_all(text.as_bytes())?;
        let path = file.path().display().to_string();
        self.refuses_with(&["--config", &path], &[], says).await
    }

    async fn takes(&mut self, settings: Settings<'_>) -> Result<()> {
        let ran = outboxd(self.setup, &["check"], environment(settings)).await?;
        expect(ran.code == 0, || {
            format!("{settings:?} is right, and refused: {}", ran.said())
        })?;
        self.taken += 1;
        Ok(())
    }

    fn outcome(self) -> Outcome {
        let mut outcome = Outcome::default();
        let taken = match self.taken {
            0 => String::new(),
            n => format!("; {n} that are right were taken"),
        };
        let refused = self.refused;
        outcome
            .notes
            .push(format!("{refused} refused with exit code 78{taken}"));
        outcome
    }
}

fn refused(ran: &Ran, says: &[&str]) -> Result<()> {
    expect(ran.code == 78, || {
        format!("exit code {}, not 78: {}", ran.code, ran.said())
    })?;
    let missing = says.iter().find(|text| !ran.stderr.contains(**text));
    expect(missing.is_none(), || {
        format!("does not say {:?}: {}", missing, ran.stderr)
    })?;
    expect(!ran.said().contains(SECRET), || {
        format!("shows a secret: {}", ran.said())
    })
}

fn environment(settings: Settings<'_>) -> Vec<(String, String)> {
    let variable = |key: &str| {
        if key.contains('.') {
            format!("OUTBOXD__{}", key.replace('.', "__").to_uppercase())
        } else {
            key.to_owned()
        }
    };
    // A later one of a name replaces the one before.
    ENOUGH
        .iter()
        .chain(settings)
        .map(|(key, value)| (variable(key), (*value).to_owned()))
        .collect()
}

async fn unknown_key(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let guess = &["relay.worker: unknown key", "did you mean relay.workers?"];
    judge.refuses(&[("relay.worker", SECRET)], guess).await?;
    judge
        .refuses_file("relay.worker = \"hunter2\"\n", guess)
        .await?;
    let set = ["--set", "relay.worker=hunter2"];
    judge.refuses_with(&set, &[], guess).await?;
    judge
        .refuses_file(
            "[nothing]\nhere = \"hunter2\"\n",
            &["nothing.here: unknown key in"],
        )
        .await?;
    judge
        .refuses_file(
            "[[source]]\nname = \"a\"\nrelay.workers = 1\n",
            &["source.0.relay.workers: unknown key in"],
        )
        .await?;
    judge
        .refuses(
            &[("OUTBOXD__DATABASE__PASSWORD", SECRET)],
            &[
                "database.password: unknown key",
                "did you mean database.password_file?",
            ],
        )
        .await?;
    judge.takes(&[]).await?;
    Ok(judge.outcome())
}

async fn out_of_range(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let whole = "must be a whole number from 1 to 10000";
    let duration = "must be a duration from";
    for (key, right, zero, negative) in [
        ("relay.batch_size", whole, "0", "-5"),
        ("relay.batch_bytes", "must be a size from", "0", "-1KiB"),
        ("relay.poll_interval", duration, "0s", "-5s"),
        ("relay.confirm_timeout", duration, "0s", "-5s"),
        ("relay.shutdown_grace", duration, "0s", "-5s"),
        ("database.connect_timeout", duration, "0s", "-5s"),
        ("database.statement_timeout", duration, "0s", "-5s"),
        ("database.lock_timeout", duration, "0s", "-5s"),
        (
            "database.idle_in_transaction_timeout",
            duration,
            "0s",
            "-5s",
        ),
        ("broker.connect_timeout", duration, "0s", "-5s"),
    ] {
        for value in ["", "0", zero, negative] {
            let named = format!("{key}: \"{value}\"");
            judge.refuses(&[(key, value)], &[&named, right]).await?;
        }
    }
    for (text, says) in [
        ("relay.batch_size = -5", "relay.batch_size: \"-5\""),
        ("relay.poll_interval = 0", "relay.poll_interval: \"0\""),
        (
            "relay.confirm_timeout = \"\"",
            "relay.confirm_timeout: \"\"",
        ),
    ] {
        judge.refuses_file(text, &[says]).await?;
    }
    Ok(judge.outcome())
}

async fn confirm_timeout(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let grace = ("relay.shutdown_grace", "10m");
    for timeout in ["60s", "61s", "5m"] {
        let settings = [("relay.confirm_timeout", timeout), grace];
        let says = [
            "relay.confirm_timeout: ",
            "must be below database.idle_in_transaction_timeout (1m)",
        ];
        judge.refuses(&settings, &says).await?;
    }
    judge
        .refuses(
            &[("database.idle_in_transaction_timeout", "30s")],
            &["must be below database.idle_in_transaction_timeout (30s)"],
        )
        .await?;
    judge
        .refuses_file(
            "[[source]]\nname = \"a\"\ndatabase.idle_in_transaction_timeout = \"10s\"\n",
            &["must be below source.0.database.idle_in_transaction_timeout (10s)"],
        )
        .await?;
    judge
        .takes(&[("relay.confirm_timeout", "59s"), grace])
        .await?;
    Ok(judge.outcome())
}

async fn heartbeat(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for value in ["0", "0s", "1s", "4s", "4999ms"] {
        let says = ["broker.heartbeat: ", "must be a duration from 5s"];
        judge.refuses(&[("broker.heartbeat", value)], &says).await?;
    }
    judge.takes(&[("broker.heartbeat", "5s")]).await?;
    Ok(judge.outcome())
}

async fn no_credentials(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for url in [
        "amqp://localhost",
        "amqp://localhost:5672/%2f",
        "amqp://relay@localhost",
        "amqp://relay:@localhost",
        "amqp://:hunter2@localhost",
        "amqp://:@localhost",
        "amqps://mq.example",
    ] {
        let says = [
            "broker.url: names no user and password",
            "amqp://user:password@host",
            "guest is never assumed",
        ];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    Ok(judge.outcome())
}

async fn broker_hosts(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for (url, says) in [
        (
            "amqp://u:hunter2@localhost,127.0.0.1",
            "names several hosts",
        ),
        (
            "amqp://u:hunter2@localhost:5672,[::1]:5672",
            "names several hosts",
        ),
        ("amqp://u:hunter2@::1", "has a host that is no name"),
        ("amqp://u:hunter2@[::1", "has a host that is no name"),
        ("amqp://u:hunter2@[::1]x", "has a host that is no name"),
        ("amqp://u:hunter2@[localhost]", "has a host that is no name"),
        ("amqp://u:hunter2@127.1", "has a host that is no name"),
    ] {
        let says = ["broker.url: ", says];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    judge
        .takes(&[("AMQP_URL", "amqp://u:hunter2@[::1]:5672")])
        .await?;
    ipv6_is_honoured(setup).await?;
    let mut outcome = judge.outcome();
    outcome
        .notes
        .push("an IPv6 literal was connected to, and nothing else".to_owned());
    Ok(outcome)
}

/// An IPv6 literal that is an address of this host, and not what `localhost` resolves to.
async fn ipv6_is_honoured(setup: &Setup) -> Result<()> {
    let meant = TcpListener::bind("127.0.0.2:0").await?;
    let port = meant.local_addr()?.port();
    let localhost = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("amqp://u:hunter2@[::ffff:127.0.0.2]:{port}");
    let stage = setup.stage.get(setup).await?;
    let mut env = stage.env.clone();
    env.push(("AMQP_URL".to_owned(), url));
    let allowed = "OUTBOXD__BROKER__ALLOW_PLAINTEXT";
    env.push((allowed.to_owned(), "true".to_owned()));
    let _relay = test_support::Daemon::start(&setup.outboxd, &["run"], &env)?;
    let connected = async {
        tokio::select! {
            connected = meant.accept() => Ok(connected?.0),
            _ = localhost.accept() => Err("the literal was resolved to localhost".into()),
        }
    };
    let connected: Result<_> = tokio::time::timeout(arena::SOON, connected).await?;
    let mut greeting = [0; 4];
    connected?.read_exact(&mut greeting).await?;
    expect(&greeting == b"AMQP", || format!("it says {greeting:?}"))
}

async fn empty_vhost(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for url in [
        "amqp://u:hunter2@localhost/",
        "amqp://u:hunter2@localhost:5672/",
        "amqps://u:hunter2@mq.example/",
    ] {
        let says = ["broker.url: ends in \"/\"", "write %2f"];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    judge
        .takes(&[("AMQP_URL", "amqp://u:hunter2@localhost/%2f")])
        .await?;
    Ok(judge.outcome())
}

async fn broker_parameter(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for (parameter, name) in [
        ("heartbeat=0", "heartbeat"),
        ("hartbeat=5", "hartbeat"),
        ("connection_timeout=1&heartbeat=5", "connection_timeout"),
        ("auth_mechanism=external", "auth_mechanism"),
        ("verify=verify_none", "verify"),
        ("", ""),
    ] {
        let url = format!("amqp://u:hunter2@localhost/%2f?{parameter}");
        let named = format!("broker.url: has the parameter \"{name}\"");
        let says = [named.as_str(), "the heartbeat is broker.heartbeat"];
        judge.refuses(&[("AMQP_URL", &url)], &says).await?;
    }
    Ok(judge.outcome())
}

async fn percent_encoding(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for (url, part) in [
        ("amqp://u:hunter2%zz@localhost", "password"),
        ("amqp://u:hunter2%@localhost", "password"),
        ("amqp://u:hunter2%2@localhost", "password"),
        ("amqp://u:hunter2%ff@localhost", "password"),
        ("amqp://u%g1:hunter2@localhost", "user name"),
        ("amqp://u:hunter2@localhost/%2", "virtual host"),
    ] {
        let named = format!("broker.url: has an invalid percent-encoding in its {part}");
        let says = [named.as_str(), "write % as %25"];
        judge.refuses(&[("AMQP_URL", url)], &says).await?;
    }
    judge
        .takes(&[("AMQP_URL", "amqp://u:hunter2%25@localhost/a%2fb")])
        .await?;
    Ok(judge.outcome())
}

async fn plaintext(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for host in [
        "mq.example",
        "192.0.2.1",
        "[2001:db8::1]",
        "localhost.example",
    ] {
        let url = format!("amqp://u:hunter2@{host}");
        let says = [
            "broker.url: amqp:// to another host is plaintext",
            "use amqps://, or set broker.allow_plaintext = true",
        ];
        judge.refuses(&[("AMQP_URL", &url)], &says).await?;
        judge
            .takes(&[("AMQP_URL", &url), ("broker.allow_plaintext", "true")])
            .await?;
        judge
            .takes(&[("AMQP_URL", &url.replace("amqp:", "amqps:"))])
            .await?;
    }
    for hosts in ["db.example", "192.0.2.1", "127.0.0.1,db.example"] {
        let url = format!("postgres://u:hunter2@{hosts}/shop?sslmode=disable");
        let says = [
            "database.url: sslmode=disable to another host is plaintext",
            "use sslmode=verify-full, or set database.allow_plaintext = true",
        ];
        judge.refuses(&[("DATABASE_URL", &url)], &says).await?;
        judge
            .takes(&[("DATABASE_URL", &url), ("database.allow_plaintext", "true")])
            .await?;
    }
    Ok(judge.outcome())
}

async fn opportunistic_tls(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for url in [
        "postgres://u:hunter2@db.example/shop?sslmode=prefer",
        "postgres://u:hunter2@127.0.0.1,db.example/shop?sslmode=prefer",
        "host=db.example user=u password=hunter2 sslmode=prefer",
    ] {
        let says = [
            "database.url: sslmode=prefer to another host",
            "use sslmode=verify-full",
        ];
        judge.refuses(&[("DATABASE_URL", url)], &says).await?;
        let allowed = [("DATABASE_URL", url), ("database.allow_plaintext", "true")];
        judge.takes(&allowed).await?;
    }
    let here = "postgres://u:hunter2@127.0.0.1/shop?sslmode=prefer";
    judge.takes(&[("DATABASE_URL", here)]).await?;
    Ok(judge.outcome())
}

/// Written there with this mode; returns its path.
fn file(folder: &Path, name: &str, text: &[u8], mode: u32) -> Result<String> {
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    Ok(path.display().to_string())
}

async fn secret_file(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let folder = tempfile::tempdir()?;
    let at = |name: &str, text: &[u8], mode| file(folder.path(), name, text, mode);
    let private = folder.path().join("folder");
    std::fs::create_dir(&private)?;
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700))?;
    // Each key, what must make room for it, and what it would hold.
    for (key, room, right) in [
        (
            "database.url_file",
            NO_DATABASE_URL,
            "postgres://relay:hunter2@127.0.0.1:1/shop",
        ),
        (
            "database.password_file",
            ("DATABASE_URL", "postgres://relay@127.0.0.1:1/shop"),
            SECRET,
        ),
        (
            "broker.url_file",
            NO_BROKER_URL,
            "amqp://relay:hunter2@127.0.0.1:1",
        ),
        (
            "broker.password_file",
            ("AMQP_URL", "amqp://relay@127.0.0.1:1"),
            SECRET,
        ),
    ] {
        let named = format!("{key}: ");
        let missing = folder.path().join("missing").display().to_string();
        let world = format!("{right}\n");
        for (path, says) in [
            (missing, "cannot read"),
            (private.display().to_string(), "cannot read"),
            // Nobody can read it, not even root.
            ("/proc/self/mem".to_owned(), "cannot read"),
            (at("empty", b"", 0o600)?, "is empty"),
            (at("newline", b"\n", 0o600)?, "is empty"),
            (at("binary", b"hunter2\xff", 0o600)?, "is not UTF-8 text"),
            (at("world", world.as_bytes(), 0o644)?, "chmod o="),
            (at("written", world.as_bytes(), 0o602)?, "chmod o="),
        ] {
            judge
                .refuses(&[room, (key, &path)], &[&named, says])
                .await?;
        }
        for (name, text) in [("bare", right.to_owned()), ("trimmed", world.clone())] {
            let path = at(name, text.as_bytes(), 0o640)?;
            judge.takes(&[room, (key, &path)]).await?;
        }
    }
    one_newline_is_trimmed(setup, folder.path()).await?;
    Ok(judge.outcome())
}

/// Of a password, and one alone: the server knows the difference.
async fn one_newline_is_trimmed(setup: &Setup, folder: &Path) -> Result<()> {
    let stage = setup.stage.get(setup).await?;
    let url = stage.postgres.url_for("relay", "relay", arena::DATABASE);
    let url = url.replace("relay:relay@", "relay@");
    for (text, code) in [("relay\n", 0), ("relay\n\n", 69)] {
        let path = file(folder, "password", text.as_bytes(), 0o600)?;
        let mut env = stage.env.clone();
        env.push(("DATABASE_URL".to_owned(), url.clone()));
        env.push(("OUTBOXD__DATABASE__PASSWORD_FILE".to_owned(), path));
        let ran = outboxd(setup, &["check", "--connect"], env).await?;
        expect(ran.code == code, || {
            format!("the password {text:?}: {} {}", ran.code, ran.said())
        })?;
    }
    Ok(())
}

async fn value_and_file(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let folder = tempfile::tempdir()?;
    let password = file(folder.path(), "password", SECRET.as_bytes(), 0o600)?;
    for section in ["database", "broker"] {
        for (name, says) in [
            ("url_file", format!("{section}.url is set as well")),
            (
                "password_file",
                format!("the password is in {section}.url as well; give it once"),
            ),
        ] {
            let key = format!("{section}.{name}");
            let named = format!("{key}: ");
            judge
                .refuses(&[(&key, &password)], &[&named, &says])
                .await?;
        }
    }
    // The password once in the file of the URL, and once in its own.
    let url = "amqp://relay:hunter2@127.0.0.1:1";
    let url = file(folder.path(), "url", url.as_bytes(), 0o600)?;
    let settings = [
        NO_BROKER_URL,
        ("broker.url_file", &url),
        ("broker.password_file", &password),
    ];
    let says = ["broker.password_file: the password is in broker.url_file as well"];
    judge.refuses(&settings, &says).await?;
    Ok(judge.outcome())
}

async fn schema_or_grant(setup: &Setup) -> Result<Outcome> {
    const NAME: &str = "refused";
    let stage = setup.stage.get(setup).await?;
    arena::schemas(setup, &stage.postgres, NAME).await?;
    stage
        .postgres
        .create_database("empty_one", "postgres")
        .await?;
    let client = stage.postgres.connect(NAME).await?;
    client
        .batch_execute("CREATE ROLE starter LOGIN PASSWORD 'hunter2' IN ROLE outbox_relay")
        .await?;
    let start = async |database: &str, args: &[&str]| {
        let url = stage.postgres.url_for("starter", SECRET, database);
        let env = stage.env.iter().cloned();
        outboxd(setup, args, env.chain([("DATABASE_URL".to_owned(), url)])).await
    };
    let mut outcome = Outcome::default();
    refused(
        &start("empty_one", &["run"]).await?,
        &["no outbox schema", "run `outboxd migrate`"],
    )?;

    // Columns of tables; a view's come and go with it.
    let columns = "SELECT table_name::text, column_name::text FROM information_schema.columns \
                   WHERE table_schema = 'outbox' AND table_name NOT IN ('debezium', 'status') \
                     AND (table_name, column_name) <> ('migration', 'version') ORDER BY 1, 2";
    let grants = "SELECT table_name::text, privilege_type::text FROM information_schema.role_table_grants \
                  WHERE grantee = 'outbox_relay' AND table_schema = 'outbox' ORDER BY 1, 2";
    let columns = by_table(&client.query(columns, &[]).await?);
    let grants = by_table(&client.query(grants, &[]).await?);
    let mut broken = Vec::new();
    for (table, columns) in &columns {
        let rename = |from: &dyn Fn(&str) -> String, to: &dyn Fn(&str) -> String| -> String {
            let each = columns.iter().map(|column| (from(column), to(column)));
            each.map(|(from, to)| format!("ALTER TABLE outbox.{table} RENAME {from} TO {to};"))
                .collect()
        };
        let (there, gone) = (
            |name: &str| name.to_owned(),
            |name: &str| format!("{name}_gone"),
        );
        let named = columns
            .iter()
            .map(|c| format!("column outbox.{table}.{c}\n"));
        broken.push(Broken {
            breaks: rename(&there, &gone),
            mends: rename(&gone, &there),
            says: named.chain(["outboxd sql".to_owned()]).collect(),
        });
    }
    for table in columns.keys().map(String::as_str).chain(["status"]) {
        let says = match table {
            // It says which schema this is: without it there may be none.
            "migration" => vec!["run `outboxd migrate`".to_owned()],
            _ => vec![format!("table outbox.{table}\n"), "outboxd sql".to_owned()],
        };
        broken.push(Broken {
            breaks: format!("ALTER TABLE outbox.{table} RENAME TO gone"),
            mends: format!("ALTER TABLE outbox.gone RENAME TO {table}"),
            says,
        });
    }
    let on_tables = grants.iter().map(|(table, privileges)| {
        let on = |privilege: &String| format!("{privilege} ON outbox.{table}");
        ("outbox_relay", privileges.iter().map(on).collect())
    });
    let others = [
        ("outbox_relay", "USAGE ON SCHEMA outbox"),
        ("outbox_relay", "UPDATE (sent_at) ON outbox.message"),
        // What everybody may, nobody can be refused.
        (
            "outbox_relay, PUBLIC",
            "EXECUTE ON FUNCTION outbox.measure()",
        ),
    ];
    let others = others.map(|(from, what)| (from, vec![what.to_owned()]));
    for (from, privileges) in on_tables.chain(others) {
        let each = |statement: &dyn Fn(&String) -> String| -> Vec<String> {
            privileges.iter().map(statement).collect()
        };
        broken.push(Broken {
            breaks: each(&|what| format!("REVOKE {what} FROM {from}")).join("; "),
            mends: each(&|what| format!("GRANT {what} TO {from}")).join("; "),
            says: each(&|what| format!("GRANT {what} TO starter")),
        });
    }
    for Broken {
        breaks,
        mends,
        says,
    } in &broken
    {
        client.batch_execute(breaks).await?;
        let says: Vec<&str> = says.iter().map(String::as_str).collect();
        let ran = start(NAME, &["run"]).await;
        let refused = ran.and_then(|ran| refused(&ran, &says));
        refused.map_err(|error| format!("{breaks}: {error}"))?;
        client.batch_execute(mends).await?;
    }
    let whole = start(NAME, &["check", "--connect"]).await?;
    expect(whole.code == 0, || {
        format!("with everything back: {}", whole.said())
    })?;
    let count = |of: &BTreeMap<String, Vec<String>>| of.values().map(Vec::len).sum::<usize>();
    outcome.notes.push(format!(
        "no schema; {} columns of {} tables, the tables, {} privileges: each that is missing is named, with exit code 78",
        count(&columns),
        columns.len(),
        count(&grants) + 3
    ));
    Ok(outcome)
}

/// One way to spoil a schema, and what is said of it.
struct Broken {
    breaks: String,
    mends: String,
    says: Vec<String>,
}

/// The second column of the rows, by the first.
fn by_table(rows: &[tokio_postgres::Row]) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        tables.entry(row.get(0)).or_default().push(row.get(1));
    }
    tables
}

async fn admin_port(setup: &Setup) -> Result<Outcome> {
    let busy = TcpListener::bind("127.0.0.1:0").await?;
    let address = busy.local_addr()?.to_string();
    // `check` takes no port.
    let env = environment(&[("admin.listen", &address)]);
    let ran = outboxd(setup, &["run"], env).await?;
    let named = format!("admin.listen = \"{address}\"");
    refused(
        &ran,
        &[&named, "Free the port, or set admin.listen to another"],
    )?;
    let mut outcome = Outcome::default();
    outcome
        .notes
        .push("refused with exit code 78, before anything is claimed".to_owned());
    Ok(outcome)
}

async fn admin_address(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for address in [
        "0.0.0.0:9464",
        "[::]:9464",
        "192.0.2.1:9464",
        "[2001:db8::1]:9464",
        "[::ffff:192.0.2.1]:9464",
    ] {
        let named = format!("admin.listen: {address}");
        let says = [named.as_str(), "set admin.allow_non_loopback = true"];
        judge.refuses(&[("admin.listen", address)], &says).await?;
        let meant = ("admin.allow_non_loopback", "true");
        judge.takes(&[("admin.listen", address), meant]).await?;
    }
    for address in ["127.0.0.1:9464", "[::1]:9464", "127.9.9.9:9464"] {
        judge.takes(&[("admin.listen", address)]).await?;
    }
    Ok(judge.outcome())
}

struct Never;

impl Handler for Never {
    async fn handle(
        &self,
        _: &Message,
        _: &Transaction<'_>,
    ) -> std::result::Result<Reply, Failure> {
        Err(Failure::Retry("never called".to_owned()))
    }
}

/// The consumer is a library: a service chooses its exit code, and gets an error before anything is opened.
async fn inbox_retention() -> Result<Outcome> {
    let horizon = Duration::from_secs(7 * 24 * 3600);
    let nowhere = "amqp://relay:hunter2@127.0.0.1:1";
    for retention in [Duration::ZERO, horizon / 2, horizon] {
        let options = ConsumerOptions {
            retention,
            redelivery_horizon: horizon,
            ..ConsumerOptions::new("work")
        };
        let began = Instant::now();
        let run = outbox::consumer::run(
            nowhere,
            async || {
                tokio_postgres::connect("host=127.0.0.1 port=1 user=u", tokio_postgres::NoTls)
                    .await
                    .map(|(client, _)| client)
            },
            Inbox::new("refused")?,
            options,
            Never,
            CancellationToken::new(),
        );
        let ended = tokio::time::timeout(Duration::from_secs(5), run).await;
        let said = match ended {
            Ok(Err(error)) => error.to_string(),
            _ => return Err(format!("{retention:?} was taken; the horizon is {horizon:?}").into()),
        };
        expect(
            said.starts_with("retention: must be longer than redelivery_horizon")
                && !said.contains(SECRET),
            || format!("it says {said}"),
        )?;
        expect(began.elapsed() < Duration::from_secs(1), || {
            "it took its time to refuse".into()
        })?;
    }
    let mut outcome = Outcome::default();
    outcome.notes.push(
        "3 refused by the consumer's runner, before it connects; the exit code is the service's"
            .to_owned(),
    );
    Ok(outcome)
}

async fn certificates(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let folder = tempfile::tempdir()?;
    let at = |name: &str, text: &str| file(folder.path(), name, text.as_bytes(), 0o600);
    let authority = Authority::new("ours")?;
    let (one, other) = (authority.client("relay")?, authority.client("relay")?);
    let old = authority.expired_client("relay")?;
    let ca = at("ca.pem", &authority.pem())?;
    let old_ca = at("old-ca.pem", &Authority::expired("old")?.pem())?;
    let (cert, key) = (at("one.pem", &one.pem)?, at("one.key", &one.key_pem)?);
    let other_key = at("other.key", &other.key_pem)?;
    let (old, old_key) = (at("old.pem", &old.pem)?, at("old.key", &old.key_pem)?);
    let text = at("text.pem", "hunter2\n")?;
    let missing = folder.path().join("missing").display().to_string();
    for (section, url) in [
        (
            "database",
            ("DATABASE_URL", "postgres://relay:hunter2@localhost/shop"),
        ),
        ("broker", ("AMQP_URL", "amqps://relay:hunter2@localhost")),
    ] {
        let names = ["ca_file", "cert_file", "key_file"].map(|name| format!("{section}.{name}"));
        let [ca_file, cert_file, key_file] = names.each_ref().map(String::as_str);
        let pair = |cert, key| [url, (cert_file, cert), (key_file, key)];
        for (settings, key, says) in [
            (
                pair(&cert, &other_key).to_vec(),
                cert_file,
                "the certificate and key do not work together",
            ),
            (pair(&old, &old_key).to_vec(), cert_file, "expired on"),
            (vec![url, (ca_file, &old_ca)], ca_file, "expired on"),
            (vec![url, (ca_file, &text)], ca_file, "no PEM certificate"),
            (vec![url, (ca_file, &key)], ca_file, "no PEM certificate"),
            (vec![url, (ca_file, &missing)], ca_file, "cannot read"),
            (pair(&key, &key).to_vec(), cert_file, "no PEM certificate"),
            (pair(&cert, &text).to_vec(), cert_file, &text),
            (vec![url, (cert_file, &cert)], key_file, "is not set"),
            (vec![url, (key_file, &key)], cert_file, "is not set"),
        ] {
            let named = format!("{key}: ");
            judge.refuses(&settings, &[&named, says]).await?;
        }
        let mut right = pair(&cert, &key).to_vec();
        right.push((ca_file, &ca));
        judge.takes(&right).await?;
    }
    Ok(judge.outcome())
}
