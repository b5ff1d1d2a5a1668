//! Process 1 of a container: a parent that only reaps and forwards, and a child that does the work (config.md 11.3).
//!
//! An unreaped dead postmaster looks alive, and process 1 inherits every orphan. The agent itself must not reap strangers:
//! it would take the end of its own children away from whoever waits for them.

use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

/// Marks the child, which is not process 1 in any case; a fork that went wrong must not fork for ever.
const CHILD: &str = "REGENT_WORKS";

const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGABRT,
    Signal::SIGTERM,
];

/// When this is process 1: runs the agent as a child, and returns its status. Otherwise `None`, at once.
#[must_use]
pub fn as_process_one() -> Option<ExitCode> {
    if getpid() != Pid::from_raw(1) || std::env::var_os(CHILD).is_some() {
        return None;
    }
    Some(match parent() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            tracing::error!("process 1: {error}");
            ExitCode::FAILURE
        }
    })
}

fn parent() -> Result<u8, String> {
    let mut signals = SigSet::empty();
    for signal in FORWARDED {
        signals.add(signal);
    }
    signals.add(Signal::SIGCHLD);
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    // Started before the signals are blocked: the child would inherit the mask.
    let child = Command::new(program).args(std::env::args_os().skip(1)).env(CHILD, "1").spawn();
    let child = child.map_err(|error| error.to_string())?;
    let child = Pid::from_raw(i32::try_from(child.id()).map_err(|error| error.to_string())?);
    signals.thread_block().map_err(|error| error.to_string())?;
    loop {
        if let Some(status) = reap(child) {
            return Ok(status);
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(Errno::EINTR) => {}
            Ok(signal) => drop(kill(child, signal)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Reaps whoever ended; tells the status of the agent once it was among them.
fn reap(agent: Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == agent => return Some(u8::try_from(status).unwrap_or(1)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == agent => {
                return Some(128u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0)));
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}
