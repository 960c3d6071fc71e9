//! What surrounds a process: its output, its environment, its arguments.

use std::{
    ffi::{OsStr, OsString},
    fs::OpenOptions,
    os::unix::ffi::OsStrExt,
    process::Stdio,
};

use tokio::process::Command;

use crate::world::{SOON, World, binary, words, world};

struct Ended {
    code: Option<i32>,
    stderr: String,
}

fn program(world: &World, more: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary());
    command
        .env_clear()
        .envs(world.env(more))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn ended(mut command: Command) -> Ended {
    // Not `output()`, which would replace the standard output that the test has set.
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await;
    let output = output.expect("the command ends").unwrap();
    Ended {
        code: output.status.code(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A script that reads half a list must learn that it is half.
#[tokio::test]
async fn output_that_cannot_be_written_is_an_error_of_every_command_and_never_a_panic() {
    let world = world().await;
    let (_relay, port) = world.watched(&[]);
    let listen = format!("127.0.0.1:{port}");
    let admin = [("OUTBOXD__ADMIN__LISTEN", listen.as_str())];
    test_support::eventually("readiness", SOON, async || {
        (crate::seeing::get(port, "/readyz").await?.0 == 200).then_some(())
    })
    .await;
    let id = world.insert(Some("k"), "bad", "{}", "headers = '[]'").await;
    world.until("its end", "outbox.dead", 1).await;
    let id = id.to_string();
    for command in [
        "--help",
        "-h",
        "--version",
        "help",
        "help dead",
        "run --help",
        "dead redrive --help",
        "completions bash",
        "completions zsh",
        "completions fish",
        "sql",
        "sql --schema inbox",
        "sql --roles",
        "config show",
        "config show --json",
        "config schema",
        "check",
        "check --connect",
        "doctor",
        "doctor --json",
        "healthcheck",
        "healthcheck --live",
        "status",
        "status --json",
        "migrate --dry-run",
        "migrate --dry-run --json",
        "dead list",
        "dead list --json",
        "dead show ID",
        "dead show ID --json",
        "dead redrive --all --dry-run",
        "dead discard --all --dry-run --json",
        "replay --type created --dry-run",
        "replay --type created --dry-run --json",
        "prune",
        "prune --json",
        "check-lag",
    ] {
        let command = command.replace("ID", &id);
        let args = words(&command);
        let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let closed = || Stdio::from(std::io::pipe().unwrap().1);
        for (place, stdout) in [("a full disk", full()), ("a closed pipe", closed())] {
            let mut command = program(&world, &admin);
            command.args(&args).stdout(stdout);
            let run = ended(command).await;
            // A monitoring plugin has an exit code of its own for "unknown".
            let code = if args == ["check-lag"] { 3 } else { 1 };
            assert_eq!(run.code, Some(code), "{args:?} to {place}: {}", run.stderr);
            assert!(!run.stderr.contains("panicked"), "{args:?}: {}", run.stderr);
            let said = run.stderr.contains("cannot write the output");
            assert!(said || code == 3, "{args:?} to {place}: {}", run.stderr);
        }
    }
}

/// With such a value ignored, the relay would run with a default that is not meant: every exchange allowed, for example.
#[tokio::test]
async fn a_variable_that_is_not_utf_8_is_refused_by_its_name_if_the_program_would_read_it() {
    let world = world().await;
    let secret: &[u8] = b"hunter2\xe9";
    for (name, shown) in [
        (
            &b"OUTBOXD__ROUTING__ALLOWED_EXCHANGES"[..],
            "OUTBOXD__ROUTING__ALLOWED_EXCHANGES",
        ),
        (b"OUTBOXD__RELAY__WORKERS", "OUTBOXD__RELAY__WORKERS"),
        (b"outboxd__log__level", "outboxd__log__level"),
        (
            b"OUTBOXD__SOURCE__0__DATABASE__URL",
            "OUTBOXD__SOURCE__0__DATABASE__URL",
        ),
        (
            b"OUTBOXD__RELAY__W\xd6RKERS",
            "OUTBOXD__RELAY__W\u{fffd}RKERS",
        ),
        (b"DATABASE_URL", "DATABASE_URL"),
        (b"AMQP_URL", "AMQP_URL"),
    ] {
        for args in [&["check"][..], &["run"], &["status"], &["check-lag"]] {
            let mut command = program(&world, &[]);
            command
                .args(args)
                .stdout(Stdio::piped())
                .env(OsStr::from_bytes(name), OsStr::from_bytes(secret));
            let output = tokio::time::timeout(SOON, command.output()).await;
            let output = output.expect("the command ends").unwrap();
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8_lossy(&told);
            let code = if args == ["check-lag"] { 3 } else { 78 };
            assert_eq!(output.status.code(), Some(code), "{shown} {args:?}: {told}");
            let problem = format!("{shown}: is not UTF-8");
            assert!(told.contains(&problem), "{shown} {args:?}: {told}");
            assert!(!told.contains("hunter2"), "{shown} {args:?}: {told}");
        }
    }
    // Others are not ours.
    let mut command = program(&world, &[]);
    command
        .arg("check")
        .env("SOME_OTHER", OsStr::from_bytes(secret))
        .env("OUTBOXD_SERVICE_NOTE", OsStr::from_bytes(secret))
        .env(OsStr::from_bytes(b"\xff"), "x");
    let run = ended(command).await;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

#[tokio::test]
async fn an_argument_that_is_not_utf_8_is_refused_and_never_shown() {
    let world = world().await;
    let bytes = |text: &[u8]| OsString::from(OsStr::from_bytes(text));
    let secret = bytes(b"broker.url=amqp://relay:hunter2\xff@localhost");
    let bad = bytes(b"hunter2\xff");
    for (before, value, after) in [
        ("check --set", &secret, ""),
        ("--set", &secret, "status"),
        ("status --source", &bad, ""),
        ("dead show", &bad, ""),
        ("dead list --key", &bad, ""),
        ("check-lag --warning", &bad, ""),
    ] {
        let before = words(before).into_iter().map(OsString::from);
        let args = before.chain([value.clone()]);
        let args: Vec<_> = args
            .chain(words(after).into_iter().map(OsString::from))
            .collect();
        let mut command = program(&world, &[]);
        command.args(&args).stdout(Stdio::piped());
        let output = tokio::time::timeout(SOON, command.output()).await;
        let output = output.expect("the command ends").unwrap();
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        let code = if args[0] == "check-lag" { 3 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(told.contains("UTF-8"), "{args:?}: {told}");
        assert!(!told.contains("hunter2"), "{args:?}: {told}");
    }
}
