//! Synchronous replication: the primary's next step, who may stand for election, and how a standby takes its leave
//! (ha-rules sections 14 and 15). What is wanted is in [`crate::sync`].

use std::time::Duration;

use super::election::PATIENCE;
use super::leader::records;
use super::switchover::{asked_for_me, is_switchover};
use crate::cluster::SyncState;
use crate::config::SyncMode;
use crate::peers::PeerAnswer;
use crate::plan::{KeyWrite, Lease, Move, Plan, Verdict};
use crate::snapshot::{Seat, Snapshot};
use crate::sync::{Todo, before_promotion, lists, next};
use crate::units::MemberName;

/// How soon standbys are looked at again that are about to confirm.
pub(super) const SETTLING: Duration = Duration::from_millis(300);

/// The state in force: nobody but those listed has every acknowledged commit.
fn active(s: &Snapshot) -> Option<&SyncState> {
    s.view()?.sync.as_ref().filter(|_| s.config.synchronous_mode != SyncMode::Off)
}

/// May this member be promoted, as far as acknowledged commits go? Everybody, when nobody is waited for.
pub(super) fn has_all_commits(s: &Snapshot, name: &MemberName) -> bool {
    active(s).is_none_or(|sync| lists(sync.standbys.iter().chain([&sync.leader]), name))
}

/// Votes that whoever takes over from me needs beside its own (FP).
pub(super) fn votes_needed(s: &Snapshot) -> usize {
    active(s).filter(|_| s.config.synchronous_mode == SyncMode::Quorum).map_or(0, |sync| sync.quorum)
}

/// May this member take over from me, the leader, without losing a commit?
pub(super) fn is_listed(s: &Snapshot, name: &MemberName) -> bool {
    active(s).is_none_or(|sync| lists(&sync.standbys, name))
}

/// The old primary in a synchronous mode: what it has and nobody else has was acknowledged to nobody (R17).
pub(super) fn wrote_last(s: &Snapshot, name: &MemberName) -> bool {
    active(s).is_some_and(|sync| lists([&sync.leader], name))
}

/// Commits may wait for this very member.
pub(super) fn is_awaited(s: &Snapshot) -> bool {
    active(s).is_some_and(|sync| lists(&sync.standbys, &s.config.name))
}

fn write(s: &Snapshot, sync: Option<SyncState>) -> Vec<KeyWrite> {
    vec![KeyWrite::Sync { sync, seen: s.view().and_then(|view| view.sync_seen) }]
}

/// A second failover right now must not believe stale names, nor the new primary acknowledge alone (Y8, Q7).
pub(super) fn prepare_promotion(s: &Snapshot) -> Option<Verdict> {
    Some(match before_promotion(s)? {
        Todo::Publish(sync) => {
            let plan = Plan::stay().and_write(write(s, sync));
            Verdict::new(plan, "before the promotion: nobody but this member may lead").again_in(Duration::ZERO)
        }
        Todo::WaitFor(names) if s.job.is_none() => {
            let why = format!("before the promotion: synchronous_standby_names = {names:?}");
            Verdict::new(Plan::of(Lease::Keep, Move::SetSyncNames(names)), why)
        }
        Todo::WaitFor(_) | Todo::Settle => {
            Verdict::new(Plan::stay(), "before the promotion: waiting for what is under way").again_in(SETTLING)
        }
    })
}

/// The last write of `sync` was not answered, and nothing has come of it: it may still come, and say what was true then.
fn in_doubt(s: &Snapshot) -> bool {
    let stands_at = s.view().and_then(|view| view.sync_seen);
    stands_at.is_some() && s.memory.sync_written_over == stands_at
}

/// The server was told to wait for others than it says: it will, now or when it reads its configuration. Whoever is listed by what
/// it says today would then be listed without being waited for (S5).
fn will_wait_for_others(s: &Snapshot) -> bool {
    s.memory.sync_told.as_ref().is_some_and(|told| s.sql().is_some_and(|sql| sql.sync_names != *told))
}

