//! Switchover and failover that somebody asked for, in the `failover` key (ha-rules section 11). Both are the same way: the
//! leader looks for somebody fit, stops while it holds the key, gives it back, and only who was meant takes it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::election::{PATIENCE, could_lead, may_have_promised, run_for_leader};
use super::follower::just_failed;
use super::guard::{final_status, shutdown_position};
use crate::cluster::Failover;
use crate::config::SyncMode;
use crate::peers::{PeerAnswer, Question};
use crate::plan::{KeyWrite, Lease, Move, Plan, Verdict};
use crate::postgres::{Job, StopMode};
use crate::snapshot::Snapshot;
use crate::units::MemberName;

/// A checkpoint that is younger makes the next one short.
const FRESH_CHECKPOINT: Duration = Duration::from_secs(30);
/// So long a former primary stays down for the next one to take over (D5).
const STAY_DOWN: Duration = Duration::from_secs(2);

fn request(s: &Snapshot) -> Option<&Failover> {
    s.view()?.failover.as_ref()
}

/// The request, once its time has come. Nothing scheduled is done in pause (S2).
fn due(s: &Snapshot) -> Option<&Failover> {
    request(s).filter(|asked| match &asked.schedule {
        None => true,
        Some(schedule) => !s.config.pause && schedule.at.is_some_and(|at| at <= s.wall),
    })
}

/// Somebody asks for another leader, now.
pub(super) fn is_asked_for(s: &Snapshot) -> bool {
    due(s).is_some()
}

/// ... and this is a leader that answers: a server that is silent can tell nobody how far it is.
fn due_here(s: &Snapshot) -> Option<&Failover> {
    due(s).filter(|_| s.sql().is_some_and(|sql| !sql.in_recovery || s.leads_standbys()))
}

/// Time until a request is due that was asked for later.
pub(super) fn due_in(s: &Snapshot) -> Option<Duration> {
    let at = request(s)?.schedule.as_ref().filter(|_| !s.config.pause)?.at?;
    at.checked_sub(s.wall).filter(|left| !left.is_zero())
}

/// Who was named in a request that is due.
pub(super) fn candidate(s: &Snapshot) -> Option<&MemberName> {
    due(s)?.candidate.as_ref()
}

/// This member was named, to take over from whoever leads or led.
pub(super) fn names_me(s: &Snapshot) -> bool {
    candidate(s) == Some(&s.config.name)
}

/// A failover to this very member was asked for, whatever it lacks.
pub(super) fn asked_for_me(s: &Snapshot) -> bool {
    due(s).is_some_and(|asked| asked.leader.is_none() && asked.candidate.as_ref() == Some(&s.config.name))
}

/// The leader was asked to go: whoever comes next must not lack what it acknowledged.
pub(super) fn is_switchover(s: &Snapshot) -> bool {
    due(s).is_some_and(|asked| asked.leader.is_some())
}

/// The winner takes the request off the table (R22). In pause it is what the key is held for: it goes when the server is a
/// primary, as one that has nothing more to say (S4).
pub(super) fn fulfilled(s: &Snapshot) -> Vec<KeyWrite> {
    due(s)
        .filter(|_| !s.config.pause)
        .map(|asked| KeyWrite::ClearFailover { seen: asked.modified })
        .into_iter()
        .collect()
}

// --- the leader's side ---

fn drop_because(s: &Snapshot, why: String) -> Option<Verdict> {
    let seen = request(s)?.modified;
    let plan = Plan::stay().and_write(vec![KeyWrite::ClearFailover { seen }]);
    Some(Verdict::new(plan, why).again_in(Duration::ZERO))
}

