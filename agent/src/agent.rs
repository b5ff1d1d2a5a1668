//! The loop: observe, decide, act, sleep until something happens. The only owner of the agent's state.
//!
//! `loop_wait` is the longest it sleeps, never the time it needs to notice: it wakes when a key changes, the postmaster
//! exits, a job ends, a command comes, the lease is lost, or a moment comes that the last decision named.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use regent_core::callbacks;
use regent_core::config::SyncMode;
use regent_core::failsafe::Notice;
use regent_core::fence::Fence;
use regent_core::inspector::{Objection, inspect};
use regent_core::memory::{LeaseOutcome, Memory, Role};
use regent_core::peers::{PeerReply, Question};
use regent_core::plan::{Decision, Exit, Lease, Move, Plan};
use regent_core::postgres::{Job, WalSender};
use regent_core::request::Request;
use regent_core::rules::decide;
use regent_core::slots;
use regent_core::snapshot::{Guardian, LeaseView, NoView, Order, Peers, Snapshot, Watchdog};
use regent_core::units::{Instant, LeaseId, MemberName, Revision};
use regent_dcs::{Dcs, DcsError, Read};
use regent_pgctl::Postgres;
use tokio::sync::{mpsc, oneshot, watch};

use crate::act::{Done, Hands};
use crate::clock::Clock;
use crate::failsafe::Door;
use crate::guardian;
use crate::job::Jobs;
use crate::journal::Journal;
use crate::layers::{Effective, Layers};
use crate::lease::Claim;
use crate::report;
pub use crate::requests::ALREADY_SCHEDULED;
use crate::requests::Requests;
use crate::status::Status;
use crate::watchdog;

/// How other members are asked; HTTP for a real agent, a published status in the simulation.
pub trait Network: Clone + 'static {
    /// Asks each of `whom` for its status document, in parallel, each within its own deadline.
    async fn ask(&self, whom: BTreeMap<MemberName, Question>) -> BTreeMap<MemberName, PeerReply>;

    /// Asks each of `whom` (by `api_url`) to agree that the sender goes on without etcd, in parallel, once more where it fails
    /// (`POST /failsafe`, F3); tells who did.
    async fn confirm(
        &self,
        whom: BTreeMap<MemberName, String>,
        notice: Notice,
        within: Duration,
    ) -> BTreeMap<MemberName, bool>;

    /// Does anything answer HTTP at this `api_url`? (B12)
    async fn lives(&self, api_url: String, within: Duration) -> bool;
}

/// What others tell the loop.
#[derive(Debug)]
pub enum Command {
    /// Stop PostgreSQL, hand over, exit (SIGTERM, SIGINT).
    Stop,
    /// Read the configuration again (SIGHUP, `POST /reload`).
    Reload {
        /// Told whether it is in force, or why the old one stays.
        reply: Option<oneshot::Sender<Result<(), String>>>,
    },
    /// Do this to PostgreSQL.
    Request {
        /// What.
        request: Request,
        /// Told when a restart has ended, a scheduled one or a new copy when it was accepted; else why it is not done.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Forget a restart that is scheduled.
    Unschedule {
        /// Told whether there was one.
        reply: oneshot::Sender<bool>,
    },
}

/// The judgement and the second opinion on it. A real agent has [`Judge::default`]; the simulation also runs agents with
/// known-wrong ones, which it must find out.
#[derive(Clone, Copy)]
pub struct Judge {
    /// Decides.
    pub decide: fn(&Snapshot) -> Decision,
    /// Reads every plan before it is carried out.
    pub inspect: fn(&Snapshot, &Plan) -> Result<(), Objection>,
    /// What the guardian is told.
    pub fence: fn(&Snapshot) -> Fence,
}

impl Default for Judge {
    fn default() -> Self {
        Judge { decide, inspect, fence: Snapshot::fence }
    }
}

/// The seams of an agent.
#[derive(Clone, Debug)]
pub struct Seams<D, P, C, N> {
    /// etcd.
    pub dcs: D,
    /// PostgreSQL.
    pub postgres: P,
    /// The clocks.
    pub clock: C,
    /// The other members.
    pub network: N,
}

/// The channels of an agent.
#[derive(Debug)]
pub struct Channels {
    /// Commands to the loop.
    pub commands: mpsc::Receiver<Command>,
    /// The loop's claim on the lease.
    pub claims: watch::Sender<Option<Claim>>,
    /// The lease, as its task knows it.
    pub lease: watch::Receiver<LeaseView>,
    /// The guardian; `None` where the configuration wants none.
    pub guardian: Option<guardian::Channels>,
    /// The kernel's watchdog.
    pub watchdog: watchdog::Channels,
    /// Where a primary without etcd asks for this member's agreement.
    pub failsafe: Door,
    /// What the loop publishes.
    pub status: watch::Sender<Arc<Status>>,
    /// Where it notes what happens.
    pub journal: Journal,
}

impl Channels {
    fn guardian(&self) -> Option<guardian::View> {
        self.guardian.as_ref().map(|channels| channels.view.borrow().clone())
    }

