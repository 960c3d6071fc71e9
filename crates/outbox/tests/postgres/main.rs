//! What a service does, against a real PostgreSQL with the outbox in it.

mod effects;
mod enqueue;
mod http;
mod inbox;
mod inbox_roles;
mod overtaken;
mod producing_doc;
mod service;
mod settings;
mod swallowed;

use std::path::{Path, PathBuf};

use test_support::Postgres;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

static SERVER: OnceCell<Postgres> = OnceCell::const_new();

/// With a database `shop`: the outbox, the business table of the examples, and the role `shop_service`.
async fn server() -> &'static Postgres {
    SERVER
        .get_or_init(|| async {
            let postgres = Postgres::start().await.unwrap();
            postgres.create_database("shop", "postgres").await.unwrap();
            for file in [
                "migrations/outbox/0001_outbox.sql",
                "deploy/postgres/roles.sql",
                "examples/producing/shop.sql",
            ] {
                postgres.execute("shop", &read(file)).await.unwrap();
            }
            postgres
        })
        .await
}

/// What a service connects as.
async fn database() -> Client {
    let url = server().await.url_for("shop_service", "shop", "shop");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Who may look at what was written.
async fn onlooker() -> Client {
    server().await.connect("shop").await.unwrap()
}

fn read(file: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
