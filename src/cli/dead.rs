//! `outboxd dead list|show|redrive|discard`.

use clap::Subcommand;
use uuid::Uuid;

use super::{
    CliError, database, output,
    progress::Progress,
    selection::{ChangeArgs, FilterArgs},
    table::{table, text, whole},
};
use crate::{
    config::{Config, Source},
    outbox::{
        dead::{self, Change, Changed, DeadMessage, Pages},
        filter::Filter,
        migrate,
        pace::Pace,
        session::Session,
    },
};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List dead messages, the oldest first
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// Maximum number of messages to show [default: 100; with --json, all]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
        #[command(flatten)]
        json: output::Json,
    },
    /// Show one dead message, without its body
    Show {
        /// The message id
        message_id: Uuid,
        #[command(flatten)]
        json: output::Json,
    },
    /// Publish dead messages again, with all their attempts ahead of them
    Redrive(ChangeArgs),
    /// Delete dead messages; outbox.operation keeps a record, not the messages
    Discard(ChangeArgs),
}

pub(super) async fn dead(
    command: &Command,
    source: &Source,
    config: &Config,
) -> Result<(), CliError> {
    match command {
        Command::List {
            filter,
            limit,
            json,
        } => {
            let session = database::session(source).await?;
            migrate::require_known(&session).await?;
            let filter = filter.filter(&config.routing);
            if json.json {
                list_json(&session, &filter, *limit).await?;
            } else {
                list(&session, &filter, limit.unwrap_or(100)).await?;
            }
            let missing = dead::not_dead(&session, &filter.message_ids).await?;
            database::none_missing(&missing, NOT_DEAD)
        }
        Command::Show { message_id, json } => {
            let session = database::session(source).await?;
            migrate::require_known(&session).await?;
            let filter = Filter {
                message_ids: vec![*message_id],
                ..Filter::default()
            };
            let Some(message) = dead::first(&session, &filter).await? else {
                return Err(CliError::Failure(format!(
                    "no dead message has the id {message_id}"
                )));
            };
            if json.json {
                Ok(output::json(&message)?)
            } else {
                show(&message)
            }
        }
        Command::Redrive(args) => change(args, source, config, Change::Redrive).await,
        Command::Discard(args) => change(args, source, config, Change::Discard).await,
    }
}

const NOT_DEAD: &str = "no dead message has this id";

/// Prints all messages, or `limit` of them; only one page is in memory.
async fn list_json(session: &Session, filter: &Filter, limit: Option<u32>) -> Result<(), CliError> {
    let mut left = limit.map_or(usize::MAX, |limit| limit as usize);
    let mut array = output::Array::begin()?;
    let mut pages = Pages::new(session, filter);
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            return Ok(array.end()?);
        }
        for message in &page {
            if left == 0 {
                array.end()?;
                // On standard error, because a program reads the array from standard output.
                output::note(&format!(
                    "the first {}; there are more: without --limit all are listed",
                    limit.unwrap_or_default()
                ));
                return Ok(());
            }
            array.push(message)?;
            left -= 1;
        }
    }
}

async fn list(session: &Session, filter: &Filter, limit: u32) -> Result<(), CliError> {
    let limit = limit as usize;
    // Read one message more than the limit, to know whether there are more.
    let mut found: Vec<DeadMessage> = Vec::new();
    let mut pages = Pages::new(session, filter);
    while found.len() <= limit {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        found.extend(page);
    }
    let cut = found.len() > limit;
    found.truncate(limit);
    if found.is_empty() {
        return Ok(output::line("no dead messages")?);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|d| {
            vec![
                d.message_id.to_string(),
                d.died_at.clone(),
                d.reason.clone(),
                d.attempts.to_string(),
                key(d),
                d.event_type.clone().unwrap_or_default(),
                d.last_error.clone(),
            ]
        })
        .collect();
    let columns = [
        whole("MESSAGE ID"),
        whole("DIED AT"),
        whole("REASON"),
        whole("ATTEMPTS"),
        text("KEY"),
        text("TYPE"),
        text("LAST ERROR"),
    ];
    table(&columns, &rows)?;
    if cut {
        output::line(&format!(
            "the first {}; there are more: --limit shows them",
            rows.len()
        ))?;
    }
    Ok(())
}