    /// For all who read it; what changed is noted.
    fn publish(&self, status: Status, wall: SystemTime) {
        let after = Arc::new(status);
        let before = self.status.send_replace(Arc::clone(&after));
        self.journal.published(&before, &after, wall);
    }
}

/// The longest that one look at etcd may take; a longer silence is an observation.
const READ_PATIENCE: Duration = Duration::from_secs(2);
/// The longest wait for the guardian to take a new order, which takes it a fraction of a millisecond.
const GUARDIAN_PATIENCE: Duration = Duration::from_millis(100);
/// The shortest time worth waiting for an answer.
const HURRY: Duration = Duration::from_millis(50);
/// The longest that one look at PostgreSQL may take (ha-rules section 2: statement timeout 2 s).
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// Members are asked this long to agree, twice if need be (F3).
const CONFIRM_PATIENCE: Duration = Duration::from_secs(4);
/// How long the end of the process waits for a callback.
const CALLBACK_PATIENCE: Duration = Duration::from_secs(10);
/// A namesake is asked this long (B12).
const NAMESAKE_PATIENCE: Duration = Duration::from_secs(3);
/// How old a published observation of PostgreSQL may grow (rest-api.md W3: "well under a second" of an answer's age).
const PULSE: Duration = Duration::from_millis(900);
/// The pause after a turn that asked to be repeated at once without having changed anything.
const BREATH: Duration = Duration::from_millis(20);

/// One agent.
pub struct Agent<D, P, C, N> {
    seams: Seams<D, P, C, N>,
    channels: Channels,
    layers: Box<dyn Layers>,
    judge: Judge,
    effective: Effective,
    /// The `config` key that `effective` was made of.
    dynamic: Option<serde_json::Value>,
    /// Settings that the controller does not have yet.
    unapplied: bool,
    /// The server was told to read them, and no callback knows yet.
    reloaded: bool,
    memory: Memory,
    jobs: Jobs,
    peers: Option<Peers>,
    order: Order,
    requests: Requests,
    read: Option<Read>,
    /// Since when the guardian has not been ready.
    unguarded: Option<Instant>,
    /// The name was found to be ours alone.
    introduced: bool,
    /// The member key as it stands in etcd, and the lease that it hangs on.
    published: Option<(String, LeaseId)>,
    /// What the operator was told to put right.
    complaints: Vec<String>,
    /// Rule and plan of the last decision, for the log.
    last: Option<(&'static str, Plan)>,
    /// The newest revision seen or made.
    revision: Revision,
    /// How often a write was told that the lease is gone.
    doubts: u64,
}

impl<D: Dcs, P: Postgres, C: Clock, N: Network> Agent<D, P, C, N> {
    /// An agent that has seen nothing yet.
    ///
    /// # Errors
    /// A configuration that cannot be used, for people.
    pub fn new(
        seams: Seams<D, P, C, N>,
        channels: Channels,
        layers: Box<dyn Layers>,
        judge: Judge,
    ) -> Result<Self, String> {
        let effective = layers.effective(None)?;
        Ok(Agent {
            seams,
            channels,
            layers,
            judge,
            effective,
            dynamic: None,
            unapplied: false,
            reloaded: false,
            memory: Memory::default(),
            jobs: Jobs::default(),
            peers: None,
            order: Order::Run,
            requests: Requests::default(),
            read: None,
            unguarded: None,
            introduced: false,
            published: None,
            complaints: Vec::new(),
            last: None,
            revision: Revision::default(),
            doubts: 0,
        })
    }

