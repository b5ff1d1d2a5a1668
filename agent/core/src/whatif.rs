//! What each member would decide if the leader were gone now: the rules themselves, asked on a supposed snapshot, so that
//! the reason for or against a candidate is never another one than the reason that will count.
//!
//! As far as etcd knows: positions are those of the member keys, at most a `loop_wait` old. What only the member itself
//! sees (its guardian, its watchdog, a job of its own) is taken to be well.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::{ClusterView, Failover, Member};
use crate::config::{Config, Tags};
use crate::memory::{LastLed, Memory, Role};
use crate::peers::{PeerAnswer, PeerReply};
use crate::plan::{Decision, Lease};
use crate::postgres::{ClusterState, ControlData, DataDir, PgState, Present, Probe, Process, SqlFacts};
use crate::rules::decide;
use crate::snapshot::{Guardian, LeaseView, Order, Peers, Snapshot, Watchdog};
use crate::units::{Instant, LeaseId, Lsn, MemberName, Revision, SystemId, Timeline};

/// Long after everything that waits for a while after a start.
const NOW: Instant = Instant(Duration::from_secs(1_000_000));

/// How the leader goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Without a word.
    Death,
    /// In good order, after a switchover to this member was asked for; `None`: to whoever is fit.
    Switchover(Option<MemberName>),
}

/// What every member but the leader would decide, by name. `config` is that of any member: its tags are not read.
#[must_use]
pub fn without_leader(view: &ClusterView, config: &Config, loss: &Loss) -> BTreeMap<MemberName, Decision> {
    let leader = view.leader.as_ref().map(|key| &key.name);
    let others = view.members.iter().filter(|(name, _)| Some(*name) != leader);
    others.map(|(name, member)| (name.clone(), decide(&supposed(view, config, loss, name, member)))).collect()
}

/// It would try to take the leader key.
#[must_use]
pub fn runs(decision: &Decision) -> bool {
    match decision.plan.lease {
        Lease::Take { .. } => true,
        Lease::Keep
        | Lease::LetRun
        | Lease::Promise { .. }
        | Lease::Adopt { .. }
        | Lease::Release
        | Lease::StartBootstrap
        | Lease::AbandonBootstrap => false,
    }
}

/// What `name` would see.
fn supposed(view: &ClusterView, config: &Config, loss: &Loss, name: &MemberName, member: &Member) -> Snapshot {
    let leader = view.leader.as_ref().map(|key| key.name.clone());
    let mut after = ClusterView { leader: None, failover: None, ..view.clone() };
    if let Some(leader) = leader.as_ref().filter(|_| *loss == Loss::Death) {
        after.members.remove(leader);
    }
    if let Loss::Switchover(candidate) = loss {
        let (candidate, modified) = (candidate.clone(), Revision::default());
        after.failover = Some(Failover { leader: leader.clone(), candidate, schedule: None, modified });
    }
    // Whoever asks another member hears what that one last published; a leader that stopped in good order answers no more.
    let reply = |(other, member): (&MemberName, &Member)| {
        let gone = Some(other) == leader.as_ref() || member.state != "running";
        let answer = answer(member).filter(|_| !gone);
        let silent = || PeerReply::Unreachable("it is supposed to be gone, or is down".to_owned());
        (other.clone(), answer.map_or_else(silent, PeerReply::Answer))
    };
    let replies = view.members.iter().filter(|(other, _)| *other != name).map(reply).collect();
    let tags = Tags {
        nofailover: member.tags.nofailover,
        failover_priority: priority(member),
        nostream: member.tags.nostream,
        ..Tags::default()
    };
    let ends = Some(NOW + config.ttl);
    Snapshot {
        now: NOW,
        wall: Duration::ZERO,
        dice: 0,
        config: Config { name: name.clone(), tags, primary_race_backoff: Duration::ZERO, ..config.clone() },
        lease: LeaseView { id: Some(LeaseId(1)), ends },
        postgres: server(member, view.initialize.system_id()),
        job: None,
        peers: Some(Peers { at: NOW, replies }),
        agreement: None,
        namesake: None,
        guardian: Guardian::Ready,
        watchdog: Watchdog::Ready,
        order: Order::Run,
        request: None,
        memory: Memory {
            role: Role::Replica,
            met: true,
            since: Some(Instant::default()),
            last_led: leader.map(|leader| LastLed { leader, members: view.members.clone() }),
            last_position: member.xlog_location,
            paused: config.pause,
            ..Memory::default()
        },
        dcs: Ok(after),
    }
}

fn priority(member: &Member) -> i64 {
    if member.tags.nofailover { 0 } else { member.tags.failover_priority.unwrap_or(1) }
}

fn answer(member: &Member) -> Option<PeerAnswer> {
    Some(PeerAnswer {
        is_primary: false,
        position: member.xlog_location?,
        timeline: member.timeline,
        nofailover: member.tags.nofailover,
        failover_priority: priority(member),
        watchdog_failed: false,
    })
}

