//! Clusters brought into every condition of `rest_table`: of Regent, and of the peer, which answers the same.

use std::cell::RefCell;
use std::time::Duration;

use regent_tests::rig::{Node, Rig, Settings, Trouble, poll};
use serde_json::{Value, json};

use crate::mixed::Peer;
use crate::rest_documents::{Shown, show};
use crate::rest_table::{Agents, wrong};
use crate::standby_cluster::{following, patch};
use crate::support::{PATIENCE, configure, loudly, postgres_program, reconfigure, turn};

/// A node that has not answered as it is to by then never will: the lease of a dead leader, and a few turns.
const AT_REST: Duration = Duration::from_secs(45);

/// A cluster that is configured and not started; none where the peer cannot be had, which is said loudly.
pub(crate) fn cluster(agents: Agents, nodes: usize, test: &str) -> Result<Option<Rig>, Trouble> {
    // What the peer takes as it is.
    let rig =
        Rig::new(Settings { nodes, haproxy: false, ttl: 20, loop_wait: 2, retry_timeout: 5, ..Settings::default() })?;
    match agents {
        Agents::Regent => {}
        Agents::Peer => match Peer::of(&rig, test)? {
            Some(peer) => rig.nodes().iter().for_each(|node| node.run_by(&peer.agent)),
            None => return Ok(None),
        },
    }
    Ok(Some(rig))
}

/// One cluster, whose it is, and what was wrong with it: all conditions are looked at before it is told.
struct Look<'a> {
    rig: &'a Rig,
    agents: Agents,
    wrong: RefCell<Vec<String>>,
}

impl<'a> Look<'a> {
    fn of(rig: &'a Rig, agents: Agents) -> Self {
        Look { rig, agents, wrong: RefCell::default() }
    }

    /// The node comes to rest as this column of the table says, and shows this; asked again, it says the same.
    fn at(&self, node: &Node, column: &str, document: &str, member: &str) {
        let look = || {
            let wrong = wrong(self.agents, column, node).map_err(|e| e.to_string())?;
            let shown = show(self.rig, self.agents, node, Shown { document, member });
            let all: Vec<String> = wrong.into_iter().chain(shown.err()).collect();
            if all.is_empty() { Ok(()) } else { Err(all.join("\n")) }
        };
        let said = poll(AT_REST, look).and_then(|()| look().map_err(|e| format!("again: {e}")));
        let told = |e: String| format!("{} of {:?} as column {column}: {e}", node.name(), self.agents);
        self.wrong.borrow_mut().extend(said.err().map(told));
    }

    fn end(self, what: &str) -> Result<(), Trouble> {
        let wrong = self.wrong.into_inner();
        if !wrong.is_empty() {
            return Err(Trouble::new(format!("{}\n{}", wrong.join("\n"), self.rig.tails())));
        }
        loudly(&format!("{:?} answers as the table {what}", self.agents));
        Ok(())
    }
}

/// Tags of the second node and of the third, in the order of their files.
const MANY: &str =
    r#"{"clonefrom":true,"foo":"bar","Mixed":"CaSe","num":5,"f":1.5,"flag":true,"off":false,"empty":""}"#;
const NEVER: &str = r#"{"nofailover":true,"noloadbalance":true,"nosync":true}"#;

/// The status document of a node whose server answers: its role and position, what replicates, the cluster, and tags.
fn running(place: &str, replication: &str, cluster: &str, tags: &str) -> String {
    let tags = if tags.is_empty() { String::new() } else { format!("tags={tags}") };
    format!(
        "state=running postmaster_start_time role={place} timeline=1 {replication} {cluster} dcs_last_seen {tags} \
         database_system_identifier patroni"
    )
}

const PRIMARY: &str = "primary server_version xlog";
const REPLICA: &str = "replica server_version xlog";
const STREAMS: &str = "replication_state=streaming";
/// Without etcd nobody knows who leads.
const ALONE: &str = "cluster_unlocked=true";
const AGREED: &str = "cluster_unlocked=true failsafe_mode_is_active=true";

/// A member of `/cluster`.
const LEADER: &str = "name role=leader state=running api_url host port timeline=1";

