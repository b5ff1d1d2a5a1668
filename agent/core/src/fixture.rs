//! Readable snapshots for tests: `primary().lease_ends_in(secs(5)).build()`.
//!
//! The world of every fixture: members a (this one), b and c; system identifier [`SYSTEM_ID`]; timeline 1; positions at
//! 1000 bytes; my lease is number 1 and ends in 25 seconds; now is one hour after boot.

use std::time::Duration;

use crate::cluster::{
    ClusterView, ConfigKey, FailsafeKey, HistoryLine, Initialize, LeaderKey, Member, Promise, PromiseKey, Status,
};
use crate::config::{Config, Logical, Remote};
use crate::failsafe::{Agreement, Notice, Topology};
use crate::memory::{LastLed, Memory, Role};
use crate::peers::{PeerAnswer, PeerReply};
use crate::postgres::{
    ClusterState, ControlData, DataDir, Job, PgState, Present, Probe, Process, RunningJob, Slot, SqlFacts, WalSender,
};
use crate::snapshot::{Guardian, LeaseView, NoView, Order, Peers, Snapshot, Watchdog};
use crate::units::{Instant, LeaseId, Lsn, MemberName, Revision, SystemId, Timeline, WalPosition};

/// The fixtures' system identifier.
pub const SYSTEM_ID: SystemId = SystemId(7_000_000_000_000_000_001);

/// So many seconds.
#[must_use]
pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// etcd does not answer: `primary().with(cut_off)`.
pub fn cut_off(s: &mut Snapshot) {
    s.dcs = Err(NoView::Unreachable("no answer in 2s".into()));
}

/// Builds a [`Snapshot`] by small readable steps.
#[derive(Clone, Debug)]
pub struct Builder(Snapshot);

/// A physical slot that nobody is connected to.
#[must_use]
pub fn slot(name: &str) -> Slot {
    Slot { name: name.into(), position: Some(Lsn(1_000)), ..Slot::default() }
}

/// What a logical slot decodes.
#[must_use]
pub fn decodes(database: &str, plugin: &str) -> Logical {
    Logical { database: database.into(), plugin: plugin.into() }
}

fn member(name: &str, role: &str) -> Member {
    Member {
        conn_url: Some(format!("postgres://{name}:5432/postgres")),
        api_url: Some(format!("http://{name}:8008/patroni")),
        state: "running".into(),
        role: role.into(),
        version: "4.1.5".into(),
        regent: true,
        timeline: Some(Timeline(1)),
        ..Member::default()
    }
}

fn sql(in_recovery: bool) -> SqlFacts {
    SqlFacts {
        in_recovery,
        timeline: Some(Timeline(1)),
        flush_lsn: if in_recovery { Lsn(0) } else { Lsn(1_000) },
        receive_lsn: in_recovery.then_some(Lsn(1_000)),
        replay_lsn: in_recovery.then_some(Lsn(1_000)),
        replay_paused: false,
        replayed_at: None,
        streaming: in_recovery,
        latest_end_lsn: None,
        restores_from_archive: false,
        upstream: in_recovery.then(|| "b:5432".to_owned()),
        started_at: "2026-11-21 00:00:00+00".into(),
        server_version: 150_000,
        slots: ["b", "c"].map(slot).into(),
        leader_xmins: std::collections::BTreeMap::new(),
        log_gone: None,
        sync_names: String::new(),
        replication: Vec::new(),
        pending_restart: Vec::new(),
    }
}

/// A standby that streams from here: its name, its `sync_state`, how far it is.
#[must_use]
pub fn sender(name: &str, sync_state: &str, position: Lsn) -> WalSender {
    WalSender {
        usename: "replicator".into(),
        application_name: name.into(),
        client_addr: None,
        state: "streaming".into(),
        sync_state: sync_state.into(),
        sync_priority: 1,
        position: Some(position),
    }
}

