//! The values of a row.

use std::{error::Error, fmt::Display};

use tokio_postgres::{
    Row,
    row::RowIndex,
    types::{FromSql, WrongType},
};

use super::OutboxError;

const DECODE: &str = "decode a row";

pub(super) fn get<'a, T: FromSql<'a>, I: RowIndex + Display>(
    row: &'a Row,
    column: I,
) -> Result<T, OutboxError> {
    row.try_get(column).map_err(|source| OutboxError::Database {
        action: DECODE,
        source,
    })
}

/// Values that producers wrote. One of them that cannot be decoded is the fault of its row: its neighbours in the same result
/// must flow.
pub(super) struct Values<'r> {
    row: &'r Row,
    damage: Option<String>,
}

impl<'r> Values<'r> {
    pub fn of(row: &'r Row) -> Self {
        Self { row, damage: None }
    }

    /// The first value that could not be decoded: its column, and why.
    pub fn damage(self) -> Option<String> {
        self.damage
    }

    /// A value that the schema requires.
    pub fn required<T: FromSql<'r> + Default>(&mut self, column: usize) -> Result<T, OutboxError> {
        self.needed(column).map(Option::unwrap_or_default)
    }

    /// As `required`, for a type without a default.
    pub fn needed<T: FromSql<'r>>(&mut self, column: usize) -> Result<Option<T>, OutboxError> {
        let sound = self.damage.is_none();
        let value = self.optional(column)?;
        if value.is_none() && sound && self.damage.is_none() {
            self.note(column, "is NULL");
        }
        Ok(value)
    }

    /// A value that may be NULL.
    pub fn optional<T: FromSql<'r>>(&mut self, column: usize) -> Result<Option<T>, OutboxError> {
        match self.row.try_get(column) {
            Ok(value) => Ok(value),
            // Every row has this fault, and none is to blame: the column has another type.
            Err(source) if source.source().is_some_and(|why| why.is::<WrongType>()) => {
                Err(OutboxError::ColumnType {
                    action: DECODE,
                    column: self.name(column).to_owned(),
                    here: self
                        .row
                        .columns()
                        .get(column)
                        .map_or_else(String::new, |c| c.type_().to_string()),
                })
            }
            Err(_) => {
                self.note(column, "holds what cannot be decoded");
                Ok(None)
            }
        }
    }

    /// The row cannot be published because of this column.
    pub fn note(&mut self, column: usize, what: &str) {
        let name = self.name(column);
        let damage = format!("{name} {what}");
        self.damage.get_or_insert(damage);
    }

    fn name(&self, column: usize) -> &'r str {
        self.row
            .columns()
            .get(column)
            .map_or("a column", |c| c.name())
    }
}
