//! Switchover and failover on request: over REST, and with the peer's own control tool.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use regent_tests::rig::process::{clean, output};
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer, http};

use crate::peer_tool::patronictl;
use crate::support::{PATIENCE, loudly, nothing_lost, turn};

pub(crate) fn post(node: &Node, path: &str, body: &str) -> Result<http::Answer, Trouble> {
    let length = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    http::raw(node.rest(), &request, PATIENCE)
}

/// The time between the last write on one of `nodes` and the first one on another, as a client sees it who tries both.
fn gap_while(nodes: [&Node; 2], act: impl FnOnce() -> Result<(), Trouble>) -> Result<Duration, Trouble> {
    let over = AtomicBool::new(false);
    let [old, new] = nodes.map(Node::server);
    let write = "insert into gap default values returning 1";
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let patience = Duration::from_secs(1);
            let mut last = Instant::now();
            while !over.load(Ordering::Relaxed) {
                if old.value(write, patience).is_ok() {
                    last = Instant::now();
                } else if new.value(write, patience).is_ok() {
                    return Some(last.elapsed());
                }
            }
            None
        });
        std::thread::sleep(Duration::from_millis(300));
        let acted = act();
        std::thread::sleep(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        acted?;
        client.join().ok().flatten().ok_or_else(|| Trouble::new("nobody else took a write"))
    })
}

#[test]
fn a_switchover_over_rest_loses_nothing() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings::default())?;
    rig.leader()?.server().value("create table gap (id serial primary key); select 1", PATIENCE)?;
    let writer = Writer::start(rig.haproxy()?.by_http())?;
    writer.wait_for(50, PATIENCE)?;
    let mut gaps = Vec::new();
    for round in 0..4 {
        let old = rig.wait_whole(PATIENCE)?;
        let new = rig.others(old).nth(round % 2).ok_or_else(|| Trouble::new("no other member"))?;
        // Any member takes the call.
        let asked = if round % 2 == 0 { old } else { new };
        let body = format!(r#"{{"leader":"{}","candidate":"{}"}}"#, old.name(), new.name());
        let gap = gap_while([old, new], || {
            let answer = post(asked, "/switchover", &body)?;
            assert_eq!(
                (answer.status, answer.body),
                (200, format!("Successfully switched over to \"{}\"", new.name()))
            );
            Ok(())
        })?;
        assert_eq!(rig.wait_primary(PATIENCE)?.name(), new.name());
        gaps.push(gap);
    }
    let whole = rig.wait_whole(PATIENCE)?;
    assert_eq!(rig.etcd.get("/service/demo/failover")?.as_deref(), Some("{}"), "the request is off the table");
    let refused = post(whole, "/switchover", &format!(r#"{{"leader":"{}","candidate":"nobody"}}"#, whole.name()))?;
    assert_eq!((refused.status, refused.body.as_str()), (412, "candidate does not exists"));
    writer.wait_for(50, PATIENCE)?;
    let journal = writer.finish();
    loudly(&format!("switchovers: write gaps {gaps:?}; through HAProxy: {journal}"));
    nothing_lost(&rig, &[journal])
}

#[test]
fn a_failover_on_request_and_the_peers_tool() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let old = rig.leader()?;
    let new = rig.others(old).next().ok_or_else(|| Trouble::new("no other member"))?;
    let answer = post(old, "/failover", &format!(r#"{{"candidate":"{}"}}"#, new.name()))?;
    assert_eq!((answer.status, answer.body), (200, format!("Successfully failed over to \"{}\"", new.name())));
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), new.name());
    let tool = match patronictl() {
        Ok(tool) => tool,
        Err(why) => {
            loudly(&format!("SKIPPED the peer's tool: {why}"));
            return Ok(());
        }
    };
    let mut command = clean(&tool);
    command.arg("-c").arg(new.config()).args(["switchover", "demo", "--force"]);
    command.args(["--primary", new.name(), "--candidate", old.name()]);
    let out = output(&mut command, PATIENCE)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let wanted = format!("Successfully switched over to \"{}\"", old.name());
    assert!(out.status.success() && text.contains(&wanted), "{text}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), old.name());
    Ok(())
}

/// M10, M11, M7, M12: in maintenance the operator chooses who leads, and everybody follows.
#[test]
fn a_switchover_in_pause() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    rig.regentctl(&["pause", "--wait"])?;
    let old = rig.leader()?;
    let writer = Writer::start(old.server())?;
    writer.wait_for(50, PATIENCE)?;
    let mut others = rig.others(old);
    let (Some(second), Some(third)) = (others.next(), others.next()) else { return Err(Trouble::new("three nodes")) };
    let refused = post(old, "/switchover", &format!(r#"{{"leader":"{}"}}"#, old.name()))?;
    assert_eq!((refused.status, refused.body.contains("specific candidate in a paused state")), (400, true));
    let answer =
        post(third, "/switchover", &format!(r#"{{"leader":"{}","candidate":"{}"}}"#, old.name(), second.name()))?;
    assert_eq!((answer.status, answer.body), (200, format!("Successfully switched over to \"{}\"", second.name())));
    let journal = writer.finish();
    // The third member follows, and the old primary comes back as a standby.
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), second.name());
    nothing_lost(&rig, &[journal])?;
    // An agent that is restarted leaves its server alone, and knows that the cluster is paused.
    let before = second.postmaster();
    second.signal_agent(nix::sys::signal::Signal::SIGTERM);
    second.agent_ended(PATIENCE)?;
    second.start()?;
    rig.wait_whole(PATIENCE)?;
    assert_eq!(second.postmaster(), before);
    assert!(rig.regentctl(&["list"])?.contains("Maintenance mode: on"));
    // A setting takes effect, and what the operator stops stays down.
    rig.regentctl(&["edit-config", "-p", "work_mem=7MB", "--force"])?;
    for node in rig.nodes() {
        rig.wait(PATIENCE, &format!("{} has the new setting", node.name()), |_| {
            let shown = node.server().value("show work_mem", PATIENCE).map_err(|e| e.to_string())?;
            if shown == "7MB" { Ok(()) } else { Err(shown) }
        })?;
    }
    let text = rig.regentctl(&["switchover", "--leader", second.name(), "--candidate", third.name(), "--force"])?;
    assert!(text.contains(&format!("Successfully switched over to \"{}\"", third.name())), "{text}");
    rig.wait_whole(PATIENCE)?;
    old.signal_server(nix::sys::signal::Signal::SIGINT);
    rig.wait(PATIENCE, "the stopped server is down", |_| {
        if old.postmaster().is_none() { Ok(()) } else { Err("it runs".into()) }
    })?;
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(old.postmaster(), None, "two cycles later");
    assert_eq!(rig.leader()?.name(), third.name());
    rig.regentctl(&["resume", "--wait"])?;
    rig.wait_whole(PATIENCE)?;
    Ok(())
}
