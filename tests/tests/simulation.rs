//! Thousands of seeds against real agents in virtual time, and planted bugs that must be found.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use regent_tests::planted::BUGS;
use regent_tests::simulation::{Outcome, honest, run, run_some, shrink};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `REGENT_SEED=81 cargo test -p regent-tests --test simulation one_seed -- --nocapture`; with `REGENT_FAULTS=0,2` only
/// those of its faults.
#[test]
fn one_seed() {
    let only = std::env::var("REGENT_FAULTS").ok();
    let only: Option<Vec<usize>> = only.map(|list| list.split(',').filter_map(|number| number.parse().ok()).collect());
    let outcome = run_some(number("REGENT_SEED", 1), honest(), only.as_deref());
    println!("{}", outcome.story());
    assert!(outcome.findings.is_empty(), "see above");
}

/// Seeds of `tests/corpus.txt`.
fn kept() -> impl Iterator<Item = u64> {
    let text = include_str!("../corpus.txt");
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok())
}

/// Seeds that once found a bug, or went where no other had been.
#[test]
fn corpus() {
    for seed in kept() {
        let outcome: Outcome = run(seed, honest());
        assert!(outcome.findings.is_empty(), "{}", outcome.story());
    }
}

/// What must not cause a failover (L3); each must have happened.
const HARMLESS: &[&str] = &[
    "KillAgent of the leader",
    "FreezeAgent of the leader",
    "FreezeServer of the leader",
    "FreezeNode of the leader",
    "KillGuardian of the leader",
    "CutEtcd of the leader",
    "ResetEtcd of the leader",
    "StepWall of the leader",
    "EtcdElection",
    "EtcdOutage",
    "KillNode",
    "KillServer",
];

/// What came of many seeds.
#[derive(Default)]
struct Tally {
    seeds: u64,
    failovers: u32,
    simulated: Duration,
    harmless: BTreeMap<String, u32>,
    failed: Vec<Outcome>,
}

impl Tally {
    fn count(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.failovers += outcome.failovers;
        self.simulated += outcome.lasted;
        for word in outcome.harmless() {
            *self.harmless.entry(word).or_default() += 1;
        }
        if !outcome.findings.is_empty() {
            remember(outcome.seed, &outcome.findings[0].to_string());
            self.failed.push(outcome);
        }
    }

    fn add(mut self, other: Tally) -> Tally {
        self.seeds += other.seeds;
        self.failovers += other.failovers;
        self.simulated += other.simulated;
        for (word, times) in other.harmless {
            *self.harmless.entry(word).or_default() += times;
        }
        self.failed.extend(other.failed);
        self
    }
}

/// `make soak` keeps the seeds that failed, and those that are the first to show something.
fn remember(seed: u64, what: &str) {
    let Ok(path) = std::env::var("REGENT_CORPUS") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let mut file = file.unwrap_or_else(|error| panic!("REGENT_CORPUS: {path}: {error}"));
    writeln!(file, "{seed} # {what}").expect("the corpus can be written");
}

/// What all seeds so far have shown (`Outcome::turns`): of use only where seeds are kept.
struct Shown {
    turns: Mutex<BTreeSet<(&'static str, &'static str)>>,
    /// How many more seeds are kept for what they show.
    room: AtomicU64,
}

impl Shown {
    /// By the seeds that every `make test` runs.
    fn before(keeps: bool) -> Shown {
        let known = (0..EVERY_TIME).chain(kept()).filter(|_| keeps);
        let turns = known.flat_map(|seed| run(seed, honest()).turns()).collect();
        Shown { turns: Mutex::new(turns), room: AtomicU64::new(if keeps { NEW_AT_MOST } else { 0 }) }
    }

    fn look(&self, outcome: &Outcome) {
        if self.room.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut known = self.turns.lock().expect("no other seed panicked");
        let new: Vec<_> = outcome.turns().into_iter().filter(|turn| known.insert(*turn)).collect();
        if let Some((one, other)) = new.first() {
            self.room.fetch_sub(1, Ordering::Relaxed);
            remember(outcome.seed, &format!("first to go from {one} to {other}"));
        }
    }
}

/// Seeds of a run without any wishes.
const EVERY_TIME: u64 = 2_000;
/// Seeds that one campaign keeps for what they show.
const NEW_AT_MOST: u64 = 50;
/// One in so many seeds is run twice: it must come to the same, or no failure could be replayed.
const TWICE: u64 = 50;
/// How long it may take to find out which faults a failure needs.
const SHRINKING: Duration = Duration::from_secs(60);