    /// Runs until a decision ends the process.
    pub async fn run(mut self) -> Exit {
        self.claim(self.seams.clock.now());
        loop {
            let seen = self.observe().await;
            self.copy_config(&seen);
            let decision = self.judge(&seen);
            self.requests.decided(&decision.plan);
            let (outcome, done) = self.act(&seen, &decision).await;
            if let Some(exit) = decision.plan.exit {
                self.finish(&seen).await;
                return exit;
            }
            self.revision = self.revision.max(done.revision);
            if done.lease_gone {
                self.doubts += 1;
                self.claim(self.seams.clock.now());
            }
            let changed = matches!(outcome, LeaseOutcome::Done(_)) || !decision.plan.ask.is_empty();
            let pause = if changed { decision.look_again } else { decision.look_again.max(BREATH) };
            self.sleep(pause, &seen).await;
        }
    }

    // --- observe ---

    async fn observe(&mut self) -> Snapshot {
        let patience = self.read_patience(self.seams.clock.now());
        let read = async {
            match patience {
                // Who must stop now asks nobody first: an agent that slept past its deadline fences before all else.
                None => Err(DcsError::Unreachable("not asked: the lease is about to end".to_owned())),
                Some(patience) => self.seams.dcs.read(patience).await,
            }
        };
        // Taken before the look: a job that ends while we look still counts as running, as what we see may be older than its end.
        let ended = self.jobs.take(self.seams.clock.now());
        if ended.is_none() && !matches!(self.jobs.running().map(|running| &running.job), Some(Job::Restart { .. })) {
            self.requests.replaced();
        }
        let look = self.seams.postgres.observe(patience.unwrap_or(HURRY).min(LOOK_PATIENCE));
        let (read, postgres) = tokio::join!(read, look);
        let dcs = match read {
            Ok(read) => {
                self.revision = self.revision.max(read.view.revision);
                self.take_config(&read, patience.unwrap_or(HURRY)).await;
                let view = read.view.clone();
                self.read = Some(read);
                Ok(view)
            }
            Err(error) => {
                self.read = None;
                Err(match error {
                    DcsError::Unreachable(_) => NoView::Unreachable(error.to_string()),
                    DcsError::Rejected(_) | DcsError::LeaseGone | DcsError::Authentication(_) => {
                        NoView::Refused(error.to_string())
                    }
                })
            }
        };
        let namesake = self.namesake().await;
        let now = self.seams.clock.now();
        if let Some(ended) = ended {
            let timeline = postgres.sql.as_ref().and_then(|sql| sql.timeline);
            if matches!(ended.job, Job::Restart { .. }) {
                self.requests.restarted(ended.error.clone());
            }
            self.memory.job_ended(ended, timeline);
        }
        let mut seen = Snapshot {
            now,
            wall: self.seams.clock.wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default(),
            dice: self.seams.clock.dice(),
            config: self.effective.core.clone(),
            dcs,
            lease: *self.channels.lease.borrow_and_update(),
            postgres,
            job: self.jobs.running().cloned(),
            peers: self.peers.clone(),
            agreement: None,
            namesake,
            guardian: Guardian::Ready,
            watchdog: Watchdog::Ready,
            order: self.order,
            request: self.requests.next(),
            memory: self.memory.clone(),
        };
        seen.agreement = self.channels.failsafe.look(&seen);
        let fence = (self.judge.fence)(&seen);
        seen.guardian = self.guard(fence, patience.is_some()).await;
        seen.watchdog = self.watch(fence, patience.is_some()).await;
        seen.now = self.seams.clock.now();
        seen
    }

