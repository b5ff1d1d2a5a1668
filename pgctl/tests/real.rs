//! What only real PostgreSQL can show: processes, files, roles, and the ways a machine goes wrong.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, unreachable_pub, reason = "a test")]

#[expect(dead_code, reason = "the sequences are run by contract.rs; here its traits are used")]
mod suite;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use regent_core::config::Logical;
use regent_core::postgres::{ClusterState, DataDir, PgState, Probe, Process, SlotChanges, StopMode, Upkeep, Upstream};
use regent_core::units::{Lsn, Timeline};
use regent_pgctl::{PgError, Postgres, Server, Settings};
use rustix::process::{Pid, Signal, kill_process};

use suite::Node;
use support::{Real, RealNode, run};

const LOOK: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(30);

async fn see(node: &RealNode, what: &str, wanted: impl Fn(&PgState) -> bool) -> PgState {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        let state = node.server.observe(LOOK).await;
        if wanted(&state) {
            return state;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}; last {state:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn accepts(state: &PgState) -> bool {
    state.probe == Probe::Accepting && state.sql.is_some()
}

async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !is().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn primary(real: &Real, change: impl FnOnce(&mut Settings)) -> RealNode {
    let mut settings = real.settings("a");
    change(&mut settings);
    let node = real.node_with(settings);
    node.server.bootstrap().await.unwrap();
    node
}

fn from(node: &RealNode) -> Upstream {
    Upstream::Member { name: node.name(), conn_url: node.conn_url() }
}

/// b, which streams from `a`.
async fn standby(real: &Real, a: &RealNode) -> RealNode {
    a.server.change_slots(&SlotChanges::creating(["b"])).await.unwrap();
    let b = real.node_with(real.settings("b"));
    b.server.clone_from(&a.name(), &a.conn_url()).await.unwrap();
    b.server.start_standby(&from(a)).await.unwrap();
    see(&b, "streams", |state| state.sql.as_ref().is_some_and(|sql| sql.streaming)).await;
    b
}

/// Processes whose working directory or arguments name the data directory.
fn users_of(data_dir: &Path) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let text = data_dir.to_str().unwrap().to_owned();
    let uses = |pid: &i32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data_dir);
        cwd || String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).contains(&text)
    };
    pids.filter(uses).collect()
}

