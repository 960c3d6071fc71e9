//! What the requests of a layer share.

use std::{future::Future, pin::Pin};

use http::request::Parts;

use super::{IdempotencyOptions, command::Connection};
use crate::inbox::Inbox;

pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(super) type Connect = Box<dyn Fn() -> BoxFuture<Result<Connection, String>> + Send + Sync>;
pub(super) type Caller = Box<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

pub(super) struct Shared {
    pub inbox: Inbox,
    pub options: IdempotencyOptions,
    pub connect: Connect,
    pub caller: Caller,
}
