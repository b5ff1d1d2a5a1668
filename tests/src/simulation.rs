//! One seed, one world, one verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use regent::agent::Judge;
use regent_core::config::SyncMode;
use regent_core::rules::decide;
use regent_core::snapshot::Snapshot;
use tokio::task::LocalSet;

use crate::checks::{Consumer, Finding, Watch, look_back, not_converged};
use crate::faults::{self, Fault, Kind};
use crate::rng::Rng;
use crate::trace::{self, inspect, record};
use crate::world::{Make, SLOT, Shape, World};

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The world it made.
    pub shape: Shape,
    /// What went wrong in it, with its number among all that were drawn.
    pub faults: Vec<(usize, Fault)>,
    /// All of them are harmless, and may cause no failover (L3): who led when they began.
    pub harmless_to: Option<String>,
    /// What must not be, and was.
    pub findings: Vec<Finding>,
    /// Promotions.
    pub failovers: u32,
    /// Virtual time that passed.
    pub lasted: Duration,
    /// Decisions, when they were recorded.
    pub decisions: Vec<trace::Line>,
}

impl Outcome {
    /// What happened to this world without harm, in a word each: `KillAgent of the leader`.
    #[must_use]
    pub fn harmless(&self) -> Vec<String> {
        let Some(leader) = &self.harmless_to else { return Vec::new() };
        let word = |(_, fault): &(usize, Fault)| {
            let kind = format!("{:?}", fault.kind);
            let kind = kind.split('(').next().unwrap_or_default();
            let of_leader = if fault.kind.members().contains(&leader) { " of the leader" } else { "" };
            format!("{kind}{of_leader}")
        };
        self.faults.iter().map(word).collect()
    }

    /// What each member did after what: `a rule -> the next one`. A seed with something new here has been where no other was.
    #[must_use]
    pub fn turns(&self) -> BTreeSet<(&'static str, &'static str)> {
        let mut last = BTreeMap::new();
        let turn = |line: &trace::Line| Some((last.insert(line.member.clone(), line.rule)?, line.rule));
        self.decisions.iter().filter_map(turn).collect()
    }

    /// Everything that a person needs to understand a failure.
    #[must_use]
    pub fn story(&self) -> String {
        let mut story = format!("seed {} {:?}\n", self.seed, self.shape);
        for finding in &self.findings {
            story.push_str(&format!("  FOUND {finding}\n"));
        }
        for (number, Fault { at, lasts, kind }) in &self.faults {
            let (at, lasts) = (at.as_secs_f64(), lasts.as_secs_f64());
            story.push_str(&format!("  fault {number} {at:8.3}s + {lasts:7.3}s {kind:?}\n"));
        }
        for line in &self.decisions {
            let at = line.at.as_secs_f64();
            story.push_str(&format!(
                "  {at:8.3} {} {:28} {:20} {:22} {}\n",
                line.member, line.rule, line.lease, line.postgres, line.why
            ));
        }
        let numbers: Vec<_> = self.faults.iter().map(|(number, _)| number.to_string()).collect();
        story.push_str(&format!(
            "replay: REGENT_SEED={} REGENT_FAULTS={} cargo test -p regent-tests --test simulation one_seed -- --nocapture\n",
            self.seed,
            numbers.join(",")
        ));
        story
    }
}

/// Real agents, recorded.
#[must_use]
pub fn honest() -> Make {
    Make { judge: Judge { decide: |s| record(s, decide(s)), inspect, fence: Snapshot::fence }, ..Make::default() }
}

/// Runs one seed with agents of this make.
#[must_use]
pub fn run(seed: u64, make: Make) -> Outcome {
    run_some(seed, make, None)
}

/// The same with only some of its faults, by their number in the story.
#[must_use]
pub fn run_some(seed: u64, make: Make, only: Option<&[usize]>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without IO can always be built");
    LocalSet::new().block_on(&runtime, live(seed, make, only))
}

/// Runs seeds until `until`; returns how many.
pub fn run_for(limit: Duration, mut next: impl FnMut(u64)) -> u64 {
    let began = Instant::now();
    let mut seed = 0;
    while began.elapsed() < limit {
        next(seed);
        seed += 1;
    }
    seed
}

/// The fewest faults that still lead to a finding of the same kind: each is left out in turn, again and again, until none can be
/// spared or the time is up.
#[must_use]
pub fn shrink(outcome: &Outcome, make: Make, within: Duration) -> Outcome {
    let began = Instant::now();
    let id = |outcome: &Outcome| outcome.findings.first().map(|finding| finding.id);
    let numbers = |outcome: &Outcome| outcome.faults.iter().map(|(number, _)| *number).collect::<Vec<_>>();
    let mut smallest = run_some(outcome.seed, make, Some(&numbers(outcome)));
    let mut spared = true;
    while std::mem::take(&mut spared) {
        for number in numbers(&smallest) {
            let fewer: Vec<_> = numbers(&smallest).into_iter().filter(|kept| *kept != number).collect();
            if began.elapsed() >= within {
                return smallest;
            }
            let attempt = run_some(outcome.seed, make, Some(&fewer));
            if id(&attempt) == id(outcome) {
                (smallest, spared) = (attempt, true);
            }
        }
    }
    smallest
}