#[test]
fn root_is_refused_before_anything_is_written() {
    if !rustix::process::geteuid().is_root() {
        return; // Nothing to refuse.
    }
    let place = tempfile::tempdir().unwrap();
    let mut settings = Real::new().settings("a");
    settings.data_dir = place.path().join("data");
    let server = Server::new(settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(server.bootstrap()).unwrap_err();
    assert!(matches!(&error, PgError::Refused(text) if text.contains("root")), "{error}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn bootstrap_makes_roles_runs_the_command_and_keeps_secrets() {
    run(|| async {
        let real = Real::new();
        let out = real.settings("out").data_dir.parent().unwrap().join("seen");
        let script = out.with_file_name("post.sh");
        let text =
            format!("#!/bin/sh\n(echo \"$1|$2\"; echo \"$PGOPTIONS\"; cat \"$PGPASSFILE\") > {}\n", out.display());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let a = primary(&real, |settings| {
            settings.post_bootstrap = Some(format!("{} 'an argument'", script.display()));
            settings.pg_hba = None;
            settings.bootstrap_pg_hba =
                vec!["host replication replicator 127.0.0.1/32 scram-sha-256 # ours".to_owned()];
            for (name, value) in [
                ("logging_collector", "on"),
                ("log_directory", "log"),
                ("log_statement", "all"),
                ("log_min_messages", "debug1"),
            ] {
                settings.parameters.insert(name.to_owned(), value.to_owned());
            }
        })
        .await;
        let s = &a.settings;

        let seen = fs::read_to_string(&out).unwrap();
        let expected = format!(
            "an argument|host=127.0.0.1 port={0} user=boss dbname=postgres\n-c synchronous_commit=local -c \
             statement_timeout=0\n127.0.0.1:{0}:*:boss:it's \\\\ 12345\n",
            s.port
        );
        assert_eq!(seen, expected);

        let role = "SELECT rolcanlogin::int || ' ' || rolreplication::int || ' ' || rolsuper::int FROM pg_roles
                     WHERE rolname = current_user";
        assert_eq!(a.sql(&s.superuser, role).await, Ok(Some("1 1 1".to_owned())));
        assert_eq!(a.sql(&s.replication, role).await, Ok(Some("1 1 0".to_owned())));
        let rewind = s.rewind.as_ref().unwrap();
        assert_eq!(a.sql(rewind, role).await, Ok(Some("1 0 0".to_owned())));
        let read =
            "SELECT length(pg_read_binary_file('PG_VERSION', 0, 2, false)) FROM pg_ls_dir('.', true, false) LIMIT 1";
        assert_eq!(a.sql(rewind, read).await, Ok(Some("2".to_owned())));
        assert!(a.sql(&s.replication, read).await.is_err());

        assert!(a.file("pg_hba.conf").ends_with("scram-sha-256 # ours\n"));
        let logs: String = fs::read_dir(s.data_dir.join("log"))
            .unwrap()
            .flatten()
            .map(|e| fs::read_to_string(e.path()).unwrap())
            .collect();
        assert!(logs.contains("CREATE ROLE \"replicator\" WITH LOGIN REPLICATION PASSWORD"), "the log is complete");
        for secret in ["12345", "67890", "p:w"] {
            assert!(
                !logs.contains(&format!("PASSWORD '{secret}")) && !logs.contains(&format!("\\ {secret}")),
                "{secret}"
            );
        }
    });
}

#[test]
fn a_failed_bootstrap_stops_its_server_and_stays_unfinished() {
    run(|| async {
        let real = Real::new();
        let mut settings = real.settings("a");
        settings.post_bootstrap = Some("sh -c 'echo no good >&2; exit 7'".to_owned());
        let a = real.node_with(settings);
        let error = a.server.bootstrap().await.unwrap_err();
        let PgError::Program { program, status, output } = &error else { panic!("{error}") };
        assert_eq!((program.as_str(), status.as_str(), output.as_str()), ("sh", "exit status: 7", "no good"));
        let state = a.server.observe(LOOK).await;
        assert_eq!((state.data_dir, state.process), (DataDir::Unfinished, Process::Down));
        assert!(a.server.start_primary().await.is_err(), "nobody's data is not started");
        a.server.remove_unfinished().await.unwrap();
        assert_eq!(a.server.observe(LOOK).await.data_dir, DataDir::Empty);

        let bad = Settings { initdb_options: vec!["--encoding=nonsense".to_owned()], ..a.settings.clone() };
        let error = Server::new(bad).bootstrap().await.unwrap_err();
        assert!(
            matches!(&error, PgError::Program { program, output, .. } if program == "initdb" && output.contains("nonsense"))
        );
        assert_eq!(a.server.observe(LOOK).await.data_dir, DataDir::Empty);
    });
}

#[test]
fn the_postmaster_has_a_session_and_the_controlled_settings_as_arguments() {
    run(|| async {
        let a = primary(&Real::new(), |_| ()).await;
        let pid = a.postmaster().unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let session: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
        assert_eq!(session, pid, "it leads a session of its own, so that it outlives us");
        let line = String::from_utf8(fs::read(format!("/proc/{pid}/cmdline")).unwrap()).unwrap().replace('\0', " ");
        let (data, port) = (a.settings.data_dir.display(), a.settings.port);
        let expected = format!(
            " -D {data} --config-file={data}/postgresql.conf --listen_addresses=127.0.0.1 --port={port} --cluster_name=demo \
             --wal_level=replica --hot_standby=on --max_connections=30 --max_wal_senders=10 --max_prepared_transactions=0 \
             --max_locks_per_transaction=64 --track_commit_timestamp=off --max_replication_slots=10 \
             --max_worker_processes=8 --wal_log_hints=on "
        );
        assert!(line.ends_with(&expected), "{line}");
        assert!(a.file("postgresql.conf").contains("\nwal_keep_size = '128MB'\n"));
        assert!(a.file("postgresql.conf.backup").starts_with("# Do not edit"), "a copy for clones");
    });
}

#[test]
fn a_start_that_fails_says_why() {
    run(|| async {
        let a = primary(&Real::new(), |_| ()).await;
        a.server.stop(StopMode::Fast, LONG).await.unwrap();
        let taken = TcpListener::bind(("127.0.0.1", a.settings.port)).unwrap();
        let error = a.server.start_primary().await.unwrap_err().to_string();
        let expected = format!("port {} on 127.0.0.1 is in use by another process", a.settings.port);
        assert!(error.starts_with("postgres failed (exit status: 1)") && error.contains(&expected), "{error}");
        drop(taken);

        let mut bad = a.settings.clone();
        bad.parameters.insert("work_mem".to_owned(), "5XB".to_owned());
        let error = Server::new(bad).start_primary().await.unwrap_err().to_string();
        assert!(error.contains("invalid value for parameter \"work_mem\": \"5XB\""), "{error}");

        fs::set_permissions(&a.settings.data_dir, fs::Permissions::from_mode(0o755)).unwrap();
        let error = a.server.start_primary().await.unwrap_err().to_string();
        assert!(error.contains("has mode 0755, PostgreSQL wants 0700 or 0750"), "{error}");
        fs::set_permissions(&a.settings.data_dir, fs::Permissions::from_mode(0o700)).unwrap();
        a.server.start_primary().await.unwrap();
        see(&a, "accepts", accepts).await;
    });
}

#[test]
fn what_is_not_ours_is_not_touched() {
    run(|| async {
        let real = Real::new();
        let mut settings = real.settings("a");
        settings.data_dir = PathBuf::from("/etc");
        let server = Server::new(settings.clone());
        let DataDir::Unusable(reason) = server.observe(LOOK).await.data_dir else { panic!("usable") };
        assert!(reason.contains("belongs to root (uid 0)") && reason.contains("chown"), "{reason}");
        assert!(server.start_primary().await.is_err());

        settings.data_dir = real.settings("b").data_dir;
        fs::create_dir(&settings.data_dir).unwrap();
        fs::set_permissions(&settings.data_dir, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(settings.data_dir.join("precious.txt"), "data").unwrap();
        let server = Server::new(settings.clone());
        for result in [
            server.bootstrap().await,
            server.clone_from(&"x".into(), "postgres://127.0.0.1:1/postgres").await,
            server.start_primary().await,
            server.start_standby(&Upstream::Nobody).await,
            server.remove_unfinished().await,
        ] {
            assert!(matches!(result, Err(PgError::Refused(_))), "{result:?}");
        }
        let files: Vec<_> = fs::read_dir(&settings.data_dir).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(files, ["precious.txt"]);

        settings.programs.dir = Some(PathBuf::from("/nowhere"));
        fs::write(settings.data_dir.join("PG_VERSION"), "15\n").unwrap();
        let DataDir::Unusable(reason) = Server::new(settings).observe(LOOK).await.data_dir else { panic!("usable") };
        assert!(reason.contains("/nowhere/postgres") && reason.contains("bin_dir"), "{reason}");
    });
}

/// A clone so slow that it can be interrupted, once it has copied something.
async fn slow_clone(source: &RealNode, into: &RealNode) {
    let name = source.name();
    let url = source.conn_url();
    tokio::select! {
        result = into.server.clone_from(&name, &url) => panic!("ended: {result:?}"),
        () = eventually("copies", async || into.server.clone_progress().is_some_and(|(done, all)| done > 0 && all.is_some())) => {}
    }
}

#[test]
fn an_interrupted_clone_is_unfinished_and_can_be_removed() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |_| ()).await;
        let mut settings = real.settings("b");
        settings.basebackup_options.push("--max-rate=1M".to_owned());
        let b = real.node_with(settings);
        slow_clone(&a, &b).await;
        eventually("the dropped clone dies", async || users_of(&b.settings.data_dir).is_empty()).await;
        assert_eq!(b.server.clone_progress(), None);
        assert_eq!(b.server.observe(LOOK).await.data_dir, DataDir::Unfinished);
        for result in [
            b.server.start_standby(&Upstream::Nobody).await,
            b.server.clone_from(&a.name(), &a.conn_url()).await,
            b.server.bootstrap().await,
        ] {
            assert!(matches!(result, Err(PgError::Refused(_))), "{result:?}");
        }
        b.server.remove_unfinished().await.unwrap();
        assert_eq!(b.server.observe(LOOK).await.data_dir, DataDir::Empty);

        // An agent that was killed leaves its tool at work: it is ended before its directory is removed under it.
        fs::write(b.settings.data_dir.with_extension("regent-unfinished"), "").unwrap();
        let mut left = pg_basebackup(&a, &b.settings);
        eventually("the tool works", async || fs::read_dir(&b.settings.data_dir).unwrap().count() > 0).await;
        b.server.remove_unfinished().await.unwrap();
        assert!(!left.wait().unwrap().success());
        assert_eq!(b.server.observe(LOOK).await.data_dir, DataDir::Empty);
        let quick = Settings { basebackup_options: vec!["--no-sync".to_owned()], ..b.settings.clone() };
        Server::new(quick).clone_from(&a.name(), &a.conn_url()).await.unwrap();
        assert!(matches!(b.server.observe(LOOK).await.data_dir, DataDir::Present(_)));
    });
}

