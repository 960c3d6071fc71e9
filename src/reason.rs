//! STUB
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason { Unroutable }
impl Reason { pub const ALL: &'static [Reason] = &[Reason::Unroutable]; pub fn as_str(self) -> &'static str { "x" } }
