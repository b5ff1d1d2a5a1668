//! Replication: who streams from whom, what arrives when, and who waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use regent_core::postgres::Upstream;
use regent_core::sync::Waits;
use regent_core::units::Lsn;

use super::Transition;
use super::wal::Entry;
use super::world::{Cluster, Data, Event, Node, Phase, World};

/// A replication connection, as the standby has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) upstream: usize,
    /// The upstream's postmaster when it was made.
    pub(super) pid: u32,
    /// Nothing flowed through it before.
    since: Duration,
    /// Nothing gets through since then, and nobody noticed yet.
    silent: Option<Duration>,
}

impl World {
    pub(super) fn cut(&mut self, a: usize, b: usize, cut: bool) {
        let pair = (a.min(b), a.max(b));
        if cut {
            self.cuts.insert(pair);
        } else {
            self.cuts.remove(&pair);
        }
        self.changed = true;
    }

    pub(super) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// Brings everything that follows from a change, or from the passing of time, up to date.
    pub(super) fn settle(&mut self) {
        loop {
            self.deliver();
            // A log that grew may let others stream from it, and they stream since it grew.
            if !self.relink() && !self.finish_stops() {
                break;
            }
        }
        self.settled = self.now;
        self.move_slots();
        self.acknowledge();
        self.fail_builds();
        for index in 0..self.nodes.len() {
            let writable = self.nodes[index].can_write();
            if writable != self.nodes[index].was_writable {
                self.nodes[index].was_writable = writable;
                self.report(index, if writable { Transition::Writable } else { Transition::NotWritable });
            }
        }
    }

    /// Slots that somebody streams through, and how far that one is.
    pub(super) fn slots_in_use(&self, index: usize) -> BTreeMap<String, Lsn> {
        let pid = self.pid(index);
        let user = |node: &Node| {
            let link = node.server.as_ref()?.link.filter(|link| link.upstream == index && Some(link.pid) == pid)?;
            let Data::Present(theirs) = &node.data else { return None };
            link.is_live().then(|| (node.name.slot_name(), theirs.log.end()))
        };
        self.nodes.iter().filter_map(user).collect()
    }

    /// What a node's slots hold back of vacuum: a logical one its own position, a standby's what that one needs, which it is told
    /// at once.
    pub(super) fn xmins(&self, index: usize) -> BTreeMap<String, u32> {
        let slots = |index: usize| match &self.nodes[index].data {
            Data::Present(cluster) => cluster.slots.clone(),
            Data::Empty | Data::Unfinished | Data::HalfRewound => BTreeMap::new(),
        };
        let own = |index: usize| slots(index).into_iter().filter(|(_, slot)| slot.logical.is_some() && !slot.lost);
        let logical = own(index).map(|(name, slot)| (name, slot.xmin()));
        let used = self.slots_in_use(index);
        let standbys = self.nodes.iter().enumerate().filter(|(_, node)| used.contains_key(&node.name.slot_name()));
        let told = standbys.filter_map(|(standby, node)| {
            Some((node.name.slot_name(), own(standby).map(|(_, slot)| slot.xmin()).min()?))
        });
        logical.chain(told).collect()
    }

    fn move_slots(&mut self) {
        for index in 0..self.nodes.len() {
            let used = self.slots_in_use(index);
            if let Data::Present(cluster) = &mut self.nodes[index].data {
                cluster.slots.iter_mut().for_each(|(name, slot)| slot.at = used.get(name).copied().unwrap_or(slot.at));
            }
        }
    }

