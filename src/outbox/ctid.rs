//! A row's place and a transaction's number, in PostgreSQL's binary formats of `tid` and `xid8`.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use outbox_core::claim::Ctid;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

type Boxed = Box<dyn Error + Sync + Send>;

/// A [`Ctid`] as PostgreSQL reads and writes it.
#[derive(Debug, Clone, Copy)]
pub struct Tid(pub Ctid);

impl<'a> FromSql<'a> for Tid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Boxed> {
        let &[a, b, c, d, e, f] = raw else {
            return Err(format!("a ctid has 6 bytes, not {}", raw.len()).into());
        };
        Ok(Self(Ctid {
            block: u32::from_be_bytes([a, b, c, d]),
            line: u16::from_be_bytes([e, f]),
        }))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TID
    }
}

impl ToSql for Tid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        out.put_u32(self.0.block);
        out.put_u16(self.0.line);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TID
    }

    to_sql_checked!();
}

/// A transaction's number, as PostgreSQL reads and writes it.
#[derive(Debug, Clone, Copy)]
pub struct Xid(pub u64);

impl<'a> FromSql<'a> for Xid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Boxed> {
        Ok(Self(u64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }
}

impl ToSql for Xid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        out.put_u64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_the_same() {
        let raw = [0, 1, 2, 3, 4, 5];
        let tid = Tid::from_sql(&Type::TID, &raw).unwrap();
        assert_eq!(
            tid.0,
            Ctid {
                block: 0x0001_0203,
                line: 0x0405
            }
        );
        let mut out = BytesMut::new();
        assert!(matches!(tid.to_sql(&Type::TID, &mut out), Ok(IsNull::No)));
        assert_eq!(out, raw.as_slice());
        assert!(Tid::from_sql(&Type::TID, &raw[1..]).is_err());
        let raw = [0, 1, 2, 3, 4, 5, 6, 7];
        let xid = Xid::from_sql(&Type::XID8, &raw).unwrap();
        let mut out = BytesMut::new();
        assert!(matches!(xid.to_sql(&Type::XID8, &mut out), Ok(IsNull::No)));
        assert_eq!(out, raw.as_slice());
        assert!(Xid::from_sql(&Type::XID8, &raw[1..]).is_err());
    }
}
