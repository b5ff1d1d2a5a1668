//! The peer's own control tool reads this cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use regent_tests::rig::process::{clean, output};
use regent_tests::rig::{Rig, Settings, Trouble};

use crate::support::{PATIENCE, loudly, turn};

/// The tool, installed once into a directory beside the build's; or why that cannot be.
pub(crate) fn patronictl() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    // target/debug/deps/cluster-...
    let target = exe.ancestors().nth(3).unwrap_or(Path::new("target"));
    let mut install = clean(concat!(env!("CARGO_MANIFEST_DIR"), "/install-peer.sh"));
    let out = output(install.arg(target), Duration::from_secs(300)).map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() {
        Ok(Path::new(String::from_utf8_lossy(&out.stdout).trim()).join("bin/patronictl"))
    } else {
        Err(said.lines().last().unwrap_or_default().to_owned())
    }
}

#[test]
fn the_peers_tool_reads_this_cluster() -> Result<(), Trouble> {
    let tool = match patronictl() {
        Ok(tool) => tool,
        Err(why) => {
            loudly(&format!("SKIPPED the_peers_tool_reads_this_cluster: the peer cannot be installed: {why}"));
            return Ok(());
        }
    };
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let etcd = format!("etcd3://127.0.0.1:{}", rig.etcd.ports()[0]);
    let by_url = |args: &[&str]| {
        let mut command = clean(&tool);
        command.env("COLUMNS", "200").args(["-d", &etcd]).args(args);
        said(&mut command)
    };
    let primary = rig.leader()?.name().to_owned();

    let list: serde_json::Value = json(&by_url(&["list", "demo", "-f", "json"])?)?;
    let members = list.as_array().cloned().unwrap_or_default();
    assert_eq!(members.len(), 3, "{list}");
    for member in &members {
        let (role, state) = if member["Member"] == primary { ("Leader", "running") } else { ("Replica", "streaming") };
        assert_eq!(
            (&member["Role"], &member["State"], &member["TL"]),
            (&role.into(), &state.into(), &1.into()),
            "{member}"
        );
    }
    let table = by_url(&["list", "demo"])?;
    let id = rig.etcd.get("/service/demo/initialize")?.unwrap_or_default();
    assert!(table.contains(&format!("+ Cluster: demo ({id}) ")), "{table}");

    let tree = by_url(&["topology", "demo"])?;
    for node in rig.nodes() {
        let shown = if node.name() == primary { format!("| {primary} ") } else { format!("| + {} ", node.name()) };
        assert!(tree.contains(&shown), "{shown:?} in\n{tree}");
    }

    let config = by_url(&["show-config", "demo"])?;
    for line in ["ttl: 10", "loop_wait: 3", "retry_timeout: 3", "use_pg_rewind: true", "wal_keep_size: 64MB"] {
        assert!(config.contains(line), "{line} in\n{config}");
    }

    // A failover makes the history.
    rig.leader()?.kill();
    let next = rig.wait_primary(PATIENCE)?;
    rig.wait(PATIENCE, "the history says so", |_| {
        let history = by_url(&["history", "demo", "-f", "json"]).map_err(|e| e.to_string())?;
        let lines = json(&history).map_err(|e| e.to_string())?;
        let line = &lines[0];
        if line["TL"] == 1 && line["New Leader"] == next.name() { Ok(()) } else { Err(history) }
    })?;

    // As the field calls it: with a member's own configuration.
    let mut command = clean(&tool);
    command.arg("-c").arg(rig.nodes()[0].config()).args(["list", "-f", "json"]);
    let list = json(&said(&mut command)?)?;
    let leaders: Vec<_> = list.as_array().into_iter().flatten().filter(|m| m["Role"] == "Leader").collect();
    assert!(matches!(leaders.as_slice(), [one] if one["Member"] == next.name() && one["TL"] == 2), "{list}");
    Ok(())
}

fn said(command: &mut std::process::Command) -> Result<String, Trouble> {
    let out = output(command, PATIENCE)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    if out.status.success() {
        Ok(text)
    } else {
        Err(Trouble::new(format!("{command:?}: {}\n{text}{errors}", out.status)))
    }
}

fn json(text: &str) -> Result<serde_json::Value, Trouble> {
    serde_json::from_str(text).map_err(|e| Trouble::new(format!("{e}: {text}")))
}
