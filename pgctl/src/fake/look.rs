//! What an observation finds.

use std::collections::BTreeMap;
use std::time::Duration;

use regent_core::postgres::{DataDir, PgState, Present, Probe, Process, Slot, SqlFacts, Upstream, WalSender};
use regent_core::sync::Waits;
use regent_core::units::Lsn;

use super::wal::timestamp;
use super::world::{Cluster, Data, Node, Phase, Server, World};

/// `server_version_num` of every twin.
const SERVER_VERSION: u32 = 150_013;

/// Looks at a node; `patient` says that the server was given enough time to answer.
pub(super) fn look(world: &mut World, index: usize, within: Duration, patient: bool) -> PgState {
    let Some(node) = world.nodes.get_mut(index) else { return nothing() };
    node.watched = node.server.as_ref().map(|server| server.pid);
    let node = &world.nodes[index];
    let cluster = match &node.data {
        Data::Present(cluster) => Some(cluster),
        Data::Empty | Data::Unfinished | Data::HalfRewound => None,
    };
    let data_dir = match &node.data {
        _ if node.disk_hung => DataDir::Unreadable(format!("no answer within {within:?}")),
        Data::Empty => DataDir::Empty,
        Data::Unfinished => DataDir::Unfinished,
        Data::HalfRewound => DataDir::HalfRewound,
        Data::Present(cluster) => DataDir::Present(Present {
            control: Some(cluster.control.clone()),
            standby_signal: cluster.standby_signal,
            backup_label: cluster.backup_label,
        }),
    };
    let local_history = cluster.filter(|_| !node.disk_hung).map(|cluster| cluster.log.history()).unwrap_or_default();
    // What the WAL receiver fetched, and what stays on disk.
    let receives = node.server.as_ref().is_none_or(|server| server.in_recovery && server.link.is_none());
    let newer = cluster.filter(|_| receives && !node.disk_hung).and_then(|cluster| {
        let Upstream::Member { conn_url, .. } = &cluster.upstream else { return None };
        let upstream = world.find(conn_url).filter(|upstream| !world.is_cut(index, *upstream))?;
        let Data::Present(theirs) = &world.nodes.get(upstream)?.data else { return None };
        (theirs.log.timeline() > cluster.log.timeline()).then(|| theirs.log.history())
    });
    let newer_history = newer.unwrap_or_default();
    let probe = match &node.server {
        None => Probe::NotAsked,
        Some(_) if node.stalled() || !patient => Probe::Silent,
        Some(Server { phase: Phase::Accepting, .. }) => Probe::Accepting,
        Some(Server { phase: Phase::Starting | Phase::Stopping { .. } | Phase::Quitting, .. }) => Probe::Rejecting,
    };
    let sql = match (&node.server, cluster) {
        (Some(server), Some(cluster)) if probe == Probe::Accepting => Some(facts(world, index, server, cluster)),
        _ => None,
    };
    let process = node.server.as_ref().map_or(Process::Down, |server| Process::Up { pid: server.pid });
    PgState { data_dir, process, probe, sql, local_history, newer_history, old_copy: node.old_copy }
}

fn nothing() -> PgState {
    let (data_dir, process, probe) = (DataDir::Empty, Process::Down, Probe::NotAsked);
    let (local_history, newer_history) = (Vec::new(), Vec::new());
    PgState { data_dir, process, probe, sql: None, local_history, newer_history, old_copy: false }
}

fn facts(world: &World, index: usize, server: &Server, cluster: &Cluster) -> SqlFacts {
    let standby = server.in_recovery;
    let end = cluster.log.end();
    let replayed_at = cluster.log.last_write().map(|at| timestamp(at, ' ', "+00"));
    let upstream = match &cluster.upstream {
        Upstream::Member { conn_url, .. } if standby => Some(host_and_port(conn_url).to_owned()),
        Upstream::Member { .. } | Upstream::Nobody => None,
    };
    let receives = |other: &&Node| {
        let link = other.server.as_ref().and_then(|server| server.link);
        link.is_some_and(|link| link.upstream == index && link.pid == server.pid)
    };
    let waits = Waits::parse(&cluster.sync_names);
    let sender = |other: &Node| WalSender {
        usename: "replicator".to_owned(),
        application_name: other.name.0.clone(),
        client_addr: Some(host(host_and_port(&other.conn_url)).to_owned()),
        state: "streaming".to_owned(),
        sync_state: waits.state_of(&other.name.0).to_owned(),
        sync_priority: i32::from(waits.state_of(&other.name.0) != "async"),
        position: match &other.data {
            Data::Present(theirs) => Some(theirs.log.end()),
            Data::Empty | Data::Unfinished | Data::HalfRewound => None,
        },
    };
    let active = world.slots_in_use(index);
    let xmins = world.xmins(index);
    let slot = |name: &String, slot: &super::world::Slot, used: Option<&Lsn>| Slot {
        name: name.clone(),
        logical: slot.logical.clone(),
        position: Some(used.copied().unwrap_or(slot.at)),
        active: used.is_some(),
        holds_xmin: xmins.contains_key(name),
        catalog_xmin: xmins.get(name).copied(),
        lost: slot.lost,
        foreign: false,
    };
    SqlFacts {
        in_recovery: standby,
        timeline: Some(cluster.log.timeline()),
        flush_lsn: if standby { Lsn::default() } else { end },
        receive_lsn: (standby && server.received).then_some(end),
        replay_lsn: standby.then_some(end),
        replay_paused: standby && world.nodes[index].replay_paused,
        replayed_at: replayed_at.filter(|_| standby),
        streaming: server.link.is_some(),
        latest_end_lsn: server.link.map(|_| end),
        restores_from_archive: false,
        upstream,
        started_at: timestamp(server.started_at, ' ', "+00"),
        server_version: SERVER_VERSION,
        slots: cluster.slots.iter().map(|(name, there)| slot(name, there, active.get(name))).collect(),
        leader_xmins: if standby { world.nodes[index].leader_xmins.clone() } else { BTreeMap::new() },
        log_gone: world.nodes[index].log_gone.filter(|_| standby),
        sync_names: cluster.sync_names.clone(),
        replication: world.nodes.iter().filter(receives).map(sender).collect(),
        pending_restart: Vec::new(),
    }
}

/// `host:port` of `postgres://host:port/database`.
fn host_and_port(conn_url: &str) -> &str {
    let rest = conn_url.split_once("://").map_or(conn_url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn host(host_and_port: &str) -> &str {
    host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host)
}
