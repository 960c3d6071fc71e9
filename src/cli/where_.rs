//! `outboxd where`: finds messages and tells their state. It changes nothing.

use std::time::{Duration, SystemTime};

use outbox_core::{
    message::{Lane, Position},
    scheduling::all_lanes,
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    CliError, database, output,
    values::{self, Moment},
    where_report::{self, Before, Found},
    where_route::Router,
};
use crate::{
    config::{Config, Source},
    outbox::{
        find::{self, Hits},
        known, migrate, replay,
        search::{self, Window},
        session::Session,
        whereabouts::{self, Absent, Facts, State},
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The message id
    #[arg(value_name = "MESSAGE_ID", value_parser = values::message_id, required_unless_present_any = ["key", "correlation_id"])]
    message_id: Option<Uuid>,
    /// List the messages of this key that are not sent, and the last five that are; with a message id: where to look for it
    #[arg(long, value_name = "TYPE/ID", value_parser = values::key, conflicts_with = "correlation_id")]
    key: Option<(String, String)>,
    /// Find messages by the correlation_id in their headers, of the last hour unless --since says otherwise
    #[arg(long, value_name = "TEXT", value_parser = values::text, conflicts_with = "message_id")]
    correlation_id: Option<String>,
    /// Look only among messages written at or after this time, for example 2026-01-31T08:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    since: Option<Moment>,
    /// Look only among messages written before this time
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    until: Option<Moment>,
    /// Read all of the table, if need be, and not only its newest million rows
    #[arg(long)]
    scan: bool,
    /// Show the body, too
    #[arg(long, requires = "message_id")]
    body: bool,
    #[command(flatten)]
    json: output::Json,
}

/// What was looked through.
#[derive(Debug, Serialize)]
struct Searched {
    /// In words, for a person.
    how: String,
    rows: i64,
    first_position: Option<i64>,
    last_position: Option<i64>,
    /// When the messages at these positions were written.
    from: Option<String>,
    until: Option<String>,
    is_cut: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    found: &'a [Found],
    searched: &'a Searched,
}

/// Sent messages of a key that a list shows.
const SENT: i64 = 5;

/// How far back a correlation id is looked for.
const CORRELATED: Duration = Duration::from_secs(3600);

/// Positions on each side of a time: the position at a time is known to about 256, and messages are written at one time.
const SLACK: i64 = 1_000;

pub(super) async fn locate(args: &Args, source: &Source, config: &Config) -> Result<(), CliError> {
    let router = Router::new(config)?;
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let now = replay::now(&session).await?;
    let range = Range::of(args, now)?;
    let all = find::ends(&session).await?;
    let command = Command {
        args,
        config,
        router,
        session,
        now,
        range,
        all: all.unwrap_or(Window { first: 1, last: 0 }),
    };
    match (&args.message_id, &args.correlation_id, &args.key) {
        (Some(id), _, _) => command.by_id(*id).await,
        (None, Some(correlation_id), _) => command.by_correlation_id(correlation_id).await,
        (None, None, Some((kind, id))) => command.of_key(kind, id).await,
        (None, None, None) => Ok(()),
    }
}

/// The times that the person gave.
struct Range {
    since: Option<SystemTime>,
    until: Option<SystemTime>,
}

impl Range {
    fn of(args: &Args, now: SystemTime) -> Result<Self, CliError> {
        let (since, until) = (args.since.map(|m| m.by(now)), args.until.map(|m| m.by(now)));
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(CliError::Usage(format!(
                "--since {} is not before --until {}: no message is in that range",
                values::shown(since),
                values::shown(until)
            )));
        }
        if args.message_id.is_none()
            && args.key.is_some()
            && (since.or(until).is_some() || args.scan)
        {
            return Err(CliError::Usage(
                "--key lists what is not sent, however old; --since, --until and --scan are for a message id or a correlation id"
                    .to_owned(),
            ));
        }
        Ok(Self {
            since: since.map(Into::into),
            until: until.map(Into::into),
        })
    }

    fn is_given(&self) -> bool {
        self.since.or(self.until).is_some()
    }
}