fn shape(rng: &mut Rng) -> Shape {
    let secs = Duration::from_secs;
    let (ttl, loop_wait, retry_timeout) = *rng.pick(&[(10, 3, 3), (6, 2, 2), (20, 5, 5), (30, 10, 10)]);
    Shape {
        members: if rng.one_in(5) { 5 } else { 3 },
        ttl: secs(ttl),
        loop_wait: secs(loop_wait),
        retry_timeout: secs(retry_timeout),
        stop_budget: secs(3).min(secs(ttl) / 5),
        ..Shape::default()
    }
}

async fn live(seed: u64, make: Make, only: Option<&[usize]>) -> Outcome {
    let mut rng = Rng::new(seed);
    // Drawn apart, so that the other worlds stay what they are.
    let failsafe = Rng::new(!seed).one_in(3);
    let mut luck = Rng::new(seed.wrapping_add(0x51AC_0000));
    let synchronous = *luck.pick(&[SyncMode::Off, SyncMode::Off, SyncMode::On, SyncMode::Quorum]);
    let logical = Rng::new(seed.wrapping_add(0x0510_7500)).one_in(3);
    let shape = Shape { failsafe, synchronous, strict: luck.one_in(2), logical, ..shape(&mut rng) };
    trace::begin();
    let mut world = World::new(shape, &mut rng, make);
    allow_repair(&mut world, &mut Rng::new(!seed));
    let watch = Watch::over(&world);
    tokio::task::spawn_local({
        let network = world.network.clone();
        async move { network.drive().await }
    });
    writers(&world, &watch, &mut rng);
    world.start_all();
    // Faults may fall into the bootstrap as well.
    let settle = if rng.one_in(4) { Duration::ZERO } else { Duration::from_secs(25) };
    let span = shape.ttl * 4;
    let faults = faults::draw(&mut rng, &shape, &world.names(), settle, span).into_iter().enumerate();
    let faults = faults.filter(|(number, _)| only.is_none_or(|only| only.contains(number))).collect();
    let (leader_before, faults) = play(&mut world, &watch, faults, settle).await;
    heal(&mut world, &faults);
    converge(&mut world, &watch, &mut rng).await;
    look_back(&world, &watch);
    for (at, objection) in trace::objections() {
        watch.found("inspector", at, objection);
    }
    let leader = leader_before.filter(|_| !settle.is_zero());
    let harmless_to = leader.filter(|leader| all_harmless(&shape, &faults, leader));
    if harmless_to.is_some() {
        no_failover(&world, &watch, settle);
    }
    world.network.forget_observers();
    Outcome {
        seed,
        shape,
        faults,
        harmless_to,
        findings: watch.findings(),
        failovers: u32::try_from(watch.promotions().len()).unwrap_or(u32::MAX),
        lasted: world.now(),
        decisions: trace::lines(),
    }
}

/// What may be done about a log that has diverged, and how well pg_rewind works in this world.
fn allow_repair(world: &mut World, rng: &mut Rng) {
    let (rewind, on_failure, on_divergence) = (!rng.one_in(3), rng.one_in(2), rng.one_in(2));
    for name in world.names() {
        world.configure(&name, |config| {
            (config.use_pg_rewind, config.remove_on_rewind_failure, config.remove_on_divergence) =
                (rewind, on_failure, on_divergence);
        });
        let (takes, fails) = (rng.between(Duration::from_millis(200), Duration::from_secs(20)), rng.below(8));
        let Some(node) = world.nodes.get(&name) else { continue };
        node.postgres.tune(|timings| timings.rewind = takes);
        let fails = u32::try_from(fails.saturating_sub(4)).unwrap_or(0);
        if rng.one_in(2) { node.postgres.break_rewinds(fails) } else { node.postgres.fail_rewinds(fails) }
    }
}

