use super::*;

fn committed(message_id: &str, key: Option<&str>, position: i64) -> Entry {
    Entry::Committed(Committed {
        message_id: message_id.into(),
        key: key.map(str::to_owned),
        position,
        body: format!("body of {message_id}"),
    })
}

fn delivery(message_id: &str, sequence: u64) -> Delivered {
    Delivered {
        message_id: message_id.into(),
        body: format!("body of {message_id}"),
        sequence,
        redelivered: false,
        replay: false,
    }
}

fn delivered(message_id: &str, sequence: u64) -> Entry {
    Entry::Delivered(delivery(message_id, sequence))
}

fn replayed(message_id: &str, sequence: u64) -> Entry {
    Entry::Delivered(Delivered {
        replay: true,
        ..delivery(message_id, sequence)
    })
}

fn redelivered(message_id: &str, sequence: u64) -> Entry {
    Entry::Delivered(Delivered {
        redelivered: true,
        ..delivery(message_id, sequence)
    })
}

fn dead(message_id: &str) -> Entry {
    Entry::Dead {
        message_id: message_id.into(),
    }
}

fn redriven(message_id: &str) -> Entry {
    Entry::Redriven {
        message_id: message_id.into(),
    }
}

fn marked_sent(message_id: &str) -> Entry {
    Entry::MarkedSent {
        message_id: message_id.into(),
    }
}

fn in_doubt(message_id: &str) -> Entry {
    Entry::InDoubt {
        message_id: message_id.into(),
        body: format!("body of {message_id}"),
    }
}

/// Two keys and a message without one, delivered as they should be.
fn good_run() -> Vec<Entry> {
    vec![
        committed("a1", Some("a"), 1),
        committed("b1", Some("b"), 2),
        committed("a2", Some("a"), 3),
        committed("n", None, 4),
        delivered("n", 1),
        delivered("b1", 2),
        delivered("a1", 3),
        delivered("a2", 4),
        marked_sent("a1"),
        marked_sent("b1"),
        marked_sent("a2"),
        marked_sent("n"),
    ]
}

fn report(entries: impl IntoIterator<Item = Entry>) -> Report {
    check(&Ledger {
        entries: entries.into_iter().collect(),
    })
}

/// The faulty list alone is filled, so that no other check stands in for the one under test.
#[track_caller]
fn assert_only_fault(report: &Report, expected: Report) {
    assert!(!report.is_clean());
    let counts = Report {
        lost: vec![],
        unknown: vec![],
        altered: vec![],
        order_violations: vec![],
        sent_without_delivery: vec![],
        committed_twice: vec![],
        ..report.clone()
    };
    let expected = Report {
        committed: counts.committed,
        in_doubt: counts.in_doubt,
        delivered: counts.delivered,
        distinct: counts.distinct,
        duplicates: counts.duplicates,
        redeliveries: counts.redeliveries,
        replays: counts.replays,
        dead: counts.dead,
        ..expected
    };
    assert_eq!(report, &expected);
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn a_good_run_is_clean() {
    let report = report(good_run());
    assert_eq!(
        report,
        Report {
            committed: 4,
            delivered: 4,
            distinct: 4,
            ..Report::default()
        }
    );
    report.assert_clean();
}

#[test]
fn nothing_at_all_is_clean_and_says_so_in_numbers() {
    assert!(
        report([])
            .to_string()
            .starts_with("clean: committed 0, in doubt 0, delivered 0 ")
    );
}

#[test]
fn a_committed_message_that_never_arrives_is_lost() {
    let report = report(
        good_run()
            .into_iter()
            .chain([committed("a3", Some("a"), 5), committed("m", None, 6)]),
    );
    assert_only_fault(
        &report,
        Report {
            lost: ids(&["a3", "m"]),
            ..Report::default()
        },
    );
}

#[test]
fn a_dead_message_is_not_lost() {
    let report = report(
        good_run()
            .into_iter()
            .chain([committed("a3", Some("a"), 5), dead("a3")]),
    );
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.dead, 1);
}

#[test]
fn a_dead_message_that_was_redriven_must_arrive_and_may_arrive_late() {
    let run = || {
        [committed("a0", Some("a"), 0), dead("a0"), redriven("a0")]
            .into_iter()
            .chain(good_run())
    };
    assert_only_fault(
        &report(run()),
        Report {
            lost: ids(&["a0"]),
            ..Report::default()
        },
    );
    let late = report(run().chain([delivered("a0", 9)]));
    assert!(late.is_clean(), "{late}");
    assert_eq!(late.dead, 0);
}

#[test]
fn a_replay_does_not_make_up_for_a_missing_delivery() {
    let report = report([committed("a", None, 1), replayed("a", 1)]);
    assert_only_fault(
        &report,
        Report {
            lost: ids(&["a"]),
            ..Report::default()
        },
    );
}

#[test]
fn a_message_that_nobody_committed_is_unknown() {
    let report = report(good_run().into_iter().chain([delivered("ghost", 9)]));
    assert_only_fault(
        &report,
        Report {
            unknown: ids(&["ghost"]),
            ..Report::default()
        },
    );
}

#[test]
fn a_dead_message_that_nobody_committed_is_unknown() {
    let report = report(good_run().into_iter().chain([dead("ghost")]));
    assert_only_fault(
        &report,
        Report {
            unknown: ids(&["ghost"]),
            ..Report::default()
        },
    );
}

