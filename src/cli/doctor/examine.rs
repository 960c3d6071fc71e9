//! Which questions are asked of which server. The servers of all sources are asked at the same time.

use futures_util::future::join_all;

use super::{
    broker, certificates,
    checks::{ALL, BROKER, CONFIGURATION, Check, Group},
    condition::{self, Known},
    database, judge_outbox, judge_server,
    line::{Line, Reported, fill},
};
use crate::{
    config::{Config, ConfigErrors, Source},
    descriptors,
};

/// All answers.
pub struct Found {
    pub lines: Vec<Reported>,
    pub sources: Vec<FoundSource>,
}

/// What the bundle tells of a source beside the checks.
pub struct FoundSource {
    pub name: String,
    pub known: Known,
    /// Product and version.
    pub broker: Option<String>,
}

impl Found {
    /// Nothing else can be asked.
    pub fn of_bad_configuration(errors: &ConfigErrors) -> Self {
        let faults = errors.0.iter();
        let mut lines: Vec<Line> = faults
            .map(|error| Line::fault(&CONFIGURATION, error.to_string()))
            .collect();
        fill(&mut lines, ALL.iter().copied());
        Self {
            lines: reported(None, lines),
            sources: Vec::new(),
        }
    }
}

pub async fn all(config: &Config) -> Found {
    let mut lines = reported(None, of_the_process(config));
    let asked = config.sources.iter().map(|source| one(config, source));
    let mut sources = Vec::with_capacity(config.sources.len());
    for (source, found) in join_all(asked).await {
        lines.extend(reported(Some(&source.name), found));
        sources.push(source);
    }
    Found { lines, sources }
}

fn of_the_process(config: &Config) -> Vec<Line> {
    let names: Vec<&str> = config.sources.iter().map(|s| s.name.as_str()).collect();
    let needed = descriptors::needed_with_admin(config.sources.len(), config.relay.workers);
    vec![
        Line::ok(
            &CONFIGURATION,
            format!("file: {}; sources: {}", config.file, names.join(", ")),
        ),
        judge_server::descriptors(descriptors::limits(), needed),
    ]
}

async fn one(config: &Config, source: &Source) -> (FoundSource, Vec<Line>) {
    let (postgres, (mut on_broker, greeting)) = tokio::join!(
        Box::pin(of_postgres(config, source)),
        Box::pin(of_broker(config, source))
    );
    let (mut lines, known) = postgres;
    // The broker cannot tell; the messages that it returned do.
    if !on_broker
        .iter()
        .any(|line| line.check == &BROKER && line.is_fault())
    {
        on_broker.push(judge_outbox::bindings(known.returned));
    }
    fill(
        &mut lines,
        asked_of(|group| group.server() == Some("PostgreSQL")),
    );
    fill(&mut on_broker, asked_of(|group| group == Group::Broker));
    lines.extend(on_broker);
    let source = FoundSource {
        name: source.name.clone(),
        known,
        broker: greeting,
    };
    (source, lines)
}

async fn of_postgres(config: &Config, source: &Source) -> (Vec<Line>, Known) {
    let (examined, certificate) = tokio::join!(
        Box::pin(database::examine(source, "outboxd/doctor")),
        Box::pin(certificates::of_postgres(&source.database))
    );
    let mut lines = examined.lines;
    let known = match &examined.session {
        Some(session) => condition::examine(session, source, config, &mut lines).await,
        None => Known::default(),
    };
    lines.push(certificate);
    (lines, known)
}

async fn of_broker(config: &Config, source: &Source) -> (Vec<Line>, Option<String>) {
    let mut lines = broker::examine(config, source, "outboxd/doctor").await;
    // Without a connection there is nothing more to see.
    if lines
        .iter()
        .any(|line| line.check == &BROKER && line.is_fault())
    {
        return (lines, None);
    }
    let (more, greeting) = certificates::of_broker(&source.broker).await;
    lines.extend(more);
    (lines, greeting)
}

fn asked_of(which: impl Fn(Group) -> bool) -> impl Iterator<Item = &'static Check> {
    ALL.iter().copied().filter(move |check| which(check.group))
}

/// In the order of the codes.
fn reported(source: Option<&str>, mut lines: Vec<Line>) -> Vec<Reported> {
    lines.sort_by_key(Line::code);
    let reported = lines.into_iter().map(|line| Reported {
        source: source.map(str::to_owned),
        line,
    });
    reported.collect()
}
