//! The properties that the model must show, at sizes that a debug build checks in seconds. `cargo xtask model --large`
//! checks larger sizes.

use model::{Checked, Invariant, Machine, Safeguard, Scenario, Sighting, check, scenario};

fn holds(scenario: Scenario, seen: &[Sighting]) {
    let name = scenario.name;
    let Checked {
        states,
        violation,
        seen: all,
        ..
    } = check(&Machine::whole(scenario));
    println!("{name}: {states} states");
    assert!(violation.is_none(), "{name}: {violation:#?}");
    for sighting in seen {
        let what = sighting.name();
        assert!(all.contains(sighting), "{name} never shows {what}");
    }
}

/// Each scenario, with the situations that it must reach.
macro_rules! whole {
    ($($test:ident: $scenario:ident shows $($seen:ident),*;)*) => {
        $(#[test]
        fn $test() {
            holds(scenario::$scenario(), &[$(Sighting::$seen),*]);
        })*

        #[test]
        fn every_small_scenario_is_tried() {
            let tried = [$(scenario::$scenario().name),*];
            assert_eq!(tried.to_vec(), Vec::from_iter(scenario::small().iter().map(|s| s.name)));
        }
    };
}

whole! {
    late_commits_break_nothing: late_commits shows MarkMoved, LateCommit;
    two_relays_break_nothing: two_relays shows TwoRelaysWork, FencedRelay, LatePublish, Duplicate;
    refusals_and_a_lost_broker_break_nothing: refusals shows Retry, Behind, Dead, LatePublish;
    late_commits_behind_a_refused_message_break_nothing: one_key shows Retry, Behind, LateCommit;
    redelivery_to_two_consumers_breaks_nothing: end_to_end shows Redelivered, DeliveredTwiceAtOnce;
    messages_that_somebody_hides_are_sent: hidden_rows shows Stranded, HeadGone, AuditLate, AuditWaits;
    rows_that_somebody_copies_back_are_sent: copied_back shows Stranded, MarkMoved, AuditWaits;
    marks_that_fail_cost_a_batch_a_relay: marks_that_fail shows Duplicate, Unmarkable, Cautious, TwoRelaysWork;
    commits_that_fail_cost_one_message_an_attempt: commits_that_fail shows Duplicate, Cautious;
    a_locked_row_costs_a_batch_a_relay: a_locked_row shows Unmarkable, Behind, Cautious;
    a_locked_row_beside_other_lanes_costs_no_more: a_locked_row_beside_other_lanes shows Unmarkable, Cautious;
    a_destination_that_fails_is_probed: an_outage shows Held, Probe, Draining;
    two_views_of_a_destination_break_nothing: two_views shows TwoOpen, TwoViews, Draining, Behind;
    held_messages_outlive_their_relay: a_restart shows HeldByNobody, Probe, Behind;
    held_messages_are_given_up_in_the_end: returns shows HeldByNobody, Last, Dead;
}

/// Each safeguard, and the invariant that is violated without it.
macro_rules! without {
    ($($test:ident: $safeguard:ident breaks $invariant:ident;)*) => {
        $(#[test]
        fn $test() {
            let found = check(&Machine::without(Safeguard::$safeguard)).violation;
            let found = found.expect("a violation without the safeguard");
            assert_eq!(found.invariant, Invariant::$invariant, "{found:#?}");
        })*

        #[test]
        fn every_safeguard_is_tried() {
            let tried = [$((Safeguard::$safeguard, Invariant::$invariant)),*];
            let guards = Safeguard::ALL.iter().map(|safeguard| (*safeguard, safeguard.guards()));
            assert_eq!(tried.to_vec(), Vec::from_iter(guards));
        }
    };
}

without! {
    a_mark_that_ignores_open_transactions_loses: LowWaterXmin breaks NoLoss;
    a_candidate_that_was_drawn_after_its_transaction_began_loses: DrawnBeforeTx breaks NoLoss;
    a_mark_that_asks_after_its_read_loses: XminBeforeRead breaks NoLoss;
    a_position_drawn_before_the_transaction_id_is_lost: TxBeforeId breaks NoLoss;
    without_the_lane_lock_everything_is_published_twice: LaneLock breaks FewDuplicates;
    a_lock_that_outlives_its_relay_stops_a_lane: LockDiesWithConnection breaks Progress;
    a_claim_that_is_committed_before_the_settle_is_no_claim: OneTransaction breaks FewDuplicates;
    a_read_in_the_locks_snapshot_publishes_what_was_sent: ReadAfterLock breaks FewDuplicates;
    a_read_of_open_transactions_publishes_ghosts: CommittedRead breaks NoGhost;
    without_confirms_a_message_is_marked_that_never_arrived: Confirms breaks NoLoss;
    without_the_barrier_a_return_comes_too_late: ConfirmBarrier breaks NoLoss;
    a_return_matched_by_its_turn_loses: MatchById breaks NoLoss;
    no_answer_taken_for_an_ack_loses: UnknownStays breaks NoLoss;
    a_key_that_is_not_held_back_is_overtaken: HeldBackKey breaks KeyOrder;
    a_key_in_one_wave_is_overtaken: StrictWaves breaks KeyOrder;
    what_is_never_released_waits_for_ever: Release breaks Progress;
    without_the_inbox_a_redelivery_is_applied_again: Inbox breaks EffectOnce;
    a_check_without_the_unique_key_is_a_race: UniqueKey breaks EffectOnce;
    an_inbox_row_committed_before_the_effect_swallows_it: ClaimInTransaction breaks EffectOnce;
    an_ack_before_the_commit_swallows_the_effect: AckAfterCommit breaks EffectOnce;
    an_audit_that_waits_for_a_sign_finds_nothing: AuditsUnasked breaks Progress;
    what_is_hidden_after_the_only_audit_is_never_sent: AuditsAgain breaks Progress;
    an_audit_without_the_lanes_lock_files_what_a_claim_settles: AuditLocksLane breaks FiledOnce;
    an_audit_that_does_not_look_again_files_what_was_settled: AuditLooksAgain breaks FiledOnce;
    what_stands_behind_a_deleted_row_waits_for_ever: AuditReleases breaks Progress;
    without_a_rehearsal_each_attempt_is_a_duplicate: Rehearsal breaks FewDuplicates;
    caution_that_is_forgotten_publishes_batch_after_batch: CautionKept breaks FewDuplicates;
    what_only_the_commit_shows_repeats_whole_batches: CautionBeginsWithOne breaks FewDuplicates;
    what_was_published_in_vain_is_published_in_vain_again: SuspectsKept breaks FewDuplicates;
    a_row_that_was_unmarkable_is_published_in_vain: UnmarkableKept breaks FewDuplicates;
    without_a_circuit_all_messages_are_tried_again: Circuit breaks FewProbes;
    what_a_dead_relay_held_waits_for_ever: FindHeld breaks Progress;
    a_failing_message_hides_the_held_ones: FoundWhateverFailed breaks Progress;
    a_held_message_that_holds_nobody_back_is_overtaken: HeldHoldsBack breaks KeyOrder;
    what_is_held_is_not_released_by_a_success: SuccessReleases breaks Progress;
}
