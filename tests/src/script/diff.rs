//! What differs between two texts, for people.

/// Lines of `old` that are missing in `new` (`-`) and the other way round (`+`), each with a few lines around it.
#[must_use]
pub fn diff(old: &str, new: &str) -> String {
    const AROUND: usize = 2;
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let marked = align(&old, &new);
    let changed: Vec<usize> = (0..marked.len()).filter(|index| marked[*index].0 != ' ').collect();
    let near = |index: usize| changed.iter().any(|at| at.abs_diff(index) <= AROUND);
    let mut text = String::new();
    let mut left_out = false;
    for (index, (mark, line)) in marked.iter().enumerate() {
        if near(index) {
            text.push_str(&format!("{mark} {line}\n"));
        } else if !left_out {
            text.push_str("  ...\n");
        }
        left_out = !near(index);
    }
    text
}

/// All lines of both, in an order that shares as many as possible (longest common subsequence).
fn align<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let mut shared = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            let skip = shared[i + 1][j].max(shared[i][j + 1]);
            shared[i][j] = if old[i] == new[j] { shared[i + 1][j + 1] + 1 } else { skip };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || i < old.len() && shared[i + 1][j] >= shared[i][j + 1] {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_are_shown_among_their_neighbours() {
        let old = "1\n2\n3\n4\n5\n6\n";
        let new = "1\n2\n3\n4\nfive\n6\n7\n";
        assert_eq!(diff(old, new), "  ...\n  3\n  4\n- 5\n+ five\n  6\n+ 7\n");
        assert_eq!(diff(old, old), "  ...\n");
    }
}
