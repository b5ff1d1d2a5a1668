//! Another member holds the leader key: be its standby, or say why not.

use std::time::Duration;

use crate::cluster::Member;
use crate::memory::Role;
use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::{DataDir, Job, StopMode, Upkeep, Upstream};
use crate::request::Request;
use crate::slots;
use crate::snapshot::Snapshot;
use crate::units::{Lsn, MemberName};

/// How soon to look again at something that changes without an event.
const SOON: Duration = Duration::from_millis(500);
/// The pause between two attempts at the same thing.
const RETRY: Duration = Duration::from_secs(5);

/// Another member leads and we write: stop at once. The key is not ours to release. In a standby cluster that one does not
/// write, and a clean stop lets others have the last record.
pub(super) fn demote_when_another_leads(s: &Snapshot) -> Option<Verdict> {
    let mode = if s.config.standby_cluster.is_some() { StopMode::Fast } else { StopMode::Immediate };
    s.may_write().then(|| Verdict::new(Plan::of(Lease::Keep, Move::Stop(mode)), "another member holds the leader key"))
}

/// A server runs whose data directory is gone: it serves what nobody can restart. Stopped, then copied anew.
pub(super) fn stop_server_without_data(s: &Snapshot) -> Option<Verdict> {
    let gone = matches!(s.postgres.data_dir, DataDir::Empty | DataDir::Unfinished) && s.postgres.is_up();
    gone.then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate)),
            "PostgreSQL runs, but its data directory is gone",
        )
    })
}

/// A copy of ours that was interrupted: it never was anybody's data.
pub(super) fn clear_unfinished_copy(s: &Snapshot) -> Option<Verdict> {
    (s.postgres.data_dir == DataDir::Unfinished && !s.postgres.is_up()).then(|| {
        Verdict::new(
            Plan::of(Lease::Keep, Move::RemoveUnfinished),
            "the data directory is what an interrupted clone or initdb of ours left: removing it",
        )
    })
}

/// A failure of the last job, if it is too fresh to try again: how long to wait, and the cause.
pub(super) fn just_failed(s: &Snapshot, which: fn(&Job) -> bool) -> Option<(Duration, String)> {
    let last = s.memory.last_job.as_ref().filter(|last| which(&last.job))?;
    let cause = last.error.clone()?;
    let wait = RETRY.min(s.config.loop_wait).saturating_sub(s.now.since(last.at));
    (!wait.is_zero()).then_some((wait, cause))
}

/// A member that can be copied or followed: it runs, and its address is known.
pub(super) fn serves(member: &Member) -> Option<&String> {
    member.conn_url.as_ref().filter(|_| member.state == "running")
}

/// Fill the empty data directory from a member tagged `clonefrom`, else from the leader.
pub(super) fn clone(s: &Snapshot) -> Option<Verdict> {
    if s.postgres.data_dir != DataDir::Empty {
        return None;
    }
    if let Some((wait, cause)) = just_failed(s, |job| matches!(job, Job::Clone { .. })) {
        return Some(
            Verdict::new(Plan::stay(), format!("the last clone failed: {cause}; trying again")).again_in(wait),
        );
    }
    let view = s.view()?;
    let (leader, leader_member) = view.leader_member().unzip();
    let tagged: Vec<_> = view
        .members
        .iter()
        .filter(|(name, member)| member.tags.clonefrom && **name != s.config.name && Some(*name) != leader)
        .filter_map(|(name, member)| Some((name, serves(member)?)))
        .collect();
    let tagged =
        if matches!(s.request, Some(Request::Reinitialize { from_leader: true, .. })) { vec![] } else { tagged };
    let drawn = usize::try_from(s.dice).unwrap_or(0).checked_rem(tagged.len()).and_then(|i| tagged.get(i).copied());
    let Some((from, conn_url)) = drawn.or_else(|| leader.zip(leader_member.and_then(serves))) else {
        return Some(Verdict::new(Plan::stay(), "empty, and no member to clone from runs yet").again_in(SOON));
    };
    let (from, conn_url) = (from.clone(), conn_url.clone());
    let why = format!("the data directory is empty: cloning from {from}");
    Some(Verdict::new(Plan::of(Lease::Keep, Move::Clone { from, conn_url }), why))
}

