//! `outboxd waiting list|retry-now|give-up`.

use clap::{Subcommand, ValueEnum};

use super::{
    CliError, database, output,
    progress::Progress,
    selection::{ChangeArgs, FilterArgs},
    table::{self, text, whole},
};
use crate::{
    config::{Config, Source},
    outbox::{
        filter::Filter,
        migrate,
        pace::Pace,
        session::Session,
        waiting::{self, Act, Done, State},
        waiting_list::{self, Pages, WaitingMessage},
    },
};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List waiting messages, those first that wait longest
    List {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        states: States,
        /// Maximum number of messages to show [default: 100; with --json, all]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
        #[command(flatten)]
        json: output::Json,
    },
    /// Try waiting messages now; held ones through a probe of their destination
    RetryNow {
        #[command(flatten)]
        change: ChangeArgs,
        #[command(flatten)]
        states: States,
    },
    /// Give waiting messages up: they are dead, with the reason given_up, until they are redriven or discarded
    GiveUp {
        #[command(flatten)]
        change: ChangeArgs,
        #[command(flatten)]
        states: States,
    },
}

#[derive(clap::Args)]
pub(super) struct States {
    /// Select messages in this state; may be given several times [default: failing and held; with message ids, all]
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<Word>,
}

/// What a message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Word {
    /// Its next try
    Failing,
    /// Its destination, which fails
    Held,
    /// An earlier message of its key
    Behind,
    /// Its available_at
    Scheduled,
    /// It was sent before, and is sent again
    Replay,
}

impl States {
    fn states(&self, filter: &FilterArgs) -> Vec<State> {
        let state = |word: &Word| match word {
            Word::Failing => State::Failing,
            Word::Held => State::Held,
            Word::Behind => State::Behind,
            Word::Scheduled => State::Scheduled,
            Word::Replay => State::Replay,
        };
        match (self.states.as_slice(), filter.message_ids.as_slice()) {
            ([], []) => vec![State::Failing, State::Held],
            ([], _) => State::ALL.to_vec(),
            (words, _) => words.iter().map(state).collect(),
        }
    }

    fn text(&self) -> Option<String> {
        let words = self.states.iter().filter_map(Word::to_possible_value);
        let words: Vec<String> = words.map(|w| format!("state={}", w.get_name())).collect();
        (!words.is_empty()).then(|| words.join(" "))
    }
}

const NOT_WAITING: &str = "no waiting message has this id and fits the filter";

pub(super) async fn waiting(
    command: &Command,
    source: &Source,
    config: &Config,
) -> Result<(), CliError> {
    match command {
        Command::List {
            filter,
            states,
            limit,
            json,
        } => {
            let session = database::session(source).await?;
            migrate::require_known(&session).await?;
            let states = states.states(filter);
            let filter = filter.filter(&config.routing);
            let found = match json.json {
                true => list_json(&session, &filter, &states, *limit).await?,
                false => list(&session, &filter, &states, limit.unwrap_or(100)).await?,
            };
            let asked = filter.message_ids.iter();
            // Of a list that was cut, nobody knows.
            let missing = match found {
                Some(found) => asked.filter(|id| !found.contains(id)).copied().collect(),
                None => Vec::new(),
            };
            database::none_missing(&missing, NOT_WAITING)
        }
        Command::RetryNow { change, states } => {
            let never = |word: &&Word| matches!(word, Word::Behind | Word::Scheduled);
            if let Some(word) = states.states.iter().find(never) {
                return Err(CliError::Usage(match word {
                    Word::Behind => "--state behind: these messages wait for an earlier one of their key; retry that one",
                    _ => "--state scheduled: these messages wait for their available_at; the owner brings it forward with UPDATE",
                }.to_owned()));
            }
            Box::pin(self::change(change, states, source, config, "retry-now")).await
        }
        Command::GiveUp { change, states } => {
            Box::pin(self::change(change, states, source, config, "give-up")).await
        }
    }
}

type Ids = std::collections::BTreeSet<uuid::Uuid>;

/// Prints all messages, or `limit` of them; only one page is in memory. Returns the ids among those that were asked for;
/// `None`: the list was cut.
async fn list_json(
    session: &Session,
    filter: &Filter,
    states: &[State],
    limit: Option<u32>,
) -> Result<Option<Ids>, CliError> {
    let mut left = limit.map_or(usize::MAX, |limit| limit as usize);
    let mut array = output::Array::begin()?;
    let mut pages = Pages::new(session, filter, states);
    let mut ids = Ids::new();
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            array.end()?;
            return Ok(Some(ids));
        }
        for message in &page {
            if left == 0 {
                array.end()?;
                // On standard error, because a program reads the array from standard output.
                output::note(&format!(
                    "the first {}; there are more: without --limit all are listed",
                    limit.unwrap_or_default()
                ));
                return Ok(None);
            }
            array.push(message)?;
            if !filter.message_ids.is_empty() {
                ids.insert(message.message_id);
            }
            left -= 1;
        }
    }
}

async fn list(
    session: &Session,
    filter: &Filter,
    states: &[State],
    limit: u32,
) -> Result<Option<Ids>, CliError> {
    let limit = limit as usize;
    // Read one message more than the limit, to know whether there are more.
    let mut found: Vec<WaitingMessage> = Vec::new();
    let mut pages = Pages::new(session, filter, states);
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
        output::line("no such waiting messages")?;
    } else {
        table(&found)?;
    }
    if cut {
        output::line(&format!(
            "the first {limit}; there are more: --limit shows them"
        ))?;
    }
    others(session, states).await?;
    Ok((!cut).then(|| found.iter().map(|m| m.message_id).collect()))
}