struct Command<'a> {
    args: &'a Args,
    config: &'a Config,
    router: Router,
    session: Session,
    now: SystemTime,
    range: Range,
    /// All positions of the table.
    all: Window,
}

impl Command<'_> {
    async fn by_id(&self, id: Uuid) -> Result<(), CliError> {
        let lane = match &self.args.key {
            None => None,
            Some((kind, key)) => find::lane_of_key(&self.session, kind, key).await?,
        };
        let at = search::time_in(id).filter(|_| !self.range.is_given());
        let (mut hits, mut how) = match at {
            Some(at) => self.around(id, lane, at).await?,
            None => self.through(id, lane).await?,
        };
        if hits.positions.is_empty() && at.is_some() && self.args.scan {
            (hits, how) = self.through(id, lane).await?;
        }
        let searched = self.searched(&hits, how).await?;
        let found = self.found(&hits.positions, true).await?;
        if found.is_empty() {
            let whole = hits.read.is_some() && !hits.is_cut || self.all.is_empty();
            // How old it may be: as its id says, or as the person does.
            let oldest = at.or(self.range.since);
            let age = oldest.map(|at| seconds_between(at, self.now));
            return self
                .absent(&format!("the id {id}"), at, whole, age, &searched)
                .await;
        }
        if self.args.json.json {
            return Ok(output::json(&Report {
                found: &found,
                searched: &searched,
            })?);
        }
        for (n, message) in found.iter().enumerate() {
            if n > 0 {
                output::line("")?;
            }
            where_report::show(message)?;
        }
        if found.len() > 1 {
            output::note(&format!(
                "{} messages have this id: a producer wrote it more than once, and consumers that deduplicate take one of them",
                found.len()
            ));
        }
        Ok(())
    }

    /// By the time in the id.
    async fn around(
        &self,
        id: Uuid,
        lane: Option<Lane>,
        at: SystemTime,
    ) -> Result<(Hits, String), CliError> {
        let lanes = lane.map_or_else(|| all_lanes().collect(), |lane| vec![lane]);
        let mut hits = find::around(&self.session, id, &lanes, at, self.all).await?;
        if hits.positions.is_empty() {
            hits.positions = find::filed(&self.session, id).await?;
        }
        let how = format!(
            "around the time in the id, {}, and among what waits and what is dead",
            values::shown(at.into())
        );
        Ok((hits, how))
    }

    /// An id without a time, or a search that the person directs.
    async fn through(&self, id: Uuid, lane: Option<Lane>) -> Result<(Hits, String), CliError> {
        let filed = find::filed(&self.session, id).await?;
        if !filed.is_empty() {
            let hits = Hits {
                positions: filed,
                ..Hits::default()
            };
            return Ok((hits, "among what waits and what is dead".to_owned()));
        }
        let window = self.window().await?;
        let budget = (!self.args.scan).then_some(find::BUDGET);
        Ok(match lane {
            Some(lane) => (
                find::in_lane(&self.session, id, lane, window, budget).await?,
                "in the lane of the key, the newest first".to_owned(),
            ),
            None if self.args.scan || self.range.is_given() => (
                find::between(&self.session, id, window, budget).await?,
                "the newest first".to_owned(),
            ),
            None => (
                Hits::default(),
                "among what waits and what is dead".to_owned(),
            ),
        })
    }

    async fn by_correlation_id(&self, correlation_id: &str) -> Result<(), CliError> {
        let mut since = self.range.since;
        if since.is_none() && !self.args.scan {
            let until = self.range.until.unwrap_or(self.now);
            since = until.checked_sub(CORRELATED);
        }
        let window = self.window_of(since, self.range.until).await?;
        let budget = (!self.args.scan).then_some(find::BUDGET);
        let hits = find::correlated(&self.session, correlation_id, window, budget).await?;
        let searched = self.searched(&hits, "the newest first".to_owned()).await?;
        let found = self.found(&hits.positions, false).await?;
        if found.is_empty() {
            let whole = !hits.is_cut;
            let age = since.map(|at| seconds_between(at, self.now));
            let what = format!("the correlation id \"{}\"", correlation_id.escape_debug());
            return self.absent(&what, None, whole, age, &searched).await;
        }
        if self.args.json.json {
            return Ok(output::json(&Report {
                found: &found,
                searched: &searched,
            })?);
        }
        where_report::list(&found)?;
        Ok(output::line(&searched.text())?)
    }

    async fn of_key(&self, kind: &str, id: &str) -> Result<(), CliError> {
        let of_key = find::of_key(&self.session, kind, id, SENT).await?;
        let open = self.found(&of_key.open, false).await?;
        let sent = self.found(&of_key.sent, false).await?;
        let head = open.iter().find(|message| message.holds_its_key_back());
        if self.args.json.json {
            output::json(&serde_json::json!({
                "open": open,
                "open_is_cut": of_key.open_is_cut,
                "head": head.map(|head| head.message_id),
                "sent": sent,
                "sent_is_cut": of_key.sent_is_cut,
            }))?;
        }
        if open.is_empty() && sent.is_empty() {
            let cut = if of_key.open_is_cut || of_key.sent_is_cut {
                "; only a part of its lane was looked at: look for a message by its id"
            } else {
                ""
            };
            return Err(CliError::Failure(format!(
                "no message has the key {}{cut}. Sent messages are kept for {} (retention.sent of this configuration)",
                format!("{kind}/{id}").escape_debug(),
                humantime::format_duration(self.config.retention.sent),
            )));
        }
        if self.args.json.json {
            return Ok(());
        }
        where_report::key(&open, of_key.open_is_cut, head, &sent)?;
        if of_key.open_is_cut {
            output::line(
                "there may be more that are not sent: the list and the rows it reads are bounded",
            )?;
        }
        if of_key.sent_is_cut && (sent.len() as i64) < SENT {
            output::line("older messages of its lane were not looked at")?;
        }
        Ok(())
    }

    /// The positions between the times that the person gave.
    async fn window(&self) -> Result<Window, CliError> {
        self.window_of(self.range.since, self.range.until).await
    }

    async fn window_of(
        &self,
        since: Option<SystemTime>,
        until: Option<SystemTime>,
    ) -> Result<Window, CliError> {
        let lanes: Vec<Lane> = all_lanes().collect();
        let mut window = self.all;
        if window.is_empty() {
            return Ok(window);
        }
        if let Some(since) = since {
            let at = find::position_at(&self.session, &lanes, since, self.all).await?;
            window.first = window.first.max(at.first.saturating_sub(SLACK));
        }
        if let Some(until) = until {
            let at = find::position_at(&self.session, &lanes, until, self.all).await?;
            window.last = window.last.min(at.last.saturating_add(SLACK));
        }
        Ok(window)
    }

    async fn searched(&self, hits: &Hits, how: String) -> Result<Searched, CliError> {
        let mut times = [None, None];
        if let Some(read) = hits.read {
            for (time, position) in times.iter_mut().zip([read.first, read.last]) {
                *time = find::written_at(&self.session, position).await?;
            }
        }
        let [from, until] = times.map(|at| at.map(|at| values::shown(at.into())));
        Ok(Searched {
            how,
            rows: hits.rows,
            first_position: hits.read.map(|read| read.first),
            last_position: hits.read.map(|read| read.last),
            from,
            until,
            is_cut: hits.is_cut,
        })
    }

    /// What is known of messages at these positions. `whole`: also what takes a statement for each.
    async fn found(&self, positions: &[Position], whole: bool) -> Result<Vec<Found>, CliError> {
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        let facts = known::facts(&self.session, positions).await?;
        let lanes: Vec<Lane> = positions.iter().map(|p| p.lane).collect();
        let holders = known::holders(&self.session, &lanes).await?;
        let mut found = Vec::with_capacity(facts.len());
        for facts in facts {
            let position = facts.message.position;
            // Of a list, for the first: the others stand behind it.
            let before = if facts.state() == State::Pending && (whole || found.is_empty()) {
                Some(self.before(position).await?)
            } else {
                None
            };
            let operations = if whole {
                known::operations(&self.session, facts.message.message_id).await?
            } else {
                None
            };
            let body = if self.args.body {
                known::body(&self.session, position, self.config.relay.max_payload_bytes).await?
            } else {
                None
            };
            let holder = holders.iter().find(|holder| holder.lane == position.lane);
            let holder = holder.filter(|_| is_unsettled(&facts)).cloned();
            let route = self.router.route(&facts);
            found.push(Found::of(facts, route, before, holder, operations, body));
        }
        Ok(found)
    }

    async fn before(&self, position: Position) -> Result<Before, CliError> {
        let ahead = known::ahead(&self.session, position).await?;
        let estimate = whereabouts::estimate(&ahead);
        Ok(Before {
            messages: ahead.messages,
            is_about: ahead.is_about,
            seconds: estimate.ok(),
            no_estimate: estimate.err(),
        })
    }

    async fn absent(
        &self,
        what: &str,
        at: Option<SystemTime>,
        whole: bool,
        age_s: Option<f64>,
        searched: &Searched,
    ) -> Result<(), CliError> {
        let kept = self.config.retention.sent;
        let absent = whereabouts::absent(whole, age_s, kept.as_secs_f64());
        let writers = known::open_writers(&self.session).await?;
        let gigabytes = find::table_bytes(&self.session).await? as f64 / 1e9;
        if self.args.json.json {
            output::json(&serde_json::json!({
                "found": [],
                "absent": absent,
                "searched": searched,
                "sent_messages_are_kept_seconds": kept.as_secs_f64(),
                "open_writing_transactions": writers,
            }))?;
        }
        let scan = format!("--scan reads the whole table ({gigabytes:.1} GB)");
        let mut text = format!("no message with {what} was found. {}", searched.text());
        let mut add = |sentence: String| text.push_str(&format!(". {sentence}"));
        match absent {
            Absent::NotSearched if searched.is_cut => add(format!(
                "The search ended there: give a narrower --since and --until, or --key; {scan}"
            )),
            Absent::NotSearched => add(format!(
                "The id carries no time (UUIDs of version 7 do), and outbox.message has no index on it: say where to look, with \
                 --key TYPE/ID, or with --since and --until for the time when it was written; {scan}"
            )),
            Absent::MaybeDeleted => add(format!(
                "It may have been sent and deleted since: sent messages are kept for {} (retention.sent of this configuration)",
                humantime::format_duration(kept)
            )),
            Absent::Unknown => {}
        }
        if at.is_some() && !self.args.scan {
            add(format!(
                "If the clock that made the id was wrong, give the time when it was written with --since and --until; {scan}"
            ));
        }
        if writers > 0 {
            add(format!(
                "{writers} writing transactions are open here; what they wrote is not visible before they commit"
            ));
        }
        Err(CliError::Failure(text))
    }
}

/// A relay has still something to do with it.
fn is_unsettled(facts: &Facts) -> bool {
    facts.waiting.is_some()
        || matches!(
            facts.state(),
            State::Pending | State::Scheduled | State::Stranded
        )
}

fn seconds_between(earlier: SystemTime, later: SystemTime) -> f64 {
    later
        .duration_since(earlier)
        .map_or(0.0, |age| age.as_secs_f64())
}

impl Searched {
    fn text(&self) -> String {
        let Self { how, rows, .. } = self;
        let (Some(first), Some(last)) = (self.first_position, self.last_position) else {
            return format!("Searched {how}");
        };
        let written = match (&self.from, &self.until) {
            (Some(from), Some(until)) => format!(", written from {from} to {until}"),
            (Some(from), None) => format!(", written since {from}"),
            _ => String::new(),
        };
        let cut = if self.is_cut { ", and not further" } else { "" };
        format!("Searched {how}: {rows} rows at the positions {first} to {last}{written}{cut}")
    }
}
