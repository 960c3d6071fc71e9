//! The place of a test: a database with the schemas and the roles, and a virtual host, on servers of its own or on shared ones.

use std::{
    ops::{Deref, DerefMut},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{Postgres, PostgresOptions, RabbitMq, RabbitMqOptions, Result, SOON, eventually};

/// In the order in which a person applies them.
const FILES: [&str; 4] = [
    "migrations/outbox/0001_outbox.sql",
    "deploy/postgres/roles.sql",
    "migrations/inbox/0001_inbox.sql",
    "deploy/postgres/inbox_roles.sql",
];

/// The database of shared servers that is copied for each site.
const TEMPLATE: &str = "template";

/// What each database gets.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the migrations and the grants are.
    pub repository: PathBuf,
    /// The role that owns the schemas; its password is its name.
    pub owner: &'static str,
    /// Statements that make the logins and what else every database has.
    pub logins: &'static str,
}

impl Plan {
    /// Makes the roles of a new server, and its first database.
    pub async fn prepare(&self, postgres: &Postgres, database: &str) -> Result<()> {
        let owner = self.owner;
        if owner != "postgres" {
            let role = format!("CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD '{owner}'");
            postgres.execute("postgres", &role).await?;
        }
        postgres.create_database(database, owner).await?;
        for file in FILES {
            let sql = std::fs::read_to_string(self.repository.join(file))?;
            postgres.psql(owner, owner, database, &sql)?;
        }
        postgres.execute(database, self.logins).await
    }

    async fn postgres(&self, options: PostgresOptions, database: &str) -> Result<Postgres> {
        let postgres = Postgres::start_with(options).await?;
        self.prepare(&postgres, database).await?;
        Ok(postgres)
    }

    /// Another database on a prepared server, whose roles work in both.
    pub async fn another(&self, postgres: &Postgres, database: &str) -> Result<()> {
        postgres.create_database(database, self.owner).await?;
        self.install(postgres, database).await
    }

    /// The schemas, and what the roles may do there, in a database of the superuser.
    pub async fn install(&self, postgres: &Postgres, database: &str) -> Result<()> {
        for file in FILES {
            let sql = std::fs::read_to_string(self.repository.join(file))?;
            let sql = format!("SET outboxd.shared_roles = on; {sql}");
            postgres.execute(database, &sql).await?;
        }
        Ok(())
    }
}

/// A server: the test's own, which it may break, or one that many tests share.
pub enum Held<T> {
    Own(Box<T>),
    Shared(Arc<T>),
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Own(server) => server,
            Self::Shared(server) => server,
        }
    }
}

impl<T> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Own(server) => server,
            Self::Shared(_) => panic!("this server belongs to all tests"),
        }
    }
}

pub struct Site {
    pub postgres: Held<Postgres>,
    pub rabbitmq: Held<RabbitMq>,
    pub database: String,
    pub vhost: String,
}

impl Site {
    /// On servers of its own.
    pub async fn own(
        plan: &Plan,
        database: &str,
        postgres: PostgresOptions,
        rabbitmq: RabbitMqOptions,
    ) -> Result<Self> {
        let postgres = plan.postgres(postgres, database);
        let (postgres, rabbitmq) = tokio::join!(postgres, RabbitMq::start_with(rabbitmq));
        let (postgres, rabbitmq) = (postgres?, rabbitmq?);
        Ok(Self {
            postgres: Held::Own(Box::new(postgres)),
            rabbitmq: Held::Own(Box::new(rabbitmq)),
            database: database.to_owned(),
            vhost: "/".to_owned(),
        })
    }

    /// Connects the superuser.
    pub async fn client(&self) -> Result<tokio_postgres::Client> {
        self.postgres.connect(&self.database).await
    }

    pub fn broker_url(&self) -> String {
        self.rabbitmq.url(&self.vhost)
    }
}

/// Servers that many tests share.
pub struct Servers {
    postgres: Arc<Postgres>,
    rabbitmq: Arc<RabbitMq>,
    vhosts: usize,
    next: AtomicUsize,
}

impl Servers {
    /// One call makes all virtual hosts, because a call of rabbitmqctl takes seconds.
    pub async fn start(plan: &Plan, vhosts: usize) -> Result<Self> {
        let postgres = plan.postgres(PostgresOptions::default(), TEMPLATE);
        let (postgres, rabbitmq) = tokio::join!(postgres, RabbitMq::start());
        let (postgres, rabbitmq) = (postgres?, rabbitmq?);
        let names: Vec<String> = (0..vhosts).map(|n| format!("t{n}")).collect();
        rabbitmq.create_vhosts(&names).await?;
        Ok(Self {
            postgres: Arc::new(postgres),
            rabbitmq: Arc::new(rabbitmq),
            vhosts,
            next: AtomicUsize::new(0),
        })
    }

    pub async fn site(&self) -> Site {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(n < self.vhosts, "more virtual hosts are needed");
        let database = format!("db{n}");
        // Two tests cannot copy a template at the same time.
        eventually("a copy of the template", SOON, async || {
            let copy = self.postgres.copy_database(&database, TEMPLATE);
            copy.await.ok()
        })
        .await;
        Site {
            postgres: Held::Shared(Arc::clone(&self.postgres)),
            rabbitmq: Held::Shared(Arc::clone(&self.rabbitmq)),
            database,
            vhost: format!("t{n}"),
        }
    }
}
