//! What may happen next in a small world, and what must not have happened then.

use std::collections::BTreeMap;

use regent_core::config::SyncMode;
use regent_core::memory::LeaseOutcome;
use regent_core::peers::PeerReply;
use regent_core::plan::{KeyWrite, Lease, Move, Plan};
use regent_core::postgres::{Job, StopMode, Upstream};
use regent_core::quorum;
use regent_core::snapshot::Snapshot;
use regent_core::sync::Waits;
use regent_core::units::{LeaseId, Revision, Timeline};
use regent_dcs::Write;

use super::state::{Etcd, NAMES, Op, Pending, Record, State, Sum, TTL, at, index, name};
use super::{Bounds, Judged, Search, Violation};

/// What happens next. Members by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Time goes on: leases are renewed, guardians kill, leases end.
    Tick,
    /// A member looks, and decides.
    Look(usize),
    /// It carries out what it decided, whatever has happened since.
    Act(usize, How),
    /// What its server was about to do is done.
    Done(usize),
    /// Its server receives a record from its upstream.
    Receive(usize),
    /// A client writes to its server.
    Write(usize),
    /// A write arrives at etcd that nobody waits for any more.
    Arrive(usize),
    /// A fault.
    KillAgent(usize),
    /// It ends.
    StartAgent(usize),
    /// A fault.
    KillServer(usize),
    /// A fault: no etcd, no answers of or for the others.
    Cut(usize),
    /// It ends.
    Heal(usize),
    /// A fault: agent and lease task stand still.
    Freeze(usize),
    /// It ends.
    Thaw(usize),
}

/// How a plan is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As it is.
    Whole,
    /// A fault: etcd does not answer; what was written may arrive later.
    Unanswered,
    /// A fault: the agent dies after so many parts of it.
    Dies(u8),
}

type Stepped = Result<Option<State>, Violation>;

fn violation<T>(id: &'static str, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { id, what: what.into() })
}

impl State {
    /// All that may happen next.
    pub(super) fn steps(&self, bounds: &Bounds) -> Vec<Step> {
        let mut steps = Vec::new();
        let begins = self.turns == [0; 3];
        for (n, node) in self.nodes.iter().enumerate() {
            let awake = node.awake();
            let early = self.tick < bounds.since + bounds.begins;
            let fault = self.faults > 0 && (self.faults < bounds.faults || early);
            let mut may = |when: bool, step: Step| steps.extend(when.then_some(step));
            may(awake && node.pending.is_none() && self.has_a_turn(n, bounds), Step::Look(n));
            if let Some(pending) = node.pending.as_ref().filter(|_| awake) {
                may(true, Step::Act(n, How::Whole));
                let writes = writes_of(&pending.decision.plan);
                may(fault && writes > 0 && !node.cut, Step::Act(n, How::Unanswered));
                let parts = writes + u8::from(pending.decision.plan.postgres != Move::Stay);
                (1..parts).for_each(|part| may(fault, Step::Act(n, How::Dies(part))));
            }
            may(node.server.op.is_some(), Step::Done(n));
            let behind = node.server.upstream.is_some_and(|upstream| {
                self.streams(n, upstream) && self.nodes[upstream].server.log.len() > node.server.log.len()
            });
            may(behind, Step::Receive(n));
            may(node.server.writable() && self.writes < bounds.writes && early, Step::Write(n));
            may(fault && node.agent, Step::KillAgent(n));
            may(!node.agent && begins, Step::StartAgent(n));
            may(fault && node.server.up, Step::KillServer(n));
            may(fault && node.agent && !node.cut, Step::Cut(n));
            may(node.cut && begins, Step::Heal(n));
            may(fault && awake, Step::Freeze(n));
            may(node.frozen && begins, Step::Thaw(n));
        }
        steps.extend((0..self.late.len()).map(Step::Arrive));
        let waits = |n: usize| self.nodes[n].pending.is_some() || !self.nodes[n].awake();
        let had_their_turns = (0..3).all(|n| self.turns[n] > 0 || waits(n));
        steps.extend((self.tick < bounds.until && had_their_turns).then_some(Step::Tick));
        steps
    }

