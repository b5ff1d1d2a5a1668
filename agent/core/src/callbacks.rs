//! Which of the user's commands is to be called: a pure function of what they were told before and of what is seen now
//! (ha-rules section 18, K2 to K4).
//!
//! A callback tells what the server *is*. So it does not follow the agent's steps but what became of them, compared with what
//! was told last: a server that comes up in another role than the one that was told has changed its role, however it came to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::{Decision, Lease, Move};
use crate::postgres::{Job, StopMode};
use crate::snapshot::{Order, Seat, Snapshot};
use crate::units::Instant;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It runs and accepts connections; or it did already when the agent came.
    OnStart,
    /// It was stopped by the agent.
    OnStop,
    /// It was restarted, and is what it was.
    OnRestart,
    /// It was told to read its configuration again.
    OnReload,
    /// It is something else than before.
    OnRoleChange,
}

impl Event {
    /// Each of them.
    pub const ALL: [Event; 5] = [Event::OnStart, Event::OnStop, Event::OnRestart, Event::OnReload, Event::OnRoleChange];

    /// Its key below `postgresql.callbacks`, and the word that the command gets.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Event::OnStart => "on_start",
            Event::OnStop => "on_stop",
            Event::OnRestart => "on_restart",
            Event::OnReload => "on_reload",
            Event::OnRoleChange => "on_role_change",
        }
    }
}

/// What the server is, in the words that callbacks get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Being {
    /// It accepts writes.
    Primary,
    /// A standby.
    Replica,
    /// The standby that leads a standby cluster.
    StandbyLeader,
    /// A former primary that handed over, or cannot start.
    Demoted,
}

impl Being {
    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Being::Primary => "primary",
            Being::Replica => "replica",
            Being::StandbyLeader => "standby_leader",
            Being::Demoted => "demoted",
        }
    }
}

/// One call of a user's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// What happened.
    pub event: Event,
    /// What the server is now.
    pub role: Being,
}

impl fmt::Display for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.event.word(), self.role.word())
    }
}

/// What was told so far. Forgotten with the agent: the next one tells it anew, as `on_start`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What the server was said to be last; `None`: nothing was said yet.
    pub role: Option<Being>,
    /// It was said to run, and not to have ended since.
    pub up: bool,
    /// It goes down to be restarted.
    pub restarting: bool,
    /// End of the last job that was looked at.
    pub heard: Option<Instant>,
}

/// What is to be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Now, in this order.
    pub now: Vec<Callback>,
    /// As soon as the promotion that the decision begins has been signalled (K4).
    pub at_promotion: Option<Callback>,
    /// What is told then.
    pub told: Told,
}

impl Calls {
    fn call(&mut self, event: Event, role: Being) {
        self.now.push(Callback { event, role });
        self.told.role = Some(role);
    }
}