/// Something is in the data directory that is no database of ours. Never ours to wipe.
pub(super) fn report_unusable_data(s: &Snapshot) -> Option<Verdict> {
    let why = match &s.postgres.data_dir {
        DataDir::Unusable(why) => why.clone(),
        DataDir::Unreadable(why) if s.sql().is_none() => why.clone(),
        DataDir::Present(present) if present.control.is_none() && !s.postgres.is_up() => {
            "its control file cannot be read; restore it, or empty the directory to have it cloned".to_owned()
        }
        DataDir::HalfRewound if !s.postgres.is_up() => format!(
            "pg_rewind began to change it and did not end, so that no server may start on it. {}",
            super::repair::BY_HAND
        ),
        DataDir::Unreadable(_) | DataDir::Present(_) | DataDir::Empty | DataDir::Unfinished | DataDir::HalfRewound => {
            return None;
        }
    };
    Some(Verdict::new(Plan::stay(), format!("the data directory cannot be used, and was left as it is: {why}")))
}

/// A start failed a moment ago.
pub(super) fn wait_after_failed_start(s: &Snapshot) -> Option<Verdict> {
    let (wait, cause) = just_failed(s, |job| matches!(job, Job::Start { .. })).filter(|_| !s.postgres.is_up())?;
    Some(Verdict::new(Plan::stay(), format!("PostgreSQL did not start: {cause}; trying again")).again_in(wait))
}

/// Whom to stream from: nobody (`nostream`), the member named by `replicatefrom` while it is there, else the leader. The leader
/// of a standby cluster streams from the remote, and so does everybody when there is none and nobody is to be disturbed by that.
pub(super) fn upstream(s: &Snapshot) -> Upstream {
    let Some(view) = s.view().filter(|_| !s.config.tags.nostream) else { return Upstream::Nobody };
    let headless = view.leader.is_none() && !s.config.pause;
    if let Some(remote) = super::standby_cluster::remote(s).filter(|_| headless || s.leads_standbys()) {
        return remote;
    }
    let of = |name: &MemberName| {
        let conn_url = view.members.get(name).filter(|_| *name != s.config.name)?.conn_url.clone()?;
        Some(Upstream::Member { name: name.clone(), conn_url })
    };
    let wished = view.cascades_from(&s.config.name, s.config.tags.replicatefrom.as_ref()).and_then(of);
    let without_key = || {
        let to = &s.agreement.as_ref().filter(|_| view.leader.is_none())?.to;
        Some(Upstream::Member { name: to.name.clone(), conn_url: to.conn_url.clone() })
    };
    wished.or_else(|| of(&view.leader.as_ref()?.name)).or_else(without_key).unwrap_or(Upstream::Nobody)
}

/// Down, and nothing against it: come up as a standby.
pub(super) fn start_as_standby(s: &Snapshot) -> Option<Verdict> {
    (!s.postgres.is_up()).then(|| {
        let upstream = upstream(s);
        let why = match &upstream {
            Upstream::Member { name, .. } => format!("starting as a standby of {name}"),
            Upstream::Nobody => "starting as a standby without an upstream".to_owned(),
        };
        Verdict::new(Plan::of(Lease::Keep, Move::StartStandby(upstream)), why)
    })
}

/// A standby answers queries only when it is consistent, and for that it may need log of its upstream. If that was nobody, or
/// is gone, it is given another one unasked; whom it was told to follow is remembered. PostgreSQL's startup process reads
/// `primary_conninfo` again when it is reloaded (PostgreSQL 13, release notes).
pub(super) fn follow_while_starting(s: &Snapshot) -> Option<Verdict> {
    let starting = s.is_starting() && s.memory.role == Role::Replica && s.job.is_none();
    let failed = just_failed(s, |job| *job == Job::Follow).is_some();
    let Upstream::Member { name, .. } = &upstream(s) else { return None };
    let told = s.memory.upstream.as_ref() == Some(&upstream(s));
    (starting && !failed && !told).then(|| {
        let why = format!("it starts, and was told to follow somebody else: {name} leads now");
        Verdict::new(Plan::of(Lease::Keep, Move::Follow(upstream(s))), why)
    })
}

