//! Effects of the process's environment: signals, a changed configuration.

use std::path::Path;

use nix::sys::signal::Signal;
use test_support::Daemon;

use crate::world::{SOON, binary, world};

#[tokio::test]
async fn sighup_changes_the_level_names_what_waits_for_a_restart_and_refuses_what_is_not_usable() {
    let world = world().await;
    let consumer = world.consumer().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let password = folder.path().join("password");
    let write = |path: &Path, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(&password, "relay-canary-password");
    write(&file, "log.level = \"warn\"\n");
    let url = world.database_url().replace(":relay-canary-password@", "@");
    let mut env = world.env(&[
        ("DATABASE_URL", &url),
        (
            "OUTBOXD__DATABASE__PASSWORD_FILE",
            &password.display().to_string(),
        ),
    ]);
    // The file says it.
    env.retain(|(name, _)| name != "OUTBOXD__LOG__LEVEL");
    let config = file.display().to_string();
    let relay = Daemon::start(&binary(), &["run", "--config", &config], &env).unwrap();
    world.commit_many(50, 5).await;
    consumer.until(50).await;
    // The level is warn.
    relay.never_said("connected");

    // Wait for each signal, because a pending signal is not delivered twice.
    write(
        &file,
        "log.level = \"info\"\nrelay.batch_size = 7\nrouting.mandatory = false\n",
    );
    relay.signal(Signal::SIGHUP).unwrap();
    let line = relay.line("SIGHUP: configuration read again", SOON).await;
    assert!(
        line.contains(r#""reloaded":"log.level""#)
            && line.contains(r#""needs_restart":"relay.batch_size, routing.mandatory""#),
        "{line}"
    );

    write(
        &file,
        "log.level = \"debug\"\nrelay.batch_size = 0\nbroker.url = 7\nnope = 1\n",
    );
    relay.signal(Signal::SIGHUP).unwrap();
    let line = relay.line("keeping the previous one", SOON).await;
    assert!(
        line.contains("relay.batch_size: ") && line.contains("nope: unknown key"),
        "every problem is named: {line}"
    );

    write(&file, "log.level = \"info\"\n");
    write(&password, "another-canary-password");
    relay.signal(Signal::SIGHUP).unwrap();
    let line = relay
        .line(r#""reloaded":"database.password_file""#, SOON)
        .await;
    assert!(
        !line.contains("needs_restart"),
        "the refused one left nothing behind: {line}"
    );
    world.commit_many(50, 5).await;
    consumer.until(100).await;
    let said = relay.lines().join("\n");
    assert!(!said.contains("canary"), "{said}");
    assert!(
        !said.contains(r#""level":"DEBUG""#),
        "an unusable configuration changes nothing"
    );
}

/// A command cannot print its error, so its exit code reports it. Row 73 of the fault matrix has a relay that logs there.
#[tokio::test]
async fn a_command_whose_error_cannot_be_printed_ends_with_its_code() {
    let world = world().await;
    let binary = binary().display().to_string();
    let script = ["-c", "exec \"$0\" check --set nope=1 2>/dev/full", &binary];
    let mut check = Daemon::start(Path::new("sh"), &script, &world.env(&[])).unwrap();
    assert_eq!(check.ended(SOON).await.unwrap().code(), Some(78));
}