fn pg_basebackup(source: &RealNode, into: &Settings) -> Child {
    let program = into.programs.dir.as_ref().map_or(PathBuf::from("pg_basebackup"), |dir| dir.join("pg_basebackup"));
    let mut command = Command::new(program);
    command.arg("--pgdata").arg(&into.data_dir).args(["--max-rate=1M", "--checkpoint=fast"]);
    command.arg(format!("--dbname=host=127.0.0.1 port={} user=replicator password=67890", source.settings.port));
    command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_stopped_postmaster_is_silent_and_dies_by_force() {
    run(|| async {
        let a = primary(&Real::new(), |_| ()).await;
        let first = see(&a, "accepts", accepts).await;
        let pid = Pid::from_raw(a.postmaster().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        let state = a.server.observe(Duration::from_millis(500)).await;
        assert_eq!((state.probe, state.process), (Probe::Silent, first.process));
        assert!(state.sql.is_some(), "the connection that was there goes on");
        let fresh = Server::new(a.settings.clone()).observe(Duration::from_millis(500)).await;
        assert_eq!((fresh.probe, fresh.process, fresh.sql), (Probe::Silent, first.process, None));

        let error = a.server.stop(StopMode::Fast, Duration::from_millis(100)).await;
        assert!(matches!(error, Err(PgError::Timeout { .. })), "{error:?}");
        a.server.stop(StopMode::Immediate, Duration::from_millis(100)).await.unwrap();
        assert_eq!(users_of(&a.settings.data_dir), [] as [i32; 0], "nobody is left");
        let state = a.server.observe(LOOK).await;
        assert_eq!((state.process, state.probe), (Process::Down, Probe::NotAsked));
        a.server.start_primary().await.unwrap();
        see(&a, "accepts", accepts).await;
    });
}

#[test]
fn a_pid_file_that_names_a_stranger_does_not_keep_the_server_down() {
    run(|| async {
        let a = primary(&Real::new(), |_| ()).await;
        let stopped = a.file("postmaster.pid");
        a.server.stop(StopMode::Fast, LONG).await.unwrap();
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        let (_, rest) = stopped.split_once('\n').unwrap();
        fs::write(a.settings.data_dir.join("postmaster.pid"), format!("{}\n{rest}", stranger.id())).unwrap();
        assert_eq!(a.server.observe(LOOK).await.process, Process::Down);
        a.server.stop(StopMode::FastThenImmediate, LONG).await.unwrap();
        assert!(stranger.try_wait().unwrap().is_none(), "strangers are not signalled");
        a.server.start_primary().await.unwrap();
        see(&a, "accepts", accepts).await;
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    });
}

#[test]
fn a_server_that_is_not_consistent_yet_rejects() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |_| ()).await;
        let b = real.node_with(real.settings("b"));
        a.server.change_slots(&SlotChanges::creating(["b"])).await.unwrap();
        b.server.clone_from(&a.name(), &a.conn_url()).await.unwrap();
        for file in fs::read_dir(b.settings.data_dir.join("pg_wal")).unwrap().flatten() {
            if file.file_type().unwrap().is_file() {
                fs::remove_file(file.path()).unwrap();
            }
        }
        let begun = std::time::Instant::now();
        b.server.start_standby(&Upstream::Nobody).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "it runs; the caller looks again");
        let state = see(&b, "rejects", |state| state.probe == Probe::Rejecting).await;
        assert!(matches!(state.process, Process::Up { .. }) && state.sql.is_none());
        let DataDir::Present(present) = &state.data_dir else { panic!("{:?}", state.data_dir) };
        assert!(present.standby_signal);
        b.server.follow(&from(&a)).await.unwrap();
        see(&b, "streams", |state| state.sql.as_ref().is_some_and(|sql| sql.streaming)).await;
    });
}