/// Whether more members may lead by this than now, or with fewer votes: that rests on what the server waits for.
fn allows_more(s: &Snapshot, sync: Option<&SyncState>) -> bool {
    let listed = s.view().and_then(|view| view.sync.as_ref());
    sync.is_some_and(|sync| {
        let newly = |name| listed.is_none_or(|now| !lists(&now.standbys, name));
        sync.standbys.iter().any(newly)
            || listed.is_some_and(|now| sync.quorum < now.quorum && !sync.standbys.is_empty())
    })
}

/// Who may be promoted: a member less before the server stops waiting for it, one more after it has acknowledged. And the same
/// once more before the server waits for others while an earlier write is in doubt: that one compares the revision, and fails
/// from then on.
pub(super) fn publish_sync(s: &Snapshot) -> Option<Verdict> {
    let sync = match next(s)? {
        Todo::Publish(sync) if allows_more(s, sync.as_ref()) && will_wait_for_others(s) => return None,
        Todo::Publish(sync) => sync,
        Todo::WaitFor(_) if in_doubt(s) => s.view()?.sync.clone(),
        Todo::WaitFor(_) | Todo::Settle => return None,
    };
    let why = match &sync {
        None => "the synchronous mode is off: nobody is listed any more".to_owned(),
        Some(sync) if sync.standbys.is_empty() => "no synchronous standby: nobody but this member may lead".to_owned(),
        Some(sync) => {
            let names: Vec<_> = sync.standbys.iter().map(ToString::to_string).collect();
            format!("may lead with every commit: {} (quorum {})", names.join(", "), sync.quorum)
        }
    };
    let mut keys = write(s, sync);
    keys.extend(records(s));
    Some(Verdict::new(Plan::stay().and_write(keys), why).again_in(Duration::ZERO))
}

/// Whom the server waits for. If it is to stay what it is, but the server was told something else meanwhile, it is told again.
pub(super) fn wait_for_standbys(s: &Snapshot) -> Option<Verdict> {
    let names = match next(s)? {
        Todo::WaitFor(names) => names,
        Todo::Publish(_) if will_wait_for_others(s) => Some(s.sql()?.sync_names.clone()),
        Todo::Publish(_) | Todo::Settle => return None,
    };
    let failed = super::follower::just_failed(s, |job| *job == crate::postgres::Job::SetSyncNames).is_some();
    (s.job.is_none() && !failed).then(|| {
        let why = match &names {
            None => "synchronous_standby_names goes back to what was configured".to_owned(),
            Some(names) => format!("synchronous_standby_names = '{names}'"),
        };
        Verdict::new(Plan::of(Lease::Keep, Move::SetSyncNames(names)).and_write(records(s)), why)
    })
}

/// When to look again at standbys that are about to confirm.
pub(super) fn settles_in(s: &Snapshot) -> Option<Duration> {
    next(s).is_some().then_some(SETTLING)
}

/// Not every acknowledged commit is here: a manual failover to this very member may want it all the same, nothing else. With a
/// quorum the votes tell, but a switchover goes to a voter (R8).
pub(super) fn wait_unlisted(s: &Snapshot) -> Option<Verdict> {
    let listed_only = s.config.synchronous_mode == SyncMode::On || is_switchover(s);
    let sync = active(s).filter(|_| listed_only && !asked_for_me(s))?;
    (!has_all_commits(s, &s.config.name)).then(|| {
        let names: Vec<_> = sync.standbys.iter().chain([&sync.leader]).map(ToString::to_string).collect();
        let why = format!("synchronous mode: only {} may lead", names.join(" or "));
        Verdict::new(Plan::stay(), why).again_in(PATIENCE)
    })
}

