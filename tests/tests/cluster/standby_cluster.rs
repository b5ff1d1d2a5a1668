//! Two sites, each a cluster of its own on its own etcd: one follows the other (ha-rules section 19). And cascading in one.

use std::time::Duration;

use regent_tests::rig::process::{clean, output};
use regent_tests::rig::writer::rows_on;
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer};
use serde_json::{Value, json};

use crate::support::{PATIENCE, caught_up, loudly, nothing_lost, reconfigure, system_id, turn};

fn site() -> Settings {
    Settings { nodes: 2, haproxy: false, ..Settings::default() }
}

/// The part of a configuration that makes its cluster follow `remote`.
pub(crate) fn following(remote: &Node) -> Value {
    json!({"host": remote.host().address().to_string(), "port": remote.ports().postgres})
}

/// Changes the dynamic configuration over the REST API of whoever leads.
pub(crate) fn patch(rig: &Rig, change: &Value) -> Result<(), Trouble> {
    let body = change.to_string();
    let head =
        format!("PATCH /config HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = regent_tests::rig::http::raw(rig.leader()?.rest(), &(head + &body), PATIENCE)?;
    if answer.status == 200 {
        Ok(())
    } else {
        Err(Trouble::new(format!("PATCH {change}: {} {}", answer.status, answer.body)))
    }
}

/// What a server receives its log from: `host:port`.
fn upstream(node: &Node) -> Result<String, String> {
    let sql = "select coalesce((select sender_host || ':' || sender_port from pg_stat_wal_receiver where status = 'streaming'), 'nobody')";
    node.server().value(sql, Duration::from_secs(3)).map_err(|e| e.to_string())
}

fn address(node: &Node) -> String {
    format!("{}:{}", node.host().address(), node.ports().postgres)
}

/// Waits until this cluster follows `remote` as a whole: its leader streams from there, the others from the leader, all say so.
fn follows<'a>(rig: &'a Rig, remote: &Node) -> Result<&'a Node, Trouble> {
    rig.wait(PATIENCE, &format!("the standby cluster follows {}", address(remote)), |rig| {
        let leader = rig.leader().map_err(|e| e.to_string())?;
        let says = |node: &Node, path: &str| node.get(path).map(|answer| answer.status).map_err(|e| e.to_string());
        for node in rig.nodes() {
            let (wanted, checks) = match node.name() == leader.name() {
                true => (
                    address(remote),
                    [("/standby-leader", 200), ("/leader", 200), ("/primary", 503), ("/replica", 503)],
                ),
                false => (
                    address(leader),
                    [("/standby-leader", 503), ("/leader", 503), ("/primary", 503), ("/replica", 200)],
                ),
            };
            let from = upstream(node)?;
            if from != wanted {
                return Err(format!("{} streams from {from}, not from {wanted}", node.name()));
            }
            for (path, code) in checks {
                let found = says(node, path)?;
                if found != code {
                    return Err(format!("{} of {} is {found}, not {code}", path, node.name()));
                }
            }
        }
        Ok(leader)
    })
}

/// Waits until a server has every row of another.
fn has_rows_of(rig: &Rig, node: &Node, source: &Node) -> Result<(), Trouble> {
    let all = rows_on(source.server())?;
    rig.wait(PATIENCE, &format!("{} has {} rows", address(node), all.len()), |_| {
        let here = rows_on(node.server()).map_err(|e| e.to_string())?;
        if here.is_superset(&all) { Ok(()) } else { Err(format!("it has {}", here.len())) }
    })
}

/// `regentctl` with more time than a look: it waits for what it asked for.
fn control(rig: &Rig, args: &[&str]) -> Result<String, Trouble> {
    let mut command = clean(&rig.programs().regentctl);
    command.arg("-c").arg(rig.nodes()[0].config()).args(args);
    let out = output(&mut command, PATIENCE)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if out.status.success() {
        Ok(text)
    } else {
        Err(Trouble::new(format!("{args:?}: {}\n{text}\n{}", out.status, rig.tails())))
    }
}

/// The primary of `from` becomes a follower of `to`, which becomes the primary; with the tool, as an operator does it.
fn change_places(from: &Rig, to: &Rig) -> Result<(), Trouble> {
    let heir = to.leader()?;
    let rewinds = || from.nodes().iter().map(|node| node.agent_log().matches("rule=rewind").count()).sum::<usize>();
    let before = rewinds();
    let (host, port) = (heir.host().address().to_string(), heir.ports().postgres.to_string());
    let text = control(from, &["demote-cluster", "demo", "--host", &host, "--port", &port, "--force"])?;
    assert!(text.contains("cluster is successfully demoted") && text.contains("Standby Leader"), "{text}");
    let text = control(to, &["promote-cluster", "--force"])?;
    assert!(text.contains("cluster is successfully promoted") && text.contains("Leader"), "{text}");
    to.wait_whole(PATIENCE)?;
    follows(from, heir)?;
    assert_eq!(rewinds(), before, "a rewind was needed\n{}", from.tails());
    Ok(())
}

