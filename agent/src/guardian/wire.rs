//! What agent and guardian say to each other: fixed sizes, little endian, one answer to each request.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regent_core::units::Instant;

/// Changes when the two could misunderstand each other.
const VERSION: u32 = 1;
/// Bytes of a request.
pub(super) const REQUEST: usize = 32;
/// Bytes of an answer.
pub(super) const ACK: usize = 64;

/// What the agent asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop and kill the server at these moments, unless told otherwise before.
    Arm {
        /// The postmaster and its start time in clock ticks (field 22 of `/proc/PID/stat`); `None`: it is yet to start.
        postmaster: Option<(u32, u64)>,
        /// When a postmaster that is known gets a fast stop; travels as microseconds before the deadline.
        stop_at: Instant,
        /// The fence deadline: who is left is killed.
        deadline: Instant,
    },
    /// The server cannot write any more; `down`: it has ended, which the guardian verifies.
    Disarm {
        /// No process of it is left.
        down: bool,
    },
    /// How are you?
    Status,
}

/// How a request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Done.
    Done,
    /// The deadline lies in the past; what stood before stands.
    TooLate,
    /// There is no such postmaster; what stood before stands.
    NoSuchServer,
    /// Processes of the server are left; what stood before stands.
    StillRuns,
    /// The deadline has come, and the server is being killed.
    Acting,
    /// Another agent feeds this guardian.
    Taken,
    /// Not understood: of another version.
    Unknown,
}

/// What the guardian did, as nobody moved the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// When it began, by the boot-time clock.
    pub at: Instant,
    /// How long until no process was left.
    pub took: Duration,
    /// How many processes it killed; 0: the fast stop sufficed.
    pub killed: u32,
}

/// What the operating system granted to the guardian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Its memory is locked.
    pub memory_locked: bool,
    /// It runs in a real-time class.
    pub real_time: bool,
    /// The OOM killer spares it.
    pub oom_spared: bool,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// How the request was taken.
    pub taken: Taken,
    /// Until when it is armed now.
    pub armed_until: Option<Instant>,
    /// The guardian's own process id.
    pub guardian: u32,
    /// What it did last.
    pub last: Option<Action>,
    /// What it was granted.
    pub granted: Granted,
}

const TAKEN: [Taken; 7] =
    [Taken::Done, Taken::TooLate, Taken::NoSuchServer, Taken::StillRuns, Taken::Acting, Taken::Taken, Taken::Unknown];

fn nanos(at: Instant) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