fn member(role: &str, state: &str, more: &str) -> String {
    let lags = match state {
        "stopped" => {
            "receive_lsn=unknown receive_lag=unknown replay_lsn=unknown replay_lag=unknown lsn=unknown lag=unknown"
        }
        _ => "receive_lag receive_lsn replay_lag replay_lsn lag lsn",
    };
    format!("name role={role} state={state} api_url host port {more} {lags}")
}

/// From the first node without data to a cluster whose servers are stopped in pause.
fn modes(agents: Agents) -> Result<(), Trouble> {
    let _turn = turn();
    let Some(rig) = cluster(agents, 3, &format!("modes of {agents:?}"))? else { return Ok(()) };
    let [first, second, third] = rig.nodes() else { return Err(Trouble::new("three nodes, please")) };
    let look = Look::of(&rig, agents);
    reconfigure(&rig, second, |text| {
        text.replace("  clonefrom: false\n", "  clonefrom: true\n")
            + "  foo: bar\n  Mixed: CaSe\n  num: 5\n  f: 1.5\n  flag: true\n  'off': false\n  empty: ''\n"
    })?;
    reconfigure(&rig, third, |text| {
        ["nofailover", "noloadbalance", "nosync"]
            .iter()
            .fold(text, |text, tag| text.replace(&format!("  {tag}: false\n"), &format!("  {tag}: true\n")))
    })?;

    third.start()?;
    let nothing = format!("state=stopped role=uninitialized {ALONE} dcs_last_seen tags={NEVER} patroni");
    look.at(third, "U", &nothing, &member("replica", "stopped", "tags"));
    first.start()?;
    rig.wait_primary(PATIENCE)?;
    second.start()?;
    rig.wait_whole(PATIENCE)?;
    let (leader, streams) =
        (running(PRIMARY, "replication", "", ""), member("replica", "streaming", "timeline=1 tags"));
    look.at(first, "L", &leader, LEADER);
    look.at(second, "R", &running(REPLICA, STREAMS, "", MANY), &streams);
    look.at(third, "N", &running(REPLICA, STREAMS, "", NEVER), &streams);

    for (mode, column, name) in [(json!(true), "S", "sync_standby"), (json!("quorum"), "Q", "quorum_standby")] {
        configure(&rig, &[("synchronous_mode", mode)])?;
        let place = format!("{REPLICA} {name}=true");
        look.at(second, column, &running(&place, STREAMS, "", MANY), &member(name, "streaming", "timeline=1 tags"));
        look.at(first, "L", &leader, LEADER);
    }
    configure(&rig, &[("synchronous_mode", json!(false))])?;

    patch(&rig, &json!({"pause": true}))?;
    look.at(first, "L", &running(PRIMARY, "replication", "pause=true", ""), LEADER);
    look.at(second, "R", &running(REPLICA, STREAMS, "pause=true", MANY), &streams);
    // Without the pause its agent would let it go on.
    second.server().value("select pg_wal_replay_pause() is null", PATIENCE)?;
    first.server().value("select pg_logical_emit_message(true, 'fill', repeat('x', 3000000))", PATIENCE)?;
    look.at(second, "Lag", &running(REPLICA, STREAMS, "pause=true", MANY), &streams);

    let stop = |node: &Node| {
        postgres_program(&rig, "pg_ctl", |command| {
            command.arg("-D").arg(node.data()).args(["stop", "-m", "fast"]);
        })
    };
    stop(second)?;
    let stopped =
        format!("state=stopped role=replica pause=true dcs_last_seen tags={MANY} database_system_identifier patroni");
    look.at(second, "St", &stopped, &member("replica", "stopped", "tags"));
    stop(first)?;
    let stopped =
        format!("state=stopped role=primary pause=true {ALONE} dcs_last_seen database_system_identifier patroni");
    look.at(first, "LSt", &stopped, &member("replica", "stopped", ""));
    look.end("in every mode")
}

