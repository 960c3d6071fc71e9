//! The paths of the programs.

use std::path::{Path, PathBuf};

use crate::error::Result;

/// `OUTBOXD_TEST_PG_BIN`, else the newest Debian installation, else the folder of `initdb` in the PATH.
pub fn postgres() -> Result<PathBuf> {
    if let Ok(path) = std::env::var("OUTBOXD_TEST_PG_BIN") {
        return Ok(path.into());
    }
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = debian
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, path)| path.join("initdb").exists())
        .max();
    if let Some((_, path)) = newest {
        return Ok(path);
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .find(|path| path.join("initdb").exists())
        .ok_or_else(|| {
            "no PostgreSQL server here: apt-get install postgresql, or set OUTBOXD_TEST_PG_BIN"
                .into()
        })
}

/// `OUTBOXD_TEST_RABBITMQ_HOME` (the folder that contains `sbin`), else Debian's installation.
pub fn rabbitmq() -> Result<PathBuf> {
    if let Ok(home) = std::env::var("OUTBOXD_TEST_RABBITMQ_HOME") {
        return Ok(Path::new(&home).join("sbin"));
    }
    let debian = std::fs::read_dir("/usr/lib/rabbitmq/lib")
        .into_iter()
        .flatten()
        .flatten();
    debian
        .map(|entry| entry.path().join("sbin"))
        .find(|path| path.join("rabbitmq-server").exists())
        .ok_or_else(|| {
            "no RabbitMQ here: apt-get install rabbitmq-server, or set OUTBOXD_TEST_RABBITMQ_HOME"
                .into()
        })
}

/// Debian installs PgBouncer in a folder that may be only in root's PATH.
pub fn pgbouncer() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder: PathBuf| folder.join("pgbouncer"))
        .find(|program: &PathBuf| Path::exists(program))
        .ok_or_else(|| "no PgBouncer here: apt-get install pgbouncer".into())
}
