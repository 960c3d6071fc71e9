//! The steps that a state allows, and the state after each step.

use std::sync::Arc;

use stateright::{Model, Property};

use crate::{
    Action, Invariant, Machine, Safeguard, Sighting, outbox,
    state::{Audit, Consumer, Mark, Memory, Phase, Process, Relay, Scout, State},
};

impl Machine {
    pub fn without(safeguard: Safeguard) -> Self {
        Self {
            scenario: Arc::new(safeguard.shown_in()),
            removed: Some(safeguard),
        }
    }

    /// Only faults are left as steps.
    pub fn is_quiescent(&self, state: &State) -> bool {
        // A cheap check first, which usually decides.
        if !state.unwritten.is_empty() || !state.begun.is_empty() || !state.wire.is_empty() {
            return false;
        }
        let mut actions = Vec::new();
        self.actions(state, &mut actions);
        actions
            .iter()
            .all(|action| action.is_fault() || self.next_state(state, action.clone()).is_none())
    }
}

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let scenario = &self.scenario;
        let lanes = scenario.lanes.iter().max().map_or(0, |last| last + 1);
        let (written, unwritten) = scenario.messages.split_at(scenario.written);
        let written = written
            .iter()
            .map(|key| outbox::row(*key, Phase::Committed));
        let relay = Process {
            task: Relay::Idle,
            memory: Memory::default(),
        };
        vec![State {
            unwritten: unwritten.to_vec(),
            begun: Vec::new(),
            rows: written.collect(),
            lanes: vec![Mark::default(); lanes.into()],
            next_tx: 1,
            relays: vec![relay; scenario.relays],
            wire: Vec::new(),
            scout: Scout::Idle,
            audit: Audit::Idle,
            audited: false,
            outage: false,
            forbidden: None,
            consumers: vec![Consumer::Idle; scenario.consumers],
            left: scenario.faults,
            orphaned: Vec::new(),
            overtaken: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.producer_actions(state, actions);
        self.relay_actions(state, actions);
        self.broker_actions(state, actions);
        self.scout_actions(state, actions);
        self.consumer_actions(state, actions);
        self.audit_actions(state, actions);
        self.caution_actions(state, actions);
        self.circuit_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin(key) => self.begin(&mut state, key),
            Action::Draw(n) => self.draw(&mut state, n),
            Action::AssignTx(row) => self.assign_tx(&mut state, row),
            Action::Commit(row) => self.end(&mut state, row, true),
            Action::RollBack(row) => self.end(&mut state, row, false),
            Action::Look(relay) => self.look(&mut state, relay),
            Action::Lock(relay, lanes) => self.lock(&mut state, relay, lanes),
            Action::Read(relay, due) => self.read_claim(&mut state, relay, &due),
            Action::Broker(relay, reply) => self.broker(&mut state, relay, reply),
            Action::Confirmed { relay, ends } => self.confirmed(&mut state, relay, ends),
            Action::Misread(relay, how) => self.misread(&mut state, relay, how),
            Action::Settle(relay) => self.settle(&mut state, relay),
            Action::Crash(relay, sent) => self.crash(&mut state, relay, sent),
            Action::Lose(relay, sent) => self.lose(&mut state, relay, sent),
            Action::Fence(relay) => self.fence(&mut state, relay),
            Action::Late(n) => self.late(&mut state, n),
            Action::FallDue(row) => self.fall_due(&mut state, row),
            Action::ScoutLook => self.scout_look(&mut state),
            Action::ScoutLock => self.scout_lock(&mut state),
            Action::ScoutTidy => self.scout_tidy(&mut state),
            Action::Deliver(consumer, row) => self.deliver(&mut state, consumer, row),
            Action::Claim(consumer) => self.claim(&mut state, consumer),
            Action::CommitEffect(consumer) => self.commit_effect(&mut state, consumer),
            Action::Ack(consumer) => self.ack(&mut state, consumer),
            Action::CrashConsumer(consumer) => self.crash_consumer(&mut state, consumer),
            Action::LoseConsumer(consumer) => self.lose_consumer(&mut state, consumer),
            Action::ByHand(act, row) => self.by_hand(&mut state, act, row),
            Action::AuditWalk => self.audit_walk(&mut state),
            Action::AuditHold => self.audit_hold(&mut state),
            Action::AuditCheck => self.audit_check(&mut state),
            Action::AuditCommit => self.audit_commit(&mut state),
            Action::CrashAudit => self.crash_audit(&mut state),
            Action::AuditRelease => self.audit_release(&mut state),
            Action::Forbid(how) => self.forbid(&mut state, how),
            Action::Permit => state.forbidden = None,
            Action::Fail => self.fail(&mut state),
            Action::Recover => state.outage = false,
            Action::Round => self.round(&mut state),
            Action::FindHeld(relay) => self.find_held(&mut state, relay),
            Action::Probe(relay) => self.probe(&mut state, relay),
            Action::GiveUp(relay) => self.give_up(&mut state, relay),
            Action::ReleaseHeld(relay) => self.release_held(&mut state, relay),
        }
        let state = state.canonical();
        (state != *last).then_some(state)
    }

    /// `check` covers the other half of `Progress`.
    fn properties(&self) -> Vec<Property<Self>> {
        let invariants = Invariant::ALL
            .into_iter()
            .map(|i| Property::always(i.name(), i.holds()));
        let sightings = Sighting::ALL
            .iter()
            .map(|s| Property::sometimes(s.name(), s.is()));
        invariants.chain(sightings).collect()
    }
}
