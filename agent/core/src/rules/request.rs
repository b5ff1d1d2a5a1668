//! A restart or a new copy that an operator asked for over REST (ha-rules section 20, M10; rest-api.md sections 14, 16).

use std::time::Duration;

use super::follower::{clear_unfinished_copy, clone, just_failed, serves, start_as_standby, upstream};
use crate::plan::{Lease, Move, Plan, Verdict};
use crate::postgres::{DataDir, Job, StopMode};
use crate::request::{Request, Restart};
use crate::snapshot::{Guardian, Seat, Snapshot, Watchdog};

/// How soon to look again at something that changes without an event.
const SOON: Duration = Duration::from_millis(500);

fn refuse(why: impl Into<String>) -> Option<Verdict> {
    let why = why.into();
    let plan = Plan { refuse: Some(why.clone()), ..Plan::stay() };
    Some(Verdict::new(plan, format!("what was asked for is not done: {why}")).again_in(Duration::ZERO))
}

/// Time until a restart is due that was asked for later.
pub(super) fn due_in(s: &Snapshot) -> Option<Duration> {
    let Some(Request::Restart(restart)) = &s.request else { return None };
    restart.schedule.as_ref()?.at?.checked_sub(s.wall).filter(|left| !left.is_zero())
}

/// A writer beside another leader is stopped before anybody is answered; and while one is stopped because its lease ends, the
/// lease is let run.
fn is_at_peace(s: &Snapshot) -> bool {
    let in_a_hurry = super::guard::stopping(s).is_some_and(StopMode::is_forced);
    s.config.pause || !in_a_hurry && (s.seat() != Seat::Theirs || !s.may_write())
}

fn has_data(s: &Snapshot) -> bool {
    matches!(s.postgres.data_dir, DataDir::Present(_))
}

/// Somebody put a `standby.signal` beside a running primary.
fn is_marked_as_standby(s: &Snapshot) -> bool {
    matches!(&s.postgres.data_dir, DataDir::Present(present) if present.standby_signal)
}

fn holds(s: &Snapshot, restart: &Restart) -> bool {
    let role = match s.leads_standbys() {
        _ if s.is_primary() => "primary",
        true => "standby_leader",
        false => "replica",
    };
    let version = s.sql().map(|sql| sql.server_version);
    let pending = s.sql().is_some_and(|sql| !sql.pending_restart.is_empty());
    restart.role.as_ref().is_none_or(|wanted| wanted == role)
        && restart.older_than.as_ref().is_none_or(|(_, than)| version.is_some_and(|version| version < *than))
        && (!restart.pending || pending)
}

/// A restart that cannot be meant any more, or must not be.
pub(super) fn refuse_restart(s: &Snapshot) -> Option<Verdict> {
    let Some(Request::Restart(restart)) = s.request.as_ref().filter(|_| is_at_peace(s)) else { return None };
    let now = s.sql().map(|sql| &sql.started_at);
    if restart.started_at.is_some() && now.is_some_and(|now| restart.started_at.as_ref() != Some(now)) {
        return refuse("PostgreSQL was restarted since it was scheduled");
    }
    let due = s.restart_due().filter(|_| s.busy().is_none())?;
    if let Some(schedule) = &due.schedule {
        let late = schedule.at.map_or(Duration::MAX, |at| s.wall.saturating_sub(at));
        if s.config.pause {
            return refuse("the cluster is paused, and nothing scheduled is done");
        }
        if late > s.config.loop_wait * 3 / 2 {
            return refuse(format!("it was due {late:?} ago"));
        }
    }
    if !has_data(s) {
        return refuse("postgres is still starting");
    }
    if !holds(s, due) {
        return refuse("restart conditions are not satisfied");
    }
    // A primary is started again only under the key that says so.
    match s.seat() {
        Seat::Mine if s.is_primary() && is_marked_as_standby(s) => {
            refuse("standby.signal lies in the data directory: it would not come back as the primary")
        }
        Seat::Theirs | Seat::Vacant | Seat::Unknown if s.is_primary() => {
            refuse("a primary without the leader key would not come back as one")
        }
        Seat::Unknown => refuse("etcd does not answer, so nobody knows whom to follow afterwards"),
        Seat::Mine | Seat::Theirs | Seat::Vacant => None,
    }
}

