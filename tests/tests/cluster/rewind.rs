//! Former primaries with rows that nobody else has: rewound, cloned, or down with a reason, as their configuration says.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regent_tests::rig::writer::rows_on;
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer, settings, stray};

use crate::support::{PATIENCE, caught_up, loudly, postgres_program, reconfigure, says, turn};

/// Two nodes: who is not the old primary is the new one.
fn two_nodes() -> Result<Rig, Trouble> {
    Rig::whole(Settings { nodes: 2, haproxy: false, ..Settings::default() })
}

/// Stops the senders of `node`'s log: from now on nobody gets what it writes.
pub(crate) fn send_nothing(node: &Node) -> Result<(), Trouble> {
    for pid in node.server().rows("select pid from pg_stat_replication", PATIENCE)?.iter().flatten() {
        let pid = pid.parse().map_err(|_| Trouble::new("a pid is no number"))?;
        kill(Pid::from_raw(pid), Signal::SIGSTOP).map_err(|e| Trouble::new(e.to_string()))?;
    }
    Ok(())
}

/// The primary writes rows that nobody gets, and dies; the other one leads and writes on. Returns the dead one, its rows that
/// were lost, and the new primary.
fn diverge(
    rig: &Rig,
    then: impl FnOnce(&Node) -> Result<(), Trouble>,
) -> Result<(&Node, BTreeSet<i64>, &Node), Trouble> {
    let old = rig.leader()?;
    let writer = Writer::start(old.server())?;
    writer.wait_for(20, PATIENCE)?;
    writer.pause(true);
    caught_up(rig, old)?;
    send_nothing(old)?;
    writer.pause(false);
    writer.wait_for(20, PATIENCE)?;
    let journal = writer.finish();
    then(old)?;
    old.kill();
    let new = rig.wait_primary(PATIENCE)?;
    let lost: BTreeSet<i64> = journal.missing_on(new.server())?.into_iter().collect();
    assert!(lost.len() >= 20, "the logs have not diverged: {lost:?}");
    let writer = Writer::start(new.server())?;
    writer.wait_for(20, PATIENCE)?;
    Ok((old, lost, new))
}

/// The cluster is whole again under `new`, both have the same rows, and no log has a password in it.
fn rejoined(rig: &Rig, old: &Node, new: &Node) -> Result<(), Trouble> {
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), new.name(), "the returning node must not disturb");
    let wanted = rows_on(new.server())?;
    rig.wait(PATIENCE, "the returned node has the rows of the new primary and no others", |_| {
        let here = rows_on(old.server()).map_err(|e| e.to_string())?;
        if here == wanted { Ok(()) } else { Err(format!("{} rows, not {}", here.len(), wanted.len())) }
    })?;
    let log = old.agent_log();
    for secret in [settings::PASSWORD, settings::REPLICATION_PASSWORD, settings::REWIND_PASSWORD] {
        assert!(!log.contains(secret), "a password is in the log");
    }
    Ok(())
}

/// Ends the agent of a node whose server is down, changes its configuration, and starts it again.
fn again(rig: &Rig, node: &Node, change: impl FnOnce(String) -> String) -> Result<(), Trouble> {
    node.signal_agent(Signal::SIGTERM);
    node.agent_ended(PATIENCE)?;
    reconfigure(rig, node, change)?;
    node.start()
}

/// Adds lines to the section `postgresql` of a configuration.
fn with(lines: &str) -> impl FnOnce(String) -> String {
    let lines = format!("\npostgresql:\n  {lines}\n");
    move |text| text.replacen("\npostgresql:\n", &lines, 1)
}

fn state_of(rig: &Rig, node: &Node) -> Result<String, Trouble> {
    let printed = postgres_program(rig, "pg_controldata", |c| {
        c.arg(node.data()).env("LC_ALL", "C");
    })?;
    let line = printed.lines().find_map(|line| line.strip_prefix("Database cluster state:"));
    line.map(|state| state.trim().to_owned()).ok_or_else(|| Trouble::new("pg_controldata names no state"))
}

/// X3, X6, C3, X10: as an own role with the rights that pg_rewind needs, and nobody's help.
#[test]
fn a_primary_that_wrote_what_nobody_got_is_rewound() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = two_nodes()?;
    let (old, lost, new) = diverge(&rig, |_| Ok(()))?;
    old.start()?;
    rejoined(&rig, old, new)?;
    says(&rig, old, &["rule=rewind_diverged", "rewinding to"])?;
    assert!(!old.agent_log().contains("rule=clone"), "{}", old.tails());
    loudly(&format!("rewound: {} rows that nobody else had are gone", lost.len()));
    Ok(())
}

/// X9: without pg_rewind it stays down and says why; with leave it makes room for a clone, and keeps its old data until then.
#[test]
fn without_pg_rewind_a_diverged_primary_waits_for_leave_to_be_cloned() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = two_nodes()?;
    let (old, _, new) = diverge(&rig, |_| Ok(()))?;
    reconfigure(&rig, old, with("use_pg_rewind: false"))?;
    old.start()?;
    says(&rig, old, &["rule=stay_down_diverged", "use_pg_rewind is off", "empty the data directory"])?;
    assert_eq!(old.postmaster(), None);
    again(&rig, old, with("remove_data_directory_on_diverged_timelines: true"))?;
    rejoined(&rig, old, new)?;
    says(&rig, old, &["rule=give_up_diverged_data"])?;
    says(&rig, old, &["is kept as", ".regent-old"])?;
    let kept = old.data().with_extension("regent-old");
    rig.wait(PATIENCE, "the old copy is removed", |_| if kept.exists() { Err("it is there".into()) } else { Ok(()) })
}

