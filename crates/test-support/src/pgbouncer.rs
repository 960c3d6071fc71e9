//! A private PgBouncer in transaction mode.

use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use crate::{
    Result,
    guard::{Account, Guarded},
    port::Port,
};

const START: Duration = Duration::from_secs(300);
/// The user of PgBouncer's console, without other rights.
const ADMIN: &str = "console";

pub struct PgBouncer {
    _server: Guarded,
    _folder: TempDir,
    port: Port,
}

impl PgBouncer {
    /// Starts a pooler in front of the server on `port`. Each user (name, password) has `pool` connections to a database.
    pub async fn start(port: u16, users: &[(&str, &str)], pool: usize) -> Result<Self> {
        let program = programs::pgbouncer()?;
        // It refuses to run as root.
        let account = Account::of("postgres")?;
        let folder = tempfile::Builder::new().prefix("outboxd-pgb-").tempdir()?;
        account.own(folder.path())?;
        let at = |name: &str| folder.path().join(name);
        let known: String = [(ADMIN, ADMIN)]
            .iter()
            .chain(users)
            .map(|(name, password)| format!("\"{name}\" \"{password}\"\n"))
            .collect();
        account.write(&at("users.txt"), &known, 0o600)?;
        let listens = Port::free()?;
        let own = listens.number();
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port={port}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\nadmin_users = {ADMIN}\n\
             pool_mode = transaction\ndefault_pool_size = {pool}\nlog_connections = 0\nlog_disconnections = 0\n",
            at("users.txt").display()
        );
        account.write(&at("pgbouncer.ini"), &ini, 0o600)?;
        let config = at("pgbouncer.ini").display().to_string();
        let server = Guarded::start(account, &program, &[&config], &[], &at("log"))?;
        let deadline = tokio::time::Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", own)).await.is_err() {
            if !server.is_running() || tokio::time::Instant::now() > deadline {
                return Err(format!("PgBouncer did not start:\n{}", server.log_tail()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self {
            _server: server,
            _folder: folder,
            port: listens,
        })
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Runs a command of the console, for example `RECONNECT`.
    pub async fn console(&self, command: &str) -> Result<()> {
        let port = self.port();
        let url = format!("postgres://{ADMIN}:{ADMIN}@127.0.0.1:{port}/pgbouncer");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client.batch_execute(command).await?)
    }
}
