//! A twin of the guardian: it lives beside the agent, holds one deadline by its machine's clock, and stops and kills the
//! server twin.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use regent::clock::Clock;
use regent::guardian::{Ack, Action, Granted, Guard, Request, Taken};
use regent_core::units::Instant;
use regent_pgctl::fake::FakePostgres;
use tokio::sync::Notify;

use crate::world::SimClock;

/// How often it looks whether a stop has done it.
const ROUND: Duration = Duration::from_millis(20);
/// How long an exchange takes.
const TRIP: Duration = Duration::from_millis(1);
/// How long an agent waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// One machine's guardian.
#[derive(Clone)]
pub struct SimGuardian {
    clock: SimClock,
    postgres: FakePostgres,
    state: Rc<RefCell<State>>,
    changed: Rc<Notify>,
    ended: Rc<Notify>,
    /// Which process answered this end last.
    met: Option<u32>,
}

#[derive(Default)]
struct State {
    stop_at: Option<Instant>,
    deadline: Option<Instant>,
    /// Since when which postmaster has its order to stop.
    stopping: Option<(Instant, u32)>,
    /// The postmaster that it knows.
    postmaster: Option<u32>,
    /// The process is stopped.
    stopped: bool,
    /// Its machine stands still.
    standing: bool,
    /// What lies in its sockets until it goes on, whether anybody still waits for an answer or not.
    waiting: Vec<(Request, Rc<Cell<Option<Ack>>>)>,
    /// It cannot be started.
    absent: bool,
    last: Option<Action>,
    /// Which guardian process it is.
    generation: u32,
}

impl State {
    fn done(&mut self, action: Action) {
        (self.stop_at, self.deadline, self.stopping, self.postmaster) = (None, None, None, None);
        self.last = Some(action);
    }

    fn runs(&self) -> bool {
        !self.stopped && !self.standing
    }
}

impl SimGuardian {
    /// A machine's, from now on.
    #[must_use]
    pub fn start(clock: SimClock, postgres: FakePostgres) -> SimGuardian {
        let guardian = SimGuardian {
            clock,
            postgres,
            state: Rc::default(),
            changed: Rc::default(),
            ended: Rc::default(),
            met: None,
        };
        tokio::task::spawn_local(guardian.clone().run());
        guardian
    }

    async fn run(self) {
        loop {
            let next = {
                let state = self.state.borrow();
                let look = state.stopping.map(|_| self.clock.now() + ROUND);
                state.stop_at.into_iter().chain(state.deadline).chain(look).min().filter(|_| state.runs())
            };
            match next {
                None => self.changed.notified().await,
                Some(next) => {
                    let left = self.clock.now().until(next);
                    if !left.is_zero() {
                        let sleep = tokio::time::sleep(left.max(TRIP));
                        tokio::select! { biased; () = sleep => {}, () = self.changed.notified() => {} }
                    }
                }
            }
            if self.state.borrow().runs() {
                self.act();
            }
        }
    }

    /// Does what is due.
    fn act(&self) {
        let now = self.clock.now();
        let mut state = self.state.borrow_mut();
        let has_come = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if has_come(state.deadline) {
            self.postgres.kill();
            let since = state.stopping.map_or(now, |(since, _)| since);
            state.done(Action { at: since, took: now.since(since), killed: 1 });
        } else if has_come(state.stop_at) {
            state.stop_at = None;
            if let Some(pid) = state.postmaster.filter(|pid| self.postgres.pid() == Some(*pid)) {
                self.postgres.interrupt();
                state.stopping = Some((now, pid));
            }
        }
        self.watch(&mut state);
    }

    /// Whether a stop has done it.
    fn watch(&self, state: &mut State) {
        if let Some((since, _)) = state.stopping.filter(|(_, pid)| self.postgres.pid() != Some(*pid)) {
            state.done(Action { at: since, took: self.clock.now().since(since), killed: 0 });
        }
    }

    /// SIGSTOP, or SIGCONT.
    pub fn freeze(&self, stopped: bool) {
        self.state.borrow_mut().stopped = stopped;
        self.go_on();
    }

    /// The whole machine stands still, or goes on.
    pub fn stand(&self, still: bool) {
        self.state.borrow_mut().standing = still;
        self.go_on();
    }

    fn go_on(&self) {
        if self.state.borrow().runs() {
            // Before it looks at the time.
            let waiting = std::mem::take(&mut self.state.borrow_mut().waiting);
            for (request, answer) in waiting {
                answer.set(Some(self.take(request)));
            }
        }
        self.changed.notify_one();
    }

    /// No guardian can be started on this machine, or one can again.
    pub fn refuse(&self, absent: bool) {
        self.kill();
        self.state.borrow_mut().absent = absent;
    }

    /// SIGKILL; another one is started when it is asked for.
    pub fn kill(&self) {
        let mut state = self.state.borrow_mut();
        let generation = state.generation + 1;
        *state = State { generation, standing: state.standing, ..State::default() };
        self.changed.notify_one();
        self.ended.notify_waiters();
    }

    /// Does what it is asked for.
    fn take(&self, request: Request) -> Ack {
        let now = self.clock.now();
        let mut state = self.state.borrow_mut();
        self.watch(&mut state);
        let due = state.deadline.is_some_and(|deadline| now >= deadline);
        let taken = match request {
            Request::Status => Taken::Done,
            Request::Disarm { .. } if due => Taken::Acting,
            Request::Arm { deadline, .. } if deadline <= now => Taken::TooLate,
            Request::Arm { postmaster, stop_at, deadline } => {
                state.postmaster = postmaster.map(|(pid, _)| pid);
                state.stopping = state.stopping.filter(|(_, pid)| state.postmaster == Some(*pid));
                state.stop_at = Some(stop_at).filter(|_| postmaster.is_some() && state.stopping.is_none());
                state.deadline = Some(deadline);
                Taken::Done
            }
            Request::Disarm { down: true } if state.deadline.is_some() && self.postgres.can_write() => Taken::StillRuns,
            Request::Disarm { .. } => {
                (state.stop_at, state.deadline, state.stopping, state.postmaster) = (None, None, None, None);
                Taken::Done
            }
        };
        self.changed.notify_one();
        Ack {
            taken,
            armed_until: state.deadline,
            guardian: state.generation,
            last: state.last,
            granted: Granted::default(),
        }
    }
}

impl Guard for SimGuardian {
    fn started(&self, _pid: u32) -> Option<u64> {
        Some(1)
    }

    async fn call(&mut self, request: Request) -> Result<Ack, String> {
        tokio::time::sleep(TRIP).await;
        if !self.state.borrow().runs() {
            let (patience, answer) = (tokio::time::Instant::now() + PATIENCE, Rc::new(Cell::new(None)));
            self.state.borrow_mut().waiting.push((request, answer.clone()));
            while tokio::time::Instant::now() < patience {
                tokio::time::sleep(TRIP * 10).await;
                if let Some(ack) = answer.get() {
                    self.met = Some(ack.guardian);
                    return Ok(ack);
                }
            }
            return Err(format!("no answer in {PATIENCE:?}"));
        }
        let absent = self.state.borrow().absent;
        self.met = (!absent).then_some(self.state.borrow().generation);
        if absent {
            return Err("it cannot be started".to_owned());
        }
        Ok(self.take(request))
    }

    async fn gone(&mut self) {
        let Some(met) = self.met else { return std::future::pending().await };
        while self.state.borrow().generation == met {
            self.ended.notified().await;
        }
        self.met = None;
    }
}
