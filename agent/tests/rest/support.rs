//! A server with a Status and a clock in the test's hands, and a client that knows nothing of HTTP but its text.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use regent::api::{self, Clock, Command, Policy, Server, Settings, Sources};
use regent::failsafe::Door;
use regent::guardian;
use regent::journal::Journal;
use regent::status::{Role, State, Status};
use regent_core::cluster::{self, ClusterView, LeaderKey};
use regent_core::config::{Config, SyncMode};
use regent_core::contract::Contract;
use regent_core::postgres::{SqlFacts, WalSender};
use regent_core::units::{Instant, LeaseId, Lsn, Revision, SystemId, Timeline};
use serde_json::Map;
use tokio::sync::{mpsc, watch};

/// Where the clocks of these tests stand at first.
pub(crate) const NOW: Instant = Instant(Duration::from_secs(1000));

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A running server.
pub(crate) struct Node {
    pub(crate) server: Server,
    pub(crate) failsafe: Door,
    pub(crate) journal: Journal,
    pub(crate) commands: mpsc::Receiver<Command>,
    status: watch::Sender<Arc<Status>>,
    millis: Arc<AtomicU64>,
}

impl Node {
    pub(crate) fn with(status: Status) -> Node {
        Node::with_settings(status, |_| {})
    }

    pub(crate) fn with_policy(status: Status, policy: Policy) -> Node {
        Node::with_settings(status, |settings| settings.policy = policy)
    }

    pub(crate) fn with_settings(status: Status, change: impl FnOnce(&mut Settings)) -> Node {
        let mut settings = Settings::at("127.0.0.1:0".parse().unwrap());
        change(&mut settings);
        let (status, seen) = watch::channel(Arc::new(status));
        let millis = Arc::new(AtomicU64::new(1_000_000));
        let clock: Clock = {
            let millis = Arc::clone(&millis);
            Arc::new(move || Instant(Duration::from_millis(millis.load(Ordering::SeqCst))))
        };
        let (send, commands) = mpsc::channel(2);
        let failsafe = Door::default();
        let journal = Journal::begun_at(UNIX_EPOCH);
        let sources = Sources { status: seen, failsafe: failsafe.clone(), journal: journal.clone() };
        let server = api::spawn(settings, sources, clock, send).unwrap();
        Node { server, failsafe, journal, commands, status, millis }
    }

    pub(crate) fn publish(&self, status: Status) {
        self.status.send_replace(Arc::new(status));
    }

    /// Lets time pass, without a new Status.
    pub(crate) fn pass(&self, time: Duration) {
        self.millis.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(secs(20))).unwrap();
        stream
    }

    /// Sends these bytes and reads until the server closes. The answer is as `/openapi.json` says.
    pub(crate) fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let answer = exchange(self.address(), request.as_ref());
        super::described::check(request.as_ref(), &answer);
        answer
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        Answer::of(&self.raw(format!("{method} {path} HTTP/1.0\r\n\r\n")))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path)
    }

    pub(crate) fn code(&self, path: &str) -> u16 {
        self.get(path).code
    }
}

/// The same from any thread.
pub(crate) fn send(address: SocketAddr, request: &str) -> String {
    let answer = exchange(address, request.as_bytes());
    super::described::check(request.as_bytes(), &answer);
    answer
}

