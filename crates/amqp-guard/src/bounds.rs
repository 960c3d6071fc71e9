//! How large and how deep the broker's bytes may be, and why the connection ends where they are not.

/// Largest frame to offer to a broker, in bytes: RabbitMQ's own default. Offer one always: a broker without a limit
/// (`frame_max = 0`) otherwise makes lapin allocate by the largest number there is.
pub const FRAME_MAX: u32 = 131_072;

/// Deepest table that reaches lapin. RabbitMQ's own `x-death` takes four levels; lapin's parser takes 3 to 9 KiB of
/// stack a level, of 2 MiB.
pub const MAX_DEPTH: usize = 32;

/// Largest content header that is read and cut down to a frame, in bytes. RabbitMQ does not split one: it may add to headers
/// that fill a frame (`x-delivery-count`), and a publisher's connection may have agreed on larger frames.
pub(crate) const LARGEST_HEADER: u32 = 16 << 20;
/// Smallest limit that AMQP allows for a frame, in bytes.
pub(crate) const SMALLEST: u32 = 4096;

/// What a frame begins with, in bytes: type, channel, size.
pub(crate) const HEAD: usize = 7;

/// Why the connection ends.
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
