//! Properties over any snapshot, sensible or not: the judgement is total, the inspector agrees with it, and the order of
//! members does not matter.

use proptest::collection::btree_map;
use proptest::option;
use proptest::prelude::*;
use regent_core::callbacks::Told;
use regent_core::cluster::*;
use regent_core::config::{Config, Logical, PermanentSlot, SyncMode, Tags};
use regent_core::failsafe::{Agreement, Notice, Promises, Topology};
use regent_core::fixture::SYSTEM_ID;
use regent_core::inspector::inspect;
use regent_core::memory::{LastLed, Memory, Role};
use regent_core::peers::{PeerAnswer, PeerReply};
use regent_core::postgres::*;
use regent_core::request::{Request, Restart};
use regent_core::rules::decide;
use regent_core::snapshot::{Guardian, LeaseView, NoView, Order, Peers, Snapshot, Watchdog};
use regent_core::units::*;

const NOW: u64 = 10_000;

fn name() -> impl Strategy<Value = MemberName> {
    prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(MemberName::from)
}

fn lsn() -> impl Strategy<Value = Lsn> {
    prop_oneof![Just(0), Just(999), Just(1_000), Just(1_001), Just(9_000_000)].prop_map(Lsn)
}

fn timeline() -> impl Strategy<Value = Timeline> {
    (1u32..5).prop_map(Timeline)
}

fn lease() -> impl Strategy<Value = LeaseId> {
    (1i64..4).prop_map(LeaseId)
}

fn moment() -> impl Strategy<Value = Instant> {
    (NOW - 40..NOW + 40).prop_map(|s| Instant(std::time::Duration::from_secs(s)))
}

fn system_id() -> impl Strategy<Value = SystemId> {
    prop_oneof![9 => Just(SYSTEM_ID), 1 => Just(SystemId(9_999_999_999))]
}

fn member() -> impl Strategy<Value = Member> {
    let words = (
        prop_oneof![Just("running"), Just("starting"), Just("stopped"), Just("")],
        prop_oneof![Just("primary"), Just("replica"), Just("promoted"), Just("")],
    );
    (words, option::of(timeline()), any::<(bool, bool, bool, bool, bool)>()).prop_map(|((state, role), timeline, b)| {
        Member {
            conn_url: b.0.then(|| "postgres://b:5432/postgres".into()),
            api_url: b.1.then(|| "http://b:8008/patroni".into()),
            state: state.into(),
            role: role.into(),
            timeline,
            tags: MemberTags { nofailover: b.2, clonefrom: b.3, nostream: b.4, ..MemberTags::default() },
            ..Member::default()
        }
    })
}

fn members() -> impl Strategy<Value = std::collections::BTreeMap<MemberName, Member>> {
    btree_map(name(), member(), 0..4)
}

fn view() -> impl Strategy<Value = ClusterView> {
    let modified = Revision(7);
    let initialize = prop_oneof![
        6 => system_id().prop_map(Initialize::Known),
        1 => Just(Initialize::Absent),
        1 => option::of(lease()).prop_map(move |lease| Initialize::InProgress { modified, lease }),
        1 => Just(Initialize::Garbage { text: "x".into(), modified }),
    ];
    let leader =
        option::of((name(), option::of(lease())).prop_map(move |(name, lease)| LeaderKey { name, lease, modified }));
    let config = prop_oneof![
        Just(ConfigKey::Missing),
        Just(ConfigKey::Empty(modified)),
        Just(ConfigKey::Garbage(modified)),
        Just(ConfigKey::Valid(modified))
    ];
    let line = (timeline(), lsn()).prop_map(|(parent, switched_at)| HistoryLine {
        parent,
        switched_at,
        reason: String::new(),
        at: None,
        promoted: None,
    });
    let promise =
        option::of((0u64..9, timeline(), lsn(), name()).prop_map(move |(epoch, timeline, lsn, holder)| PromiseKey {
            promise: Promise { epoch, position: WalPosition { timeline, lsn }, parent: Timeline(1), holder },
            modified,
        }));
    let history = option::of(prop::collection::vec(line, 0..4));
    let text = String::new();
    let schedule = option::of(option::of(NOW - 30..NOW + 30))
        .prop_map(move |at| at.map(|at| Schedule { at: at.map(std::time::Duration::from_secs), text: text.clone() }));
    let failover = (option::of(name()), option::of(name()), schedule);
    let failover = option::weighted(0.2, failover).prop_map(move |asked| {
        asked.map(|(leader, candidate, schedule)| Failover { leader, candidate, schedule, modified })
    });
    let standbys = prop::collection::btree_set(name(), 0..3);
    let sync = option::of((name(), standbys, 0..3_usize).prop_map(|(leader, standbys, quorum)| SyncState {
        leader,
        standbys,
        quorum,
    }));
    (initialize, leader, members(), config, history, option::of(lsn()), promise, (failover, sync)).prop_map(
        move |(initialize, leader, members, config, history, optime, promise, (failover, sync))| ClusterView {
            failover,
            sync,
            sync_seen: Some(modified),
            revision: Revision(100),
            initialize,
            leader,
            members,
            config,
            history,
            status_seen: Some(Revision(8)),
            status: Status { optime, slots: [("x".into(), Lsn(5))].into(), ..Status::default() },
            promise,
            unreadable_promise: None,
            failsafe: None,
            garbage: std::collections::BTreeMap::new(),
        },
    )
}

