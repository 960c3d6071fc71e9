//! The layers of src/, as docs/ARCHITECTURE.md draws them: which module may name which.

use std::{fs, path::Path};

use crate::Result;

/// A place, and what its files must not name.
const RULES: &[(&str, &[&str])] = &[
    // Pure: no servers, no runtime, no I/O.
    ("src/message.rs", PURE),
    ("src/header.rs", PURE),
    ("src/reason.rs", PURE),
    ("src/route.rs", PURE),
    ("src/envelope.rs", PURE),
    ("src/outcome.rs", PURE),
    ("src/backoff.rs", PURE),
    (
        "src/settlement.rs",
        &[
            "lapin",
            "tokio_postgres::",
            "tokio::",
            "crate::broker",
            "crate::relay",
            "crate::config",
            "crate::cli",
            "std::fs",
            "std::net",
        ],
    ),
    (
        "src/outbox",
        &[
            "lapin",
            "crate::broker",
            "crate::relay",
            "crate::cli",
            "crate::envelope",
        ],
    ),
    (
        "src/broker",
        &[
            "tokio_postgres",
            "crate::outbox",
            "crate::relay",
            "crate::cli",
            "crate::message",
        ],
    ),
    (
        "src/config",
        &[
            "lapin",
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
            "lapin::",
            "tokio_postgres",
        ],
    ),
    // The schema is the contract; no code is shared.
    ("crates/outbox", &["outboxd::"]),
    ("crates/outbox/src/event.rs", &["lapin", "tokio"]),
    ("crates/outbox/src/enqueue.rs", &["lapin"]),
    ("crates/outbox/src/inbox", &["lapin"]),
    (
        "crates/checker",
        &["outboxd::", "test_support", "lapin", "tokio_postgres"],
    ),
    (
        "crates/model",
        &["lapin", "tokio_postgres", "tokio::", "test_support"],
    ),
    ("crates/test-support", &["outboxd::"]),
    ("crates/chaos", &["outboxd::"]),
];

const PURE: &[&str] = &[
    "lapin",
    "tokio",
    "crate::outbox",
    "crate::broker",
    "crate::relay",
    "crate::config",
    "crate::cli",
    "crate::admin",
    "crate::telemetry",
    "std::fs",
    "std::net",
    "std::env",
];

pub fn check() -> Result<()> {
    let mut broken = Vec::new();
    for (place, forbidden) in RULES {
        look(Path::new(place), forbidden, &mut broken)?;
    }
    if broken.is_empty() {
        Ok(())
    } else {
        Err(format!("layers: {}", broken.join("\n        ")).into())
    }
}

fn look(place: &Path, forbidden: &[&str], broken: &mut Vec<String>) -> Result<()> {
    if place.is_dir() {
        for entry in fs::read_dir(place)? {
            look(&entry?.path(), forbidden, broken)?;
        }
        return Ok(());
    }
    if place.extension().is_none_or(|e| e != "rs") {
        return Ok(());
    }
    for (n, line) in fs::read_to_string(place)
        .map_err(|e| format!("{}: {e}", place.display()))?
        .lines()
        .enumerate()
    {
        let code = line.split("//").next().unwrap_or_default();
        if let Some(name) = forbidden.iter().find(|name| code.contains(**name)) {
            broken.push(format!("{}:{} names {name}", place.display(), n + 1));
        }
    }
    Ok(())
}
