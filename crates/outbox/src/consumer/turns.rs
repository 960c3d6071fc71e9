//! Who is tried beside whom. A message under which its consumer may have died before is tried alone: when the process
//! dies again, it is known of what, and no other message is counted for it.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

/// Of the messages of one connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns(Arc<watch::Sender<State>>);

#[derive(Default)]
struct State {
    /// In hand, and still to be tried beside others.
    ordinary: usize,
    /// By how often they were counted: an innocent one has been alone less often than the culprit, and comes first.
    suspects: BTreeSet<Place>,
    /// One of them is being tried.
    alone: bool,
    drawn: u64,
}

type Place = (u32, u64);

impl State {
    fn is_turn_of(&self, place: &Place) -> bool {
        self.ordinary == 0 && !self.alone && self.suspects.first() == Some(place)
    }
}

impl Turns {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// For a message that is to be tried beside others. No suspect is tried before it is dropped.
    pub fn ordinary(&self) -> Ordinary {
        self.0.send_modify(|state| state.ordinary += 1);
        Ordinary(self.clone())
    }

    /// For a message that is to be tried alone.
    pub fn suspect(&self, counted: u32) -> Suspect {
        let mut place = (counted, 0);
        self.0.send_modify(|state| {
            place.1 = state.drawn;
            state.drawn += 1;
            state.suspects.insert(place);
        });
        Suspect {
            turns: self.clone(),
            place,
            tried: false,
        }
    }

    /// Until no suspect is being tried.
    pub async fn shared(&self) {
        self.until(|state| !state.alone).await;
    }

    /// Until no suspect is in hand: more messages would only be in hand when the process dies.
    pub async fn without_suspects(&self) {
        self.until(|state| state.suspects.is_empty()).await;
    }

    async fn until(&self, condition: impl Fn(&State) -> bool) {
        if condition(&self.0.borrow()) {
            return;
        }
        // `self` keeps the sender, so this does not fail.
        let _ = self.0.subscribe().wait_for(|state| condition(state)).await;
    }
}

/// Counts a message that is tried beside others, until it is dropped.
pub(super) struct Ordinary(Turns);

impl Drop for Ordinary {
    fn drop(&mut self) {
        let less = |state: &mut State| state.ordinary = state.ordinary.saturating_sub(1);
        self.0.0.send_modify(less);
    }
}

/// The place of a message that is tried alone. Dropped when it was tried, or is not to be.
pub(super) struct Suspect {
    turns: Turns,
    place: Place,
    tried: bool,
}

impl Suspect {
    /// Until nothing else is being tried, and all that was counted less often has been.
    pub async fn turn(&self) {
        self.turns
            .until(|state| state.is_turn_of(&self.place))
            .await;
    }

    /// Takes the turn; `false` when something came between.
    pub fn begin(&mut self) -> bool {
        self.turns.0.send_if_modified(|state| {
            let may = state.is_turn_of(&self.place);
            state.alone |= may;
            self.tried |= may;
            may
        });
        self.tried
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        self.turns.0.send_modify(|state| {
            state.suspects.remove(&self.place);
            state.alone &= !self.tried;
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_now(waiting: impl Future<Output = ()>) -> bool {
        waiting.now_or_never().is_some()
    }

    #[test]
    fn a_suspect_is_tried_alone_and_the_one_counted_least_is_first() {
        let turns = Turns::new();
        let others = [turns.ordinary(), turns.ordinary()];
        let (mut culprit, mut innocent) = (turns.suspect(3), turns.suspect(2));
        assert!(!is_now(innocent.turn()) && !innocent.begin());
        drop(others);
        assert!(!is_now(culprit.turn()) && !culprit.begin());
        assert!(is_now(innocent.turn()) && innocent.begin());
        assert!(!is_now(turns.shared()), "nothing is begun beside it");
        // What comes meanwhile has its turn before the next suspect.
        let late = turns.ordinary();
        drop(innocent);
        assert!(is_now(turns.shared()) && !culprit.begin());
        drop(late);
        assert!(!is_now(turns.without_suspects()));
        assert!(culprit.begin());
        drop(culprit);
        assert!(is_now(turns.without_suspects()) && is_now(turns.shared()));
    }

    #[test]
    fn a_suspect_that_is_given_up_untried_holds_nobody_back() {
        let turns = Turns::new();
        let (first, mut second) = (turns.suspect(1), turns.suspect(1));
        assert!(!second.begin());
        drop(first);
        assert!(second.begin());
    }
}
