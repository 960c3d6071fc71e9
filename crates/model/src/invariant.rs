//! The invariants.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Invariant {
    /// L0. No message is marked sent that the broker did not take, and no pending message is below the mark, where no
    /// relay looks. (`Progress` covers that all other messages are delivered or dead.)
    NoLoss,
    /// KEY. The first delivery of a message never precedes an earlier message of its key that was visible.
    KeyOrder,
    /// D≤W. Each crash and each lost connection causes at most one batch of duplicates.
    FewDuplicates,
    /// With the inbox, each operation is applied at most once, and exactly once at the end.
    EffectOnce,
    /// No message is delivered that was rolled back or is uncommitted.
    NoGhost,
    /// No waiting message is sent or dead.
    FiledOnce,
    /// A failing destination gets from each relay a batch and one message more, and then two messages in each back-off:
    /// a tried one and a new one.
    FewProbes,
    /// After the last fault every run ends with all messages delivered or dead, and settled.
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