fn control() -> impl Strategy<Value = ControlData> {
    let state = prop_oneof![
        Just(ClusterState::StartingUp),
        Just(ClusterState::ShutDown),
        Just(ClusterState::ShutDownInRecovery),
        Just(ClusterState::ShuttingDown),
        Just(ClusterState::InCrashRecovery),
        Just(ClusterState::InArchiveRecovery),
        Just(ClusterState::InProduction),
    ];
    (system_id(), state, timeline(), lsn(), option::of((timeline(), lsn()))).prop_map(
        |(system_id, state, timeline, checkpoint, min_recovery)| ControlData {
            system_id,
            state,
            timeline,
            checkpoint,
            checkpoint_end: None,
            min_recovery,
            rewindable: true,
        },
    )
}

fn sql() -> impl Strategy<Value = SqlFacts> {
    (any::<bool>(), option::of(timeline()), lsn(), option::of(lsn()), any::<bool>()).prop_map(
        |(in_recovery, timeline, lsn, receive_lsn, streaming)| SqlFacts {
            in_recovery,
            timeline,
            streaming,
            flush_lsn: lsn,
            receive_lsn: receive_lsn.filter(|_| in_recovery),
            replay_lsn: in_recovery.then_some(lsn),
            replay_paused: false,
            replayed_at: None,
            latest_end_lsn: None,
            restores_from_archive: false,
            upstream: streaming.then(|| "b:5432".into()),
            started_at: String::new(),
            server_version: 150_000,
            slots: vec![Slot { name: "b".into(), ..Slot::default() }],
            leader_xmins: std::collections::BTreeMap::new(),
            log_gone: None,
            sync_names: String::new(),
            replication: Vec::new(),
            pending_restart: Vec::new(),
        },
    )
}

fn postgres() -> impl Strategy<Value = PgState> {
    let present = (option::weighted(0.9, control()), any::<(bool, bool)>()).prop_map(
        |(control, (standby_signal, backup_label))| DataDir::Present(Present { control, standby_signal, backup_label }),
    );
    let data_dir = prop_oneof![
        8 => present, 2 => Just(DataDir::Empty), 1 => Just(DataDir::Unfinished), 1 => Just(DataDir::HalfRewound),
        1 => Just(DataDir::Unreadable("x".into())), 1 => Just(DataDir::Unusable("x".into())),
    ];
    // A server that is down answers nothing; one that is up accepts, rejects or keeps silent.
    let server = prop_oneof![
        2 => Just((Process::Down, Probe::NotAsked, None)),
        4 => sql().prop_map(|sql| (Process::Up { pid: 9 }, Probe::Accepting, Some(sql))),
        1 => Just((Process::Up { pid: 9 }, Probe::Rejecting, None)),
        1 => Just((Process::Up { pid: 9 }, Probe::Silent, None)),
    ];
    (data_dir, server, any::<bool>()).prop_map(|(data_dir, (process, probe, sql), old_copy)| PgState {
        data_dir,
        process,
        probe,
        sql,
        local_history: Vec::new(),
        newer_history: Vec::new(),
        old_copy,
    })
}

fn job() -> impl Strategy<Value = Job> {
    prop_oneof![
        Just(Job::Bootstrap),
        name().prop_map(|from| Job::Clone { from }),
        name().prop_map(|from| Job::Rewind { from }),
        Just(Job::GiveUpData),
        Just(Job::DiscardOldCopy),
        any::<bool>().prop_map(|as_primary| Job::Start { as_primary }),
        any::<bool>().prop_map(|as_primary| Job::Restart { as_primary }),
        Just(Job::Stop(StopMode::Fast)),
        Just(Job::Stop(StopMode::FastThenImmediate)),
        Just(Job::Stop(StopMode::Immediate)),
        Just(Job::PrePromote),
        Just(Job::Restore),
        Just(Job::Promote),
        Just(Job::Follow),
        Just(Job::Checkpoint),
        Just(Job::ChangeSlots),
        Just(Job::CopySlots),
        Just(Job::ResumeReplay),
        Just(Job::SetSyncNames),
        Just(Job::RemoveUnfinished),
        Just(Job::SetAside),
    ]
}

