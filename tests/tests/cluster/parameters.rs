//! Settings that a standby must have as high as its primary, raised and lowered in every order, on real servers.

use regent_tests::rig::{Node, Rig, Settings, Trouble};

use crate::support::{PATIENCE, loudly, turn};

fn now(node: &Node) -> Result<String, Trouble> {
    node.server().value("select current_setting('max_connections')", PATIENCE)
}

fn set(rig: &Rig, connections: u32) -> Result<(), Trouble> {
    rig.regentctl(&["edit-config", "demo", "-p", &format!("max_connections={connections}"), "--force"])?;
    for node in rig.nodes() {
        rig.wait(PATIENCE, "the member says that it waits for a restart, and for what", |_| {
            let shown = node.get("/patroni").map_err(|e| e.to_string())?.body;
            let reason = format!(r#""new_value": "{connections}""#);
            if shown.contains("\"pending_restart\": true") && shown.contains(&reason) { Ok(()) } else { Err(shown) }
        })?;
    }
    Ok(())
}

fn restart(rig: &Rig, node: &Node) -> Result<(), Trouble> {
    rig.regentctl(&["restart", "demo", node.name(), "--force"])?;
    rig.wait_whole(PATIENCE).map(|_| ())
}

/// All have it, all stream, and nobody waits for a restart.
fn settled(rig: &Rig, connections: u32) -> Result<(), Trouble> {
    rig.wait_whole(PATIENCE)?;
    for node in rig.nodes() {
        assert_eq!(now(node)?, connections.to_string(), "{}", node.name());
        rig.wait(PATIENCE, "nobody waits for a restart any more", |_| {
            let shown = node.get("/patroni").map_err(|e| e.to_string())?.body;
            if shown.contains("pending_restart") { Err(shown) } else { Ok(()) }
        })?;
    }
    Ok(())
}

/// G5, G6: standbys first when it is raised, the primary first when it is lowered; and in the wrong order nobody needs a human.
#[test]
fn a_setting_that_binds_standbys_is_raised_and_lowered() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { nodes: 2, haproxy: false, ..Settings::default() })?;
    let primary = rig.leader()?;
    let standby = rig.others(primary).next().ok_or_else(|| Trouble::new("no standby"))?;

    set(&rig, 150)?;
    restart(&rig, standby)?;
    assert_eq!((now(standby)?.as_str(), now(primary)?.as_str()), ("150", "60"));
    restart(&rig, primary)?;
    settled(&rig, 150)?;

    set(&rig, 120)?;
    restart(&rig, standby)?;
    assert_eq!(now(standby)?, "150", "as long as its primary has more");
    restart(&rig, primary)?;
    assert_eq!(now(primary)?, "120");
    // The standby's control file follows with the log.
    primary.server().rows("checkpoint", PATIENCE)?;
    rig.wait(PATIENCE, "the standby may have less", |rig| {
        restart(rig, standby).map_err(|e| e.to_string())?;
        let has = now(standby).map_err(|e| e.to_string())?;
        if has == "120" { Ok(()) } else { Err(has) }
    })?;
    settled(&rig, 120)?;

    set(&rig, 200)?;
    rig.regentctl(&["restart", "demo", primary.name(), "--force"])?;
    primary.server().rows("create table after_raising (id int)", PATIENCE)?;
    // Its standby cannot replay with less: it stops, and comes back with what its control file says.
    rig.wait(PATIENCE, "the standby has as many as its primary", |_| {
        let has = now(standby).map_err(|e| e.to_string())?;
        if has == "200" { Ok(()) } else { Err(has) }
    })?;
    settled(&rig, 200)?;
    loudly(
        "raised on the standby first, lowered on the primary first, raised on the primary first: all stream, nobody helped",
    );
    Ok(())
}
