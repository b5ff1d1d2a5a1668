//! THE TABLES. The whole behaviour of an agent, in order; everyone opens this page first.
//!
//! Order is meaning: the first row that answers, decides; the last always answers, by its type. First the guards, whoever
//! leads. Then one table by who holds the leader key. Ids in brackets are the contract's (`ha-rules.md`, `dcs.md`).

mod busy;
mod election;
mod follower;
mod guard;
mod isolated;
mod leader;
mod pause;
mod repair;
mod request;
mod standby_cluster;
mod switchover;
mod synchronous;

use std::time::Duration;

use crate::plan::{Decision, Verdict};
use crate::postgres::Probe;
use crate::snapshot::{Seat, Snapshot};

/// One row: a plain function that answers or passes, and the failure it prevents.
#[derive(Clone, Copy)]
pub struct Rule {
    /// A verb phrase: what, and when.
    pub name: &'static str,
    /// Ids of the contract's rules that it carries.
    pub contract: &'static str,
    /// Answers, or passes.
    pub judge: fn(&Snapshot) -> Option<Verdict>,
    /// What would happen without it.
    pub prevents: &'static str,
}

/// The row that always answers.
#[derive(Clone, Copy)]
pub struct Otherwise {
    /// As in [`Rule`].
    pub name: &'static str,
    /// As in [`Rule`].
    pub contract: &'static str,
    /// Answers.
    pub judge: fn(&Snapshot) -> Verdict,
    /// As in [`Rule`].
    pub prevents: &'static str,
}

/// Rows in order, and what holds when none answers.
#[derive(Clone, Copy)]
pub struct Table {
    /// When this table is read, in one sentence.
    pub title: &'static str,
    /// The rows.
    pub rows: &'static [Rule],
    /// The last row.
    pub otherwise: Otherwise,
}

macro_rules! rules {
    ($($module:ident::$name:ident [$contract:literal] $prevents:literal;)*) => {
        &[$(Rule { name: stringify!($name), contract: $contract, judge: $module::$name, prevents: $prevents }),*]
    };
}

macro_rules! otherwise {
    ($module:ident::$name:ident [$contract:literal] $prevents:literal) => {
        Otherwise { name: stringify!($name), contract: $contract, judge: $module::$name, prevents: $prevents }
    };
}

/// Read before every table, whoever leads.
pub const GUARDS: &[Rule] = rules! {
    guard::leave_living_namesake       ["B12"]        "two agents of one name, so two keepers of one lock";
    guard::stop_before_lease_ends      ["F2 L5 22.2"] "two primaries: we accept writes after our lease has passed to another member";
    guard::stop_bootstrap_without_key  ["B5"]         "two clusters under one name: our right to make it has run out";
    guard::abandon_bootstrap_when_ordered ["B5 D8"]   "a cluster half made that nobody finishes";
    guard::leave_postgres_in_pause     ["M12 D8"]     "maintenance that ends when the agent is upgraded";
    synchronous::ask_to_be_released    ["D8 T4"]      "commits that wait for a standby which was stopped on purpose";
    guard::stop_postgres_when_ordered  ["D8 D9"]      "a running primary without a keeper of its lock";
    guard::end_slow_stop               ["D2"]         "clients that wait for a stop without end, although the standbys have every commit";
    guard::hand_over_early             ["D3 D4"]      "a slow archive_command that delays the next primary";
    guard::release_when_stopped        ["D8 D9"]      "a hand-over that waits for the TTL";
    guard::exit_when_stopped           ["D8"]         "an agent that does not end";
    guard::leave_foreign_cluster       ["B9"]         "joining another cluster and overwriting its data";
    guard::leave_when_primary_unknown  ["B10"]        "a stale replica that founds a new cluster";
    guard::adopt_existing_cluster      ["B11"]        "a migrated instance that nobody leads";
    request::refuse_restart            ["T1 T2"]      "a restart that nobody wants any more, or that leaves the cluster without a primary";
    request::restart                   ["T1 T2 T3 T4 T5 M10"] "a restart that is taken for a crash";
    request::refuse_reinitialize       ["M10"]        "the last good copy, removed on a wrong word";
    request::reinitialize              ["M10"]        "a member that an operator cannot have copied anew";
    request::start_new_copy            ["M10"]        "a new copy that stays down because the cluster is paused";
};