/// Quorum: as many voters must be no farther than this member as make sure that one of them has every commit (R19).
pub(super) fn wait_for_votes(s: &Snapshot) -> Option<Verdict> {
    let sync = active(s).filter(|_| s.config.synchronous_mode == SyncMode::Quorum && !asked_for_me(s))?;
    let mine = s.standby()?;
    let voters = || sync.standbys.iter().chain([&sync.leader]);
    let me = lists(voters(), &s.config.name);
    let no_farther = |answer: &PeerAnswer| answer.position.0 > 0 && answer.position <= mine.position();
    let answers = s.fresh_peers().into_iter().flat_map(|peers| peers.answers());
    let votes = answers
        .filter(|(name, a)| lists(voters(), name) && !a.nofailover && !a.watchdog_failed && no_farther(a))
        .count();
    // The last primary has all that it acknowledged. But if another member has had the key since, it may have been promoted, and
    // this log rewound or copied, although `sync` does not say so yet.
    let nobody_since = s.view()?.promise.as_ref().is_none_or(|key| lists([&key.promise.holder], &s.config.name));
    let last_primary = nobody_since && lists([&sync.leader], &s.config.name);
    // Whoever is no voter needs one more.
    let enough = votes >= sync.quorum + usize::from(!me) || last_primary;
    (!enough).then(|| {
        let why = format!("quorum: {votes} votes of {} that are needed", sync.quorum + usize::from(!me));
        Verdict::new(Plan::stay(), why).again_in(PATIENCE)
    })
}

