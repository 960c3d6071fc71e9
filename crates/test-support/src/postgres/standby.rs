//! Base backups, and what they are for: a standby, and a database as it was.

use std::path::Path;

use crate::{
    Result, free_port,
    guard::{Account, Guarded},
};

use super::{PASSWORD, Postgres, binaries, client};

impl Postgres {
    /// A standby that streams from this server, over `port` on this machine (a proxy's, or this server's own). Under
    /// `name` it may stand in `synchronous_standby_names`.
    pub async fn standby(&self, name: &str, port: u16) -> Result<Self> {
        let mut standby = self.empty()?;
        let data = standby.folder.path().join("data");
        self.base_backup(&data)?;
        let settings = data.join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&settings)?;
        // A standby whose way was cut is back soon after it is mended.
        text.push_str(&format!(
            "primary_conninfo = 'host=127.0.0.1 port={port} user=postgres password={PASSWORD} application_name={name}'\n\
             wal_retrieve_retry_interval = '200ms'\n"
        ));
        standby.account.write(&settings, &text, 0o600)?;
        let signal = data.join("standby.signal");
        standby.account.write(&signal, "", 0o600)?;
        standby.restart().await?;
        Ok(standby)
    }

    /// Makes a primary of a standby, and waits until it is one.
    pub async fn promote(&self) -> Result<()> {
        let client = self.connect("postgres").await?;
        let promoted = client.query_one("SELECT pg_promote()", &[]).await?;
        if promoted.get::<_, bool>(0) {
            Ok(())
        } else {
            Err("the standby is still a standby after a minute".into())
        }
    }

    /// The data as they are now. Started in their place later, they are a restore to this moment.
    pub fn base_backup(&self, into: &Path) -> Result<()> {
        let made = self
            .account
            .command(client(&self.binaries, "pg_basebackup"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.port.to_string())
            .args(["--no-sync", "-X", "stream", "-c", "fast", "-D"])
            .arg(into)
            .env("PGPASSWORD", PASSWORD)
            .current_dir("/")
            .output()?;
        if !made.status.success() {
            let errors = String::from_utf8_lossy(&made.stderr);
            return Err(format!("pg_basebackup: {errors}").into());
        }
        Ok(())
    }

    /// Takes a base backup for its data, on the same port. The server must be stopped; what it had since is gone.
    pub async fn restore(&mut self, backup: &Path) -> Result<()> {
        if self.server.as_ref().is_some_and(Guarded::is_running) {
            return Err("stop the server before its data are replaced".into());
        }
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data)?;
        std::fs::rename(backup, &data)?;
        self.restart().await
    }

    /// A server without data.
    fn empty(&self) -> Result<Self> {
        let account = Account::of("postgres")?;
        let folder = tempfile::Builder::new().prefix("outboxd-pg-").tempdir()?;
        account.own(folder.path())?;
        Ok(Self {
            server: None,
            account,
            binaries: binaries()?,
            folder,
            port: free_port()?,
        })
    }
}
