//! Health checks: none says "primary" once another one writes (P5).

use std::collections::BTreeMap;

use super::{Breach, Finding};
use crate::history::{Checks, Moment, Rows, Way};

/// Answers 200 of `GET /primary` that were asked for after another node had acknowledged a write on a later timeline than any of
/// this node's own.
#[must_use]
pub fn check(checks: &Checks, rows: &Rows) -> Vec<Finding> {
    // By timeline: who wrote it, and when its first acknowledgement was heard.
    let mut began: BTreeMap<u32, (Moment, usize)> = BTreeMap::new();
    for op in rows {
        if let (Way::Node(node), Some(timeline)) = (op.asked.way, op.outcome.done()) {
            let entry = began.entry(*timeline).or_insert((op.ended, node));
            *entry = (*entry).min((op.ended, node));
        }
    }
    let lie = |asked: &crate::history::Op<usize, u16>| {
        let yes = asked.outcome.done() == Some(&200);
        // The latest timeline that anybody had begun by then.
        let latest =
            began.iter().filter(|(_, (at, _))| *at < asked.sent).map(|(timeline, (_, node))| (*timeline, *node)).max();
        let (timeline, writer) = latest.filter(|(_, writer)| yes && *writer != asked.asked)?;
        // It may be about to begin the next one itself.
        let own = began.iter().any(|(later, (_, node))| *later > timeline && *node == asked.asked);
        (!own).then_some((timeline, writer))
    };
    let mut worst: BTreeMap<(usize, u32), (Moment, Moment, usize)> = BTreeMap::new();
    for asked in checks {
        if let Some((timeline, writer)) = lie(asked) {
            let entry = worst.entry((asked.asked, timeline)).or_insert((asked.sent, asked.sent, writer));
            entry.1 = asked.sent.max(entry.1);
        }
    }
    let finding = |((node, timeline), (from, to, writer)): ((usize, u32), (Moment, Moment, usize))| Finding {
        breach: Breach::CheckLied,
        at: from,
        proof: format!(
            "node {} answered 200 to GET /primary for {:.2} s while node {} wrote timeline {timeline}",
            node + 1,
            from.until(to).as_secs_f64(),
            writer + 1
        ),
    };
    worst.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Op, Outcome, Row};

    fn write(node: usize, timeline: u32, at: u64) -> Op<Row, u32> {
        let asked = Row { id: 0, way: Way::Node(node) };
        Op { sent: Moment(at), ended: Moment(at + 1), asked, outcome: Outcome::Done(timeline) }
    }

    fn asked(node: usize, at: u64, status: u16) -> Op<usize, u16> {
        Op { sent: Moment(at), ended: Moment(at + 1), asked: node, outcome: Outcome::Done(status) }
    }

    #[test]
    fn a_check_lies_when_another_one_writes() {
        let rows = vec![write(0, 1, 10), write(1, 2, 100), write(0, 3, 300)];
        let honest = vec![asked(0, 50, 200), asked(0, 120, 503), asked(1, 120, 200), asked(0, 310, 200)];
        assert_eq!(check(&honest, &rows), []);
        // As the next timeline is about to begin, its primary says so a moment earlier than it writes.
        assert_eq!(check(&vec![asked(0, 290, 200)], &rows), []);
        let lies = check(&vec![asked(0, 120, 200), asked(0, 130, 200), asked(2, 130, 200)], &rows[..2].to_vec());
        assert_eq!(
            lies.iter().map(|finding| finding.breach).collect::<Vec<_>>(),
            [Breach::CheckLied, Breach::CheckLied]
        );
    }
}