#[test]
fn two_sites_follow_each_other_in_turn_without_a_rewind() -> Result<(), Trouble> {
    let _turn = turn();
    let (one, two) = (Rig::whole(site())?, Rig::new(site())?);
    let primary = one.leader()?;
    let writer = Writer::start(primary.server())?;
    writer.wait_for(50, PATIENCE)?;
    // Z1: made as a copy of the other site.
    let section = following(primary);
    for node in two.nodes() {
        let line = format!("  dcs:\n    standby_cluster: {section}\n");
        reconfigure(&two, node, |text| text.replacen("  dcs:\n", &line, 1))?;
        node.start()?;
    }
    let leader = follows(&two, primary)?;
    assert_eq!(system_id(leader)?, system_id(primary)?);
    let table = two.regentctl(&["list"])?;
    assert!(table.contains("Standby Leader"), "{table}");
    let cluster = leader.get("/cluster")?.body;
    assert!(cluster.contains(r#""role": "standby_leader""#), "{cluster}");
    assert!(leader.get("/metrics")?.body.contains("patroni_standby_leader{scope=\"demo\",name=\"n"), "metrics");
    writer.wait_for(50, PATIENCE)?;
    has_rows_of(&two, leader, primary)?;
    // Z2: another member takes over inside the standby cluster, and follows on.
    leader.kill();
    let third = two.wait(PATIENCE, "another standby leader", |rig| {
        rig.leader()
            .map_err(|e| e.to_string())
            .and_then(|now| if now.name() == leader.name() { Err("the old one".into()) } else { Ok(now) })
    })?;
    leader.start()?;
    assert_eq!(follows(&two, primary)?.name(), third.name());
    let journal = writer.finish();
    // The followed site fails over; its address changes.
    caught_up(&one, primary)?;
    primary.kill();
    let heir = one.wait_primary(PATIENCE)?;
    primary.start()?;
    one.wait_whole(PATIENCE)?;
    patch(&two, &json!({"standby_cluster": following(heir)}))?;
    follows(&two, heir)?;
    let writer = Writer::start(heir.server())?;
    writer.wait_for(50, PATIENCE)?;
    let second = writer.finish();
    has_rows_of(&two, two.leader()?, heir)?;
    nothing_lost(&one, &[journal, second])?;
    // Z6: there and back.
    for (from, to) in [(&one, &two), (&two, &one)] {
        change_places(from, to)?;
        let writer = Writer::start(to.leader()?.server())?;
        writer.wait_for(50, PATIENCE)?;
        loudly(&format!("written at the other site: {}", writer.finish()));
        has_rows_of(from, from.leader()?, to.leader()?)?;
    }
    Ok(())
}

#[test]
fn a_chain_of_standbys_streams_and_shortens_when_a_link_is_gone() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::new(Settings { haproxy: false, ..Settings::default() })?;
    let [first, second, third] = rig.nodes() else { return Err(Trouble::new("three nodes were asked for")) };
    reconfigure(&rig, third, |text| {
        text.replacen("tags:\n", &format!("tags:\n  replicatefrom: {}\n", second.name()), 1)
    })?;
    first.start()?;
    rig.wait_primary(PATIENCE)?;
    second.start()?;
    third.start()?;
    let streams = |node: &Node, from: &Node| {
        rig.wait(PATIENCE, &format!("{} streams from {}", node.name(), from.name()), |_| {
            let found = upstream(node)?;
            if found == address(from) { Ok(()) } else { Err(found) }
        })
    };
    streams(third, second)?;
    let writer = Writer::start(first.server())?;
    writer.wait_for(50, PATIENCE)?;
    writer.pause(true);
    has_rows_of(&rig, third, first)?;
    second.kill();
    streams(third, first)?;
    second.start()?;
    streams(third, second)?;
    writer.pause(false);
    writer.wait_for(20, PATIENCE)?;
    let journal = writer.finish();
    // Two that name each other both stream from the leader (Z7).
    reconfigure(&rig, second, |text| {
        text.replacen("tags:\n", &format!("tags:\n  replicatefrom: {}\n", third.name()), 1)
    })?;
    second.signal_agent(nix::sys::signal::Signal::SIGHUP);
    streams(second, first)?;
    streams(third, first)?;
    nothing_lost(&rig, &[journal])
}
