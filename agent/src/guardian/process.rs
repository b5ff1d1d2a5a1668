//! The guardian process: one thread, one deadline.
//!
//! ```text
//!            arm                  stop_at                deadline            nobody left
//!   idle ──────────► armed (moves) ───────► SIGINT, armed ─────────► killing ───────────► idle, with a last action
//!    ▲                 │ disarm                │ nobody left          no order is taken
//!    ├─────────────────┘                       │
//!    └─────────────────────────────────────────┘ with a last action
//!   idle, and no agent for a minute: it ends
//! ```
//!
//! It outlives the agent: a session of its own, signals that end others blocked. It speaks to nobody else, opens no file of
//! the data directory, allocates nothing and takes no lock once it runs.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as NixSignal};
use regent_core::units::Instant;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::Signal;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use super::MARK;
use super::kill::{Hunter, Postmaster};
use super::wire::{Ack, Action, Granted, REQUEST, Request, Taken};
use crate::clock::boot_time;

/// How long it stays without an agent and without anything to guard.
const LINGER: Duration = Duration::from_secs(60);
/// ... when it has a last action to tell.
const LINGER_TO_TELL: Duration = Duration::from_secs(3600);
/// The pause between two rounds of killing, at first and later.
const ROUND: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(20)];
/// Children in uninterruptible sleep may keep us waiting; the postmaster goes after so long all the same.
const CHILDREN_FIRST: Duration = Duration::from_millis(100);
/// The most steps of catching up: a full queue of connections (`net.core.somaxconn`, 4096), each of them accepted, read and
/// found closed. Whoever goes on talking has been heard by then.
const CATCH_UP: u32 = 3 * 4096;

/// When this process was started as a guardian: guards until nothing is left to do. Otherwise `None`, at once.
#[must_use]
pub fn as_guardian() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != MARK {
        return None;
    }
    let data_dir = args.next()?.into_vec();
    // The agent hears of it: nobody answers.
    Some(if guard(data_dir).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn guard(data_dir: Vec<u8>) -> std::io::Result<()> {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let _ = std::fs::write("/proc/self/comm", "regent-guardian"); // For people who look for it.
    let _ = rustix::process::setsid(); // Refused to the leader of a group, which it then is already.
    let _ = rustix::process::chdir("/"); // No file system stays busy for us.
    let mut ignored = SigSet::all();
    ignored.remove(NixSignal::SIGSEGV);
    ignored.remove(NixSignal::SIGBUS);
    ignored.remove(NixSignal::SIGABRT);
    ignored.thread_block()?;
    let hunter = Hunter::of(data_dir)?;
    hunter.children(None, None); // Once for nothing: its pages are there when it counts.
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let guardian = Guardian {
        hunter,
        listener,
        timer,
        granted: ask_for_more(),
        agent: None,
        postmaster: None,
        stop_at: None,
        deadline: None,
        stopping: None,
        acting: None,
        last: None,
        idle_since: boot_time(),
    };
    guardian.run();
    Ok(())
}

/// What makes it run when nothing else does; each only where permitted.
fn ask_for_more() -> Granted {
    // Pages are locked as they are used: the whole program would be many megabytes.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Granted {
        memory_locked: mlockall(flags).is_ok(),
        real_time: real_time(),
        oom_spared: std::fs::write("/proc/self/oom_score_adj", "-1000").is_ok(),
    }
}

#[expect(unsafe_code, reason = "neither std, nix nor rustix offers sched_setscheduler(2)")]
fn real_time() -> bool {
    use nix::libc::{SCHED_FIFO, sched_param, sched_setscheduler};
    let lowest = sched_param { sched_priority: 1 };
    // SAFETY: the call reads one initialised struct that outlives it, and changes nothing of ours but the scheduling class.
    unsafe { sched_setscheduler(0, SCHED_FIFO, &raw const lowest) == 0 }
}

fn has_come(at: Option<Instant>) -> bool {
    at.is_some_and(|at| boot_time() >= at)
}

struct Agent {
    stream: UnixStream,
    inbox: [u8; REQUEST],
    filled: usize,
}

#[derive(Clone, Copy)]
struct Acting {
    since: Instant,
    /// The most that were there at once; every one is signalled in every round until it is gone.
    children: u32,
    postmaster: bool,
}

struct Guardian {
    hunter: Hunter,
    listener: UnixListener,
    timer: OwnedFd,
    granted: Granted,
    agent: Option<Agent>,
    postmaster: Option<Postmaster>,
    /// When a fast stop is due; none once it was ordered.
    stop_at: Option<Instant>,
    deadline: Option<Instant>,
    /// Since when this postmaster has its order to stop.
    stopping: Option<Instant>,
    acting: Option<Acting>,
    last: Option<Action>,
    idle_since: Instant,
}