    /// One in its time, and another when its job ended or the others answered: what makes a real agent look again at once.
    fn has_a_turn(&self, n: usize, bounds: &Bounds) -> bool {
        let answered = self.nodes[n].peers.as_deref().is_some_and(|(tick, _)| *tick == self.tick);
        self.turns[n] < bounds.turns + u8::from(answered) || self.nodes[n].finished.is_some()
    }

    /// The state after a step; `None`: it changes nothing.
    pub(super) fn after(&self, step: Step, search: &Search) -> Stepped {
        let bounds = &search.bounds;
        let mut next = self.clone();
        match step {
            Step::Tick => next.tick(),
            Step::Look(n) => {
                if !next.looks(n, self, search)? {
                    return Ok(None);
                }
            }
            Step::Act(n, how) => {
                let Some(pending) = next.nodes[n].pending.take() else { return Ok(None) };
                next.faults -= u8::from(how != How::Whole);
                next.act(n, &pending, how, search)?;
            }
            Step::Done(n) => next.done(n, bounds)?,
            Step::Receive(n) => {
                let server = &self.nodes[n].server;
                let record = server.upstream.and_then(|from| self.nodes[from].server.log.get(server.log.len()));
                next.nodes[n].server.log.extend(record);
            }
            Step::Write(n) => {
                next.nodes[n].server.log.push(Record::Write(next.writes));
                next.writes += 1;
            }
            Step::Arrive(place) => {
                let write = next.late.remove(place);
                next.etcd.apply(&write, search)?;
            }
            Step::KillAgent(n) => {
                next.faults -= 1;
                next.nodes[n].kill_agent();
            }
            Step::StartAgent(n) => next.nodes[n].agent = true,
            Step::KillServer(n) => {
                next.faults -= 1;
                next.nodes[n].kill_server(self.tick);
            }
            Step::Cut(n) => {
                next.faults -= 1;
                next.nodes[n].cut = true;
            }
            Step::Heal(n) => next.nodes[n].cut = false,
            Step::Freeze(n) => {
                next.faults -= 1;
                next.nodes[n].frozen = true;
            }
            Step::Thaw(n) => next.nodes[n].frozen = false,
        }
        next.acknowledge();
        next.sound(bounds)?;
        Ok(Some(next))
    }

    fn tick(&mut self) {
        self.tick += 1;
        self.turns = [0; 3];
        let (now, etcd) = (self.tick, &mut self.etcd);
        for (n, node) in self.nodes.iter_mut().enumerate() {
            if node.agent && !node.frozen && !node.cut && node.claims {
                let held = node.lease.map(|(id, _)| id).filter(|id| etcd.leases.contains_key(id));
                let id = held.unwrap_or_else(|| {
                    node.leases_had += 1;
                    i64::try_from(n).unwrap_or_default() * 100 + i64::from(node.leases_had)
                });
                node.lease = Some((id, now + TTL));
                etcd.leases.insert(id, now + TTL);
                if let Some(guard) = node.guard.as_mut().filter(|guard| guard.lease == Some(id)) {
                    guard.deadline = Some(now + TTL);
                }
            }
            // The deadline is a hundredth of a lease before etcd's: in one step, but before it.
            let due = node.guard.is_some_and(|guard| guard.deadline.is_some_and(|deadline| deadline <= now));
            let writes = node.server.primary || matches!(node.server.op, Some(Op::Promote(_) | Op::StartPrimary));
            if due && node.server.up && writes {
                node.kill_server(now);
                node.guard = None;
            }
        }
        etcd.leases.retain(|_, ends| *ends > now);
        let lives = |lease: &i64| etcd.leases.contains_key(lease);
        etcd.leader = etcd.leader.filter(|(_, lease, _)| lives(lease));
        for member in &mut etcd.members {
            *member = member.take().filter(|(lease, _)| lives(lease));
        }
    }

