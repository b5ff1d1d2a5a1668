//! Append lists (after Kingsbury and Alvaro, "Elle", VLDB 2020): each transaction appends values that occur once, and reads
//! whole lists. The longest read of a list is the order of its versions; from it follows which transaction wrote
//! after which (ww), who read from whom (wr), and who read before whose write (rw). PostgreSQL's SERIALIZABLE promises that all
//! of these together have no cycle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Breach, Finding};
use crate::history::{Lists, Moment, Outcome, Step};

/// How one transaction depends on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    /// The other's value follows this one's in a list.
    WriteWrite,
    /// The other read this one's value.
    WriteRead,
    /// This one read a list before the other's value was in it.
    ReadWrite,
}

type Graph = Vec<BTreeMap<usize, Edge>>;

/// Judges a history, with the lists as they are in the end.
///
/// `forgiven`: acknowledged values that asynchronous replication lost. Transactions that wrote or read one belong to a
/// past that is not this cluster's any more, and are left out.
#[must_use]
pub fn check(lists: &Lists, last: &BTreeMap<i64, Vec<i64>>, forgiven: &BTreeSet<(i64, i64)>) -> Vec<Finding> {
    let touched = |key: i64, seen: &[i64]| seen.iter().any(|value| forgiven.contains(&(key, *value)));
    let kept: Vec<usize> = (0..lists.len())
        .filter(|i| {
            let Some(op) = lists.get(*i) else { return false };
            let wrote =
                op.asked.iter().any(|s| matches!(s, Step::Append(key, value) if forgiven.contains(&(*key, *value))));
            !wrote && !reads(op).any(|(key, seen)| touched(key, seen))
        })
        .collect();
    let mut findings = Vec::new();
    let orders = orders(lists, &kept, last, &mut findings);
    let writer: BTreeMap<(i64, i64), usize> = kept
        .iter()
        .filter_map(|i| Some((*i, lists.get(*i)?)))
        .flat_map(|(i, op)| op.asked.iter().filter_map(move |step| appended(*step).map(|what| (what, i))))
        .collect();
    strange_values(lists, &orders, &writer, &mut findings);
    if findings.is_empty() {
        let graph = graph(lists, &kept, &orders, &writer);
        findings.extend(cycle(&graph).map(|cycle| in_words(lists, &cycle)));
    }
    findings
}

/// The acknowledged values that are in no list in the end.
#[must_use]
pub fn lost(lists: &Lists, last: &BTreeMap<i64, Vec<i64>>) -> BTreeSet<(i64, i64)> {
    let there: BTreeSet<(i64, i64)> =
        last.iter().flat_map(|(key, values)| values.iter().map(move |value| (*key, *value))).collect();
    let acknowledged = lists.iter().filter(|op| op.outcome.done().is_some());
    acknowledged.flat_map(|op| op.asked.iter().filter_map(|s| appended(*s))).filter(|v| !there.contains(v)).collect()
}

fn appended(step: Step) -> Option<(i64, i64)> {
    match step {
        Step::Append(key, value) => Some((key, value)),
        Step::Read(_) => None,
    }
}

/// What a transaction read: list and content.
fn reads(op: &crate::history::Op<Vec<Step>, Vec<Vec<i64>>>) -> impl Iterator<Item = (i64, &Vec<i64>)> {
    let keys = op.asked.iter().filter_map(|step| match step {
        Step::Read(key) => Some(*key),
        Step::Append(..) => None,
    });
    keys.zip(op.outcome.done().into_iter().flatten())
}

/// A read without what the transaction itself had appended before it: the state of the list that others made.
fn external(op: &crate::history::Op<Vec<Step>, Vec<Vec<i64>>>, key: i64, seen: &[i64]) -> Vec<i64> {
    let own: BTreeSet<i64> =
        op.asked.iter().filter_map(|s| appended(*s)).filter(|(k, _)| *k == key).map(|(_, v)| v).collect();
    seen.iter().copied().take_while(|value| !own.contains(value)).collect()
}

