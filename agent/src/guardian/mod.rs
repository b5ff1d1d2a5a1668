//! The guardian: what stands between a frozen or killed agent and two primaries (DESIGN section 4, ha-rules 22.3 I3).
//!
//! ```text
//!   loop ──Fence──► feeder ──arm, disarm──► guardian process ──SIGINT before the deadline, SIGKILL at it──► PostgreSQL
//!   lease ──D─────►   │ (own thread)          survives the agent; the next agent finds it again
//!   loop ◄──View──────┘
//! ```

use std::time::Duration;

use regent_core::fence::Fence;
use regent_core::snapshot::LeaseView;
use regent_core::units::Instant;
use tokio::sync::watch;

use crate::clock::Clock;

mod client;
mod kill;
mod process;
mod wire;

pub use client::{Client, dismiss};
pub use process::as_guardian;
pub use wire::{Ack, Action, Granted, Request, Taken};

/// The first argument of a guardian.
const MARK: &str = "--guardian-of";

/// How often a guardian is asked for a sign of life. Its death is noticed without asking, and whoever needs it for a next step
/// gives it an order first: this finds only one that is stopped.
const PULSE: Duration = Duration::from_secs(5);
/// ... while it does not answer, or has not done what it should.
const AGAIN: Duration = Duration::from_millis(100);
/// A primary whose guardian stays away so long is worth an error in the log.
const WORTH_AN_ERROR: Duration = Duration::from_secs(3);

/// The way to a guardian; the simulation has another one.
pub trait Guard {
    /// The start time of the process `pid` in clock ticks since boot, by which it is told from others of its id.
    fn started(&self, pid: u32) -> Option<u64>;

    /// Asks, and returns its answer; finds or starts it if need be. Bounded by a deadline of its own.
    ///
    /// # Errors
    /// There is none, and why.
    async fn call(&mut self, request: Request) -> Result<Ack, String>;

    /// Waits for the end of the guardian that answered last; for ever when none did. May be dropped and called again.
    async fn gone(&mut self);
}

/// What the loop sees of the guardian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The last word of the loop that it has carried out.
    pub fence: Fence,
    /// Until when it is armed.
    pub armed_until: Option<Instant>,
    /// Why it does not answer, since when.
    pub problem: Option<(String, Instant)>,
    /// It has answered at least once.
    pub met: bool,
    /// What it did last.
    pub last: Option<Action>,
    /// Its process id.
    pub pid: u32,
}

/// What the loop needs of it.
#[derive(Debug)]
pub struct Channels {
    /// The loop's word.
    pub fences: watch::Sender<Fence>,
    /// What is known of the guardian.
    pub view: watch::Receiver<View>,
}

/// What to ask the guardian for. Also while it does not answer, as one that is merely stopped will hear it when it goes on.
fn request(guard: &impl Guard, fence: Fence, lease: LeaseView, known: &View) -> Request {
    match fence {
        Fence::Keep => Request::Status,
        Fence::Down => Request::Disarm { down: true },
        Fence::Off => Request::Disarm { down: false },
        Fence::Guard { pid, lease: held, promised, early } => {
            // A deadline that stands, or may stand, is moved only by a renewal of the lease that the key is known to hang on.
            let counts = held.is_some() && held == lease.id || known.met && known.armed_until.is_none();
            let postmaster = pid.and_then(|pid| Some((pid, guard.started(pid)?)));
            match lease.ends.filter(|_| counts).max(promised) {
                Some(deadline) => Request::Arm { postmaster, stop_at: deadline.minus(early), deadline },
                None => Request::Status,
            }
        }
    }
}

