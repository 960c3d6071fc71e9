//! What a person sees on a terminal, and a program in a pipe.

use std::{
    fs::File,
    io::Read,
    process::{Command, Stdio},
};

use nix::pty::{Winsize, openpty};

use crate::world::{SOON, World, binary, run, world};

/// What a command writes to a terminal of this width, until it writes `until` or ends. The command is ended then.
async fn on_a_terminal(world: &World, args: &[&str], more: &[(&str, &str)], seen: Seen) -> String {
    let size = Winsize {
        ws_row: 50,
        ws_col: seen.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).unwrap();
    let terminal = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut command = Command::new(binary());
    command.args(args).env_clear().envs(world.env(more));
    command
        .stdin(Stdio::null())
        .stdout(terminal())
        .stderr(terminal());
    let mut child = command.spawn().unwrap();
    drop((command, pty.slave));
    let mut screen = File::from(pty.master);
    let reading = tokio::task::spawn_blocking(move || {
        let (mut all, mut some) = (Vec::new(), [0; 4096]);
        // The end of the last process at a terminal is an error of the read.
        while let Ok(n @ 1..) = screen.read(&mut some) {
            all.extend(&some[..n]);
            if seen
                .until
                .is_some_and(|u| String::from_utf8_lossy(&all).contains(u))
            {
                break;
            }
        }
        String::from_utf8_lossy(&all).replace("\r\n", "\n")
    });
    let text = tokio::time::timeout(SOON, reading).await;
    let _ = child.kill();
    child.wait().unwrap();
    text.expect("the command writes or ends").unwrap()
}

#[derive(Clone, Copy)]
struct Seen {
    columns: u16,
    until: Option<&'static str>,
}

const fn columns(columns: u16) -> Seen {
    Seen {
        columns,
        until: None,
    }
}

#[tokio::test]
async fn a_table_fits_the_terminal_and_a_pipe_gets_everything() {
    let world = world().await;
    let _relay = world.relay(&[]);
    let key = "k".repeat(300);
    let id = world
        .insert(Some(&key), "bad", "{}", "headers = '[]'")
        .await;
    world.until("its end", "outbox.dead", 1).await;
    let (id, list) = (id.to_string(), ["dead", "list"]);

    let piped = run(&list, &world.env(&[])).await;
    let error = "SELECT last_error FROM outbox.dead";
    let error: String = world.client.query_one(error, &[]).await.unwrap().get(0);
    assert!(
        piped.stdout.contains(&key) && piped.stdout.contains(&error),
        "{}",
        piped.stdout
    );

    let wide = on_a_terminal(&world, &list, &[], columns(180)).await;
    assert!(
        wide.lines().all(|line| line.chars().count() <= 180),
        "{wide}"
    );
    assert!(wide.contains(&id) && wide.contains("kk…"), "{wide}");
    assert_eq!(wide.lines().count(), 2, "{wide}");

    let narrow = on_a_terminal(&world, &list, &[], columns(60)).await;
    assert!(narrow.contains(&format!("MESSAGE ID  {id}\n")), "{narrow}");
    assert!(narrow.contains(&key), "{narrow}");
}

#[tokio::test]
async fn the_log_on_a_terminal_has_colours_unless_no_color_is_set() {
    let world = world().await;
    let away = [
        ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/x"),
        ("OUTBOXD__LOG__FORMAT", "auto"),
    ];
    let seen = Seen {
        until: Some("waiting for it"),
        ..columns(200)
    };
    for (no_color, coloured) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let set = no_color.map(|value| ("NO_COLOR", value));
        let more: Vec<_> = away.into_iter().chain(set).collect();
        let log = on_a_terminal(&world, &["run"], &more, seen).await;
        assert_eq!(
            log.contains("\u{1b}["),
            coloured,
            "NO_COLOR={no_color:?}: {log}"
        );
    }
}
