//! Rows: what was acknowledged is there, once, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Breach, Finding};
use crate::history::{Moment, Row, Rows};

/// The acknowledged rows that are not among `there`, in the order of acknowledgement, with its moment and the timeline.
#[must_use]
pub fn lost(rows: &Rows, there: &BTreeSet<i64>) -> Vec<(Moment, Row, u32)> {
    let acknowledged = rows.iter().filter_map(|op| Some((op.ended, op.asked, *op.outcome.done()?)));
    let mut lost: Vec<_> = acknowledged.filter(|(_, row, _)| !there.contains(&row.id)).collect();
    lost.sort_by_key(|(at, row, _)| (*at, row.id));
    lost
}

/// Rows that nobody sent, or that were definitely refused.
#[must_use]
pub fn phantoms(rows: &Rows, there: &BTreeSet<i64>) -> Vec<Finding> {
    let sent: BTreeMap<i64, bool> = rows.iter().map(|op| (op.asked.id, op.outcome.possible())).collect();
    let strange = there.iter().filter_map(|id| match sent.get(id) {
        Some(true) => None,
        Some(false) => Some((id, "was refused")),
        None => Some((id, "was never sent")),
    });
    strange
        .map(|(id, why)| Finding {
            breach: Breach::Phantom,
            at: Moment(0),
            proof: format!("row {id} is there, and {why}"),
        })
        .collect()
}

/// With asynchronous replication only the end of a timeline may be lost: what was acknowledged within `bound` before its last
/// acknowledgement.
#[must_use]
pub fn beyond_bound(rows: &Rows, lost: &[(Moment, Row, u32)], bound: Duration) -> Vec<Finding> {
    let mut last: BTreeMap<u32, Moment> = BTreeMap::new();
    for op in rows {
        if let Some(timeline) = op.outcome.done() {
            let at = last.entry(*timeline).or_default();
            *at = op.ended.max(*at);
        }
    }
    let too_old = lost.iter().filter_map(|(at, row, timeline)| {
        let end = last.get(timeline).copied().unwrap_or_default();
        let before = at.until(end);
        (before > bound).then(|| Finding {
            breach: Breach::LostBeyondBound,
            at: *at,
            proof: format!(
                "row {} was acknowledged {:.1} s before the end of timeline {timeline}, and is lost; the bound is {bound:?}",
                row.id,
                before.as_secs_f64()
            ),
        })
    });
    too_old.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Op, Outcome, Way};

    fn row(id: i64, at: u64, outcome: Outcome<u32>) -> Op<Row, u32> {
        Op { sent: Moment(at), ended: Moment(at + 1), asked: Row { id, way: Way::Proxy }, outcome }
    }

    #[test]
    fn only_acknowledged_rows_can_be_lost() {
        let rows = vec![
            row(1, 10, Outcome::Done(1)),
            row(2, 20, Outcome::Unknown(String::new())),
            row(3, 30, Outcome::Refused(String::new())),
            row(4, 40, Outcome::Done(1)),
        ];
        let there = BTreeSet::from([4]);
        assert_eq!(lost(&rows, &there).iter().map(|(_, row, _)| row.id).collect::<Vec<_>>(), [1]);
        assert_eq!(phantoms(&rows, &BTreeSet::from([1, 2, 4])), []);
        assert_eq!(phantoms(&rows, &BTreeSet::from([3, 9])).len(), 2);
    }

    #[test]
    fn the_end_of_a_timeline_may_be_lost_and_no_more() {
        let second = 1_000_000;
        let rows = vec![
            row(1, 0, Outcome::Done(1)),
            row(2, 9 * second, Outcome::Done(1)),
            row(3, 10 * second, Outcome::Done(1)),
            row(4, 99 * second, Outcome::Done(2)),
        ];
        let bound = Duration::from_secs(5);
        let end = lost(&rows, &BTreeSet::from([1, 4]));
        assert_eq!(beyond_bound(&rows, &end, bound), []);
        let more = lost(&rows, &BTreeSet::from([2, 3, 4]));
        assert_eq!(beyond_bound(&rows, &more, bound).len(), 1);
    }
}
