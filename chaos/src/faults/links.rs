//! Links that fail: through proxies, each in many manners; between namespaces, by packets that vanish.

use std::net::{IpAddr, Ipv4Addr};

use regent_tests::rig::{Node, Trouble};
use regent_tests::rng::Rng;

use super::Manner;
use super::strike::Undo;
use crate::cluster::{Cluster, links};
use crate::toxiproxy::{Stream, Toxic, ToxicKind};

/// The node's own links to etcd.
pub(super) fn etcd(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    let members = members(cluster);
    let names = (0..members.len()).map(|i| links::etcd(node.name(), i)).collect();
    either(cluster, names, manner, members.iter().map(|member| (node, *member)).collect())
}

/// One of them.
pub(super) fn etcd_member(cluster: &Cluster, node: &Node, manner: Manner, rng: &mut Rng) -> Result<Undo, Trouble> {
    let members = members(cluster);
    let i = usize::try_from(rng.below(members.len() as u64)).unwrap_or(0);
    let cut = members.get(i).map(|member| (node, *member));
    either(cluster, vec![links::etcd(node.name(), i)], manner, cut.into_iter().collect())
}

/// Other members' to its REST API.
pub(super) fn rest(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    proxied(cluster, vec![links::rest(node.name())], manner)
}

/// Other members' to its server.
pub(super) fn replication(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    proxied(cluster, vec![links::postgres(node.name())], manner)
}

/// Both.
pub(super) fn peers(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    proxied(cluster, vec![links::rest(node.name()), links::postgres(node.name())], manner)
}

/// Clients' and health checks'.
pub(super) fn clients(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    proxied(cluster, vec![links::checks(node.name()), links::clients(node.name())], manner)
}

/// All of them; between namespaces, its wire.
pub(super) fn all(cluster: &Cluster, node: &Node, manner: Manner) -> Result<Undo, Trouble> {
    let name = node.name();
    if cluster.proxies.is_none() {
        node.host().cut()?;
        let name = name.to_owned();
        return Ok(Box::new(move |cluster: &Cluster| cluster.rig.node(&name)?.host().mend()));
    }
    let etcd = (0..members(cluster).len()).map(|i| links::etcd(name, i));
    let others = [links::rest(name), links::postgres(name), links::checks(name), links::clients(name)];
    proxied(cluster, etcd.chain(others).collect(), manner)
}

/// It and another one do not hear each other.
pub(super) fn pair(cluster: &Cluster, node: &Node, rng: &mut Rng) -> Result<Undo, Trouble> {
    packets(&both_ways(node, other(cluster, node, rng)))
}

/// It does not reach another one.
pub(super) fn one_way(cluster: &Cluster, node: &Node, rng: &mut Rng) -> Result<Undo, Trouble> {
    packets(&[(node, other(cluster, node, rng).host().address())])
}

/// Each one's packets reach the next one and no other.
pub(super) fn ring(cluster: &Cluster) -> Result<Undo, Trouble> {
    let nodes = cluster.rig.nodes();
    let unreached = |(i, from): (usize, _)| {
        let near = [i, (i + 1) % nodes.len()];
        nodes.iter().enumerate().filter(move |(j, _)| !near.contains(j)).map(move |(_, to)| (from, to.host().address()))
    };
    packets(&nodes.iter().enumerate().flat_map(unreached).collect::<Vec<_>>())
}

/// It reaches everyone, the others only it.
pub(super) fn bridge(cluster: &Cluster, node: &Node) -> Result<Undo, Trouble> {
    let others: Vec<&Node> = cluster.rig.others(node).collect();
    let pairs = others.iter().enumerate().flat_map(|(i, a)| others.iter().skip(i + 1).map(move |b| (*a, *b)));
    packets(&pairs.flat_map(|(a, b)| both_ways(a, b)).collect::<Vec<_>>())
}

/// It is alone, and the others are together with etcd.
pub(super) fn halves(cluster: &Cluster, node: &Node) -> Result<Undo, Trouble> {
    let mut cuts: Vec<Cut> = cluster.rig.others(node).flat_map(|other| both_ways(node, other)).collect();
    cuts.extend(members(cluster).into_iter().map(|member| (node, member)));
    packets(&cuts)
}