/// No verdict on a server that is still starting, or did not answer.
pub(super) fn wait_while_starting(s: &Snapshot) -> Option<Verdict> {
    (s.standby().is_none())
        .then(|| Verdict::new(Plan::stay(), "PostgreSQL does not answer queries (yet)").again_in(SOON))
}

/// `host:port` of a `postgres://host:port/dbname`.
fn host_and_port(conn_url: &str) -> Option<&str> {
    let rest = conn_url.split_once("://").map_or(conn_url, |(_, rest)| rest);
    rest.split(['/', '?']).next()
}

/// The upstream in force is not the one wanted.
pub(super) fn follow_leader(s: &Snapshot) -> Option<Verdict> {
    let standby = s.standby().filter(|_| s.job.is_none())?;
    if let Some((wait, cause)) = just_failed(s, |job| *job == Job::Follow) {
        return Some(Verdict::new(Plan::stay(), format!("could not change the upstream: {cause}")).again_in(wait));
    }
    let wanted = upstream(s);
    let (same, whom) = match &wanted {
        Upstream::Nobody => (standby.upstream.is_none() || !s.config.tags.nostream, "nobody".to_owned()),
        Upstream::Member { name, conn_url } => {
            (standby.upstream.as_deref() == host_and_port(conn_url), name.to_string())
        }
    };
    (!same).then(|| {
        let why = format!("following {whom} instead of {}", standby.upstream.as_deref().unwrap_or("nobody"));
        Verdict::new(Plan::of(Lease::Keep, Move::Follow(wanted)), why)
    })
}

/// A higher setting on the primary pauses the replay of a standby without a word (PostgreSQL 14 and later): without this it
/// falls behind for ever. An operator who wants replay paused pauses the cluster.
pub(super) fn resume_replay(s: &Snapshot) -> Option<Verdict> {
    let paused = s.standby().is_some_and(|sql| sql.replay_paused && sql.server_version >= 140_000);
    let refused = just_failed(s, |job| *job == Job::ResumeReplay).is_some();
    (paused && !refused && s.job.is_none()).then(|| {
        Verdict::new(Plan::of(Lease::Keep, Move::ResumeReplay), "replay is paused, and the cluster is not: resuming it")
    })
}

/// Slots of the other members, before we lead: they keep what those members still need, and no more.
pub(super) fn prepare_slots(s: &Snapshot) -> Option<Verdict> {
    super::leader::change_slots(s, s.standby()?, Vec::new())
}

/// A consumer of a logical slot goes on after a failover only where a copy of the slot is, and no server takes one while it runs.
/// Never while a commit may wait for this member.
pub(super) fn copy_slots(s: &Snapshot) -> Option<Verdict> {
    let slots::Copy { slots, from, conn_url } =
        slots::to_copy(s).filter(|_| s.job.is_none() && !super::synchronous::is_awaited(s))?;
    let names: Vec<_> = slots.keys().map(String::as_str).collect();
    let why = format!("copying logical slots of {from}, for which PostgreSQL is restarted: {}", names.join(", "));
    let copy = Move::CopySlots { slots, from, conn_url, upstream: upstream(s) };
    Some(Verdict::new(Plan::of(Lease::Keep, copy), why))
}

/// A standby that waits for log is told what it waits for: PostgreSQL itself tries again for ever, and says so in its log only.
/// Nothing in it is lost to the cluster, but it takes a human: a copy of the whole may take a day.
pub(super) fn report_missing_log(s: &Snapshot) -> Option<Verdict> {
    let (leader, _, at) = waits_for_log(s)?;
    let sql = s.standby()?;
    (sql.log_gone == Some(at) && !sql.restores_from_archive).then(|| {
        let why = format!(
            "{leader} has removed its log from {at} on, which this member needs to follow: `regentctl reinit` copies it anew; where an \
             archive has that log, set restore_command"
        );
        Verdict::new(Plan { upkeep: upkeep(s), ..Plan::stay() }, why)
    })
}

