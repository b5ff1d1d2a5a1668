//! The synchronous modes: what was acknowledged is on every later primary.

use regent_tests::rig::{Rig, Settings, Trouble, Writer};
use serde_json::json;

use crate::support::{PATIENCE, configure, loudly, nothing_lost, turn};

/// The standbys that `/sync` lists, once it lists so many and the server waits for them.
pub(crate) fn listed(rig: &Rig, count: usize) -> Result<Vec<String>, Trouble> {
    rig.wait(PATIENCE, &format!("{count} synchronous standbys"), |rig| {
        let primary = rig.one_primary()?;
        let text = rig.etcd.get("/service/demo/sync").map_err(|e| e.to_string())?.unwrap_or_default();
        let sync: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let names = sync["sync_standby"].as_str().unwrap_or_default();
        let names: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let waits = primary.server().value("show synchronous_standby_names", PATIENCE).map_err(|e| e.to_string())?;
        let waited_for = names.iter().all(|name| waits.contains(name.as_str()));
        if sync["leader"] == primary.name() && names.len() == count && waited_for {
            return Ok(names);
        }
        Err(format!("/sync is {text}, {} waits for {waits:?}", primary.name()))
    })
}

/// Kills primaries in the middle of writing; whoever comes next has every acknowledged row.
fn kills_lose_nothing(mode: &serde_json::Value, strict: bool, voters: usize) -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    configure(&rig, &[("synchronous_mode", mode.clone()), ("synchronous_mode_strict", json!(strict))])?;
    listed(&rig, voters)?;
    let writer = Writer::start(rig.haproxy()?.by_http())?;
    for _ in 0..2 {
        let names = listed(&rig, voters)?;
        writer.wait_for(50, PATIENCE)?;
        let old = rig.one_primary().map_err(Trouble::new)?;
        old.kill();
        let new = rig.wait_primary(PATIENCE)?;
        assert!(names.iter().any(|name| name == new.name()), "{} was not listed: {names:?}", new.name());
        old.start()?;
        // What only the old one had was acknowledged to nobody; it is rewound.
        rig.wait_whole(PATIENCE)?;
    }
    writer.wait_for(20, PATIENCE)?;
    let journal = writer.finish();
    let primary = rig.wait_primary(PATIENCE)?;
    let missing = journal.missing_on(primary.server())?;
    loudly(&format!("primaries killed, synchronous_mode {mode}, strict {strict}: {journal}"));
    assert_eq!(missing, Vec::<i64>::new(), "acknowledged rows are lost");
    Ok(())
}

#[test]
fn synchronous_mode_loses_no_acknowledged_row() -> Result<(), Trouble> {
    kills_lose_nothing(&json!(true), true, 1)
}

#[test]
fn quorum_mode_loses_no_acknowledged_row() -> Result<(), Trouble> {
    kills_lose_nothing(&json!("quorum"), false, 2)
}

#[test]
fn the_mode_comes_and_goes_and_a_standby_takes_its_leave() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    configure(&rig, &[("synchronous_mode", json!(true))])?;
    let writer = Writer::start(rig.haproxy()?.by_http())?;
    let names = listed(&rig, 1)?;
    let primary = rig.leader()?;
    let standby = rig.others(primary).find(|node| node.name() == names[0]).ok_or_else(|| Trouble::new("nobody"))?;
    let document = standby.get("/sync")?;
    assert_eq!((document.status, &document.json()["sync_standby"]), (200, &json!(true)));
    assert_eq!((standby.get("/async")?.status, primary.get("/read-only-sync")?.status), (503, 200));
    let other = rig.others(primary).find(|node| node.name() != names[0]).ok_or_else(|| Trouble::new("nobody"))?;
    assert_eq!((other.get("/sync")?.status, other.get("/async")?.status), (503, 200));

    standby.signal_agent(nix::sys::signal::Signal::SIGTERM);
    standby.agent_ended(PATIENCE)?;
    assert_eq!(listed(&rig, 1)?, [other.name().to_owned()]);
    writer.wait_for(20, PATIENCE)?;
    standby.start()?;

    configure(&rig, &[("synchronous_mode", json!("quorum"))])?;
    listed(&rig, 2)?;
    configure(&rig, &[("synchronous_mode", json!(false))])?;
    rig.wait(PATIENCE, "nobody is waited for", |rig| {
        let waits = primary.server().value("select 'x' || current_setting('synchronous_standby_names')", PATIENCE);
        let (waits, sync) = (waits.map_err(|e| e.to_string())?, rig.etcd.get("/service/demo/sync"));
        let sync = sync.map_err(|e| e.to_string())?;
        if waits == "x" && sync.is_none() { Ok(()) } else { Err(format!("{waits}, {sync:?}")) }
    })?;
    writer.wait_for(20, PATIENCE)?;
    nothing_lost(&rig, &[writer.finish()])
}
