//! What the program says of itself: its help, and the configuration that it reads.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::world::{SOON, World, binary, repository, run, world};

/// A folder with `config/outboxd.toml` and `other.toml`.
fn folder(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    for file in ["config/outboxd.toml", "other.toml"] {
        fs::write(folder.path().join(file), text).unwrap();
    }
    folder
}

/// What `outboxd check` says in this working directory.
async fn checked(world: &World, at: &Path, args: &[&str], more: &[(&str, &str)]) -> String {
    let mut command = Command::new(binary());
    command.arg("check").args(args).current_dir(at);
    let run = command.env_clear().envs(world.env(more)).output();
    String::from_utf8(run.await.unwrap().stdout).unwrap()
}

#[tokio::test]
async fn the_help_names_every_variable_the_places_of_the_file_and_the_exit_codes() {
    let world = world().await;
    for asked in [&["--help"][..], &["-h"], &["help"]] {
        let help = world.outboxd(asked, &[]).await;
        for named in [
            "OUTBOXD_CONFIG ",
            "OUTBOXD__SECTION__KEY ",
            "OUTBOXD__RELAY__WORKERS=8 is --set relay.workers=8",
            "OUTBOXD_SOURCE ",
            "DATABASE_URL ",
            "AMQP_URL ",
            "NO_COLOR ",
            "config/outboxd.toml in the working directory",
            "/etc/outboxd/outboxd.toml",
            "69  a server is unavailable",
            "78  bad configuration",
        ] {
            assert!(help.stdout.contains(named), "{named}: {}", help.stdout);
        }
    }
    let run = world.outboxd(&["run", "--help"], &[]).await;
    assert!(
        run.stdout.contains("SIGHUP ") && run.stdout.contains("apply log.level"),
        "{}",
        run.stdout
    );
}

#[tokio::test]
async fn the_option_the_variable_and_the_working_directory_name_the_file_in_this_order() {
    let world = world().await;
    let folder = folder("relay.app_id = \"shop\"\n");
    let at = folder.path();
    let other = at.join("other.toml").display().to_string();
    let variable = [("OUTBOXD_CONFIG", other.as_str())];
    for (args, more, file) in [
        (
            &["--config", "config/outboxd.toml"][..],
            &variable[..],
            "config/outboxd.toml (named by --config)",
        ),
        (
            &[],
            &variable,
            &format!("{other} (named by OUTBOXD_CONFIG)"),
        ),
        (&[], &[("OUTBOXD_CONFIG", "")], "config/outboxd.toml"),
        (&[], &[], "config/outboxd.toml"),
    ] {
        let said = checked(&world, at, args, more).await;
        assert_eq!(said, format!("configuration: ok; file: {file}\n"));
    }
    let nowhere = checked(&world, Path::new("/"), &[], &[]).await;
    assert!(nowhere.contains("/etc/outboxd/outboxd.toml"), "{nowhere}");

    let relay = world.relay(&variable);
    let started = relay.line("relay started", SOON).await;
    let named = format!(r#""config":"{other} (named by OUTBOXD_CONFIG)""#);
    assert!(started.contains(&named), "{started}");
}

#[tokio::test]
async fn a_file_that_does_not_exist_is_an_error_that_says_who_named_it() {
    let world = world().await;
    let missing = [("OUTBOXD_CONFIG", "/nonexistent/by-variable")];
    for command in ["check", "status", "run"] {
        let run = world.outboxd(&[command], &missing).await;
        run.ends(
            78,
            &[
                "/nonexistent/by-variable (named by OUTBOXD_CONFIG)",
                "cannot read",
            ],
        );
        let args = [command, "--config", "/nonexistent/by-option"];
        let run = world.outboxd(&args, &missing).await;
        run.ends(78, &["/nonexistent/by-option (named by --config)"]);
    }
}

#[tokio::test]
async fn the_variable_names_the_source_for_the_commands_that_act_on_one() {
    let world = world().await;
    let url = world.database_url();
    let source = |name: &str| format!("[[source]]\nname = \"{name}\"\ndatabase.url = \"{url}\"\n");
    let folder = folder(&(source("orders") + &source("billing")));
    let file = folder.path().join("other.toml").display().to_string();
    let asked = async |args: &[&str], name: &str| {
        let mut env = world.env(&[("OUTBOXD_CONFIG", &file), ("OUTBOXD_SOURCE", name)]);
        // Each source has its own, so nothing would read this one.
        env.retain(|(name, _)| name != "DATABASE_URL");
        run(args, &env).await
    };
    asked(&["status"], "orders").await.ends(0, &[]);
    let unknown = asked(&["status"], "nope").await;
    unknown.ends(
        2,
        &["OUTBOXD_SOURCE nope: the configuration has orders, billing"],
    );
    let option = asked(&["status", "--source", "billing"], "nope").await;
    option.ends(0, &[]);
    let empty = asked(&["status"], "").await;
    empty.ends(2, &["add --source with one of orders, billing"]);
    asked(&["check"], "nope").await.ends(0, &[]);
}

/// Passwords in each place that may have one; none of them may be shown.
#[tokio::test]
async fn config_show_says_each_value_and_its_origin_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("password"), "hunter2-file").unwrap();
    fs::set_permissions(at("password"), fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "relay.batch_size = 7\nrelay.poll_interval = \"2s\"\n\
         routing.allowed_exchanges = [\"a\", \"b\"]\n\
         broker.url = \"amqp://relay@localhost/shop\"\nbroker.password_file = \"{}\"\n\
         [[routing.routes]]\nevent_type = \"x*\"\nmandatory = false\n",
        at("password")
    );
    fs::write(at("outboxd.toml"), text).unwrap();
    let env = [
        ("OUTBOXD_CONFIG".to_owned(), at("outboxd.toml")),
        (
            "DATABASE_URL".to_owned(),
            "host=::1 user=relay dbname=shop password='hunter2 env' sslmode=prefer".to_owned(),
        ),
        ("OUTBOXD__RELAY__WORKERS".to_owned(), "3".to_owned()),
    ];
    let args = ["--set", "relay.poll_interval=4s", "config", "show"];
    let shown = run(&args, &env).await;
    shown.ends(0, &["relay.workers", "env OUTBOXD__RELAY__WORKERS"]);
    let json = run(&[&args[..], &["--json"]].concat(), &env).await;
    json.ends(0, &[]);
    for text in [&shown.stdout, &json.stdout] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let from_file = format!("file:{}", at("outboxd.toml"));
    let keys = &json["keys"];
    for (key, value, origin) in [
        ("relay.workers", json!(3), "env OUTBOXD__RELAY__WORKERS"),
        ("relay.batch_size", json!(7), from_file.as_str()),
        ("relay.poll_interval", json!("4s"), "--set"),
        ("relay.max_attempts", json!(20), "default"),
        ("relay.batch_bytes", json!("16MiB"), "default"),
        ("database.listen", json!(true), "default"),
        ("database.ca_file", json!(null), "not set"),
        (
            "database.url",
            json!("postgres://relay:***@[::1]/shop?sslmode=prefer"),
            "env DATABASE_URL",
        ),
        (
            "broker.url",
            json!("amqp://relay@localhost:5672/shop"),
            &from_file,
        ),
        ("broker.password_file", json!(at("password")), &from_file),
        ("routing.allowed_exchanges", json!(["a", "b"]), &from_file),
        ("routing.routes.0.event_type", json!("x*"), &from_file),
        ("routing.routes.0.mandatory", json!(false), &from_file),
    ] {
        assert_eq!(
            keys[key],
            json!({ "value": value, "origin": origin }),
            "{key}"
        );
    }
    assert!(keys.get("routing.routes").is_none(), "{keys}");
    assert_eq!(json["sources"], json!([]));
}

