//! Base backups, for a standby and for a restore.

use std::path::Path;

use crate::{
    Result,
    guard::{Account, Guarded},
    port::Port,
};

use super::{PASSWORD, Postgres};

/// The server writes while tar copies, and tar reports every file that grows. The write-ahead log makes the copy consistent.
const COPY_DATA: &str = r#"mkdir "$2" && tar -C "$1" --exclude=./postmaster.pid --exclude='./pg_wal/*' -cf - . 2>/dev/null | tar -C "$2" -xf -"#;
const COPY_LOG: &str = r#"cp -a "$1/pg_wal/." "$2/pg_wal""#;

impl Postgres {
    /// A standby that streams from this server, over `port` on this machine (a proxy's port, or this server's own). It has the
    /// name `name` for `synchronous_standby_names`.
    pub async fn standby(&self, name: &str, port: u16) -> Result<Self> {
        let mut standby = self.empty()?;
        let data = standby.folder.path().join("data");
        self.base_backup(&data).await?;
        let settings = data.join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&settings)?;
        // A standby with a short retry interval is back soon after its cut connection works again.
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

    /// Promotes a standby, and waits until it is the primary.
    pub async fn promote(&self) -> Result<()> {
        let client = self.connect("postgres").await?;
        let promoted = client.query_one("SELECT pg_promote()", &[]).await?;
        if promoted.get::<_, bool>(0) {
            Ok(())
        } else {
            Err("the standby is still a standby after a minute".into())
        }
    }

    /// Copies the data as they are now. If the copy later replaces the data, that is a restore to this moment.
    ///
    /// It uses the SQL functions that pg_basebackup uses: pg_basebackup refuses servers that are newer than itself, and not every
    /// server brings its own.
    pub async fn base_backup(&self, into: &Path) -> Result<()> {
        let client = self.connect("postgres").await?;
        let version = "SELECT current_setting('server_version_num')::int4";
        let version: i32 = client.query_one(version, &[]).await?.get(0);
        let (start, stop) = if version < 15_00_00 {
            (
                "pg_start_backup('copy', true, false)",
                "pg_stop_backup(false, false)",
            )
        } else {
            ("pg_backup_start('copy', true)", "pg_backup_stop(false)")
        };
        client.execute(&format!("SELECT {start}"), &[]).await?;
        let data = self.folder.path().join("data");
        self.copy(COPY_DATA, &data, into)?;
        let label = format!("SELECT labelfile FROM {stop}");
        let label: String = client.query_one(&label, &[]).await?.get(0);
        self.account
            .write(&into.join("backup_label"), &label, 0o600)?;
        // Copy the log last, because it must reach to the end of the copy.
        self.copy(COPY_LOG, &data, into)
    }

    fn copy(&self, script: &str, from: &Path, to: &Path) -> Result<()> {
        let mut shell = self.account.command("/bin/sh");
        shell.args(["-c", script, "copy"]).arg(from).arg(to);
        let made = shell.current_dir("/").output()?;
        if !made.status.success() {
            let errors = String::from_utf8_lossy(&made.stderr);
            return Err(format!("the base backup: {errors}").into());
        }
        Ok(())
    }

    /// Replaces the server's data by a base backup, on the same port. The server must be stopped; its later changes are lost.
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
            binaries: programs::postgres()?,
            folder,
            port: Port::free()?,
        })
    }
}
