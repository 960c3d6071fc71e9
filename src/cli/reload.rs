//! SIGHUP: the configuration is read again. What can be taken over is; what cannot is named; one that is not usable
//! changes nothing.

use std::time::Duration;

use crate::{
    config::{Changes, Config, ConfigErrors, LoadOptions, keys},
    telemetry::logs,
};

/// Files may lie on a network; a stop must not wait for them.
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
                    "SIGHUP: the configuration is not usable; going on with the one of before"
                );
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!(
                    "SIGHUP: the configuration could not be read within {PATIENCE:?}; going on with the one of before"
                );
            }
        }
    }

    fn take_over(&mut self, newer: &Config) {
        let (reloaded, needs_restart) = outcome(self.running.changes(newer));
        let say = || {
            if needs_restart.is_empty() {
                tracing::info!(reloaded, "SIGHUP: configuration read again");
            } else {
                tracing::warn!(
                    reloaded,
                    needs_restart,
                    "SIGHUP: configuration read again; some of it waits for a restart"
                );
            }
        };
        // Under the level of before and under the new one: under one of them it may be hidden.
        let heard = tracing::enabled!(tracing::Level::INFO);
        if heard {
            say();
        }
        if let Err(error) = self.level.set(&newer.log.level) {
            tracing::error!(error = %error, "SIGHUP: the log level stays as it was");
        }
        if !heard {
            say();
        }
        self.running.adopt(newer);
    }
}

/// What is taken over, and what is not: keys, separated by commas.
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