/// A standby where the member key says that one runs.
fn server(member: &Member, system_id: Option<SystemId>) -> PgState {
    let runs = member.state == "running";
    let control = system_id.map(|system_id| ControlData {
        system_id,
        state: ClusterState::InArchiveRecovery,
        timeline: member.timeline.unwrap_or(Timeline(1)),
        checkpoint: Lsn::default(),
        checkpoint_end: None,
        min_recovery: None,
        rewindable: false,
    });
    let sql = || SqlFacts {
        in_recovery: true,
        timeline: member.timeline,
        flush_lsn: Lsn::default(),
        receive_lsn: member.xlog_location,
        replay_lsn: member.xlog_location,
        replay_paused: false,
        replayed_at: None,
        streaming: false,
        latest_end_lsn: None,
        restores_from_archive: false,
        upstream: None,
        started_at: String::new(),
        server_version: 0,
        slots: Vec::new(),
        leader_xmins: BTreeMap::new(),
        log_gone: None,
        sync_names: String::new(),
        replication: Vec::new(),
        pending_restart: Vec::new(),
    };
    PgState {
        data_dir: DataDir::Present(Present { control, standby_signal: true, backup_label: false }),
        process: if runs { Process::Up { pid: 1 } } else { Process::Down },
        probe: if runs { Probe::Accepting } else { Probe::NotAsked },
        sql: runs.then(sql),
        local_history: Vec::new(),
        newer_history: Vec::new(),
        old_copy: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::SyncState;
    use crate::config::SyncMode;
    use crate::fixture::{primary, secs};

    /// a leads; b is at `b` and c at `c`.
    fn cluster(b: u64, c: u64) -> Snapshot {
        primary().with(|s| {
            let view = s.dcs.as_mut().expect("reachable");
            view.status.optime = Some(Lsn(1_000));
            for (name, at) in [("b", b), ("c", c)] {
                view.members.get_mut(&name.into()).expect("there").xlog_location = Some(Lsn(at));
            }
        })
    }

    fn rules(s: &Snapshot, loss: &Loss) -> Vec<(String, &'static str, bool)> {
        let all = without_leader(s.view().expect("reachable"), &s.config, loss);
        all.into_iter().map(|(name, decision)| (name.to_string(), decision.rule, runs(&decision))).collect()
    }

    fn of(b: (&'static str, bool), c: (&'static str, bool)) -> Vec<(String, &'static str, bool)> {
        vec![("b".to_owned(), b.0, b.1), ("c".to_owned(), c.0, c.1)]
    }

    #[test]
    fn the_member_with_the_most_log_runs() {
        let (runs, waits) = (("run_for_leader", true), ("wait_for_member_ahead", false));
        assert_eq!(rules(&cluster(1_000, 900), &Loss::Death), of(runs, waits));
        assert_eq!(rules(&cluster(1_000, 1_000), &Loss::Death), of(runs, runs), "the first compare wins");
        let far = cluster(1_000, 900);
        let mut far = far;
        far.config.maximum_lag_on_failover = 50;
        assert_eq!(rules(&far, &Loss::Death), of(runs, ("wait_behind", false)));
    }

    #[test]
    fn tags_lists_and_states_count() {
        let mut s = cluster(1_000, 1_000);
        let view = s.dcs.as_mut().expect("reachable");
        view.members.get_mut(&"b".into()).expect("there").tags.nofailover = true;
        view.members.get_mut(&"c".into()).expect("there").state = "stopped".into();
        assert_eq!(
            rules(&s, &Loss::Death),
            of(("wait_nofailover", false), ("start_without_upstream", false)),
            "nobody could lead"
        );
        let mut listed = cluster(1_000, 1_000);
        listed.config.synchronous_mode = SyncMode::On;
        let sync = SyncState { leader: "a".into(), standbys: ["c".into()].into(), quorum: 0 };
        listed.dcs.as_mut().expect("reachable").sync = Some(sync);
        assert_eq!(rules(&listed, &Loss::Death), of(("wait_unlisted", false), ("run_for_leader", true)));
    }

    #[test]
    fn a_switchover_goes_to_whom_it_names() {
        let to = |name: &str| Loss::Switchover(Some(name.into()));
        let (asked, leaves) = (("run_as_candidate", true), ("leave_it_to_candidate", false));
        assert_eq!(rules(&cluster(1_000, 1_000), &to("c")), of(leaves, asked));
        let any = rules(&cluster(1_000, 900), &Loss::Switchover(None));
        assert_eq!(any, of(("run_for_leader", true), ("wait_for_member_ahead", false)));
    }

    #[test]
    fn what_waits_for_time_to_pass_does_not_count() {
        let mut s = cluster(1_000, 900);
        s.config.primary_race_backoff = secs(60);
        assert_eq!(rules(&s, &Loss::Death)[0].1, "run_for_leader");
    }
}
