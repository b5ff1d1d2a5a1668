//! Who wrote when: never two at once (S1), never two on one timeline (S2).
//!
//! Every acknowledgement carries the timeline on which the server wrote. A later timeline begins with a promotion, so a
//! write that completes on an earlier one afterwards is a second primary's. A client hears of it a little late; what was
//! *sent* after the next timeline's first acknowledgement needs no such excuse.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Breach, Finding};
use crate::history::{Moment, Rows, Way};

/// How much later than it was given an acknowledgement may be seen, on a machine whose cores are all taken.
const HEARD_LATE: Duration = Duration::from_millis(250);

/// A span in which a node goes on after all of it stood still: what its server completes in its first breath is the documented
/// limit of a lease (docs/safety.md, case 4), and counted by itself.
#[derive(Clone, Copy, Debug)]
pub struct Breath {
    /// Which node, counted from 0.
    pub node: usize,
    /// From when.
    pub from: Moment,
    /// How long it is excused.
    pub lasts: Duration,
}

/// What was found, and for how long two servers wrote.
#[derive(Clone, Debug, Default)]
pub struct Writers {
    /// Breaches of S1 and S2.
    pub findings: Vec<Finding>,
    /// The longest time for which two servers wrote, outside of excused breaths.
    pub both: Duration,
    /// Acknowledgements in excused breaths.
    pub breaths: usize,
}

/// Judges the rows that went to the nodes' own sockets.
#[must_use]
pub fn check(rows: &Rows, excused: &[Breath]) -> Writers {
    let mut writes: Vec<Write> = rows
        .iter()
        .filter_map(|op| {
            let Way::Node(node) = op.asked.way else { return None };
            Some(Write { node, timeline: *op.outcome.done()?, sent: op.sent, heard: op.ended })
        })
        .collect();
    writes.sort_by_key(|write| (write.heard, write.node));
    let mut result = Writers { findings: shared(&writes), ..Writers::default() };

    let mut first: BTreeMap<u32, Write> = BTreeMap::new();
    for write in &writes {
        first.entry(write.timeline).or_insert(*write);
    }
    let mut worst: BTreeMap<(u32, u32), (Duration, Write)> = BTreeMap::new();
    for write in &writes {
        // The earliest acknowledgement of any later timeline.
        let newer = first.range(write.timeline + 1..).map(|(_, first)| first).min_by_key(|first| first.heard);
        let Some(newer) = newer.filter(|newer| newer.heard < write.heard) else { continue };
        if excused.iter().any(|b| b.node == write.node && b.from <= write.heard && b.from.until(write.heard) <= b.lasts)
        {
            result.breaths += 1;
            continue;
        }
        let over = newer.heard.until(write.heard);
        if write.sent <= newer.heard && over <= HEARD_LATE {
            continue;
        }
        let entry = worst.entry((write.timeline, newer.timeline)).or_insert((over, *write));
        *entry = if over > entry.0 { (over, *write) } else { *entry };
    }
    for ((older, newer), (over, write)) in worst {
        result.both = result.both.max(over);
        result.findings.push(Finding {
            breach: Breach::BothWriting,
            at: write.heard,
            proof: format!(
                "node {} acknowledged a write on timeline {older} {:.3} s after timeline {newer} had begun to",
                write.node + 1,
                over.as_secs_f64()
            ),
        });
    }
    result
}

#[derive(Clone, Copy, Debug)]
struct Write {
    node: usize,
    timeline: u32,
    sent: Moment,
    heard: Moment,
}

fn shared(writes: &[Write]) -> Vec<Finding> {
    let mut owner: BTreeMap<u32, usize> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for write in writes {
        let first = *owner.entry(write.timeline).or_insert(write.node);
        if first != write.node {
            found.entry((write.timeline, write.node)).or_insert((write.heard, first));
        }
    }
    let finding = |((timeline, node), (at, first)): ((u32, usize), (Moment, usize))| Finding {
        breach: Breach::SharedTimeline,
        at,
        proof: format!("timeline {timeline} was written by node {} and by node {}", first + 1, node + 1),
    };
    found.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Op, Outcome, Row};

    const MS: u64 = 1_000;

    fn write(node: usize, timeline: u32, sent: u64, heard: u64) -> Op<Row, u32> {
        let asked = Row { id: 0, way: Way::Node(node) };
        Op { sent: Moment(sent * MS), ended: Moment(heard * MS), asked, outcome: Outcome::Done(timeline) }
    }

    #[test]
    fn one_after_the_other_is_well() {
        let rows = vec![write(0, 1, 0, 1), write(0, 1, 10, 11), write(1, 2, 5_000, 5_001), write(0, 3, 9_000, 9_001)];
        let found = check(&rows, &[]);
        assert_eq!((found.findings, found.both), (vec![], Duration::ZERO));
    }

    #[test]
    fn a_write_after_the_next_timeline_has_begun() {
        let rows = vec![write(0, 1, 0, 1), write(1, 2, 5_000, 5_001), write(0, 1, 5_010, 5_020)];
        let found = check(&rows, &[]);
        assert_eq!(found.findings.iter().map(|f| f.breach).collect::<Vec<_>>(), [Breach::BothWriting]);
        assert_eq!(found.both, Duration::from_millis(19));
        let thawed = Breath { node: 0, from: Moment(5_000 * MS), lasts: Duration::from_millis(150) };
        let excused = check(&rows, &[thawed]);
        assert_eq!((excused.findings, excused.breaths), (vec![], 1));
        let other = check(&rows, &[Breath { node: 1, ..thawed }]);
        assert_eq!(other.findings.len(), 1, "another node's thaw excuses nothing");
    }

    #[test]
    fn an_answer_heard_a_little_late_is_no_second_primary() {
        let sent_before = vec![write(0, 1, 4_990, 5_100), write(1, 2, 5_000, 5_001)];
        assert_eq!(check(&sent_before, &[]).findings, []);
        let much_later = vec![write(0, 1, 4_990, 6_000), write(1, 2, 5_000, 5_001)];
        assert_eq!(check(&much_later, &[]).findings.len(), 1);
    }

    #[test]
    fn two_nodes_on_one_timeline() {
        let rows = vec![write(0, 2, 0, 1), write(1, 2, 5_000, 5_001)];
        assert_eq!(check(&rows, &[]).findings.iter().map(|f| f.breach).collect::<Vec<_>>(), [Breach::SharedTimeline]);
    }
}
