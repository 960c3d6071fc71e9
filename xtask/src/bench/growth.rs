//! An inbox with a history.

use super::consumers::Site;
use crate::Result;

pub async fn run(_: &Site<'_>, _: usize, _: usize, _: usize) -> Result<serde_json::Value> {
    Ok(serde_json::Value::Null)
}
