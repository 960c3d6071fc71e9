//! The layers of the code, as in docs/internals/architecture.md: which module may name which.
//!
//! The rules are checked on the tokens (`syntax.rs` says which names it sees).

use std::{collections::BTreeSet, process::Command};

use proc_macro2::TokenStream;
use programs::Result;

use crate::{
    files,
    shell::output,
    syntax::{self, Name, module_of},
};

/// A place, and what its files must not name: a crate, or a path and all that is in it.
const RULES: &[(&str, &str)] = &[
    ("crates/core", PURE),
    (
        "src/outbox",
        "lapin crate::broker crate::relay crate::cli outbox_core::envelope",
    ),
    (
        "src/broker",
        "tokio_postgres crate::outbox crate::relay crate::cli outbox_core::message \
         outbox_core::claim outbox_core::wave",
    ),
    (
        "src/config",
        "lapin crate::broker crate::outbox crate::relay crate::cli crate::admin",
    ),
    ("src/relay", "crate::cli crate::admin"),
    (
        "src/admin",
        "crate::cli crate::outbox crate::broker lapin tokio_postgres",
    ),
    (
        "src/telemetry",
        "crate::cli crate::outbox crate::broker crate::relay lapin tokio_postgres",
    ),
    // Of the relay's code services share outbox_core alone; the schema is the contract.
    ("crates/outbox", "outboxd"),
    ("crates/outbox/src/event.rs", "lapin tokio tokio_postgres"),
    ("crates/outbox/src/enqueue.rs", "lapin"),
    ("crates/outbox/src/inbox", "lapin"),
    (
        "crates/checker",
        "outboxd outbox_core test_support lapin tokio_postgres",
    ),
    (
        "crates/model",
        "outboxd lapin tokio_postgres tokio test_support",
    ),
    ("crates/test-support", "outboxd outbox_core"),
    ("crates/demo", "outboxd outbox_core"),
    ("crates/bench", "outboxd outbox_core"),
    ("crates/reference", "test_support lapin tokio_postgres"),
    // The first task on a new machine shows something within a minute.
    (
        "xtask",
        "outboxd outbox_core test_support lapin tokio_postgres tokio",
    ),
    (
        "crates/amqp-guard",
        "outboxd outbox_core outbox tokio_postgres test_support",
    ),
    ("crates/chaos", "outboxd outbox_core"),
];

/// No servers, no runtime, no I/O.
const PURE: &str = "lapin outboxd tokio tokio_postgres \
                    std::env std::fs std::io std::net std::process std::thread";

/// What crates/core must not depend on, through whatever crate.
const IO: &str = "amq-protocol getrandom lapin mio nix rustls socket2 tokio tokio-postgres";

pub fn broken() -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for (place, forbidden) in RULES {
        let files = files::files(&[place], "rs")?;
        // A rule for a deleted place would never apply again.
        if files.is_empty() {
            return Err(
                format!("{place} is gone; correct the rules in xtask/src/layers.rs").into(),
            );
        }
        for file in files {
            let found = violations(&module_of(&file), syntax::parse(&file)?, forbidden);
            let said = |(line, name)| format!("{}:{line} names {name}", file.display());
            broken.extend(found.into_iter().map(said));
        }
    }
    core_depends_on_no_io(&mut broken)?;
    Ok(broken)
}

fn core_depends_on_no_io(broken: &mut Vec<String>) -> Result<()> {
    let tree = output(
        Command::new("cargo")
            .args(["tree", "--locked", "--package", "outbox-core"])
            .args(["--edges", "normal", "--prefix", "none"]),
    )?;
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    let io = |name: &&str| IO.split(' ').any(|io| io == *name);
    let found: BTreeSet<&str> = names.filter(io).collect();
    broken.extend(found.iter().map(|name| {
        format!(
            "crates/core depends on {name}: `cargo tree -p outbox-core -e normal -i {name}` shows the path"
        )
    }));
    Ok(())
}

/// The lines of a file that name what is forbidden, each with the rule.
fn violations<'r>(
    module: &[String],
    file: TokenStream,
    forbidden: &'r str,
) -> BTreeSet<(usize, &'r str)> {
    let names = syntax::read(module, file).names;
    let broken = names.iter().flat_map(|name| {
        let rules = forbidden.split(' ').filter(move |rule| breaks(name, rule));
        rules.map(move |rule| (name.line, rule))
    });
    broken.collect()
}

fn breaks(name: &Name, rule: &str) -> bool {
    let rule: Vec<&str> = rule.split("::").collect();
    let starts_alike = name.path.iter().zip(&rule).all(|(have, want)| have == want);
    starts_alike && (name.path.len() >= rule.len() || name.glob)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FORBIDDEN: &str = "crate::outbox lapin std::fs";

    /// The rules that src/broker/publish.rs breaks if it contains this text.
    fn broken(text: &str) -> Vec<&'static str> {
        let module = module_of(Path::new("src/broker/publish.rs"));
        let found = violations(&module, text.parse().unwrap(), FORBIDDEN);
        found.into_iter().map(|(_, rule)| rule).collect()
    }

    #[test]
    fn what_is_forbidden_is_caught_however_it_is_written() {
        const OUTBOX: &[&str] = &["crate::outbox"];
        const NESTED: &str =
            "use crate::{config::{self, Secret}, outbox::{claim::{self, Claim}, *}};";
        for (text, expected) in [
            ("use crate::{config, outbox};", OUTBOX),
            ("use std::{fs, path::Path};", &["std::fs"]),
            ("use {std::{fs::{self}}};", &["std::fs"]),
            (NESTED, OUTBOX),
            ("use crate::outbox as o;", OUTBOX),
            ("extern crate lapin as l;", &["lapin"]),
            ("fn f() { o::g() }\nuse lapin as o;", &["lapin", "lapin"]),
            ("use crate as here; fn f() { here::outbox::g() }", OUTBOX),
            ("fn f() { use super::super as up; up::outbox::g() }", OUTBOX),
            ("use crate::*;", OUTBOX),
            ("use super::super::*;", OUTBOX),
            ("fn f() { ::lapin::g() }", &["lapin"]),
            ("fn f() { super::super::outbox::g() }", OUTBOX),
            ("fn f(claim: &crate::outbox::Claim) {}", OUTBOX),
            ("impl From<crate::outbox::Error> for E {}", OUTBOX),
            (
                "mod tests { fn f() { super::super::super::outbox::g() } }",
                OUTBOX,
            ),
            (
                "#[cfg_attr(test, derive(crate::outbox::D))]\nstruct S;",
                OUTBOX,
            ),
            (
                "fn f() { select! { x = y => { super::super::outbox::g() } } }",
                OUTBOX,
            ),
            ("macro_rules! m { () => { $crate::outbox::g() } }", OUTBOX),
            // Similar names.
            ("mod tests { use super::*; }", &[]),
            ("// crate::outbox\nfn f() { \"crate::outbox\"; }", &[]),
            ("/// [`crate::outbox`]\nuse outbox_core::claim;", &[]),
            ("use crate::outbox_of_mail;", &[]),
            ("use self::outbox::x;", &[]),
            ("fn f(outbox: u8) { outbox::<u8>(); }", &[]),
            ("mod crates { use crate::broker::fs; }", &[]),
        ] {
            assert_eq!(broken(text), expected, "{text}");
        }
    }
}
