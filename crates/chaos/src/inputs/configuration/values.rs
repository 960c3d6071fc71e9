//! Keys and values. Bad input 1.

use super::judge::{Judge, NO_BROKER_URL, SECRET, file};
use crate::{
    arena::Setup,
    row::{Outcome, Result, Row, rows},
};

pub const CASES: &[Row] = rows! { setup;
    1, "a configuration that is refused: each file of tests/config/invalid, --set, the environment" => refused(setup);
};

async fn refused(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for entry in std::fs::read_dir(setup.repository.join("tests/config/invalid"))? {
        judge.refuses_fixture(&entry?.path()).await?;
    }
    let guess = &["relay.worker: unknown key", "did you mean relay.workers?"];
    judge.refuses(&[("relay.worker", SECRET)], guess).await?;
    let set = ["--set", "relay.worker=hunter2"];
    judge.refuses_with(&set, &[], guess).await?;
    // The password once in the file of the URL, and once in its own.
    let folder = tempfile::tempdir()?;
    let at = |name: &str, text: &[u8]| file(folder.path(), name, text, 0o600);
    let url = at("url", b"amqp://relay:hunter2@127.0.0.1:1")?;
    let password = at("password", SECRET.as_bytes())?;
    let twice = [
        NO_BROKER_URL,
        ("broker.url_file", &url),
        ("broker.password_file", &password),
    ];
    let says = ["broker.password_file: the password is in broker.url_file as well"];
    judge.refuses(&twice, &says).await?;
    judge.takes(&[]).await?;
    Ok(judge.outcome())
}
