//! Processes that a rig starts: a log each, signals, and an end by process id.
//!
//! An agent's postmaster outlives it (that is the point of the agent). So that such an orphan is not left to a process 1 that
//! reaps when it likes (a dead postmaster would stay a zombie for seconds), a rig's process is a *subreaper*: orphans become
//! its children, and a thread reaps those that it did not start itself.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::programs::Account;
use super::{Trouble, canary, stray};

/// Children that a [`Process`] or [`output`] waits for itself; held while one is born, so that the reaper cannot come between.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn own() -> MutexGuard<'static, BTreeSet<i32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes this process the reaper of its orphaned descendants; once.
pub(super) fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without it tests are slower, no less right.
        let _ = nix::sys::prctl::set_child_subreaper(true);
        thread::spawn(|| {
            loop {
                reap();
                thread::sleep(Duration::from_millis(50));
            }
        });
    });
}

fn reap() {
    let me = std::process::id();
    let own = own();
    for process in stray::all().filter(|p| p.parent.cast_unsigned() == me && p.dead && !own.contains(&p.pid)) {
        let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
    }
}

fn spawn(command: &mut Command) -> Result<Child, Trouble> {
    let mut own = own();
    let child = command.spawn().map_err(|e| Trouble::new(format!("{}: {e}", command.get_program().display())))?;
    own.insert(child.id().cast_signed());
    Ok(child)
}

/// Runs a short program to its end, `within` at the most, and returns what it said.
///
/// # Errors
/// It cannot be run, or it takes too long (then it is killed).
///
/// # Panics
/// It said a secret ([`canary`]).
pub fn output(command: &mut Command, within: Duration) -> Result<Output, Trouble> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = command.get_program().display().to_string();
    let child = spawn(command)?;
    let pid = child.id().cast_signed();
    // A thread waits and reads; we keep the deadline.
    let waiter = thread::spawn(move || child.wait_with_output());
    let end = Instant::now() + within;
    while !waiter.is_finished() && Instant::now() < end {
        thread::sleep(Duration::from_millis(2));
    }
    let late = !waiter.is_finished();
    if late {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let out = waiter.join().map_err(|_| Trouble::new(format!("{name}: its reader panicked")))?;
    own().remove(&pid);
    if late {
        return Err(Trouble::new(format!("{name} took longer than {within:?}")));
    }
    let out = out?;
    canary::watch(&format!("the output of {name}"), &String::from_utf8_lossy(&out.stdout));
    canary::watch(&format!("the output of {name}"), &String::from_utf8_lossy(&out.stderr));
    Ok(out)
}

/// A long-running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    kept: bool,
}

impl Process {
    /// Starts `command` as `account` in a process group of its own (a terminal's Ctrl-C is ours, not its), its output appended
    /// to `log`.
    ///
    /// # Errors
    /// The program or the log cannot be opened.
    pub fn start(name: &str, account: Account, log: &Path, command: &mut Command) -> Result<Self, Trouble> {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.map_err(|e| Trouble::new(format!("{}: {e}", log.display())))?;
        account.apply(command);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = spawn(command)?;
        Ok(Process { name: name.to_owned(), log: log.to_path_buf(), child, kept: false })
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten()?;
        own().remove(&self.pid());
        Some(status)
    }

    /// Sends a signal; nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Kills it (SIGKILL) and waits.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().unwrap_or(ExitStatus::from_raw(0));
        own().remove(&self.pid());
        status
    }

    /// Leaves it running when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Its name and the end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        format!("--- {} (pid {})\n{}", self.name, self.pid(), tail(&self.log, 15))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            self.kill();
        }
    }
}

/// The last `lines` of a file; a missing file is empty.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    const ENOUGH: u64 = 64 * 1024;
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let size = file.metadata().map_or(0, |meta| meta.len());
        let _ = file.seek(SeekFrom::Start(size.saturating_sub(ENOUGH)));
        let _ = file.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// A command that does not inherit what would change its behaviour: our language, our colours, libpq's and the agent's variables.
pub fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["PG", "ETCD", "PATRONI_", "LC_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name.as_ref());
        }
    }
    command.env("LANG", "C.UTF-8").env("NO_COLOR", "1");
    command
}