    /// Gives the guardian its order, before anything is decided on what was seen, and tells whether it has taken it.
    async fn guard(&mut self, fence: Fence, may_wait: bool) -> Guardian {
        let Some(channels) = &mut self.channels.guardian else { return Guardian::Ready };
        channels.fences.send_if_modified(|old| std::mem::replace(old, fence) != fence);
        let guards = matches!(fence, Fence::Guard { .. });
        if may_wait && fence != Fence::Keep {
            // Nobody is left to wait for only when the process ends; a late answer is seen in the next turn.
            let taken = channels.view.wait_for(|view| view.problem.is_some() || view.fence == fence);
            let _ = tokio::time::timeout(GUARDIAN_PATIENCE, taken).await;
        }
        let now = self.seams.clock.now();
        let view = channels.view.borrow_and_update().clone();
        let armed = view.fence == fence && view.armed_until.is_some_and(|until| now < until);
        let why = match view.problem {
            Some((why, _)) => why,
            None if !view.met => "it has not answered yet".to_owned(),
            None if guards && !armed => "it holds no deadline for this server yet".to_owned(),
            None => {
                self.unguarded = None;
                return Guardian::Ready;
            }
        };
        Guardian::Absent { why, since: *self.unguarded.get_or_insert(now) }
    }

    /// Gives the watchdog its order, and tells whether leadership may go on.
    async fn watch(&mut self, fence: Fence, may_wait: bool) -> Watchdog {
        let channels = &mut self.channels.watchdog;
        let wanted = watchdog::Order { fence, settings: self.effective.watchdog.clone() };
        channels.orders.send_if_modified(|old| {
            let news = *old != wanted;
            old.clone_from(&wanted);
            news
        });
        if wanted.settings.mode != watchdog::Mode::Required {
            return Watchdog::Ready;
        }
        if may_wait {
            let taken = channels.state.wait_for(|state| state.order.as_ref() == Some(&wanted));
            let _ = tokio::time::timeout(GUARDIAN_PATIENCE, taken).await; // A late answer is seen in the next turn.
        }
        let state = channels.state.borrow_and_update().clone();
        match state.problem {
            _ if state.order.as_ref() != Some(&wanted) => Watchdog::Awaited,
            Some(problem) => Watchdog::Failed(problem),
            None => Watchdog::Ready,
        }
    }

    /// Asked once, when etcd is first seen: does an agent of our name live at another address than ours? (Ours is bound by
    /// this process, so nobody else answers there.)
    async fn namesake(&mut self) -> Option<String> {
        let read = self.read.as_ref().filter(|_| !self.introduced)?;
        self.introduced = true;
        let url = read.view.members.get(&self.effective.core.name)?.api_url.clone()?;
        let other = url != self.effective.api_url && self.seams.network.lives(url.clone(), NAMESAKE_PATIENCE).await;
        other.then_some(url)
    }

    /// Never past the moment at which a writer must stop: that decision waits for nobody. `None`: it has come.
    fn read_patience(&self, now: Instant) -> Option<Duration> {
        let lease = *self.channels.lease.borrow();
        let holds = self.memory.holds.is_some() && self.memory.holds == lease.id && !self.effective.core.pause;
        let writes = holds && matches!(self.memory.role, Role::Primary | Role::Promoted) || self.memory.bootstrapping;
        let ends = lease.ends.filter(|_| writes).max(self.memory.promised_until());
        let left = ends.map(|ends| now.until(ends.minus(self.effective.core.stop_budget)));
        // In failsafe mode the other half of what is left is for asking the members.
        let share = if self.effective.core.failsafe_mode { 2 } else { 1 };
        let Some(left) = left else { return Some(READ_PATIENCE.min(self.effective.core.retry_timeout)) };
        (!left.is_zero()).then(|| READ_PATIENCE.min(self.effective.core.retry_timeout).min(left / share).max(HURRY))
    }