/// From whom packets do not reach whom.
type Cut<'a> = (&'a Node, Ipv4Addr);

fn both_ways<'a>(a: &'a Node, b: &'a Node) -> [Cut<'a>; 2] {
    [(a, b.host().address()), (b, a.host().address())]
}

fn other<'a>(cluster: &'a Cluster, node: &'a Node, rng: &mut Rng) -> &'a Node {
    let others: Vec<&Node> = cluster.rig.others(node).collect();
    rng.pick::<&Node>(&others)
}

fn either(cluster: &Cluster, names: Vec<String>, manner: Manner, cuts: Vec<Cut<'_>>) -> Result<Undo, Trouble> {
    if cluster.proxies.is_some() { proxied(cluster, names, manner) } else { packets(&cuts) }
}

fn packets(cuts: &[Cut<'_>]) -> Result<Undo, Trouble> {
    for (from, to) in cuts {
        from.host().cut_from(*to)?;
    }
    let undo: Vec<(String, Ipv4Addr)> = cuts.iter().map(|(from, to)| (from.name().to_owned(), *to)).collect();
    Ok(Box::new(move |cluster: &Cluster| {
        for (from, to) in &undo {
            // Two faults of one round may have cut the same way.
            let _ = cluster.rig.node(from)?.host().mend_to(*to);
        }
        Ok(())
    }))
}

fn proxied(cluster: &Cluster, names: Vec<String>, manner: Manner) -> Result<Undo, Trouble> {
    let proxies = cluster.proxies.clone().ok_or_else(|| Trouble::new("this cluster has no proxies"))?;
    let toxics = toxics(manner);
    for name in &names {
        if toxics.is_empty() {
            proxies.enable(name, false)?;
        }
        toxics.iter().try_for_each(|toxic| proxies.add(name, toxic))?;
    }
    Ok(Box::new(move |_| {
        for name in &names {
            // Two faults of one round may be about one link: then the other has removed it.
            for toxic in &toxics {
                let _ = proxies.remove(name, &toxic.name);
            }
            if toxics.is_empty() {
                proxies.enable(name, true)?;
            }
        }
        Ok(())
    }))
}

/// What lies on a link then; nothing: it is closed.
fn toxics(manner: Manner) -> Vec<Toxic> {
    let (up, down) = (Stream::Upstream, Stream::Downstream);
    let toxic = |kind: ToxicKind, stream: Stream| {
        let name = format!("chaos-{}", if stream == Stream::Upstream { "up" } else { "down" });
        Toxic { name, kind, stream, toxicity: 1.0 }
    };
    match manner {
        Manner::Refused | Manner::Plain | Manner::Twice | Manner::CutOff => Vec::new(),
        Manner::Silent => [up, down].map(|stream| toxic(ToxicKind::Timeout { timeout_ms: 0 }, stream)).into(),
        Manner::OneWay => vec![toxic(ToxicKind::Timeout { timeout_ms: 0 }, down)],
        Manner::Slow => {
            [up, down].map(|stream| toxic(ToxicKind::Latency { latency_ms: 400, jitter_ms: 300 }, stream)).into()
        }
        Manner::Reset => vec![toxic(ToxicKind::ResetPeer { timeout_ms: 200 }, down)],
        Manner::Trickle => [up, down]
            .map(|s| toxic(ToxicKind::Slicer { average_size: 20, size_variation: 10, delay_us: 50_000 }, s))
            .into(),
        Manner::CutShort => vec![toxic(ToxicKind::LimitData { bytes: 500 }, down)],
    }
}

fn members(cluster: &Cluster) -> Vec<Ipv4Addr> {
    let v4 = |ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None };
    cluster.rig.etcd.endpoints().iter().filter_map(|at| v4(at.ip())).collect()
}

/// Every wire is whole.
pub(super) fn mend_all(cluster: &Cluster) -> Result<(), Trouble> {
    if cluster.proxies.is_some() {
        return Ok(());
    }
    let nodes = cluster.rig.nodes();
    for node in nodes {
        node.host().mend()?;
        for to in nodes.iter().map(|node| node.host().address()).chain(members(cluster)) {
            let _ = node.host().mend_to(to);
        }
    }
    Ok(())
}
