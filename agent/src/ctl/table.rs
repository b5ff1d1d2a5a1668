//! The ASCII table of the peer, byte by byte (cli.md 3.1).

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Where the text of a column stands, its heading's too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Draws a table. The title is laid over the first rule from its second character on.
pub(super) fn draw(title: &str, headings: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(column, (heading, _))| {
            let cells =
                rows.iter().filter_map(|row| row.get(column)).flat_map(|cell| cell.lines()).map(UnicodeWidthStr::width);
            cells.max().unwrap_or(0).max(heading.width())
        })
        .collect();
    let rule: String = widths.iter().map(|width| format!("+{}", "-".repeat(width.saturating_add(2)))).collect();
    let rule = format!("{rule}+");
    let aligns: Vec<Align> = headings.iter().map(|(_, align)| *align).collect();
    let mut text = format!("{}\n", titled(&rule, title));
    let header: Vec<String> = headings.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    draw_row(&mut text, &header, &widths, &aligns);
    text.push_str(&format!("{rule}\n"));
    let spread = rows.iter().flatten().any(|cell| cell.contains('\n'));
    for (index, row) in rows.iter().enumerate() {
        draw_row(&mut text, row, &widths, &aligns);
        if spread && index.saturating_add(1) < rows.len() {
            text.push_str(&format!("{rule}\n"));
        }
    }
    text.push_str(&format!("{rule}\n"));
    text
}

/// The rule with the title over it; the rule's first and last character stay.
fn titled(rule: &str, title: &str) -> String {
    let room = rule.len().saturating_sub(2);
    let mut shown = String::new();
    let mut used = 0_usize;
    for c in title.chars() {
        let next = used.saturating_add(c.width().unwrap_or(0));
        if next > room {
            break;
        }
        used = next;
        shown.push(c);
    }
    let rest = rule.get(used.saturating_add(1)..).unwrap_or("+");
    if title.is_empty() { rule.to_owned() } else { format!("+{shown}{rest}") }
}

fn draw_row(text: &mut String, row: &[String], widths: &[usize], aligns: &[Align]) {
    let cells: Vec<Vec<&str>> = row.iter().map(|cell| cell.lines().collect()).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0).max(1);
    for line in 0..height {
        for ((cell, width), align) in cells.iter().zip(widths).zip(aligns) {
            let part = cell.get(line).copied().unwrap_or("");
            let pad = " ".repeat(width.saturating_sub(part.width()));
            match align {
                Align::Left => text.push_str(&format!("| {part}{pad} ")),
                Align::Right => text.push_str(&format!("| {pad}{part} ")),
            }
        }
        text.push_str("|\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_count_two() {
        let rows = [vec!["日本".to_owned(), "1".to_owned()], vec!["x".to_owned(), "22".to_owned()]];
        let want = "\
+ T --+----+
| A    |  B |
+------+----+
| 日本 |  1 |
| x    | 22 |
+------+----+
";
        // The rule under a title has the title's cells taken out of it, the others as they are.
        let drawn = draw(" T ", &[("A", Align::Left), ("B", Align::Right)], &rows);
        assert_eq!(drawn, want.replace("+ T --+----+", "+ T ---+----+"));
        assert_eq!(draw(" 日本日本日本日本 ", &[("A", Align::Left)], &[]).lines().next(), Some("+ 日+"));
    }
}