impl Guardian {
    fn run(mut self) {
        loop {
            // Time first, whoever else wants something.
            if self.is_due() {
                self.catch_up();
            }
            let now = boot_time();
            if has_come(self.deadline) {
                self.begin(now);
            } else if self.is_due() {
                self.stop(now);
            }
            if let Some(acting) = self.acting {
                self.round(acting, now);
            } else {
                self.watch();
            }
            if self.agent.is_some() || self.deadline.is_some() || self.acting.is_some() {
                self.idle_since = now;
            }
            let linger = if self.last.is_some() { LINGER_TO_TELL } else { LINGER };
            // One that slept through its time looks once more for whom it should stay.
            if now.since(self.idle_since) >= linger && !self.welcome() {
                return;
            }
            let timeout = match self.acting {
                Some(acting) if now.since(acting.since) < Duration::from_secs(1) => ROUND[0],
                Some(_) => ROUND[1],
                None if self.stopping.is_some() => ROUND[1],
                None => linger,
            };
            self.wait(timeout);
            // One step at a time: whoever talks without end does not hold up the time. The next one comes in when the present
            // one has said all: it may have hung up, and its successor would be turned away together with what it has to say.
            let _ = self.hear() || self.welcome();
        }
    }

    fn wait(&self, timeout: Duration) {
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        let timer = PollFd::new(&self.timer, PollFlags::IN);
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        // An error (a signal, no memory) is one more turn.
        let _ = match &self.agent {
            Some(agent) => poll(&mut [listener, timer, PollFd::new(&agent.stream, PollFlags::IN)], Some(&timeout)),
            None => poll(&mut [listener, timer], Some(&timeout)),
        };
    }

    // --- the deadline ---

