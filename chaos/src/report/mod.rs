//! What a campaign came to: figures, a text in Markdown, one page of HTML with everything over time.

mod page;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::check::writers::{self, Breath};
use crate::check::{Breach, Finding};
use crate::cluster::Mode;
use crate::faults::{Fault, Strike};
use crate::history::{History, Moment, Way};
use crate::run::Campaign;
use crate::watch::Change;
pub use page::page;
pub use table::{markdown, table};

/// A fault that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hit {
    /// As planned.
    pub strike: Strike,
    /// The node that it hit, counted from 0; for what hits no node, the one that led.
    pub node: usize,
    /// When it was made to happen.
    pub began: Moment,
    /// When it was undone.
    pub ended: Moment,
}

/// What one round came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// From 1.
    pub number: usize,
    /// What was to happen.
    pub strikes: Vec<Strike>,
    /// What did.
    pub hits: Vec<Hit>,
    /// What could not be made to happen, and why.
    pub troubles: Vec<String>,
    /// When it began.
    pub began: Moment,
    /// When the last fault was undone.
    pub undone: Moment,
    /// When the cluster was whole again, or was given up.
    pub ended: Moment,
    /// Who led before.
    pub leader: String,
    /// Who led after; empty: nobody.
    pub next: String,
    /// Another leader, or another timeline.
    pub changed: bool,
    /// Seconds without an acknowledgement through HAProxy, at the longest.
    pub gap_proxy: f64,
    /// The same of clients that know all nodes.
    pub gap_direct: f64,
    /// Acknowledged rows that went in this round.
    pub lost: usize,
    /// What must not be.
    pub findings: Vec<Finding>,
}

impl Told {
    /// In one line.
    #[must_use]
    pub fn brief(&self) -> String {
        let who = match (self.changed, self.leader == self.next) {
            (false, _) => format!("{} leads on", self.leader),
            (true, true) => format!("{} leads on, on another timeline", self.leader),
            (true, false) => format!("{} gave way to {}", self.leader, self.next),
        };
        format!(
            "  {who}; gap {:.1} s by HAProxy, {:.1} s direct; {} rows lost; whole {:.1} s after",
            self.gap_proxy,
            self.gap_direct,
            self.lost,
            self.undone.until(self.ended).as_secs_f64()
        )
    }
}

/// The whole campaign.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Name and version.
    pub product: String,
    /// Replication.
    pub mode: Mode,
    /// All chance came from it.
    pub seed: u64,
    /// Seconds, as configured.
    pub timing: [u32; 3],
    /// Nodes, etcd members.
    pub size: [usize; 2],
    /// Links were cut between namespaces; otherwise in proxies.
    pub namespaces: bool,
    /// Round by round.
    pub rounds: Vec<Told>,
    /// Everything that must not be, in the order of time.
    pub findings: Vec<Finding>,
    /// Seconds for which two servers wrote.
    pub both_writing: f64,
    /// Acknowledgements in the first breath of a node that had stood still.
    pub breaths: usize,
    /// Rows acknowledged, by any way.
    pub acknowledged: usize,
    /// Transactions on lists that committed.
    pub transactions: usize,
    /// Looks at the bank, and increments.
    pub looks: usize,
    /// Health checks that were asked for, that were answered, and milliseconds below which 99 of 100 answers came.
    pub checks: (usize, usize, f64),
    /// Until when it lasted.
    pub ended: Moment,
    /// Who held the leader key, from when.
    pub leaders: Vec<(Moment, Option<String>)>,
    /// By node: in which tenths of a second it acknowledged a write on its own socket.
    pub wrote: Vec<Vec<u32>>,
    /// The longest that a row through HAProxy took that ended in this half second, in milliseconds.
    pub latency: Vec<(u32, u32)>,
}

