//! Configuration: the program refuses to start with exit code 78, names the key and what would be right, and never
//! shows a secret. Bad inputs 1 to 18.

mod admin;
mod broker_url;
mod encryption;
pub mod judge;
mod retention;
mod schema;
mod secrets;
mod values;

use crate::row::Row;

pub fn cases() -> Vec<&'static Row> {
    [
        values::CASES,
        broker_url::CASES,
        encryption::CASES,
        secrets::CASES,
        schema::CASES,
        admin::CASES,
        retention::CASES,
    ]
    .into_iter()
    .flatten()
    .collect()
}