/// What to call after `decision` was taken on `seen`. `reloaded`: the server was told to read its configuration since the last
/// look, other than to follow another member.
#[must_use]
pub fn due(seen: &Snapshot, decision: &Decision, reloaded: bool) -> Calls {
    let mut calls = Calls { told: seen.memory.told.clone(), ..Calls::default() };
    let last = seen.memory.last_job.as_ref();
    let ended = last.filter(|last| Some(last.at) != calls.told.heard);
    calls.told.heard = last.map(|last| last.at);
    if seen.memory.bootstrapping {
        return calls;
    }
    let job = seen.job.as_ref().map(|running| &running.job);
    let (up, was) = (seen.postgres.is_up(), calls.told.role);

    let goes_down = matches!(job, Some(Job::Stop(_) | Job::Restart { .. } | Job::CopySlots | Job::SetAside));
    if calls.told.up && !up && !goes_down {
        calls.told.up = false;
        // One that crashed was not stopped.
        if let (Some(Job::Stop(mode)), Some(was)) = (ended.map(|ended| &ended.job), was) {
            let handed_over = was == Being::Primary && *mode == StopMode::Fast && seen.order == Order::Run;
            calls.call(Event::OnStop, if handed_over { Being::Demoted } else { was });
        }
    }
    let gives_up = decision.plan.lease == Lease::Release && seen.seat() == Seat::Mine && seen.memory.recovering;
    if gives_up && !up && was == Some(Being::Primary) {
        calls.call(Event::OnRoleChange, Being::Demoted);
    }

    came_up(seen, job, &mut calls);

    let followed = ended.is_some_and(|ended| ended.job == Job::Follow && ended.error.is_none());
    if let Some(role) = was.filter(|was| calls.told.up && (reloaded || followed) && calls.told.role == Some(*was)) {
        calls.call(Event::OnReload, role);
    }
    match &decision.plan.postgres {
        Move::Promote(_) => {
            calls.at_promotion = Some(Callback { event: Event::OnRoleChange, role: Being::Primary });
            calls.told.role = Some(Being::Primary);
        }
        Move::Restart { .. } | Move::CopySlots { .. } => {
            (calls.told.restarting, calls.told.up) = (calls.told.up, false)
        }
        Move::StartPrimary | Move::StartStandby(_) => (calls.told.restarting, calls.told.up) = (false, false),
        Move::Stay
        | Move::Cancel
        | Move::Bootstrap
        | Move::Restore
        | Move::PrePromote
        | Move::Clone { .. }
        | Move::Rewind { .. }
        | Move::GiveUpData { .. }
        | Move::DiscardOldCopy
        | Move::Stop(_)
        | Move::Follow(_)
        | Move::Checkpoint
        | Move::ChangeSlots(_)
        | Move::ResumeReplay
        | Move::SetSyncNames(_)
        | Move::RemoveUnfinished
        | Move::SetAside => {}
    }
    calls
}