#[test]
fn a_fast_stop_does_not_wait_for_a_standby_that_is_out_of_reach() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |settings| {
            settings.parameters.insert("wal_sender_timeout".to_owned(), "0".to_owned());
        })
        .await;
        let b = standby(&real, &a).await;
        let unreachable = users_of(&b.settings.data_dir);
        for pid in &unreachable {
            kill_process(Pid::from_raw(*pid).unwrap(), Signal::STOP).unwrap();
        }
        a.insert().await.unwrap();
        // PostgreSQL alone would wait for ever: `wal_sender_timeout` is 0.
        let stopped = a.server.stop(StopMode::Fast, LONG).await;
        for pid in &unreachable {
            let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::CONT);
        }
        stopped.unwrap();
        let state = a.server.observe(LOOK).await;
        assert_eq!(state.control().map(|control| control.state), Some(ClusterState::ShutDown));
    });
}

#[test]
fn a_forced_stop_in_time_sends_what_was_acknowledged() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |_| ()).await;
        a.insert().await.unwrap();
        let b = standby(&real, &a).await;
        let written = async {
            let mut acknowledged = 1;
            while a.insert().await.is_ok() {
                acknowledged += 1;
            }
            acknowledged
        };
        let stop = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            a.server.stop(StopMode::FastThenImmediate, LONG).await.unwrap();
        };
        let (acknowledged, ()) = tokio::join!(written, stop);
        let state = a.server.observe(LOOK).await;
        assert_eq!(
            state.control().map(|control| control.state),
            Some(ClusterState::ShutDown),
            "there was time for all of it"
        );
        b.server.promote(Timeline(2), None).await.unwrap();
        assert!(b.rows().await.unwrap() >= acknowledged, "{acknowledged} were acknowledged");
    });
}

