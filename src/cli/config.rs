//! `outboxd config show|schema`.

use serde_json::Value;

use super::{
    CliError, output,
    table::{table, text, whole},
};
use crate::config::{Effective, LoadOptions, Shown, schema};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Print every key of the configuration with its value and where it comes from; no password
    Show(output::Json),
    /// Print the JSON Schema of the configuration file, for editors and for checks before a deployment
    Schema,
}

pub(super) fn config(command: &Command, options: LoadOptions) -> Result<(), CliError> {
    match command {
        Command::Schema => Ok(output::bytes(schema().as_bytes())?),
        Command::Show(json) => {
            let effective = Effective::of(options)?;
            if json.json {
                return Ok(output::json(&effective)?);
            }
            show(effective)
        }
    }
}

fn show(effective: Effective) -> Result<(), CliError> {
    output::line(&format!("file: {}\n", effective.file))?;
    keys(effective.keys)?;
    for source in effective.sources {
        output::line(&format!("\nsource {}\n", source.name))?;
        keys(source.keys)?;
    }
    Ok(())
}

fn keys(keys: impl IntoIterator<Item = (String, Shown)>) -> Result<(), CliError> {
    let row = |(key, shown): (String, Shown)| {
        let value = match shown.value {
            Value::String(text) if !text.is_empty() => text,
            Value::Null => String::new(),
            other => other.to_string(),
        };
        vec![key, value, shown.origin]
    };
    let rows: Vec<_> = keys.into_iter().map(row).collect();
    let columns = [whole("KEY"), text("VALUE"), text("FROM")];
    Ok(table(&columns, &rows)?)
}