/// Read while a long action runs.
pub const BUSY: Table = Table {
    title: "A long action runs (ha-rules section 8, table A)",
    rows: rules! {
        busy::stop_writer_beside_leader     ["W1 A2 A3"] "split brain, hidden behind a job";
        busy::cancel_promotion_without_lock ["A2 CY1"] "promotion after losing the lock";
        busy::cancel_pre_promote_without_lock ["A2 K5"] "a script that fences off the member which leads now";
        busy::cancel_start_without_lock     ["A3 C6"]  "a former primary that comes up writable beside the new one";
        busy::cancel_clone_without_source   ["B13"]    "a clone that can never end, from a member that is gone";
        busy::cancel_for_reinitialize       ["M10"]    "a clone that hangs, and that an operator cannot have made anew";
        busy::cancel_rewind_without_source  ["X8"]     "a rewind that never ends, to a former leader that is gone";
    },
    otherwise: otherwise!(busy::wait_for_job ["A1 A4"] "two actions on one data directory"),
};

/// Read in maintenance mode, whoever leads.
pub const PAUSED: Table = Table {
    title: "The cluster is paused (ha-rules section 13)",
    rows: rules! {
        pause::adopt_leader_key_in_pause   ["M2 4.3"] "a leader key that runs out although its holder is back";
        pause::promote_candidate_in_pause  ["M10 L1 L13 S10"] "a member that was asked to lead, and does not";
        pause::release_key_without_primary ["M3 L1 D3 D4"]  "a key that points to a server which the operator stopped";
        pause::take_key_as_primary         ["M4 R4"]  "clients without a primary although one runs";
        pause::run_as_candidate_in_pause   ["R2 R6 R16 M5 M10 S10 S11 S15"] "a switchover that was asked for and ends without a primary";
        pause::come_back_after_hand_over   ["M7 D5 D7 X1"] "a member that stays out because its operator made another one the primary";
        pause::follow_in_pause             ["M11 W5 P4"] "standbys that stand still during maintenance, and log that they cannot get any more";
        pause::keep_records_in_pause       ["M2 M10 L2 L7 L11 S2 S3 S4 S5 S6 S7"]  "a failover key, status or identity that nobody keeps; a switchover that was asked for and does not come";
    },
    otherwise: otherwise!(pause::hands_off ["M1 M5 M6 M7 M8 M9"] "an agent that works against its operator"),
};

