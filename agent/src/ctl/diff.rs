//! A unified diff of two texts (cli.md 5.7).

/// Lines of context around a change.
const CONTEXT: usize = 3;

/// `None`: only in the new text at `Some`, and the other way round; both: the same line.
type Pair = (Option<usize>, Option<usize>);

/// With three lines of context, and nothing where nothing differs.
pub(super) fn unified(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let pairs = aligned(&old, &new);
    let differs = |pair: &Pair| pair.0.is_none() || pair.1.is_none();
    let near = |index: usize| {
        let from = index.saturating_sub(CONTEXT);
        pairs.iter().skip(from).take(index.saturating_add(CONTEXT + 1).saturating_sub(from)).any(differs)
    };
    let mut text = String::new();
    let mut index = 0;
    while index < pairs.len() {
        if !near(index) {
            index += 1;
            continue;
        }
        let length = (index..pairs.len()).take_while(|index| near(*index)).count();
        let hunk = pairs.get(index..index.saturating_add(length)).unwrap_or_default();
        let before = pairs.get(..index).unwrap_or_default();
        if text.is_empty() {
            text.push_str("--- \n+++ \n");
        }
        let range = |side: fn(&Pair) -> Option<usize>| {
            let (skipped, count) = (before.iter().filter_map(side).count(), hunk.iter().filter_map(side).count());
            match count {
                0 => format!("{skipped},0"),
                1 => format!("{}", skipped.saturating_add(1)),
                count => format!("{},{count}", skipped.saturating_add(1)),
            }
        };
        text.push_str(&format!("@@ -{} +{} @@\n", range(|pair| pair.0), range(|pair| pair.1)));
        for pair in hunk {
            let line = |lines: &[&str], at: usize| lines.get(at).copied().unwrap_or_default().to_owned();
            text.push_str(&match *pair {
                (Some(at), Some(_)) => format!(" {}\n", line(&old, at)),
                (Some(at), None) => format!("-{}\n", line(&old, at)),
                (None, Some(at)) => format!("+{}\n", line(&new, at)),
                (None, None) => String::new(),
            });
        }
        index = index.saturating_add(length);
    }
    text
}

/// Along a longest common subsequence; removed lines before added ones.
fn aligned(old: &[&str], new: &[&str]) -> Vec<Pair> {
    let width = new.len().saturating_add(1);
    let mut longest = vec![0_usize; width.saturating_mul(old.len().saturating_add(1))];
    let at = |i: usize, j: usize| i.saturating_mul(width).saturating_add(j);
    let get = |longest: &[usize], i: usize, j: usize| longest.get(at(i, j)).copied().unwrap_or(0);
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            let best = if a == b {
                get(&longest, i + 1, j + 1).saturating_add(1)
            } else {
                get(&longest, i + 1, j).max(get(&longest, i, j + 1))
            };
            if let Some(cell) = longest.get_mut(at(i, j)) {
                *cell = best;
            }
        }
    }
    let (mut pairs, mut i, mut j) = (Vec::new(), 0, 0);
    loop {
        match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) if a == b => {
                pairs.push((Some(i), Some(j)));
                (i, j) = (i + 1, j + 1);
            }
            (Some(_), b) if b.is_none() || get(&longest, i + 1, j) >= get(&longest, i, j + 1) => {
                pairs.push((Some(i), None));
                i += 1;
            }
            (_, Some(_)) => {
                pairs.push((None, Some(j)));
                j += 1;
            }
            (_, None) => return pairs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_looks_like_the_peers() {
        let old = "a: 1\nb: 2\npostgresql:\n  parameters:\n    x: 1\n  use_pg_rewind: true\n  use_slots: true\nretry_timeout: 5\nttl: 20\n";
        let new = old.replace("ttl: 20", "ttl: 21");
        let want = "--- \n+++ \n@@ -6,4 +6,4 @@\n   use_pg_rewind: true\n   use_slots: true\n retry_timeout: 5\n-ttl: 20\n+ttl: 21\n";
        assert_eq!(unified(old, &new), want);
        assert_eq!(unified(old, old), "");
        assert_eq!(unified("a\n", "a\nb\n"), "--- \n+++ \n@@ -1 +1,2 @@\n a\n+b\n");
        assert_eq!(unified("{}\n", ""), "--- \n+++ \n@@ -1 +0,0 @@\n-{}\n");
        let far: String = (0..20).map(|n| format!("{n}\n")).collect();
        let both = far.replace("0\n1\n", "1\n").replace("19\n", "x\n");
        assert_eq!(unified(&far, &both).matches("@@ -").count(), 2);
    }
}