/// Which slots keep WAL: `name=t` for those that do.
async fn reservations(node: &RealNode) -> String {
    let sql = "SELECT string_agg(format('%s=%s', slot_name, restart_lsn IS NOT NULL), ' ' ORDER BY slot_name)
                 FROM pg_replication_slots";
    node.sql(&node.settings.superuser, sql).await.unwrap().unwrap_or_default()
}

#[test]
fn slots_keep_wal_at_once_and_are_moved_on_and_removed() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |_| ()).await;
        a.server.change_slots(&SlotChanges::creating(["b", "c"])).await.unwrap();
        assert_eq!(reservations(&a).await, "b=t c=t");
        let b = real.node_with(real.settings("b"));
        b.server.clone_from(&a.name(), &a.conn_url()).await.unwrap();
        b.server.start_standby(&from(&a)).await.unwrap();
        let streams = |state: &PgState| state.sql.as_ref().is_some_and(|sql| sql.streaming);
        see(&b, "streams", streams).await;
        b.server.change_slots(&SlotChanges::creating(["a", "c"])).await.unwrap();
        assert_eq!(reservations(&b).await, "a=t c=t", "it keeps what c needs if it is promoted");

        let slot = |state: &PgState, name: &str| {
            let sql = state.sql.clone().unwrap();
            sql.slots.into_iter().find(|slot| slot.name == name).unwrap()
        };
        let before = slot(&b.server.observe(LOOK).await, "c").position.unwrap();
        a.server.checkpoint().await.unwrap();
        let end = a.server.observe(LOOK).await.sql.unwrap().flush_lsn;
        see(&b, "has replayed it", |state| state.sql.as_ref().is_some_and(|sql| sql.replay_lsn >= Some(end))).await;
        let far = Lsn(end.0 + (1 << 30));
        let advance = vec![("c".to_owned(), end), ("nobody".to_owned(), end), ("a".to_owned(), far)];
        let changes = SlotChanges { advance, drop: vec!["nobody".to_owned()], ..SlotChanges::default() };
        b.server.change_slots(&changes).await.unwrap();
        let state = b.server.observe(LOOK).await;
        assert!(before < end, "{before} {end}");
        assert_eq!(slot(&state, "c").position, Some(end));
        assert!(slot(&state, "a").position < Some(far), "no further than it has replayed");

        let active = slot(&see(&a, "sends", |state| slot(state, "b").active).await, "b");
        assert!(active.logical.is_none() && !active.lost && !active.foreign, "{active:?}");
        let drop = vec!["b".to_owned(), "c".to_owned()];
        a.server.change_slots(&SlotChanges { drop, ..SlotChanges::default() }).await.unwrap();
        assert_eq!(reservations(&a).await, "b=t", "the one in use stays");
    });
}