/// Whom a standby that does not stream wants log from, and from where on.
fn waits_for_log(s: &Snapshot) -> Option<(MemberName, String, Lsn)> {
    let sql = s.standby().filter(|sql| !sql.streaming)?;
    // Only who leads can tell: a standby does not know which log it will have.
    let leads = |name: &MemberName| s.view().and_then(|view| view.leader.as_ref()).is_some_and(|key| key.name == *name);
    match upstream(s) {
        Upstream::Member { name, conn_url } if leads(&name) => {
            Some((name, conn_url, sql.receive_lsn.max(sql.replay_lsn)?))
        }
        Upstream::Member { .. } | Upstream::Nobody => None,
    }
}

fn upkeep(s: &Snapshot) -> Option<Upkeep> {
    let needs = waits_for_log(s).map(|(_, conn_url, at)| (conn_url, at));
    slots::upkeep(s).or_else(|| needs.map(|needs| Upkeep { needs: Some(needs), ..Upkeep::default() }))
}

/// A standby, following.
pub(super) fn stay_standby(s: &Snapshot) -> Verdict {
    let leader = s.view().and_then(|view| view.leader.as_ref()).map(|key| key.name.to_string()).unwrap_or_default();
    let streams = s.standby().is_some_and(|sql| sql.streaming);
    Verdict::new(
        Plan { upkeep: upkeep(s), ..Plan::stay() },
        format!("a standby, {} {leader}", if streams { "streaming from" } else { "following" }),
    )
}

#[cfg(test)]
mod tests {
    use crate::cluster::SyncState;
    use crate::config::{PermanentSlot, SyncMode};
    use crate::fixture::{decodes, primary, secs, standby};
    use crate::memory::{LeaseOutcome, Role};
    use crate::plan::{Lease, Move};
    use crate::postgres::{DataDir, FinishedJob, Job, SlotChanges, StopMode, Upstream};
    use crate::rules::decide;
    use crate::snapshot::Snapshot;
    use crate::units::Lsn;

    #[test]
    fn demote_when_another_leads() {
        let d = decide(&primary().led_by("b").build());
        assert_eq!((d.rule, d.plan.postgres), ("demote_when_another_leads", Move::Stop(StopMode::Immediate)));
        assert_eq!(d.plan.lease, Lease::Keep, "the key is not ours to release");
    }

    #[test]
    fn stop_server_without_data() {
        let s = standby().with(|s| s.postgres.data_dir = DataDir::Empty);
        assert_eq!(decide(&s).plan.postgres, Move::Stop(StopMode::Immediate));
    }

    #[test]
    fn clone_prefers_a_tagged_member_and_waits_for_one_that_runs() {
        let from = |s| {
            let plan = decide(&s).plan.postgres;
            if let Move::Clone { from, .. } = plan { from.0 } else { format!("{plan:?}") }
        };
        assert_eq!(from(standby().empty().build()), "b");
        assert_eq!(from(standby().empty().member("c", |m| m.tags.clonefrom = true).build()), "c");
        assert_eq!(from(standby().empty().member("b", |m| m.state = "starting".into()).build()), "Stay");
    }

    #[test]
    fn a_failed_clone_is_tried_again_after_a_pause() {
        let failed = |ago| {
            standby().empty().with(|s| {
                let job = Job::Clone { from: "b".into() };
                s.memory.last_job = Some(FinishedJob { job, at: s.now.minus(secs(ago)), error: Some("no".into()) });
            })
        };
        assert_eq!(decide(&failed(4)).plan.postgres, Move::Stay);
        assert_ne!(decide(&failed(5)).plan.postgres, Move::Stay);
    }

    #[test]
    fn wait_after_failed_start() {
        for (ago, rule) in [(0, "wait_after_failed_start"), (4, "wait_after_failed_start"), (5, "start_as_standby")] {
            let failed = standby().down().with(|s| {
                let job = Job::Start { as_primary: false };
                s.memory.last_job = Some(FinishedJob { job, at: s.now.minus(secs(ago)), error: Some("no".into()) });
            });
            assert_eq!(decide(&failed).rule, rule, "{ago} s after it");
        }
    }

