//! State checks: `PendingPayment → PaymentAuthorized`, once, and only from that state.

use tokio_postgres::{Transaction, types::ToSql};

use super::InboxError;

/// A table whose rows move through states.
#[derive(Debug, Clone)]
pub struct Transition {
    update: String,
    look: String,
}

/// The result of a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advanced {
    Done,
    /// The row is in the new state already: a duplicate.
    Already,
    /// The row is in another state: out of order, or impossible. Retry later, or let a person look. If `found` is the state
    /// that was expected, a trigger of the table keeps its rows as they are.
    Impossible {
        found: String,
    },
    Missing,
}

impl Transition {
    /// Names as they are in the database; `table` may have a schema before a dot.
    pub fn new(table: &str, key_column: &str, state_column: &str) -> Self {
        let table: Vec<String> = table.split('.').map(quoted).collect();
        let (table, key, state) = (table.join("."), quoted(key_column), quoted(state_column));
        Self {
            update: format!(
                "UPDATE {table} SET {state} = $2 WHERE {key} = $1 AND {state} = $3 RETURNING {state} = $2"
            ),
            look: format!("SELECT {state}::text, {state} = $2 FROM {table} WHERE {key} = $1"),
        }
    }

    /// Moves one row, if it is in the expected state. The state column is text, of any of PostgreSQL's types of text.
    /// PostgreSQL compares the states, by the rules of that type: `char(12)` pads them, for example.
    pub async fn advance(
        &self,
        transaction: &Transaction<'_>,
        key: &(dyn ToSql + Sync),
        from: &str,
        to: &str,
    ) -> Result<Advanced, InboxError> {
        let written = transaction.query(&self.update, &[key, &to, &from]).await?;
        // The number of rows proves nothing: a trigger that returns OLD keeps the old state.
        if let Some(row) = written.first()
            && row.try_get::<_, Option<bool>>(0)? == Some(true)
        {
            return Ok(Advanced::Done);
        }
        Ok(
            match transaction.query_opt(&self.look, &[key, &to]).await? {
                None => Advanced::Missing,
                Some(row) if row.try_get::<_, Option<bool>>(1)? == Some(true) => Advanced::Already,
                Some(row) => Advanced::Impossible {
                    found: row.try_get(0)?,
                },
            },
        )
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
