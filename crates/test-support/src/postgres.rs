//! A private PostgreSQL.

mod standby;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::{
    Result, ServerTls,
    guard::{Account, Guarded},
    port::Port,
};

const PASSWORD: &str = "postgres";
/// Time limit of a start, which takes a second, and minutes on a busy machine.
const START: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// Additional lines of postgresql.conf.
    pub settings: Vec<(String, String)>,
    pub tls: Option<ServerTls>,
    /// Parent of the server's folder, instead of the system's directory for temporary files.
    pub under: Option<PathBuf>,
}

pub struct Postgres {
    server: Option<Guarded>,
    account: Account,
    binaries: PathBuf,
    folder: TempDir,
    /// Its own, also while it is stopped.
    port: Port,
}

impl Postgres {
    pub async fn start() -> Result<Self> {
        Self::start_with(PostgresOptions::default()).await
    }

    pub async fn start_with(options: PostgresOptions) -> Result<Self> {
        let binaries = programs::postgres()?;
        let account = Account::of("postgres")?;
        let under = options.under.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new()
            .prefix("outboxd-pg-")
            .tempdir_in(under)?;
        account.own(folder.path())?;
        let password = folder.path().join("password");
        account.write(&password, PASSWORD, 0o600)?;
        let data = folder.path().join("data");
        let made = account
            .command(binaries.join("initdb"))
            .args([
                "--no-sync",
                "-A",
                "scram-sha-256",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
            ])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(&data)
            .current_dir("/")
            .output()?;
        if !made.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let mut settings: Vec<(String, String)> = [
            ("fsync", "off"),
            ("max_connections", "200"),
            ("listen_addresses", "127.0.0.1"),
            ("log_min_messages", "warning"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        if let Some(tls) = &options.tls {
            account.write(&data.join("server.crt"), &tls.certificate_pem, 0o600)?;
            account.write(&data.join("server.key"), &tls.key_pem, 0o600)?;
            settings.push(("ssl".to_owned(), "on".to_owned()));
            if let Some(ca) = &tls.client_ca_pem {
                account.write(&data.join("ca.crt"), ca, 0o600)?;
                settings.push(("ssl_ca_file".to_owned(), "ca.crt".to_owned()));
                let hba = "local all all scram-sha-256\nhostssl all all all cert\n";
                account.write(&data.join("pg_hba.conf"), hba, 0o600)?;
            }
        }
        settings.extend(options.settings);
        let lines: String = settings
            .iter()
            .map(|(k, v)| format!("{k} = '{v}'\n"))
            .collect();
        account.write(&data.join("postgresql.auto.conf"), &lines, 0o600)?;
        let mut postgres = Self {
            server: None,
            account,
            binaries,
            folder,
            port: Port::free()?,
        };
        postgres.restart().await?;
        Ok(postgres)
    }

    /// Starts the server, on the same port and data, and waits until it accepts connections.
    pub async fn restart(&mut self) -> Result<()> {
        self.server = None;
        let data = self.folder.path().join("data");
        let (data, port) = (data.display().to_string(), self.port().to_string());
        // Do not write this to a file of the data directory: a copy of that directory belongs to another server with another
        // folder.
        let sockets = format!("unix_socket_directories={}", self.folder.path().display());
        let log = self.folder.path().join("log");
        let program = self.binaries.join("postgres");
        let server = Guarded::start(
            self.account,
            &program,
            &["-D", &data, "-p", &port, "-c", &sockets],
            &[],
            &log,
        )?;
        let deadline = tokio::time::Instant::now() + START;
        loop {
            if self.connect_by_socket("postgres").await.is_ok() {
                break;
            }
            if !server.is_running() || tokio::time::Instant::now() > deadline {
                return Err(format!("PostgreSQL did not start:\n{}", server.log_tail()).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.server = Some(server);
        Ok(())
    }

    /// The folder with data, configuration and logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// URL of a superuser, over TCP.
    pub fn url(&self, database: &str) -> String {
        self.url_for("postgres", PASSWORD, database)
    }

    pub fn url_for(&self, user: &str, password: &str, database: &str) -> String {
        format!(
            "postgres://{user}:{password}@127.0.0.1:{}/{database}",
            self.port()
        )
    }

    /// Connects as superuser; the connection ends with the client.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.connect_by_socket(database).await
    }

    async fn connect_by_socket(&self, database: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.folder.path())
            .port(self.port())
            .user("postgres")
            .password(PASSWORD)
            .dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs several statements as superuser.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        Ok(self.connect(database).await?.batch_execute(sql).await?)
    }

    pub async fn create_database(&self, name: &str, owner: &str) -> Result<()> {
        self.execute("postgres", &format!("CREATE DATABASE {name} OWNER {owner}"))
            .await
    }

    /// Copies a database, in some ten milliseconds.
    pub async fn copy_database(&self, name: &str, template: &str) -> Result<()> {
        self.execute(
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE {template}"),
        )
        .await
    }

    /// Runs one of the server's client programs, as superuser of this database.
    pub fn program(&self, name: &str, database: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        command
            .env("PGHOST", self.folder.path())
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", PASSWORD)
            .env("PGDATABASE", database);
        command
    }

    /// Runs plain psql with ON_ERROR_STOP, as a user would. Returns its output; fails with its errors.
    pub fn psql(&self, user: &str, password: &str, database: &str, input: &str) -> Result<String> {
        use std::io::Write;
        let mut psql = Command::new(client(&self.binaries, "psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-p",
                &self.port().to_string(),
            ])
            .args(["-U", user, "-d", database, "-f", "-"])
            .env("PGPASSWORD", password)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = psql.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = psql.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Stops the server with a fast shutdown.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.signal(Signal::SIGINT)?;
            server.ended(START).await;
        }
        Ok(())
    }

    /// Sends SIGKILL to the postmaster and every backend, like a loss of power.
    pub async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill(START).await;
        }
        // A killed postmaster leaves this file, and the next postmaster may find another process with that number.
        let _ = std::fs::remove_file(self.folder.path().join("data/postmaster.pid"));
    }
}

/// A client program: the server's own, or the machine's if the server has none.
fn client(binaries: &Path, name: &str) -> PathBuf {
    let own = binaries.join(name);
    if own.exists() { own } else { name.into() }
}
