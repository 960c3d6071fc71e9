//! Where the admin endpoints listen. Bad inputs 15 and 16.

use tokio::net::TcpListener;

use super::judge::{Judge, environment, refused};
use crate::{
    arena::Setup,
    row::{Outcome, Result, Row, rows},
};

pub const CASES: &[Row] = rows! { setup;
    15, "admin port in use" => admin_port(setup);
    16, "non-loopback admin address without the opt-in" => admin_address(setup);
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

async fn admin_address(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for address in [
        "0.0.0.0:9464",
        "[::]:9464",
        "192.0.2.1:9464",
        "[2001:db8::1]:9464",
        "[::ffff:192.0.2.1]:9464",
    ] {
        let named = format!("admin.listen: {address}");
        let says = [named.as_str(), "set admin.allow_non_loopback = true"];
        judge.refuses(&[("admin.listen", address)], &says).await?;
        let meant = ("admin.allow_non_loopback", "true");
        judge.takes(&[("admin.listen", address), meant]).await?;
    }
    for address in ["127.0.0.1:9464", "[::1]:9464", "127.9.9.9:9464"] {
        judge.takes(&[("admin.listen", address)]).await?;
    }
    Ok(judge.outcome())
}