    /// A changed `config` key, once it is valid, is in force from this turn on.
    async fn take_config(&mut self, read: &Read, patience: Duration) {
        if let Some(dynamic) = &read.config
            && self.dynamic.as_ref() != Some(dynamic)
        {
            match self.layers.effective(Some(dynamic)) {
                Ok(effective) => self.put_in_force(effective),
                Err(problem) => tracing::error!("the cluster's configuration is kept as it was: {problem}"),
            }
            self.dynamic = Some(dynamic.clone());
        }
        if self.unapplied && self.jobs.running().is_none() {
            let configure = self.seams.postgres.configure(self.effective.postgres.clone());
            match tokio::time::timeout(patience, configure).await {
                Ok(Ok(())) => self.reloaded = true,
                Ok(Err(error)) => tracing::error!("PostgreSQL's configuration: {error}"),
                Err(_) => tracing::error!("PostgreSQL's configuration was not taken within {patience:?}"),
            }
            self.unapplied = false;
        }
    }

    /// Beside this cluster's data, and no other: a foreign directory is left as it is.
    fn copy_config(&self, seen: &Snapshot) {
        let ours = seen.view().and_then(|view| view.initialize.system_id());
        if let Some(dynamic) = &self.dynamic
            && ours.is_some()
            && ours == seen.local_system_id()
        {
            self.layers.remember(dynamic);
        }
    }

    fn put_in_force(&mut self, effective: Effective) {
        self.unapplied |= effective.postgres != self.effective.postgres;
        self.effective = effective;
    }

    // --- decide ---

    fn judge(&mut self, seen: &Snapshot) -> Decision {
        let mut decision = (self.judge.decide)(seen);
        if let Err(objection) = (self.judge.inspect)(seen, &decision.plan) {
            // A bug in a rule. The plan is dropped and the lease left to run: the safe side of every doubt.
            tracing::error!(rule = decision.rule, "this plan must never be: {objection}");
            decision.plan = Plan { lease: Lease::LetRun, ..Plan::stay() };
        }
        let repeats = self.last.as_ref().is_some_and(|(rule, plan)| {
            *rule == decision.rule && plan.lease == decision.plan.lease && plan.postgres == decision.plan.postgres
        });
        report::decision(seen, &decision, repeats);
        if !repeats {
            self.channels.journal.decided(&decision, seen, self.seams.clock.wall());
        }
        if seen.view().is_some() {
            let complaints = slots::complaints(seen);
            for new in complaints.iter().filter(|complaint| !self.complaints.contains(complaint)) {
                tracing::error!("{new}");
            }
            self.complaints = complaints;
        }
        self.last = Some((decision.rule, decision.plan.clone()));
        decision
    }

    // --- act ---

