//! `cargo xtask model`: checks the protocol's model in every state. See docs/internals/model.md.

use std::io::Write;

use clap::Parser;
use model::{Checked, Machine, Safeguard, Scenario, check, scenario};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(bin_name = "cargo xtask model")]
struct Args {
    /// Also checks the larger scenarios: takes minutes and some gigabytes
    #[arg(long)]
    large: bool,
    /// Prints the steps of each counterexample
    #[arg(long)]
    steps: bool,
    /// Checks only the scenarios and safeguards whose names contain this text
    #[arg(long)]
    only: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut wrong = Vec::new();
    println!("With all safeguards, no invariant may be violated:");
    let mut scenarios = scenario::small();
    if args.large {
        scenarios.extend(scenario::large());
    }
    let chosen = |name: &str| args.only.as_ref().is_none_or(|part| name.contains(part));
    for scenario in scenarios.into_iter().filter(|s| chosen(s.name)) {
        wrong.extend(whole(scenario)?);
    }
    println!("\nWithout one of them, its invariant must be:");
    let safeguards = Safeguard::ALL.iter().copied();
    for safeguard in safeguards.filter(|s| chosen(&format!("{s:?}"))) {
        wrong.extend(removed(safeguard, args.steps)?);
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}

fn whole(scenario: Scenario) -> Result<Option<String>> {
    let name = scenario.name;
    print!("  {name:<24}");
    std::io::stdout().flush()?;
    let Checked {
        states,
        depth,
        time,
        violation,
        ..
    } = check(&Machine::whole(scenario));
    let seconds = time.as_secs_f64();
    let Some(violation) = violation else {
        println!("{states:>9} states, {depth:>2} steps deep, {seconds:>6.1} s: all hold");
        return Ok(None);
    };
    let broken = violation.invariant.name();
    println!("{states:>9} states: {broken} is BROKEN");
    println!("{:#?}\n{:#?}", violation.steps, violation.end);
    Ok(Some(format!("{name}: {broken} is broken")))
}

fn removed(safeguard: Safeguard, with_steps: bool) -> Result<Option<String>> {
    let name = format!("{safeguard:?}");
    let expected = safeguard.guards();
    let machine = Machine::without(safeguard);
    let shown_in = machine.scenario.name;
    let found = check(&machine).violation;
    let Some(violation) = found else {
        println!("  {name:<24}no violation in \"{shown_in}\"");
        return Ok(Some(format!("{name}: no violation without this safeguard")));
    };
    let broken = violation.invariant.name();
    let steps = violation.steps.len();
    println!("  {name:<24}{broken:<12} after {steps:>2} steps of \"{shown_in}\"");
    if with_steps {
        for step in &violation.steps {
            println!("      {step:?}");
        }
    }
    let other = violation.invariant != expected;
    Ok(other.then(|| format!("{name}: {broken} is broken, not {}", expected.name())))
}