fn base(leader: &str, in_recovery: bool) -> Builder {
    let now = Instant(secs(3_600));
    let mut members = std::collections::BTreeMap::new();
    for name in ["a", "b", "c"] {
        members.insert(MemberName::from(name), member(name, if name == leader { "primary" } else { "replica" }));
    }
    let view = ClusterView {
        revision: Revision(100),
        initialize: Initialize::Known(SYSTEM_ID),
        leader: Some(LeaderKey {
            name: leader.into(),
            lease: Some(LeaseId(if in_recovery { 2 } else { 1 })),
            modified: Revision(50),
        }),
        members: members.clone(),
        config: ConfigKey::Valid(Revision(10)),
        history: None,
        status: Status::default(),
        status_seen: Some(Revision(99)),
        sync: None,
        sync_seen: None,
        failover: None,
        promise: Some(PromiseKey {
            promise: Promise {
                epoch: 1,
                position: WalPosition { timeline: Timeline(1), lsn: Lsn(0) },
                parent: Timeline(1),
                holder: leader.into(),
            },
            modified: Revision(50),
        }),
        unreadable_promise: None,
        failsafe: None,
        garbage: std::collections::BTreeMap::new(),
    };
    let control = ControlData {
        system_id: SYSTEM_ID,
        state: if in_recovery { ClusterState::InArchiveRecovery } else { ClusterState::InProduction },
        timeline: Timeline(1),
        checkpoint: Lsn(500),
        checkpoint_end: None,
        min_recovery: in_recovery.then_some((Timeline(1), Lsn(900))),
        rewindable: true,
    };
    Builder(Snapshot {
        now,
        wall: secs(1_800_000_000),
        dice: 4,
        config: Config::of("a".into()),
        dcs: Ok(view),
        lease: LeaseView { id: Some(LeaseId(1)), ends: Some(now + secs(25)) },
        postgres: PgState {
            data_dir: DataDir::Present(Present {
                control: Some(control),
                standby_signal: in_recovery,
                backup_label: false,
            }),
            process: Process::Up { pid: 42 },
            probe: Probe::Accepting,
            sql: Some(sql(in_recovery)),
            local_history: Vec::new(),
            newer_history: Vec::new(),
            old_copy: false,
        },
        job: None,
        peers: None,
        agreement: None,
        namesake: None,
        guardian: Guardian::Ready,
        watchdog: Watchdog::Ready,
        order: Order::Run,
        request: None,
        memory: Memory {
            role: if in_recovery { Role::Replica } else { Role::Primary },
            holds: (!in_recovery).then_some(LeaseId(1)),
            last_led: Some(LastLed { leader: leader.into(), members }),
            last_position: Some(Lsn(1_000)),
            met: true,
            since: Some(Instant(secs(60))),
            ..Memory::default()
        },
    })
}

/// a is the primary and holds the leader key.
#[must_use]
pub fn primary() -> Builder {
    base("a", false)
}

/// a is a standby that streams from b, the leader.
#[must_use]
pub fn standby() -> Builder {
    base("b", true)
}

impl Builder {
    /// `failsafe_mode` is on; the key names a, b and c, and was read.
    #[must_use]
    pub fn failsafe(self) -> Builder {
        self.but(|s| {
            s.config.failsafe_mode = true;
            let api_url = |name: &str| (name.into(), format!("http://{name}:8008/patroni"));
            let key = FailsafeKey { members: ["a", "b", "c"].map(api_url).into(), modified: Revision(60) };
            s.memory.topology =
                Topology { modified: Some(key.modified), members: key.members.clone(), ..Topology::default() };
            if let Ok(view) = &mut s.dcs {
                view.failsafe = Some(key);
            }
        })
    }

    /// Each of `who` agreed to a round that was sent so long ago; the others of b and c refused.
    #[must_use]
    pub fn agreed(self, who: &[&str], ago: Duration) -> Builder {
        self.but(|s| {
            let answers = ["b", "c"].map(|name| (name.into(), who.contains(&name))).into();
            s.memory.promises.answered(s.now.minus(ago), s.config.ttl, &answers, &s.config.name);
        })
    }

    /// This member agreed that b goes on, for so much longer.
    #[must_use]
    pub fn agreed_to_b(self, left: Duration) -> Builder {
        self.but(|s| {
            let (conn_url, api_url) = ("postgres://b:5432/postgres".into(), "http://b:8008/patroni".into());
            let to = Notice { name: "b".into(), conn_url, api_url, slots: std::collections::BTreeMap::new() };
            s.agreement = Some(Agreement { until: s.now + left, to });
        })
    }

