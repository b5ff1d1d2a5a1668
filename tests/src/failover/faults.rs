//! What happens to a cluster, what is demanded then, and what cluster it takes.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::report::{Run, median};
use crate::rig::Settings;

/// How often the short things happen within one run.
pub const SHORT_FREEZES: u32 = 50;
/// How many leading etcd members are killed within one run.
pub const ETCD_LEADERS: u32 = 20;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The primary's host: no packet leaves or reaches it, then all its processes are killed.
    PowerOff,
    /// The postmaster is killed; the agent lives.
    Postmaster,
    /// The agent is killed and does not come back.
    AgentKilled,
    /// The agent is stopped (SIGSTOP) for ten seconds longer than the TTL.
    AgentFrozen,
    /// Everything on the node is stopped for ten seconds longer than the TTL.
    NodeFrozen,
    /// The agent is killed and started again half a second later.
    AgentRestarted,
    /// The agent is stopped fifty times for a tenth to a half of the TTL.
    ShortFreezes,
    /// The primary, and it alone, cannot send to etcd for ten seconds longer than the TTL; `failsafe_mode` is on.
    EtcdCut,
    /// etcd is dead for ten seconds longer than the TTL; `failsafe_mode` is on.
    EtcdDown,
    /// The leader of three etcd members is killed, twenty times.
    EtcdLeader,
    /// SIGTERM to the agent.
    HandOver,
    /// All processes of PostgreSQL are stopped for fifteen seconds: what do health checks say?
    ServerStopped,
}

impl Fault {
    /// Every one, in the order of the table.
    pub const ALL: [Fault; 12] = [
        Fault::PowerOff,
        Fault::Postmaster,
        Fault::AgentKilled,
        Fault::AgentFrozen,
        Fault::NodeFrozen,
        Fault::AgentRestarted,
        Fault::ShortFreezes,
        Fault::EtcdCut,
        Fault::EtcdDown,
        Fault::EtcdLeader,
        Fault::HandOver,
        Fault::ServerStopped,
    ];

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Fault::PowerOff => "host powered off (all packets dropped, then killed)",
            Fault::Postmaster => "postmaster killed, agent alive",
            Fault::AgentKilled => "agent killed for good",
            Fault::AgentFrozen => "agent frozen for ttl + 10 s",
            Fault::NodeFrozen => "whole node frozen for ttl + 10 s, then thawed",
            Fault::AgentRestarted => "agent killed, restarted after 0.5 s",
            Fault::ShortFreezes => "agent frozen for 0.1 to 0.5 ttl, 50 times",
            Fault::EtcdCut => "primary cut from etcd only for ttl + 10 s, failsafe on",
            Fault::EtcdDown => "etcd down for ttl + 10 s, failsafe on",
            Fault::EtcdLeader => "etcd leader killed (three members), 20 times",
            Fault::HandOver => "planned hand-over by SIGTERM",
            Fault::ServerStopped => "server stopped (SIGSTOP): health checks",
        }
    }

    /// What is demanded, in words.
    #[must_use]
    pub fn demand(self, ttl: u32) -> String {
        match self {
            Fault::PowerOff => format!("gap ≤ {:.1} s", power_off(ttl)),
            Fault::Postmaster => "gap ≤ 1 s plus crash recovery".to_owned(),
            Fault::AgentKilled | Fault::AgentFrozen => "old dead before new writes, 0 rows lost, 0.0 s both".to_owned(),
            Fault::NodeFrozen => "0.0 s both after waking".to_owned(),
            Fault::AgentRestarted | Fault::EtcdCut | Fault::EtcdDown => "0 failed writes".to_owned(),
            Fault::ShortFreezes => "0 failovers".to_owned(),
            Fault::EtcdLeader if ttl < 10 => "stated".to_owned(),
            Fault::EtcdLeader => "0 failovers at ttl 10".to_owned(),
            Fault::HandOver => "gap ≤ 0.7 s direct, ≤ 1.5 s HAProxy".to_owned(),
            Fault::ServerStopped => "99 % within 50 ms".to_owned(),
        }
    }

    /// Whether these runs, all at `ttl`, keep what is demanded; times by their median, counts in every run.
    #[must_use]
    pub fn met(self, ttl: u32, runs: &[&Run]) -> bool {
        let within = |most: f64, gap: &dyn Fn(&Run) -> Option<f64>| {
            // A client that never wrote again has an endless gap.
            median(runs.iter().map(|run| gap(run).unwrap_or(f64::INFINITY))).is_some_and(|gap| gap <= most)
        };
        let gaps = |proxy, direct| within(proxy, &|run| run.gap_proxy) && within(direct, &|run| run.gap_direct);
        let every = |good: fn(&Run) -> bool| runs.iter().all(|run| good(run));
        match self {
            Fault::PowerOff => gaps(power_off(ttl), power_off(ttl)),
            Fault::Postmaster => {
                let beside = |gap: Option<f64>, run: &Run| gap.map(|gap| gap - run.recovery.unwrap_or(0.0));
                within(1.0, &|run| beside(run.gap_proxy, run)) && within(1.0, &|run| beside(run.gap_direct, run))
            }
            Fault::AgentKilled | Fault::AgentFrozen => every(|run| {
                let before = |seconds: Option<f64>| seconds.is_some_and(|seconds| seconds <= 0.0);
                run.lost() == 0 && before(run.both) && before(run.old_dead)
            }),
            // One decimal is demanded.
            Fault::NodeFrozen => every(|run| run.both.is_some_and(|both| both < 0.05)),
            Fault::AgentRestarted | Fault::EtcdCut | Fault::EtcdDown => every(|run| run.failed == 0),
            Fault::ShortFreezes => every(|run| run.failovers == 0),
            Fault::EtcdLeader => ttl < 10 || every(|run| run.failovers == 0),
            Fault::HandOver => gaps(1.5, 0.7),
            Fault::ServerStopped => every(|run| run.checks.is_some_and(|checks| checks.p99_ms <= 50.0)),
        }
    }

    /// How many runs one call makes: what repeats itself within a run is run once.
    #[must_use]
    pub fn runs(self, wanted: u32) -> u32 {
        if matches!(self, Fault::ShortFreezes | Fault::EtcdLeader) { 1 } else { wanted }
    }

    /// The cluster it happens to.
    #[must_use]
    pub fn settings(self, ttl: u32, peer: bool, synchronous: bool) -> Settings {
        // The demand for etcd's elections is at 10 s, below the peer's floor.
        let ttl = if self == Fault::EtcdLeader && !peer { ttl.min(10) } else { ttl };
        Settings {
            etcd: if self == Fault::EtcdLeader { 3 } else { 1 },
            ttl,
            loop_wait: 1,
            // loop_wait + 2 * retry_timeout <= ttl
            retry_timeout: (ttl.saturating_sub(1) / 2).clamp(1, 3),
            namespaces: true,
            failsafe: matches!(self, Fault::EtcdCut | Fault::EtcdDown),
            synchronous,
            peer,
            ..Settings::default()
        }
    }
}

/// etcd gives the lease away at the TTL; the rest is finding out, electing and promoting.
fn power_off(ttl: u32) -> f64 {
    if ttl < 10 { f64::from(ttl) + 1.0 } else { f64::from(ttl) + 0.5 }
}
