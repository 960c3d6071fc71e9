//! Plaintext, opportunistic TLS and certificates. Bad inputs 10, 11 and 18.

use test_support::certificates::Authority;

use super::judge::{Judge, file};
use crate::{
    arena::Setup,
    row::{Outcome, Result, Row, rows},
};

pub const CASES: &[Row] = rows! { setup;
    10, "plaintext to a non-loopback host unless allowed explicitly" => plaintext(setup);
    11, "opportunistic TLS (prefer) to a non-loopback host" => opportunistic_tls(setup);
    18, "CA, certificate and key that do not match or have expired" => certificates(setup);
};

async fn plaintext(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for host in [
        "mq.example",
        "192.0.2.1",
        "[2001:db8::1]",
        "localhost.example",
    ] {
        let url = format!("amqp://u:hunter2@{host}");
        let says = [
            "broker.url: amqp:// to another host is plaintext",
            "use amqps://, or set broker.allow_plaintext = true",
        ];
        judge.refuses(&[("AMQP_URL", &url)], &says).await?;
        judge
            .takes(&[("AMQP_URL", &url), ("broker.allow_plaintext", "true")])
            .await?;
        judge
            .takes(&[("AMQP_URL", &url.replace("amqp:", "amqps:"))])
            .await?;
    }
    for hosts in ["db.example", "192.0.2.1", "127.0.0.1,db.example"] {
        let url = format!("postgres://u:hunter2@{hosts}/shop?sslmode=disable");
        let says = [
            "database.url: sslmode=disable to another host is plaintext",
            "use sslmode=verify-full, or set database.allow_plaintext = true",
        ];
        judge.refuses(&[("DATABASE_URL", &url)], &says).await?;
        judge
            .takes(&[("DATABASE_URL", &url), ("database.allow_plaintext", "true")])
            .await?;
    }
    Ok(judge.outcome())
}

async fn opportunistic_tls(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    for url in [
        "postgres://u:hunter2@db.example/shop?sslmode=prefer",
        "postgres://u:hunter2@127.0.0.1,db.example/shop?sslmode=prefer",
        "host=db.example user=u password=hunter2 sslmode=prefer",
    ] {
        let says = [
            "database.url: sslmode=prefer to another host",
            "use sslmode=verify-full",
        ];
        judge.refuses(&[("DATABASE_URL", url)], &says).await?;
        let allowed = [("DATABASE_URL", url), ("database.allow_plaintext", "true")];
        judge.takes(&allowed).await?;
    }
    let here = "postgres://u:hunter2@127.0.0.1/shop?sslmode=prefer";
    judge.takes(&[("DATABASE_URL", here)]).await?;
    Ok(judge.outcome())
}

async fn certificates(setup: &Setup) -> Result<Outcome> {
    let mut judge = Judge::new(setup);
    let folder = tempfile::tempdir()?;
    let at = |name: &str, text: &str| file(folder.path(), name, text.as_bytes(), 0o600);
    let authority = Authority::new("ours")?;
    let (one, other) = (authority.client("relay")?, authority.client("relay")?);
    let old = authority.expired_client("relay")?;
    let ca = at("ca.pem", &authority.pem())?;
    let old_ca = at("old-ca.pem", &Authority::expired("old")?.pem())?;
    let (cert, key) = (at("one.pem", &one.pem)?, at("one.key", &one.key_pem)?);
    let other_key = at("other.key", &other.key_pem)?;
    let (old, old_key) = (at("old.pem", &old.pem)?, at("old.key", &old.key_pem)?);
    let text = at("text.pem", "hunter2\n")?;
    let missing = folder.path().join("missing").display().to_string();
    for (section, url) in [
        (
            "database",
            ("DATABASE_URL", "postgres://relay:hunter2@localhost/shop"),
        ),
        ("broker", ("AMQP_URL", "amqps://relay:hunter2@localhost")),
    ] {
        let names = ["ca_file", "cert_file", "key_file"].map(|name| format!("{section}.{name}"));
        let [ca_file, cert_file, key_file] = names.each_ref().map(String::as_str);
        let pair = |cert, key| [url, (cert_file, cert), (key_file, key)];
        for (settings, key, says) in [
            (
                pair(&cert, &other_key).to_vec(),
                cert_file,
                "the certificate and key do not work together",
            ),
            (pair(&old, &old_key).to_vec(), cert_file, "expired on"),
            (vec![url, (ca_file, &old_ca)], ca_file, "expired on"),
            (vec![url, (ca_file, &text)], ca_file, "no PEM certificate"),
            (vec![url, (ca_file, &key)], ca_file, "no PEM certificate"),
            (vec![url, (ca_file, &missing)], ca_file, "cannot read"),
            (pair(&key, &key).to_vec(), cert_file, "no PEM certificate"),
            (pair(&cert, &text).to_vec(), cert_file, &text),
            (vec![url, (cert_file, &cert)], key_file, "is not set"),
            (vec![url, (key_file, &key)], cert_file, "is not set"),
        ] {
            let named = format!("{key}: ");
            judge.refuses(&settings, &[&named, says]).await?;
        }
        let mut right = pair(&cert, &key).to_vec();
        right.push((ca_file, &ca));
        judge.takes(&right).await?;
    }
    Ok(judge.outcome())
}