    async fn act(&mut self, seen: &Snapshot, decision: &Decision) -> (LeaseOutcome, Done) {
        let plan = &decision.plan;
        if plan.lease != Lease::LetRun {
            self.claim(seen.now);
        } else {
            self.channels.claims.send_replace(None);
        }
        // A stop waits for nobody, least of all for etcd: it goes before the lease half. Everything else comes after it.
        let stops = matches!(plan.postgres, Move::Stop(_) | Move::SetAside);
        let mut done = Done::default();
        let patience = self.effective.core.retry_timeout.min(Duration::from_secs(3));
        let mut hands = Hands {
            dcs: &self.seams.dcs,
            postgres: &self.seams.postgres,
            clock: &self.seams.clock,
            jobs: &mut self.jobs,
            layers: self.layers.as_ref(),
            leases: &self.channels.lease,
            patience,
            must_stop_at: seen.must_stop_at().filter(|_| seen.may_write() && !stops && !seen.config.pause),
        };
        if stops {
            self.channels.status.send_modify(|status| Arc::make_mut(status).demoting = true);
            hands.postgres(seen, &plan.postgres, None, seen.now).await;
        }
        let mut outcome = hands.lease(seen, plan, &mut done).await;
        let lock_until = match outcome {
            LeaseOutcome::Done(_) if matches!(plan.lease, Lease::Take { .. } | Lease::Adopt { .. }) => {
                self.channels.lease.borrow().ends
            }
            LeaseOutcome::Done(_) | LeaseOutcome::NotTried | LeaseOutcome::Refused | LeaseOutcome::Unknown => {
                seen.lock_ends()
            }
        };
        let calls = callbacks::due(seen, decision, std::mem::take(&mut self.reloaded));
        let preview = self.memory.after(seen, decision, outcome);
        let copied = self.seams.postgres.clone_progress();
        if let Some((bytes, total)) =
            copied.filter(|copied| report::is_news(self.channels.status.borrow().copied, *copied))
        {
            tracing::info!("copied {}", report::progress(bytes, total));
        }
        let status = report::status(
            seen,
            decision,
            &report::Context {
                effective: &self.effective,
                memory: &preview,
                last: &self.channels.status.borrow().clone(),
                lock_until: lock_until.filter(|_| plan.lease != Lease::Release),
                read: self.read.as_ref(),
                wall: self.seams.clock.wall(),
                guardian: self.channels.guardian(),
                watchdog: self.channels.watchdog.state.borrow().clone(),
                copied,
            },
        );
        if status.ttl > self.effective.core.ttl && self.channels.status.borrow().ttl <= self.effective.core.ttl {
            let (ours, theirs) = (self.effective.core.ttl, status.ttl);
            tracing::warn!(
                "a Patroni member is in the cluster, and takes ttl {ours:?} for {theirs:?}: it fails over as slowly as that when it leads"
            );
        }
        // Published before the server is touched: `/primary` turns 503 before it stops taking writes, not after.
        self.channels.publish(status.clone(), self.seams.clock.wall());
        if !stops {
            hands.postgres(seen, &plan.postgres, calls.at_promotion, seen.now).await;
        }
        if let Some(upkeep) = &plan.upkeep {
            self.seams.postgres.look_after_slots(upkeep);
        }
        for callback in calls.now {
            self.seams.postgres.call(callback);
        }
        if seen.dcs.is_ok() {
            hands.keys(seen, &plan.keys, &mut done).await;
        }
        if plan.lease == Lease::Release {
            outcome = hands.release(seen, &mut done).await;
        }
        if let Some(lease) = seen.lease.id.filter(|_| seen.dcs.is_ok()) {
            let checkpointed = preview.checkpointed.is_some()
                || seen.postgres.control().is_some_and(|control| Some(control.timeline) == seen.own_timeline());
            let json = report::member(seen, &status, &self.effective, checkpointed);
            let stands = self.published.as_ref().is_some_and(|(old, on)| *old == json && *on == lease);
            if !stands || self.read.as_ref().is_some_and(|read| !read.members.contains_key(&seen.config.name)) {
                let name = seen.config.name.clone();
                let written = hands.member(name, json.clone(), lease, &mut done).await;
                self.published = written.then_some((json, lease));
            }
        }
        self.memory = self.memory.after(seen, decision, outcome);
        self.peers = None;
        if !plan.ask.is_empty() {
            let replies = self.seams.network.ask(plan.ask.clone()).await;
            self.peers = Some(Peers { at: self.seams.clock.now(), replies });
        }
        if let Some(whom) = plan.confirm.clone() {
            self.confirm(seen, whom).await;
        }
        (outcome, done)
    }