/// etcd goes away: on the failsafe agreement, without it, and in pause.
fn without_etcd(agents: Agents) -> Result<(), Trouble> {
    let _turn = turn();
    let Some(rig) = cluster(agents, 2, &format!("without_etcd of {agents:?}"))? else { return Ok(()) };
    let look = Look::of(&rig, agents);
    for node in rig.nodes() {
        reconfigure(&rig, node, |text| text.replace("failsafe_mode: false", "failsafe_mode: true"))?;
    }
    rig.start_all()?;
    let leader = rig.wait_whole(PATIENCE)?;
    let other = rig.others(leader).next().ok_or_else(|| Trouble::new("nobody else"))?;
    let both = |what: &str, path: &str, is: &dyn Fn(&Value) -> bool| {
        rig.wait(PATIENCE, &format!("both nodes know {what}"), |rig| {
            let found = rig.nodes().iter().map(|node| node.get(path).map(|answer| answer.json()));
            let found = found.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
            if found.iter().all(is) { Ok(()) } else { Err(format!("{found:?}")) }
        })
    };
    both("the failsafe key", "/failsafe", &|answer| answer.as_object().is_some_and(|names| names.len() == 2))?;
    let (primary, replica) = (running(PRIMARY, "replication", "", ""), running(REPLICA, STREAMS, "", ""));
    let follows = member("replica", "streaming", "timeline=1");
    rig.etcd.stop();
    look.at(leader, "F", &running(PRIMARY, "replication", AGREED, ""), "");
    look.at(other, "FR", &running(REPLICA, &format!("{STREAMS} replication?"), AGREED, ""), "");

    rig.etcd.start()?;
    look.at(leader, "L", &primary, LEADER);
    look.at(other, "SR", &replica, &follows);
    patch(&rig, &json!({"pause": true, "failsafe_mode": false}))?;
    both("the pause", "/patroni", &|answer| answer["pause"] == true)?;
    rig.etcd.stop();
    let paused = format!("pause=true {ALONE}");
    look.at(leader, "X", &running(PRIMARY, "replication", &paused, ""), "");
    look.at(other, "XR", &running(REPLICA, &format!("{STREAMS} replication?"), &paused, ""), "");

    rig.etcd.start()?;
    look.at(leader, "L", &running(PRIMARY, "replication", "pause=true", ""), LEADER);
    patch(&rig, &json!({"pause": null}))?;
    both("that the pause is over", "/patroni", &|answer| answer.get("pause").is_none())?;
    rig.etcd.stop();
    // Nobody tells them whom to follow: whether one still does depends on who came first.
    let loose = "replication_state? replication?";
    look.at(leader, "O", &running(REPLICA, loose, ALONE, ""), "");
    look.at(other, "OR", &running(REPLICA, loose, ALONE, ""), "");
    look.end("without etcd")
}

/// A cluster that follows another.
fn standby_cluster(agents: Agents) -> Result<(), Trouble> {
    let _turn = turn();
    let Some(rig) = cluster(agents, 2, &format!("standby_cluster of {agents:?}"))? else { return Ok(()) };
    let remote = Rig::whole(Settings { nodes: 1, haproxy: false, ttl: 30, ..Settings::default() })?;
    let look = Look::of(&rig, agents);
    let section = following(remote.leader()?);
    for node in rig.nodes() {
        let line = format!("  dcs:\n    standby_cluster: {section}\n");
        reconfigure(&rig, node, |text| text.replacen("  dcs:\n", &line, 1))?;
        node.start()?;
    }
    let leader = rig.wait(PATIENCE, "somebody leads", |rig| rig.leader().map_err(|e| e.to_string()))?;
    let other = rig.others(leader).next().ok_or_else(|| Trouble::new("nobody else"))?;
    let follows = format!("{STREAMS} replication");
    let shown = "name role=standby_leader state=streaming api_url host port timeline=1";
    look.at(leader, "SL", &running("standby_leader server_version xlog", &follows, "", ""), shown);
    look.at(other, "SR", &running(REPLICA, STREAMS, "", ""), &member("replica", "streaming", "timeline=1"));
    look.end("in a standby cluster")
}

#[test]
fn answers_in_every_mode() -> Result<(), Trouble> {
    modes(Agents::Regent)
}

#[test]
fn answers_in_every_mode_of_the_peer() -> Result<(), Trouble> {
    modes(Agents::Peer)
}

#[test]
fn answers_without_etcd() -> Result<(), Trouble> {
    without_etcd(Agents::Regent)
}

#[test]
fn answers_without_etcd_of_the_peer() -> Result<(), Trouble> {
    without_etcd(Agents::Peer)
}

#[test]
fn answers_of_a_standby_cluster() -> Result<(), Trouble> {
    standby_cluster(Agents::Regent)
}

#[test]
fn answers_of_a_standby_cluster_of_the_peer() -> Result<(), Trouble> {
    standby_cluster(Agents::Peer)
}
