//! The layers of the code, as in docs/internals/architecture.md: which module may name which.
//!
//! The rules are checked on the syntax tree (`syntax.rs` says which names it sees).

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use programs::Result;

use crate::syntax::{self, Name, module_of};

/// A place, and the names that are forbidden in its files: a crate, or a path and everything below it.
const RULES: &[(&str, &[&str])] = &[
    ("crates/core", PURE),
    (
        "src/outbox",
        &[
            "lapin",
            "crate::broker",
            "crate::relay",
            "crate::cli",
            "outbox_core::envelope",
        ],
    ),
    (
        "src/broker",
        &[
            "tokio_postgres",
            "crate::outbox",
            "crate::relay",
            "crate::cli",
            "outbox_core::message",
            "outbox_core::claim",
            "outbox_core::wave",
        ],
    ),
    (
        "src/config",
        &[
            "lapin",
            "crate::broker",
            "crate::outbox",
            "crate::relay",
            "crate::cli",
            "crate::admin",
        ],
    ),
    ("src/relay", &["crate::cli", "crate::admin"]),
    (
        "src/admin",
        &[
            "crate::cli",
            "crate::outbox",
            "crate::broker",
            "lapin",
            "tokio_postgres",
        ],
    ),
    (
        "src/telemetry",
        &[
            "crate::cli",
            "crate::outbox",
            "crate::broker",
            "crate::relay",
            "lapin",
            "tokio_postgres",
        ],
    ),
    // Services share only outbox_core with the relay; the schema is the contract.
    ("crates/outbox", &["outboxd"]),
    (
        "crates/outbox/src/event.rs",
        &["lapin", "tokio", "tokio_postgres"],
    ),
    ("crates/outbox/src/enqueue.rs", &["lapin"]),
    ("crates/outbox/src/inbox", &["lapin"]),
    (
        "crates/checker",
        &[
            "outboxd",
            "outbox_core",
            "test_support",
            "lapin",
            "tokio_postgres",
        ],
    ),
    (
        "crates/model",
        &[
            "outboxd",
            "lapin",
            "tokio_postgres",
            "tokio",
            "test_support",
        ],
    ),
    ("crates/test-support", &["outboxd", "outbox_core"]),
    ("crates/demo", &["outboxd", "outbox_core"]),
    ("crates/bench", &["outboxd", "outbox_core"]),
    (
        "crates/reference",
        &["test_support", "lapin", "tokio_postgres"],
    ),
    // The first task on a new machine must show something within a minute.
    (
        "xtask",
        &[
            "outboxd",
            "outbox_core",
            "test_support",
            "lapin",
            "tokio_postgres",
            "tokio",
        ],
    ),
    (
        "crates/amqp-guard",
        &[
            "outboxd",
            "outbox_core",
            "outbox",
            "tokio_postgres",
            "test_support",
        ],
    ),
    ("crates/chaos", &["outboxd", "outbox_core"]),
];

/// No servers, no runtime, no I/O.
const PURE: &[&str] = &[
    "lapin",
    "outboxd",
    "tokio",
    "tokio_postgres",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
];

/// Crates that crates/core must not depend on, directly or through other crates.
const IO: &[&str] = &[
    "amq-protocol",
    "getrandom",
    "lapin",
    "mio",
    "nix",
    "rustls",
    "socket2",
    "tokio",
    "tokio-postgres",
];

pub fn check() -> Result<()> {
    let mut broken = Vec::new();
    for (place, forbidden) in RULES {
        look(Path::new(place), forbidden, &mut broken)?;
    }
    core_depends_on_no_io(&mut broken)?;
    if broken.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "layers: {}\n        docs/internals/architecture.md gives the reasons: move the code, or pass the value as an argument",
            broken.join("\n        ")
        )
        .into())
    }
}

fn core_depends_on_no_io(broken: &mut Vec<String>) -> Result<()> {
    let tree = Command::new("cargo")
        .args(["tree", "--locked", "--package", "outbox-core"])
        .args(["--edges", "normal", "--prefix", "none"])
        .output()?;
    if !tree.status.success() {
        return Err(format!("cargo tree: {}", String::from_utf8_lossy(&tree.stderr)).into());
    }
    let tree = String::from_utf8_lossy(&tree.stdout);
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    let found: BTreeSet<&str> = names.filter(|name| IO.contains(name)).collect();
    broken.extend(found.iter().map(|name| {
        format!(
            "crates/core depends on {name}: `cargo tree -p outbox-core -e normal -i {name}` shows the path"
        )
    }));
    Ok(())
}

fn look(place: &Path, forbidden: &[&str], broken: &mut Vec<String>) -> Result<()> {
    // A rule for a deleted place would never apply again.
    let attributes = fs::metadata(place).map_err(|e| {
        format!(
            "{}: {e}; correct the rules in xtask/src/layers.rs",
            place.display()
        )
    })?;
    if attributes.is_dir() {
        for entry in fs::read_dir(place)? {
            look(&entry?.path(), forbidden, broken)?;
        }
        return Ok(());
    }
    if place.extension().is_none_or(|e| e != "rs") {
        return Ok(());
    }
    let text = fs::read_to_string(place).map_err(|e| format!("{}: {e}", place.display()))?;
    let found = violations(&module_of(place), &text, forbidden)
        .map_err(|e| format!("{}: {e}", place.display()))?;
    let found = found
        .iter()
        .map(|(line, name)| format!("{}:{line} names {name}", place.display()));
    broken.extend(found);
    Ok(())
}

