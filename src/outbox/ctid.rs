//! Where a row's version lies: PostgreSQL's `ctid`.
//!
//! It finds a row without its index, for as long as nobody writes another version of it. So it is never believed alone:
//! the position is compared as well.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

type Boxed = Box<dyn Error + Sync + Send>;

/// <https://www.postgresql.org/docs/current/ddl-system-columns.html>
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ctid {
    pub block: u32,
    /// Within the block, from 1.
    pub line: u16,
}

impl<'a> FromSql<'a> for Ctid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Boxed> {
        let &[a, b, c, d, e, f] = raw else {
            return Err(format!("a ctid has 6 bytes, not {}", raw.len()).into());
        };
        Ok(Self {
            block: u32::from_be_bytes([a, b, c, d]),
            line: u16::from_be_bytes([e, f]),
        })
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TID
    }
}

impl ToSql for Ctid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        out.put_u32(self.block);
        out.put_u16(self.line);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TID
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_the_same() {
        let raw = [0, 1, 2, 3, 4, 5];
        let ctid = Ctid::from_sql(&Type::TID, &raw).unwrap();
        assert_eq!(
            ctid,
            Ctid {
                block: 0x0001_0203,
                line: 0x0405
            }
        );
        let mut out = BytesMut::new();
        assert!(matches!(ctid.to_sql(&Type::TID, &mut out), Ok(IsNull::No)));
        assert_eq!(out, raw.as_slice());
        assert!(Ctid::from_sql(&Type::TID, &raw[1..]).is_err());
    }
}