#[test]
fn new_settings_reach_the_server_or_wait_for_a_restart() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |settings| {
            settings.parameters.insert("max_connections".to_owned(), "50".to_owned());
        })
        .await;
        let mut settings = a.settings.clone();
        settings.parameters.insert("work_mem".to_owned(), "7MB".to_owned());
        settings.parameters.insert("shared_buffers".to_owned(), "16384kB".to_owned());
        settings.parameters.insert("max_worker_processes".to_owned(), "9".to_owned());
        settings.parameters.insert("wal_buffers".to_owned(), "1MB".to_owned());
        a.server.configure(settings).await.unwrap();
        eventually("work_mem is taken", async || {
            a.sql(&a.settings.superuser, "SHOW work_mem").await == Ok(Some("7MB".to_owned()))
        })
        .await;
        let pending = |state: &PgState| state.sql.as_ref().map(|sql| sql.pending_restart.clone()).unwrap_or_default();
        let state = see(&a, "waits for a restart", |state| pending(state).len() == 2).await;
        let mut names: Vec<_> = pending(&state).into_iter().map(|(name, _, wanted)| (name, wanted)).collect();
        names.sort();
        let text = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(names, [text("max_worker_processes", "9"), text("wal_buffers", "1MB")]);
        let workers = pending(&state).into_iter().find(|(name, ..)| name == "max_worker_processes").unwrap();
        assert_eq!(workers.1, "8");

        // G5: a standby starts with what the primary had, and says that it wants less.
        let b = real.node_with(real.settings("b"));
        b.server.clone_from(&a.name(), &a.conn_url()).await.unwrap();
        b.server.start_standby(&from(&a)).await.unwrap_or_else(|e| panic!("{e}"));
        let state = see(&b, "accepts", accepts).await;
        let wanted = ("max_connections".to_owned(), "50".to_owned(), "30".to_owned());
        assert_eq!(pending(&state), [wanted]);

        // An adopted standby keeps its upstream when only other things change.
        let adopted = Server::new(b.settings.clone());
        let mut settings = b.settings.clone();
        settings.parameters.insert("work_mem".to_owned(), "8MB".to_owned());
        adopted.configure(settings).await.unwrap();
        eventually("work_mem is taken", async || {
            b.sql(&b.settings.superuser, "SHOW work_mem").await == Ok(Some("8MB".to_owned()))
        })
        .await;
        let state = b.server.observe(LOOK).await;
        assert_eq!(state.sql.unwrap().upstream, Some(format!("127.0.0.1:{}", a.settings.port)));
        assert!(
            b.file("postgresql.conf")
                .contains("\n# recovery.conf\nprimary_conninfo = 'dbname=postgres user=replicator")
        );
    });
}

#[test]
fn reserved_timelines_without_a_promotion_are_forgotten_at_the_next_start() {
    run(|| async {
        let a = primary(&Real::new(), |_| ()).await;
        a.server.stop(StopMode::Fast, LONG).await.unwrap();
        let reserved = a.settings.data_dir.join("pg_wal/00000002.history");
        fs::write(&reserved, "# reserved by Regent: this number was promised to another member\n").unwrap();
        a.server.start_standby(&Upstream::Nobody).await.unwrap();
        let state = see(&a, "accepts", accepts).await;
        assert_eq!(state.control().unwrap().state, ClusterState::InArchiveRecovery);
        assert!(!reserved.exists());
    });
}

#[test]
fn sockets_and_another_configuration_directory_work() {
    run(|| async {
        let real = Real::new();
        let elsewhere = real.settings("elsewhere").data_dir;
        fs::create_dir(&elsewhere).unwrap();
        let settings = real.settings("a");
        let a = real.node_with(Settings { use_unix_socket: true, ..settings });
        a.server.bootstrap().await.unwrap();
        see(&a, "accepts", accepts).await;

        a.server.change_slots(&SlotChanges::creating(["b"])).await.unwrap();
        let b = real.node_with(Settings { config_dir: elsewhere.clone(), ..real.settings("b") });
        b.server.clone_from(&a.name(), &a.conn_url()).await.unwrap();
        b.server.start_standby(&from(&a)).await.unwrap();
        see(&b, "streams", |state| state.sql.as_ref().is_some_and(|sql| sql.streaming)).await;
        assert!(elsewhere.join("postgresql.base.conf").exists(), "brought along by the clone");
    });
}

