//! The schemas' migrations, embedded.

use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;

use super::session::Query;

#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub version: i32,
    pub name: &'static str,
    pub file: &'static str,
    pub sql: &'static str,
}

/// One of the two schemas of this project, in any database.
pub struct Schema {
    pub name: &'static str,
    pub migrations: &'static [Migration],
    /// Script with roles and grants, for a person to run.
    pub roles: &'static str,
    /// The parts that the migrations make, as module `parts` writes them.
    pub parts: &'static str,
    pub(super) applied: Query,
    pub(super) record: Query,
}

/// The schema in the producing service's database.
pub const OUTBOX: Schema = Schema {
    name: "outbox",
    migrations: &[Migration {
        version: 1,
        name: "outbox",
        file: "0001_outbox.sql",
        sql: include_str!("../../migrations/outbox/0001_outbox.sql"),
    }],
    roles: include_str!("../../deploy/postgres/roles.sql"),
    parts: include_str!("parts/outbox_0001.txt"),
    applied: Query {
        action: "read the outbox schema's version",
        sql: "SELECT version, name, checksum FROM outbox.migration ORDER BY version",
        types: &[],
    },
    record: Query {
        action: "record a migration's checksum",
        sql: "INSERT INTO outbox.migration AS m (version, name, checksum) VALUES ($1, $2, $3) \
              ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum WHERE m.checksum IS NULL",
        types: &[Type::INT4, Type::TEXT, Type::TEXT],
    },
};

/// The schema in the consuming service's database. The relay never reads it.
pub const INBOX: Schema = Schema {
    name: "inbox",
    migrations: &[Migration {
        version: 1,
        name: "inbox",
        file: "0001_inbox.sql",
        sql: include_str!("../../migrations/inbox/0001_inbox.sql"),
    }],
    roles: include_str!("../../deploy/postgres/inbox_roles.sql"),
    parts: include_str!("parts/inbox_0001.txt"),
    applied: Query {
        action: "read the inbox schema's version",
        sql: "SELECT version, name, checksum FROM inbox.migration ORDER BY version",
        types: &[],
    },
    record: Query {
        action: "record a migration's checksum",
        sql: "INSERT INTO inbox.migration AS m (version, name, checksum) VALUES ($1, $2, $3) \
              ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum WHERE m.checksum IS NULL",
        types: &[Type::INT4, Type::TEXT, Type::TEXT],
    },
};

/// Version of the outbox schema that this program works with.
pub fn known() -> i32 {
    OUTBOX.known()
}

impl Schema {
    pub(super) fn known(&self) -> i32 {
        self.migrations.last().map_or(0, |m| m.version)
    }
}

impl Migration {
    /// SHA-256 of the file, hexadecimal.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}
