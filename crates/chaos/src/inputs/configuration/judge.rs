//! Runs the program with a bad setting, and judges what it says.

use std::{os::unix::fs::PermissionsExt, path::Path};

use test_support::Ran;

use crate::{
    arena::Setup,
    row::{Outcome, Result, expect},
};

/// Stands in every secret that is given, and must not be seen again.
pub const SECRET: &str = "hunter2";

/// Complete, and nobody listens there.
pub const ENOUGH: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://relay:hunter2@127.0.0.1:1/shop"),
    ("AMQP_URL", "amqp://relay:hunter2@127.0.0.1:1"),
    ("OUTBOXD__ADMIN__LISTEN", "off"),
];
/// A variable that is empty counts as unset.
pub const NO_BROKER_URL: (&str, &str) = ("AMQP_URL", "");

/// Keys (`relay.workers`) or variables (`AMQP_URL`) and their values.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

pub struct Judge<'a> {
    setup: &'a Setup,
    refused: usize,
    taken: usize,
}

impl<'a> Judge<'a> {
    pub fn new(setup: &'a Setup) -> Self {
        Self {
            setup,
            refused: 0,
            taken: 0,
        }
    }

    /// With these settings beside what is enough, neither starts, and both say all of this.
    pub async fn refuses(&mut self, settings: Settings<'_>, says: &[&str]) -> Result<()> {
        self.refuses_with(&[], settings, says).await
    }

    pub async fn refuses_with(
        &mut self,
        args: &[&str],
        settings: Settings<'_>,
        says: &[&str],
    ) -> Result<()> {
        self.refuses_in(args, environment(settings), says).await
    }

    /// A file of tests/config/invalid, whose first line says what is to be said.
    pub async fn refuses_fixture(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path)?;
        let says = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# says: "));
        let says = says.ok_or_else(|| format!("{} says nothing", path.display()))?;
        let config = path.display().to_string();
        self.refuses_in(&["--config", &config], Vec::new(), &[says.trim_end()])
            .await
    }

    async fn refuses_in(
        &mut self,
        args: &[&str],
        env: Vec<(String, String)>,
        says: &[&str],
    ) -> Result<()> {
        for command in ["run", "check"] {
            let args = [&[command], args].concat();
            let ran = self.setup.outboxd(&args, env.iter().cloned()).await;
            let judged = ran.and_then(|ran| refused(&ran, says));
            judged.map_err(|error| format!("{args:?} with {env:?}: {error}"))?;
        }
        self.refused += 1;
        Ok(())
    }

    pub async fn takes(&mut self, settings: Settings<'_>) -> Result<()> {
        let ran = self
            .setup
            .outboxd(&["check"], environment(settings))
            .await?;
        expect(ran.code == 0, || {
            format!("{settings:?} is right, and refused: {}", ran.said())
        })?;
        self.taken += 1;
        Ok(())
    }

    pub fn outcome(self) -> Outcome {
        let mut outcome = Outcome::default();
        let taken = match self.taken {
            0 => String::new(),
            n => format!("; {n} that are right were taken"),
        };
        let refused = self.refused;
        outcome
            .notes
            .push(format!("{refused} refused with exit code 78{taken}"));
        outcome
    }
}

pub fn refused(ran: &Ran, says: &[&str]) -> Result<()> {
    expect(ran.code == 78, || {
        format!("exit code {}, not 78: {}", ran.code, ran.said())
    })?;
    let missing = says.iter().find(|text| !ran.stderr.contains(**text));
    expect(missing.is_none(), || {
        format!("does not say {:?}: {}", missing, ran.stderr)
    })?;
    expect(!ran.said().contains(SECRET), || {
        format!("shows a secret: {}", ran.said())
    })
}

pub fn environment(settings: Settings<'_>) -> Vec<(String, String)> {
    let variable = |key: &str| {
        if key.contains('.') {
            format!("OUTBOXD__{}", key.replace('.', "__").to_uppercase())
        } else {
            key.to_owned()
        }
    };
    // A later one of a name replaces the one before.
    ENOUGH
        .iter()
        .chain(settings)
        .map(|(key, value)| (variable(key), (*value).to_owned()))
        .collect()
}

/// Written there with this mode; returns its path.
pub fn file(folder: &Path, name: &str, text: &[u8], mode: u32) -> Result<String> {
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    Ok(path.display().to_string())
}