fn memory() -> impl Strategy<Value = Memory> {
    let role = prop_oneof![
        Just(Role::Uninitialized),
        Just(Role::Primary),
        Just(Role::Promoted),
        Just(Role::Replica),
        Just(Role::Demoted)
    ];
    let led = option::of((name(), members()).prop_map(|(leader, members)| LastLed { leader, members }));
    let last_job = option::of((job(), moment(), any::<bool>()).prop_map(|(job, at, failed)| FinishedJob {
        job,
        at,
        error: failed.then(|| "failed".into()),
    }));
    let since = (option::of(moment()), option::of(moment()));
    let (bootstrapping, promise) = (prop::bool::weighted(0.1), option::weighted(0.2, moment()));
    let us = (bootstrapping, promise);
    (role, option::of(lease()), led, any::<(bool, bool, bool)>(), since, last_job, us).prop_map(
        |(
            role,
            holds,
            last_led,
            (recovering, met, comes_back),
            (starting_since, silent_since),
            last_job,
            (bootstrapping, promise),
        )| {
            Memory {
                upstream: met.then_some(Upstream::Nobody),
                role,
                holds,
                last_led,
                recovering,
                met,
                starting_since,
                silent_since,
                last_job,
                bootstrapping,
                checkpointed: None,
                named: false,
                last_position: None,
                position_since: None,
                checkpoint_at: None,
                primary_since: None,
                sync_names: None,
                set_sync_names: false,
                sync_told: None,
                sync_written_over: None,
                ordered_since: None,
                start_timeout: None,
                copying: false,
                pre_promoted: met,
                promotion_refused: promise,
                told: Told::default(),
                comes_back,
                paused: false,
                vacant_since: None,
                rewinds: None,
                slots_wanted: std::collections::BTreeMap::new(),
                slot_copies: std::collections::BTreeMap::new(),
                proven_slots: std::collections::BTreeSet::new(),
                since: None,
                topology: Topology { members: [("a".into(), String::new())].into(), ..Topology::default() },
                promises: Promises {
                    until: promise.map(|until| ("a".into(), until)).into_iter().collect(),
                    last: None,
                },
            }
        },
    )
}

