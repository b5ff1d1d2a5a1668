//! Making it happen, and undoing it.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use regent_tests::rig::{Node, Trouble, stray};
use regent_tests::rng::Rng;

use super::{Fault, Strike, Whom, links, machine, operator, store};
use crate::cluster::Cluster;

/// How long an agent that was ordered to end may take; it may be frozen.
const STOP: Duration = Duration::from_secs(10);

/// Ends what a fault began.
pub type Undo = Box<dyn FnOnce(&Cluster) -> Result<(), Trouble>>;

/// Nothing is to be undone.
pub(super) fn over() -> Undo {
    Box::new(|_| Ok(()))
}

/// Makes it happen. Returns whom it hit, if it hit a node, and how it ends.
///
/// # Errors
/// It cannot be made to happen: there is no such process, say. Nothing has happened then, or it is mended by [`mend_all`].
pub fn strike(cluster: &Cluster, strike: &Strike, rng: &mut Rng) -> Result<(usize, Undo), Trouble> {
    let node = whom(cluster, strike.whom, rng);
    let undo = match strike.fault {
        Fault::PostmasterKilled => {
            node.kill_postmaster().ok_or_else(|| Trouble::new("no postmaster runs"))?;
            over()
        }
        Fault::PostmasterFrozen => freeze(node.postmaster().into_iter().collect()),
        Fault::BackendKilled => kill(&server_processes(node, "postgres postgres"), rng)?,
        Fault::BackendFrozen => freeze_one(&server_processes(node, "postgres postgres"), rng)?,
        Fault::WalSenderKilled => kill(&server_processes(node, "walsender"), rng)?,
        Fault::WalSenderFrozen => freeze_one(&server_processes(node, "walsender"), rng)?,
        Fault::CheckpointerFrozen => freeze_one(&server_processes(node, "checkpointer"), rng)?,
        Fault::AgentKilled | Fault::AgentRestarted => {
            node.kill_agent();
            start_again(node)
        }
        Fault::AgentFrozen | Fault::AgentFrozenBriefly => freeze(node.agent().into_iter().collect()),
        Fault::AgentTerminated => {
            node.signal_agent(Signal::SIGTERM);
            start_again(node)
        }
        Fault::AgentStarved => machine::starve(node),
        Fault::AgentOutOfDescriptors => machine::no_more_files(cluster, node)?,
        Fault::AgentOutOfMemory => machine::no_more_memory(cluster, node)?,
        Fault::GuardianKilled => kill(&guardian(node), rng)?,
        Fault::GuardianFrozen => freeze_one(&guardian(node), rng)?,
        Fault::AgentAndGuardianRestarted => {
            // Stopped first: an agent would start another guardian, and a guardian would hear of its agent's death.
            let them: Vec<_> = stray::of(node.dir()).into_iter().filter(|p| p.program.starts_with("regent")).collect();
            stray::signal(&them, Signal::SIGSTOP);
            stray::signal(&them, Signal::SIGKILL);
            node.kill_agent();
            start_again(node)
        }
        Fault::PowerCut => {
            node.kill();
            start_again(node)
        }
        Fault::NodeFrozen => {
            node.freeze(true);
            let name = node.name().to_owned();
            Box::new(move |cluster: &Cluster| {
                cluster.rig.node(&name)?.freeze(false);
                Ok(())
            })
        }
        Fault::MachineBusy => machine::busy(),
        Fault::EtcdCut => links::etcd(cluster, node, strike.manner)?,
        Fault::EtcdMemberCut => links::etcd_member(cluster, node, strike.manner, rng)?,
        Fault::RestCut => links::rest(cluster, node, strike.manner)?,
        Fault::ReplicationCut => links::replication(cluster, node, strike.manner)?,
        Fault::PeersCut => links::peers(cluster, node, strike.manner)?,
        Fault::ClientsCut => links::clients(cluster, node, strike.manner)?,
        Fault::Isolated => links::all(cluster, node, strike.manner)?,
        Fault::PairCut => links::pair(cluster, node, rng)?,
        Fault::OneWayCut => links::one_way(cluster, node, rng)?,
        Fault::RingCut => links::ring(cluster)?,
        Fault::BridgeCut => links::bridge(cluster, node)?,
        Fault::HalvesCut => links::halves(cluster, node)?,
        Fault::EtcdMemberKilled => store::kill(cluster, 1, rng),
        Fault::EtcdMajorityKilled => store::kill(cluster, store::majority(cluster), rng),
        Fault::EtcdAllKilled => store::kill(cluster, cluster.rig.etcd.ports().len(), rng),
        Fault::EtcdLeaderFrozen => store::freeze_leader(cluster)?,
        Fault::EtcdLeaderMoved => store::move_leader(cluster)?,
        Fault::EtcdOutOfSpace => store::out_of_space(cluster)?,
        Fault::EtcdCompacted => store::compact(cluster)?,
        Fault::EtcdRestored => store::restore(cluster)?,
        Fault::DiskFull => told(node, "full", "")?,
        Fault::DiskReadOnly => told(node, "readonly", "")?,
        Fault::DiskSlow => told(node, "slow", "500")?,
        Fault::DiskHangs => told(node, "hangs", "")?,
        Fault::ArchiveHangs => told(node, "archive-hangs", "")?,
        Fault::CallbackHangs => told(node, "callback-hangs", "")?,
        Fault::PrePromoteHangs => told(node, "pre_promote-hangs", "")?,
        Fault::CloneKilled => operator::kill_clone(node),
        Fault::Switchover => operator::switchover(cluster, node, strike.manner)?,
        Fault::Failover => operator::failover(cluster, node, strike.manner)?,
        Fault::Restart => operator::restart(node, strike.manner),
        Fault::Reinitialize => operator::reinitialize(node, strike.manner),
        Fault::Configure => operator::configure(node, strike.manner, 4 + strike.lasts_ms % 5),
        Fault::Pause => operator::pause(node, strike.manner),
    };
    Ok((cluster.index(node), undo))
}

