//! Files that hold a secret. Bad inputs 12 and 13.

use std::{os::unix::fs::PermissionsExt, path::Path};

use super::judge::{Judge, NO_BROKER_URL, NO_DATABASE_URL, SECRET, file};
use crate::{
    arena::{self, Setup},
    row::{Outcome, Result, Row, expect, rows},
};

pub const CASES: &[Row] = rows! { setup;
    12, "unreadable, empty or world-readable secret file (one trailing newline is trimmed)" => secret_file(setup);
    13, "both a value and its _file" => value_and_file(setup);
};

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
    for (text, code) in [("relay\n", 0), ("relay\n\n", 78)] {
        let path = file(folder, "password", text.as_bytes(), 0o600)?;
        let mut env = stage.env.clone();
        env.push(("DATABASE_URL".to_owned(), url.clone()));
        env.push(("OUTBOXD__DATABASE__PASSWORD_FILE".to_owned(), path));
        let ran = setup.outboxd(&["check", "--connect"], env).await?;
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