    /// A turn up to its decision; the whole of it where a late act is no different from a late look. False: nothing changed.
    fn looks(&mut self, n: usize, before: &State, search: &Search) -> Result<bool, Violation> {
        let Judged { pending, guard } = search.judged(before, n)?;
        self.nodes[n].finished = None;
        self.nodes[n].guard = guard;
        self.turns[n] = self.turns[n].saturating_add(1);
        if hangs_on_what_was_seen(&pending.decision.plan) {
            self.nodes[n].pending = Some(pending);
            return Ok(true);
        }
        self.act(n, &pending, How::Whole, search)?;
        // A second look that changes nothing is none.
        let counted = std::mem::replace(&mut self.turns[n], before.turns[n]);
        let changed = self.digest() != before.digest();
        self.turns[n] = if changed { counted } else { counted.min(1) };
        Ok(changed || self.turns[n] != before.turns[n])
    }

    fn act(&mut self, n: usize, pending: &Pending, how: How, search: &Search) -> Result<(), Violation> {
        let Pending { seen, decision, .. } = pending;
        let plan = &decision.plan;
        let mut parts = if let How::Dies(parts) = how { parts } else { u8::MAX };
        // False: it is dead by now.
        let mut part = |counts: bool| {
            let lives = parts > 0;
            parts -= u8::from(lives && counts && parts != u8::MAX);
            lives
        };
        self.nodes[n].claims = plan.lease != Lease::LetRun;
        let stops = matches!(plan.postgres, Move::Stop(_));
        let moves = plan.postgres != Move::Stay;
        let mut outcome = LeaseOutcome::NotTried;
        if stops && part(true) {
            self.move_postgres(n, seen, &plan.postgres);
        }
        let too_late =
            seen.must_stop_at().filter(|_| seen.may_write() && !stops).is_some_and(|at_| at(self.tick) >= at_);
        if let Some(write) = lease_write(seen, plan).filter(|_| !too_late && part(true)) {
            outcome = self.write(n, seen, write, how, search)?;
        }
        if part(false) {
            self.nodes[n].published = pending.published.clone();
        }
        if !stops && moves && part(true) {
            self.move_postgres(n, seen, &plan.postgres);
        }
        for write in plan.keys.iter().filter_map(|key| key_write(seen, key)) {
            if seen.dcs.is_ok() && !too_late && part(true) {
                self.write(n, seen, write, how, search)?;
            }
        }
        if let Some(lease) = pending.held().filter(|_| plan.lease == Lease::Release && part(true)) {
            outcome = self.write(n, seen, Write::ReleaseLeader { name: name(n), lease }, how, search)?;
        }
        if let How::Dies(_) = how {
            self.nodes[n].kill_agent();
            return Ok(());
        }
        self.introduce(n, pending, how);
        self.nodes[n].memory = pending.memory_after(outcome);
        let replies: BTreeMap<_, _> =
            plan.ask.keys().map(|other| (other.clone(), self.answer(n, index(other)))).collect();
        self.nodes[n].peers = (!replies.is_empty()).then(|| Sum::new((self.tick, replies)));
        if plan.exit.is_some() {
            self.nodes[n].kill_agent();
        }
        Ok(())
    }

    fn answer(&self, n: usize, other: usize) -> PeerReply {
        let node = &self.nodes[other];
        let reached = node.agent && !node.frozen && !node.cut && !self.nodes[n].cut;
        match node.published.as_deref().filter(|_| reached) {
            Some(answer) => PeerReply::Answer(answer.clone()),
            None => PeerReply::Unreachable(String::new()),
        }
    }

    /// The member key.
    fn introduce(&mut self, n: usize, pending: &Pending, how: How) {
        let reached = how == How::Whole && !self.nodes[n].cut;
        let Some(LeaseId(lease)) = pending.seen.lease.id.filter(|_| reached) else { return };
        if self.etcd.leases.contains_key(&lease) {
            self.etcd.members[n] = Some((lease, pending.member.clone()));
        }
    }

    fn write(
        &mut self,
        n: usize,
        seen: &Snapshot,
        write: Write,
        how: How,
        search: &Search,
    ) -> Result<LeaseOutcome, Violation> {
        let Some(lease) = seen.lease.id else { return Ok(LeaseOutcome::NotTried) };
        if how == How::Unanswered {
            self.late.push(Sum::new(write));
            return Ok(LeaseOutcome::Unknown);
        }
        if self.nodes[n].cut {
            return Ok(LeaseOutcome::Unknown);
        }
        Ok(if self.etcd.apply(&write, search)? { LeaseOutcome::Done(lease) } else { LeaseOutcome::Refused })
    }