#[tokio::test]
async fn config_show_has_each_source_with_the_values_that_it_takes_from_the_common_sections() {
    let file = repository().join("tests/config/valid/sources.toml");
    let file = file.display().to_string();
    let args = ["--config", file.as_str(), "config", "show"];
    let shown = run(&args, &[]).await;
    shown.ends(0, &["source orders", "source billing"]);
    let json = run(&[&args[..], &["--json"]].concat(), &[]).await;
    for text in [&shown.stdout, &json.stdout] {
        assert!(
            !text.contains(":secret") && !text.contains(":other"),
            "{text}"
        );
    }
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let value = |source: usize, key: &str| json["sources"][source]["keys"][key]["value"].clone();
    assert_eq!(json["sources"][1]["name"], "billing");
    assert_eq!(value(0, "database.lock_timeout"), "1s");
    assert_eq!(value(1, "database.lock_timeout"), "2s");
    assert_eq!(
        value(0, "database.url"),
        "postgres://relay:***@localhost:5432/orders"
    );
    assert_eq!(
        value(0, "broker.url"),
        "amqp://relay:***@localhost:5672/%2F"
    );
    assert_eq!(
        value(1, "broker.url"),
        "amqp://relay:***@localhost:5672/billing"
    );
    assert!(json["keys"].get("database.url").is_none(), "{json}");
}

#[tokio::test]
async fn the_schema_that_is_printed_is_the_committed_one() {
    let printed = run(&["config", "schema"], &[]).await;
    let committed = repository().join("docs/reference/outboxd.schema.json");
    assert_eq!(printed.stdout, fs::read_to_string(committed).unwrap());
}

#[tokio::test]
async fn a_package_gets_completions_with_the_reason_codes_and_a_manual_page_for_each_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell], &[]).await;
        script.ends(0, &["outboxd", "payload_too_large", "check-lag"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man/man1");
    let written = run(&["man", pages.to_str().unwrap()], &[]).await;
    written.ends(0, &[]);
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
    assert!(page("outboxd.1").contains("OUTBOXD_CONFIG"));
    assert!(page("outboxd-dead-list.1").contains("payload_too_large"));
    assert!(page("outboxd-run.1").contains("SIGHUP"));
    let names = fs::read_dir(&pages).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.all(|name| !name.contains("help")));

    let file = run(&["man", "/dev/null/man"], &[]).await;
    file.ends(1, &["cannot write into /dev/null/man"]);
}