/// The next seed, until there are enough of them or time is up.
fn work(next: &AtomicU64, end: u64, until: Option<Instant>, shown: &Shown) -> Tally {
    let mut tally = Tally::default();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || until.is_some_and(|until| Instant::now() >= until) {
            return tally;
        }
        let outcome = run(seed, honest());
        assert!(!outcome.faults.is_empty(), "every seed has a fault");
        if seed.is_multiple_of(TWICE) {
            assert_eq!(run(seed, honest()).story(), outcome.story(), "seed {seed} is another world the second time");
        }
        shown.look(&outcome);
        tally.count(outcome);
    }
}

/// `REGENT_SEEDS=100000 REGENT_FIRST_SEED=0 cargo test -p regent-tests --test simulation seeds -- --nocapture`; with
/// `REGENT_MINUTES` instead of a number, as many as there is time for.
#[test]
fn seeds() {
    let (first, minutes) = (number("REGENT_FIRST_SEED", 0), number("REGENT_MINUTES", 0));
    let count = number("REGENT_SEEDS", if minutes > 0 { u64::MAX / 2 } else { EVERY_TIME });
    let shown = Shown::before(std::env::var("REGENT_CORPUS").is_ok());
    let began = Instant::now();
    let until = (minutes > 0).then(|| began + Duration::from_secs(minutes * 60));
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let next = AtomicU64::new(first);
    let tally = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&next, first + count, until, &shown))).collect();
        let tallies = workers.into_iter().map(|worker| worker.join().expect("a world must not panic"));
        tallies.fold(Tally::default(), Tally::add)
    });
    let took = began.elapsed();
    // Not by `println!`, which only failing tests show.
    let _ = writeln!(
        std::io::stderr(),
        "{} seeds, {} simulated failovers in {took:.1?}: {:.0} seeds and {:.0} failovers a minute, {:.0} cluster-seconds \
         a second\n\
         without harm: {:?}",
        tally.seeds,
        tally.failovers,
        tally.seeds as f64 / took.as_secs_f64() * 60.0,
        f64::from(tally.failovers) / took.as_secs_f64() * 60.0,
        tally.simulated.as_secs_f64() / took.as_secs_f64(),
        tally.harmless
    );
    for outcome in tally.failed.iter().take(3) {
        println!(
            "{} faults, of which these are needed:\n{}",
            outcome.faults.len(),
            shrink(outcome, honest(), SHRINKING).story()
        );
    }
    let failed: Vec<_> = tally.failed.iter().map(|outcome| (outcome.seed, outcome.findings[0].to_string())).collect();
    assert!(failed.is_empty(), "{} seeds failed: {failed:#?}", failed.len());
    let missed: Vec<_> = HARMLESS.iter().filter(|word| !tally.harmless.contains_key(**word)).collect();
    assert!(tally.seeds < 1_000 || missed.is_empty(), "never happened where it must cause no failover: {missed:?}");
}

/// A run that does not catch one is red. `REGENT_PLANTED=text`: only those with this text in their names.
/// `REGENT_PLANTED_ALL=1`: does not stop at the first seed, and says how many find each: a bug that few seeds find is missed
/// as soon as the worlds change.
#[test]
fn every_planted_bug_is_found() {
    let (budget, all) = (number("REGENT_PLANTED_SEEDS", 600), number("REGENT_PLANTED_ALL", 0) > 0);
    let only = std::env::var("REGENT_PLANTED").unwrap_or_default();
    let (mut missed, mut drawn, mut needed) = (Vec::new(), 0, 0);
    for bug in BUGS.iter().filter(|bug| bug.name.contains(&only)) {
        let mut finders = (0..budget).filter_map(|seed| bug.found_by(seed));
        let Some(first) = finders.next() else {
            missed.push(bug.name);
            continue;
        };
        let more = if all { format!(", and {} more of {budget}", finders.count()) } else { String::new() };
        let (seed, found) = (first.seed, &first.findings[0]);
        let smallest = shrink(&first, (bug.make)(), SHRINKING);
        assert_eq!(smallest.findings.first().map(|finding| finding.id), Some(found.id), "{}", smallest.story());
        let (all, few) = (first.faults.len(), smallest.faults.len());
        (drawn, needed) = (drawn + all, needed + few);
        let _ =
            writeln!(std::io::stderr(), "found: {:70} seed {seed:4} ({few} of {all} faults){more}: {found}", bug.name);
    }
    let _ = writeln!(std::io::stderr(), "{needed} of {drawn} faults were needed");
    assert!(!only.is_empty() || needed < drawn, "every seed has faults that do not matter, and none was left out");
    assert!(missed.is_empty(), "not found in {budget} seeds each: {missed:#?}");
}

/// The same seed is the same world: a failure can be replayed.
#[test]
fn a_seed_is_deterministic() {
    for seed in (0..40).map(|number| number * 97 + 3) {
        let (once, again) = (run(seed, honest()), run(seed, honest()));
        assert_eq!(once.story(), again.story());
    }
}
