//! What happens to etcd.

use std::thread::sleep;
use std::time::Duration;

use etcd_client::{AlarmAction, AlarmType};
use nix::sys::signal::Signal;
use regent_tests::rig::{Rig, Trouble};
use regent_tests::rng::Rng;

use super::strike::{Undo, over};
use crate::cluster::Cluster;

/// The longest that etcd may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest until members that were started have a leader again.
const MENDED: Duration = Duration::from_secs(60);

/// So many members are killed, from any one on.
pub(super) fn kill(cluster: &Cluster, count: usize, rng: &mut Rng) -> Undo {
    let (etcd, members) = (&cluster.rig.etcd, cluster.rig.etcd.ports().len());
    let first = usize::try_from(rng.below(members as u64)).unwrap_or(0);
    (0..count).for_each(|i| etcd.stop_one((first + i) % members));
    Box::new(|cluster: &Cluster| cluster.rig.etcd.start())
}

/// The least number of members without which there is no majority.
pub(super) fn majority(cluster: &Cluster) -> usize {
    let members = cluster.rig.etcd.ports().len();
    members - members / 2
}

pub(super) fn freeze_leader(cluster: &Cluster) -> Result<Undo, Trouble> {
    let leader = cluster.rig.etcd.leader()?;
    cluster.rig.etcd.signal_one(leader, Signal::SIGSTOP);
    Ok(Box::new(move |cluster: &Cluster| {
        cluster.rig.etcd.signal_one(leader, Signal::SIGCONT);
        Ok(())
    }))
}

pub(super) fn move_leader(cluster: &Cluster) -> Result<Undo, Trouble> {
    for _ in 0..3 {
        cluster.rig.etcd.move_leader()?;
        sleep(Duration::from_millis(300));
    }
    Ok(over())
}

/// As if its space quota were used up: it takes no more writes.
pub(super) fn out_of_space(cluster: &Cluster) -> Result<Undo, Trouble> {
    let at = cluster.rig.etcd.endpoints().iter().map(ToString::to_string).collect::<Vec<_>>();
    let raise = async {
        let mut client = etcd_client::Client::connect(at, None).await?;
        client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await
    };
    let failed = |why: String| Trouble::new(format!("etcd's alarm: {why}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let raised = runtime.block_on(async { tokio::time::timeout(PATIENCE, raise).await });
    raised.map_err(|late| failed(late.to_string()))?.map_err(|e| failed(e.to_string()))?;
    Ok(Box::new(|cluster: &Cluster| cluster.rig.etcd.ask(&["alarm", "disarm"]).map(|_| ())))
}

/// No alarm is left: one that was to end while etcd had no majority did not.
pub(super) fn mend(cluster: &Cluster) -> Result<(), Trouble> {
    let disarm = |rig: &Rig| rig.etcd.ask(&["alarm", "disarm"]).map(|_| ()).map_err(|e| e.to_string());
    cluster.rig.wait(MENDED, "etcd has no alarm", disarm)
}

pub(super) fn compact(cluster: &Cluster) -> Result<Undo, Trouble> {
    cluster.rig.etcd.compact()?;
    Ok(over())
}

/// A snapshot is taken now, and comes back when the fault ends: the cluster has gone on meanwhile.
pub(super) fn restore(cluster: &Cluster) -> Result<Undo, Trouble> {
    cluster.rig.etcd.save()?;
    Ok(Box::new(|cluster: &Cluster| cluster.rig.etcd.restore()))
}