#[test]
fn tls_is_spoken_as_configured() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |_| ()).await;
        let (cert, key) = (a.settings.data_dir.join("server.crt"), a.settings.data_dir.join("server.key"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:TRUE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert)
            .stderr(Stdio::null())
            .status()
            .expect("openssl");
        assert!(made.success());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let with = |options: &[(&str, &str)]| {
            let mut settings = a.settings.clone();
            settings.superuser.options =
                options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
            settings.parameters.insert("ssl".to_owned(), "on".to_owned());
            settings.pg_hba = Some(vec!["hostssl all all 127.0.0.1/32 scram-sha-256".to_owned()]);
            settings
        };
        let root = cert.to_str().unwrap();
        a.server.configure(with(&[])).await.unwrap();
        for options in [
            vec![],
            vec![("sslmode", "require"), ("channel_binding", "require")],
            vec![("sslmode", "verify-ca"), ("sslrootcert", root)],
            vec![("sslmode", "verify-full"), ("sslrootcert", root)],
        ] {
            let server = Server::new(with(&options));
            eventually("it answers over TLS", async || accepts(&server.observe(LOOK).await)).await;
        }
        let refused = Server::new(with(&[("sslmode", "disable")])).observe(LOOK).await;
        assert_eq!((refused.probe, refused.sql), (Probe::Accepting, None), "it answers, and lets nobody in");
        let other = a.settings.data_dir.join("other.crt");
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=other",
                "-keyout",
                "/dev/null",
            ])
            .arg("-out")
            .arg(&other)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let wrong = Server::new(with(&[("sslmode", "verify-full"), ("sslrootcert", other.to_str().unwrap())]));
        assert_eq!(wrong.observe(LOOK).await.sql, None, "not the certificate we trust");
    });
}

/// X8: pg_rewind is broken off in the middle. It dies; no server starts on what it leaves; a clone takes its place.
#[test]
fn a_rewind_that_is_broken_off_leaves_what_nobody_starts() {
    run(|| async {
        let real = Real::new();
        let a = primary(&real, |_| ()).await;
        let mut settings = real.settings("b");
        // Programs as installed, but a pg_rewind that hangs once it would change something.
        let bin = settings.data_dir.with_file_name("bin");
        let installed = settings.programs.dir.clone().unwrap();
        fs::create_dir(&bin).unwrap();
        for entry in fs::read_dir(&installed).unwrap().flatten() {
            let here = bin.join(entry.file_name());
            if entry.file_name() == "pg_rewind" {
                let place = installed.display();
                let hangs = format!(
                    "#!/bin/sh\ncase \"$*\" in *--dry-run*) exec {place}/pg_rewind \"$@\";; esac\nexec -a {place}/pg_rewind sleep 1000\n"
                );
                fs::write(&here, hangs.replace("#!/bin/sh", "#!/bin/bash")).unwrap();
                fs::set_permissions(&here, fs::Permissions::from_mode(0o755)).unwrap();
            } else {
                std::os::unix::fs::symlink(entry.path(), here).unwrap();
            }
        }
        settings.programs.dir = Some(bin);
        let b = real.node_with(settings);
        a.server.change_slots(&SlotChanges::creating([b.name().slot_name()])).await.unwrap();
        b.server.clone_from(&a.name(), &a.conn_url()).await.unwrap();
        b.server.start_standby(&from(&a)).await.unwrap();
        see(&b, "streams", |s| s.sql.as_ref().is_some_and(|sql| sql.streaming)).await;
        b.server.promote(Timeline(2), None).await.unwrap();
        b.insert().await.unwrap();
        a.server.stop(StopMode::Fast, LONG).await.unwrap();
        a.server.start_standby(&Upstream::Nobody).await.unwrap();
        see(&a, "stands by", accepts).await;
        a.server.promote(Timeline(3), None).await.unwrap();
        a.server.checkpoint().await.unwrap();
        b.server.stop(StopMode::Immediate, LONG).await.unwrap();

        let (name, url) = (a.name(), a.conn_url());
        let rewind = b.server.rewind(&name, &url);
        let marker = PathBuf::from(format!("{}.regent-rewinding", b.settings.data_dir.display()));
        tokio::select! {
            biased;
            ended = rewind => panic!("it ended: {ended:?}"),
            () = eventually("pg_rewind is at work", async || marker.exists()) => {}
        }
        assert_eq!(b.server.observe(LOOK).await.data_dir, DataDir::HalfRewound);
        let refused = b.server.start_standby(&from(&a)).await;
        assert!(matches!(&refused, Err(PgError::Refused(text)) if text.contains("half-rewound")), "{refused:?}");
        let refused = b.server.rewind(&name, &url).await;
        assert!(matches!(&refused, Err(PgError::Refused(_))), "{refused:?}");

        b.server.give_up_data(&name, &url).await.unwrap();
        assert_eq!(b.server.observe(LOOK).await.data_dir, DataDir::Empty);
        b.server.clone_from(&name, &url).await.unwrap();
        assert!(matches!(b.server.observe(LOOK).await.data_dir, DataDir::Present(_)) && !marker.exists());
    });
}