    /// Asks the members to let this primary go on, and gives the guardian the new deadline at once.
    async fn confirm(&mut self, seen: &Snapshot, whom: BTreeMap<MemberName, String>) {
        let sent = self.seams.clock.now();
        let Some(left) = seen.must_stop_at().map(|at| sent.until(at)).filter(|left| !left.is_zero()) else { return };
        let slots = self.channels.status.borrow().last_view.as_ref().map(|view| view.status.slots.clone());
        let notice = Notice {
            name: seen.config.name.clone(),
            conn_url: self.effective.conn_url.clone(),
            api_url: self.effective.api_url.clone(),
            slots: slots.unwrap_or_default(),
        };
        // Half of what is left: time for another round is worth more than a late answer.
        let within = CONFIRM_PATIENCE.min(left / 2).max(HURRY);
        let agreed = self.seams.network.confirm(whom, notice, within).await;
        let refused: Vec<_> = agreed.iter().filter(|(_, yes)| !**yes).map(|(name, _)| name.as_str()).collect();
        if !refused.is_empty() {
            tracing::warn!("etcd is silent, and not all members let us go on; missing: {}", refused.join(", "));
        }
        self.memory.promises.answered(sent, seen.config.ttl, &agreed, &seen.config.name);
        let mut now = seen.clone();
        now.memory = self.memory.clone();
        self.guard((self.judge.fence)(&now), false).await;
    }

    /// "As of now the lease should live on." How long that word is good follows from the contract's own rule
    /// `loop_wait + 2 * retry_timeout <= ttl`: an agent busy with one slow answer does not lose its lease.
    fn claim(&self, as_of: Instant) {
        let core = &self.effective.core;
        self.channels.claims.send_replace(Some(Claim {
            as_of,
            good_for: core.loop_wait + core.retry_timeout,
            ttl: core.ttl,
            doubts: self.doubts,
            // One lost answer must not cost the lease: a renewal that is not answered soon is sent again (ha-rules 22.2, r).
            patience: (core.ttl / 16).clamp(Duration::from_millis(300), Duration::from_secs(1)),
        }));
    }

    /// Before the end: what is under way ends, and the member key tells the last state.
    async fn finish(&mut self, seen: &Snapshot) {
        if self.jobs.running().is_some() {
            let limit = self.effective.core.stop_budget + Duration::from_secs(30);
            if tokio::time::timeout(limit, self.jobs.ended()).await.is_err() {
                tracing::error!("gave up waiting for the last action after {limit:?}");
            }
        }
        let last = self.channels.status.borrow().clone();
        let mut status = Status { lock_until: None, view: None, ..(*last).clone() };
        if let Some(lease) = seen.lease.id.filter(|_| seen.dcs.is_ok()) {
            if self.jobs.take(self.seams.clock.now()).is_some() || !seen.postgres.is_up() {
                status.sql = None;
            }
            let json = report::member(seen, &status, &self.effective, true);
            let mut done = Done::default();
            let hands = Hands {
                dcs: &self.seams.dcs,
                postgres: &self.seams.postgres,
                clock: &self.seams.clock,
                jobs: &mut self.jobs,
                layers: self.layers.as_ref(),
                leases: &self.channels.lease,
                patience: Duration::from_secs(1),
                must_stop_at: None,
            };
            hands.member(seen.config.name.clone(), json, lease, &mut done).await;
        }
        self.channels.publish(status, self.seams.clock.wall());
        // Ours no more when this process is gone: they get a moment, which holds up nobody, as the key is given back.
        if tokio::time::timeout(CALLBACK_PATIENCE, self.seams.postgres.called()).await.is_err() {
            tracing::warn!("a callback still runs after {CALLBACK_PATIENCE:?}: it ends with this process");
        }
    }

    // --- sleep ---

