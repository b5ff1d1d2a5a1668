//! Regent and the peer in one cluster (dcs.md section 7): either one leads, in every synchronous mode; a node changes its agent
//! while its PostgreSQL runs on. `REGENT_MIXED_ROUNDS=20 REGENT_MIXED_KILLS=10` makes a campaign of it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use regent_tests::rig::process::{clean, output};
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer};
use serde_json::{Value, json};

use crate::peer_tool::patronictl;
use crate::support::{configure, loudly, nothing_lost, number, turn};

/// The peer's loop and lease are long: 20 s at least until it sees that a leader is dead.
const PATIENCE: Duration = Duration::from_secs(120);

/// The peer: its agent, where the servers' user can run it, and its control tool.
pub(crate) struct Peer {
    pub(crate) agent: PathBuf,
    pub(crate) tool: PathBuf,
}

impl Peer {
    /// `None`, and loudly: it cannot be had here.
    pub(crate) fn of(rig: &Rig, test: &str) -> Result<Option<Peer>, Trouble> {
        let tool = match patronictl() {
            Ok(tool) => tool,
            Err(why) => {
                loudly(&format!("SKIPPED {test}: the peer cannot be installed: {why}"));
                return Ok(None);
            }
        };
        let venv = tool.ancestors().nth(2).unwrap_or(Path::new("."));
        let lib = std::fs::read_dir(venv.join("lib"))?.flatten().map(|entry| entry.path());
        let lib = lib.into_iter().find(|path| path.join("site-packages").is_dir());
        let lib = lib.ok_or_else(|| Trouble::new("no site-packages"))?;
        let packages = lib.join("site-packages");
        // The environment's own one may lie in somebody's home.
        let system = Path::new("/usr/bin").join(lib.file_name().unwrap_or_default());
        let python = if system.exists() { system } else { std::fs::canonicalize(venv.join("bin/python3"))? };
        let here = rig.dir().join("peer");
        output(clean("cp").arg("-r").arg(&packages).arg(&here), PATIENCE)?;
        // Its name is how a rig knows its own programs.
        let agent = rig.dir().join("patroni");
        let text = format!(
            "#!{}\nimport sys\n\
             sys.path.insert(0, '{}')\nfrom patroni.__main__ import main\n\
             if __name__ == '__main__':\n    sys.exit(main())\n",
            python.display(),
            here.display()
        );
        rig.write(&agent, &text)?;
        std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755))?;
        Ok(Some(Peer { agent, tool }))
    }

    fn says(&self, node: &Node, args: &[&str]) -> Result<String, Trouble> {
        let mut command = clean(&self.tool);
        let out = output(command.arg("-c").arg(node.config()).args(args), PATIENCE)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        if out.status.success() { Ok(text) } else { Err(Trouble::new(format!("patronictl {args:?}: {text}"))) }
    }
}

/// Both tools print the same members.
fn alike(rig: &Rig, peer: &Peer) -> Result<(), Trouble> {
    rig.wait(PATIENCE, "both tools print the same", |rig| {
        let read = |text: Result<String, Trouble>| {
            let text = text.map_err(|e| e.to_string())?;
            serde_json::from_str::<Value>(&text).map_err(|e| format!("{e}: {text}"))
        };
        let theirs = read(peer.says(&rig.nodes()[0], &["list", "-f", "json"]))?;
        let ours = read(rig.regentctl(&["list", "-f", "json"]))?;
        if ours == theirs { Ok(()) } else { Err(format!("regentctl: {ours}\npatronictl: {theirs}")) }
    })
}