/// Every list's order of versions: the longest that was seen, of which every other read is a prefix.
fn orders(
    lists: &Lists,
    kept: &[usize],
    last: &BTreeMap<i64, Vec<i64>>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<i64, Vec<i64>> {
    let mut orders: BTreeMap<i64, Vec<i64>> = last.clone();
    for op in kept.iter().filter_map(|i| lists.get(*i)) {
        for (key, seen) in reads(op) {
            let order = orders.entry(key).or_default();
            let (short, long) =
                if seen.len() <= order.len() { (&seen[..], &order[..]) } else { (&order[..], &seen[..]) };
            if !long.starts_with(short) {
                findings.push(Finding {
                    breach: Breach::IncompatibleRead,
                    at: op.ended,
                    proof: format!("list {key} was read as {seen:?}, which is no beginning of {order:?}"),
                });
            } else if seen.len() > order.len() {
                order.clone_from(seen);
            }
        }
    }
    orders
}

fn strange_values(
    lists: &Lists,
    orders: &BTreeMap<i64, Vec<i64>>,
    writer: &BTreeMap<(i64, i64), usize>,
    findings: &mut Vec<Finding>,
) {
    for (key, order) in orders {
        let mut seen = BTreeSet::new();
        for value in order {
            let by = writer.get(&(*key, *value)).and_then(|i| lists.get(*i));
            let why = match by.map(|op| &op.outcome) {
                _ if !seen.insert(*value) => "is there twice",
                None => "was never appended",
                Some(Outcome::Refused(_)) => "was appended by a transaction that was refused",
                Some(Outcome::Done(_) | Outcome::Unknown(_)) => continue,
            };
            let proof = format!("value {value} of list {key} {why}");
            findings.push(Finding { breach: Breach::Phantom, at: by.map_or(Moment(0), |op| op.ended), proof });
        }
    }
}

fn graph(
    lists: &Lists,
    kept: &[usize],
    orders: &BTreeMap<i64, Vec<i64>>,
    writer: &BTreeMap<(i64, i64), usize>,
) -> Graph {
    let mut graph: Graph = vec![BTreeMap::new(); lists.len()];
    let mut edge = |from: Option<&usize>, to: Option<&usize>, kind: Edge| {
        if let (Some(from), Some(to)) = (from, to)
            && from != to
            && let Some(edges) = graph.get_mut(*from)
        {
            // The weaker the dependency, the stronger the anomaly: keep the strongest edge.
            let old = edges.entry(*to).or_insert(kind);
            *old = kind.min(*old);
        }
    };
    for (key, order) in orders {
        for pair in order.windows(2) {
            let [earlier, later] = pair else { continue };
            edge(writer.get(&(*key, *earlier)), writer.get(&(*key, *later)), Edge::WriteWrite);
        }
    }
    for i in kept {
        let Some(op) = lists.get(*i) else { continue };
        for (key, seen) in reads(op) {
            let seen = external(op, key, seen);
            let order = orders.get(&key).map(Vec::as_slice).unwrap_or_default();
            if let Some(value) = seen.last() {
                edge(writer.get(&(key, *value)), Some(i), Edge::WriteRead);
            }
            if let Some(next) = order.get(seen.len()) {
                edge(Some(i), writer.get(&(key, *next)), Edge::ReadWrite);
            }
        }
    }
    graph
}

/// A shortest cycle, if there is one: transactions with the edge to the next.
fn cycle(graph: &Graph) -> Option<Vec<(usize, Edge)>> {
    // Kahn: what can be taken away, because nothing is before it, is in no cycle.
    let mut before = vec![0_usize; graph.len()];
    for to in graph.iter().flat_map(BTreeMap::keys) {
        before[*to] += 1;
    }
    let mut free: VecDeque<usize> = (0..graph.len()).filter(|i| before[*i] == 0).collect();
    let mut gone = vec![false; graph.len()];
    while let Some(i) = free.pop_front() {
        gone[i] = true;
        for to in graph[i].keys() {
            before[*to] -= 1;
            if before[*to] == 0 {
                free.push_back(*to);
            }
        }
    }
    let rest: Vec<usize> = (0..graph.len()).filter(|i| !gone[*i]).collect();
    // A few starts suffice to show a short one; each is on a cycle or after one.
    rest.iter().take(200).filter_map(|start| back_to(graph, &gone, *start)).min_by_key(Vec::len)
}

/// The shortest way from `start` back to it.
fn back_to(graph: &Graph, gone: &[bool], start: usize) -> Option<Vec<(usize, Edge)>> {
    let mut from: BTreeMap<usize, (usize, Edge)> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(i) = queue.pop_front() {
        for (to, kind) in graph.get(i)? {
            if *to == start {
                let mut path = vec![(i, *kind)];
                let mut at = i;
                while at != start {
                    let (before, kind) = *from.get(&at)?;
                    path.push((before, kind));
                    at = before;
                }
                path.reverse();
                return Some(path);
            }
            if !gone[*to] && !from.contains_key(to) {
                from.insert(*to, (i, *kind));
                queue.push_back(*to);
            }
        }
    }
    None
}

fn in_words(lists: &Lists, cycle: &[(usize, Edge)]) -> Finding {
    let back = cycle.iter().filter(|(_, kind)| *kind == Edge::ReadWrite).count();
    let name = match back {
        0 if cycle.iter().all(|(_, kind)| *kind == Edge::WriteWrite) => "G0, a cycle of writes",
        0 => "G1c, a circle of information",
        1 => "G-single, a read that is skewed",
        _ => "G2, transactions that do not see each other",
    };
    let step = |(i, kind): &(usize, Edge)| {
        let op = lists.get(*i);
        let (asked, saw) = op.map(|op| (op.asked.clone(), op.outcome.clone())).unzip();
        format!("{:?} saw {:?} –{kind:?}→", asked.unwrap_or_default(), saw.as_ref().and_then(Outcome::done))
    };
    let at = cycle.iter().filter_map(|(i, _)| lists.get(*i)).map(|op| op.ended).max().unwrap_or_default();
    let proof = format!("{name}: {} (the first again)", cycle.iter().map(step).collect::<Vec<_>>().join(" "));
    Finding { breach: Breach::Cycle, at, proof }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Op;

    fn txn(steps: &[Step], saw: &[&[i64]]) -> Op<Vec<Step>, Vec<Vec<i64>>> {
        let outcome = Outcome::Done(saw.iter().map(|list| list.to_vec()).collect());
        Op { sent: Moment(0), ended: Moment(1), asked: steps.to_vec(), outcome }
    }

    fn judged(lists: Lists, last: &[(i64, &[i64])]) -> Vec<Breach> {
        let last = last.iter().map(|(key, values)| (*key, values.to_vec())).collect();
        check(&lists, &last, &BTreeSet::new()).iter().map(|finding| finding.breach).collect()
    }

    use Step::{Append, Read};

    #[test]
    fn what_one_order_explains_is_well() {
        let lists = vec![
            txn(&[Append(1, 10), Read(1)], &[&[10]]),
            txn(&[Read(1), Append(2, 20)], &[&[10]]),
            txn(&[Append(1, 11), Read(2)], &[&[20]]),
        ];
        assert_eq!(judged(lists, &[(1, &[10, 11]), (2, &[20])]), []);
    }

    #[test]
    fn write_skew_is_a_cycle() {
        // Each read the other's list before the other's append.
        let lists = vec![txn(&[Read(1), Append(2, 20)], &[&[]]), txn(&[Read(2), Append(1, 10)], &[&[]])];
        assert_eq!(judged(lists, &[(1, &[10]), (2, &[20])]), [Breach::Cycle]);
    }

    #[test]
    fn writes_in_opposite_orders_are_a_cycle() {
        let lists = vec![txn(&[Append(1, 10), Append(2, 21)], &[]), txn(&[Append(1, 11), Append(2, 20)], &[])];
        assert_eq!(judged(lists, &[(1, &[10, 11]), (2, &[20, 21])]), [Breach::Cycle]);
    }

    #[test]
    fn a_forked_past_is_seen_in_reads() {
        let lists = vec![txn(&[Append(1, 10)], &[]), txn(&[Append(1, 11)], &[]), txn(&[Read(1)], &[&[11]])];
        assert_eq!(judged(lists, &[(1, &[10, 11])]), [Breach::IncompatibleRead]);
    }

    #[test]
    fn values_from_nowhere_refused_or_twice() {
        let refused = Op { outcome: Outcome::Refused(String::new()), ..txn(&[Append(1, 10)], &[]) };
        assert_eq!(judged(vec![refused], &[(1, &[10])]), [Breach::Phantom]);
        assert_eq!(judged(vec![], &[(1, &[10])]), [Breach::Phantom]);
        assert_eq!(judged(vec![txn(&[Append(1, 10)], &[])], &[(1, &[10, 10])]), [Breach::Phantom]);
        let unknown = Op { outcome: Outcome::Unknown(String::new()), ..txn(&[Append(1, 10)], &[]) };
        assert_eq!(judged(vec![unknown], &[(1, &[10])]), []);
    }

    #[test]
    fn what_was_lost_is_named_and_may_be_forgiven() {
        let lists =
            vec![txn(&[Append(1, 10)], &[]), txn(&[Read(1), Append(1, 11)], &[&[10]]), txn(&[Append(1, 12)], &[])];
        let last = BTreeMap::from([(1, vec![12])]);
        let lost = lost(&lists, &last);
        assert_eq!(lost, BTreeSet::from([(1, 10), (1, 11)]));
        assert_eq!(check(&lists, &last, &lost), []);
        assert_ne!(check(&lists, &last, &BTreeSet::new()), []);
    }
}
