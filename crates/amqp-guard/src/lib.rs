//! A guard between the socket and lapin.
//!
//! lapin's AMQP parser follows nested tables by recursion, on its own thread, before it checks a frame's size. A peer
//! that nests deep enough overflows the stack of that thread, and a stack overflow ends the whole process
//! (docs/internals/upstream/amq-protocol-types.md). No stack size is enough, because lapin's buffer takes frames of
//! thirty-two times `frame_max`. So every byte passes this guard first:
//!
//! - A frame above the bound, or a broken frame, ends the connection.
//! - A table nested deeper than [`MAX_DEPTH`] ends the connection, except in a message's properties.
//! - In a message's properties, headers that are nested too deep are removed, and the header [`REMOVED`] is added. The
//!   publisher caused the fault, so the message must not end its consumer's connection again and again. The same
//!   applies to other content that lapin's parser refuses and RabbitMQ passes on: short strings that are not UTF-8,
//!   unknown types, and content headers larger than a frame.
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
