//! `outboxd history`: who changed what with a command.

use super::{
    CliError, database, output,
    table::{Column, table, text, whole},
    values::{self, Moment},
};
use crate::{
    config::Source,
    outbox::{
        history::{Pages, Past},
        migrate, replay,
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Maximum number of operations to show [default: 20; with --json, all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Show operations since this time, for example 2026-01-31T08:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    since: Option<Moment>,
    #[command(flatten)]
    json: output::Json,
}

pub(super) async fn history(args: &Args, source: &Source) -> Result<(), CliError> {
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let now = replay::now(&session).await?;
    let since = args.since.map(|moment| moment.by(now).into());
    let default = if args.json.json { usize::MAX } else { 20 };
    let limit = args.limit.map_or(default, |limit| limit as usize);
    let mut pages = Pages::new(&session, since);
    let mut array = match args.json.json {
        true => Some(output::Array::begin()?),
        false => None,
    };
    let mut rows = Vec::new();
    let mut shown = 0;
    let mut is_cut = false;
    'pages: loop {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        for past in &page {
            if shown == limit {
                is_cut = true;
                break 'pages;
            }
            shown += 1;
            match &mut array {
                Some(array) => array.push(past)?,
                None => rows.push(cells(past)),
            }
        }
    }
    let cut = format!("the last {shown}; there are more: --limit shows them");
    match array {
        Some(array) => {
            array.end()?;
            if is_cut {
                output::note(&cut);
            }
            return Ok(());
        }
        None if rows.is_empty() => output::line("no operations")?,
        None => table(&COLUMNS, &rows)?,
    }
    if is_cut {
        output::line(&cut)?;
    }
    Ok(())
}

const COLUMNS: [Column; 8] = [
    whole("AT"),
    text("BY"),
    text("ROLE"),
    whole("ACTION"),
    whole("MESSAGES"),
    whole("FINISHED"),
    text("SELECTION"),
    text("WHY"),
];

fn cells(past: &Past) -> Vec<String> {
    let finished = match &past.finished_at {
        Some(at) => at.clone(),
        None => "no".to_owned(),
    };
    vec![
        past.at.clone(),
        past.by_whom.clone(),
        past.by_role.clone(),
        past.action.clone(),
        past.affected.to_string(),
        finished,
        past.selection.clone(),
        past.why.clone(),
    ]
}
