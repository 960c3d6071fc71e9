use super::*;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn committed(n: u128, key: &str) -> Committed {
    Committed {
        message_id: id(n),
        key: Some(key.to_owned()),
        position: i64::try_from(n).unwrap(),
        body_sha256: sha256(b"x"),
    }
}

fn delivered(n: u128) -> Delivered {
    Delivered {
        message_id: id(n),
        body_sha256: sha256(b"x"),
        replay: false,
    }
}

fn ledger(arrived: &[u128]) -> Ledger {
    Ledger {
        committed: vec![committed(1, "a"), committed(2, "b"), committed(3, "a")],
        delivered: arrived.iter().copied().map(delivered).collect(),
        ..Ledger::default()
    }
}

#[test]
fn everything_once_and_in_order_is_clean() {
    let report = ledger(&[2, 1, 3]).check();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (
            report.committed,
            report.delivered,
            report.distinct,
            report.duplicates
        ),
        (3, 3, 3, 0)
    );
}

#[test]
fn a_duplicate_is_counted_and_no_violation() {
    let report = ledger(&[1, 2, 3, 1]).check();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.distinct, report.duplicates), (3, 1));
}

#[test]
fn a_lost_message_is_found_and_a_dead_one_is_not_lost() {
    let mut ledger = ledger(&[1, 2]);
    assert_eq!(ledger.check().lost, [id(3)]);
    ledger.dead.insert(id(3));
    assert!(ledger.check().is_clean());
}

#[test]
fn a_mark_without_arrival_is_found_even_when_the_message_is_dead() {
    let mut ledger = ledger(&[1, 2]);
    ledger.dead.insert(id(3));
    ledger.marked_sent.insert(id(3));
    assert_eq!(ledger.check().sent_without_delivery, [id(3)]);
}

#[test]
fn an_overtaken_message_is_found() {
    let report = ledger(&[3, 2, 1]).check();
    assert_eq!(report.reordered.len(), 1);
    assert_eq!(
        (
            report.reordered[0].position,
            report.reordered[0].after_position
        ),
        (1, 3)
    );
}

#[test]
fn an_altered_and_an_invented_message_are_found() {
    let mut ledger = ledger(&[1, 2, 3, 9]);
    ledger.delivered[0].body_sha256 = sha256(b"y");
    let report = ledger.check();
    assert_eq!((report.altered, report.unknown), (vec![id(1)], vec![id(9)]));
}

#[test]
fn a_replay_is_no_duplicate_and_may_come_out_of_order() {
    let mut ledger = ledger(&[1, 2, 3, 1]);
    ledger.delivered[3].replay = true;
    let report = ledger.check();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.duplicates, report.replayed), (0, 1));
}

#[test]
fn a_replay_does_not_make_up_for_a_missing_delivery() {
    let mut ledger = ledger(&[1, 2, 3]);
    ledger.delivered[2].replay = true;
    ledger.marked_sent.insert(id(3));
    let report = ledger.check();
    assert_eq!(
        (report.lost, report.sent_without_delivery),
        (vec![id(3)], vec![id(3)])
    );
}

#[test]
fn a_replay_with_another_body_is_altered() {
    let mut ledger = ledger(&[1, 2, 3, 1]);
    ledger.delivered[3].replay = true;
    ledger.delivered[3].body_sha256 = sha256(b"y");
    assert_eq!(ledger.check().altered, [id(1)]);
}

#[test]
fn a_dead_message_that_nobody_committed_is_unknown() {
    let mut ledger = ledger(&[1, 2, 3]);
    ledger.dead.insert(id(9));
    assert_eq!(ledger.check().unknown, [id(9)]);
}

#[test]
fn a_mark_on_a_message_that_the_ledger_does_not_know_is_found() {
    let mut ledger = ledger(&[1, 2, 3]);
    ledger.marked_sent.insert(id(9));
    assert_eq!(ledger.check().sent_without_delivery, [id(9)]);
}

#[test]
fn one_id_for_two_messages_is_found() {
    let mut ledger = ledger(&[1, 2, 3]);
    ledger.committed.push(committed(3, "a"));
    let report = ledger.check();
    assert_eq!(report.committed_twice, [id(3)]);
    assert!(!report.is_clean());
}

#[test]
fn without_a_key_there_is_no_order() {
    let mut ledger = ledger(&[3, 2, 1]);
    for message in &mut ledger.committed {
        message.key = None;
    }
    ledger.check().assert_clean();
}

#[test]
fn each_violation_alone_makes_a_report_unclean() {
    let reordered = Reordered {
        key: "a".to_owned(),
        message_id: id(1),
        position: 1,
        after_position: 3,
    };
    let one = || vec![id(1)];
    let clean = Report::default;
    for report in [
        Report {
            lost: one(),
            ..clean()
        },
        Report {
            unknown: one(),
            ..clean()
        },
        Report {
            altered: one(),
            ..clean()
        },
        Report {
            reordered: vec![reordered],
            ..clean()
        },
        Report {
            sent_without_delivery: one(),
            ..clean()
        },
        Report {
            committed_twice: one(),
            ..clean()
        },
    ] {
        assert!(!report.is_clean(), "{report}");
        let text = report.to_string();
        assert!(
            text.contains(&id(1).to_string()),
            "names the offender: {text}"
        );
    }
}

#[test]
fn the_text_names_the_first_few_and_counts_the_rest() {
    let report = Report {
        lost: (1..=7).map(id).collect(),
        ..Report::default()
    };
    let text = report.to_string();
    assert_eq!(text.lines().count(), 1 + 5 + 1, "{text}");
    assert!(text.ends_with("lost: and 2 more"), "{text}");
}

#[test]
#[should_panic(expected = "lost: 00000000-0000-0000-0000-000000000003")]
fn assert_clean_panics_with_the_report() {
    ledger(&[1, 2]).check().assert_clean();
}