/// A request that cannot be meant any more, or never could.
pub(super) fn drop_request(s: &Snapshot) -> Option<Verdict> {
    let asked = request(s).filter(|_| s.is_primary() || s.leads_standbys())?;
    let why = match &asked.schedule {
        Some(_) if s.config.pause => return None,
        Some(schedule) => match schedule.at {
            None => Some(format!("its time {:?} cannot be read", schedule.text)),
            Some(at) => {
                let late = s.wall.saturating_sub(at);
                (late > s.config.loop_wait * 3 / 2).then(|| format!("it was due {late:?} ago"))
            }
        },
        None => None,
    };
    let not_me = asked.leader.as_ref().filter(|leader| **leader != s.config.name);
    let why = why.or_else(|| (asked.candidate.as_ref() == Some(&s.config.name)).then(|| "we lead".to_owned()));
    let why = why.or_else(|| not_me.map(|leader| format!("it is to relieve {leader}, and we lead")));
    let nobody = s.config.pause && asked.candidate.is_none();
    let why = why.or_else(|| nobody.then(|| "the cluster is paused, and it names no candidate".to_owned()))?;
    drop_because(s, format!("the request for a switchover or failover is off the table: {why}"))
}

/// A checkpoint before anybody waits for one: what the shutdown has to write is little then.
pub(super) fn checkpoint_ahead(s: &Snapshot) -> Option<Verdict> {
    due_here(s)?;
    let fresh = s.memory.checkpoint_at.is_some_and(|at| s.now.since(at) < FRESH_CHECKPOINT);
    let failed = just_failed(s, |job| *job == Job::Checkpoint).is_some();
    if fresh || failed {
        return None;
    }
    Some(match &s.job {
        Some(running) if running.job == Job::Checkpoint => Verdict::new(Plan::stay(), "the checkpoint goes on"),
        Some(_) => Verdict::new(Plan::stay(), "finishing what is under way first").again_in(Duration::from_millis(100)),
        None => Verdict::new(Plan::of(Lease::Keep, Move::Checkpoint), "a checkpoint ahead of the switchover"),
    })
}

/// Whom a hand-over could reach: the one that was named, or all.
fn candidates(s: &Snapshot, asked: &Failover) -> BTreeMap<MemberName, Question> {
    let mut whom = s.peers_to_ask();
    whom.retain(|name, _| {
        let is_member = s.view().is_some_and(|view| view.members.contains_key(name));
        let named = asked.candidate.as_ref().is_none_or(|candidate| candidate == name);
        // A failover to a member that lacks commits is the operator's word; a switchover loses none.
        let complete = asked.leader.is_none() || super::synchronous::is_listed(s, name);
        is_member && named && complete
    });
    whom
}

/// Nobody stops a primary before somebody fit was heard.
pub(super) fn ask_candidates(s: &Snapshot) -> Option<Verdict> {
    let asked = due_here(s).filter(|_| s.fresh_peers().is_none())?;
    let whom = candidates(s, asked);
    let names: Vec<_> = whom.keys().map(ToString::to_string).collect();
    (!whom.is_empty())
        .then(|| Verdict::new(Plan::ask(whom), format!("asked to hand over: is {} fit?", names.join(", "))))
}

fn unfit(s: &Snapshot, answer: &PeerAnswer) -> Option<String> {
    let mine = s.sql().map(crate::postgres::SqlFacts::position).unwrap_or_default();
    let lag = mine.bytes_ahead_of(answer.position);
    let limit = s.config.maximum_lag_on_failover;
    let cluster = s.view().and_then(crate::cluster::ClusterView::timeline);
    if answer.nofailover {
        Some("it is tagged nofailover".to_owned())
    } else if !could_lead(answer) {
        Some("its watchdog failed".to_owned())
    } else if answer.is_primary {
        Some("it is a primary".to_owned())
    } else if lag > limit {
        Some(format!("it lags by {lag} bytes, maximum_lag_on_failover is {limit}"))
    } else if s.config.check_timeline && answer.timeline < cluster {
        Some("it is on an old timeline (check_timeline)".to_owned())
    } else {
        None
    }
}