fn table(found: &[WaitingMessage]) -> Result<(), CliError> {
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|m| {
            let key = match (&m.aggregate_type, &m.aggregate_id) {
                (Some(kind), Some(id)) => format!("{kind}/{id}"),
                (Some(kind), None) => kind.clone(),
                (None, _) => none(),
            };
            vec![
                m.message_id.to_string(),
                m.state.clone(),
                m.since.clone().unwrap_or_else(none),
                m.next_try_at.clone().unwrap_or_else(none),
                m.attempts.to_string(),
                m.reason.clone().unwrap_or_else(none),
                key,
                m.event_type.clone().unwrap_or_default(),
                m.behind.map_or_else(none, |id| id.to_string()),
                m.last_error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    Ok(table::table(
        &[
            whole("MESSAGE ID"),
            whole("STATE"),
            whole("SINCE"),
            whole("NEXT TRY"),
            whole("ATTEMPTS"),
            whole("REASON"),
            text("KEY"),
            text("TYPE"),
            whole("BEHIND"),
            text("LAST ERROR"),
        ],
        &rows,
    )?)
}

/// Says what waits besides, so that nobody takes the list for all.
async fn others(session: &Session, states: &[State]) -> Result<(), CliError> {
    let counts = waiting_list::counts(session).await?;
    let all: i64 = counts.iter().map(|(_, n)| n).sum();
    let shown = |state: &str| states.iter().any(|s| s.as_str() == state);
    let others: Vec<String> = counts
        .iter()
        .filter(|(state, _)| !shown(state))
        .map(|(state, n)| format!("{n} {state}"))
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let of = match all >= waiting_list::COUNTED {
        true => format!(" (among the first {} records)", waiting_list::COUNTED),
        false => String::new(),
    };
    Ok(output::line(&format!(
        "not shown{of}: {}; --state shows them",
        others.join(", ")
    ))?)
}

async fn change(
    args: &ChangeArgs,
    states: &States,
    source: &Source,
    config: &Config,
    action: &'static str,
) -> Result<(), CliError> {
    let more = states.text();
    args.checked(more.as_ref())?;
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let operation = args.operation(action, more);
    let states = states.states(&args.filter);
    let filter = args.filter.filter(&config.routing);
    let act = match action {
        "retry-now" => Act::RetryNow,
        _ => Act::GiveUp {
            by: &operation.by,
            why: &operation.why,
        },
    };
    let verb = match act {
        Act::RetryNow => "due now",
        Act::GiveUp { .. } => "given up",
    };
    let done = if args.dry_run {
        waiting::count(&session, &filter, &states, act).await?
    } else {
        let total = match Progress::is_watched() {
            true => {
                waiting::count(&session, &filter, &states, act)
                    .await?
                    .messages
            }
            false => 0,
        };
        let mut progress = Progress::new(total);
        let mut tell = |done| progress.tell(done);
        let mut pace = Pace::new(args.rate, &mut tell);
        let mut done = Done::default();
        let changing = waiting::change(
            &session, &filter, &states, act, &operation, &mut pace, &mut done,
        );
        let changed = database::whole(changing).await;
        progress.end();
        if let Err(error) = changed {
            database::half(done.messages.unsigned_abs(), verb);
            return Err(error);
        }
        done
    };
    report(args, action, verb, &done)?;
    refusals(args, &done)
}

fn report(args: &ChangeArgs, action: &str, verb: &str, done: &Done) -> Result<(), CliError> {
    if args.json.json {
        return Ok(output::json(&serde_json::json!({
            "action": action, "messages": done.messages, "already_due": done.already_due, "held_behind_a_probe": done.follow,
            "claimed": done.claimed, "claimed_ids": done.claimed_ids, "not_possible": done.unfit,
            "not_waiting": missing(args, done), "dry_run": args.dry_run,
        }))?);
    }
    let would = if args.dry_run { "would be " } else { "" };
    output::line(&format!("{} messages {would}{verb}", done.messages))?;
    if done.already_due > 0 {
        output::line(&format!("{} more were due already", done.already_due))?;
    }
    if done.follow > 0 {
        output::line(&format!(
            "{} more are held; they follow if the probe of their destination succeeds",
            done.follow
        ))?;
    }
    Ok(())
}

fn missing(args: &ChangeArgs, done: &Done) -> Vec<uuid::Uuid> {
    let asked = args.filter.message_ids.iter();
    asked
        .filter(|id| !done.found.contains(id))
        .copied()
        .collect()
}

/// What was not done, and an exit code for it: a script must not take it for done.
fn refusals(args: &ChangeArgs, done: &Done) -> Result<(), CliError> {
    for (id, state) in &done.unfit {
        let cure = match state.as_str() {
            "behind" => "it waits for an earlier message of its key: retry that one",
            _ => "it waits for its available_at: the owner brings it forward with UPDATE",
        };
        output::note(&format!("{id}: {cure}"));
    }
    if !args.filter.message_ids.is_empty() {
        for id in &done.claimed_ids {
            output::note(&format!("{id}: a relay works on its lane at this moment"));
        }
    }
    if done.claimed > 0 {
        return Err(CliError::Failure(format!(
            "{} messages were skipped, because a relay, or somebody else, holds their lanes at this moment. Run the command \
             again; `outboxd where` says who holds a lane",
            done.claimed
        )));
    }
    database::none_missing(&missing(args, done), NOT_WAITING)?;
    if done.unfit.is_empty() {
        return Ok(());
    }
    Err(CliError::Failure(format!(
        "{} messages cannot be tried now",
        done.unfit.len()
    )))
}
