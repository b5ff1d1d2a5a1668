//! Where a rig's programs are: on loopback, or each in a network namespace of its own on one bridge.
//!
//! ```text
//!   our namespace: bridge, HAProxy, clients
//!      │          │           │
//!    veth       veth        veth        cut: the bridge's end is taken off the bridge
//!      │          │           │
//!   n1: agent,  n2: ...     etcd        deaf: one neighbour's hardware address is a wrong one
//!   PostgreSQL
//! ```
//!
//! The namespaces have no names: one lives as long as a process in it or a value here does, and the kernel removes it then,
//! also after a SIGKILL.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::Trouble;
use super::process::{clean, output};

const BRIDGE: &str = "bridge0";
/// The device of a host, in its namespace.
const DEVICE: &str = "wire0";
/// A hardware address that nobody has.
const NOBODY: &str = "02:00:00:00:00:ff";
const PATIENCE: Duration = Duration::from_secs(10);

/// The network of the namespaces, for access rules.
pub const NETWORK: &str = "10.231.0.0/24";

const fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 231, 0, last)
}

/// Moves this process into a namespace of its own that has a bridge. Call it before the first thread starts.
///
/// # Errors
/// We are not root, or the kernel has no bridges; then there is no network but loopback to be tested on.
pub fn leave() -> Result<(), Trouble> {
    let why = "network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)";
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Trouble::new(format!("{why}: unshare: {e}")))?;
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["addr", "add", &format!("{}/24", address(254)), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

fn ip(args: &[&str]) -> Result<(), Trouble> {
    let out = output(clean("ip").args(args), PATIENCE)?;
    if out.status.success() {
        return Ok(());
    }
    Err(Trouble::new(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim())))
}

/// A place where programs run.
#[derive(Debug)]
pub struct Host {
    address: Ipv4Addr,
    wire: Option<Wire>,
}

#[derive(Debug)]
struct Wire {
    /// The bridge's end.
    port: String,
    space: File,
}

impl Host {
    /// Our own namespace's loopback.
    #[must_use]
    pub fn loopback() -> Self {
        Host { address: Ipv4Addr::LOCALHOST, wire: None }
    }

    /// A new namespace, wired to the bridge that [`leave`] made.
    ///
    /// # Errors
    /// As [`leave`]; or more than 250 hosts in this process's life.
    pub fn wired() -> Result<Self, Trouble> {
        static LAST: AtomicU8 = AtomicU8::new(0);
        let number = LAST.fetch_add(1, Ordering::SeqCst) + 1;
        if number > 250 {
            return Err(Trouble::new("no address is left for another namespace"));
        }
        let space = elsewhere(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Trouble::new(format!("a network namespace: {e}")))?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })?;
        let port = format!("port{number}");
        let there = format!("/proc/{}/fd/{}", std::process::id(), space.as_raw_fd());
        ip(&["link", "add", &port, "type", "veth", "peer", "name", DEVICE, "netns", &there])?;
        let host = Host { address: address(number), wire: Some(Wire { port: port.clone(), space }) };
        ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
        host.within(|| {
            ip(&["link", "set", "lo", "up"])?;
            ip(&["addr", "add", &format!("{}/24", address(number)), "dev", DEVICE])?;
            ip(&["link", "set", DEVICE, "up"])
        })?;
        Ok(host)
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Does `f` there: what it starts stays there.
    ///
    /// # Errors
    /// As `f`, or the namespace cannot be entered.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> Result<T, Trouble> + Send) -> Result<T, Trouble> {
        let Some(wire) = &self.wire else { return f() };
        elsewhere(|| {
            setns(&wire.space, CloneFlags::CLONE_NEWNET).map_err(|e| Trouble::new(format!("setns: {e}")))?;
            f()
        })
    }

    fn wire(&self) -> Result<&Wire, Trouble> {
        self.wire.as_ref().ok_or_else(|| Trouble::new("a host on loopback has no wire to cut"))
    }

    /// From now on no packet leaves or reaches it; nobody is told.
    ///
    /// # Errors
    /// It is on loopback.
    pub fn cut(&self) -> Result<(), Trouble> {
        ip(&["link", "set", &self.wire()?.port, "nomaster"])
    }

    /// Ends [`Host::cut`].
    ///
    /// # Errors
    /// It is on loopback.
    pub fn mend(&self) -> Result<(), Trouble> {
        ip(&["link", "set", &self.wire()?.port, "master", BRIDGE])
    }

    /// From now on nothing that it sends reaches `other`; nobody is told.
    ///
    /// # Errors
    /// It is on loopback.
    pub fn cut_from(&self, other: Ipv4Addr) -> Result<(), Trouble> {
        self.wire()?;
        self.within(|| {
            ip(&["neigh", "replace", &other.to_string(), "lladdr", NOBODY, "dev", DEVICE, "nud", "permanent"])
        })
    }

    /// Ends [`Host::cut_from`].
    ///
    /// # Errors
    /// It is on loopback, or was not cut from `other`.
    pub fn mend_to(&self, other: Ipv4Addr) -> Result<(), Trouble> {
        self.wire()?;
        self.within(|| ip(&["neigh", "del", &other.to_string(), "dev", DEVICE]))
    }
}

/// Does `f` in a thread of its own, which alone a changed namespace concerns.
fn elsewhere<T: Send>(f: impl FnOnce() -> Result<T, Trouble> + Send) -> Result<T, Trouble> {
    let done = thread::scope(|scope| scope.spawn(f).join());
    done.unwrap_or_else(|_| Err(Trouble::new("a thread in a network namespace panicked")))
}
