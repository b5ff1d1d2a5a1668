//! From nothing to a cluster.

use regent_tests::rig::{Rig, Settings, Trouble};

use crate::support::{PATIENCE, system_id, turn};

/// Three agents start at once on empty directories: one cluster, one primary, two that stream from it; every time.
#[test]
fn three_at_once_make_one_cluster() -> Result<(), Trouble> {
    let _turn = turn();
    let races = std::env::var("REGENT_RACES").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    for _ in 0..races {
        let rig = Rig::new(Settings { haproxy: false, ..Settings::default() })?;
        rig.start_all()?;
        let primary = rig.wait_whole(PATIENCE)?;

        let id = system_id(primary)?;
        assert_eq!(rig.etcd.get("/service/demo/initialize")?.as_deref(), Some(id.as_str()));
        for node in rig.nodes() {
            assert_eq!(system_id(node)?, id, "{} belongs to another cluster", node.name());
            assert!(node.agent().is_some(), "the agent of {} ended", node.name());
            // A loser that had run initdb would have set its directory aside.
            let beside: Vec<_> = std::fs::read_dir(node.dir())?.flatten().map(|e| e.file_name()).collect();
            let aside = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("data") && name != "data";
            assert!(!beside.iter().any(aside), "{beside:?}");
        }
    }
    Ok(())
}

/// The bootstrapping agent dies in the middle: another makes the cluster, and the first joins it when it returns.
#[test]
fn a_dead_bootstrapper_does_not_block_the_cluster() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::new(Settings { haproxy: false, ..Settings::default() })?;
    rig.start_all()?;
    let first = rig.wait(PATIENCE, "a node bootstraps", |rig| {
        let made = |node: &&regent_tests::rig::Node| node.data().join("PG_VERSION").exists();
        rig.nodes().iter().find(made).ok_or_else(|| "no data directory has begun".to_owned())
    })?;
    first.kill();
    let primary = rig.wait_primary(PATIENCE)?;
    assert_ne!(primary.name(), first.name());
    let id = system_id(primary)?;

    // What it has is a directory of a cluster that never was; it must not become a second one.
    first.start()?;
    let back = rig.wait_whole(std::time::Duration::from_secs(30));
    assert_eq!(rig.primaries(), [primary.name()]);
    assert_eq!(rig.etcd.get("/service/demo/initialize")?.as_deref(), Some(id.as_str()));
    // With a complete directory of a foreign system identifier it stays away, and says so.
    if back.is_err() {
        crate::support::refuses(first, &["system identifier"])?;
    }
    Ok(())
}