/// ... and whatever the description says.
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(secs(20))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn of(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no end of headers in {text:?}"));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Answer {
            code: code.unwrap_or_else(|| panic!("no code in {head:?}")),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    /// A header's value; names compare without case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// What a running standby answers, 0 bytes behind a leader at 67108960.
pub(crate) fn standby_sql() -> SqlFacts {
    SqlFacts {
        in_recovery: true,
        timeline: Some(Timeline(1)),
        flush_lsn: Lsn(0),
        receive_lsn: Some(Lsn(67_108_960)),
        replay_lsn: Some(Lsn(67_108_960)),
        replay_paused: false,
        replayed_at: None,
        streaming: true,
        latest_end_lsn: Some(Lsn(67_108_960)),
        restores_from_archive: false,
        upstream: Some("127.0.0.1:5432".to_owned()),
        started_at: "2026-11-21 00:17:47.006407+00".to_owned(),
        server_version: 150_020,
        slots: vec![],
        leader_xmins: BTreeMap::new(),
        log_gone: None,
        sync_names: String::new(),
        replication: vec![],
        pending_restart: vec![],
    }
}

pub(crate) fn sender(name: &str) -> WalSender {
    WalSender {
        usename: "replicator".to_owned(),
        application_name: name.to_owned(),
        client_addr: Some("127.0.0.1".to_owned()),
        state: "streaming".to_owned(),
        sync_state: "async".to_owned(),
        sync_priority: 0,
        position: None,
    }
}

pub(crate) fn view(leader: Option<&str>) -> ClusterView {
    ClusterView {
        leader: leader.map(|name| LeaderKey { name: name.into(), lease: Some(LeaseId(1)), modified: Revision(7) }),
        status: cluster::Status { optime: Some(Lsn(67_108_960)), ..cluster::Status::default() },
        ..ClusterView::default()
    }
}

/// A streaming replica `n2` of the leader `n1`.
pub(crate) fn replica() -> Status {
    Status {
        at: NOW,
        scope: "demo".to_owned(),
        name: "n2".to_owned(),
        state: State::Running,
        role: Role::Replica,
        sql: Some(standby_sql()),
        lock_until: None,
        failsafe_mode: false,
        failsafe_until: None,
        demoting: false,
        view: Some(view(Some("n1"))),
        last_view: Some(view(Some("n1"))),
        members: std::collections::BTreeMap::new(),
        config: None,
        history: None,
        dcs_last_seen: 1_795_220_293,
        pause: false,
        tags: Map::new(),
        noloadbalance: false,
        failover_priority: 1,
        system_id: Some(SystemId(7_710_412_321_611_215_563)),
        maximum_lag_on_failover: 1_048_576,
        standby_cluster: false,
        synchronous_mode: SyncMode::Off,
        contract: Contract { rpo_zero: false, sentence: "commits are lost".to_owned() },
        config_in_force: Arc::new(Config::of("n2".into())),
        loop_wait: secs(10),
        ttl: secs(30),
        next_turn_due: NOW + secs(10),
        guardian: Some(guardian::View { met: true, pid: 77, ..guardian::View::default() }),
        watchdog: regent::watchdog::State::default(),
        watchdog_failed: false,
        copied: None,
        slots_not_ready: Vec::new(),
        action: None,
        scheduled_restart: None,
        rule: "follow",
        why: "n1 leads".to_owned(),
    }
}

/// The leader `n1`, with 20 s of its lease left.
pub(crate) fn leader() -> Status {
    Status {
        name: "n1".to_owned(),
        role: Role::Primary,
        sql: Some(SqlFacts {
            in_recovery: false,
            flush_lsn: Lsn(67_108_960),
            receive_lsn: None,
            replay_lsn: None,
            streaming: false,
            latest_end_lsn: None,
            upstream: None,
            started_at: "2026-11-21 00:17:44.364475+00".to_owned(),
            replication: vec![sender("n2"), sender("n3")],
            ..standby_sql()
        }),
        lock_until: Some(NOW + secs(20)),
        guardian: Some(guardian::View { armed_until: Some(NOW + secs(20)), ..replica().guardian.unwrap() }),
        ..replica()
    }
}

/// A replica whose server is stopped in a paused cluster (column St of rest-api.md 5.5).
pub(crate) fn stopped() -> Status {
    Status { state: State::Stopped, sql: None, pause: true, ..replica() }
}

/// No data directory, or a base backup under way (column U).
pub(crate) fn uninitialized() -> Status {
    Status { state: State::CreatingReplica, role: Role::Uninitialized, sql: None, system_id: None, ..replica() }
}