/// Stop and start, in one action, so that nothing takes it for a crash. The leader keeps its key.
pub(super) fn restart(s: &Snapshot) -> Option<Verdict> {
    let asked = s.restart_due().filter(|_| s.job.is_none() && has_data(s))?;
    let timeout = asked.timeout;
    if s.is_primary() {
        let held = s.seat() == Seat::Mine && s.key_to_adopt().is_none() && !s.leads_standbys();
        let held = held && !is_marked_as_standby(s);
        let in_time = s.must_stop_at().is_some_and(|at| s.now < at);
        let guarded = s.guardian == Guardian::Ready && s.watchdog == Watchdog::Ready;
        return (held && in_time && guarded).then(|| {
            let plan = Plan::of(Lease::Keep, Move::Restart { standby_of: None, timeout });
            Verdict::new(plan, "asked to restart PostgreSQL, as the primary")
        });
    }
    // One that is down is an operator's in pause, and comes up by itself otherwise.
    let ready = s.standby().is_some() || !s.postgres.is_up() && s.config.pause;
    // In an election everybody is needed.
    let calm = s.seat() == Seat::Theirs || s.seat() == Seat::Vacant && s.config.pause || s.leads_standbys();
    (ready && calm).then(|| {
        let plan = Plan::of(Lease::Keep, Move::Restart { standby_of: Some(upstream(s)), timeout });
        Verdict::new(plan, "asked to restart PostgreSQL, as a standby")
    })
}

/// Nothing to copy from, or the last good copy.
pub(super) fn refuse_reinitialize(s: &Snapshot) -> Option<Verdict> {
    let Some(Request::Reinitialize { .. }) = s.request.as_ref().filter(|_| is_at_peace(s)) else { return None };
    match s.seat() {
        Seat::Mine => return refuse("I am the leader, can not reinitialize"),
        Seat::Vacant => return refuse("Cluster has no leader, can not reinitialize"),
        Seat::Theirs | Seat::Unknown => {}
    }
    if let DataDir::Unusable(why) | DataDir::Unreadable(why) = &s.postgres.data_dir {
        return refuse(format!("the data directory is not ours to remove: {why}"));
    }
    let (_, cause) = just_failed(s, |job| *job == Job::GiveUpData)?;
    refuse(format!("the data directory stays as it is: {cause}"))
}

/// Down, moved aside, copied from a leader that runs: each on the next look.
pub(super) fn reinitialize(s: &Snapshot) -> Option<Verdict> {
    let Some(Request::Reinitialize { .. }) = &s.request else { return None };
    if s.seat() != Seat::Theirs || s.busy().is_some() || s.may_write() {
        return None;
    }
    let (from, leader) = s.view()?.leader_member()?;
    let Some(conn_url) = serves(leader).filter(|_| leader.leads()) else {
        let why = format!("asked for a new copy: waiting for {from} to run as the leader");
        return Some(Verdict::new(Plan::stay(), why).again_in(SOON));
    };
    if s.postgres.is_up() {
        let plan = Plan::of(Lease::Keep, Move::Stop(StopMode::Fast));
        return Some(Verdict::new(plan, format!("asked for a new copy of {from}: stopping PostgreSQL first")));
    }
    match &s.postgres.data_dir {
        DataDir::Empty => clone(s),
        DataDir::Unfinished => clear_unfinished_copy(s),
        DataDir::HalfRewound | DataDir::Present(_) => {
            let plan = Plan::of(Lease::Keep, Move::GiveUpData { from: from.clone(), conn_url: conn_url.clone() });
            Some(Verdict::new(plan, format!("asked for a new copy of {from}: moving the data directory aside")))
        }
        DataDir::Unusable(_) | DataDir::Unreadable(_) => None,
    }
}

