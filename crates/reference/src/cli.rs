//! docs/reference/cli.md, generated from clap's commands.

use std::fmt::Display;

use clap::{Arg, Command};

const HEAD: &str = "\
<!-- Written by `cargo xtask docs`. -->

# Commands

`outboxd COMMAND --help` prints the same on a terminal.
";

pub fn reference() -> String {
    let mut program = outboxd::cli::command();
    program.build();
    let mut text = HEAD.to_owned();
    if let Some(after) = program.get_after_help() {
        text += &format!("\n{}", below(after));
    }
    text += &format!(
        "\n## Every command takes\n\n{}",
        table(&mut options(&program, true))
    );
    leaves(&program, &mut text);
    text
}

/// The commands without subcommands, in the order of the help.
fn leaves(command: &Command, text: &mut String) {
    for child in command.get_subcommands().filter(|c| c.get_name() != "help") {
        if child.has_subcommands() {
            leaves(child, text);
            continue;
        }
        let name = child.get_bin_name().unwrap_or(child.get_name());
        let about = child
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        *text += &format!("\n## {name}\n\n{about}.\n");
        let mut options = options(child, false).peekable();
        if options.peek().is_some() {
            *text += &format!("\n{}", table(&mut options));
        }
        if let Some(after) = child.get_after_help() {
            *text += &format!("\n{}", below(after));
        }
    }
}

/// What the help says below the options, which is set in columns.
fn below(after: &impl Display) -> String {
    format!("```text\n{after}\n```\n")
}

fn options(command: &Command, global: bool) -> impl Iterator<Item = &Arg> {
    let is_listed = move |arg: &&Arg| {
        arg.is_global_set() == global && !["help", "version"].contains(&arg.get_id().as_str())
    };
    command.get_arguments().filter(is_listed)
}

fn table(options: &mut dyn Iterator<Item = &Arg>) -> String {
    let mut text = String::from("| option | meaning |\n|---|---|\n");
    for option in options {
        let help = option
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let mut help = format!("{}.", help.replace('|', "\\|"));
        let values: Vec<String> = option
            .get_possible_values()
            .iter()
            .map(|v| format!("`{}`", v.get_name()))
            .collect();
        if option.get_action().takes_values() && !values.is_empty() {
            help += &format!(" One of {}.", values.join(", "));
        }
        if let [default] = option.get_default_values()
            && option.get_action().takes_values()
        {
            help += &format!(" Default: `{}`.", default.to_string_lossy());
        }
        text += &format!(
            "| `{}` | {} |\n",
            usage(option),
            help.trim_start_matches('.').trim()
        );
    }
    text
}

/// `--limit LIMIT`, or `MESSAGE_ID…`.
fn usage(option: &Arg) -> String {
    let values: Vec<&str> = option
        .get_value_names()
        .into_iter()
        .flatten()
        .map(|n| n.as_str())
        .collect();
    match option.get_long() {
        Some(long) if option.get_action().takes_values() => {
            format!("--{long} {}", values.join(" "))
        }
        Some(long) => format!("--{long}"),
        None => values.join(" "),
    }
}
