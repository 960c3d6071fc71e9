//! SIGHUP: reads the configuration again. It applies the keys that can change while the relay runs, and logs the keys that
//! need a restart. An unusable configuration changes nothing.

use std::time::Duration;

use crate::{
    config::{Changes, Config, ConfigErrors, LoadOptions, keys},
    telemetry::logs,
};

/// Files may be on a network file system, and a stop must not wait for them.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Reload {
    options: LoadOptions,
    running: Config,
    level: logs::Level,
}

impl Reload {
    pub(super) fn new(options: LoadOptions, running: Config, level: logs::Level) -> Self {
        Self {
            options,
            running,
            level,
        }
    }

    pub(super) async fn now(&mut self) {
        let options = self.options.clone();
        let read = tokio::task::spawn_blocking(move || Config::load(options));
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(Ok(newer))) => self.take_over(&newer),
            Ok(Ok(Err(ConfigErrors(problems)))) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                tracing::error!(
                    problems = problems.join("; "),
                    "SIGHUP: the configuration is not usable; keeping the previous one"
                );
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!(
                    "SIGHUP: the configuration could not be read within {PATIENCE:?}; keeping the previous one"
                );
            }
        }
    }

    fn take_over(&mut self, newer: &Config) {
        let (reloaded, needs_restart) = outcome(self.running.changes(newer));
        let config = &newer.file;
        let say = || {
            if needs_restart.is_empty() {
                tracing::info!(%config, reloaded, "SIGHUP: configuration read again");
            } else {
                tracing::warn!(
                    %config,
                    reloaded,
                    needs_restart,
                    "SIGHUP: configuration read again; some keys need a restart"
                );
            }
        };
        // Log the line under the old level or under the new one, because one of them may hide it.
        let heard = tracing::enabled!(tracing::Level::INFO);
        if heard {
            say();
        }
        if let Err(error) = self.level.set(&newer.log.level) {
            tracing::error!(error = %error, "SIGHUP: the log level is unchanged");
        }
        if !heard {
            say();
        }
        self.running.adopt(newer);
    }
}

/// The applied keys, and the keys that need a restart, each separated by commas.
fn outcome(changes: Changes) -> (String, String) {
    let (level, waiting): (Vec<String>, Vec<String>) = changes
        .keys
        .into_iter()
        .partition(|key| key == keys::LOG_LEVEL);
    let reloaded: Vec<String> = level.into_iter().chain(changes.files).collect();
    (reloaded.join(", "), waiting.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_and_what_files_hold_are_taken_over_and_the_rest_waits() {
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        let changes = Changes {
            keys: texts(&["log.level", "relay.workers", "routing.exchange"]),
            files: texts(&["database.password_file"]),
        };
        let (reloaded, waits) = outcome(changes);
        assert_eq!(reloaded, "log.level, database.password_file");
        assert_eq!(waits, "relay.workers, routing.exchange");
    }
}