/// Read when I hold the leader key.
pub const LEADER: Table = Table {
    title: "I hold the leader key (ha-rules section 6)",
    rows: rules! {
        leader::wait_for_own_lease         ["DL7"]       "acting on a key that hangs on a lease which nobody renews";
        leader::adopt_leader_key           ["4.3 DL5"]   "a failover because the agent was restarted";
        leader::give_up_lost_data          ["C10"]       "a lock held by a member without data";
        switchover::release_to_successor   ["D3 D4 S7"]  "a hand-over that waits for the TTL";
        leader::give_up_after_failed_start ["C9 T3"]     "a primary that cannot start and keeps the lock";
        leader::let_lease_of_hung_server_run ["22.3 I1"] "clients that wait for a server which will never answer, while its agent keeps the lock";
        leader::give_up_hung_server        ["22.3 I1"]   "a restart on the disk that has just hung";
        leader::give_up_without_guardian   ["22.3 I3"]   "a new primary that nobody stops when its agent freezes";
        leader::give_up_without_watchdog   ["L9 V3"]     "a primary that nothing resets when its machine hangs, where the operator demands it";
        leader::prefer_failover_to_start   ["C1"]        "an outage as long as crash recovery, although a standby is ready";
        leader::restart_crashed_primary    ["C2"]        "a failover where a restart in place is faster and loses nothing";
        leader::start_uncertain_as_standby ["C4"]        "a writable start from an uncertain state";
        leader::give_up_slow_start         ["C7"]        "an unbounded outage in crash recovery";
        leader::wait_for_start             ["C7 C8"]     "a second start while the first one runs";
        leader::yield_to_failsafe_leader   ["F5 S13"]    "a promotion beside a primary that goes on with our agreement";
        leader::demote_behind_the_promise  ["S2 S8"]     "two histories under one timeline number";
        leader::record_own_timeline        ["L11 S2"]    "a timeline given to another member although it is in use";
        leader::promise_next_timeline      ["S2 S8"]     "two histories under one timeline number";
        synchronous::prepare_promotion     ["Y8 Y10 Q7"]  "a second failover that loses what the first one acknowledged";
        leader::give_up_refused_promotion  ["L10 K5"]    "a cluster without a primary, as its leader is not allowed to become one";
        leader::run_pre_promote            ["L13 K5"]    "a promotion that the user's own fencing has not agreed to";
        leader::promote                    ["L13 CY1"]   "a cluster without a primary";
        synchronous::publish_sync          ["Y1 Y2 Y3 Y5 Y7 Y9 Q1 Q2 Q5 S5"] "a promotion without acknowledged commits";
        synchronous::wait_for_standbys     ["Y6 Y7 Y9 Q3 Q4"] "commits that are acknowledged before anybody else has them";
        switchover::drop_request           ["S2 S3 S4"]  "a request of yesterday that is carried out tomorrow";
        switchover::checkpoint_ahead       ["D S7 I10"]  "clients that wait for a checkpoint in the midst of a switchover";
        switchover::ask_candidates         ["S6 FP"]     "a primary that stops before anybody could take over";
        switchover::refuse_request         ["S6 FP"]     "a switchover that ends without a primary";
        switchover::hand_over              ["S7 D1 D6"]  "a switchover that was asked for and does not come";
        leader::repair_identity            ["cycle row 5"] "a cluster that forgets who it is";
        leader::restore_config             ["CF2 cycle row 6"] "a cluster that forgets its configuration";
        leader::look_after_slots           ["P1 P2 P3 P4 P5 P6 P7 P12 P13"] "a standby that cannot stream, or whose log is removed before it comes back; a disk that fills up for a member that is gone";
        leader::checkpoint_after_promotion ["L7"]        "a rewind from a primary whose control file is stale";
    },
    otherwise: otherwise!(leader::lead ["L2 L11"] "a lease that ends while its holder is well"),
};

/// Read when I hold the leader key of a standby cluster.
pub const STANDBY_LEADER: Table = Table {
    title: "I hold the leader key of a standby cluster (ha-rules section 19)",
    rows: rules! {
        leader::wait_for_own_lease         ["DL7"]       "acting on a key that hangs on a lease which nobody renews";
        leader::adopt_leader_key           ["4.3 DL5"]   "a change of the leader because the agent was restarted";
        leader::give_up_lost_data          ["C10"]       "a lock held by a member without data";
        standby_cluster::rewind_to_remote  ["Z4 X2 X3 X6"] "a standby cluster that stands still for ever, although pg_rewind could help";
        standby_cluster::stay_down_beyond_remote ["Z4 X8"] "a lock held by a server that can follow nobody";
        leader::give_up_after_failed_start ["C9 T3"]     "a leader that cannot start and keeps the lock";
        leader::let_lease_of_hung_server_run ["22.3 I1"] "standbys that wait for a server which will never answer, while its agent keeps the lock";
        leader::give_up_hung_server        ["22.3 I1"]   "a restart on the disk that has just hung";
        standby_cluster::demote_cluster    ["Z2 Z6 D4 D6"] "two primaries, in two clusters; a former primary that cannot follow without a rewind";
        standby_cluster::start_under_remote ["C5 Z1"]    "a standby cluster that stands still";
        leader::wait_for_start             ["C7 C8"]     "a second start while the first one runs";
        switchover::drop_request           ["S2 S3 S4 S5 R22"] "a request of yesterday that is carried out tomorrow";
        switchover::ask_candidates         ["S6 FP"]     "a leader that goes before anybody could take over";
        switchover::refuse_request         ["S6 FP"]     "a switchover that ends without a leader";
        standby_cluster::hand_over_standbys ["S7"]       "a switchover that was asked for and does not come";
        standby_cluster::stop_beyond_remote ["Z4"]       "a standby cluster that silently stopped to follow";
        leader::repair_identity            ["cycle row 5"] "a cluster that forgets who it is";
        leader::restore_config             ["CF2 cycle row 6"] "a cluster that forgets its configuration, and that it must not write";
        follower::follow_leader            ["W5 Z2 Z3"]  "a leader that streams from a former remote";
        follower::resume_replay            ["W4"]        "a standby that falls behind for ever, without a word";
        follower::prepare_slots            ["P1 P2 P3 P4 P5 P6 P13"] "a member that cannot stream, or whose log is removed before it comes back";
    },
    otherwise: otherwise!(standby_cluster::lead_standbys ["L2 L8 P12"] "a lease that ends while its holder is well"),
};