    /// Ends the waiting of clients whose writes are where they must be.
    fn acknowledge(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let node = &self.nodes[waiting.node];
            let alive = node.server.as_ref().is_some_and(|server| server.pid == waiting.pid);
            let Data::Present(cluster) = &node.data else { continue };
            if !alive {
                continue; // Its client was cut off.
            }
            let has = |waits: &Waits, other: &&Node| {
                let link = other.server.as_ref().and_then(|server| server.link);
                let streams = link.is_some_and(|l| l.upstream == waiting.node && l.pid == waiting.pid && l.is_live());
                let Data::Present(theirs) = &other.data else { return false };
                streams
                    && waits.names.contains(&other.name.as_str().to_ascii_lowercase())
                    && theirs.log.has(waiting.record)
            };
            let enough = |waits: &Waits| {
                let have = self.nodes.iter().filter(|other| has(waits, other)).count();
                (!waits.blocked && have >= waits.numsync).then_some(waits.numsync > 0)
            };
            let by = cluster.waits(self.now).iter().find_map(enough);
            match by.filter(|_| !node.stalled()) {
                None => self.waiting.push(waiting),
                Some(true) => self.acknowledged.push(waiting.write),
                Some(false) => {} // Nobody waits any more, and nobody has promised anything.
            }
        }
    }

    /// Makes and ends links; true when one was made.
    fn relink(&mut self) -> bool {
        let mut made = false;
        for standby in 0..self.nodes.len() {
            let link = self.link_of(standby);
            let Some(server) = &mut self.nodes[standby].server else { continue };
            made |= link.is_some() && server.link.is_none_or(|old| link.is_some_and(|new| new.is_other_than(&old)));
            server.received |= link.is_some();
            server.link = link;
        }
        made
    }

    /// Moves records along the links, through cascades.
    fn deliver(&mut self) {
        let mut moved = true;
        while moved {
            moved = false;
            for standby in 0..self.nodes.len() {
                let arrived = self.arrived(standby);
                let Data::Present(cluster) = &mut self.nodes[standby].data else { continue };
                for entry in arrived {
                    moved = true;
                    cluster.log.push(entry);
                    if entry.record.kind.is_checkpoint() {
                        // A restart point: the only moment when a crashed standby's control file learns where it was.
                        cluster.checkpointed(&entry.record);
                        cluster.control.min_recovery = Some((entry.record.timeline, entry.record.end));
                    }
                }
            }
        }
    }

    /// What has come through the link and is not in the log yet.
    fn arrived(&self, standby: usize) -> Vec<Entry> {
        let node = &self.nodes[standby];
        let link = node.server.as_ref().and_then(|server| server.link).filter(|link| link.silent.is_none());
        let (Some(link), Data::Present(mine)) = (link, &node.data) else { return Vec::new() };
        let Data::Present(theirs) = &self.nodes[link.upstream].data else { return Vec::new() };
        (mine.log.len()..)
            .map_while(|index| theirs.log.get(index))
            .map(|entry| Entry { arrived: link.arrival(entry, node), ..*entry })
            .take_while(|entry| entry.arrived <= self.now)
            .collect()
    }

    /// The link that a node has from now on.
    fn link_of(&self, standby: usize) -> Option<Link> {
        let Node { server: Some(server), data: Data::Present(cluster), .. } = &self.nodes[standby] else { return None };
        let receives = server.in_recovery && server.phase == Phase::Accepting && server.promoting.is_none();
        let Upstream::Member { conn_url, .. } = &cluster.upstream else { return None };
        let upstream = self.find(conn_url).filter(|upstream| receives && *upstream != standby)?;
        let source = &self.nodes[upstream];
        let old = server.link.filter(|link| link.upstream == upstream);

        if self.is_cut(standby, upstream) || self.nodes[standby].stalled() || source.stalled() {
            // Nothing comes, and nothing says so: TCP keeps it until the receiver's own timeout.
            let link = old?;
            let silent = link.silent.unwrap_or(self.now);
            let noticed = self.now.saturating_sub(silent) >= self.nodes[standby].timings.wal_timeout;
            return (!noticed).then_some(Link { silent: Some(silent), ..link });
        }
        let (Data::Present(theirs), Some(sender)) = (&source.data, &source.server) else { return None };
        let same = theirs.control.system_id == cluster.control.system_id;
        let removed = cluster.log.end() < source.log_from;
        if !same || removed || !cluster.log.is_prefix_of(&theirs.log) {
            return None;
        }
        match (old.filter(|link| link.pid == sender.pid), sender.phase) {
            (Some(link), Phase::Accepting | Phase::Stopping { .. }) => Some(match link.silent {
                Some(_) => Link { silent: None, since: self.now, ..link },
                None => link,
            }),
            (None, Phase::Accepting) => {
                Some(Link { upstream, pid: sender.pid, since: self.possible_since(cluster, theirs), silent: None })
            }
            (_, Phase::Starting | Phase::Stopping { .. } | Phase::Quitting) => None,
        }
    }

    /// Since when the two logs fit, if nothing but their growth was in the way: everything else changes at events.
    fn possible_since(&self, mine: &Cluster, theirs: &Cluster) -> Duration {
        let meeting = mine.log.len().checked_sub(1).and_then(|last| theirs.log.get(last));
        meeting.map_or(self.now, |entry| entry.arrived.clamp(self.settled, self.now))
    }

    /// Ends servers whose fast stop has nobody left to wait for; true if one ended.
    fn finish_stops(&mut self) -> bool {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let Some(server) = &node.server else { continue };
            if server.phase != (Phase::Stopping { written: true }) || node.stalled() {
                continue;
            }
            match self.senders_done(index, server.pid) {
                None => {
                    self.end(index, Transition::Stopped);
                    return true;
                }
                Some(at) => {
                    let waits = self.queue.range((at, 0)..=(at, u64::MAX)).any(|(_, due)| due.node == index);
                    if !waits {
                        self.schedule(at.saturating_sub(self.now), index, Event::SenderDone);
                    }
                }
            }
        }
        false
    }

    /// The next moment when a WAL sender of this server may be done, `None` when all are: a sender ends when its standby
    /// has the whole log, or was silent for too long (`wal_sender_timeout`).
    fn senders_done(&self, index: usize, pid: u32) -> Option<Duration> {
        let Data::Present(cluster) = &self.nodes[index].data else { return None };
        let last = cluster.log.len().checked_sub(1).and_then(|last| cluster.log.get(last))?;
        let waits = |node: &Node| {
            let link = node.server.as_ref()?.link.filter(|link| link.upstream == index && link.pid == pid)?;
            let Data::Present(theirs) = &node.data else { return None };
            (theirs.log.len() < cluster.log.len()).then(|| match link.silent {
                Some(silent) => silent.saturating_add(node.timings.wal_timeout),
                None => link.arrival(last, node),
            })
        };
        self.nodes.iter().filter_map(waits).min()
    }

    /// A clone fails when its source goes, or the way to it.
    fn fail_builds(&mut self) {
        for index in 0..self.nodes.len() {
            let Some(build) = &self.nodes[index].build else { continue };
            let Some((source, pid)) = build.source else { continue };
            if build.patient && !self.is_cut(index, source) && self.nodes[source].stalled() {
                continue;
            }
            if let Some(cause) = self.unusable_source(index, source, Some(pid))
                && let Some(build) = &mut self.nodes[index].build
                && build.failed.is_none()
            {
                build.failed = Some(cause);
                self.changed = true;
            }
        }
    }

    /// Why `node` cannot copy from `source`.
    pub(super) fn unusable_source(&self, node: usize, source: usize, pid: Option<u32>) -> Option<String> {
        let Node { name, server, .. } = &self.nodes[source];
        match server {
            Some(_) if self.is_cut(node, source) || self.nodes[source].stalled() => Some(format!("{name}: no answer")),
            Some(server) if server.phase != Phase::Accepting => Some(format!("{name} does not accept connections")),
            Some(server) if pid.is_some_and(|pid| pid != server.pid) => Some(format!("{name} was restarted")),
            Some(_) => None,
            None => Some(format!("{name}: connection refused")),
        }
    }
}

impl Link {
    /// Acknowledgements come through.
    fn is_live(&self) -> bool {
        self.silent.is_none()
    }

    fn is_other_than(&self, old: &Link) -> bool {
        (self.upstream, self.pid, self.since) != (old.upstream, old.pid, old.since)
    }

    fn arrival(&self, entry: &Entry, standby: &Node) -> Duration {
        entry.arrived.max(self.since).saturating_add(standby.timings.replication_delay)
    }
}
