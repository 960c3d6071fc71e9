//! Checks the nesting of a table.
//!
//! It reads the same grammar as amq-protocol-types, in the same order, with a stack on the heap.
//! <https://www.rabbitmq.com/docs/specification>, <https://www.rabbitmq.com/amqp-0-9-1-errata>

use super::bounds::{MAX_DEPTH, Refused};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    Fine,
    TooDeep,
}

pub(crate) fn table(body: &[u8]) -> Result<Depth, Refused> {
    walk(body, Kind::Table, MAX_DEPTH)
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Table,
    Array,
}

pub(crate) enum Value<'a> {
    Plain,
    Nested(&'a [u8], Kind),
}

/// Reads a whole table or array, at most `levels` deep; the value itself is the first level.
pub(crate) fn walk(body: &[u8], kind: Kind, levels: usize) -> Result<Depth, Refused> {
    let mut open = vec![(Reader(body), kind)];
    while let Some((rest, kind)) = open.last_mut() {
        if rest.0.is_empty() {
            open.pop();
            continue;
        }
        if let Kind::Table = kind
            && !is_text(rest.short()?)
        {
            return Err(Refused::Broken);
        }
        if let Value::Nested(inner, kind) = rest.value()? {
            if open.len() >= levels {
                return Ok(Depth::TooDeep);
            }
            open.push((Reader(inner), kind));
        }
    }
    Ok(Depth::Fine)
}

/// The bytes that are left to read.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Refused> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Refused::Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u16(&mut self) -> Result<u16, Refused> {
        let bytes = self.take(2)?.try_into().map_err(|_| Refused::Broken)?;
        Ok(u16::from_be_bytes(bytes))
    }

    /// A short string.
    pub fn short(&mut self) -> Result<&'a [u8], Refused> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    /// Bytes that follow their own four-byte length.
    pub fn long(&mut self) -> Result<&'a [u8], Refused> {
        let length = self.take(4)?.try_into().map_err(|_| Refused::Broken)?;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| Refused::Broken)?;
        self.take(length)
    }

    pub fn value(&mut self) -> Result<Value<'a>, Refused> {
        let plain = match self.take(1)?[0] {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => {
                self.long()?;
                0
            }
            b'F' => return Ok(Value::Nested(self.long()?, Kind::Table)),
            b'A' => return Ok(Value::Nested(self.long()?, Kind::Array)),
            _ => return Err(Refused::Broken),
        };
        self.take(plain)?;
        Ok(Value::Plain)
    }
}

pub(crate) fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}
