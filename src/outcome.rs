//! STUB
use std::time::Duration;
use crate::reason::Reason;
#[derive(Debug, Clone, PartialEq)]
pub enum Answer { Delivered, Unroutable { code: u16, text: String }, Nacked, Refused { code: u16, text: String }, Rejected(crate::envelope::Refusal), Behind, Unknown }
impl Answer { pub fn reason(&self) -> Option<Reason> { None } }
pub struct RetryPolicy { pub max_attempts: u32, pub backoff_initial: Duration, pub backoff_max: Duration }
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome { Sent, Retry { reason: Reason, attempts: u32, delay: Duration, error: String }, Dead { reason: Reason, attempts: u32, error: String }, Behind, Untouched }
pub fn decide(_: &Answer, _: u32, _: &RetryPolicy, _: &mut impl rand::Rng) -> Outcome { Outcome::Sent }
