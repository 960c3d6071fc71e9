//! What is written down during a run, and how.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A message whose transaction committed: the producer saw COMMIT succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Committed {
    pub message_id: String,
    /// Messages with one key must arrive in the order of their positions. `None` for a message without a key, and
    /// for a scheduled one: it leaves its key's order.
    pub key: Option<String>,
    /// `outbox.message.id`.
    pub position: i64,
    /// A hash of the body as it was written, of any kind that the consumer uses too.
    pub body: String,
}

/// A message that a consumer received. Every delivery is written down, repeats too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivered {
    pub message_id: String,
    /// The same hash as in [`Committed::body`], of the body as it was received.
    pub body: String,
    /// Place of this delivery among all deliveries of the run. Consumers that share a key share the counter.
    pub sequence: u64,
    /// AMQP's `redelivered` flag: the broker gave it to a consumer before, and was not told that it is done.
    #[serde(default)]
    pub redelivered: bool,
    /// Carries the header `outbox-replay`: published again on purpose.
    #[serde(default)]
    pub replay: bool,
}

/// One line of a ledger file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    Committed(Committed),
    /// The connection was lost during COMMIT. The message may arrive or not; a later `committed` settles it.
    InDoubt {
        message_id: String,
        body: String,
    },
    Delivered(Delivered),
    /// Found in `outbox.dead`.
    Dead {
        message_id: String,
    },
    /// A dead message was redriven: it must arrive now, and it has lost its place in its key's order.
    Redriven {
        message_id: String,
    },
    /// Found with `sent_at` set.
    MarkedSent {
        message_id: String,
    },
}

/// All entries of a run, in the order in which they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pub entries: Vec<Entry>,
}

impl Ledger {
    pub fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Reads a ledger file, and adds its entries.
    pub fn read_file(&mut self, path: impl AsRef<Path>) -> Result<(), ReadError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| ReadError::Io {
            from: path.display().to_string(),
            source,
        })?;
        self.read_lines(BufReader::new(file), &path.display().to_string())
    }

    /// Reads JSON lines and adds their entries; `from` names them in an error. A torn line is an error: a ledger
    /// with a hole proves nothing.
    pub fn read_lines(&mut self, lines: impl BufRead, from: &str) -> Result<(), ReadError> {
        for (index, line) in lines.lines().enumerate() {
            let line = line.map_err(|source| ReadError::Io {
                from: from.to_owned(),
                source,
            })?;
            if line.trim().is_empty() {
                continue;
            }
            let entry = serde_json::from_str(&line).map_err(|source| ReadError::Line {
                from: from.to_owned(),
                line: index + 1,
                source,
            })?;
            self.add(entry);
        }
        Ok(())
    }

    pub fn write_lines(&self, to: impl Write) -> io::Result<()> {
        let mut to = io::BufWriter::new(to);
        for entry in &self.entries {
            to.write_all(&json_line(entry)?)?;
        }
        to.flush()
    }
}

/// A ledger file that is open for appending. Any number of writers, in any number of processes, may append to one.
#[derive(Debug)]
pub struct LedgerFile {
    path: PathBuf,
    file: File,
}