/// Read when another member holds the leader key.
pub const FOLLOWER: Table = Table {
    title: "Another member holds the leader key (ha-rules section 7)",
    rows: rules! {
        follower::demote_when_another_leads ["W1 L3 Z2"]   "split brain";
        follower::stop_server_without_data  ["C10"]     "a server that serves what nobody can restart";
        follower::clear_unfinished_copy     ["B13"]     "a member that stays out because its clone was interrupted";
        follower::clone                     ["B2 B13"]  "an empty member that never joins";
        repair::rewind_diverged             ["X1 X3 X4 X5 X6 C3"] "a member that stays out although pg_rewind could bring it back; or a rewind that believes a stale control file";
        repair::give_up_diverged_data       ["X8 X9"]   "a member that stays out although its operator wants it cloned";
        follower::report_unusable_data      ["B8 C11 X8"] "an unknown data directory overwritten, a half-rewound one started";
        standby_cluster::rewind_to_remote   ["Z4 X2 X3 X6"] "a member of a standby cluster that stays out although pg_rewind could bring it back";
        standby_cluster::stay_down_beyond_remote ["Z4 X8"] "a server started on a log that the remote does not have";
        repair::stay_down_diverged          ["X3 X8"]   "a server started on a log that the cluster does not have";
        follower::wait_after_failed_start   ["C5"]      "a start tried a hundred times a second";
        follower::start_as_standby          ["C5 B14"]  "a member that stays down";
        follower::follow_while_starting     ["W5"]      "a standby that waits for ever for log of an upstream that is gone, as it cannot be asked before it has that log";
        follower::wait_while_starting       ["W6"]      "a verdict on a server that does not know its own position yet";
        repair::stop_diverged               ["X3 W6"]   "a standby that silently stopped to follow";
        standby_cluster::stop_beyond_remote ["Z4"]      "a standby that silently stopped to follow";
        follower::follow_leader             ["W5 W7 B15"]  "a standby that streams from a former leader";
        follower::resume_replay             ["W4"]      "a standby that falls behind for ever, without a word";
        follower::prepare_slots             ["P1 P2 P3 P4 P5 P6"] "a standby that cannot go on after a failover, as its log is gone; seconds without replication";
        follower::copy_slots                ["P8 P9"]   "a consumer of a logical slot that cannot go on after a failover";
        repair::discard_old_copy            ["DESIGN 6"] "a disk that fills up with copies nobody needs";
        follower::report_missing_log        ["DESIGN 6"] "a standby that falls behind for ever, without a word";
    },
    otherwise: otherwise!(follower::stay_standby ["W P8 P10"] "needless action"),
};