/// X8: the agent is killed in the middle of pg_rewind, which dies with it. Nothing starts on what that leaves, and it is tried
/// no more; with leave it is cloned.
#[test]
fn a_half_rewound_directory_is_never_started() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = two_nodes()?;
    let (old, _, new) = diverge(&rig, |_| Ok(()))?;
    let (real, bin) = (rig.programs().pg_bin.clone(), old.dir().join("bin"));
    fs::create_dir(&bin)?;
    for entry in fs::read_dir(&real)?.flatten().filter(|entry| entry.file_name() != "pg_rewind") {
        std::os::unix::fs::symlink(entry.path(), bin.join(entry.file_name()))?;
    }
    let killed = format!(
        "#!/bin/sh\ncase \"$*\" in *--dry-run*) exec {0}/pg_rewind \"$@\";; esac\n\
         {0}/pg_rewind \"$@\" &\nsleep 0.05\nkill -9 $!\necho $$ >>{1}/runs\nexec sleep 1000\n",
        real.display(),
        old.dir().display()
    );
    rig.write(&bin.join("pg_rewind"), &killed)?;
    fs::set_permissions(bin.join("pg_rewind"), fs::Permissions::from_mode(0o755))?;
    let before = format!("bin_dir: {}", real.display());
    let after = format!("bin_dir: {}", bin.display());
    reconfigure(&rig, old, |text| text.replace(&before, &after))?;
    old.start()?;
    let runs = || fs::read_to_string(old.dir().join("runs")).unwrap_or_default();
    let pid =
        rig.wait(PATIENCE, "pg_rewind is at work", |_| runs().trim().parse::<i32>().map_err(|e| e.to_string()))?;
    old.kill_agent();
    rig.wait(PATIENCE, "pg_rewind dies with the agent", |_| match stray::look(pid) {
        Some(seen) if !seen.dead => Err(format!("{pid} runs")),
        _ => Ok(()),
    })?;
    old.start()?;
    says(&rig, old, &["rule=report_unusable_data", "pg_rewind began to change it", "empty the data directory"])?;
    std::thread::sleep(std::time::Duration::from_secs(10));
    assert_eq!(old.postmaster(), None);
    assert_eq!(runs().trim(), pid.to_string(), "it was run again");
    again(&rig, old, with("remove_data_directory_on_rewind_failure: true"))?;
    rejoined(&rig, old, new)?;
    says(&rig, old, &["rule=give_up_diverged_data"])
}

/// A source that does not let us in: three attempts, the server's words as the reason, and the data as the crash left it.
#[test]
fn wrong_credentials_of_pg_rewind_are_named_and_change_nothing() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = two_nodes()?;
    let (old, _, new) = diverge(&rig, |_| Ok(()))?;
    reconfigure(&rig, old, |text| text.replace(settings::REWIND_PASSWORD, "Wrong-one"))?;
    old.start()?;
    says(
        &rig,
        old,
        &["rule=stay_down_diverged", "3 times", "password authentication failed", "empty the data directory"],
    )?;
    assert_eq!(state_of(&rig, old)?, "in production", "it was recovered although its source is closed");
    assert!(!old.agent_log().contains("Wrong-one"), "a password is in the log");
    again(&rig, old, |text| text.replace("Wrong-one", settings::REWIND_PASSWORD))?;
    rejoined(&rig, old, new)?;
    assert!(!old.agent_log().contains("rule=clone"), "{}", old.tails());
    Ok(())
}

/// X6: pg_rewind needs log back to the last checkpoint before the fork. If that is gone it says so, and restore_command
/// brings it back.
#[test]
fn log_that_pg_rewind_lacks_comes_from_the_archive() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = two_nodes()?;
    let leader = rig.leader()?;
    let ask = |sql: &str| leader.server().value(sql, PATIENCE);
    leader.server().rows("checkpoint", PATIENCE)?;
    let needed = ask("select pg_walfile_name(redo_lsn) from pg_control_checkpoint()")?;
    ask("select pg_switch_wal()::text")?;
    let (old, _, new) = diverge(&rig, |node| {
        node.server().rows("checkpoint", PATIENCE)?;
        node.server().value("select pg_switch_wal()::text", PATIENCE).map(|_| ())
    })?;
    let archive = old.dir().join("archive");
    fs::create_dir(&archive)?;
    fs::rename(old.data().join("pg_wal").join(&needed), archive.join(&needed))?;
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o755))?;
    old.start()?;
    says(&rig, old, &["rule=stay_down_diverged", "3 times", "could not open file", &needed])?;
    let restore = format!("recovery_conf:\n    restore_command: 'cp {}/%f %p'", archive.display());
    again(&rig, old, with(&restore))?;
    rejoined(&rig, old, new)?;
    assert!(!old.agent_log().contains("rule=clone"), "{}", old.tails());
    Ok(())
}