impl LedgerFile {
    /// Opens the file, and makes it when it is missing.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        Ok(Self { path, file })
    }

    /// Appends one line. It is one write, so lines of several writers do not mix, and it is with the kernel when
    /// this returns, so a writer that is killed afterwards loses nothing.
    pub fn append(&self, entry: &Entry) -> io::Result<()> {
        let line = json_line(entry)?;
        let written = (&self.file).write(&line)?;
        if written < line.len() {
            return Err(io::Error::other(format!(
                "{}: a line was cut short",
                self.path.display()
            )));
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn json_line(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

/// Why a ledger could not be read.
#[derive(Debug)]
pub enum ReadError {
    Io {
        from: String,
        source: io::Error,
    },
    Line {
        from: String,
        line: usize,
        source: serde_json::Error,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { from, .. } => write!(f, "cannot read the ledger {from}"),
            Self::Line { from, line, .. } => write!(f, "ledger {from}, line {line}: not an entry"),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Line { source, .. } => Some(source),
        }
    }
}

/// FNV-1a, 64 bits, hexadecimal: enough to see a body altered by accident, and easy to write in any language.
pub fn body_hash(body: &[u8]) -> String {
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Entry> {
        vec![
            Entry::Committed(Committed {
                message_id: "a".into(),
                key: Some("order/1".into()),
                position: 7,
                body: body_hash(b"{}"),
            }),
            Entry::InDoubt {
                message_id: "b".into(),
                body: body_hash(b"{}"),
            },
            Entry::Delivered(Delivered {
                message_id: "a".into(),
                body: body_hash(b"{}"),
                sequence: 1,
                redelivered: true,
                replay: false,
            }),
            Entry::Dead {
                message_id: "c".into(),
            },
            Entry::Redriven {
                message_id: "c".into(),
            },
            Entry::MarkedSent {
                message_id: "a".into(),
            },
        ]
    }

    #[test]
    fn a_ledger_survives_being_written_and_read() {
        let ledger = Ledger {
            entries: one_of_each(),
        };
        let mut lines = Vec::new();
        ledger.write_lines(&mut lines).unwrap();
        assert_eq!(lines.iter().filter(|b| **b == b'\n').count(), 6);

        let mut read = Ledger::default();
        read.read_lines(&lines[..], "memory").unwrap();
        assert_eq!(read, ledger);
    }

    #[test]
    fn lines_have_the_documented_form() {
        let line = serde_json::to_string(&one_of_each()[0]).unwrap();
        let hash = body_hash(b"{}");
        let wanted = format!(
            r#"{{"entry":"committed","message_id":"a","key":"order/1","position":7,"body":"{hash}"}}"#
        );
        assert_eq!(line, wanted);
    }

    #[test]
    fn appending_from_many_threads_keeps_every_line_whole() {
        let path =
            std::env::temp_dir().join(format!("checker-ledger-{}.jsonl", std::process::id()));
        let _ = std::fs::remove_file(&path);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let file = LedgerFile::open(&path).unwrap();
                scope.spawn(move || {
                    for n in 0..250 {
                        let message_id = format!("{thread}-{n}");
                        file.append(&Entry::MarkedSent { message_id }).unwrap();
                    }
                });
            }
        });
        let mut ledger = Ledger::default();
        let read = ledger.read_file(&path);
        std::fs::remove_file(&path).unwrap();
        read.unwrap();
        assert_eq!(ledger.entries.len(), 1000);
    }

    #[test]
    fn a_torn_line_is_an_error_that_names_its_place() {
        let lines = "{\"entry\":\"dead\",\"message_id\":\"a\"}\n{\"entry\":\"dead\",\"mess";
        let error = Ledger::default()
            .read_lines(lines.as_bytes(), "run.jsonl")
            .unwrap_err();
        assert_eq!(error.to_string(), "ledger run.jsonl, line 2: not an entry");
    }

    #[test]
    fn an_unknown_entry_or_field_is_an_error() {
        for line in [
            r#"{"entry":"lost","message_id":"a"}"#,
            r#"{"entry":"delivered","message_id":"a","body":"x","sequence":1,"replayed":true}"#,
        ] {
            assert!(
                Ledger::default()
                    .read_lines(line.as_bytes(), "memory")
                    .is_err(),
                "{line}"
            );
        }
    }

    #[test]
    fn the_body_hash_is_fnv_1a() {
        assert_eq!(body_hash(b""), "cbf29ce484222325");
        assert_eq!(body_hash(b"a"), "af63dc4c8601ec8c");
        assert_eq!(body_hash(b"foobar"), "85944171f73967e8");
    }
}
