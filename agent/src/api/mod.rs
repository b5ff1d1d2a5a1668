//! The REST API (contract `rest-api.md`): answers from the published [`Status`], sends commands to the loop, touches
//! nothing else.
//!
//! ```text
//!            listen ──► connection ──► routes ─┬─► health, document, cluster, metrics ──► wire ──► client
//!   (accept, limits)  (first line,    (table)  │        all read one Moment:
//!                      hyper)                  │        the Status, seen at this very instant
//!                                              └─► operations ──► commands ──► the agent's loop
//! ```
//!
//! **Invariant:** between a read and its answer nothing waits on PostgreSQL, etcd, a file or the loop. The server has a
//! thread and a runtime of its own, so that an agent that is stuck still answers, and answers the truth: what ends by
//! the passing of time (the lease, the freshness of the Status) is compared with the clock at each request (promise P5).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use regent_core::units::Instant;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::agent;
use crate::config::LocalConfig;
use crate::failsafe::Door;
use crate::journal::Journal;
use crate::status::Status;

mod access;
mod cluster;
mod config;
mod connection;
mod document;
mod events;
mod health;
mod json;
mod listen;
mod metrics;
mod moment;
mod openapi;
mod operate;
mod operations;
mod params;
mod pgtime;
mod requests;
mod routes;
mod tls;
mod wire;

pub use access::{AllowList, Credentials};
pub use listen::{Listen, ListenError};
pub use tls::Tls;
pub use wire::ServerTokens;

/// Level of the contract that we speak, in the form that clients split at the dots (rest-api.md section 1).
pub const CONTRACT_VERSION: &str = "4.1.5";

/// Reads the boot-time clock. A closure, so that tests can hold the time in their hands.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// What the API asks of the agent's loop. The answer to the client has already been given, unless a variant says so.
#[derive(Debug)]
pub enum Command {
    /// For the loop.
    Loop(agent::Command),
    /// Read etcd now: the client waits for the answer.
    Read {
        /// What stands there.
        reply: oneshot::Sender<Result<regent_dcs::Read, regent_dcs::DcsError>>,
    },
    /// Write this into etcd, and say what came of it: the client waits for the answer.
    Write {
        /// What.
        write: regent_dcs::Write,
        /// What came of it.
        reply: oneshot::Sender<Result<regent_dcs::Written, regent_dcs::DcsError>>,
    },
}

/// What a listener is made of; a change needs a new one ([`spawn`] after [`Server::shutdown`]).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: Listen,
    /// Connections the kernel holds until we accept them; at least 128 are asked for (rest-api.md W16).
    pub backlog: u32,
    /// Connections held at once; beyond it the oldest that waits for a request is cut for each new one.
    pub max_connections: usize,
    /// A client has this long for its request line, as long again for the rest of its head, and as long from one answer to
    /// the end of the next request's head.
    pub head_time: Duration,
    /// What may change while it runs.
    pub policy: Policy,
}

impl Settings {
    /// The defaults of the contract for this address.
    #[must_use]
    pub fn at(listen: Listen) -> Settings {
        Settings {
            listen,
            backlog: 1024,
            max_connections: connection::default_limit(),
            head_time: Duration::from_secs(5),
            policy: Policy::default(),
        }
    }
}

/// What a reload may change without a new listener ([`Server::set_policy`]).
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// `restapi.authentication`: asked of every call that may change something (rest-api.md 19.3).
    pub credentials: Option<Credentials>,
    /// Who may call what changes something, by address.
    pub allow: AllowList,
    /// TLS, for connections that come from now on; `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// `restapi.server_tokens`.
    pub server_tokens: ServerTokens,
    /// `restapi.http_extra_headers`, on every answer that has a body.
    pub extra_headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// The node's own configuration, with which a new `config` key must make sense (rest-api.md W8).
    pub config: Option<Arc<LocalConfig>>,
}

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What the loop published last.
    pub status: watch::Receiver<Arc<Status>>,
    /// What happened lately.
    pub journal: Journal,
    /// What this member agreed to without etcd.
    pub failsafe: Door,
}

/// What every request handler sees.
struct App {
    failsafe: Door,
    status: watch::Receiver<Arc<Status>>,
    journal: Journal,
    operations: operations::Operations,
    policy: watch::Receiver<Arc<Policy>>,
    commands: mpsc::Sender<Command>,
    /// Calls that are being carried out.
    calls: Semaphore,
    clock: Clock,
    /// A `lag=` that cannot be read was logged; once is enough (rest-api.md W11).
    told_of_bad_lag: AtomicBool,
}

/// A running API server. Dropping it stops it.
pub struct Server {
    address: SocketAddr,
    policy: watch::Sender<Arc<Policy>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Binds the address and starts answering, on a thread of its own.
///
/// Blocks for the resolution of a host name, so call it at start or for a changed address, not on the loop's path.
///
/// # Errors
/// [`ListenError`] says which address could not be bound, why, and what to do.
pub fn spawn(
    settings: Settings,
    sources: Sources,
    clock: Clock,
    commands: mpsc::Sender<Command>,
) -> Result<Server, ListenError> {
    let no_thread = |source| ListenError::Thread { source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
    let (listener, address) = {
        let _inside = runtime.enter();
        listen::bind(&settings.listen, settings.backlog)?
    };
    let (policy, policy_seen) = watch::channel(Arc::new(settings.policy));
    let (stop, stopped) = oneshot::channel();
    let seen = policy_seen.clone();
    let Sources { status, journal, failsafe } = sources;
    let told_of_bad_lag = AtomicBool::new(false);
    let operations = operations::Operations::default();
    let calls = Semaphore::new(routes::CALLS_AT_ONCE);
    let app =
        App { failsafe, status, journal, operations, policy: policy_seen, commands, calls, clock, told_of_bad_lag };
    let door = connection::Door {
        listener,
        policy: seen,
        router: routes::router(Arc::new(app)),
        max_connections: settings.max_connections,
        head_time: settings.head_time,
    };
    let serve = move || runtime.block_on(door.serve(stopped));
    let thread = std::thread::Builder::new().name("rest-api".to_owned()).spawn(serve).map_err(no_thread)?;
    tracing::info!(%address, "REST API listens");
    Ok(Server { address, policy, stop: Some(stop), thread: Some(thread) })
}

impl Server {
    /// The address it is bound to, with the port that was chosen if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a new policy in force, for the next request of every connection.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(Arc::new(policy));
    }

    /// Stops listening, cuts every connection, and returns when the port is free.
    pub fn shutdown(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the REST API's thread ended by a panic; please report it as a bug");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