impl Report {
    /// Reads it out of what clients and etcd saw.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "everything that a campaign has, once")]
    pub(crate) fn of(
        product: String,
        campaign: &Campaign,
        rounds: Vec<Told>,
        mut findings: Vec<Finding>,
        history: &History,
        changes: &[Change],
        breaths: &[Breath],
        ended: Moment,
    ) -> Report {
        findings.sort_by_key(|finding| finding.at);
        let settings = campaign.shape.settings;
        let done = history.rows.iter().filter(|op| op.outcome.done().is_some());
        let writers = writers::check(&history.rows, breaths);
        let mut wrote = vec![Vec::new(); settings.nodes];
        let mut latency: BTreeMap<u32, u32> = BTreeMap::new();
        for op in done.clone() {
            let slot = |span: u64| u32::try_from(op.ended.0 / span).unwrap_or(u32::MAX);
            match op.asked.way {
                Way::Node(node) => {
                    if let Some(slots) = wrote.get_mut(node)
                        && slots.last() != Some(&slot(100_000))
                    {
                        slots.push(slot(100_000));
                    }
                }
                Way::Proxy => {
                    let took = u32::try_from(op.sent.until(op.ended).as_millis()).unwrap_or(u32::MAX);
                    let worst = latency.entry(slot(500_000)).or_default();
                    *worst = took.max(*worst);
                }
                Way::Direct => {}
            }
        }
        let leaders = changes.iter().filter(|change| change.key == "leader");
        Report {
            product,
            mode: campaign.shape.mode,
            seed: campaign.seed,
            timing: [settings.ttl, settings.loop_wait, settings.retry_timeout],
            size: [settings.nodes, settings.etcd],
            namespaces: settings.namespaces,
            rounds,
            findings,
            both_writing: writers.both.as_secs_f64(),
            breaths: writers.breaths,
            acknowledged: done.count(),
            transactions: history.lists.iter().filter(|op| op.outcome.done().is_some()).count(),
            looks: history.sums.iter().filter(|op| op.outcome.done().is_some()).count() + history.counts.len(),
            checks: checks(history),
            ended,
            leaders: leaders.map(|change| (change.at, change.value.clone())).collect(),
            wrote,
            latency: latency.into_iter().collect(),
        }
    }

    /// All faults that happened.
    pub fn hits(&self) -> impl Iterator<Item = &Hit> {
        self.rounds.iter().flat_map(|told| &told.hits)
    }

    /// How often each kind of fault happened.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<Fault, usize> {
        let mut kinds = BTreeMap::new();
        for hit in self.hits() {
            *kinds.entry(hit.strike.fault).or_insert(0) += 1;
        }
        kinds
    }

    /// Acknowledged rows that were lost.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.rounds.iter().map(|told| told.lost).sum()
    }

    /// Rounds in which leadership changed.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.rounds.iter().filter(|told| told.changed).count()
    }

    /// Changes that nothing called for.
    #[must_use]
    pub fn needless(&self) -> usize {
        self.findings.iter().filter(|finding| finding.breach == Breach::NeedlessFailover).count()
    }

    /// Seconds without an acknowledgement, of the rounds in which leadership changed.
    #[must_use]
    pub fn gaps(&self, of: impl Fn(&Told) -> f64) -> Vec<f64> {
        let mut gaps: Vec<f64> = self.rounds.iter().filter(|told| told.changed).map(of).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }

    /// Seconds from the last undoing until the cluster was whole.
    #[must_use]
    pub fn healing(&self) -> Vec<f64> {
        let mut spans: Vec<f64> = self
            .rounds
            .iter()
            .map(|told| told.undone.until(told.ended))
            .map(|span: Duration| span.as_secs_f64())
            .collect();
        spans.sort_by(f64::total_cmp);
        spans
    }
}

fn checks(history: &History) -> (usize, usize, f64) {
    let answered = history.checks.iter().filter(|op| op.outcome.done().is_some());
    let mut took: Vec<f64> = answered.map(|op| op.sent.until(op.ended).as_secs_f64() * 1000.0).collect();
    took.sort_by(f64::total_cmp);
    (history.checks.len(), took.len(), percentile(&took, 99).unwrap_or_default())
}

/// The value below which so many of a hundred lie, of sorted ones.
#[must_use]
pub fn percentile(sorted: &[f64], of_hundred: usize) -> Option<f64> {
    let rank = (sorted.len() * of_hundred).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied()
}