    fn set(&mut self, stop_at: Option<Instant>, deadline: Option<Instant>) -> std::io::Result<()> {
        let next = stop_at.into_iter().chain(deadline).min();
        let at = next.and_then(|at| Timespec::try_from(at.0).ok()).unwrap_or_default();
        let spec = Itimerspec { it_interval: Timespec::default(), it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        (self.stop_at, self.deadline) = (stop_at, deadline);
        Ok(())
    }

    fn is_due(&self) -> bool {
        has_come(self.stop_at) || has_come(self.deadline)
    }

    /// We may have been stopped or starved while the agent was not: what it said meanwhile lies in the sockets, and the
    /// server has every right to live if its lease was renewed beyond now.
    fn catch_up(&mut self) {
        for _ in 0..CATCH_UP {
            if !self.is_due() || !(self.hear() || self.welcome()) {
                return;
            }
        }
    }

    /// Orders a fast stop: clients are cut, and the standbys get what was acknowledged before the server ends. Until the
    /// deadline it has time, and the deadline may still move.
    fn stop(&mut self, now: Instant) {
        if let Some(postmaster) = self.postmaster.as_ref().filter(|postmaster| !postmaster.is_gone()) {
            postmaster.signal(Signal::INT);
            self.stopping = Some(now);
        }
        let _ = self.set(None, self.deadline);
        self.stop_at = None; // Also if the timer did not listen.
    }

    /// Whether a stop that was ordered has done it.
    fn watch(&mut self) {
        let Some(since) = self.stopping else { return };
        let gone = self.postmaster.as_ref().is_none_or(Postmaster::is_gone);
        if gone && self.hunter.children(None, None) == 0 {
            self.done(since, 0);
        }
    }

    fn done(&mut self, since: Instant, killed: u32) {
        self.last = Some(Action { at: since, took: boot_time().since(since), killed });
        let _ = self.set(None, None);
        (self.stop_at, self.deadline, self.stopping, self.acting, self.postmaster) = (None, None, None, None, None);
    }

    fn begin(&mut self, now: Instant) {
        match &self.postmaster {
            Some(postmaster) if !postmaster.is_gone() => postmaster.signal(Signal::STOP),
            // Unknown, or replaced: all are stopped before the first is killed, so that none starts another.
            Some(_) | None => drop(self.hunter.children(None, Some(Signal::STOP))),
        }
        let _ = self.set(None, None);
        (self.stop_at, self.deadline) = (None, None); // Also if the timer did not listen.
        self.acting = Some(Acting { since: now, children: 0, postmaster: false });
    }

    /// Kills who is left; ends the action when nobody is.
    fn round(&mut self, mut acting: Acting, now: Instant) {
        let children = self.hunter.children(self.postmaster.as_ref(), Some(Signal::KILL));
        acting.children = acting.children.max(children);
        let mut left = children > 0;
        if let Some(postmaster) = self.postmaster.as_ref().filter(|postmaster| !postmaster.is_gone()) {
            if !left || now.since(acting.since) >= CHILDREN_FIRST {
                postmaster.signal(Signal::KILL);
                acting.postmaster = true;
            }
            left = true;
        }
        if left {
            self.acting = Some(acting);
            return;
        }
        let killed = acting.children.saturating_add(u32::from(acting.postmaster));
        self.done(self.stopping.unwrap_or(acting.since), killed);
    }

    // --- the agent ---

    /// Lets the next one in, if somebody waits; tells whether.
    fn welcome(&mut self) -> bool {
        let Ok((mut stream, _)) = self.listener.accept() else { return false };
        let same_user =
            rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if !same_user || stream.set_nonblocking(true).is_err() {
            return true;
        }
        if self.agent.is_some() {
            let _ = stream.write(&self.ack(Taken::Taken).encode()); // Whether it hears that is its own affair.
            return true;
        }
        self.agent = Some(Agent { stream, inbox: [0; REQUEST], filled: 0 });
        true
    }

    /// Reads once, and answers a request that is complete; tells whether there was anything, be it the end.
    fn hear(&mut self) -> bool {
        let Some(agent) = &mut self.agent else { return false };
        let Some(room) = agent.inbox.get_mut(agent.filled..) else { return false };
        match agent.stream.read(room) {
            Ok(0) => self.agent = None,
            Ok(more) => {
                agent.filled = agent.filled.saturating_add(more);
                if agent.filled >= REQUEST {
                    agent.filled = 0;
                    let request = Request::decode(&agent.inbox);
                    self.answer(request);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.agent = None,
        }
        true
    }

    fn answer(&mut self, request: Option<Request>) {
        if self.acting.is_none() {
            self.watch(); // The agent may have seen the end before us.
        }
        let taken = match request {
            Some(Request::Status) => Taken::Done,
            None => Taken::Unknown,
            Some(Request::Arm { .. } | Request::Disarm { .. }) if self.acting.is_some() => Taken::Acting,
            // True whenever it is read: the lease was acknowledged until then.
            Some(Request::Arm { postmaster, stop_at, deadline }) => self.arm(postmaster, stop_at, deadline),
            // What was harmless when it was said need not be so now.
            Some(Request::Disarm { .. }) if has_come(self.deadline) => Taken::Acting,
            Some(Request::Disarm { down }) => self.disarm(down),
        };
        let ack = self.ack(taken).encode();
        if let Some(agent) = &mut self.agent
            && !matches!(agent.stream.write(&ack), Ok(written) if written == ack.len())
        {
            self.agent = None;
        }
    }

    fn arm(&mut self, postmaster: Option<(u32, u64)>, stop_at: Instant, deadline: Instant) -> Taken {
        if has_come(Some(deadline)) {
            return Taken::TooLate;
        }
        let before = self.postmaster.as_ref().filter(|known| !known.is_gone()).map(|known| known.pid);
        match postmaster {
            Some((pid, started)) => match self.hunter.postmaster(pid, started) {
                Some(verified) => self.postmaster = Some(verified),
                None => return Taken::NoSuchServer,
            },
            None => self.postmaster = None,
        }
        // An order to stop stands for the server that got it, and for no other.
        self.stopping = self.stopping.filter(|_| before.is_some() && before == postmaster.map(|(pid, _)| pid));
        let stop_at = Some(stop_at).filter(|_| postmaster.is_some() && self.stopping.is_none());
        if self.set(stop_at, Some(deadline)).is_ok() { Taken::Done } else { Taken::Unknown }
    }

    fn disarm(&mut self, down: bool) -> Taken {
        let here = |guardian: &Guardian| {
            let postmaster = guardian.postmaster.as_ref();
            postmaster.is_some_and(|known| !known.is_gone()) || guardian.hunter.children(postmaster, None) > 0
        };
        if down && self.deadline.is_some() && here(self) {
            return Taken::StillRuns;
        }
        let _ = self.set(None, None);
        (self.stop_at, self.deadline, self.stopping, self.postmaster) = (None, None, None, None);
        Taken::Done
    }

    fn ack(&self, taken: Taken) -> Ack {
        Ack { taken, armed_until: self.deadline, guardian: std::process::id(), last: self.last, granted: self.granted }
    }
}
