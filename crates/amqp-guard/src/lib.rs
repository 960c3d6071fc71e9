//! A guard between the socket and lapin.
//!
//! lapin's AMQP parser follows nested tables by recursion, on a thread of lapin's own, before it looks at a frame's size.
//! A peer that nests deep enough overflows that thread's stack, and a stack overflow ends the whole process
//! (docs/internals/upstream/amq-protocol-types.md). No stack size is enough: lapin's buffer takes frames of thirty-two times
//! `frame_max`. So every byte passes here first:
//!
//! - a frame above the bound, or a broken one, ends the connection;
//! - a table nested deeper than [`MAX_DEPTH`] ends the connection, except
//! - in a message's properties: they come without the headers that are too deep, and with [`REMOVED`] instead. The message
//!   is the fault of who published it; it must not end its consumer's connection again and again. The same holds for what
//!   lapin's parser refuses and RabbitMQ passes on: short strings that are not UTF-8, types that it does not know, and
//!   content headers larger than a frame.
//!
//! ```no_run
//! use lapin::{Connection, ConnectionProperties, tcp::{AMQPUriTcpExt, OwnedTLSConfig}, uri::AMQPUri};
//!
//! # async fn connect(mut uri: AMQPUri) -> lapin::Result<Connection> {
//! uri.query.frame_max = Some(amqp_guard::FRAME_MAX);
//! let open = async |uri: AMQPUri, _| {
//!     let tls = OwnedTLSConfig::default();
//!     let stream = uri.connect_with_config_async(tls.as_ref(), &amqp_guard::tokio()).await?;
//!     Ok(amqp_guard::guard(stream, amqp_guard::FRAME_MAX))
//! };
//! Connection::connector(uri, amqp_guard::runtime(), open, ConnectionProperties::default()).await
//! # }
//! ```

mod bounds;
mod frames;
mod header;
mod stream;
mod table;

pub use bounds::{FRAME_MAX, MAX_DEPTH, Refused};
pub use header::REMOVED;
pub use stream::{Guarded, Kit, Plain, guard, runtime, tokio};