fn instant(nanos: u64) -> Option<Instant> {
    (nanos != 0).then(|| Instant(Duration::from_nanos(nanos)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Writes words one after the other; all messages have room for theirs.
fn packed<const N: usize>(words: [u32; 4], longs: &[u64]) -> [u8; N] {
    let mut bytes = [0; N];
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    let longs = longs.iter().flat_map(|long| long.to_le_bytes());
    for (byte, value) in bytes.iter_mut().zip(words.chain(longs)) {
        *byte = value;
    }
    bytes
}

impl Request {
    pub(super) fn encode(self) -> [u8; REQUEST] {
        match self {
            Request::Arm { postmaster, stop_at, deadline } => {
                let (pid, started) = postmaster.unwrap_or_default();
                let early = u32::try_from(stop_at.until(deadline).as_micros()).unwrap_or(u32::MAX);
                packed([VERSION, 1, pid, early], &[started, nanos(deadline)])
            }
            Request::Disarm { down } => packed([VERSION, 2, u32::from(down), 0], &[]),
            Request::Status => packed([VERSION, 3, 0, 0], &[]),
        }
    }

    pub(super) fn decode(bytes: &[u8; REQUEST]) -> Option<Request> {
        let pid = u32_at(bytes, 8);
        match (u32_at(bytes, 0), u32_at(bytes, 4)) {
            (VERSION, 1) => {
                let deadline = Instant(Duration::from_nanos(u64_at(bytes, 24)));
                Some(Request::Arm {
                    postmaster: (pid != 0).then(|| (pid, u64_at(bytes, 16))),
                    stop_at: deadline.minus(Duration::from_micros(u64::from(u32_at(bytes, 12)))),
                    deadline,
                })
            }
            (VERSION, 2) => Some(Request::Disarm { down: pid != 0 }),
            (VERSION, 3) => Some(Request::Status),
            _ => None,
        }
    }
}

impl Ack {
    pub(super) fn encode(&self) -> [u8; ACK] {
        let taken = TAKEN.iter().position(|taken| *taken == self.taken).and_then(|at| u32::try_from(at).ok());
        let Granted { memory_locked, real_time, oom_spared } = self.granted;
        let bits = u32::from(memory_locked) | u32::from(real_time) << 1 | u32::from(oom_spared) << 2;
        let last = self.last.map_or([0; 3], |last| {
            [nanos(last.at), u64::try_from(last.took.as_nanos()).unwrap_or(u64::MAX), u64::from(last.killed)]
        });
        let [at, took, killed] = last;
        let armed = self.armed_until.map_or(0, nanos);
        packed([VERSION, taken.unwrap_or(6), self.guardian, bits], &[armed, at, took, killed])
    }

    pub(super) fn decode(bytes: &[u8; ACK]) -> Option<Ack> {
        if u32_at(bytes, 0) != VERSION {
            return None;
        }
        let bits = u32_at(bytes, 12);
        Some(Ack {
            taken: *TAKEN.get(usize::try_from(u32_at(bytes, 4)).ok()?)?,
            armed_until: instant(u64_at(bytes, 16)),
            guardian: u32_at(bytes, 8),
            last: instant(u64_at(bytes, 24)).map(|at| Action {
                at,
                took: Duration::from_nanos(u64_at(bytes, 32)),
                killed: u32::try_from(u64_at(bytes, 40)).unwrap_or(u32::MAX),
            }),
            granted: Granted { memory_locked: bits & 1 != 0, real_time: bits & 2 != 0, oom_spared: bits & 4 != 0 },
        })
    }
}

/// The directory as the kernel names it, also before it exists.
pub(super) fn canonical(data_dir: &Path) -> PathBuf {
    if let Ok(there) = data_dir.canonicalize() {
        return there;
    }
    match (data_dir.parent().map(canonical), data_dir.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        (_, _) => data_dir.to_owned(),
    }
}

/// The address of the guardian of this (canonical) data directory: one per user and per space of process ids, as containers
/// may share a network, a user and a path and yet not see each other's processes.
pub(super) fn address(data_dir: &Path) -> std::io::Result<SocketAddr> {
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    // FNV-1a: the same in every version of this program, unlike the standard library's hasher.
    let bytes = data_dir.as_os_str().as_bytes().iter().chain([&0]).chain(space.as_os_str().as_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    SocketAddr::from_abstract_name(format!("regent-guardian-{}-{hash:016x}", nix::unistd::geteuid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let at = Instant(Duration::from_nanos(123_456_789_012));
        let stop_at = at.minus(Duration::from_micros(1_500_001));
        for request in [
            Request::Arm { postmaster: Some((42, 77)), stop_at, deadline: at },
            Request::Arm { postmaster: None, stop_at: at, deadline: at },
            Request::Disarm { down: true },
            Request::Disarm { down: false },
            Request::Status,
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for taken in TAKEN {
            let last = Some(Action { at, took: Duration::from_millis(7), killed: 9 });
            let granted = Granted { memory_locked: true, real_time: false, oom_spared: true };
            let ack = Ack { taken, armed_until: Some(at), guardian: 5, last, granted };
            assert_eq!(Ack::decode(&ack.encode()), Some(ack));
            let empty = Ack { armed_until: None, last: None, granted: Granted::default(), ..ack };
            assert_eq!(Ack::decode(&empty.encode()), Some(empty));
        }
        assert_eq!(Request::decode(&[9; REQUEST]), None);
        assert_eq!(Ack::decode(&[9; ACK]), None);
    }

    #[test]
    fn a_directory_has_its_name_before_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let (link, data) = (dir.path().join("link"), dir.path().join("link/data"));
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), &link).unwrap();
        let before = canonical(&data);
        std::fs::create_dir(&data).unwrap();
        assert_eq!(before, canonical(&data));
        let name = |path: &Path| address(path).unwrap().as_abstract_name().map(<[u8]>::to_vec);
        assert_eq!(name(&before), name(&canonical(&data)));
        assert_ne!(name(&before), name(dir.path()));
    }
}