/// A synchronous standby that is to stop is released first: the primary would wait for it (D8, T4). Its member key says
/// `nosync` meanwhile.
pub(super) fn ask_to_be_released(s: &Snapshot) -> Option<Verdict> {
    let patience = s.config.loop_wait * 2;
    let waited = s.memory.ordered_since.map_or(Duration::ZERO, |since| s.now.since(since));
    let somebody_waits = is_awaited(s) && s.seat() == Seat::Theirs;
    let wanted = s.is_to_go_down() && somebody_waits && s.standby().is_some() && s.job.is_none();
    (wanted && waited < patience).then(|| {
        Verdict::new(Plan::stay(), "about to go down on purpose: the primary is to stop waiting for this standby first")
            .again_in(SETTLING)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::cluster::SyncState;
    use crate::config::SyncMode;
    use crate::fixture::{Builder, primary, secs, standby};
    use crate::plan::{KeyWrite, Lease, Move};
    use crate::rules::decide;
    use crate::snapshot::Snapshot;
    use crate::sync::{NOBODY, Since};
    use crate::units::{Lsn, Revision};

    fn listed(leader: &str, standbys: &[&str], quorum: usize) -> impl Fn(&mut Snapshot) + use<> {
        let standbys = standbys.iter().map(|name| (*name).into()).collect();
        let sync = SyncState { leader: leader.into(), standbys, quorum };
        move |s| {
            let view = s.dcs.as_mut().expect("reachable");
            (view.sync, view.sync_seen) = (Some(sync.clone()), Some(Revision(70)));
        }
    }

    fn mode(mode: SyncMode) -> impl Fn(&mut Snapshot) {
        move |s| s.config.synchronous_mode = mode
    }

    /// The server waits for this, and these standbys stream; confirmed since a while ago.
    fn waits(names: &'static str, senders: &'static [(&'static str, &'static str)]) -> impl Fn(&mut Snapshot) {
        move |s| {
            let now = s.now;
            s.memory.primary_since = Some(now.minus(secs(100)));
            s.memory.sync_names = Some(Since { names: names.into(), at: now.minus(secs(50)), mark: Some(Lsn(900)) });
            let sql = s.postgres.sql.as_mut().expect("answers");
            sql.sync_names = names.into();
            sql.replication =
                senders.iter().map(|(name, state)| crate::fixture::sender(name, state, Lsn(1_000))).collect();
        }
    }

    fn published(s: &Snapshot) -> String {
        let d = decide(s);
        let [KeyWrite::Sync { sync, seen: _ }, ..] = &d.plan.keys[..] else { return d.rule.to_owned() };
        let names = |sync: &SyncState| sync.standbys.iter().map(|name| name.0.clone()).collect::<Vec<_>>().join(",");
        sync.as_ref().map_or("none".to_owned(), |sync| format!("{}: {} q{}", sync.leader, names(sync), sync.quorum))
    }

    fn waited_for(s: &Snapshot) -> String {
        let next = decide(s).plan.postgres;
        if let Move::SetSyncNames(names) = next { names.unwrap_or("the user's".into()) } else { format!("{next:?}") }
    }

    #[test]
    fn an_unanswered_write_comes_to_nothing_before_others_are_waited_for() {
        // c had gone, the write that took it off the list is not answered, and now b has gone and c is back.
        let s = primary().with(|s| {
            mode(SyncMode::Quorum)(s);
            listed("a", &["b", "c"], 1)(s);
            waits("ANY 1 (b,c)", &[("c", "quorum")])(s);
        });
        assert_eq!(published(&s), "wait_for_standbys");
        let mut doubtful = s.clone();
        doubtful.memory.sync_written_over = Some(Revision(70));
        assert_eq!(published(&doubtful), "a: b,c q1", "the same again: the other write compares the revision");
        doubtful.dcs.as_mut().expect("reachable").sync_seen = Some(Revision(71));
        assert_eq!(published(&doubtful), "wait_for_standbys");
        let d = decide(&listed_anew(&s));
        assert_eq!(
            s.memory.after(&listed_anew(&s), &d, crate::memory::LeaseOutcome::NotTried).sync_written_over,
            Some(Revision(70))
        );
    }

    /// Nobody streams any more: nobody must be listed.
    fn listed_anew(s: &Snapshot) -> Snapshot {
        let mut s = s.clone();
        s.postgres.sql.as_mut().expect("answers").replication.clear();
        s
    }

    #[test]
    fn nobody_is_listed_by_what_the_server_is_about_to_forget() {
        // It waits for b, and was told to wait for c; now b is the better one again, and has confirmed.
        let s = |told: &'static str| {
            primary().but(mode(SyncMode::On)).but(listed("a", &[], 0)).with(|s| {
                waits("b", &[("b", "sync"), ("c", "async")])(s);
                s.memory.sync_told = Some(told.to_owned());
            })
        };
        assert_eq!(published(&s("b")), "a: b q0");
        assert_eq!(published(&s("c")), "wait_for_standbys");
        assert_eq!(waited_for(&s("c")), "b", "said once more");
        let mut under_way = s("c");
        let job = crate::postgres::Job::SetSyncNames;
        under_way.job = Some(crate::postgres::RunningJob { job, since: under_way.now });
        assert_eq!(waited_for(&under_way), "Stay");
        // Nor do fewer votes do.
        let votes = |told: &'static str| {
            primary().but(mode(SyncMode::Quorum)).but(listed("a", &["b", "c"], 1)).with(|s| {
                waits("ANY 2 (b,c)", &[("b", "quorum"), ("c", "quorum")])(s);
                s.config.synchronous_node_count = 2;
                s.memory.sync_told = Some(told.to_owned());
            })
        };
        assert_eq!(published(&votes("ANY 2 (b,c)")), "a: b,c q0");
        assert_eq!(published(&votes("ANY 1 (b,c)")), "wait_for_standbys");
        // Nobody less is listed at once, whatever the server was told.
        let mut gone = s("c");
        listed("a", &["b"], 0)(&mut gone);
        gone.postgres.sql.as_mut().expect("answers").replication.clear();
        assert_eq!(published(&gone), "a:  q0");
    }

    const ASYNC: &[(&str, &str)] = &[("b", "async"), ("c", "async")];

    #[test]
    fn publish_sync() {
        let on = |listed_now: &[&str], names, senders| {
            let s = primary().but(mode(SyncMode::On)).but(listed("a", listed_now, 0)).but(waits(names, senders));
            published(&s.build())
        };
        assert_eq!(published(&primary().but(mode(SyncMode::On)).build()), "a:  q0", "first of all (Y1)");
        let after_failover = primary().but(mode(SyncMode::On)).but(listed("b", &["a"], 0)).build();
        assert_eq!(published(&after_failover), "a:  q0", "Y2");
        assert_eq!(on(&[], "b", &[("b", "sync"), ("c", "async")]), "a: b q0", "it has acknowledged (Y7)");
        assert_eq!(on(&["b"], "b", &[("c", "async")]), "a:  q0", "a member less, before the server knows (Y5)");
        assert_eq!(on(&["b"], "b", &[("b", "sync"), ("c", "async")]), "lead", "all is as it should be (Y4)");
        let mode_off = primary().but(listed("a", &["b"], 0)).build();
        assert_eq!(published(&mode_off), "none", "Y9");
        let fresh = primary().but(mode(SyncMode::On)).but(listed("a", &[], 0)).but(waits("b", &[("b", "sync")]));
        let not_settled = fresh.with(|s| s.memory.sync_names.as_mut().expect("set").mark = None);
        assert_eq!(published(&not_settled), "lead", "not every WAL sender goes by the new names yet");
        assert!(decide(&not_settled).look_again < secs(1));
    }

    #[test]
    fn wait_for_standbys() {
        let on = |listed_now: &[&str], names, senders| {
            primary().but(mode(SyncMode::On)).but(listed("a", listed_now, 0)).but(waits(names, senders))
        };
        assert_eq!(waited_for(&on(&[], "", ASYNC).build()), "b");
        assert_eq!(waited_for(&on(&[], "", ASYNC).with(|s| s.config.synchronous_node_count = 2)), "2 (b,c)");
        assert_eq!(waited_for(&on(&[], "b", &[]).build()), "", "Y6");
        let strict = |s: &mut Snapshot| s.config.synchronous_mode_strict = true;
        assert_eq!(waited_for(&on(&[], "b", &[]).with(strict)), NOBODY, "strict: never alone");
        let nosync = on(&[], "", ASYNC).member("b", |m| m.tags.nosync = true).build();
        assert_eq!(waited_for(&nosync), "c");
        let preferred = on(&[], "", ASYNC).member("c", |m| m.tags.sync_priority = Some(2)).build();
        assert_eq!(waited_for(&preferred), "c");
        let behind = on(&[], "", ASYNC).with(|s| {
            s.config.maximum_lag_on_syncnode = Some(10);
            s.postgres.sql.as_mut().expect("answers").replication[0].position = Some(Lsn(900));
        });
        assert_eq!(waited_for(&behind), "c");
        let off = primary().with(|s| s.memory.set_sync_names = true);
        assert_eq!(waited_for(&off), "the user's");
        let quorum = primary().but(mode(SyncMode::Quorum)).but(listed("a", &[], 0)).but(waits("", ASYNC)).build();
        assert_eq!(waited_for(&quorum), "ANY 1 (b,c)");
    }

    #[test]
    fn quorum_publishes_what_makes_the_sets_overlap() {
        let quorum = |listed_now: &[&str], q, names, senders| {
            primary().but(mode(SyncMode::Quorum)).but(listed("a", listed_now, q)).but(waits(names, senders)).build()
        };
        let both = &[("b", "quorum"), ("c", "quorum")];
        assert_eq!(published(&quorum(&[], 0, "ANY 1 (b,c)", both)), "a: b,c q1");
        assert_eq!(published(&quorum(&["b", "c"], 1, "ANY 1 (b,c)", both)), "lead");
        assert_eq!(waited_for(&quorum(&["b", "c"], 1, "ANY 1 (b,c)", &[("b", "quorum")])), "ANY 1 (b)");
        let just_promoted = |s: &mut Snapshot| s.memory.primary_since = Some(s.now);
        let s = primary().but(mode(SyncMode::Quorum)).but(listed("a", &["b"], 0)).but(waits("ANY 1 (b)", &[]));
        assert_eq!(published(&s.with(just_promoted)), "lead", "standbys need time to come back (Q3)");
    }

    #[test]
    fn prepare_promotion() {
        let won = || standby().holding_the_key().promised("a", 2).but(mode(SyncMode::On)).but(listed("b", &["a"], 0));
        assert_eq!(published(&won().build()), "a:  q0", "Y8");
        let ready = || won().but(listed("a", &[], 0));
        assert_eq!(decide(&ready().build()).rule, "promote");
        let strict = ready().with(|s| s.config.synchronous_mode_strict = true);
        assert_eq!(waited_for(&strict), NOBODY);
        let stale = ready().with(|s| s.postgres.sql.as_mut().expect("answers").sync_names = "b".into());
        assert_eq!(waited_for(&stale), "", "Y10");
        let quorum = won().but(mode(SyncMode::Quorum)).but(listed("b", &["a", "c"], 1)).build();
        assert_eq!(waited_for(&quorum), "ANY 1 (b,c)", "Q7");
        let told = |ago: u64| {
            won().but(mode(SyncMode::Quorum)).but(listed("b", &["a", "c"], 1)).with(|s| {
                let names = String::from("ANY 1 (b,c)");
                s.memory.sync_names = Some(Since { names: names.clone(), at: s.now.minus(secs(ago)), mark: None });
                s.postgres.sql.as_mut().expect("answers").sync_names = names;
            })
        };
        assert_eq!(decide(&told(0)).rule, "prepare_promotion", "some WAL sender may not go by it yet");
        assert_eq!(decide(&told(2)).rule, "promote");
    }

    #[test]
    fn wait_unlisted() {
        let vacant =
            |of: &[&str]| standby().vacant().but(mode(SyncMode::On)).but(listed("b", of, 0)).answers("b", 5_000);
        assert_eq!(decide(&vacant(&["c"]).build()).rule, "wait_unlisted");
        assert!(matches!(decide(&vacant(&["A"]).build()).plan.lease, Lease::Take { .. }), "names compare without case");
        let ahead = vacant(&["a"]).answers("c", 2_000).build();
        assert!(
            matches!(decide(&ahead).plan.lease, Lease::Take { .. }),
            "what an unlisted member has was not waited for"
        );
        let listed_ahead = vacant(&["a", "c"]).answers("c", 2_000).build();
        assert_eq!(decide(&listed_ahead).rule, "wait_for_member_ahead");
    }

    #[test]
    fn wait_for_votes() {
        let vacant = || standby().vacant().but(mode(SyncMode::Quorum)).but(listed("b", &["a", "c"], 1));
        assert_eq!(decide(&vacant().unreachable("c").build()).rule, "wait_for_votes");
        assert!(matches!(decide(&vacant().answers("c", 1_000).build()).plan.lease, Lease::Take { .. }));
        let stranger = standby().vacant().but(mode(SyncMode::Quorum)).but(listed("b", &["c"], 1)).answers("c", 1_000);
        assert_eq!(decide(&stranger.build()).rule, "wait_for_votes", "who is no voter needs one more");
        let last = |holder: &'static str| {
            let led =
                standby().vacant().but(mode(SyncMode::Quorum)).but(listed("a", &["b", "c"], 1)).promised(holder, 1);
            decide(&led.unreachable("b").unreachable("c").build())
        };
        assert!(matches!(last("a").plan.lease, Lease::Take { .. }), "it has all that it acknowledged");
        assert_eq!(last("b").rule, "wait_for_votes", "another one may have been promoted since");
    }

    #[test]
    fn ask_to_be_released() {
        let ordered = || -> Builder { standby().ordered_to_stop().but(mode(SyncMode::On)).but(listed("b", &["a"], 0)) };
        assert_eq!(decide(&ordered().build()).rule, "ask_to_be_released");
        let long = ordered().with(|s| s.memory.ordered_since = Some(s.now.minus(Duration::from_secs(20))));
        assert_eq!(decide(&long).rule, "stop_postgres_when_ordered");
        assert_eq!(decide(&ordered().but(listed("b", &[], 0)).build()).rule, "stop_postgres_when_ordered");
        assert_eq!(decide(&ordered().vacant().build()).rule, "stop_postgres_when_ordered", "nobody waits for it");
    }
}