    async fn sleep(&mut self, pause: Duration, seen: &Snapshot) {
        let until = tokio::time::Instant::now() + pause;
        let mut lease = self.channels.lease.clone();
        let unguarded = seen.guardian != Guardian::Ready;
        let mut guardian = self.channels.guardian.as_ref().map(|channels| channels.view.clone());
        let mut watches_exit = true;
        let dcs = self.seams.dcs.clone();
        let changed = dcs.changed(self.revision);
        tokio::pin!(changed);
        loop {
            let wake = tokio::select! {
                biased;
                command = self.channels.commands.recv() => match command {
                    Some(Command::Stop) => { self.order = Order::Stop; true }
                    Some(Command::Reload { reply }) => {
                        let outcome = self.reload();
                        drop(reply.map(|reply| reply.send(outcome)));
                        true
                    }
                    Some(Command::Request { request, reply }) => { self.requests.take(request, reply); true }
                    Some(Command::Unschedule { reply }) => {
                        // Nobody waits any more when the client has gone.
                        let _ = reply.send(self.requests.unschedule());
                        true
                    }
                    None => { self.order = Order::Stop; true }
                },
                () = self.jobs.ended() => true,
                () = self.seams.postgres.exited(), if watches_exit => {
                    watches_exit = false;
                    self.exit_is_news()
                }
                () = guardian_comes(&mut guardian), if unguarded => true,
                // The sender lives as long as the process; if it is gone, so is the lease.
                _ = lease.wait_for(|lease| lease.id != seen.lease.id) => true,
                () = &mut changed => true,
                () = tokio::time::sleep_until(until) => true,
                () = tokio::time::sleep(PULSE) => self.pulse(seen).await,
            };
            if wake {
                return;
            }
        }
    }

    /// An exit is news unless a job of ours is about to report it.
    fn exit_is_news(&self) -> bool {
        !matches!(
            self.jobs.running().map(|running| &running.job),
            Some(Job::Stop(_) | Job::Restart { .. } | Job::CopySlots | Job::SetAside)
        )
    }

    /// Keeps the published observation of the server young, and wakes the loop when it changed in kind.
    async fn pulse(&mut self, seen: &Snapshot) -> bool {
        let Some(patience) = self.read_patience(self.seams.clock.now()) else { return true };
        let postgres = self.seams.postgres.observe(LOOK_PATIENCE.min(patience)).await;
        let kind = |s: &regent_core::postgres::PgState| {
            let sql = s.sql.as_ref();
            // Whom commits wait for, and who could acknowledge them, only where somebody is waited for.
            let waits = seen.config.synchronous_mode != SyncMode::Off;
            let senders = sql.filter(|_| waits).map(|sql| {
                let sender = |s: &WalSender| (s.application_name.clone(), s.state.clone(), s.sync_state.clone());
                sql.replication.iter().map(sender).collect::<Vec<_>>()
            });
            (s.process, s.probe, sql.map(|sql| (sql.in_recovery, sql.streaming, sql.timeline)), senders)
        };
        let news = kind(&postgres) != kind(&seen.postgres);
        let lock = *self.channels.lease.borrow();
        let mut now = seen.clone();
        now.postgres = postgres;
        now.lease = lock;
        let last = self.channels.status.borrow().clone();
        let status = Status {
            at: self.seams.clock.now(),
            sql: now.sql().cloned(),
            lock_until: last.lock_until.and(now.lock_ends()),
            guardian: self.channels.guardian(),
            ..(*last).clone()
        };
        self.channels.publish(status, self.seams.clock.wall());
        news
    }

    fn reload(&mut self) -> Result<(), String> {
        let read = self.layers.reload().and_then(|()| self.layers.effective(self.dynamic.as_ref()));
        let effective =
            read.inspect_err(|problem| tracing::error!("the old configuration stays in force: {problem}"))?;
        tracing::info!("configuration reloaded");
        self.put_in_force(effective);
        self.unapplied = true; // SIGHUP always rewrites the files and reloads (config.md 10).
        Ok(())
    }
}

/// Waits for a guardian that was away to answer.
async fn guardian_comes(view: &mut Option<watch::Receiver<guardian::View>>) {
    match view {
        // Its feeder ends with the process.
        Some(view) => drop(view.changed().await),
        None => std::future::pending().await,
    }
}
