//! One value of a row.

use std::fmt::Display;

use tokio_postgres::{Row, row::RowIndex, types::FromSql};

use super::OutboxError;

pub(super) fn get<'a, T: FromSql<'a>, I: RowIndex + Display>(
    row: &'a Row,
    column: I,
) -> Result<T, OutboxError> {
    row.try_get(column).map_err(|source| OutboxError::Database {
        action: "decode a row",
        source,
    })
}
