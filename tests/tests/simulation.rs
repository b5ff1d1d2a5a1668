//! Thousands of seeds against real agents in virtual time, and planted bugs that must be found.

use std::io::Write;
use std::time::{Duration, Instant};

use regent_tests::planted::BUGS;
use regent_tests::simulation::{Outcome, honest, run};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `REGENT_SEED=81 cargo test -p regent-tests --test simulation one_seed -- --nocapture`
#[test]
fn one_seed() {
    let outcome = run(number("REGENT_SEED", 1), honest());
    println!("{}", outcome.story());
    assert!(outcome.findings.is_empty(), "see above");
}

/// `REGENT_SEEDS=100000 REGENT_FIRST_SEED=0 cargo test -p regent-tests --test simulation seeds -- --nocapture`
#[test]
fn seeds() {
    let (first, count) = (number("REGENT_FIRST_SEED", 0), number("REGENT_SEEDS", 2_000));
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
    let outcomes: Vec<(u32, Duration, Vec<Outcome>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let (mut failovers, mut lasted, mut failed) = (0, Duration::ZERO, Vec::new());
                    for seed in (first + worker..first + count).step_by(usize::try_from(threads).expect("few")) {
                        let outcome = run(seed, honest());
                        assert!(!outcome.faults.is_empty(), "every seed has a fault");
                        failovers += outcome.failovers;
                        lasted += outcome.lasted;
                        if !outcome.findings.is_empty() {
                            failed.push(outcome);
                        }
                    }
                    (failovers, lasted, failed)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a world must not panic")).collect()
    });
    let took = began.elapsed();
    let failovers: u32 = outcomes.iter().map(|(failovers, ..)| failovers).sum();
    let simulated: Duration = outcomes.iter().map(|(_, lasted, _)| *lasted).sum();
    let failed: Vec<&Outcome> = outcomes.iter().flat_map(|(.., failed)| failed).collect();
    // Not by `println!`, which only failing tests show.
    let _ = writeln!(
        std::io::stderr(),
        "{count} seeds, {failovers} simulated failovers in {took:.1?}: {:.0} failovers a minute, {:.0} cluster-seconds a second",
        f64::from(failovers) / took.as_secs_f64() * 60.0,
        simulated.as_secs_f64() / took.as_secs_f64()
    );
    for outcome in failed.iter().take(3) {
        println!("{}", outcome.story());
    }
    let seeds: Vec<_> = failed.iter().map(|outcome| (outcome.seed, outcome.findings[0].to_string())).collect();
    assert!(seeds.is_empty(), "{} seeds failed: {seeds:#?}", seeds.len());
}

/// A run that does not catch one is red.
#[test]
fn every_planted_bug_is_found() {
    let budget = number("REGENT_PLANTED_SEEDS", 400);
    let mut missed = Vec::new();
    for bug in BUGS {
        match (0..budget).map(|seed| run(seed, bug.judge())).find(|outcome| !outcome.findings.is_empty()) {
            Some(outcome) => {
                let found = &outcome.findings[0];
                let _ = writeln!(std::io::stderr(), "found: {:70} seed {:4}: {found}", bug.name, outcome.seed);
            }
            None => missed.push(bug.name),
        }
    }
    assert!(missed.is_empty(), "not found in {budget} seeds each: {missed:#?}");
}

/// The same seed is the same world: a failure can be replayed.
#[test]
fn a_seed_is_deterministic() {
    for seed in [3, 14, 159] {
        let (once, again) = (run(seed, honest()), run(seed, honest()));
        assert_eq!(once.story(), again.story());
    }
}