    /// The snapshot.
    #[must_use]
    pub fn build(&self) -> Snapshot {
        self.0.clone()
    }

    /// The snapshot, after a change of any kind.
    #[must_use]
    pub fn with(self, change: impl FnOnce(&mut Snapshot)) -> Snapshot {
        self.but(change).0
    }

    /// ... after a change of any kind.
    #[must_use]
    pub fn but(mut self, change: impl FnOnce(&mut Snapshot)) -> Builder {
        change(&mut self.0);
        self
    }

    fn view(self, change: impl FnOnce(&mut ClusterView)) -> Builder {
        self.but(|s| {
            if let Ok(view) = &mut s.dcs {
                change(view);
            }
        })
    }

    /// Another configuration.
    #[must_use]
    pub fn but_config(self, change: impl FnOnce(&mut Config)) -> Builder {
        self.but(|s| change(&mut s.config))
    }

    /// The budget of a forced stop.
    #[must_use]
    pub fn stop_budget(self, budget: Duration) -> Builder {
        self.but(|s| s.config.stop_budget = budget)
    }

    /// `primary_start_timeout`.
    #[must_use]
    pub fn start_timeout(self, timeout: Duration) -> Builder {
        self.but(|s| s.config.primary_start_timeout = timeout)
    }

    /// The fence deadline.
    #[must_use]
    pub fn lease_ends_in(self, left: Duration) -> Builder {
        self.but(|s| s.lease.ends = Some(s.now + left))
    }

    /// The guardian has been away for so long.
    #[must_use]
    pub fn unguarded_for(self, long: Duration) -> Builder {
        self.but(|s| s.guardian = Guardian::Absent { why: "it does not start".into(), since: s.now.minus(long) })
    }

    /// The watchdog is required, and is this.
    #[must_use]
    pub fn watchdog(self, watchdog: Watchdog) -> Builder {
        self.but(|s| s.watchdog = watchdog)
    }

    /// There is no lease.
    #[must_use]
    pub fn lease_lost(self) -> Builder {
        self.but(|s| s.lease = LeaseView::default())
    }

    /// The leader key hangs on this lease.
    #[must_use]
    pub fn key_on_lease(self, lease: i64) -> Builder {
        self.view(|view| {
            if let Some(key) = &mut view.leader {
                key.lease = Some(LeaseId(lease));
            }
        })
    }

    /// a holds the leader key.
    #[must_use]
    pub fn holding_the_key(self) -> Builder {
        self.led_by("a").key_on_lease(1).but(|s| s.memory.holds = Some(LeaseId(1)))
    }

    /// This member holds the leader key.
    #[must_use]
    pub fn led_by(self, leader: &str) -> Builder {
        self.view(|view| {
            if let Some(key) = &mut view.leader {
                *key = LeaderKey { name: leader.into(), lease: Some(LeaseId(2)), ..key.clone() };
            }
        })
        .but(|s| s.memory.holds = None)
    }

    /// Nobody holds the leader key.
    #[must_use]
    pub fn vacant(self) -> Builder {
        self.view(|view| view.leader = None).but(|s| s.memory.holds = None)
    }

    /// This member was promised this timeline.
    #[must_use]
    pub fn promised(self, holder: &str, timeline: u32) -> Builder {
        self.view(|view| {
            let position = WalPosition { timeline: Timeline(timeline), lsn: Lsn(0) };
            let parent = Timeline(timeline.saturating_sub(1).max(1));
            let promise = Promise { epoch: 1, position, parent, holder: holder.into() };
            view.promise = Some(PromiseKey { promise, modified: Revision(60) });
        })
    }

    /// The cluster is on this timeline, with this history of (parent, switch point).
    #[must_use]
    pub fn cluster_on_timeline(self, timeline: u32, history: &[(u32, u64)]) -> Builder {
        let lines = history.iter().map(|(parent, at)| HistoryLine {
            parent: Timeline(*parent),
            switched_at: Lsn(*at),
            reason: "no recovery target specified".into(),
            at: None,
            promoted: None,
        });
        let lines: Vec<_> = lines.collect();
        self.view(|view| {
            view.history = (!lines.is_empty()).then_some(lines);
            for member in view.members.values_mut() {
                member.timeline = Some(Timeline(timeline));
            }
        })
    }

