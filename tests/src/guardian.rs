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
    frozen: bool,
    /// It cannot be started.
    absent: bool,
    last: Option<Action>,
    /// Which guardian process it is.
    generation: u32,
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
            let (deadline, frozen) = (self.state.borrow().deadline, self.state.borrow().frozen);
            match deadline.filter(|_| !frozen) {
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

    /// The whole machine stands still, or goes on.
    pub fn freeze(&self, frozen: bool) {
        self.state.borrow_mut().frozen = frozen;
        self.changed.notify_one();
    }

    /// No guardian can be started on this machine, or one can again.
    pub fn refuse(&self, absent: bool) {
        let mut state = self.state.borrow_mut();
        let generation = state.generation + 1;
        *state = State { absent, generation, ..State::default() };
        self.changed.notify_one();
        self.ended.notify_waiters();
    }

    /// The machine loses its power.
    pub fn kill(&self) {
        let generation = self.state.borrow().generation + 1;
        *self.state.borrow_mut() = State { generation, ..State::default() };
        self.changed.notify_one();
        self.ended.notify_waiters();
    }
}

impl Guard for SimGuardian {
    fn started(&self, _pid: u32) -> Option<u64> {
        Some(1)
    }

    async fn call(&mut self, request: Request) -> Result<Ack, String> {
        tokio::time::sleep(TRIP).await;
        while self.state.borrow().frozen {
            tokio::time::sleep(TRIP * 10).await;
        }
        let now = self.clock.now();
        let mut state = self.state.borrow_mut();
        self.met = (!state.absent).then_some(state.generation);
        if state.absent {
            return Err("it cannot be started".to_owned());
        }
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
        Ok(Ack {
            taken,
            armed_until: state.deadline,
            guardian: state.generation,
            last: state.last,
            granted: Granted::default(),
        })
    }

    async fn gone(&mut self) {
        let Some(met) = self.met else { return std::future::pending().await };
        while self.state.borrow().generation == met {
            self.ended.notified().await;
        }
        self.met = None;
    }
}
