//! A twin of the guardian: it lives beside the agent, holds one deadline by its machine's clock, and kills the server twin.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use regent::clock::Clock;
use regent::guardian::{Ack, Action, Granted, Guard, Request, Taken};
use regent_core::units::Instant;
use regent_pgctl::fake::FakePostgres;
use tokio::sync::Notify;

use crate::world::SimClock;

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
    deadline: Option<Instant>,
    /// The process is stopped.
    stopped: bool,
    /// Its machine stands still.
    standing: bool,
    /// Requests that nobody waits for any more; they lie in its socket until it goes on.
    waiting: Vec<Request>,
    /// It cannot be started.
    absent: bool,
    last: Option<Action>,
    /// Which guardian process it is.
    generation: u32,
}

impl State {
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
            let (deadline, runs) = (self.state.borrow().deadline, self.state.borrow().runs());
            match deadline.filter(|_| runs) {
                None => self.changed.notified().await,
                Some(deadline) => {
                    let left = self.clock.now().until(deadline);
                    if left.is_zero() {
                        self.act();
                    } else {
                        let sleep = tokio::time::sleep(left.max(TRIP));
                        tokio::select! { biased; () = sleep => {}, () = self.changed.notified() => {} }
                    }
                }
            }
        }
    }

    fn act(&self) {
        self.postgres.kill();
        let mut state = self.state.borrow_mut();
        state.deadline = None;
        state.last = Some(Action { at: self.clock.now(), took: Duration::ZERO, killed: 1 });
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
            let waiting = std::mem::take(&mut self.state.borrow_mut().waiting);
            for request in waiting {
                let _ = self.take(request);
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
        let due = state.deadline.is_some_and(|deadline| now >= deadline);
        let taken = match request {
            Request::Status => Taken::Done,
            Request::Arm { .. } | Request::Disarm { .. } if due => Taken::Acting,
            Request::Arm { deadline, .. } if deadline <= now => Taken::TooLate,
            Request::Arm { deadline, .. } => {
                state.deadline = Some(deadline);
                Taken::Done
            }
            Request::Disarm { down: true } if state.deadline.is_some() && self.postgres.can_write() => Taken::StillRuns,
            Request::Disarm { .. } => {
                state.deadline = None;
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
        let patience = tokio::time::Instant::now() + PATIENCE;
        while !self.state.borrow().runs() {
            if tokio::time::Instant::now() >= patience {
                self.state.borrow_mut().waiting.push(request);
                return Err(format!("no answer in {PATIENCE:?}"));
            }
            tokio::time::sleep(TRIP * 10).await;
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