    fn move_postgres(&mut self, n: usize, seen: &Snapshot, wanted: &Move) {
        let tick = self.tick;
        let node = &mut self.nodes[n];
        let whom = |upstream: &Upstream| match upstream {
            Upstream::Nobody => None,
            Upstream::Member { name, .. } => Some(index(name)),
        };
        match wanted {
            Move::Stay => {}
            Move::Cancel => (node.job, node.server.op) = (None, None),
            // Began before, or goes on after, the server ended: there is nothing to do it to.
            Move::Promote(_) | Move::Follow(_) | Move::SetSyncNames(_) | Move::Checkpoint if !node.server.answers() => {
            }
            Move::Promote(_) if node.server.primary => {}
            Move::Stop(_) if !node.server.up => {}
            Move::StartPrimary | Move::StartStandby(_) if node.server.up => {}
            Move::StartPrimary => {
                node.server.up = true;
                node.start_job(Job::Start { as_primary: true }, Op::StartPrimary, tick);
            }
            Move::StartStandby(upstream) => {
                (node.server.up, node.server.primary) = (true, false);
                node.start_job(Job::Start { as_primary: false }, Op::StartStandby(whom(upstream)), tick);
            }
            Move::Stop(mode) => {
                node.start_job(Job::Stop(*mode), Op::Stop { clean: *mode != StopMode::Immediate }, tick);
            }
            Move::Promote(timeline) => node.start_job(Job::Promote, Op::Promote(timeline.0), tick),
            Move::Follow(upstream) => node.server.upstream = whom(upstream),
            Move::SetSyncNames(names) => {
                node.start_job(Job::SetSyncNames, Op::Wait(names.clone().unwrap_or_default()), tick);
            }
            Move::Checkpoint => {}
            Move::Bootstrap
            | Move::Clone { .. }
            | Move::Rewind { .. }
            | Move::Restore
            | Move::GiveUpData { .. }
            | Move::DiscardOldCopy
            | Move::Restart { .. }
            | Move::PrePromote
            | Move::ChangeSlots(_)
            | Move::CopySlots { .. }
            | Move::ResumeReplay
            | Move::RemoveUnfinished
            | Move::SetAside => unreachable!("{wanted:?} cannot be wanted here: {}", seen.config.name),
        }
    }

    fn done(&mut self, n: usize, bounds: &Bounds) -> Result<(), Violation> {
        let tick = self.tick;
        let node = &mut self.nodes[n];
        let Some(op) = node.server.op.take() else { return Ok(()) };
        match op {
            Op::StartPrimary => {
                // An agent that lives does not let it come up after its lease.
                if node.job.is_some() && node.lease.is_none_or(|(_, ends)| ends <= tick) {
                    node.kill_server(tick);
                    return Ok(());
                }
                (node.server.primary, node.server.clean) = (true, false);
            }
            Op::StartStandby(upstream) => (node.server.upstream, node.server.clean) = (upstream, false),
            Op::Stop { clean } => (node.server.up, node.server.clean) = (false, clean),
            Op::Promote(timeline) => {
                node.server.log.push(Record::Switch(timeline));
                (node.server.primary, node.server.upstream) = (true, None);
                node.end_job(tick, None);
                return self.promoted(n, timeline, bounds);
            }
            Op::Wait(names) => node.server.sync_names = names,
        }
        node.end_job(tick, None);
        Ok(())
    }

    fn promoted(&mut self, n: usize, timeline: u32, bounds: &Bounds) -> Result<(), Violation> {
        if let Some(before) = self.lines.insert(timeline, n) {
            let (first, second) = (NAMES[before], NAMES[n]);
            return violation("S2", format!("timeline {timeline} of {first} is begun again by {second}"));
        }
        let log = &self.nodes[n].server.log;
        let lost: Vec<_> = self.acknowledged.iter().filter(|id| !log.contains(&Record::Write(**id))).collect();
        if bounds.mode != SyncMode::Off && !lost.is_empty() {
            return violation("S4", format!("{} is promoted without the acknowledged writes {lost:?}", NAMES[n]));
        }
        Ok(())
    }

