//! Every state that small worlds can come to, under the real judgement.
//!
//! Three members, a handful of ticks (a tick is `loop_wait`, a third of a lease), one or two faults, one or two writes. A step is as
//! small as what others can see of it: a member looks (and decides on that, by the rules themselves), acts on it later, whatever has
//! happened since; its server ends what it was told to do; a record is received; a lease ends; something breaks. All orders of such
//! steps are tried, breadth first, so that what is found has the shortest story.
//!
//! An agent that is awake has its turn in every tick, in any order, and acts on it before its turn in the next; it has more turns when
//! a job of its ended or the others answered. What a server does, and what it receives, takes as long as it likes. A fault ends at the
//! beginning of a tick, or never.
//!
//! What the worlds leave out: times within a tick, clocks that differ, pause, failsafe mode, bootstrap, rewind and copies, tags,
//! slots, operators. An agent that stands still does so together with its lease task; a guardian is never late.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::time::{Duration, Instant};

use regent::agent::Judge;
use regent_core::config::SyncMode;

mod state;
mod steps;

use state::{Guard, NAMES, Pending, State, Sum};
pub use steps::{How, Step};

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `synchronous_mode`
    pub mode: SyncMode,
    /// Ticks after the cluster has settled; a lease lasts three.
    pub ticks: u8,
    /// Clients write, and the first fault begins, in so many of the first ticks: until then a tick is like the one before.
    pub begins: u8,
    /// Faults.
    pub faults: u8,
    /// Writes of clients.
    pub writes: u8,
    /// Turns of an agent in a tick; it has another one when a job of its ended, or the others answered.
    pub turns: u8,
    /// The search ends unfinished after so many states.
    pub states: usize,
    /// The first tick and the last; set by the search.
    since: u8,
    until: u8,
}

impl Bounds {
    /// Worlds of this size.
    #[must_use]
    pub fn of(mode: SyncMode, ticks: u8, faults: u8, writes: u8) -> Bounds {
        Bounds { mode, ticks, begins: 1, faults, writes, turns: 1, states: usize::MAX, since: 0, until: 0 }
    }
}

/// How agents and etcd are made; the default is as they are.
#[derive(Clone, Copy)]
pub struct Make {
    /// What judges.
    pub judge: Judge,
    /// Whether writes compare the revisions they were decided on, and that nobody leads.
    pub compares: bool,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { states, steps, depth, judged, promotions, acknowledged, complete, took, found } = self;
        let all = if *complete { "all of them" } else { "the first of them" };
        write!(
            f,
            "{states} states ({all}), {steps} steps, up to {depth} in a row, {judged} judgements, {promotions} promotions, {acknowledged} \
             acknowledged writes, in {took:.1?}"
        )?;
        match found {
            Some((Violation { id, what }, _)) => write!(f, "; FOUND {id}: {what}"),
            None => Ok(()),
        }
    }
}

impl Default for Make {
    fn default() -> Self {
        Make { judge: Judge::default(), compares: true }
    }
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant.
    pub id: &'static str,
    /// What was seen.
    pub what: String,
}

/// What came of a search.
#[derive(Debug)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: u64,
    /// Different things seen by agents, and judged.
    pub judged: usize,
    /// Steps from the first state to the farthest.
    pub depth: usize,
    /// Steps that are the end of a promotion: a world in which nothing happens shows nothing.
    pub promotions: u64,
    /// Writes that clients were told of, likewise.
    pub acknowledged: u64,
    /// All states within the bounds were seen.
    pub complete: bool,
    /// How long it took.
    pub took: Duration,
    /// What was found, and the steps that lead there.
    pub found: Option<(Violation, String)>,
}

/// A search under way.
struct Search<'a> {
    bounds: Bounds,
    make: &'a Make,
    /// What was judged before, by the digest of what was seen: most looks are like another one.
    judged: RefCell<ByDigest<Judged>>,
}

type ByDigest<T> = HashMap<u64, T, BuildHasherDefault<state::Mixer>>;

/// A decision, and what the guardian holds by then.
#[derive(Clone)]
struct Judged {
    pending: Sum<Pending>,
    guard: Option<Guard>,
}

impl Search<'_> {
    fn new(bounds: Bounds, make: &Make) -> Search<'_> {
        Search { bounds, make, judged: RefCell::default() }
    }

    /// What the agent of `n` makes of what it sees.
    fn judged(&self, state: &State, n: usize) -> Result<Judged, Violation> {
        let digest = state.digest_seen_by(n);
        if let Some(known) = self.judged.borrow().get(&digest) {
            return Ok(known.clone());
        }
        let mut seen = state.look(n, &self.bounds);
        let guard;
        (guard, seen.guardian) = state.guard(n, (self.make.judge.fence)(&seen));
        let decision = (self.make.judge.decide)(&seen);
        if let Err(objection) = (self.make.judge.inspect)(&seen, &decision.plan) {
            let what = format!("{} of {}: {objection}", decision.rule, NAMES[n]);
            return Err(Violation { id: "inspector", what });
        }
        let judged = Judged { pending: Sum::new(Pending::new(seen, decision)), guard };
        self.judged.borrow_mut().insert(digest, judged.clone());
        Ok(judged)
    }
}

