//! Bounds on the size and the nesting of the broker's bytes, and the errors that end the connection.

/// Largest frame to offer to a broker, in bytes: RabbitMQ's own default. Always offer a limit: with a broker without
/// one (`frame_max = 0`), lapin otherwise sizes its buffers by the largest number.
pub const FRAME_MAX: u32 = 131_072;

/// Maximum nesting of tables that reach lapin. RabbitMQ's own `x-death` needs four levels. lapin's parser takes 3 to 9
/// KiB of its 2 MiB stack for each level.
pub const MAX_DEPTH: usize = 32;

/// Largest content header that the guard reads and cuts down to a frame, in bytes. RabbitMQ does not split content
/// headers. It may add to headers that already fill a frame (`x-delivery-count`), and a publisher's connection may have
/// agreed on larger frames.
pub(crate) const LARGEST_HEADER: u32 = 16 << 20;
/// Smallest limit that AMQP allows for a frame, in bytes.
pub(crate) const SMALLEST: u32 = 4096;

/// Length of a frame's head in bytes: type, channel, size.
pub(crate) const HEAD: usize = 7;

/// The reason for which the guard ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the server does not speak AMQP 0-9-1 (does the port expect TLS, or none?)")]
    NotAmqp,
    #[error("the server sent a frame of {size} bytes; {max} were agreed on")]
    FrameTooLarge { size: u64, max: u32 },
    #[error("the server sent a broken AMQP frame")]
    Broken,
    #[error("the server sent a table nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the server sent a method that only a client sends")]
    ClientMethod,
}