fn whom<'a>(cluster: &'a Cluster, whom: Whom, rng: &mut Rng) -> &'a Node {
    let nodes = cluster.rig.nodes();
    // Who leads as far as is known; while nobody does, anyone.
    let leader = cluster.rig.leader().unwrap_or_else(|_| {
        let running = cluster.rig.primaries();
        let first = nodes.iter().find(|node| running.contains(&node.name()));
        first.unwrap_or_else(|| *rng.pick(&nodes.iter().collect::<Vec<_>>()))
    });
    match whom {
        Whom::Primary => leader,
        Whom::Standby(number) => {
            let others: Vec<&Node> = cluster.rig.others(leader).collect();
            others.get(number % others.len().max(1)).copied().unwrap_or(leader)
        }
    }
}

/// Starts the agent again, once it has ended.
fn start_again(node: &Node) -> Undo {
    let name = node.name().to_owned();
    Box::new(move |cluster: &Cluster| {
        let node = cluster.rig.node(&name)?;
        // Who was ordered to end may take its time, and no more than a service manager gives it.
        if node.agent_ended(STOP).is_err() {
            node.kill_agent();
        }
        revive(cluster, node)
    })
}

/// Starts the agent if it does not run.
fn revive(cluster: &Cluster, node: &Node) -> Result<(), Trouble> {
    if node.agent().is_some() { Ok(()) } else { cluster.start_agent(node) }
}

/// Lays a file that the node's disk or scripts look for.
fn told(node: &Node, what: &'static str, text: &str) -> Result<Undo, Trouble> {
    let file = node.dir().join(what);
    fs::write(&file, text)?;
    Ok(Box::new(move |_| Ok(fs::remove_file(&file).or_else(gone)?)))
}

fn gone(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The server's processes whose title has these words.
fn server_processes(node: &Node, words: &str) -> Vec<i32> {
    let title = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let servers = stray::of(node.dir()).into_iter().filter(|p| p.program == "postgres");
    servers.map(|p| p.pid).filter(|pid| title(*pid).contains(words)).collect()
}

fn guardian(node: &Node) -> Vec<i32> {
    stray::of(node.dir()).into_iter().filter(|p| p.program == "regent-guardian").map(|p| p.pid).collect()
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
    }
}

fn one(pids: &[i32], rng: &mut Rng) -> Result<i32, Trouble> {
    if pids.is_empty() { Err(Trouble::new("there is no such process")) } else { Ok(*rng.pick(pids)) }
}

fn kill(pids: &[i32], rng: &mut Rng) -> Result<Undo, Trouble> {
    send(&[one(pids, rng)?], Signal::SIGKILL);
    Ok(over())
}

fn freeze_one(pids: &[i32], rng: &mut Rng) -> Result<Undo, Trouble> {
    Ok(freeze(vec![one(pids, rng)?]))
}

fn freeze(pids: Vec<i32>) -> Undo {
    send(&pids, Signal::SIGSTOP);
    Box::new(move |_| {
        send(&pids, Signal::SIGCONT);
        Ok(())
    })
}

/// Ends everything that a round may have left: as an operator does that finds a machine dead, and as systemd does with an agent
/// that ended by itself. Nothing else is done for the cluster.
///
/// # Errors
/// Something cannot be mended.
pub fn mend_all(cluster: &Cluster) -> Result<(), Trouble> {
    if let Some(proxies) = &cluster.proxies {
        proxies.reset()?;
    }
    links::mend_all(cluster)?;
    cluster.rig.etcd.signal(Signal::SIGCONT);
    cluster.rig.etcd.start()?;
    store::mend(cluster)?;
    for node in cluster.rig.nodes() {
        node.freeze(false);
        for file in ["full", "readonly", "slow", "hangs", "archive-hangs", "callback-hangs", "pre_promote-hangs"] {
            fs::remove_file(node.dir().join(file)).or_else(gone)?;
        }
        revive(cluster, node)?;
    }
    Ok(())
}
