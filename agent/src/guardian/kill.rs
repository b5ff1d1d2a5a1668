//! Ending a server from outside, whatever state it is in: no allocation, no lock, no file of the data directory.
//!
//! A process belongs to the server if it is a child of the postmaster, or a `postgres` that works in the data directory:
//! the second finds a postmaster that was started after the last word of the agent, and the orphans of one that died.

use std::ffi::CStr;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, readlinkat_raw, seek};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The longest path that is compared; longer ones cannot be opened either (`PATH_MAX`).
const PATH: usize = 4096;

/// Finds and signals the processes of one data directory.
pub(super) struct Hunter {
    proc: OwnedFd,
    data_dir: Vec<u8>,
    me: u32,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    dead: bool,
    parent: u32,
    pub(super) started: u64,
    named_postgres: bool,
}

/// A verified postmaster.
pub(super) struct Postmaster {
    pub(super) pid: u32,
    handle: OwnedFd,
}

impl Postmaster {
    /// It has ended, reaped or not.
    pub(super) fn is_gone(&self) -> bool {
        has_ended(self.handle.as_fd())
    }

    pub(super) fn signal(&self, signal: Signal) {
        // That it has gone meanwhile is fine, and there is nobody to tell about anything else.
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

fn has_ended(handle: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(handle, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}

impl Hunter {
    pub(super) fn of(data_dir: Vec<u8>) -> std::io::Result<Hunter> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        Ok(Hunter { proc, data_dir, me: std::process::id() })
    }

    /// The postmaster with this id and start time, held from now on: its id cannot be given to another while we look.
    pub(super) fn postmaster(&self, pid: u32, started: u64) -> Option<Postmaster> {
        let handle = open(pid).ok()?;
        let stat = self.stat(pid)?;
        (stat.started == started && !stat.dead).then_some(Postmaster { pid, handle })
    }

    /// Sends `signal` to every living process of the server but the postmaster itself, and tells how many there were.
    /// `None` signals nobody: it only counts.
    pub(super) fn children(&self, postmaster: Option<&Postmaster>, signal: Option<Signal>) -> u32 {
        // A postmaster that has ended has no children any more, and its id may be another's.
        let parent = postmaster.filter(|postmaster| !postmaster.is_gone()).map(|postmaster| postmaster.pid);
        let mut found: u32 = 0;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
        if seek(&self.proc, SeekFrom::Start(0)).is_err() {
            return 0;
        }
        let mut entries = RawDir::new(&self.proc, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            let Some(pid) = number(entry.file_name().to_bytes()).and_then(|pid| u32::try_from(pid).ok()) else {
                continue;
            };
            if pid != self.me && Some(pid) != parent && self.belongs(pid, parent) {
                found = found.saturating_add(u32::from(self.signal(pid, parent, signal)));
            }
        }
        found
    }

    fn belongs(&self, pid: u32, parent: Option<u32>) -> bool {
        let Some(stat) = self.stat(pid).filter(|stat| !stat.dead) else { return false };
        Some(stat.parent) == parent || stat.named_postgres && self.works_here(pid)
    }

    /// First the handle, then the check once more: what was verified cannot become another process afterwards.
    fn signal(&self, pid: u32, parent: Option<u32>, signal: Option<Signal>) -> bool {
        match open(pid) {
            Ok(handle) if self.belongs(pid, parent) => {
                if let Some(signal) = signal {
                    let _ = pidfd_send_signal(&handle, signal); // It may have ended meanwhile.
                }
                true
            }
            Ok(_) | Err(Errno::SRCH) => false,
            // No descriptor to be had: counted, and tried again.
            Err(_) => true,
        }
    }

    /// The start time and more of a process.
    pub(super) fn stat(&self, pid: u32) -> Option<Stat> {
        let mut path = [0; 32];
        let path = path_of(&mut path, pid, "stat")?;
        let file = openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = [0; 1024];
        let length = rustix::io::read(&file, &mut text).ok()?;
        parse(text.get(..length)?)
    }

    /// The kernel tells this without asking the disk.
    fn works_here(&self, pid: u32) -> bool {
        let mut path = [0; 32];
        let Some(path) = path_of(&mut path, pid, "cwd") else { return false };
        let mut target = [MaybeUninit::<u8>::uninit(); PATH];
        readlinkat_raw(&self.proc, path, &mut target).is_ok_and(|(target, _)| *target == *self.data_dir)
    }
}

fn open(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty())
}

/// `PID/name`, in a buffer.
fn path_of<'a>(buffer: &'a mut [u8; 32], pid: u32, name: &str) -> Option<&'a CStr> {
    let mut rest = buffer.as_mut_slice();
    write!(rest, "{pid}/{name}\0").ok()?;
    CStr::from_bytes_until_nul(buffer).ok()
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// proc(5): pid (name) state ppid ... starttime is the 22nd; the name may hold anything, so the last parenthesis ends it.
fn parse(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let name = text.get(open..close)?;
    let mut fields = text.get(close..)?.split(|byte| *byte == b' ').skip(1);
    let dead = matches!(fields.next()?, b"Z" | b"X");
    let parent = u32::try_from(number(fields.next()?)?).ok()?;
    let started = number(fields.nth(17)?)?;
    let has = |word: &[u8]| name.windows(word.len()).any(|part| part == word);
    Some(Stat { dead, parent, started, named_postgres: has(b"postgres") || has(b"postmaster") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let line = |name: &str| format!("7 ({name}) S 3 7 7 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 98765 11 22\n");
        let stat = parse(line("postgres").as_bytes()).unwrap();
        assert_eq!(stat, Stat { dead: false, parent: 3, started: 98_765, named_postgres: true });
        assert!(!parse(line("a) Z 9 (b").as_bytes()).unwrap().named_postgres);
        assert_eq!(parse(line("a) Z 9 (b").as_bytes()).unwrap().parent, 3);
        assert_eq!(parse(b"7 (x"), None);
    }

    #[test]
    fn children_are_found_and_killed_and_others_are_not() {
        let mut parent =
            std::process::Command::new("sh").args(["-c", "sleep 1000 & sleep 1000 & wait"]).spawn().unwrap();
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let hunter = Hunter::of(b"/nowhere".to_vec()).unwrap();
        let started = hunter.stat(parent.id()).unwrap().started;
        assert!(hunter.postmaster(parent.id(), started + 1).is_none(), "another process of that id");
        let postmaster = hunter.postmaster(parent.id(), started).unwrap();
        while hunter.children(Some(&postmaster), None) < 2 {
            std::thread::yield_now();
        }
        postmaster.signal(Signal::STOP);
        assert_eq!(hunter.children(Some(&postmaster), Some(Signal::KILL)), 2);
        while hunter.children(Some(&postmaster), None) > 0 {
            std::thread::yield_now();
        }
        assert!(!postmaster.is_gone());
        postmaster.signal(Signal::KILL);
        parent.wait().unwrap();
        assert!(postmaster.is_gone());
        assert!(other.try_wait().unwrap().is_none(), "a stranger is left alone");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
