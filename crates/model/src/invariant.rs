//! What must hold.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Invariant {
    /// L0. Nothing is marked sent that the broker did not take, and nothing that is pending lies below the mark, where
    /// nobody looks. (That the rest is delivered, or dead, is `Progress`.)
    NoLoss,
    /// KEY. A first delivery never comes before one of its key that stood before it and could be seen.
    KeyOrder,
    /// D≤W. At most a batch of duplicates for each crash and each lost connection.
    FewDuplicates,
    /// With the inbox each operation is applied at most once, and at the end exactly once.
    EffectOnce,
    /// Nothing that was rolled back, or is not committed, is delivered.
    NoGhost,
    /// Nothing waits that is sent or dead.
    FiledOnce,
    /// A destination that fails gets a batch and one message more of each relay, and then, in each back-off, one that was
    /// tried and one that was not.
    FewProbes,
    /// Whatever happened, when faults stop everything comes to its end: all is delivered or dead, and settled.
    Progress,
}

impl Invariant {
    pub const ALL: [Self; 8] = [
        Self::NoLoss,
        Self::KeyOrder,
        Self::FewDuplicates,
        Self::EffectOnce,
        Self::NoGhost,
        Self::FiledOnce,
        Self::FewProbes,
        Self::Progress,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NoLoss => "L0",
            Self::KeyOrder => "KEY",
            Self::FewDuplicates => "D≤W",
            Self::EffectOnce => "effect once",
            Self::NoGhost => "no ghosts",
            Self::FiledOnce => "filed once",
            Self::FewProbes => "few probes",
            Self::Progress => "progress",
        }
    }
}