    #[test]
    fn foreign_data_is_never_touched() {
        let s = standby().down().with(|s| s.postgres.data_dir = DataDir::Unusable("PG_VERSION is 12".into()));
        assert_eq!((decide(&s).rule, decide(&s).plan.postgres), ("report_unusable_data", Move::Stay));
        let ours = standby().down().with(|s| s.postgres.data_dir = DataDir::Unfinished);
        assert_eq!(
            (decide(&ours).rule, decide(&ours).plan.postgres),
            ("clear_unfinished_copy", Move::RemoveUnfinished)
        );
    }

    #[test]
    fn follow_leader() {
        let new_leader = standby().led_by("c").build();
        assert!(
            matches!(decide(&new_leader).plan.postgres, Move::Follow(Upstream::Member { name, .. }) if name.0 == "c")
        );
        let cascade = standby().with(|s| s.config.tags.replicatefrom = Some("c".into()));
        assert!(matches!(decide(&cascade).plan.postgres, Move::Follow(Upstream::Member { name, .. }) if name.0 == "c"));
        let myself = standby().with(|s| s.config.tags.replicatefrom = Some("a".into()));
        assert_eq!(decide(&myself).rule, "stay_standby", "never myself");
        let chain = |b: &'static str, c: &'static str| {
            let on =
                |from: &'static str| move |m: &mut crate::cluster::Member| m.tags.replicatefrom = Some(from.into());
            let chained = standby().led_by("b").member("b", on(b)).member("c", on(c));
            decide(&chained.with(|s| s.config.tags.replicatefrom = Some("c".into()))).plan.postgres
        };
        assert!(matches!(chain("gone", "b"), Move::Follow(Upstream::Member { name, .. }) if name.0 == "c"), "a chain");
        assert!(matches!(chain("c", "b"), Move::Follow(_)), "who leads streams from none of them");
        assert_eq!(chain("gone", "a"), Move::Stay, "we and c would stream from each other (Z7)");
        assert_eq!(chain("gone", "c"), Move::Stay, "c names itself");
        let archive_only = standby().with(|s| s.config.tags.nostream = true);
        assert_eq!(decide(&archive_only).plan.postgres, Move::Follow(Upstream::Nobody));
    }

    #[test]
    fn follow_while_starting() {
        let with_role = |role| standby().starting(secs(1)).but(move |s| s.memory.role = role);
        let starting = || with_role(Role::Replica);
        let b = decide(&standby().down().build()).plan.postgres;
        let Move::StartStandby(b) = b else { panic!("{b:?}") };
        let rule = |told: Option<Upstream>| decide(&starting().with(|s| s.memory.upstream = told)).rule;
        assert_eq!(rule(Some(Upstream::Nobody)), "follow_while_starting");
        assert_eq!(rule(None), "follow_while_starting", "nobody remembers");
        assert_eq!(rule(Some(b.clone())), "wait_while_starting");
        let failed = |s: &mut Snapshot| {
            s.memory.last_job = Some(FinishedJob { job: Job::Follow, at: s.now, error: Some("no".into()) });
        };
        assert_eq!(decide(&starting().with(failed)).rule, "wait_while_starting");
        let unknown = with_role(Role::Uninitialized).build();
        assert_eq!(decide(&unknown).rule, "wait_while_starting", "it may be one that starts as a primary");
        let no_address = starting().without_member("b").build();
        assert_eq!(decide(&no_address).rule, "wait_while_starting");
        let s = starting().build();
        let next = s.memory.after(&s, &decide(&s), LeaseOutcome::NotTried);
        assert_eq!(next.upstream, Some(b), "and then it is told");
    }