fn peers() -> impl Strategy<Value = Peers> {
    let answer = (any::<(bool, bool)>(), lsn(), option::of(timeline())).prop_map(
        |((is_primary, nofailover), position, timeline)| {
            PeerReply::Answer(PeerAnswer {
                is_primary,
                position,
                timeline,
                nofailover,
                failover_priority: 1,
                watchdog_failed: false,
            })
        },
    );
    let reply = prop_oneof![3 => answer, 1 => Just(PeerReply::Unreachable("x".into()))];
    (moment(), btree_map(name(), reply, 0..3)).prop_map(|(at, replies)| Peers { at, replies })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let mode = prop_oneof![3 => Just(SyncMode::Off), 1 => Just(SyncMode::On), 1 => Just(SyncMode::Quorum)];
    let flags = (any::<(bool, bool, bool, bool)>(), any::<(bool, bool, bool)>());
    let config = (flags, prop::bool::weighted(0.2), 0u64..400, mode).prop_map(
        |(((nofailover, check, boot, failsafe_mode), (rewind, on_failure, on_divergence)), pause, start, mode)| {
            Config {
                synchronous_mode: mode,
                use_pg_rewind: rewind,
                pre_promote: on_failure,
                restores_without_leader: on_divergence,
                remove_on_rewind_failure: on_failure,
                remove_on_divergence: on_divergence,
                failsafe_mode,
                tags: Tags { nofailover, ..Tags::default() },
                check_timeline: check,
                permanent_slots: check
                    .then(|| ("x".to_owned(), PermanentSlot::Logical(Logical::default())))
                    .into_iter()
                    .collect(),
                may_bootstrap: boot,
                pause,
                primary_start_timeout: std::time::Duration::from_secs(start),
                ..Config::of("a".into())
            }
        },
    );
    let dcs = prop_oneof![5 => view().prop_map(Ok), 1 => Just(Err(NoView::Unreachable("no answer".to_owned())))];
    let lease = (option::of(lease()), option::of(moment()))
        .prop_map(|(id, ends)| LeaseView { id, ends: ends.filter(|_| id.is_some()) });
    let order = prop_oneof![4 => Just(Order::Run), 1 => Just(Order::Stop)];
    let absent = moment().prop_map(|since| Guardian::Absent { why: "x".into(), since });
    let guardian = prop_oneof![3 => Just(Guardian::Ready), 1 => absent];
    let failed = Watchdog::Failed("no device".into());
    let watchdog = prop_oneof![4 => Just(Watchdog::Ready), 1 => Just(Watchdog::Awaited), 1 => Just(failed)];
    let to = Notice { name: "b".into(), conn_url: String::new(), api_url: String::new(), slots: Default::default() };
    let agreement =
        option::weighted(0.1, Just(Agreement { until: Instant(std::time::Duration::from_secs(NOW + 9)), to }));
    let restart = (option::of(NOW - 30..NOW + 30), any::<bool>()).prop_map(|(at, pending)| {
        let at = at.map(|at| Schedule { at: Some(std::time::Duration::from_secs(at)), text: String::new() });
        Request::Restart(Restart { schedule: at, pending, ..Restart::default() })
    });
    let copy = any::<(bool, bool)>().prop_map(|(from_leader, force)| Request::Reinitialize { from_leader, force });
    let request = option::weighted(0.2, prop_oneof![restart, copy]);
    let ours = (order, guardian, watchdog, memory(), agreement, request);
    (any::<u64>(), config, dcs, lease, postgres(), option::weighted(0.2, job()), option::of(peers()), ours).prop_map(
        |(dice, config, dcs, lease, postgres, job, peers, (order, guardian, watchdog, memory, agreement, request))| {
            let now = Instant(std::time::Duration::from_secs(NOW));
            Snapshot {
                now,
                wall: now.0,
                dice,
                config,
                dcs,
                lease,
                postgres,
                peers,
                agreement,
                namesake: None,
                guardian,
                watchdog,
                order,
                request,
                memory,
                job: job.map(|job| RunningJob { job, since: now }),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_has_a_decision_and_the_inspector_agrees(s in snapshot()) {
        let d = decide(&s);
        prop_assert!(d.look_again <= s.config.loop_wait, "{}", d.rule);
        if let Err(objection) = inspect(&s, &d.plan) {
            return Err(TestCaseError::fail(format!("{}: {objection}", d.rule)));
        }
    }

    #[test]
    fn a_failed_query_alone_never_demotes_nor_releases(s in snapshot()) {
        // O1: the same world with and without the query's answer; the lease is far from its end.
        let mut before = s;
        before.lease = LeaseView { id: Some(LeaseId(1)), ends: Some(before.now + std::time::Duration::from_secs(30)) };
        before.job = None;
        before.order = Order::Run;
        before.request = None;
        before.watchdog = Watchdog::Ready; // One that fails where it is required is a reason of its own.
        before.memory = Memory { role: Role::Primary, holds: Some(LeaseId(1)), met: true, ..Memory::default() };
        before.postgres.process = Process::Up { pid: 9 };
        before.postgres.probe = Probe::Silent;
        before.postgres.sql = None;
        before.postgres.data_dir = DataDir::Present(Present {
            control: Some(ControlData { system_id: SYSTEM_ID, state: ClusterState::InProduction, timeline: Timeline(1),
                checkpoint: Lsn(1), checkpoint_end: None, min_recovery: None, rewindable: true }),
            standby_signal: false, backup_label: false });
        if let Ok(view) = &mut before.dcs {
            view.initialize = Initialize::Known(SYSTEM_ID);
            view.leader = Some(LeaderKey { name: "a".into(), lease: Some(LeaseId(1)), modified: Revision(1) });
            view.promise = None;
        }
        let d = decide(&before);
        prop_assert_eq!(&d.plan.postgres, &regent_core::plan::Move::Stay, "{}", d.rule);
        prop_assert!(d.plan.lease == regent_core::plan::Lease::Keep || before.config.pause, "{}", d.rule);
    }

    #[test]
    fn whatever_happened_one_turn_of_memory_never_forgets_a_lock_that_is_seen(s in snapshot()) {
        let d = decide(&s);
        let next = s.memory.after(&s, &d, regent_core::memory::LeaseOutcome::NotTried);
        if let (Ok(view), Some(id)) = (&s.dcs, s.lease.id) {
            let mine = view.leader.as_ref().is_some_and(|key| key.name == s.config.name && key.lease == Some(id));
            prop_assert_eq!(next.holds == Some(id), mine);
        }
    }
}