    /// The own log is on this timeline.
    #[must_use]
    pub fn on_timeline(self, timeline: u32) -> Builder {
        self.but(|s| {
            if let Some(sql) = &mut s.postgres.sql {
                sql.timeline = Some(Timeline(timeline));
            }
            if let DataDir::Present(Present { control: Some(control), .. }) = &mut s.postgres.data_dir {
                control.timeline = Timeline(timeline);
                control.min_recovery = control.min_recovery.map(|(_, lsn)| (Timeline(timeline), lsn));
            }
        })
    }

    /// The own log ends here.
    #[must_use]
    pub fn at(self, lsn: Lsn) -> Builder {
        self.but(|s| {
            s.memory.last_position = Some(lsn);
            if let Some(sql) = &mut s.postgres.sql {
                if sql.in_recovery {
                    (sql.receive_lsn, sql.replay_lsn) = (Some(lsn), Some(lsn));
                } else {
                    sql.flush_lsn = lsn;
                }
            }
        })
    }

    /// The last leader's `status` says this.
    #[must_use]
    pub fn leader_wrote(self, lsn: Lsn) -> Builder {
        self.view(|view| view.status.optime = Some(lsn))
    }

    /// The postmaster is gone: crashed if it was a primary, shut down if it was a standby.
    #[must_use]
    pub fn down(self) -> Builder {
        self.but(|s| {
            s.postgres.process = Process::Down;
            s.postgres.probe = Probe::NotAsked;
            s.postgres.sql = None;
            if let DataDir::Present(Present { control: Some(control), .. }) = &mut s.postgres.data_dir
                && control.state == ClusterState::InArchiveRecovery
            {
                control.state = ClusterState::ShutDownInRecovery;
            }
        })
    }

    /// It was shut down cleanly where its log ended.
    #[must_use]
    pub fn shut_down(self) -> Builder {
        let end = self.0.memory.last_position.unwrap_or_default();
        self.down().control(ClusterState::ShutDown, end.0)
    }

    /// ... but the postmaster is still there.
    #[must_use]
    pub fn still_up(self) -> Builder {
        self.but(|s| (s.postgres.process, s.postgres.probe) = (Process::Up { pid: 42 }, Probe::Rejecting))
    }

    /// What the control file says.
    #[must_use]
    pub fn control(self, state: ClusterState, checkpoint: u64) -> Builder {
        self.but(|s| {
            if let DataDir::Present(present) = &mut s.postgres.data_dir
                && let Some(control) = &mut present.control
            {
                (control.state, control.checkpoint) = (state, Lsn(checkpoint));
                control.min_recovery = None;
                present.standby_signal = false;
            }
        })
    }

    /// The server has been starting for this long.
    #[must_use]
    pub fn starting(self, took: Duration) -> Builder {
        self.down().still_up().but(|s| s.memory.starting_since = Some(s.now.minus(took)))
    }

    /// No data directory.
    #[must_use]
    pub fn empty(self) -> Builder {
        self.down().but(|s| {
            s.postgres.data_dir = DataDir::Empty;
            s.memory.role = Role::Uninitialized;
        })
    }

    /// The local data belongs to this cluster.
    #[must_use]
    pub fn system_id(self, id: u64) -> Builder {
        self.but(|s| {
            if let DataDir::Present(Present { control: Some(control), .. }) = &mut s.postgres.data_dir {
                control.system_id = SystemId(id);
            }
        })
    }

    /// The last stop was a demotion.
    #[must_use]
    pub fn demoted(self) -> Builder {
        self.but(|s| s.memory.role = Role::Demoted)
    }

    /// etcd has no `initialize`.
    #[must_use]
    pub fn uninitialized(self) -> Builder {
        self.view(|view| view.initialize = Initialize::Absent)
    }