/// The lines of a file that contain a forbidden name, each with its rule.
fn violations<'r>(
    module: &[String],
    text: &str,
    forbidden: &[&'r str],
) -> syn::Result<BTreeSet<(usize, &'r str)>> {
    let file = syn::parse_file(text)?;
    let rules: Vec<(Vec<&str>, &'r str)> = forbidden
        .iter()
        .map(|rule| (rule.split("::").collect(), *rule))
        .collect();
    let mut broken = BTreeSet::new();
    for name in &syntax::names(module, &file) {
        for (path, rule) in &rules {
            if breaks(name, path) {
                broken.insert((name.line, *rule));
            }
        }
    }
    Ok(broken)
}

fn breaks(name: &Name, rule: &[&str]) -> bool {
    let starts_alike = name.path.iter().zip(rule).all(|(have, want)| have == want);
    starts_alike && (name.path.len() >= rule.len() || name.glob)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: &[&str] = &["crate::outbox", "lapin", "std::fs"];

    /// The rules that src/broker/publish.rs breaks if it contains this text.
    fn broken(text: &str) -> Vec<&'static str> {
        let module = module_of(Path::new("src/broker/publish.rs"));
        let found = violations(&module, text, FORBIDDEN).unwrap();
        found.into_iter().map(|(_, rule)| rule).collect()
    }

    #[test]
    fn a_grouped_import_is_caught() {
        assert_eq!(broken("use crate::{config, outbox};"), ["crate::outbox"]);
        assert_eq!(
            broken("use crate::{outbox::claim::get};"),
            ["crate::outbox"]
        );
        assert_eq!(broken("use std::{fs, path::Path};"), ["std::fs"]);
    }

    #[test]
    fn a_renamed_import_is_caught_and_what_is_reached_through_it() {
        assert_eq!(broken("use crate::outbox as o;"), ["crate::outbox"]);
        assert_eq!(broken("use lapin as l;"), ["lapin"]);
        assert_eq!(broken("extern crate lapin as l;"), ["lapin"]);
        let through_the_crate = "use crate as here; fn f() { here::outbox::g() }";
        assert_eq!(broken(through_the_crate), ["crate::outbox"]);
        let within_a_block = "fn f() { use super::super as up; up::outbox::g() }";
        assert_eq!(broken(within_a_block), ["crate::outbox"]);
    }

    #[test]
    fn a_nested_group_is_caught() {
        let nested =
            "use crate::{\n    config::{self, Secret},\n    outbox::{claim::{self, Claim}, *},\n};";
        assert_eq!(broken(nested), ["crate::outbox"]);
        let module = module_of(Path::new("src/broker/mod.rs"));
        let found = violations(&module, nested, FORBIDDEN).unwrap();
        assert_eq!(Vec::from_iter(found), [(3, "crate::outbox")]);
        assert_eq!(broken("use {std::{fs::{self}}};"), ["std::fs"]);
    }

    #[test]
    fn a_glob_names_whatever_is_in_it() {
        assert_eq!(broken("use crate::*;"), ["crate::outbox"]);
        assert_eq!(broken("use crate::outbox::*;"), ["crate::outbox"]);
        assert_eq!(broken("use super::super::*;"), ["crate::outbox"]);
        assert_eq!(broken("mod tests { use super::*; }"), [""; 0]);
    }

    #[test]
    fn paths_in_code_types_and_attributes_are_caught() {
        for text in [
            "fn f() { crate::outbox::g() }",
            "fn f() { super::super::outbox::g() }",
            "fn f(claim: &crate::outbox::Claim) {}",
            "impl From<crate::outbox::Error> for E {}",
            "mod tests { fn f() { super::super::super::outbox::g() } }",
            "#[crate::outbox::test]\nfn f() {}",
            "#[cfg_attr(test, derive(crate::outbox::D))]\nstruct S;",
        ] {
            assert_eq!(broken(text), ["crate::outbox"], "{text}");
        }
        assert_eq!(broken("fn f() { ::lapin::g() }"), ["lapin"]);
        let imported_below = "fn f() { o::g() }\nuse lapin as o;";
        assert_eq!(broken(imported_below), ["lapin", "lapin"]);
    }

    #[test]
    fn paths_inside_a_macro_are_caught() {
        for text in [
            "fn f() { assert!(crate::outbox::g() == 1) }",
            "fn f() { select! { x = y => { super::super::outbox::g() } } }",
            "macro_rules! m { () => { $crate::outbox::g() } }",
        ] {
            assert_eq!(broken(text), ["crate::outbox"], "{text}");
        }
    }

    #[test]
    fn similar_names_are_not_caught() {
        for text in [
            "// crate::outbox\nfn f() { \"crate::outbox\"; }",
            "/// [`crate::outbox`]\nuse outbox_core::claim;",
            "use crate::outbox_of_mail;",
            "use self::outbox::x;",
            "fn f(outbox: u8) { outbox::<u8>(); }",
            "mod crates { use crate::broker::fs; }",
        ] {
            assert_eq!(broken(text), [""; 0], "{text}");
        }
    }
}
