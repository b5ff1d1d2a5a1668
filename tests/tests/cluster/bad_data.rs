//! Data directories and etcd keys that are not what they should be: a clear message, and no data is lost or changed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer};

use crate::support::{
    PATIENCE, fingerprint, foreign_data, loudly, nothing_failed, nothing_lost, one_node, postgres_program, routed,
    says, system_id, turn,
};

/// The files that are not what they were.
fn changes(before: &BTreeMap<PathBuf, u64>, after: &BTreeMap<PathBuf, u64>) -> Vec<PathBuf> {
    let all = before.keys().chain(after.keys().filter(|path| !before.contains_key(*path)));
    all.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// Starts an agent on a directory that it must not touch; it says all of `words`, starts nothing and changes nothing, whether it
/// exits or waits for a human.
fn left_alone(rig: &Rig, node: &Node, words: &[&str]) -> Result<(), Trouble> {
    let before = fingerprint(&node.data());
    node.start()?;
    says(rig, node, words)?;
    // Some loops more, for the case that it changes its mind.
    let _ = node.agent_ended(Duration::from_secs(8));
    assert_eq!(node.postmaster(), None, "{}", node.tails());
    let changed = changes(&before, &fingerprint(&node.data()));
    assert!(changed.is_empty(), "the data directory was changed: {changed:?}\n{}", node.tails());
    let log = node.agent_log();
    assert!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn a_directory_of_another_major_version_is_left_alone() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    foreign_data(&rig, node)?;
    rig.write(&node.data().join("PG_VERSION"), "9.6\n")?;
    left_alone(&rig, node, &["9.6"])
}

#[test]
fn a_half_written_directory_is_left_alone() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    foreign_data(&rig, node)?;
    for gone in ["global/pg_control", "PG_VERSION"] {
        std::fs::remove_file(node.data().join(gone))?;
    }
    left_alone(&rig, node, &["data directory"])?;
    assert!(rig.etcd.get("/service/demo/leader")?.is_none());
    Ok(())
}

#[test]
fn an_unreadable_directory_is_left_alone() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    foreign_data(&rig, node)?;
    let before = fingerprint(&node.data());
    std::fs::set_permissions(node.data(), std::fs::Permissions::from_mode(0o000))?;
    node.start()?;
    says(&rig, node, &[&node.data().display().to_string()])?;
    let _ = node.agent_ended(Duration::from_secs(5));
    assert_eq!(node.postmaster(), None);
    std::fs::set_permissions(node.data(), std::fs::Permissions::from_mode(0o700))?;
    assert_eq!(changes(&before, &fingerprint(&node.data())), Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn a_directory_of_another_owner_is_left_alone() -> Result<(), Trouble> {
    if !nix::unistd::Uid::effective().is_root() {
        loudly("SKIPPED a_directory_of_another_owner_is_left_alone: only root can give a directory to another user");
        return Ok(());
    }
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    foreign_data(&rig, node)?;
    std::os::unix::fs::chown(node.data(), Some(0), Some(0))?;
    // Readable, so that the owner is the only thing wrong.
    std::fs::set_permissions(node.data(), std::fs::Permissions::from_mode(0o755))?;
    left_alone(&rig, node, &[&node.data().display().to_string()])
}

#[test]
fn a_directory_of_another_cluster_is_left_alone() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::new(Settings { nodes: 2, haproxy: false, ..Settings::default() })?;
    let (first, second) = (&rig.nodes()[0], &rig.nodes()[1]);
    first.start()?;
    rig.wait_primary(PATIENCE)?;
    let ours = system_id(first)?;
    foreign_data(&rig, second)?;
    let control = postgres_program(&rig, "pg_controldata", |c| {
        c.arg("-D").arg(second.data());
    })?;
    let theirs =
        control.lines().find_map(|line| line.strip_prefix("Database system identifier:")).unwrap_or_default().trim();
    left_alone(&rig, second, &[ours.as_str(), theirs])?;
    assert_eq!(second.agent_ended(PATIENCE)?.code(), Some(1), "{}", second.tails());
    assert_eq!(rig.etcd.get("/service/demo/initialize")?.as_deref(), Some(ours.as_str()));
    assert_eq!(rig.primaries(), ["n1"]);
    Ok(())
}

/// A server that exists already, stopped, becomes the first of a cluster; its rows are there.
#[test]
fn an_existing_directory_is_adopted() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::new(Settings { nodes: 2, haproxy: false, ..Settings::default() })?;
    let (first, second) = (&rig.nodes()[0], &rig.nodes()[1]);
    foreign_data(&rig, first)?;
    first.start()?;
    rig.wait_primary(PATIENCE)?;
    assert_eq!(rig.etcd.get("/service/demo/initialize")?, Some(system_id(first)?));
    second.start()?;
    // The replication role is missing in a server that Regent did not make: the standby's agent must say so, or make do.
    let _ = rig.wait_whole(Duration::from_secs(20));
    assert_eq!(rig.primaries(), ["n1"]);
    Ok(())
}

/// Garbage in any key but the leader key costs no write and changes no data.
#[test]
fn garbage_in_etcd_costs_nothing() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    let primary = rig.leader()?;
    routed(&rig, primary)?;
    let id = system_id(primary)?;
    let writer = Writer::start(rig.haproxy()?.by_http())?;
    let keys = [
        "members/n1",
        "members/n2",
        "members/n3",
        "members/stranger",
        "members/",
        "config",
        "failover",
        "sync",
        "history",
        "status",
        "failsafe",
        "optime/leader",
        "regent/promise",
        "initialize",
        "unknown/key",
    ];
    for garbage in ["{\"half\": ", "\u{7f}\u{1}garbage ☃", "[[[1,2],\"x\"]]", "-1", ""] {
        for key in keys {
            rig.etcd.put(&format!("/service/demo/{key}"), garbage)?;
        }
        writer.wait_for(50, PATIENCE)?;
    }
    // Two loops: every agent has read all of it.
    let loops = std::time::Instant::now() + Duration::from_secs(u64::from(2 * rig.settings().loop_wait));
    while std::time::Instant::now() < loops {
        writer.wait_for(20, PATIENCE)?;
    }
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), primary.name());
    let journals = [writer.finish()];
    nothing_failed(primary, &journals);
    nothing_lost(&rig, &journals)?;
    for node in rig.nodes() {
        assert_eq!(system_id(node)?, id);
        assert!(!node.agent_log().contains("panicked"), "{}", node.tails());
    }
    // The holder repairs its cluster's identity.
    rig.wait(PATIENCE, "initialize is repaired", |rig| match rig.etcd.get("/service/demo/initialize") {
        Ok(Some(now)) if now == id => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    Ok(())
}

/// A stranger's name in the leader key: the primary stops writing, as it does not hold the lock; with the key removed the
/// cluster is whole again.
#[test]
fn a_stranger_in_the_leader_key_is_believed() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let writer = Writer::start(rig.leader()?.server())?;
    writer.wait_for(50, PATIENCE)?;
    writer.pause(true);
    rig.etcd.put("/service/demo/leader", "nobody we know")?;
    rig.wait(PATIENCE, "nobody is primary", |rig| match rig.primaries().as_slice() {
        [] => Ok(()),
        some => Err(format!("{some:?}")),
    })?;
    rig.etcd.delete("/service/demo/leader")?;
    rig.wait_whole(PATIENCE)?;
    nothing_lost(&rig, &[writer.finish()])
}