    /// This agent won the right to make the cluster.
    #[must_use]
    pub fn bootstrapping(self) -> Builder {
        self.view(|view| view.initialize = Initialize::InProgress { modified: Revision(5), lease: Some(LeaseId(1)) })
            .but(|s| s.memory.bootstrapping = true)
    }

    /// Another agent did.
    #[must_use]
    pub fn being_made_by_another(self) -> Builder {
        self.view(|view| view.initialize = Initialize::InProgress { modified: Revision(5), lease: Some(LeaseId(9)) })
    }

    /// The agent has not seen its server answer yet.
    #[must_use]
    pub fn first_contact(self) -> Builder {
        self.but(|s| s.memory.met = false)
    }

    /// etcd has no `config`.
    #[must_use]
    pub fn without_config(self) -> Builder {
        self.view(|view| view.config = ConfigKey::Missing)
    }

    /// The server has no replication slots.
    #[must_use]
    pub fn without_slots(self) -> Builder {
        self.but(|s| {
            if let Some(sql) = &mut s.postgres.sql {
                sql.slots.clear();
            }
        })
    }

    /// The cluster has no other member, and had none.
    #[must_use]
    pub fn alone(self) -> Builder {
        self.but(|s| {
            let me = s.config.name.clone();
            if let Ok(view) = &mut s.dcs {
                view.members.retain(|name, _| *name == me);
            }
            if let Some(led) = &mut s.memory.last_led {
                led.members.retain(|name, _| *name == me);
            }
        })
    }

    /// A member's key is gone.
    #[must_use]
    pub fn without_member(self, name: &str) -> Builder {
        self.view(|view| {
            view.members.remove(&MemberName::from(name));
        })
    }

    /// A member's key says something else.
    #[must_use]
    pub fn member(self, name: &str, change: impl FnOnce(&mut Member)) -> Builder {
        self.view(|view| {
            if let Some(member) = view.members.get_mut(&MemberName::from(name)) {
                change(member);
            }
        })
    }

    /// Tagged `nofailover`.
    #[must_use]
    pub fn nofailover(self) -> Builder {
        self.but(|s| s.config.tags.nofailover = true)
    }

    /// `check_timeline: true`
    #[must_use]
    pub fn check_timeline(self) -> Builder {
        self.but(|s| s.config.check_timeline = true)
    }

    /// The cluster follows the server r.
    #[must_use]
    pub fn standby_cluster(self) -> Builder {
        let remote = Remote { host: Some("r".into()), port: 5432, ..Remote::default() };
        self.but_config(|config| config.standby_cluster = Some(remote))
    }

    /// `pause: true`
    #[must_use]
    pub fn paused(self) -> Builder {
        self.but(|s| s.config.pause = true)
    }

    /// SIGTERM came.
    #[must_use]
    pub fn ordered_to_stop(self) -> Builder {
        self.but(|s| s.order = Order::Stop)
    }

    /// This job runs.
    #[must_use]
    pub fn job(self, job: Job) -> Builder {
        self.but(|s| s.job = Some(RunningJob { job, since: s.now }))
    }

    fn reply(self, name: &str, reply: PeerReply) -> Builder {
        self.but(|s| {
            let peers = s.peers.get_or_insert_with(|| Peers { at: s.now, replies: std::collections::BTreeMap::new() });
            peers.replies.insert(name.into(), reply);
        })
    }

    /// A standby answered that it is at this position, on our timeline.
    #[must_use]
    pub fn answers(self, name: &str, lsn: u64) -> Builder {
        self.answer(name, |answer| answer.position = Lsn(lsn))
    }

    /// A standby answered, with changes.
    #[must_use]
    pub fn answer(self, name: &str, change: impl FnOnce(&mut PeerAnswer)) -> Builder {
        let mut answer = PeerAnswer {
            is_primary: false,
            position: Lsn(0),
            timeline: self.0.own_timeline(),
            nofailover: false,
            failover_priority: 1,
            watchdog_failed: false,
        };
        change(&mut answer);
        self.reply(name, PeerReply::Answer(answer))
    }

    /// A member did not answer.
    #[must_use]
    pub fn unreachable(self, name: &str) -> Builder {
        self.reply(name, PeerReply::Unreachable("no answer in 2s".into()))
    }
}