fn show(d: &DeadMessage) -> Result<(), CliError> {
    let none = || "-".to_owned();
    let rows = [
        ("message id", d.message_id.to_string()),
        ("position", d.position.to_string()),
        ("key", key(d)),
        ("type", d.event_type.clone().unwrap_or_else(none)),
        ("reason", d.reason.clone()),
        ("attempts", d.attempts.to_string()),
        ("redriven", format!("{} times before it died", d.redriven)),
        ("group", d.failure_group.clone()),
        ("last error", d.last_error.clone()),
        ("died at", d.died_at.clone()),
        ("created at", d.created_at.clone().unwrap_or_else(none)),
        (
            "exchange",
            d.exchange
                .clone()
                .unwrap_or_else(|| "(as configured)".to_owned()),
        ),
        (
            "routing key",
            d.routing_key
                .clone()
                .unwrap_or_else(|| "(as configured)".to_owned()),
        ),
        ("content type", d.content_type.clone().unwrap_or_else(none)),
        ("body", format!("{} bytes", d.body_size)),
        (
            "replay",
            if d.replay {
                "yes: it was sent before"
            } else {
                "no"
            }
            .to_owned(),
        ),
    ];
    for (name, value) in rows {
        output::line(&format!("{name:<13}{}", output::on_a_terminal(&value, &[])))?;
    }
    Ok(())
}

fn key(d: &DeadMessage) -> String {
    match (&d.aggregate_type, &d.aggregate_id) {
        (Some(kind), Some(id)) => format!("{kind}/{id}"),
        (Some(kind), None) => kind.clone(),
        (None, _) => "-".to_owned(),
    }
}

async fn change(
    args: &ChangeArgs,
    source: &Source,
    config: &Config,
    change: Change,
) -> Result<(), CliError> {
    args.checked(None)?;
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let filter = args.filter.filter(&config.routing);
    let (action, verb) = match change {
        Change::Redrive => ("redrive", "redriven"),
        Change::Discard => ("discard", "discarded"),
    };
    // Ask before the change, because afterwards none of the ids is dead.
    let missing = dead::not_dead(&session, &filter.message_ids).await?;
    let done = if args.dry_run {
        dead::count(&session, &filter, change).await?
    } else {
        let operation = args.operation(action, None);
        let total = match Progress::is_watched() {
            true => dead::count(&session, &filter, change).await?.messages,
            false => 0,
        };
        let mut progress = Progress::new(total);
        let mut tell = |done| progress.tell(done);
        let mut pace = Pace::new(args.rate, &mut tell);
        let mut done = Changed::default();
        let changing = dead::change(&session, &filter, change, &operation, &mut pace, &mut done);
        let changed = database::whole(changing).await;
        progress.end();
        if let Err(error) = changed {
            database::half(done.messages.unsigned_abs(), verb);
            return Err(error);
        }
        done
    };
    report(args, action, verb, done, &missing)?;
    unpublished(change, done)?;
    database::none_missing(&missing, NOT_DEAD)
}

fn report(
    args: &ChangeArgs,
    action: &str,
    verb: &str,
    done: Changed,
    missing: &[Uuid],
) -> Result<(), CliError> {
    let Changed {
        messages,
        sent,
        gone,
    } = done;
    if args.json.json {
        output::json(&serde_json::json!({
            "action": action, "messages": messages, "sent_meanwhile": sent, "without_message": gone,
            "dry_run": args.dry_run, "not_dead": missing,
        }))?;
    } else {
        let would = if args.dry_run { "would be " } else { "" };
        output::line(&format!("{messages} messages {would}{verb}"))?;
        if sent > 0 {
            let then = if args.dry_run {
                "they would no longer be dead, and would not be published again"
            } else {
                "they are no longer dead, and are not published again"
            };
            output::line(&format!(
                "{sent} more were marked as sent after they died: {then}"
            ))?;
        }
    }
    Ok(())
}

/// Says which records have no message any more.
fn unpublished(change: Change, done: Changed) -> Result<(), CliError> {
    let Changed {
        messages,
        sent,
        gone,
    } = done;
    if gone == 0 {
        return Ok(());
    }
    let all = match change {
        Change::Redrive => messages + sent + gone,
        Change::Discard => messages,
    };
    let text = format!("{gone} of {all} have no message any more: somebody deleted it");
    match change {
        Change::Discard => output::note(&text),
        Change::Redrive => {
            let text = format!("{text}. `outboxd dead discard` removes their records");
            if messages + sent == 0 {
                return Err(CliError::Failure(text));
            }
            output::note(&text);
        }
    }
    Ok(())
}
