//! Every check of `outboxd doctor`: its code, its question, and the cure. A code keeps its meaning, because scripts and tickets name
//! it. `outboxd check --connect` prints lines of the same checks.

use std::fmt;

/// What a check is about. The groups are printed in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Configuration,
    Connection,
    Schema,
    Roles,
    Settings,
    Locks,
    Messages,
    Broker,
}

impl Group {
    /// The server that is asked.
    pub fn server(self) -> Option<&'static str> {
        match self {
            Self::Configuration => None,
            Self::Connection
            | Self::Schema
            | Self::Roles
            | Self::Settings
            | Self::Locks
            | Self::Messages => Some("PostgreSQL"),
            Self::Broker => Some("RabbitMQ"),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configuration => "configuration",
            Self::Connection => "connection to PostgreSQL",
            Self::Schema => "schema",
            Self::Roles => "roles and privileges",
            Self::Settings => "settings of PostgreSQL",
            Self::Locks => "locks, marks and vacuum",
            Self::Messages => "messages and relays",
            Self::Broker => "RabbitMQ",
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    pub code: &'static str,
    pub group: Group,
    /// What must hold, in words.
    pub asks: &'static str,
    /// The cure, if the finding does not have a better one.
    pub cure: &'static str,
}

/// Declares the checks, and the list of all of them.
macro_rules! checks {
    ($($name:ident $code:literal $group:ident, $asks:literal, $cure:literal;)*) => {
        $(pub static $name: Check = Check { code: $code, group: Group::$group, asks: $asks, cure: $cure };)*
        pub static ALL: &[&Check] = &[$(&$name),*];
    };
}

checks! {
    CONFIGURATION "D101" Configuration, "The configuration is valid",
        "Correct the key that the finding names; `outboxd config show` prints every key with its origin.";
    DESCRIPTORS "D102" Configuration, "A relay may open as many files and sockets as it needs",
        "Raise the hard limit: `ulimit -Hn`, `LimitNOFILE=` of systemd, or the container's limit; or lower `relay.workers`.";

    CONNECTED "D201" Connection, "The database accepts a session",
        "Check host, port, database, user and password in `database.url`, the network, and `pg_hba.conf`.";
    DATABASE_TLS "D202" Connection, "The session is encrypted, or stays on this host",
        "Use `sslmode=verify-full` in `database.url`, and remove `database.allow_plaintext`.";
    DATABASE_CERTIFICATE "D203" Connection, "The server's certificate is valid for 30 more days",
        "Renew the certificate on the server that the finding names, and reload PostgreSQL.";
    DATABASE_VERSION "D204" Connection, "The version of PostgreSQL is one that outboxd is tested with",
        "Upgrade PostgreSQL, or outboxd.";
    WRITABLE "D205" Connection, "Transactions may write",
        "Name the primary in `database.url`, or every host with `target_session_attrs=read-write`; or reset `default_transaction_read_only`.";
    POOLER "D206" Connection, "The settings suit the pooler in between, or there is none",
        "Set `database.prepared_statements = false` and `database.listen = false`, or connect to PostgreSQL itself.";
    CONNECTIONS "D207" Connection, "PostgreSQL has as many free connections as a relay uses",
        "Raise `max_connections`, or the CONNECTION LIMIT of the role or the database; or lower `relay.workers`.";
    CLOCK "D208" Connection, "The clocks of this machine and of the database agree",
        "Synchronise both clocks (NTP). Messages follow the database's clock; logs and certificates follow this machine's.";
    ENCODING "D209" Connection, "The database's encoding converts text to UTF-8",
        "Keep the outbox in a database with `ENCODING 'UTF8'`.";

    VERSION "D301" Schema, "The outbox schema has the version that this program knows",
        "Run `outboxd migrate` as the owner; for a newer schema, run a newer outboxd.";
    HALF "D302" Schema, "The schema is applied as a whole",
        "Complete it as `outboxd sql` defines it, then run `outboxd migrate`, which records the version.";
    PARTS "D303" Schema, "Every part that the relay works with is there, and unchanged",
        "Put each part back as `outboxd sql` defines it, as the owner of schema outbox, or restore the database.";
    GUARDS "D304" Schema, "Every part that guards events is there, and unchanged",
        "Put each part back as `outboxd sql` defines it, as the owner of schema outbox. Until then an event can be lost.";
    PRODUCERS_PARTS "D305" Schema, "Every part that producers use, or that speed needs, is there, and unchanged",
        "Put each part back as `outboxd sql` defines it, as the owner of schema outbox.";
    TRIGGERS "D306" Schema, "`outbox.message` has no trigger of somebody else's",
        "Drop the trigger, unless it is meant so: the relay takes each message as the trigger leaves it.";

    PRIVILEGES "D401" Roles, "This role has every privilege that a relay needs",
        "Run the statements as the owner of schema outbox, or `outboxd sql --roles`, then GRANT outbox_relay to this role.";
    PRODUCERS "D402" Roles, "Each role that may insert events has every privilege for it",
        "Run the statements as the owner of schema outbox, or `outboxd sql --roles`, then GRANT outbox_producer to the role.";
    SHARED_ROLES "D403" Roles, "The outbox's roles have no rights in other databases",
        "Give each database roles of its own: `outboxd sql --roles --producer NAME --relay NAME --monitor NAME`.";
    READABLE "D404" Roles, "A relay can look for work: no policy hides rows from this role",
        "Disable row level security on the table that the finding names, or give this role BYPASSRLS.";

    SETTINGS "D501" Settings, "No setting lets a crash lose committed events, or stops vacuum",
        "Turn the setting on, for the server, the database or the role that the finding names.";

    LOCKS "D601" Locks, "No transaction holds a lock that the relay needs",
        "End the transaction, or its session: SELECT pg_terminate_backend(pid). A prepared transaction ends with ROLLBACK PREPARED.";
    MARKS "D602" Locks, "No long transaction holds the marks back",
        "End the transaction, or its session: SELECT pg_terminate_backend(pid). Retention and the marks wait for it; messages do not.";
    BLOAT "D603" Locks, "Vacuum keeps up with the dead rows",
        "End what holds vacuum back (D604), then VACUUM the table; see that autovacuum runs.";
    HORIZON "D604" Locks, "Nothing holds vacuum back for long",
        "End the session or the prepared transaction, or drop the replication slot, that the finding names.";

    LAG "D701" Messages, "The oldest due message is younger than a minute",
        "See that a relay runs (D705), then look at D601, D602 and the faults of RabbitMQ; `outboxd where` explains one message.";
    DEAD "D702" Messages, "No message is dead",
        "`outboxd failures` shows why; correct the cause, then `outboxd dead redrive`, or `outboxd dead discard`.";
    HELD "D703" Messages, "No destination fails",
        "`outboxd failures` names the destinations; create the queue, the exchange or the permission that is missing.";
    STRANDED "D704" Messages, "No unsent message is where no relay looks",
        "Run a relay: its audit files and sends them. Then find out who changed the tables by hand.";
    RELAYS "D705" Messages, "A relay runs",
        "Start one: `outboxd run`. If one runs, see that it uses this database, and read its log.";
    RELAYS_STATE "D706" Messages, "Every relay publishes, with this version of outboxd",
        "Read the relay's log and its `/readyz`; replace relays of an older version.";
    RETENTION "D707" Messages, "Retention keeps up",
        "See that a relay runs, and that no transaction holds the marks back (D602); `outboxd prune` deletes at once.";

    BROKER "D801" Broker, "The broker accepts a connection",
        "Check host, port, virtual host, user and password in `broker.url`, the network, and the user's permissions.";
    BROKER_TLS "D802" Broker, "The connection is encrypted, or stays on this host",
        "Use `amqps://` in `broker.url`, and remove `broker.allow_plaintext`.";
    BROKER_CERTIFICATE "D803" Broker, "The broker's certificate is valid for 30 more days",
        "Renew the certificate on the broker.";
    BROKER_VERSION "D804" Broker, "The version of RabbitMQ is one that outboxd is tested with",
        "Upgrade RabbitMQ to 3.10 or newer.";
    EXCHANGES "D805" Broker, "Each configured exchange exists",
        "Declare the exchange on the broker; for development, `broker.declare = true`.";
    WRITE "D806" Broker, "This user may publish to each configured exchange",
        "Grant the user *write* on the exchange: `rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ`.";
    BINDINGS "D807" Broker, "A queue takes each route's messages",
        "AMQP cannot tell. `rabbitmqctl list_bindings -p VHOST` lists the bindings; bind a queue for each route.";
    BLOCKED "D808" Broker, "The broker accepts publishes: it has no alarm",
        "Free memory or disk on the broker: `rabbitmqctl list_alarms`, `rabbitmq-diagnostics status`.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_stands_once_and_in_order() {
        let codes: Vec<&str> = ALL.iter().map(|check| check.code).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
    }
}