    #[test]
    fn report_missing_log() {
        let waiting = |gone: Option<u64>| {
            standby().but(move |s| {
                let sql = s.postgres.sql.as_mut().expect("answers");
                (sql.streaming, sql.receive_lsn, sql.replay_lsn) = (false, Some(Lsn(500)), Some(Lsn(400)));
                sql.log_gone = gone.map(Lsn);
            })
        };
        let asked = decide(&waiting(None).build());
        assert_eq!(asked.rule, "stay_standby");
        assert_eq!(
            asked.plan.upkeep.and_then(|upkeep| upkeep.needs).map(|(_, at)| at),
            Some(Lsn(500)),
            "the leader is asked"
        );
        let gone = decide(&waiting(Some(500)).build());
        assert_eq!((gone.rule, gone.plan.postgres), ("report_missing_log", Move::Stay));
        assert!(gone.plan.upkeep.is_some(), "and asked again: the archive may bring it");
        assert_eq!(decide(&waiting(Some(400)).build()).rule, "stay_standby", "it has moved on since");
        let from_archive =
            waiting(Some(500)).with(|s| s.postgres.sql.as_mut().expect("answers").restores_from_archive = true);
        assert_eq!(decide(&from_archive).rule, "stay_standby");
        let streaming = waiting(Some(500)).with(|s| s.postgres.sql.as_mut().expect("answers").streaming = true);
        assert_eq!((decide(&streaming).rule, decide(&streaming).plan.upkeep), ("stay_standby", None));
    }

    #[test]
    fn a_stopped_member_starts_as_a_standby_of_the_leader() {
        let d = decide(&standby().down().build());
        assert!(matches!(d.plan.postgres, Move::StartStandby(Upstream::Member { name, .. }) if name.0 == "b"));
        let leader_unknown = standby().down().without_member("b").build();
        assert_eq!(decide(&leader_unknown).plan.postgres, Move::StartStandby(Upstream::Nobody));
    }

    #[test]
    fn prepare_slots() {
        let s = standby().without_slots().build();
        assert_eq!(decide(&s).plan.postgres, Move::ChangeSlots(SlotChanges::creating(["b", "c"])));
        let never_leads = standby().without_slots().nofailover().build();
        assert_eq!(decide(&never_leads).rule, "stay_standby");
    }

    #[test]
    fn copy_slots() {
        let missing = || {
            standby().but(|s| {
                let logical = PermanentSlot::Logical(decodes("d", "p"));
                s.config.permanent_slots = [("x".into(), logical)].into();
                s.dcs.as_mut().unwrap().status.slots = [("x".into(), Lsn(500))].into();
            })
        };
        let s = missing().build();
        let d = decide(&s);
        assert_eq!(d.rule, "copy_slots");
        assert!(
            matches!(&d.plan.postgres, Move::CopySlots { slots, from, upstream: Upstream::Member { name, .. }, .. }
            if slots.contains_key("x") && from.0 == "b" && name.0 == "b")
        );
        let mut next = s.clone();
        next.memory = s.memory.after(&s, &d, LeaseOutcome::NotTried);
        assert_eq!(decide(&next).rule, "stay_standby", "once, and then a pause");
        let awaited = |s: &mut Snapshot| {
            s.config.synchronous_mode = SyncMode::On;
            let view = s.dcs.as_mut().unwrap();
            view.sync = Some(SyncState { leader: "b".into(), standbys: ["a".into()].into(), quorum: 0 });
        };
        let s = missing().with(awaited);
        assert!(s.is_to_go_down(), "its member key says so");
        assert_eq!(decide(&s).rule, "ask_to_be_released");
        let in_vain = missing().but(awaited).with(|s| s.memory.ordered_since = Some(s.now.minus(secs(100))));
        assert_eq!(decide(&in_vain).rule, "stay_standby", "no commit waits for a copy");
    }

    #[test]
    fn resume_replay() {
        let paused = || standby().with(|s| s.postgres.sql.as_mut().expect("answers").replay_paused = true);
        assert_eq!(decide(&paused()).plan.postgres, Move::ResumeReplay);
        let mut old = paused();
        old.postgres.sql.as_mut().expect("answers").server_version = 130_000;
        assert_eq!(decide(&old).rule, "stay_standby");
        let mut cluster_paused = paused();
        cluster_paused.config.pause = true;
        assert_eq!(decide(&cluster_paused).rule, "hands_off");
    }
}
