//! Where the admin endpoints listen. Bad input 15.

use tokio::net::TcpListener;

use super::judge::{environment, refused};
use crate::{
    arena::Setup,
    row::{Outcome, Result, Row, rows},
};

pub const CASES: &[Row] = rows! { setup;
    15, "admin port in use" => admin_port(setup);
};

async fn admin_port(setup: &Setup) -> Result<Outcome> {
    let busy = TcpListener::bind("127.0.0.1:0").await?;
    let address = busy.local_addr()?.to_string();
    // `check` takes no port.
    let env = environment(&[("admin.listen", &address)]);
    let ran = setup.outboxd(&["run"], env).await?;
    let named = format!("admin.listen = \"{address}\"");
    refused(
        &ran,
        &[&named, "Free the port, or set admin.listen to another"],
    )?;
    let mut outcome = Outcome::default();
    outcome
        .notes
        .push("refused with exit code 78, before anything is claimed".to_owned());
    Ok(outcome)
}