    /// Clients are told as soon as the server they wrote to may tell them.
    fn acknowledge(&mut self) {
        for n in 0..3 {
            let server = &self.nodes[n].server;
            if !server.writable() {
                continue;
            }
            let waits = Waits::parse(&server.sync_names);
            let told = |record: &Record| match record {
                Record::Switch(_) => None,
                Record::Write(id) => {
                    let has = |other: &usize| {
                        waits.names.contains(NAMES[*other])
                            && self.streams(*other, n)
                            && self.nodes[*other].server.log.contains(record)
                    };
                    (!waits.blocked && (0..3).filter(has).count() >= waits.numsync).then_some(*id)
                }
            };
            let told: Vec<u8> = server.log.iter().filter_map(told).collect();
            self.acknowledged.extend(told);
        }
    }

    /// What must hold in every state.
    fn sound(&self, bounds: &Bounds) -> Result<(), Violation> {
        let writers: Vec<_> = (0..3).filter(|n| self.nodes[*n].server.writable()).collect();
        if let [one, other, ..] = writers.as_slice() {
            return violation("S1", format!("{} and {} both accept writes", NAMES[*one], NAMES[*other]));
        }
        let holder = self.etcd.leader.map(|(holder, ..)| holder);
        let Some((writer, sync)) = writers.first().zip(self.etcd.sync.as_ref()) else { return Ok(()) };
        if holder != Some(*writer) || bounds.mode == SyncMode::Off {
            return Ok(());
        }
        let waits = Waits::parse(&self.nodes[*writer].server.sync_names);
        let state = quorum::State {
            me: NAMES[*writer].into(),
            leader: sync.leader.to_string(),
            quorum: sync.quorum,
            voters: sync.standbys.iter().map(ToString::to_string).collect(),
            numsync: waits.numsync,
            sync: waits.names,
            confirmed: 0,
            active: quorum::Names::new(),
            wanted: 0,
        };
        if state.overlaps() {
            return Ok(());
        }
        violation("S5", format!("{} waits for {} of {:?}, /sync is {sync:?}", state.me, state.numsync, state.sync))
    }
}

/// Whether it matters what happens between the look and the act: leadership, `sync`, or what makes a server write hangs on it. A
/// stop, a start as a standby, questions and records do no harm when they come late.
fn hangs_on_what_was_seen(plan: &Plan) -> bool {
    let lease = !matches!(plan.lease, Lease::Keep | Lease::LetRun);
    let sync = plan.keys.iter().any(|key| matches!(key, KeyWrite::Sync { .. }));
    lease || sync || matches!(plan.postgres, Move::Promote(_) | Move::StartPrimary | Move::SetSyncNames(_))
}

fn writes_of(plan: &Plan) -> u8 {
    let lease = u8::from(!matches!(plan.lease, Lease::Keep | Lease::LetRun));
    lease + u8::try_from(plan.keys.len()).unwrap_or(u8::MAX / 2)
}

fn lease_write(seen: &Snapshot, plan: &Plan) -> Option<Write> {
    let (name, lease) = (seen.config.name.clone(), seen.lease.id?);
    match &plan.lease {
        Lease::Keep | Lease::LetRun | Lease::Release => None,
        Lease::Take { promise, seen } => {
            Some(Write::TakeLeader { name, lease, promise: promise.clone(), promise_seen: *seen })
        }
        Lease::Promise { promise, seen } => {
            Some(Write::Promise { name, lease, promise: promise.clone(), promise_seen: *seen })
        }
        Lease::Adopt { seen } => Some(Write::AdoptLeader { name, lease, seen: *seen }),
        Lease::StartBootstrap | Lease::AbandonBootstrap => unreachable!("the cluster is made"),
    }
}