/// Clients that write to every member all the time: also to the wrong ones.
fn writers(world: &World, watch: &Watch, rng: &mut Rng) {
    let nodes: Vec<_> = world.nodes.values().map(|node| node.postgres.clone()).collect();
    let (network, watch, check) = (world.network.clone(), watch.clone(), world.primary_check());
    let store = world.store.clone();
    let unasked = world.unasked();
    let pace = rng.between(Duration::from_millis(80), Duration::from_millis(400));
    tokio::task::spawn_local(async move {
        let (mut id, mut consumer) = (0, Consumer::default());
        loop {
            tokio::time::sleep(pace).await;
            let primaries = check();
            if primaries.len() > 1 {
                watch.found("P5", network.now(), format!("{primaries:?} all answer 200 to /primary"));
            }
            for (name, other) in unasked() {
                watch.found("S13", network.now(), format!("{name} goes on without the word of {other}"));
            }
            for node in &nodes {
                id += 1;
                watch.wrote(&network, &store, node, id);
            }
            watch.sync_is_sound(&network, &store);
            for node in &nodes {
                // To look through the whole log every time would take too long.
                let missed =
                    consumer.read(node, SLOT).map(|()| if id % 8 == 0 { consumer.missed(node) } else { vec![] });
                if missed.as_ref().is_ok_and(|missed| !missed.is_empty()) {
                    watch.found("P8", network.now(), format!("a consumer on {} missed {missed:?}", node.name()));
                }
            }
        }
    });
}

/// Lets the faults happen. Returns who led when they began, and at whom they were aimed.
async fn play(
    world: &mut World,
    watch: &Watch,
    mut faults: Vec<(usize, Fault)>,
    settle: Duration,
) -> (Option<String>, Vec<(usize, Fault)>) {
    enum Turn {
        Begin,
        End,
    }
    let mut turns: Vec<(Duration, usize, Turn)> = Vec::new();
    for (index, (_, fault)) in faults.iter().enumerate() {
        turns.push((fault.at, index, Turn::Begin));
        turns.push((fault.at + fault.lasts, index, Turn::End));
    }
    turns.sort_by_key(|(at, index, _)| (*at, *index));
    sleep_until(world, settle).await;
    let leader = world.leader();
    for (at, index, turn) in turns {
        sleep_until(world, at).await;
        let Some((_, fault)) = faults.get_mut(index) else { continue };
        match turn {
            Turn::Begin => {
                fault.kind = fault.kind.aimed_at(&world.leader().unwrap_or_else(|| "a".to_owned()));
                for name in fault.kind.members() {
                    watch.disturb(name, fault.at + fault.lasts + Duration::from_secs(40));
                }
                let everyone = matches!(
                    fault.kind,
                    Kind::EtcdOutage
                        | Kind::EtcdElection
                        | Kind::KillNextPromoted(_)
                        | Kind::FreezeNextPromoted(_)
                        | Kind::Switchover(..)
                        | Kind::Pause
                );
                if everyone {
                    for name in world.names() {
                        watch.disturb(&name, fault.at + fault.lasts + Duration::from_secs(10));
                    }
                }
                world.begin(&fault.kind);
            }
            Turn::End => {
                if let Kind::FreezeNode(name) = &fault.kind {
                    watch.wakes(name, world.now());
                }
                world.end(&fault.kind);
            }
        }
    }
    (leader, faults)
}

async fn sleep_until(world: &World, at: Duration) {
    tokio::time::sleep(at.saturating_sub(world.now())).await;
}

/// Faults that overlapped may have left something behind.
fn heal(world: &mut World, faults: &[(usize, Fault)]) {
    for (_, fault) in faults {
        world.end(&fault.kind);
    }
    world.start_all();
}

/// L1, L2: within a bound that follows from the settings, all is well again.
async fn converge(world: &mut World, watch: &Watch, rng: &mut Rng) {
    let bound = world.shape.ttl * 2 + world.shape.loop_wait * 3 + Duration::from_secs(90);
    let deadline = world.now() + bound;
    let mut why = None;
    while world.now() < deadline {
        tokio::time::sleep(rng.between(Duration::from_millis(400), Duration::from_millis(600))).await;
        world.start_all();
        why = not_converged(world);
        if why.is_none() {
            return;
        }
    }
    if let Some(why) = why {
        let id = if why.starts_with("L1") { "L1" } else { "L2" };
        watch.found(id, world.now(), format!("{bound:?} after the last fault: {why}"));
    }
}

/// Nothing that happened may cost anything, and each thing was over before the next one came.
fn all_harmless(shape: &Shape, faults: &[(usize, Fault)], leader: &str) -> bool {
    let over = |fault: &Fault| fault.at + fault.lasts + shape.ttl;
    let alone = faults.windows(2).all(|pair| over(&pair[0].1) < pair[1].1.at);
    alone && !faults.is_empty() && faults.iter().all(|(_, fault)| faults::harmless(fault, shape, leader))
}

/// L3: harmless faults cause no failover, and no demotion.
fn no_failover(world: &World, watch: &Watch, settle: Duration) {
    let late: Vec<_> = watch.promotions().into_iter().filter(|(at, _)| *at > settle).collect();
    if !late.is_empty() {
        watch.found("L3", world.now(), format!("harmless faults, and yet promotions: {late:?}"));
    }
    if watch.demotions() > 0 {
        watch.found("L3", world.now(), format!("harmless faults, and yet {} demotions", watch.demotions()));
    }
}
