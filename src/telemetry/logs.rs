//! Logs: one line an event, for people on a terminal, JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

#[derive(Debug, thiserror::Error)]
#[error("\"{level}\" is not a level (error, warn, info, debug, trace) or a filter: {source}")]
pub struct LogError {
    level: String,
    source: tracing_subscriber::filter::ParseError,
}

/// lapin logs a returned message with its payload at WARN; no payload ever goes to a log.
const SILENCED: &str = "lapin=off,amq_protocol=off";

/// What `log.level` lets through.
pub fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let checked = |text: String| {
        EnvFilter::builder().parse(text).map_err(|source| LogError {
            level: level.to_owned(),
            source,
        })
    };
    checked(level.to_owned())?;
    checked(format!("{level},{SILENCED}"))
}

/// Starts logging to standard error.
pub fn start(log: &Log) -> Result<(), LogError> {
    let filter = filter(&log.level)?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    // A subscriber that is there already belongs to a test.
    let _ = if json {
        registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(true)
                    .with_span_list(false)
                    .with_writer(sink::writer()),
            )
            .try_init()
    } else {
        registry
            .with(
                fmt::layer()
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false)
                    .with_writer(sink::writer()),
            )
            .try_init()
    };
    Ok(())
}

/// Lets the last lines out before the process ends; a blocked standard error costs a second, not the exit.
pub fn flush() {
    sink::flush(std::time::Duration::from_secs(1));
}

/// Standard error behind a bounded queue and a thread of its own: when whoever reads it stops reading, lines are
/// dropped and counted, and the relay keeps flowing.
mod sink {
    use std::{
        io::{self, Write},
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
            mpsc::{SyncSender, TrySendError, sync_channel},
        },
    };

    use tracing_subscriber::fmt::MakeWriter;

    const LINES: usize = 4096;

    static LOST: AtomicU64 = AtomicU64::new(0);
    static QUEUE: OnceLock<Option<SyncSender<Item>>> = OnceLock::new();

    enum Item {
        Line(Vec<u8>),
        Flush(SyncSender<()>),
    }

    pub(super) fn writer() -> Sink {
        Sink
    }

    #[derive(Clone, Copy)]
    pub(super) struct Sink;

    pub(super) fn flush(within: std::time::Duration) {
        let Some(Some(queue)) = QUEUE.get() else {
            return;
        };
        let (done, flushed) = sync_channel(1);
        if queue.try_send(Item::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(within);
        }
    }

    fn queue() -> Option<&'static SyncSender<Item>> {
        QUEUE
            .get_or_init(|| {
                let (sender, lines) = sync_channel::<Item>(LINES);
                let thread = std::thread::Builder::new()
                    .name("log".to_owned())
                    .spawn(move || {
                        for item in lines {
                            let line = match item {
                                Item::Line(line) => line,
                                Item::Flush(done) => {
                                    let _ = done.try_send(());
                                    continue;
                                }
                            };
                            let lost = LOST.swap(0, Ordering::Relaxed);
                            let mut out = io::stderr().lock();
                            if lost > 0 {
                                let _ = writeln!(
                                    out,
                                    "{lost} log lines were dropped: standard error was not read"
                                );
                            }
                            let _ = out.write_all(&line);
                        }
                    });
                thread.is_ok().then_some(sender)
            })
            .as_ref()
    }

    impl Write for Sink {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            match queue().map(|queue| queue.try_send(Item::Line(line.to_vec()))) {
                Some(Ok(())) => {}
                Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) => {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
                None => io::stderr().write_all(line)?,
            }
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Self;

        fn make_writer(&'a self) -> Self::Writer {
            *self
        }
    }
}