fn key_write(seen: &Snapshot, key: &KeyWrite) -> Option<Write> {
    let lease = seen.lease.id?;
    match key.clone() {
        KeyWrite::Sync { sync, seen } => Some(Write::PutSync { sync, seen, lease }),
        KeyWrite::Status(status) => Some(Write::PutStatus { status, lease }),
        KeyWrite::History(lines) => Some(Write::PutHistory { lines, lease }),
        KeyWrite::Identify { .. }
        | KeyWrite::Config { .. }
        | KeyWrite::ClearFailover { .. }
        | KeyWrite::Failsafe(_) => {
            unreachable!("{key:?} cannot be wanted here")
        }
    }
}

impl Etcd {
    /// Carries out a write as its transaction would be: whether its compares held.
    fn apply(&mut self, write: &Write, search: &Search) -> Result<bool, Violation> {
        let lives = |lease: &LeaseId| self.leases.contains_key(&lease.0);
        let leads = |lease: &LeaseId| self.leader.is_some_and(|(_, held, _)| held == lease.0);
        let revision = self.promise.as_ref().map(|key| key.modified);
        let sync_seen = (self.sync_seen > 0).then_some(Revision(self.sync_seen));
        let same = |seen: Option<Revision>, is: Option<Revision>| !search.make.compares || seen == is;
        match write {
            Write::TakeLeader { name, lease, promise, promise_seen } => {
                if !lives(lease) || self.leader.is_some() && search.make.compares || !same(*promise_seen, revision) {
                    return Ok(false);
                }
                self.put_leader(index(name), *lease);
                self.promises(promise)?;
            }
            Write::Promise { lease, promise, promise_seen, .. } => {
                if !leads(lease) || !same(*promise_seen, revision) {
                    return Ok(false);
                }
                self.promises(promise)?;
            }
            Write::AdoptLeader { name, lease, seen } => {
                let same = |(node, _, modified)| node == index(name) && modified == seen.0;
                if !lives(lease) || !self.leader.is_some_and(same) {
                    return Ok(false);
                }
                self.put_leader(index(name), *lease);
            }
            Write::ReleaseLeader { name, lease } => {
                if !self.leader.is_some_and(|(node, held, _)| node == index(name) && held == lease.0) {
                    return Ok(false);
                }
                self.leader = None;
            }
            Write::PutSync { sync, seen, lease } => {
                if !leads(lease) || !same(*seen, sync_seen) {
                    return Ok(false);
                }
                self.sync = Sum::new(sync.clone());
                self.sync_seen += 1;
            }
            Write::PutStatus { status, lease } => {
                if !leads(lease) {
                    return Ok(false);
                }
                (self.status, self.status_is_new) = (Sum::new(status.clone()), true);
            }
            Write::PutHistory { lines, lease } => {
                if !leads(lease) {
                    return Ok(false);
                }
                self.history = Sum::new(Some(lines.clone()));
            }
            Write::StartBootstrap { .. }
            | Write::Identify { .. }
            | Write::AbandonBootstrap { .. }
            | Write::PutMember { .. }
            | Write::RequestFailover { .. }
            | Write::ClearFailover { .. }
            | Write::PutFailsafe { .. }
            | Write::PutConfig { .. }
            | Write::RemoveCluster => unreachable!("{write:?} cannot be wanted here"),
        }
        Ok(true)
    }

    fn put_leader(&mut self, node: usize, lease: LeaseId) {
        self.leaders += 1;
        // Room between them for a `status` that is older or younger.
        self.leader = Some((node, lease.0, self.leaders * 10));
        self.status_is_new = false;
    }

    fn promises(&mut self, promise: &regent_core::cluster::Promise) -> Result<(), Violation> {
        let old = self.promise.as_ref();
        let rank = |promise: &regent_core::cluster::Promise| -> (Timeline, _) {
            (promise.position.timeline, promise.position.lsn)
        };
        if let Some(old) = old.map(|key| &key.promise)
            && (promise.epoch <= old.epoch || rank(promise) < rank(old))
        {
            return violation("S8", format!("{promise:?} comes after {old:?}"));
        }
        let modified = Revision(old.map_or(1, |key| key.modified.0 + 1));
        self.promise = Sum::new(Some(regent_core::cluster::PromiseKey { promise: promise.clone(), modified }));
        Ok(())
    }
}