/// Feeds the guardian until `fences` is dropped.
pub async fn feed<G: Guard, C: Clock>(
    mut guard: G,
    clock: C,
    mut fences: watch::Receiver<Fence>,
    mut leases: watch::Receiver<LeaseView>,
    state: watch::Sender<View>,
) {
    let mut complained = false;
    let mut last_death = None;
    loop {
        let (fence, lease) = (*fences.borrow_and_update(), *leases.borrow_and_update());
        let before = state.borrow().clone();
        let wanted = request(&guard, fence, lease, &before);
        let answer = guard.call(wanted).await;
        let now = clock.now();
        let view = match answer {
            Ok(ack) => heard(&before, fence, wanted, &ack, now),
            Err(why) => {
                let since = before.problem.as_ref().map_or(now, |(_, since)| *since);
                View {
                    fence: Fence::Keep,
                    met: false,
                    armed_until: None,
                    problem: Some((why, since)),
                    ..before.clone()
                }
            }
        };
        match &view.problem {
            Some((why, since)) if !complained && now.since(*since) >= WORTH_AN_ERROR => {
                tracing::error!("no guardian: {why}. If this agent freezes, nobody stops PostgreSQL in time");
                complained = true;
            }
            Some(_) => {}
            None => complained = false,
        }
        let done = view.problem.is_none() && view.met && (view.fence == fence || fence == Fence::Keep);
        let at_once = view.met && !before.met && view.fence != fence;
        state.send_if_modified(|old| {
            let news = *old != view;
            old.clone_from(&view);
            news
        });
        if at_once {
            continue;
        }
        tokio::select! {
            biased;
            changed = fences.changed() => if changed.is_err() { return },
            changed = leases.changed() => if changed.is_err() { return },
            () = guard.gone() => {
                let now = clock.now();
                tracing::warn!(pid = view.pid, "the guardian has ended; another one is started");
                let problem = Some(("it has ended".to_owned(), now));
                state.send_replace(View { fence: Fence::Keep, met: false, armed_until: None, problem, ..view });
                // At once, unless they die one after the other.
                if last_death.replace(now).is_some_and(|last| now.since(last) < PULSE) {
                    tokio::time::sleep(AGAIN).await;
                }
            }
            () = tokio::time::sleep(if done { PULSE } else { AGAIN }) => {}
        }
    }
}

fn heard(before: &View, fence: Fence, wanted: Request, ack: &Ack, now: Instant) -> View {
    let armed_left = ack.armed_until.map(|until| now.until(until));
    if !before.met || before.pid != ack.guardian {
        let Granted { memory_locked, real_time, oom_spared } = ack.granted;
        tracing::info!(pid = ack.guardian, ?armed_left, memory_locked, real_time, oom_spared, "the guardian is there");
    }
    if let Some(action) = ack.last.filter(|action| before.last != Some(*action)) {
        let (ago, took, killed) = (now.since(action.at), action.took, action.killed);
        if killed == 0 {
            tracing::warn!(?ago, ?took, "the guardian has stopped PostgreSQL: the lease was not renewed in time");
        } else {
            tracing::warn!(?ago, ?took, killed, "the guardian has killed PostgreSQL: the lease had ended");
        }
    }
    let carried_out = match ack.taken {
        Taken::Done => match (fence, wanted) {
            // Asked for nothing: what stands is enough only if something stands.
            (Fence::Guard { .. }, Request::Status) => ack.armed_until.is_some(),
            (Fence::Keep | Fence::Guard { .. } | Fence::Down | Fence::Off, _) => true,
        },
        Taken::TooLate | Taken::NoSuchServer | Taken::StillRuns | Taken::Acting | Taken::Taken | Taken::Unknown => {
            false
        }
    };
    if carried_out && ack.armed_until.is_some() && before.armed_until.is_none() {
        tracing::info!(?armed_left, "the guardian is armed");
    }
    let problem = match ack.taken {
        Taken::Done | Taken::TooLate | Taken::NoSuchServer | Taken::StillRuns | Taken::Acting => None,
        Taken::Taken => Some("another agent feeds the guardian of this data directory"),
        Taken::Unknown => Some("the guardian that runs is of another version; it ends when its server is down"),
    };
    View {
        fence: if carried_out { fence } else { Fence::Keep },
        armed_until: ack.armed_until,
        problem: problem.map(|why| (why.to_owned(), before.problem.as_ref().map_or(now, |(_, since)| *since))),
        met: problem.is_none(),
        last: ack.last,
        pid: ack.guardian,
    }
}