/// Who of those that answered is fit, or why nobody is. With a quorum, and nobody named, there must be as many as one of them
/// needs votes.
fn fit(s: &Snapshot, asked: &Failover) -> Result<MemberName, String> {
    let whom = candidates(s, asked);
    let answers = s.fresh_peers().into_iter().flat_map(|peers| peers.answers());
    let (mut heirs, mut reasons) = (Vec::new(), Vec::new());
    for (name, answer) in answers.filter(|(name, _)| whom.contains_key(*name)) {
        match unfit(s, answer) {
            None => heirs.push(name.clone()),
            Some(why) => reasons.push(format!("{name}: {why}")),
        }
    }
    let votes = if asked.candidate.is_some() { 0 } else { super::synchronous::votes_needed(s) };
    if heirs.len() <= votes && !heirs.is_empty() {
        return Err(format!("{} are fit, and one of them needs {votes} votes of others", heirs.len()));
    }
    heirs.into_iter().next().ok_or_else(|| match reasons.is_empty() {
        true => "no candidate answers".to_owned(),
        false => reasons.join("; "),
    })
}

/// Nobody is fit: better this primary than none.
pub(super) fn refuse_request(s: &Snapshot) -> Option<Verdict> {
    let asked = due_here(s)?;
    let why = fit(s, asked).err()?;
    drop_because(s, format!("the request to hand over is refused: {why}"))
}

/// To whom this leader was asked to hand over, and could.
pub(super) fn heir(s: &Snapshot) -> Option<MemberName> {
    fit(s, due_here(s)?).ok()
}

/// Stop as primary while the key is ours. It goes back when the server is down, or when the candidate has its last word.
pub(super) fn hand_over(s: &Snapshot) -> Option<Verdict> {
    let heir = heir(s)?;
    Some(Verdict::new(
        Plan::of(Lease::Keep, Move::Stop(StopMode::Fast)),
        format!("asked to hand over, and {heir} is fit: stopping PostgreSQL"),
    ))
}

/// Down after an orderly stop, as it was asked for: the key goes to whoever was meant.
pub(super) fn release_to_successor(s: &Snapshot) -> Option<Verdict> {
    let asked = due(s).filter(|asked| asked.leader.as_ref().is_none_or(|leader| *leader == s.config.name))?;
    let stopped = !s.postgres.is_up() && shutdown_position(s).is_some();
    let mine = asked.candidate.as_ref() == Some(&s.config.name);
    (stopped && !mine).then(|| {
        let plan = Plan::of(Lease::Release, Move::Stay).and_write(final_status(s));
        Verdict::new(plan, "PostgreSQL is down, as asked for: giving the leader key to its successor")
            .again_in(Duration::ZERO)
    })
}

// --- nobody leads ---

/// How long nobody has led.
pub(super) fn vacant_for(s: &Snapshot) -> Duration {
    s.memory.vacant_since.map_or(Duration::ZERO, |since| s.now.since(since))
}

/// Was just primary, and is down as it was asked to be: somebody else takes over first.
pub(super) fn stay_down_for_successor(s: &Snapshot) -> Option<Verdict> {
    let asked = due(s).filter(|asked| asked.candidate.as_ref() != Some(&s.config.name))?;
    let stopped = !s.postgres.is_up() && shutdown_position(s).is_some();
    let left = STAY_DOWN
        .checked_sub(vacant_for(s))
        .filter(|_| stopped && asked.leader.as_ref().is_none_or(|l| *l == s.config.name))?;
    Some(Verdict::new(Plan::stay(), "handed over: waiting for the next leader").again_in(left))
}

/// I am the one that was named: no question of lag, priority or preference is left. But a switchover loses no commit: with a
/// quorum this member may be the one that lacks it, so it needs its votes; and who was just restarted may have agreed that a
/// primary without etcd goes on: it asks the others like everybody else.
pub(super) fn run_as_candidate(s: &Snapshot) -> Option<Verdict> {
    let votes = is_switchover(s) && s.config.synchronous_mode == SyncMode::Quorum;
    let asks = votes || may_have_promised(s).is_some();
    (candidate(s)? == &s.config.name && !asks).then(|| run_for_leader(s))
}

