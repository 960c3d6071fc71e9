//! Decides which messages are tried at the same time. A suspect, whose consumer may have died because of it, is tried alone: if
//! the process dies again, the culprit is known, and no other message is counted.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

/// The turns of one connection's messages. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns(Arc<watch::Sender<State>>);

#[derive(Default)]
struct State {
    /// Number of messages that are tried beside others and are not finished.
    ordinary: usize,
    /// Suspects, ordered by their counts: an innocent message has a lower count than the culprit, and comes first.
    suspects: BTreeSet<Place>,
    /// Whether a suspect is being tried.
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

    /// Registers a message that is tried beside others. No suspect is tried until the returned value is dropped.
    pub fn ordinary(&self) -> Ordinary {
        self.0.send_modify(|state| state.ordinary += 1);
        Ordinary(self.clone())
    }

    /// Registers a message that must be tried alone.
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

    /// Waits until no suspect is being tried.
    pub async fn shared(&self) {
        self.until(|state| !state.alone).await;
    }

    /// Waits until there is no suspect: if the process dies, every message that it holds counts as delivered once more.
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

/// The place of a message that is tried alone. It is dropped when the message was tried, or will not be tried.
pub(super) struct Suspect {
    turns: Turns,
    place: Place,
    tried: bool,
}

impl Suspect {
    /// Waits until no other message is being tried, and all suspects with lower counts have been tried.
    pub async fn turn(&self) {
        self.turns
            .until(|state| state.is_turn_of(&self.place))
            .await;
    }

    /// Takes the turn; `false` if another message came first.
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
        // A message that arrives meanwhile has its turn before the next suspect.
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