/// Tries everything within these bounds, up to the first violation.
///
/// # Panics
/// The cluster does not come to rest before anything happens to it.
#[must_use]
pub fn search(bounds: Bounds, make: &Make) -> Report {
    let began = Instant::now();
    // A sound cluster is where every search begins, also one of agents that are not; but for what their guardians were told.
    let first = settled(&bounds, make);
    let search = Search::new(Bounds { since: first.tick, until: first.tick + bounds.ticks, ..bounds }, make);
    let mut came_from = ByDigest::default();
    came_from.insert(first.digest(), None);
    let mut queue = VecDeque::from([(0_usize, first.clone())]);
    let mut report = Report {
        states: 0,
        steps: 0,
        depth: 0,
        judged: 0,
        promotions: 0,
        acknowledged: 0,
        complete: true,
        took: Duration::ZERO,
        found: None,
    };
    'search: while let Some((depth, state)) = queue.pop_front() {
        let here = state.digest();
        report.depth = report.depth.max(depth);
        for step in state.steps(&search.bounds) {
            match state.after(step, &search) {
                Ok(None) => {}
                Ok(Some(next)) => {
                    report.steps += 1;
                    report.promotions += u64::from(next.lines.len() > state.lines.len());
                    report.acknowledged += u64::from(next.acknowledged.len() > state.acknowledged.len());
                    if let Entry::Vacant(new) = came_from.entry(next.digest()) {
                        new.insert(Some((here, step)));
                        queue.push_back((depth + 1, next));
                    }
                }
                Err(violation) => {
                    let mut path = vec![step];
                    let mut at = here;
                    while let Some(Some((before, step))) = came_from.get(&at) {
                        path.push(*step);
                        at = *before;
                    }
                    path.reverse();
                    report.found = Some((violation, tell(&first, &path, &search)));
                    report.complete = false;
                    break 'search;
                }
            }
        }
        if came_from.len() >= bounds.states && !queue.is_empty() {
            report.complete = false;
            break;
        }
    }
    (report.states, report.judged, report.took) = (came_from.len(), search.judged.borrow().len(), began.elapsed());
    report
}

/// The cluster, once everybody has looked and acted until nothing changes any more.
fn settled(bounds: &Bounds, make: &Make) -> State {
    let (first, mut path) = (State::first(), Vec::new());
    let mut state = first.clone();
    let calm = Bounds { faults: 0, writes: 0, turns: u8::MAX - 1, until: u8::MAX, ..*bounds };
    let fence = make.judge.fence;
    let make = Make { judge: Judge { fence, ..Judge::default() }, ..Make::default() };
    let search = Search::new(calm, &make);
    for _ in 0..8 {
        path.push(Step::Tick);
        state = state.after(Step::Tick, &search).expect("nothing has gone wrong yet").expect("time goes on");
        // Each step that changes anything, in turn; far more than it takes.
        for _ in 0..200 {
            let mut steps: Vec<_> = state.steps(&calm).into_iter().filter(|step| *step != Step::Tick).collect();
            // Nobody waits for ever for the others to have nothing to do any more.
            let turn = path.len() % steps.len().max(1);
            steps.rotate_left(turn);
            let steps = steps.into_iter();
            let mut changed = steps.filter_map(|step| Some((step, state.after(step, &search).ok()??)));
            let Some((step, next)) = changed.next() else { break };
            path.push(step);
            state = next;
        }
    }
    let (who, wants) = (state.etcd.leader.map(|(node, ..)| node), bounds.mode != SyncMode::Off);
    let well =
        |node: usize| state.nodes[node].server.writable() && state.nodes[node].server.sync_names.is_empty() != wants;
    assert!(
        who.is_some_and(well),
        "somebody should lead, and wait for whom it is to wait for:\n{}",
        tell(&first, &path, &search)
    );
    State { faults: bounds.faults, turns: [0; 3], ..state }
}

/// The steps, one a line, with what was decided.
fn tell(first: &State, path: &[Step], search: &Search) -> String {
    let (mut state, mut story) = (first.clone(), String::new());
    for step in path {
        let Ok(Some(next)) = state.after(*step, search) else {
            story.push_str(&format!("  {:2} {step:?}\n", state.tick));
            break;
        };
        let looked = if let Step::Look(n) = step { next.nodes[*n].pending.as_ref() } else { None };
        let decided = looked.map(|pending| {
            let plan = &pending.decision.plan;
            format!(": {} {:?} {:?} {:?}", pending.decision.rule, plan.lease, plan.postgres, plan.keys)
        });
        story.push_str(&format!("  {:2} {step:?}{}\n", state.tick, decided.unwrap_or_default()));
        state = next;
    }
    let of = |n: usize| {
        let server = &state.nodes[n].server;
        format!("  {}: up {} primary {} {:?}\n", NAMES[n], server.up, server.primary, server.log)
    };
    story.extend((0..3).map(of));
    story
}