/// Read when nobody holds the leader key.
pub const ELECTION: Table = Table {
    title: "Nobody holds the leader key (ha-rules section 5)",
    rows: rules! {
        election::stop_server_without_data  ["C10"]      "a server that serves what nobody can restart";
        standby_cluster::start_first_copy   ["Z1 B14"]   "a standby cluster whose first member never starts";
        election::abandon_failed_bootstrap  ["B5"]       "a node that keeps the others from making the cluster";
        standby_cluster::copy_remote        ["Z1 B13"]   "an empty cluster in the place of a copy of the remote";
        election::make_the_cluster          ["B1 B4"]    "a won race without a cluster";
        election::identify_new_cluster      ["B7"]       "a cluster visible before it is usable";
        election::wait_to_promote_bootstrap ["B6"]       "a lost recovery target";
        election::clear_unfinished_copy     ["B13"]      "a member that stays out because its clone was interrupted";
        election::race_to_bootstrap         ["B1"]       "two clusters under one name";
        election::restore_without_leader   ["B3"]        "an empty cluster although a backup is there";
        election::wait_empty                ["B3"]       "a copy of nothing";
        election::report_unusable_data      ["B8 C11 X8"]   "an unknown data directory overwritten";
        election::wait_after_failed_start   ["C5"]       "a start tried a hundred times a second";
        switchover::stay_down_for_successor ["D5"]       "a former primary that starts just when somebody else takes over";
        election::wait_for_bootstrap        ["B1 B11"]   "data from before that comes up beside a new cluster of the same name";
        election::start_without_upstream    ["C5 R3"]    "a member that cannot stand because it is down";
        election::wait_while_starting       ["R3"]       "a leader whose position is unknown";
        election::wait_for_failsafe_leader  ["F5"]       "a race against a primary that lost nothing but etcd";
        election::demote_stale_primary      ["R5 R20 S2"] "a primary that slept through another promotion and steals the lock back";
        election::wait_for_guardian         ["22.3 I3"]  "a leader that nobody stops when its agent freezes";
        election::wait_for_watchdog         ["R10 V3"]   "a leader that nothing resets when its machine hangs, where the operator demands it";
        election::keep_leading              ["R5"]       "a promotion where nothing was lost but the key";
        election::wait_after_refused_promotion ["R1 L10"] "a member that takes the key again and again, and may not use it";
        election::wait_nofailover           ["R7"]       "a leader that the operator ruled out";
        election::wait_outside_failsafe     ["R11"]      "a leader that the primary without etcd could not have asked";
        election::wait_for_lease            ["DL8"]      "a key without a lease";
        synchronous::wait_unlisted          ["R8 R12 S12"] "a leader without acknowledged commits";
        switchover::run_as_candidate        ["R9 S10"]   "a candidate that was asked for and does not come";
        election::wait_for_streaming_primary ["23"]      "a failover although the primary lost nothing but etcd, where the operator would rather wait";
        election::wait_behind               ["R13 S8"]   "more loss than the configured bound";
        election::wait_on_old_timeline      ["R14"]      "a forked standby as primary";
        election::ask_the_others            ["R15"]      "a race on one's own word";
        switchover::leave_it_to_candidate   ["S13 S14"]  "another leader than the one that was asked for";
        switchover::leave_it_to_others      ["S16"]      "a switchover that ends where it began";
        election::wait_for_living_primary   ["R16"]      "two primaries: the old one lost the key and is not fenced yet";
        election::wait_after_start          ["F5 22.4"]  "a race against a primary whom we promised to wait for, before we were restarted";
        election::wait_for_member_ahead     ["R17"]      "needless loss: another member has more of the log";
        election::wait_for_priority         ["R18"]      "the operator's preference ignored";
        synchronous::wait_for_votes         ["R19 Q8"]   "a leader elected by members that lack acknowledged commits";
    },
    otherwise: otherwise!(election::run_for_leader ["R15 4.2"] "an outage that lasts until a human comes"),
};

