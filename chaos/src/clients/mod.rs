//! Clients that work all the time, whatever happens to the cluster, and remember everything.
//!
//! ```text
//!   rows    one row each, by three ways: HAProxy, the first node that takes writes, each node's own socket
//!   lists   serializable transactions that append and read        through HAProxy
//!   money   transfers; looks at all accounts                      through HAProxy; on standbys too
//!   counts  increments                                            through HAProxy's other check form
//!   checks  GET /primary                                          each node's REST API
//! ```

mod checks;
mod link;
mod work;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use regent_tests::rig::sql::Target;
use regent_tests::rig::{Node, Rig, Trouble};
use regent_tests::rng::Rng;
use tokio_postgres::Config;
use tokio_postgres::config::TargetSessionAttrs;

use crate::history::{Clock, History, Way};
use link::{Link, Patience, config};
pub use work::{ACCOUNTS, MONEY, TABLES};

/// Where clients connect to.
#[derive(Clone, Debug)]
pub struct Doors {
    /// The primary, as `option httpchk` finds it.
    pub primary: Target,
    /// The primary, as `tcp-check` finds it.
    pub primary_by_tcp: Target,
    /// Some standby.
    pub standbys: Target,
    /// Every node, by the address that clients have.
    pub nodes: Vec<Target>,
    /// Every node's own socket.
    pub sockets: Vec<Config>,
    /// Every node's REST API.
    pub rest: Vec<SocketAddr>,
}

impl Doors {
    /// The sockets of a rig's nodes.
    #[must_use]
    pub fn sockets(rig: &Rig) -> Vec<Config> {
        let socket = |node: &Node| {
            let mut config = config("chaos at the node");
            config.host_path(node.dir()).port(node.ports().postgres);
            // A standby's refusals would fill its log.
            config.options("-c log_min_messages=fatal");
            config
        };
        rig.nodes().iter().map(socket).collect()
    }
}

/// What all clients share.
pub(crate) struct Shared {
    clock: Clock,
    stop: AtomicBool,
    history: Mutex<History>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients at work on a thread of their own; they end when dropped.
pub struct Crew {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Crew {
    /// Sends all of them to work; [`TABLES`] exist.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(doors: &Doors, clock: Clock, seed: u64) -> Result<Self, Trouble> {
        let shared = Arc::new(Shared { clock, stop: AtomicBool::new(false), history: Mutex::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (ours, doors) = (Arc::clone(&shared), doors.clone());
        let work = move || {
            runtime.block_on(tokio::task::LocalSet::new().run_until(all(ours, doors, seed)));
        };
        let thread = thread::Builder::new().name("clients".to_owned()).spawn(work)?;
        Ok(Crew { shared, thread: Some(thread) })
    }

    /// What they did so far.
    pub fn so_far<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.shared.history())
    }

    /// How many rows were acknowledged by one way so far.
    #[must_use]
    pub fn acknowledged(&self, way: Way) -> usize {
        self.so_far(|h| h.rows.iter().filter(|op| op.asked.way == way && op.outcome.done().is_some()).count())
    }

    /// Ends them, and returns all that they did.
    #[must_use]
    pub fn finish(mut self) -> History {
        self.end();
        std::mem::take(&mut *self.shared.history())
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.end();
    }
}

async fn all(shared: Arc<Shared>, doors: Doors, seed: u64) {
    let link = |hosts: Vec<Config>, patience| Link::new(Arc::clone(&shared), hosts, patience);
    let to = |target: Target| vec![target.config("chaos")];
    let read_write = |target: &Target| {
        let mut config = target.config("chaos");
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config
    };
    let mut crew = Vec::new();
    crew.push(tokio::task::spawn_local(work::rows(link(to(doors.primary), Patience::CLIENT), Way::Proxy)));
    let direct = doors.nodes.iter().map(read_write).collect();
    crew.push(tokio::task::spawn_local(work::rows(link(direct, Patience::SEVERAL_HOSTS), Way::Direct)));
    for (i, socket) in doors.sockets.iter().enumerate() {
        let link = link(vec![socket.clone()], Patience::ENDLESS);
        crew.push(tokio::task::spawn_local(work::rows(link, Way::Node(i))));
    }
    for i in 0..3 {
        let link = link(to(doors.primary), Patience::CLIENT);
        crew.push(tokio::task::spawn_local(work::lists(link, Rng::new(seed ^ (0x11 + i)))));
    }
    let link_for = |target| link(to(target), Patience::CLIENT);
    crew.push(tokio::task::spawn_local(work::transfers(link_for(doors.primary), Rng::new(seed ^ 0x21))));
    crew.push(tokio::task::spawn_local(work::looks(link_for(doors.primary))));
    crew.push(tokio::task::spawn_local(work::looks(link_for(doors.standbys))));
    for i in 0..2 {
        crew.push(tokio::task::spawn_local(work::counts(link_for(doors.primary_by_tcp), Rng::new(seed ^ (0x31 + i)))));
    }
    for (i, rest) in doors.rest.iter().enumerate() {
        crew.push(tokio::task::spawn_local(checks::ask(Arc::clone(&shared), i, *rest)));
    }
    for client in crew {
        // A client that panicked is missed in the history.
        let _ = client.await;
    }
}

/// The pause between two operations of one client.
const PACE: Duration = Duration::from_millis(25);