#[test]
fn a_message_with_another_body_is_altered() {
    let changed = Delivered {
        body: "another".into(),
        ..delivery("a", 1)
    };
    let report = report([committed("a", None, 1), Entry::Delivered(changed)]);
    assert_only_fault(
        &report,
        Report {
            altered: ids(&["a"]),
            ..Report::default()
        },
    );
}

#[test]
fn a_repeat_or_a_replay_with_another_body_is_altered_too() {
    for (redelivered, replay) in [(false, false), (true, false), (false, true)] {
        let changed = Delivered {
            body: "another".into(),
            redelivered,
            replay,
            ..delivery("a1", 9)
        };
        let report = report(good_run().into_iter().chain([Entry::Delivered(changed)]));
        assert_only_fault(
            &report,
            Report {
                altered: ids(&["a1"]),
                ..Report::default()
            },
        );
    }
}

#[test]
fn a_key_whose_messages_arrive_in_another_order_is_found() {
    let report = report([
        committed("a1", Some("a"), 1),
        committed("a2", Some("a"), 2),
        committed("a3", Some("a"), 3),
        delivered("a3", 1),
        delivered("a1", 2),
        delivered("a2", 3),
    ]);
    let violation = |message_id: &str, position| OrderViolation {
        key: "a".into(),
        message_id: message_id.into(),
        position,
        after_message_id: "a3".into(),
        after_position: 3,
    };
    assert_only_fault(
        &report,
        Report {
            order_violations: vec![violation("a1", 1), violation("a2", 2)],
            ..Report::default()
        },
    );
}

#[test]
fn order_is_by_sequence_and_not_by_place_in_the_file() {
    let report = report([
        committed("a1", Some("a"), 1),
        committed("a2", Some("a"), 2),
        delivered("a2", 2),
        delivered("a1", 1),
    ]);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn different_keys_and_messages_without_a_key_have_no_order() {
    let report = report([
        committed("a1", Some("a"), 1),
        committed("n1", None, 2),
        committed("n2", None, 3),
        committed("b1", Some("b"), 4),
        delivered("b1", 1),
        delivered("n2", 2),
        delivered("n1", 3),
        delivered("a1", 4),
    ]);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn repeats_are_counted_by_who_made_them_and_do_not_break_the_order() {
    let report = report(good_run().into_iter().chain([
        delivered("a1", 9),
        redelivered("a1", 10),
        replayed("a1", 11),
        replayed("n", 12),
    ]));
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (
            report.delivered,
            report.distinct,
            report.duplicates,
            report.redeliveries,
            report.replays
        ),
        (8, 4, 1, 1, 2)
    );
}

#[test]
fn a_first_delivery_with_the_redelivered_flag_counts_as_the_delivery() {
    // The consumer before it was killed with the message in hand, and had not written it down.
    let report = report([committed("a", None, 1), redelivered("a", 1)]);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.redeliveries, 0);
}

#[test]
fn a_mark_without_a_delivery_is_found() {
    // Dead, so that it is not lost as well.
    let report = report(good_run().into_iter().chain([
        committed("m", None, 9),
        dead("m"),
        marked_sent("m"),
    ]));
    assert_only_fault(
        &report,
        Report {
            sent_without_delivery: ids(&["m"]),
            ..Report::default()
        },
    );
}

#[test]
fn a_commit_in_doubt_may_arrive_or_not() {
    let arrived = report([in_doubt("a"), delivered("a", 1)]);
    assert!(arrived.is_clean(), "{arrived}");
    let rolled_back = report([in_doubt("a")]);
    assert!(rolled_back.is_clean(), "{rolled_back}");
    assert_eq!(rolled_back.in_doubt, 1);
}

#[test]
fn a_commit_that_was_in_doubt_and_is_found_committed_must_arrive() {
    let report = report([in_doubt("a"), committed("a", None, 1)]);
    assert_only_fault(
        &report,
        Report {
            lost: ids(&["a"]),
            ..Report::default()
        },
    );
    assert_eq!(report.in_doubt, 0);
}

#[test]
fn a_message_in_doubt_is_compared_by_its_body() {
    let changed = Delivered {
        body: "another".into(),
        ..delivery("a", 1)
    };
    let report = report([in_doubt("a"), Entry::Delivered(changed)]);
    assert_only_fault(
        &report,
        Report {
            altered: ids(&["a"]),
            ..Report::default()
        },
    );
}

#[test]
fn one_id_for_two_messages_is_found() {
    let report = report(good_run().into_iter().chain([committed("n", None, 9)]));
    assert_only_fault(
        &report,
        Report {
            committed_twice: ids(&["n"]),
            ..Report::default()
        },
    );
}

#[test]
fn the_text_counts_all_offenders_and_names_the_first_few() {
    let report = report((1..=7).map(|n| committed(&format!("m{n}"), None, n)));
    let text = report.to_string();
    assert!(
        text.starts_with("NOT CLEAN: committed 7, in doubt 0, delivered 0 "),
        "{text}"
    );
    assert!(
        text.ends_with(
            "\n7 lost (committed, never delivered, not dead): m1, m2, m3, m4, m5, and 2 more"
        ),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2);
}

#[test]
#[should_panic(expected = "1 lost (committed, never delivered, not dead): a")]
fn assert_clean_panics_with_the_report() {
    report([committed("a", None, 1)]).assert_clean();
}
