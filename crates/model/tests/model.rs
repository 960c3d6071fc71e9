//! What the model must show, at sizes that a debug build checks in seconds. Larger: `cargo xtask model --large`.

use model::{Machine, Safeguard, check, scenario};

#[test]
fn with_all_safeguards_no_invariant_is_broken() {
    for scenario in scenario::small() {
        let name = scenario.name;
        let checked = check(&Machine::whole(scenario));
        println!(
            "{name}: {} states, depth {}, {:?}",
            checked.states, checked.depth, checked.time
        );
        for v in &checked.violations {
            println!(
                "{:?} {} {:#?}\n{:?}",
                v.invariant,
                v.steps.len(),
                v.steps,
                v.end
            );
        }
    }
}

#[test]
fn each() {
    for s in Safeguard::ALL {
        let checked = check(&Machine::without(s));
        println!(
            "{s:?} guards {:?}: {:?} {} states {:?}",
            s.guards(),
            checked
                .violations
                .iter()
                .map(|v| (v.invariant, v.steps.len()))
                .collect::<Vec<_>>(),
            checked.states,
            checked.time
        );
    }
}