/// In pause nothing starts by itself, but for what an operator had copied.
pub(super) fn start_new_copy(s: &Snapshot) -> Option<Verdict> {
    let ready = s.config.pause && s.memory.copying && s.seat() == Seat::Theirs && s.busy().is_none() && has_data(s);
    let failed = just_failed(s, |job| matches!(job, Job::Start { .. })).is_some();
    (ready && !failed).then(|| start_as_standby(s)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Schedule;
    use crate::fixture::{Builder, cut_off, primary, secs, standby};
    use crate::rules::decide;

    fn asked(s: Builder, change: impl FnOnce(&mut Restart)) -> Builder {
        let mut restart = Restart::default();
        change(&mut restart);
        s.but(|s| s.request = Some(Request::Restart(restart)))
    }

    fn at(offset: i64) -> impl FnOnce(&mut Restart) {
        let now = 1_800_000_000_i64;
        let at = secs(u64::try_from(now + offset).unwrap());
        move |restart| restart.schedule = Some(Schedule { at: Some(at), text: String::new() })
    }

    fn copy(s: Builder) -> Builder {
        s.but(|s| s.request = Some(Request::Reinitialize { from_leader: false, force: false }))
    }

    #[test]
    fn restart() {
        let as_primary = Move::Restart { standby_of: None, timeout: Some(secs(9)) };
        let d = decide(&asked(primary(), |restart| restart.timeout = Some(secs(9))).build());
        assert_eq!((d.rule, d.plan.lease, d.plan.postgres), ("restart", Lease::Keep, as_primary));
        for s in [standby(), standby().paused(), standby().vacant().paused(), standby().paused().down()] {
            let d = decide(&asked(s, |_| {}).build());
            assert!(matches!(d.plan.postgres, Move::Restart { standby_of: Some(_), .. }), "{}", d.rule);
        }
        // Not beside a job, not by a standby that is about to be promoted, not while a start is under way anyway.
        for s in [standby().job(Job::Follow), standby().holding_the_key(), standby().down(), primary().key_on_lease(9)]
        {
            assert_ne!(decide(&asked(s, |_| {}).build()).rule, "restart");
        }
        assert_eq!(decide(&asked(primary().lease_ends_in(secs(1)), |_| {}).build()).rule, "stop_before_lease_ends");
    }

    #[test]
    fn refuse_restart() {
        let conditions = Some("restart conditions are not satisfied".to_owned());
        for (s, why) in [
            (asked(primary(), |restart| restart.role = Some("replica".into())), conditions.clone()),
            (asked(standby(), |restart| restart.role = Some("replica".into())), None),
            (asked(standby(), |restart| restart.pending = true), conditions.clone()),
            (asked(standby(), |restart| restart.older_than = Some(("9.6.3".into(), 90_603))), conditions),
            (asked(standby(), |restart| restart.older_than = Some(("99.1".into(), 990_001))), None),
            (asked(standby().empty(), |_| {}), Some("postgres is still starting".to_owned())),
        ] {
            assert_eq!(decide(&s.build()).plan.refuse, why);
        }
        for (s, rule) in [
            (asked(primary(), at(60)), "lead"),
            (asked(primary(), at(0)), "restart"),
            (asked(primary(), at(-10)), "restart"),
            (asked(primary(), at(-16)), "refuse_restart"),
            (asked(primary().paused(), at(0)), "refuse_restart"),
            (asked(primary(), |restart| restart.started_at = Some("before".into())), "refuse_restart"),
            (asked(primary().vacant(), |_| {}), "refuse_restart"),
            (asked(primary().but(cut_off), |_| {}), "refuse_restart"),
            (asked(standby().but(cut_off), |_| {}), "refuse_restart"),
        ] {
            assert_eq!(decide(&s.build()).rule, rule);
        }
        let marked = asked(primary(), |_| {}).but(|s| {
            let DataDir::Present(present) = &mut s.postgres.data_dir else { unreachable!("it has data") };
            present.standby_signal = true;
        });
        assert_eq!(decide(&marked.build()).rule, "refuse_restart", "it would come back as a standby");
        let soon = decide(&asked(primary(), at(3)).build());
        assert_eq!(soon.look_again, secs(3), "it is done in time");
    }

    #[test]
    fn reinitialize() {
        let running =
            || standby().member("b", |member| (member.state, member.role) = ("running".into(), "primary".into()));
        let step = |s: Builder| decide(&copy(s).build()).plan.postgres;
        assert_eq!(step(running()), Move::Stop(StopMode::Fast));
        assert!(matches!(step(running().down()), Move::GiveUpData { .. }));
        assert!(matches!(step(running().empty()), Move::Clone { .. }));
        assert!(matches!(step(running().paused().down()), Move::GiveUpData { .. }), "in pause as well");
        assert_eq!(step(running().member("b", |member| member.state = "starting".into())), Move::Stay);
        assert_eq!(step(running().but(cut_off)), Move::Stay);
    }

    #[test]
    fn refuse_reinitialize() {
        let refused = |s: Builder| decide(&copy(s).build()).plan.refuse;
        assert_eq!(refused(primary()).as_deref(), Some("I am the leader, can not reinitialize"));
        assert_eq!(refused(standby().vacant()).as_deref(), Some("Cluster has no leader, can not reinitialize"));
        let foreign = standby().but(|s| s.postgres.data_dir = DataDir::Unusable("not ours".into()));
        assert!(refused(foreign).is_some());
        assert_eq!(refused(standby()), None);
        let late = copy(primary().lease_ends_in(secs(1)).job(Job::Stop(StopMode::FastThenImmediate)));
        assert_eq!((decide(&late.build()).rule, decide(&late.build()).plan.lease), ("wait_for_job", Lease::LetRun));
    }

    #[test]
    fn start_new_copy() {
        let copied = |s: Builder| decide(&s.but(|s| s.memory.copying = true).build()).rule;
        assert_eq!(copied(standby().paused().down()), "start_new_copy");
        assert_eq!(copied(standby().paused()), "hands_off");
        assert_eq!(decide(&standby().paused().down().build()).rule, "hands_off");
    }
}
