//! Logs: one line for each event, in a readable form on a terminal, as JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Registry, filter::filter_fn, fmt, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use super::panics;
use crate::config::{Log, LogError, LogFormat, log_filter};

/// Changes the log level while the program runs.
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        // The reload fails only without a subscriber, and then nothing is logged.
        let _ = self.0.reload(log_filter(level)?);
        Ok(())
    }
}

/// The crates of this workspace that are part of the relay.
const OWN: [&str; 3] = ["outboxd", "outbox_core", "amqp_guard"];

/// Only the relay's own lines are logged, whatever `log.level` says. Libraries log payloads and parameters: lapin a returned
/// message at WARN, tokio-postgres the parameters of a statement at DEBUG. A list of what may be logged stays right when a
/// library gets a new line; and a directive of `log.level` could be more specific than one that silences a library.
fn is_own(target: &str) -> bool {
    let crate_name = target.split("::").next();
    crate_name.is_some_and(|name| OWN.contains(&name))
}

/// Starts logging to standard error, panics included.
pub fn start(log: &Log) -> Result<Level, LogError> {
    let (filter, level) = reload::Layer::new(log_filter(&log.level)?);
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let own = filter_fn(|metadata| is_own(metadata.target()));
    let registry = tracing_subscriber::registry().with(filter).with(own);
    // An existing subscriber belongs to a test.
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
                    .with_ansi(is_coloured())
                    .with_target(false)
                    .with_writer(sink::writer()),
            )
            .try_init()
    };
    panics::log(flush);
    Ok(Level(level))
}

/// <https://no-color.org>: any value counts, but not an empty one.
fn is_coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Writes the last lines before the process ends. A blocked standard error delays the exit by one second at most.
pub fn flush() {
    sink::flush(std::time::Duration::from_secs(1));
}

/// Standard error behind a bounded queue and its own thread. If nothing reads standard error, or its disk is full,
/// lines are dropped and counted, and the relay continues.
mod sink {
    use std::{
        io::{self, Write},
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
            mpsc::{SyncSender, TrySendError, sync_channel},
        },
        time::Duration,
    };

    use tracing_subscriber::fmt::MakeWriter;

    use crate::telemetry::metrics;

    const LINES: usize = 4096;
    /// Retry interval: another process may have made the same terminal or pipe non-blocking.
    const AGAIN: Duration = Duration::from_millis(20);

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

    pub(super) fn flush(within: Duration) {
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
                        let mut out = Lines::new(io::stderr());
                        for item in lines {
                            match item {
                                Item::Line(line) => write(&mut out, &line),
                                Item::Flush(done) => {
                                    let _ = done.try_send(());
                                }
                            }
                        }
                    });
                thread.is_ok().then_some(sender)
            })
            .as_ref()
    }

    /// Writes the number of dropped lines first, so that the log shows the place of the gap.
    fn write(out: &mut Lines<impl Write>, line: &[u8]) {
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let gap = format!(
                "{lost} log lines were dropped: standard error was not read, or its disk was full\n"
            );
            if out.line(gap.as_bytes()).is_err() {
                LOST.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if out.line(line).is_err() {
            drop_one();
        }
    }

    fn drop_one() {
        LOST.fetch_add(1, Ordering::Relaxed);
        metrics::log_line_dropped();
    }

    /// Writes whole lines: after a line that a full disk truncated, the next one starts on a new line.
    pub(super) struct Lines<W> {
        out: W,
        torn: bool,
    }

    impl<W: Write> Lines<W> {
        pub(super) fn new(out: W) -> Self {
            Self { out, torn: false }
        }

        pub(super) fn line(&mut self, line: &[u8]) -> io::Result<()> {
            if self.torn {
                self.all(b"\n")?;
                self.torn = false;
            }
            self.all(line)
        }

        #[cfg(test)]
        pub(super) fn out_mut(&mut self) -> &mut W {
            &mut self.out
        }

        fn all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
            let whole = bytes.len();
            while !bytes.is_empty() {
                match self.out.write(bytes) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => bytes = &bytes[n..],
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
                    Err(e) => {
                        self.torn |= bytes.len() < whole;
                        return Err(e);
                    }
                }
            }
            Ok(())
        }
    }

    impl Write for Sink {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            match queue().map(|queue| queue.try_send(Item::Line(line.to_vec()))) {
                Some(Ok(())) => {}
                Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) => drop_one(),
                None => write(&mut Lines::new(io::stderr()), line),
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

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::{is_own, sink::Lines};

    #[test]
    fn only_own_lines_are_logged() {
        for own in ["outboxd", "outboxd::relay::worker", "outbox_core::wave"] {
            assert!(is_own(own), "{own}");
        }
        for other in [
            "",
            "log",
            "lapin",
            "lapin::returned_messages",
            "outboxd_x::y",
        ] {
            assert!(!is_own(other), "{other}");
        }
    }

    /// A disk with room for this number of bytes.
    struct Disk {
        room: usize,
        holds: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= n;
            self.holds.extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_after_one_that_a_full_disk_cut_off_begins_on_its_own() {
        let mut out = Lines::new(Disk {
            room: 10,
            holds: Vec::new(),
        });
        assert!(out.line(b"first\n").is_ok());
        assert!(out.line(b"second\n").is_err(), "cut off after `seco`");
        assert!(out.line(b"third\n").is_err());
        out.out_mut().room = 100;
        assert!(out.line(b"fourth\n").is_ok());
        assert_eq!(out.out_mut().holds, b"first\nseco\nfourth\n");
    }
}
