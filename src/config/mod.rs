//! Configuration: defaults < file < `DATABASE_URL`, `AMQP_URL` < environment < flags. All problems are reported at once, each
//! with its key and what would be right, and never with the value of a secret.
//!
//! - `keys`: every key, its default, its values, its meaning
//! - `takes`: the kinds of values, and their bounds
//! - `place`: which file is read
//! - `layers`: merges file, environment and flags into one value for each key
//! - `scope`: where a source's value is found
//! - `reader`: typed, bounded values; unknown keys
//! - `sections`: the sections, and the relations between them
//! - `show`, `schema`: the configuration and its schema, for people and programs
//! - `settings`: the configuration as the program uses it
//! - `database`, `broker`: what is read again at every connect (URL, password)
//! - `dsn`, `uri`: the addresses of the two servers

mod broker;
mod database;
mod dsn;
mod error;
mod given;
pub mod keys;
mod layers;
mod load;
mod log;
mod options;
mod place;
mod reader;
mod schema;
mod scope;
mod secret;
mod sections;
mod settings;
mod show;
mod takes;
#[cfg(test)]
mod tests;
pub mod uri;

pub use broker::{Broker, BrokerAuth};
pub use database::Database;
pub use error::{ConfigError, ConfigErrors};
pub use given::Changes;
pub use log::{LogError, log_filter};
pub use options::{LoadOptions, Needs};
pub use place::ConfigFile;
pub use schema::schema;
pub use secret::Secret;
pub use settings::{
    Admin, Config, Log, LogFormat, MessageFormat, Relay, Retention, Routing, Source,
};
pub use show::{Effective, Shown};