/// Somebody else was named, and answers: it is that one's turn. But not for ever: a candidate that did not come within a
/// whole `loop_wait` will not.
pub(super) fn leave_it_to_candidate(s: &Snapshot) -> Option<Verdict> {
    let named = candidate(s)?;
    let (_, answer) = s.fresh_peers()?.answers().find(|(name, _)| *name == named)?;
    let turn = could_lead(answer) && vacant_for(s) < s.config.loop_wait;
    turn.then(|| Verdict::new(Plan::stay(), format!("{named} was asked to lead")).again_in(PATIENCE))
}

/// I was asked to go: anybody else who could lead goes first, for a `loop_wait`.
pub(super) fn leave_it_to_others(s: &Snapshot) -> Option<Verdict> {
    let relieved = due(s)?.leader.as_ref()? == &s.config.name;
    let heir = s.fresh_peers()?.answers().find(|(_, answer)| unfit(s, answer).is_none()).map(|(name, _)| name);
    let heir = heir.filter(|_| relieved && vacant_for(s) < s.config.loop_wait)?;
    Some(Verdict::new(Plan::stay(), format!("asked to hand over, and {heir} could lead")).again_in(PATIENCE))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::cluster::{Failover, Schedule};
    use crate::fixture::{Builder, primary, secs, standby};
    use crate::plan::{KeyWrite, Lease, Move};
    use crate::postgres::StopMode;
    use crate::rules::decide;
    use crate::snapshot::Snapshot;
    use crate::units::Revision;

    /// Somebody asks: from this leader, to this candidate.
    fn asked(leader: Option<&'static str>, candidate: Option<&'static str>) -> impl Fn(&mut Snapshot) {
        move |s| {
            let (leader, candidate) = (leader.map(Into::into), candidate.map(Into::into));
            let view = s.dcs.as_mut().expect("reachable");
            view.failover = Some(Failover { leader, candidate, schedule: None, modified: Revision(77) });
        }
    }

    fn checkpointed(builder: Builder) -> Builder {
        builder.but(|s| s.memory.checkpoint_at = Some(s.now))
    }

    #[test]
    fn drop_request() {
        let rule = |leader, candidate| decide(&primary().with(asked(leader, candidate))).rule;
        assert_eq!(rule(Some("b"), None), "drop_request");
        assert_eq!(rule(Some("a"), Some("a")), "drop_request");
        assert_eq!(rule(None, Some("a")), "drop_request");
        assert_eq!(rule(Some("a"), None), "checkpoint_ahead");
        let d = decide(&primary().with(asked(Some("b"), None)));
        assert_eq!(d.plan.keys, [KeyWrite::ClearFailover { seen: Revision(77) }]);
    }

    #[test]
    fn a_schedule_is_waited_for_and_dropped_when_it_is_long_past() {
        let at = |seconds: i64, readable: bool| {
            primary().but(asked(Some("a"), None)).with(|s| {
                let wall = s.wall.checked_add_signed(seconds);
                let view = s.dcs.as_mut().expect("reachable");
                let schedule = Schedule { at: wall.filter(|_| readable), text: String::new() };
                view.failover.as_mut().expect("asked").schedule = Some(schedule);
            })
        };
        for (seconds, rule) in
            [(3, "lead"), (60, "lead"), (0, "checkpoint_ahead"), (-15, "checkpoint_ahead"), (-16, "drop_request")]
        {
            assert_eq!(decide(&at(seconds, true)).rule, rule, "due in {seconds} s");
        }
        assert_eq!(decide(&at(3, true)).look_again, secs(3), "it wakes at the moment");
        assert_eq!(decide(&at(60, false)).rule, "drop_request");
    }

    trait Signed {
        fn checked_add_signed(self, seconds: i64) -> Option<Duration>;
    }

    impl Signed for Duration {
        fn checked_add_signed(self, seconds: i64) -> Option<Duration> {
            let by = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { self.checked_sub(by) } else { self.checked_add(by) }
        }
    }

    #[test]
    fn a_primary_hands_over_only_to_somebody_who_is_fit() {
        let ready = |to| checkpointed(primary()).but(asked(Some("a"), to));
        let d = decide(&ready(None).build());
        assert_eq!((d.rule, d.plan.ask.len()), ("ask_candidates", 2));
        assert_eq!(decide(&ready(Some("b")).build()).plan.ask.len(), 1, "nobody but the one that was named");
        let (near, far) = (1_000, 900);
        let lag = |s: &mut Snapshot| s.config.maximum_lag_on_failover = 50;
        assert_eq!(decide(&ready(Some("b")).answers("b", near).build()).plan.postgres, Move::Stop(StopMode::Fast));
        assert_eq!(decide(&ready(Some("b")).answers("b", far).but(lag).build()).rule, "refuse_request");
        assert_eq!(decide(&ready(None).answers("b", far).answers("c", near).but(lag).build()).rule, "hand_over");
        assert_eq!(decide(&ready(Some("gone")).build()).rule, "refuse_request");
    }

    #[test]
    fn the_key_goes_back_when_the_server_is_down_and_the_old_primary_waits() {
        let down = |builder: Builder| builder.shut_down().but(asked(Some("a"), Some("b")));
        let d = decide(&down(primary()).build());
        assert_eq!((d.rule, &d.plan.lease), ("release_to_successor", &Lease::Release));
        assert!(matches!(d.plan.keys[..], [KeyWrite::Status(_)]), "status before the key (dcs.md 7.3)");
        assert_eq!(decide(&down(primary().vacant()).build()).rule, "stay_down_for_successor");
        let long = down(primary().vacant()).with(|s| s.memory.vacant_since = Some(s.now.minus(secs(3))));
        assert_eq!(decide(&long).rule, "start_without_upstream");
        let crashed = primary().down().with(asked(Some("a"), Some("b")));
        assert_eq!(decide(&crashed).rule, "restart_crashed_primary", "a crash is no hand-over");
    }

    #[test]
    fn run_as_candidate() {
        let vacant = |to| standby().vacant().but(asked(Some("b"), to)).answers("c", 1_000);
        assert!(matches!(decide(&vacant(Some("a")).build()).plan.lease, Lease::Take { .. }));
        assert_eq!(decide(&vacant(Some("c")).build()).rule, "leave_it_to_candidate");
        let late = vacant(Some("c")).with(|s| s.memory.vacant_since = Some(s.now.minus(secs(10))));
        assert_eq!(decide(&late).rule, "run_for_leader", "it had its time");
        let silent = standby().vacant().but(asked(Some("b"), Some("c"))).answers("b", 1_000).build();
        assert_eq!(decide(&silent).rule, "run_for_leader", "it does not answer (S14)");
        let relieved = standby().vacant().but(asked(Some("a"), None)).answers("c", 1_000).build();
        assert_eq!(decide(&relieved).rule, "leave_it_to_others");
    }

    #[test]
    fn a_candidate_that_was_just_restarted_may_have_agreed_that_another_one_goes_on() {
        let named = || standby().vacant().failsafe().unreachable("b").answers("c", 1_000).but(asked(None, Some("a")));
        assert_eq!(decide(&named().build()).rule, "run_as_candidate");
        let young = named().with(|s| s.memory.since = Some(s.now.minus(secs(29))));
        assert_eq!(decide(&young).rule, "wait_after_start");
    }

    #[test]
    fn the_winner_takes_the_request_off_the_table() {
        let won = standby().holding_the_key().promised("a", 2).with(asked(Some("b"), Some("a")));
        let d = decide(&won);
        assert_eq!((d.rule, d.plan.keys), ("promote", vec![KeyWrite::ClearFailover { seen: Revision(77) }]));
    }
}
