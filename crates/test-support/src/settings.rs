//! Settings that people make for a server, a database or a role.

use tokio_postgres::{Client, Row};

use crate::Result;

/// Settings that are left out: those of a transaction; a missing library, which ends the login; and those that the relay reports
/// (another test covers them).
const LEFT_OUT: [&str; 6] = [
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
    "local_preload_libraries",
    "default_transaction_read_only",
    "application_name",
];

/// Values for settings that are text.
const TEXTS: [(&str, &str); 11] = [
    ("search_path", "nowhere"),
    ("DateStyle", "SQL, DMY"),
    ("TimeZone", "Asia/Kathmandu"),
    ("timezone_abbreviations", "India"),
    ("client_encoding", "LATIN1"),
    ("default_text_search_config", "pg_catalog.german"),
    ("restrict_nonsystem_relation_kind", "view"),
    ("default_tablespace", "pg_default"),
    ("temp_tablespaces", "pg_default"),
    ("lc_time", "POSIX"),
    ("lc_numeric", "POSIX"),
];

/// Values other than the built-in ones, for every setting that a user may change: the lowest, then the highest; of words the
/// first, then the second, and so on.
pub async fn hostile_settings(client: &Client, round: usize) -> Result<Vec<(String, String)>> {
    let sql = "SELECT name, vartype, enumvals, min_val, max_val, boot_val FROM pg_settings WHERE context = 'user' \
               AND NOT name = ANY ($1)";
    let rows = client.query(sql, &[&LEFT_OUT.to_vec()]).await?;
    let text = |row: &Row, n: usize| row.get::<_, Option<String>>(n).unwrap_or_default();
    let settings = rows.iter().filter_map(|row| {
        let (name, boot) = (text(row, 0), text(row, 5));
        let value = match text(row, 1).as_str() {
            "bool" => if boot == "on" { "off" } else { "on" }.to_owned(),
            "enum" => {
                let words: Vec<String> = row.get(2);
                let others: Vec<String> = words.into_iter().filter(|word| *word != boot).collect();
                others.get(round % others.len().max(1))?.clone()
            }
            // For example a time-out of a millisecond. The lowest value of most time-outs means "none".
            "integer" if round == 0 => match text(row, 3) {
                low if low == boot || low == "0" || low == "-1" => "1".to_owned(),
                low => low,
            },
            "integer" | "real" => text(row, if round.is_multiple_of(2) { 3 } else { 4 }),
            _ => TEXTS.iter().find(|(known, _)| *known == name)?.1.to_owned(),
        };
        Some((name, value))
    });
    Ok(settings.collect())
}
