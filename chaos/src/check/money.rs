//! A bank whose accounts always have the same sum, and counters that never go back.

use std::collections::BTreeMap;

use super::{Breach, Finding};
use crate::history::{Counts, Moment, Sums};

/// Every look at the bank, on the primary or a standby, sees all accounts and all the money.
#[must_use]
pub fn sums(sums: &Sums, accounts: i64, money: i64) -> Vec<Finding> {
    let wrong = sums.iter().filter_map(|op| {
        let seen = *op.outcome.done()?;
        (seen != (accounts, money)).then(|| Finding {
            breach: Breach::Money,
            at: op.ended,
            proof: format!("{} accounts held {} together, and not {accounts} and {money}", seen.0, seen.1),
        })
    });
    wrong.collect()
}

/// When each increment was sent and acknowledged, and its value.
type Increments = Vec<(Moment, Moment, i64)>;

/// An increment that was sent after another one had been acknowledged gets a larger value; no value is given twice. With
/// asynchronous replication this holds within a timeline.
#[must_use]
pub fn counts(counts: &Counts, across_timelines: bool) -> Vec<Finding> {
    let mut streams: BTreeMap<(i64, u32), Increments> = BTreeMap::new();
    for op in counts {
        if let Some((value, timeline)) = op.outcome.done() {
            let stream = (op.asked, if across_timelines { 0 } else { *timeline });
            streams.entry(stream).or_default().push((op.sent, op.ended, *value));
        }
    }
    let mut findings = Vec::new();
    for ((key, _), mut stream) in streams {
        stream.sort_by_key(|(_, ended, _)| *ended);
        // By the moment of acknowledgement: the largest value acknowledged before something was sent.
        let mut largest: Vec<(Moment, i64)> = Vec::new();
        let mut by_sending = stream.clone();
        by_sending.sort_by_key(|(sent, ..)| *sent);
        for (_, ended, value) in &stream {
            let so_far = largest.last().map_or(i64::MIN, |(_, value)| *value);
            largest.push((*ended, so_far.max(*value)));
        }
        for (sent, ended, value) in by_sending {
            let before = largest.partition_point(|(at, _)| *at < sent);
            let known = before.checked_sub(1).and_then(|last| largest.get(last)).map_or(i64::MIN, |(_, value)| *value);
            if value <= known {
                let proof = format!("counter {key} gave {value} after it had given {known}");
                findings.push(Finding { breach: Breach::WentBack, at: ended, proof });
            }
        }
        let mut values: Vec<i64> = stream.iter().map(|(_, _, value)| *value).collect();
        values.sort_unstable();
        for pair in values.windows(2) {
            if pair.first() == pair.get(1) {
                let proof = format!("counter {key} gave {pair:?}: the same value twice");
                findings.push(Finding { breach: Breach::WentBack, at: Moment(0), proof });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Op, Outcome};

    fn count(sent: u64, value: i64, timeline: u32) -> Op<i64, (i64, u32)> {
        Op { sent: Moment(sent), ended: Moment(sent + 5), asked: 1, outcome: Outcome::Done((value, timeline)) }
    }

    #[test]
    fn a_counter_that_goes_on() {
        assert_eq!(counts(&vec![count(0, 1, 1), count(10, 2, 1), count(20, 5, 2)], true), []);
        // At the same time either may come first.
        assert_eq!(counts(&vec![count(0, 2, 1), count(3, 1, 1)], true), []);
    }

    #[test]
    fn a_counter_that_goes_back() {
        let back = vec![count(0, 1, 1), count(10, 7, 1), count(20, 3, 2)];
        assert_eq!(counts(&back, true).len(), 1);
        assert_eq!(counts(&back, false), [], "a new timeline may begin earlier with asynchronous replication");
        assert_eq!(counts(&vec![count(0, 7, 1), count(2, 7, 1)], true).len(), 1, "the same value twice");
    }

    #[test]
    fn money_is_neither_made_nor_destroyed() {
        let look = |seen| Op { sent: Moment(0), ended: Moment(1), asked: (), outcome: Outcome::Done(seen) };
        assert_eq!(sums(&vec![look((8, 800))], 8, 800), []);
        assert_eq!(sums(&vec![look((8, 801)), look((7, 800)), look((8, 800))], 8, 800).len(), 2);
    }
}