/// P7, P8: a logical slot of the primary comes to a standby, which has to be able to go on with it.
#[test]
fn a_logical_slot_is_copied_and_moved_on() {
    run(|| async {
        let real = Real::new();
        let logical = |settings: &mut Settings| {
            settings.parameters.insert("wal_level".to_owned(), "logical".to_owned());
            settings.parameters.insert("hot_standby_feedback".to_owned(), "on".to_owned());
        };
        let a = primary(&real, logical).await;
        let mut settings = real.settings("b");
        logical(&mut settings);
        let mut b = real.node_with(settings);
        let what = Logical { database: "postgres".to_owned(), plugin: "pgoutput".to_owned() };
        let wanted = BTreeMap::from([("x".to_owned(), what.clone())]);
        a.server.change_slots(&SlotChanges::creating(["b"])).await.unwrap();
        b.server.clone_from(&a.name(), &a.conn_url()).await.unwrap();
        let upstream = from(&a);
        b.server.start_standby(&upstream).await.unwrap();
        see(&b, "streams", |state| state.sql.as_ref().is_some_and(|sql| sql.streaming)).await;
        // Only now: a copy needs the log from where its slot begins.
        let changes = SlotChanges { create_logical: wanted.clone(), ..SlotChanges::default() };
        a.server.change_slots(&changes).await.unwrap();
        let slots = a.server.observe(LOOK).await.sql.unwrap().slots;
        let made = slots.iter().find(|slot| slot.name == "x").unwrap();
        assert_eq!((made.logical.as_ref(), made.position.is_some()), (Some(&what), true));

        let before = b.postmaster();
        let other = Logical { plugin: "test_decoding".to_owned(), ..what.clone() };
        let none = b.server.copy_slots(&[("x".to_owned(), other)].into(), &a.conn_url(), &upstream).await;
        assert!(none.unwrap_err().to_string().contains("none of them"));
        b.settings.parameters.insert("wal_level".to_owned(), "replica".to_owned());
        let refused = b.new_controller().copy_slots(&wanted, &a.conn_url(), &upstream).await;
        assert!(refused.unwrap_err().to_string().contains("wal_level"));
        assert_eq!(b.postmaster(), before, "not touched");

        b.server.copy_slots(&wanted, &a.conn_url(), &upstream).await.unwrap();
        let there =
            |state: &PgState| state.sql.iter().flat_map(|sql| &sql.slots).find(|slot| slot.name == "x").cloned();
        see(&b, "has the slot", |state| there(state).is_some_and(|slot| slot.logical.as_ref() == Some(&what))).await;
        a.insert().await.unwrap();
        a.sql(&a.settings.superuser, "SELECT pg_replication_slot_advance('x', pg_current_wal_lsn())").await.unwrap();
        let slots = a.server.observe(LOOK).await.sql.unwrap().slots;
        let to = slots.iter().find(|slot| slot.name == "x").unwrap().position.unwrap();
        let upkeep = Upkeep {
            advance: [("x".to_owned(), ("postgres".to_owned(), to))].into(),
            ask: Some(a.conn_url()),
            needs: None,
        };
        see(&b, "is moved on, and knows what the leader holds back", |state| {
            b.server.look_after_slots(&upkeep);
            let asked = state.sql.as_ref().is_some_and(|sql| sql.leader_xmins.contains_key("x"));
            asked && there(state).is_some_and(|slot| slot.position == Some(to))
        })
        .await;
    });
}
