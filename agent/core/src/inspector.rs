//! The second opinion: what no plan may ever do, whatever rule made it.
//!
//! It knows no rule and reads every plan, in tests and before every act. It repeats nothing of the tables' reasoning on
//! purpose: a short list of sentences about what is never right.

use crate::plan::{KeyWrite, Lease, Move, Plan};
use crate::postgres::{ClusterState, DataDir, Job, StopMode};
use crate::request::Request;
use crate::snapshot::{Guardian, Order, Seat, Snapshot, Watchdog};

/// A plan that must not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence} (plan: {plan})")]
pub struct Objection {
    /// What is never right.
    pub sentence: &'static str,
    /// The plan, for the log.
    pub plan: String,
}

/// Reads a plan. An objection means a bug in a rule: the plan is not carried out, and the lease is left to run.
///
/// # Errors
/// The first sentence that the plan violates.
pub fn inspect(s: &Snapshot, plan: &Plan) -> Result<(), Objection> {
    let broken = SENTENCES.iter().find(|(_, holds)| !holds(s, plan));
    match broken {
        None => Ok(()),
        Some((sentence, _)) => Err(Objection { sentence, plan: format!("{plan:?}") }),
    }
}

type Sentence = (&'static str, fn(&Snapshot, &Plan) -> bool);

/// `a` implies `b`.
fn implies(a: bool, b: bool) -> bool {
    !a || b
}

fn holds_the_key(s: &Snapshot) -> bool {
    s.seat() == Seat::Mine && s.key_to_adopt().is_none()
}

fn before_must_stop(s: &Snapshot) -> bool {
    s.must_stop_at().is_some_and(|at| s.now < at)
}

const SENTENCES: &[Sentence] = &[
    (
        "a promotion happens only under the own lock, in time, from a standby, to a timeline promised to this member",
        |s, p| {
            let Move::Promote(timeline) = p.postgres else { return true };
            let promise = s.view().and_then(|view| view.promise.as_ref()).map(|key| &key.promise);
            let promised = promise.is_some_and(|p| p.holder == s.config.name && p.position.timeline == timeline);
            let ahead = s.own_timeline().is_some_and(|own| timeline > own);
            holds_the_key(s)
                && before_must_stop(s)
                && s.standby().is_some()
                && promised
                && ahead
                && p.lease == Lease::Keep
        },
    ),
    ("a start as a primary happens only under the own lock, in time, and not from a standby's directory", |s, p| {
        let directory = matches!(&s.postgres.data_dir, DataDir::Present(present) if !present.standby_signal);
        let starts = matches!(p.postgres, Move::StartPrimary | Move::Restart { standby_of: None, .. });
        implies(starts, holds_the_key(s) && before_must_stop(s) && directory)
    }),
    ("the key is taken only when it is free, with a lease, by a server whose position is known", |s, p| {
        implies(
            matches!(p.lease, Lease::Take { .. }),
            s.seat() == Seat::Vacant && s.lease.id.is_some() && s.sql().is_some(),
        )
    }),
    (
        "nobody takes the key, is promoted, starts as a primary or makes a cluster without guardian and watchdog",
        |s, p| {
            let leads = matches!(p.lease, Lease::Take { .. })
                || matches!(p.postgres, Move::Promote(_) | Move::StartPrimary | Move::Bootstrap)
                || matches!(p.postgres, Move::Restart { standby_of: None, .. });
            let guarded = s.guardian == Guardian::Ready && s.watchdog == Watchdog::Ready;
            implies(leads, guarded || s.config.pause && p.postgres == Move::Stay)
        },
    ),
    ("a promise never falls and never gives a timeline that another member was promised", |s, p| {
        let (Lease::Take { promise, .. } | Lease::Promise { promise, .. }) = &p.lease else { return true };
        let Some(last) = s.view().and_then(|view| view.promise.as_ref()).map(|key| &key.promise) else { return true };
        let (new, old) = (promise.position.timeline, last.position.timeline);
        promise.epoch > last.epoch && (new > old || new == old && last.holder == s.config.name && s.is_primary())
    }),
    ("a nofailover standby does not take the key", |s, p| {
        let standby = s.standby().is_some() && s.config.tags.nofailover;
        implies(standby, !matches!(p.lease, Lease::Take { .. }))
    }),
    (
        "the key is given back only when the server is down, has written its shutdown checkpoint, or is no primary",
        |s, p| {
            let shut_down = s.postgres.control().is_some_and(|control| control.state == ClusterState::ShutDown);
            let harmless = !s.postgres.is_up() || s.sql().is_none() && shut_down || s.standby().is_some();
            implies(p.lease == Lease::Release, harmless && p.postgres == Move::Stay)
        },
    ),
    ("a server that may write is stopped once its lease is about to end", |s, p| {
        let late = s.may_write() && s.must_stop_at().is_some_and(|at| s.now >= at) && !s.config.pause;
        let stopping = matches!(p.postgres, Move::Stop(_))
            || matches!(s.job.as_ref().map(|j| &j.job), Some(crate::postgres::Job::Stop(_)));
        // A cluster that is not made after all: its server is stopped, and nobody else's data has its identity.
        let unmade = p.postgres == Move::SetAside && p.lease == Lease::AbandonBootstrap;
        implies(late, stopping && p.lease == Lease::LetRun || unmade)
    }),
    ("a server that may write does not go on beside another leader", |s, p| {
        let beside = s.may_write() && s.seat() == Seat::Theirs && !s.config.pause && s.order == Order::Run;
        let stopping = matches!(p.postgres, Move::Stop(_))
            || matches!(s.job.as_ref().map(|j| &j.job), Some(crate::postgres::Job::Stop(_)));
        implies(beside, stopping || p.exit.is_some())
    }),
    ("data is written into an empty directory only, with no server on it, and never by the lock holder", |s, p| {
        let fills = matches!(p.postgres, Move::Clone { .. } | Move::Restore | Move::Bootstrap);
        implies(fills, s.postgres.data_dir == DataDir::Empty && !s.postgres.is_up() && s.seat() != Seat::Mine)
    }),
    ("nothing is removed but what an interrupted copy of ours left", |s, p| {
        let ours = s.postgres.data_dir == DataDir::Unfinished
            || matches!(s.job.as_ref().map(|j| &j.job), Some(crate::postgres::Job::Clone { .. }));
        implies(p.postgres == Move::RemoveUnfinished, ours && !s.postgres.is_up())
    }),
    (
        "pg_rewind runs only where it is allowed, on data with no server on it, against another member that leads as a \
         primary and has made its checkpoint, or against the remote of a standby cluster",
        |s, p| {
            let Move::Rewind { from, .. } = &p.postgres else { return true };
            let leader = s.view().and_then(|view| view.leader_member());
            let source = leader.is_some_and(|(name, leader)| {
                name == from && matches!(leader.role.as_str(), "primary" | "master") && !leader.checkpoint_pending
            });
            let remote = s.config.standby_cluster.as_ref().and_then(crate::config::Remote::address);
            let source = s.seat() == Seat::Theirs && source || remote.is_some_and(|remote| remote == from.0);
            s.config.use_pg_rewind && !s.postgres.is_up() && source
        },
    ),
    (
        "data is given up only where that is allowed, with no server on it, and beside another member that runs as the leader",
        |s, p| {
            let Move::GiveUpData { from, .. } = &p.postgres else { return true };
            let asked = matches!(s.request, Some(Request::Reinitialize { .. }));
            let allowed = s.config.remove_on_divergence || s.config.remove_on_rewind_failure || asked;
            let leader = s.view().and_then(|view| view.leader_member());
            let verified = leader.is_some_and(|(name, m)| name == from && m.state == "running" && m.leads());
            allowed && !s.postgres.is_up() && s.seat() == Seat::Theirs && verified
        },
    ),
    ("an old copy is removed only when its replacement streams", |s, p| {
        implies(p.postgres == Move::DiscardOldCopy, s.standby().is_some_and(|sql| sql.streaming))
    }),
    ("a directory is set aside only by the agent that is making the cluster", |s, p| {
        implies(p.postgres == Move::SetAside, s.memory.bootstrapping)
    }),
    ("a server is restarted only where that was asked for, and as the primary that it is only", |s, p| {
        let Move::Restart { standby_of, .. } = &p.postgres else { return true };
        s.restart_due().is_some() && s.job.is_none() && standby_of.is_none() == s.is_primary()
    }),
    (
        "slots are copied only by a standby that nobody waits for, from another member that leads as a primary",
        |s, p| {
            let Move::CopySlots { from, .. } = &p.postgres else { return true };
            let leader = s.view().and_then(|view| view.leader_member());
            let primary = leader.is_some_and(|(name, leader)| name == from && leader.leads());
            let sync = s.view().and_then(|view| view.sync.as_ref());
            let awaited = s.config.synchronous_mode != crate::config::SyncMode::Off
                && sync.is_some_and(|sync| crate::sync::lists(&sync.standbys, &s.config.name));
            s.seat() == Seat::Theirs && primary && s.standby().is_some() && s.job.is_none() && !awaited
        },
    ),
    (
        "nothing moves in pause, unless it is under way or was asked for; but standbys follow, and no slot is removed",
        |s, p| {
            let named = s.view().and_then(|view| view.failover.as_ref()).filter(|asked| asked.schedule.is_none());
            let to = named.and_then(|asked| asked.candidate.as_ref());
            let moves = match &p.postgres {
                Move::Stay | Move::SetSyncNames(_) | Move::Checkpoint => true,
                Move::Follow(_) => s.seat() == Seat::Theirs,
                Move::ChangeSlots(changes) => changes.drop.is_empty(),
                Move::PrePromote | Move::Promote(_) => to == Some(&s.config.name),
                Move::Stop(mode) => {
                    *mode == StopMode::Fast && holds_the_key(s) && to.is_some_and(|to| *to != s.config.name)
                }
                Move::StartStandby(_) => s.memory.copying || s.memory.comes_back,
                Move::Rewind { .. } => s.memory.comes_back,
                Move::Bootstrap
                | Move::Cancel
                | Move::Restore
                | Move::Clone { .. }
                | Move::GiveUpData { .. }
                | Move::DiscardOldCopy
                | Move::StartPrimary
                | Move::Restart { .. }
                | Move::CopySlots { .. }
                | Move::ResumeReplay
                | Move::RemoveUnfinished
                | Move::SetAside => false,
            };
            let asked = s.request.is_some() || s.memory.bootstrapping || s.job.is_some();
            let runs = matches!(p.lease, Lease::Take { .. }) && !s.is_primary();
            implies(s.config.pause && !s.memory.bootstrapping && runs, to == Some(&s.config.name))
                && implies(s.config.pause, moves || asked)
        },
    ),
    ("nobody becomes a primary in a standby cluster", |s, p| {
        let writes = matches!(p.postgres, Move::Promote(_) | Move::StartPrimary | Move::Bootstrap)
            || matches!(p.postgres, Move::Restart { standby_of: None, .. });
        implies(s.config.standby_cluster.is_some(), !writes)
    }),
    ("who agreed that another primary goes on does not take the key as a standby, and is not promoted", |s, p| {
        let leads = matches!(p.lease, Lease::Take { .. }) && !s.is_primary() || matches!(p.postgres, Move::Promote(_));
        implies(s.agreement.is_some(), !leads)
    }),
    ("only the holder writes status, history, failsafe and sync, and clears a request", |s, p| {
        let records = p.keys.iter().any(|key| match key {
            KeyWrite::Status(_)
            | KeyWrite::History(_)
            | KeyWrite::Failsafe(_)
            | KeyWrite::ClearFailover { .. }
            | KeyWrite::Sync { .. } => true,
            KeyWrite::Identify { .. } | KeyWrite::Config { .. } => false,
        });
        implies(records, holds_the_key(s))
    }),
    ("nobody is listed as synchronous but by the holder, under its own name", |s, p| {
        p.keys.iter().all(|key| match key {
            KeyWrite::Sync { sync: Some(sync), .. } => {
                sync.leader == s.config.name && !crate::sync::lists(&sync.standbys, &s.config.name)
            }
            KeyWrite::Sync { sync: None, .. } => s.config.synchronous_mode == crate::config::SyncMode::Off,
            KeyWrite::Identify { .. }
            | KeyWrite::Config { .. }
            | KeyWrite::ClearFailover { .. }
            | KeyWrite::Status(_)
            | KeyWrite::Failsafe(_)
            | KeyWrite::History(_) => true,
        })
    }),
    (
        "where named standbys have every commit, nobody else takes the key as a standby, unless it was asked for by name",
        |s, p| {
            let Some(view) = s.view().filter(|_| s.config.synchronous_mode == crate::config::SyncMode::On) else {
                return true;
            };
            let listed = |sync: &crate::cluster::SyncState| {
                crate::sync::lists(sync.standbys.iter().chain([&sync.leader]), &s.config.name)
            };
            let asked = view
                .failover
                .as_ref()
                .is_some_and(|asked| asked.leader.is_none() && asked.candidate.as_ref() == Some(&s.config.name));
            let takes = matches!(p.lease, Lease::Take { .. }) && !s.is_primary();
            implies(takes, asked || view.sync.as_ref().is_none_or(listed))
        },
    ),
    ("nobody is promoted while other members are listed as having every commit", |s, p| {
        let on = s.config.synchronous_mode == crate::config::SyncMode::On;
        let alone = s
            .view()
            .and_then(|view| view.sync.as_ref())
            .is_some_and(|sync| sync.standbys.is_empty() && crate::sync::lists([&sync.leader], &s.config.name));
        implies(on && matches!(p.postgres, Move::Promote(_)), alone)
    }),
    ("the cluster's identity is written only from local data", |s, p| {
        p.keys.iter().all(|key| !matches!(key, KeyWrite::Identify { id, .. } if s.local_system_id() != Some(*id)))
    }),
    ("a running job is replaced only by a stop, or by the end of what it was doing", |s, p| {
        let replaces = matches!(p.postgres, Move::Stop(_) | Move::Stay | Move::RemoveUnfinished | Move::SetAside);
        let asking = s.job.as_ref().is_some_and(|running| running.job == Job::PrePromote);
        let cancels = p.postgres == Move::Cancel;
        implies(s.busy().is_some() && !cancels, replaces) && implies(cancels, asking)
    }),
    (
        "where the user has a pre_promote it is asked under the own lock, in time, and nobody is promoted without its word",
        |s, p| {
            let asks = p.postgres == Move::PrePromote;
            let promotes = matches!(p.postgres, Move::Promote(_));
            implies(asks, s.config.pre_promote && holds_the_key(s) && before_must_stop(s) && s.standby().is_some())
                && implies(promotes && s.config.pre_promote, s.memory.pre_promoted)
        },
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{primary, secs, standby};
    use crate::units::Timeline;

    fn objects(s: &Snapshot, plan: Plan) -> bool {
        inspect(s, &plan).is_err()
    }

    #[test]
    fn it_objects_to_what_is_never_right() {
        let stay = |lease| Plan::of(lease, Move::Stay);
        let go = |postgres| Plan::of(Lease::Keep, postgres);
        let promote = |tl| go(Move::Promote(Timeline(tl)));
        let holder = || standby().holding_the_key().promised("a", 2);
        assert!(!objects(&holder().build(), promote(2)));
        assert!(objects(&holder().build(), promote(3)), "another timeline than promised");
        assert!(objects(&standby().promised("a", 2).build(), promote(2)), "not the holder");
        assert!(objects(&holder().lease_ends_in(secs(1)).build(), promote(2)), "too late");
        assert!(objects(&holder().key_on_lease(9).build(), promote(2)), "a key on an old lease");
        assert!(objects(&primary().build(), stay(Lease::Release)), "release under a running primary");
        assert!(!objects(&primary().down().build(), stay(Lease::Release)));
        assert!(objects(&primary().lease_ends_in(secs(1)).build(), stay(Lease::Keep)), "no stop at the deadline");
        assert!(
            objects(&primary().lease_ends_in(secs(1)).build(), Plan::of(Lease::Keep, Move::Stop(StopMode::Immediate))),
            "renewing while demoting"
        );
        assert!(objects(&primary().led_by("b").build(), stay(Lease::Keep)), "two primaries");
        assert!(objects(&holder().unguarded_for(secs(0)).build(), promote(2)), "no guardian");
        let waits = holder().watchdog(Watchdog::Awaited).build();
        assert!(objects(&waits, promote(2)), "no watchdog, where one is required");
        assert!(objects(&standby().down().build(), go(Move::StartPrimary)));
        let give_up = || go(Move::GiveUpData { from: "b".into(), conn_url: String::new() });
        assert!(objects(&standby().down().build(), give_up()), "not allowed");
        let removing = || standby().down().but_config(|config| config.remove_on_divergence = true);
        assert!(!objects(&removing().build(), give_up()));
        assert!(objects(&removing().vacant().build(), give_up()), "nobody leads");
        let rewind = |from: &str| go(Move::Rewind { from: from.into(), conn_url: String::new() });
        let allowed = || standby().down().but_config(|config| config.use_pg_rewind = true);
        assert!(!objects(&allowed().build(), rewind("b")));
        assert!(objects(&allowed().build(), rewind("c")), "not the leader");
        assert!(objects(&allowed().member("b", |m| m.checkpoint_pending = true).build(), rewind("b")));
        assert!(objects(&standby().down().build(), go(Move::RemoveUnfinished)), "somebody's data");
        assert!(objects(&standby().build(), go(Move::Clone { from: "b".into(), conn_url: String::new() })));
        assert!(objects(&standby().paused().down().build(), go(Move::StartStandby(crate::postgres::Upstream::Nobody))));
    }
}
