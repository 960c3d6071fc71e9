//! `cargo xtask matrix`: the integration tests and the crash rows, against other versions of the two servers.
//!
//! - [`postgres`], [`rabbitmq`]: the available versions, and their download · [`versions`]: the order of versions
//! - [`build`]: the tests' executables · [`cell`]: all tests against one pair of versions
//! - [`report`]: the results of every pair, as JSON and as a document

mod build;
mod cell;
mod postgres;
mod rabbitmq;
mod report;
mod versions;

use std::path::Path;

use programs::{Result, Tools, install};

use report::{Missing, OUT, Report};

#[derive(clap::Args)]
pub struct Args {
    /// Only these versions of PostgreSQL, such as 14,18
    #[arg(long, value_delimiter = ',')]
    postgres: Vec<String>,
    /// Only these versions of RabbitMQ, such as 3.10,4
    #[arg(long, value_delimiter = ',')]
    rabbitmq: Vec<String>,
    /// Every PostgreSQL with every RabbitMQ. Without it: every PostgreSQL with the oldest RabbitMQ, and every RabbitMQ
    /// with the newest PostgreSQL
    #[arg(long)]
    all_pairs: bool,
    /// Skips the pairs that an earlier run has completed
    #[arg(long)]
    resume: bool,
    /// Lists the pairs, and downloads and runs nothing
    #[arg(long)]
    list: bool,
    /// Writes docs/internals/compatibility.md from the results of earlier runs, and runs nothing. The page names the
    /// pairs without results
    #[arg(long, conflicts_with = "list")]
    document: bool,
}

pub fn run(args: &Args) -> Result<()> {
    install(Tools::Tests)?;
    let mut missing = Vec::new();
    let (brokers, databases) = (
        rabbitmq::offered(&mut missing)?,
        postgres::offered(&mut missing)?,
    );
    let mut pairs = pairs(databases.len(), brokers.len(), args.all_pairs);
    pairs.retain(|&(p, r)| {
        asked_for(&args.postgres, &databases[p].version)
            && asked_for(&args.rabbitmq, &brokers[r].version)
    });
    let seen = Report::read(Path::new(OUT))?;
    if pairs.is_empty() {
        let known = |versions: Vec<&str>| versions.join(", ");
        return Err(format!(
            "no such pair. PostgreSQL here: {}; RabbitMQ: {}",
            known(databases.iter().map(|d| d.version.as_str()).collect()),
            known(brokers.iter().map(|b| b.version.as_str()).collect()),
        )
        .into());
    }
    pairs.retain(|&(p, r)| !(args.resume && seen.has(&databases[p].version, &brokers[r].version)));
    for &(p, r) in &pairs {
        println!("{} × {}", databases[p].describe(), brokers[r].describe());
    }
    for Missing { what, why } in &missing {
        println!("skipped: {what}: {why}");
    }
    if args.list {
        return Ok(());
    }
    std::fs::create_dir_all(OUT)?;
    let mut all_passed = true;
    if !args.document {
        let built = build::run()?;
        for (p, r) in pairs {
            let cell = cell::run(&built, &databases[p], &brokers[r])?;
            all_passed &= cell.passed();
            // Save after each pair, so that an interrupted run keeps its results. Read the file again first, because
            // another run may have added results.
            let mut report = Report::read(Path::new(OUT))?;
            report.add(cell);
            report.write(Path::new(OUT))?;
        }
    }
    let mut report = Report::read(Path::new(OUT))?;
    // Remove results of versions that are no longer available. If a query failed, keep all: the version may be
    // available tomorrow.
    if missing.is_empty() {
        report.keep(|cell| {
            databases.iter().any(|d| d.version == cell.postgres)
                && brokers.iter().any(|b| b.version == cell.rabbitmq)
        });
    }
    report.missing = missing;
    report.write(Path::new(OUT))?;
    let whole = self::pairs(databases.len(), brokers.len(), false);
    let open: Vec<String> = whole
        .into_iter()
        .map(|(p, r)| (&databases[p].version, &brokers[r].version))
        .filter(|(p, r)| !report.has(p, r))
        .map(|(p, r)| format!("{p} × {r}"))
        .collect();
    // A run of a few selected pairs must not replace the document about all pairs.
    if open.is_empty() || args.document {
        std::fs::write(report::DOCUMENT, report.document(&open))?;
        println!("written: {}", report::DOCUMENT);
    } else {
        println!(
            "{} is written after these pairs have run, too: {}",
            report::DOCUMENT,
            open.join(", ")
        );
    }
    if all_passed {
        Ok(())
    } else {
        Err(format!("not all passed; the output is under {OUT}").into())
    }
}

/// Indexes into lists sorted from the oldest to the newest version. The extremes come first.
fn pairs(databases: usize, brokers: usize, all: bool) -> Vec<(usize, usize)> {
    let mut pairs: Vec<_> = (0..databases)
        .flat_map(|p| (0..brokers).map(move |r| (p, r)))
        .filter(|&(p, r)| all || r == 0 || p + 1 == databases)
        .collect();
    pairs.sort_by_key(|&(p, r)| (p + 1 != databases, std::cmp::Reverse(r), p));
    pairs
}

/// `4` and `4.3` match 4.3.6; `4.3` does not match 4.30.
fn asked_for(wanted: &[String], version: &str) -> bool {
    let is = |wanted: &String| {
        let rest = version.strip_prefix(wanted.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    wanted.is_empty() || wanted.iter().any(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_cross_that_holds_every_version() {
        let cross = pairs(5, 3, false);
        assert_eq!(cross.len(), 7);
        assert_eq!(cross[0], (4, 2));
        assert!((0..5).all(|p| cross.contains(&(p, 0))));
        assert!((0..3).all(|r| cross.contains(&(4, r))));
        assert_eq!(pairs(5, 3, true).len(), 15);
    }

    #[test]
    fn a_version_is_selected_by_its_prefix() {
        let asked = |wanted: &str| asked_for(&[wanted.to_owned()], "4.3.6");
        assert!(asked("4") && asked("4.3") && asked("4.3.6"));
        assert!(!asked("4.30") && !asked("3") && !asked("4.3.60"));
        assert!(asked_for(&[], "4.3.6"));
    }
}