/// Read when etcd did not answer.
pub const ISOLATED: Table = Table {
    title: "etcd did not answer (ha-rules section 9)",
    rows: rules! {
        isolated::stop_without_lease     ["F2"]    "two primaries: we write, and know of no lease that allows it";
        isolated::ask_to_go_on           ["F3 F10"] "an outage of etcd that becomes an outage of the database";
        isolated::go_on_by_agreement     ["F3 S13"] "a demotion although nobody could have been promoted";
        isolated::restart_read_only      ["F2 D"]  "readers without a server while etcd is away";
    },
    otherwise: otherwise!(isolated::hold ["F1 F6 O1"] "an outage made out of a DCS hiccup"),
};

/// Every table with the guards first, for documents and tests.
pub const TABLES: &[&Table] = &[&BUSY, &PAUSED, &LEADER, &STANDBY_LEADER, &FOLLOWER, &ELECTION, &ISOLATED];

/// The judgement: what to do, by which rule, why, and when to look again at the latest.
#[must_use]
pub fn decide(s: &Snapshot) -> Decision {
    decide_without(s, &[])
}

/// The judgement of an agent that lacks some rows: what a row is for shows when it is gone. For tests that must find out.
#[must_use]
pub fn decide_without(s: &Snapshot, missing: &[&str]) -> Decision {
    let table = table(s);
    let rows = GUARDS.iter().chain(table.rows).filter(|rule| !missing.contains(&rule.name));
    let mut answers = rows.filter_map(|rule| Some((rule.name, (rule.judge)(s)?)));
    let (rule, verdict) = answers.next().unwrap_or_else(|| (table.otherwise.name, (table.otherwise.judge)(s)));
    decided(s, rule, verdict)
}

/// The table for a snapshot that no guard answered. Exhaustive: a new seat does not compile without a table.
#[must_use]
pub fn table(s: &Snapshot) -> &'static Table {
    if s.busy().is_some() {
        return &BUSY;
    }
    if s.config.pause && !s.memory.bootstrapping {
        return &PAUSED;
    }
    match s.seat() {
        Seat::Mine if s.leads_standbys() => &STANDBY_LEADER,
        Seat::Mine => &LEADER,
        Seat::Theirs => &FOLLOWER,
        Seat::Vacant => &ELECTION,
        Seat::Unknown => &ISOLATED,
    }
}

/// How soon a silent server is looked at again.
const SILENCE: Duration = Duration::from_millis(500);

fn decided(s: &Snapshot, rule: &'static str, verdict: Verdict) -> Decision {
    // Whoever accepts writes wakes in time to stop, whatever the rule thought.
    let before_stop = s.must_stop_at().filter(|_| s.may_write()).map(|at| s.now.until(at));
    let wanted = match verdict.plan.ask.is_empty() {
        true => verdict.look_again.unwrap_or(s.config.loop_wait).min(s.config.loop_wait),
        false => Duration::ZERO, // Answers are decided on at once: a moment later they are stale.
    };
    let wanted = request::due_in(s).map_or(wanted, |left| wanted.min(left));
    // A server that keeps silent is looked at again until it is known whether it hangs.
    let wanted = if s.postgres.probe == Probe::Silent { wanted.min(SILENCE) } else { wanted };
    let look_again = before_stop.map_or(wanted, |left| wanted.min(left));
    Decision { rule, plan: verdict.plan, why: verdict.why, look_again }
}

#[cfg(test)]
mod tests {
    use super::decide;
    use crate::fixture::{primary, secs, standby};
    use std::time::Duration;

    #[test]
    fn who_asks_decides_on_the_answers_at_once() {
        let crashed = primary().down().start_timeout(secs(0)).build();
        let starting = primary().starting(secs(301)).start_timeout(secs(300)).build();
        for s in [crashed, starting, standby().vacant().build()] {
            let d = decide(&s);
            assert!(!d.plan.ask.is_empty(), "{}", d.rule);
            assert_eq!(d.look_again, Duration::ZERO, "{}: answers are stale after a moment", d.rule);
        }
    }
}