/// Switchovers in turn, half of them by each tool, then dead primaries; with the peer on the first `peers` of three nodes.
fn together(test: &str, peers: usize, mode: &Value) -> Result<(), Trouble> {
    let _turn = turn();
    let synchronous = mode != &json!(false);
    let rig = Rig::new(Settings { synchronous, ..Settings::default() })?;
    let Some(peer) = Peer::of(&rig, test)? else { return Ok(()) };
    rig.nodes().iter().take(peers).for_each(|node| node.run_by(&peer.agent));
    rig.start_all()?;
    rig.wait_whole(PATIENCE)?;
    if mode == &json!("quorum") {
        configure(&rig, &[("synchronous_mode", mode.clone())])?;
    }
    let writer = Writer::start(rig.haproxy()?.by_http())?;
    let mut by = [0, 0];
    for round in 0..number("REGENT_MIXED_ROUNDS", 3) {
        let old = rig.wait_whole(PATIENCE)?;
        let new = rig.others(old).nth(round % 2).ok_or_else(|| Trouble::new("no other member"))?;
        writer.wait_for(20, PATIENCE)?;
        if synchronous && mode == &json!(true) {
            // Only the one that is listed may be asked for.
            let listed = |rig: &Rig| {
                let key = rig.etcd.get("/service/demo/sync").map_err(|e| e.to_string())?.unwrap_or_default();
                let sync: Value = serde_json::from_str(&key).unwrap_or_default();
                let named = sync["sync_standby"].as_str().unwrap_or_default().to_owned();
                if named == new.name() { Ok(()) } else { Err(named) }
            };
            // The tag is read at every turn of its agent.
            for node in rig.others(old) {
                let tag = if node.name() == new.name() { "nosync: false" } else { "nosync: true" };
                let text = std::fs::read_to_string(node.config())?;
                rig.write(&node.config(), &text.replace("nosync: false", tag).replace("nosync: true", tag))?;
                node.signal_agent(Signal::SIGHUP);
            }
            rig.wait(PATIENCE, &format!("{} is the synchronous standby", new.name()), listed)?;
        }
        let args = ["switchover", "--leader", old.name(), "--candidate", new.name(), "--force"];
        if round % 2 == 0 {
            peer.says(old, &args)?;
        } else {
            rig.regentctl(&args)?;
        }
        let primary = rig.wait_primary(PATIENCE)?;
        assert_eq!(primary.name(), new.name(), "switched over to another one");
        by[usize::from(primary.is_run_by(&peer.agent))] += 1;
        rig.wait_whole(PATIENCE)?;
        alike(&rig, &peer)?;
    }
    writer.wait_for(20, PATIENCE)?;
    let journal = writer.finish();
    loudly(&format!("{test}: switched over {} times to Regent, {} times to the peer: {journal}", by[0], by[1]));
    nothing_lost(&rig, &[journal])?;
    for node in rig.nodes() {
        let text = std::fs::read_to_string(node.config())?;
        rig.write(&node.config(), &text.replace("nosync: true", "nosync: false"))?;
        node.signal_agent(Signal::SIGHUP);
    }

    let writer = Writer::start(rig.haproxy()?.by_http())?;
    for _ in 0..number("REGENT_MIXED_KILLS", 1) {
        let old = rig.wait_whole(PATIENCE)?;
        writer.wait_for(20, PATIENCE)?;
        old.kill();
        rig.wait(PATIENCE, "somebody else leads", |rig| {
            let primary = rig.one_primary()?;
            if primary.name() == old.name() { Err("still the old one".to_owned()) } else { Ok(()) }
        })?;
        old.start()?;
        rig.wait_whole(PATIENCE)?;
        alike(&rig, &peer)?;
    }
    writer.wait_for(20, PATIENCE)?;
    let journal = writer.finish();
    let missing = journal.missing_on(rig.wait_whole(PATIENCE)?.server())?;
    loudly(&format!("{test}: killed: {journal}; {} rows lost", missing.len()));
    assert!(!synchronous || missing.is_empty(), "acknowledged rows are lost: {missing:?}");
    Ok(())
}

#[test]
fn two_peers_and_regent() -> Result<(), Trouble> {
    together("two_peers_and_regent", 2, &json!(false))
}

#[test]
fn two_regents_and_a_peer() -> Result<(), Trouble> {
    together("two_regents_and_a_peer", 1, &json!(false))
}

#[test]
fn two_regents_and_a_peer_synchronous() -> Result<(), Trouble> {
    together("two_regents_and_a_peer_synchronous", 1, &json!(true))
}

#[test]
fn two_peers_and_regent_with_a_quorum() -> Result<(), Trouble> {
    together("two_peers_and_regent_with_a_quorum", 2, &json!("quorum"))
}

/// dcs.md 7.4: all nodes change from the peer to Regent and back, in pause, and PostgreSQL runs on.
#[test]
fn a_cluster_changes_its_agents_and_keeps_its_servers() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::new(Settings { haproxy: false, ..Settings::default() })?;
    let Some(peer) = Peer::of(&rig, "a_cluster_changes_its_agents_and_keeps_its_servers")? else { return Ok(()) };
    rig.nodes().iter().for_each(|node| node.run_by(&peer.agent));
    rig.start_all()?;
    let primary = rig.wait_whole(PATIENCE)?;
    let leader = primary.name().to_owned();
    // Straight to the server: while an agent is away, HAProxy's checks fail.
    let writer = Writer::start(primary.server())?;
    let began = |rig: &Rig| -> Result<Vec<String>, Trouble> {
        rig.nodes()
            .iter()
            .map(|node| node.server().value("select pg_postmaster_start_time()::text", PATIENCE))
            .collect()
    };
    let servers = began(&rig)?;
    for agent in [rig.programs().regent.clone(), peer.agent.clone()] {
        peer.says(&rig.nodes()[0], &["pause", "--wait"])?;
        for node in rig.nodes() {
            node.signal_agent(Signal::SIGTERM);
            node.agent_ended(PATIENCE)?;
            assert!(node.postmaster().is_some(), "PostgreSQL of {} went with its agent", node.name());
            node.run_by(&agent);
            node.start()?;
            rig.wait(PATIENCE, &format!("the new agent of {} answers", node.name()), |_| {
                let status = node.get("/patroni").map_err(|e| e.to_string())?.json();
                if status["state"] == "running" { Ok(()) } else { Err(status.to_string()) }
            })?;
        }
        peer.says(&rig.nodes()[0], &["resume", "--wait"])?;
        assert_eq!(rig.wait_whole(PATIENCE)?.name(), leader, "the leader changed");
        assert_eq!(began(&rig)?, servers, "PostgreSQL was restarted");
        alike(&rig, &peer)?;
        writer.wait_for(20, PATIENCE)?;
    }
    let journal = writer.finish();
    loudly(&format!("agents changed twice on three nodes: {journal}"));
    assert_eq!(journal.failures().count(), 0, "clients noticed it");
    nothing_lost(&rig, &[journal])
}