/// A server that answers: what it is against what was told.
fn came_up(seen: &Snapshot, job: Option<&Job>, calls: &mut Calls) {
    let moving = matches!(
        job,
        Some(Job::Start { .. } | Job::Restart { .. } | Job::CopySlots | Job::Stop(_) | Job::Promote | Job::SetAside)
    );
    let Some(sql) = seen.sql().filter(|_| seen.postgres.is_up() && !moving) else { return };
    let leads_standbys = seen.config.standby_cluster.is_some() && seen.seat() == Seat::Mine;
    let is = match (sql.in_recovery, leads_standbys) {
        (true, true) => Being::StandbyLeader,
        (true, false) => Being::Replica,
        (false, _) => Being::Primary,
    };
    // Nobody is told of a primary before the leader key says that it is the one: a script may move an address there.
    if is == Being::Primary && seen.lock_ends().is_none() {
        return;
    }
    let event = match calls.told.role {
        Some(was) if was != is => Event::OnRoleChange,
        Some(_) if calls.told.up => return,
        Some(_) if calls.told.restarting => Event::OnRestart,
        Some(_) | None => Event::OnStart,
    };
    (calls.told.up, calls.told.restarting) = (true, false);
    calls.call(event, is);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Remote;
    use crate::fixture::{Builder, primary, secs, standby};
    use crate::memory::LeaseOutcome;
    use crate::postgres::{FinishedJob, RunningJob};
    use crate::rules::decide;

    /// Looks, decides, remembers; tells what was called, `at_promotion` in brackets.
    fn turn(seen: &mut Snapshot, reloaded: bool) -> String {
        let decision = decide(seen);
        let calls = due(seen, &decision, reloaded);
        seen.memory = seen.memory.after(seen, &decision, LeaseOutcome::NotTried);
        assert_eq!(seen.memory.told, calls.told);
        let now = calls.now.iter().map(ToString::to_string);
        now.chain(calls.at_promotion.map(|call| format!("({call})"))).collect::<Vec<_>>().join(", ")
    }

    /// The next look: this server, after what was told before.
    fn then(server: Builder, before: &Snapshot) -> Snapshot {
        let mut seen = server.build();
        (seen.memory, seen.now) = (before.memory.clone(), before.now + secs(1));
        seen.lease.ends = seen.lease.ends.map(|ends| ends + secs(1));
        seen
    }

    fn told(server: Builder, role: Option<Being>, up: bool) -> Snapshot {
        server.with(|s| s.memory.told = Told { role, up, ..Told::default() })
    }

    fn ended(mut seen: Snapshot, job: Job, error: Option<&str>) -> Snapshot {
        let at = seen.now;
        seen.memory.job_ended(FinishedJob { job, at, error: error.map(str::to_owned) }, None);
        seen
    }

    const PRIMARY: Option<Being> = Some(Being::Primary);
    const REPLICA: Option<Being> = Some(Being::Replica);

    #[test]
    fn a_server_that_came_up_is_told_by_what_was_told_before() {
        for (server, role, up, calls) in [
            (standby(), None, false, "on_start replica"),
            (primary(), None, false, "on_start primary"),
            (standby(), REPLICA, false, "on_start replica"),
            (primary(), PRIMARY, false, "on_start primary"),
            (standby(), PRIMARY, false, "on_role_change replica"),
            (standby(), Some(Being::Demoted), false, "on_role_change replica"),
            (primary(), REPLICA, true, "on_role_change primary"),
            (standby(), PRIMARY, true, "on_role_change replica"),
            (primary(), PRIMARY, true, ""),
            (standby(), REPLICA, true, ""),
            // A primary that nobody is to find yet.
            (primary().vacant(), None, false, ""),
            (primary().led_by("b"), None, false, ""),
            (standby().vacant(), None, false, "on_start replica"),
            (standby().job(Job::Start { as_primary: false }), REPLICA, false, ""),
            (standby().holding_the_key().job(Job::Promote), PRIMARY, true, ""),
        ] {
            let mut seen = told(server, role, up);
            assert_eq!(turn(&mut seen, false), calls, "{role:?} {up} {:?}", seen.seat());
            assert_eq!(turn(&mut seen, false), "", "once");
        }
    }

    #[test]
    fn a_standby_that_comes_to_lead_a_standby_cluster_changes_its_role() {
        let remote = Remote { host: Some("10.0.0.9".into()), port: 5432, slot: None, min_apply_delay: None };
        let follows = |s: Builder| s.with(|s| s.config.standby_cluster = Some(remote.clone()));
        let mut seen = follows(standby());
        seen.memory.told = Told { up: true, role: REPLICA, ..Told::default() };
        assert_eq!(turn(&mut seen, false), "");
        let told = seen.memory.told.clone();
        let mut leads = follows(standby().holding_the_key());
        leads.memory.told = told;
        assert_eq!(turn(&mut leads, false), "on_role_change standby_leader");
        assert_eq!(turn(&mut leads, false), "");
    }

    #[test]
    fn a_stop_is_told_when_it_was_ours_and_has_ended() {
        let fast = Job::Stop(StopMode::Fast);
        for (server, role, job, order, calls) in [
            (primary().down(), PRIMARY, fast.clone(), Order::Run, "on_stop demoted"),
            (primary().down(), PRIMARY, fast.clone(), Order::Stop, "on_stop primary"),
            (primary().down(), PRIMARY, Job::Stop(StopMode::Immediate), Order::Run, "on_stop primary"),
            (primary().down(), PRIMARY, Job::Stop(StopMode::FastThenImmediate), Order::Run, "on_stop primary"),
            (standby().down(), REPLICA, fast.clone(), Order::Run, "on_stop replica"),
            (standby().down(), REPLICA, Job::Checkpoint, Order::Run, ""),
            (standby(), REPLICA, fast, Order::Run, ""),
        ] {
            let mut seen = ended(told(server, role, true), job.clone(), None);
            seen.order = order;
            assert_eq!(turn(&mut seen, false), calls, "{role:?} {job:?} {order:?}");
        }
        let mut going = told(primary().down().job(Job::Stop(StopMode::Fast)), PRIMARY, true);
        assert_eq!(turn(&mut going, false), "", "its job has not ended");
        let mut never_up = ended(told(standby().down(), REPLICA, false), Job::Stop(StopMode::Fast), None);
        assert_eq!(turn(&mut never_up, false), "", "nothing was signalled");
    }

    #[test]
    fn a_crash_is_no_stop_and_a_start_in_place_is_one() {
        let mut seen = told(primary().down(), PRIMARY, true);
        assert_eq!(turn(&mut seen, false), "");
        let mut seen = ended(then(primary(), &seen), Job::Start { as_primary: true }, None);
        assert_eq!(turn(&mut seen, false), "on_start primary");
    }

    #[test]
    fn a_primary_that_cannot_start_is_demoted_when_it_gives_the_key_back() {
        let mut seen = told(primary().down(), PRIMARY, false);
        seen.memory.recovering = true;
        assert_eq!(turn(&mut seen, false), "on_role_change demoted");
        assert_eq!(turn(&mut then(standby(), &seen), false), "on_role_change replica");
    }

    #[test]
    fn a_restart_is_one_call() {
        for (server, role) in [(primary as fn() -> Builder, PRIMARY), (standby, REPLICA)] {
            let mut seen = told(server(), role, true);
            seen.request = Some(crate::request::Request::Restart(crate::request::Restart::default()));
            assert_eq!(turn(&mut seen, false), "");
            assert!(seen.memory.told.restarting);
            let job = Job::Restart { as_primary: role == PRIMARY };
            for server in [server(), server().down()] {
                seen = then(server.job(job.clone()), &seen);
                assert_eq!(turn(&mut seen, false), "", "under way");
            }
            let mut seen = ended(then(server(), &seen), job, None);
            let word = role.map(Being::word).unwrap_or_default();
            assert_eq!(turn(&mut seen, false), format!("on_restart {word}"));
        }
    }

    #[test]
    fn a_promotion_is_told_with_its_signal_and_not_again() {
        let mut seen = told(standby().holding_the_key().promised("a", 2), REPLICA, true);
        assert_eq!(turn(&mut seen, false), "(on_role_change primary)");
        let mut seen = ended(then(primary(), &seen), Job::Promote, None);
        assert_eq!(turn(&mut seen, false), "");
        let mut failed = told(standby().holding_the_key(), PRIMARY, true);
        failed = ended(failed, Job::Promote, Some("no"));
        assert_eq!(turn(&mut failed, false), "on_role_change replica");
    }

    #[test]
    fn a_reload_is_told_of_a_server_that_was_told() {
        let mut seen = told(standby(), REPLICA, true);
        assert_eq!(turn(&mut seen, true), "on_reload replica");
        let mut followed = ended(seen.clone(), Job::Follow, None);
        assert_eq!(turn(&mut followed, false), "on_reload replica");
        assert_eq!(turn(&mut followed, false), "", "once");
        assert_eq!(turn(&mut ended(seen, Job::Follow, Some("no")), false), "");
        assert_eq!(turn(&mut told(standby().down(), REPLICA, false), true), "");
        assert_eq!(turn(&mut told(standby(), None, false), true), "on_start replica", "it has read them anyway");
    }

    /// The captured sequences: a switchover from n1 to n2, and a lost lock.
    #[test]
    fn the_captured_sequences() {
        let mut n1 = told(primary().down(), PRIMARY, true);
        n1 = ended(n1, Job::Stop(StopMode::Fast), None);
        assert_eq!(turn(&mut n1, false), "on_stop demoted");
        assert_eq!(turn(&mut then(standby(), &n1), false), "on_role_change replica");
        let mut lost = told(primary().led_by("b"), PRIMARY, true);
        assert_eq!(turn(&mut lost, false), "");
        let mut lost = ended(then(primary().led_by("b").down(), &lost), Job::Stop(StopMode::Immediate), None);
        assert_eq!(turn(&mut lost, false), "on_stop primary");
        let mut starting = then(standby().down(), &lost);
        starting.job = Some(RunningJob { job: Job::Start { as_primary: false }, since: starting.now });
        assert_eq!(turn(&mut starting, false), "");
        assert_eq!(turn(&mut then(standby(), &starting), false), "on_role_change replica");
    }
}
