//! YAML as PyYAML writes it: block style, sorted keys, width 200 (cli.md 3.5).

use serde_json::{Map, Value};

use crate::config::{is_plain_text, python_float};

const WIDTH: usize = 200;

/// A document in block style, with a line end.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(entries) if !entries.is_empty() => mapping(&mut text, entries, 0),
        Value::Array(items) if !items.is_empty() => list(&mut text, items, 0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            let one = scalar(value, Place { flow: false, indent: 0, column: 0, fold: true });
            text.push_str(&one);
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// One line in flow style: `{a: 1, b: true}`.
#[must_use]
pub(crate) fn to_flow(value: &Value) -> String {
    match value {
        Value::Object(entries) => {
            let parts: Vec<_> =
                sorted(entries).map(|(key, value)| format!("{}: {}", flow_key(key), to_flow(value))).collect();
            format!("{{{}}}", parts.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(to_flow).collect::<Vec<_>>().join(", ")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            scalar(value, Place { flow: true, indent: 2, column: 0, fold: false })
        }
    }
}

/// Where a scalar stands.
#[derive(Clone, Copy)]
struct Place {
    flow: bool,
    /// Indentation of its second line.
    indent: usize,
    /// Column at which it begins.
    column: usize,
    /// Whether long text may be folded (not in keys).
    fold: bool,
}

fn sorted(entries: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    let mut pairs: Vec<_> = entries.iter().collect();
    pairs.sort_by_key(|(key, _)| *key);
    pairs.into_iter()
}

fn flow_key(key: &str) -> String {
    scalar(&Value::String(key.to_owned()), Place { flow: true, indent: 0, column: 0, fold: false })
}

/// Entries at `indent`; the cursor is already there for the first.
fn mapping(text: &mut String, entries: &Map<String, Value>, indent: usize) {
    for (index, (key, value)) in sorted(entries).enumerate() {
        if index > 0 {
            text.push_str(&" ".repeat(indent));
        }
        let key = scalar(&Value::String(key.clone()), Place { flow: false, indent, column: indent, fold: false });
        text.push_str(&format!("{key}:"));
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let deeper = indent.saturating_add(2);
                text.push_str(&format!("\n{}", " ".repeat(deeper)));
                mapping(text, inner, deeper);
            }
            Value::Array(items) if !items.is_empty() => {
                // The items of a list stand at the level of their key.
                text.push_str(&format!("\n{}", " ".repeat(indent)));
                list(text, items, indent);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                let column = indent.saturating_add(key.chars().count()).saturating_add(2);
                let place = Place { flow: false, indent: indent.saturating_add(2), column, fold: true };
                text.push_str(&format!(" {}\n", scalar(value, place)));
            }
        }
    }
}

fn list(text: &mut String, items: &[Value], indent: usize) {
    let deeper = indent.saturating_add(2);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => mapping(text, inner, deeper),
            Value::Array(inner) if !inner.is_empty() => list(text, inner, deeper),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                let place = Place { flow: false, indent: deeper, column: deeper, fold: true };
                text.push_str(&format!("{}\n", scalar(item, place)));
            }
        }
    }
}

fn scalar(value: &Value, place: Place) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => yaml_float(float),
            None => number.to_string(),
        },
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        Value::String(text) => string(text, place),
    }
}

/// `1e-05` is `1.0e-05`, or a reader would take it for text.
fn yaml_float(number: f64) -> String {
    let text = python_float(number);
    match text.split_once('e') {
        Some((mantissa, exponent)) if !mantissa.contains('.') => format!("{mantissa}.0e{exponent}"),
        Some(_) | None => text,
    }
}

/// What styles a text bears (PyYAML's `analyze_scalar`).
struct Styles {
    plain: bool,
    single: bool,
}

fn styles(text: &str, flow: bool) -> Styles {
    let chars: Vec<char> = text.chars().collect();
    let is_break = |c: char| matches!(c, '\n' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let is_blank = |c: Option<&char>| c.is_none_or(|c| is_break(*c) || matches!(c, ' ' | '\t' | '\0' | '\r'));
    let (mut block_indicator, mut flow_indicator) = (text.starts_with("---") || text.starts_with("..."), false);
    flow_indicator |= block_indicator;
    let (mut breaks, mut special, mut space_break, mut break_space) = (false, false, false, false);
    for (index, c) in chars.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|index| chars.get(index));
        let after_blank = is_blank(chars.get(index.saturating_add(1)));
        if index == 0 {
            if "#,[]{}&*!|>'\"%@`".contains(*c) || (*c == '-' && after_blank) {
                (block_indicator, flow_indicator) = (true, true);
            }
            if matches!(c, '?' | ':') {
                flow_indicator = true;
                block_indicator |= after_blank;
            }
        } else {
            flow_indicator |= ",?[]{}:".contains(*c);
            block_indicator |= *c == ':' && after_blank;
            if *c == '#' && is_blank(before) {
                (block_indicator, flow_indicator) = (true, true);
            }
        }
        breaks |= is_break(*c);
        let printable = matches!(*c, '\n' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10fffe}');
        special |= !printable || *c == '\u{feff}';
        if *c == ' ' {
            break_space |= before.is_some_and(|c| is_break(*c));
        } else if is_break(*c) {
            space_break |= before == Some(&' ');
        }
    }
    let edge = |c: Option<&char>| c.is_some_and(|c| *c == ' ' || is_break(*c));
    let bare_edges = !edge(chars.first()) && !edge(chars.last());
    let single = !(break_space || space_break || special);
    let indicator = if flow { flow_indicator } else { block_indicator };
    Styles { plain: single && bare_edges && !breaks && !indicator && !text.is_empty() && is_plain_text(text), single }
}

fn string(text: &str, place: Place) -> String {
    let styles = styles(text, place.flow);
    if styles.plain {
        return folded(text, place, "");
    }
    if styles.single && (place.fold || place.flow || !text.contains('\n')) {
        return single_quoted(text, place);
    }
    double_quoted(text)
}

fn single_quoted(text: &str, place: Place) -> String {
    let doubled = text.replace('\'', "''");
    if !doubled.contains('\n') {
        return folded(&doubled, place, "'");
    }
    // A line end is written as an empty line: a single one would be read as a space.
    let mut written = "'".to_owned();
    let mut rest = doubled.as_str();
    while let Some(at) = rest.find('\n') {
        let (line, tail) = rest.split_at(at);
        let next = tail.trim_start_matches('\n');
        let breaks = tail.len().saturating_sub(next.len());
        written.push_str(line);
        written.push_str(&"\n".repeat(breaks.saturating_add(1)));
        written.push_str(&" ".repeat(place.indent));
        rest = next;
    }
    format!("{written}{rest}'")
}

/// Breaks the line at the first single space behind the last column.
fn folded(text: &str, place: Place, quote: &str) -> String {
    let mut written = quote.to_owned();
    let mut column = place.column.saturating_add(quote.len());
    let chars: Vec<char> = text.chars().collect();
    for (index, c) in chars.iter().enumerate() {
        let other = |near: Option<usize>| near.and_then(|near| chars.get(near)).is_some_and(|c| *c != ' ');
        let single = *c == ' ' && other(index.checked_sub(1)) && other(index.checked_add(1));
        if single && place.fold && column > WIDTH {
            written.push('\n');
            written.push_str(&" ".repeat(place.indent));
            column = place.indent;
        } else {
            written.push(*c);
            column = column.saturating_add(1);
        }
    }
    written + quote
}

fn double_quoted(text: &str) -> String {
    let mut written = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\0' => written.push_str("\\0"),
            '\u{7}' => written.push_str("\\a"),
            '\u{8}' => written.push_str("\\b"),
            '\t' => written.push_str("\\t"),
            '\n' => written.push_str("\\n"),
            '\u{b}' => written.push_str("\\v"),
            '\u{c}' => written.push_str("\\f"),
            '\r' => written.push_str("\\r"),
            '\u{1b}' => written.push_str("\\e"),
            '\u{85}' => written.push_str("\\N"),
            '\u{a0}' => written.push_str("\\_"),
            '\u{2028}' => written.push_str("\\L"),
            '\u{2029}' => written.push_str("\\P"),
            ' '..='~' | '\u{a1}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' => written.push(c),
            other => {
                let code = u32::from(other);
                written.push_str(&match code {
                    0..=0xff => format!("\\x{code:02X}"),
                    0x100..=0xffff => format!("\\u{code:04X}"),
                    _ => format!("\\U{code:08X}"),
                });
            }
        }
    }
    written + "\""
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_look_as_pyyaml_writes_them() {
        // Right sides: PyYAML 6.0, safe_dump(default_flow_style=False, allow_unicode=True, width=200).
        let quoted = [
            "on",
            "yes",
            "true",
            "null",
            "~",
            "12",
            "1.5",
            "0640",
            "0x1F",
            "1_000",
            "1:30",
            "12:30:45",
            "2024-01-01",
            ".inf",
            "=",
            "<<",
            "",
            "- x",
            "? x",
            ": x",
            "a: b",
            "a #b",
            "...",
            "---",
            "-",
            "?",
            ":",
            "a:",
            "[x",
            "&a",
            "*",
            "!",
            "|",
            ">",
            "`",
            "{a",
            "%a",
            "@",
            " a",
            "a ",
            "No",
            "2024-01-01 03:04:05",
            "+1",
            ".5",
            ",a",
            "#a",
            "]",
        ];
        for text in quoted {
            assert_eq!(to_yaml(&json!({"k": text})), format!("k: '{text}'\n"));
        }
        let plain = [
            "n",
            "y",
            "1e3",
            "a#b",
            "a,b",
            "it's",
            "a\\b",
            ".",
            "http://a:1/b?c=d",
            "1MB",
            "5s",
            "-x",
            "?x",
            ":x",
            "x...",
            "é",
            "08",
            "0o7",
            "-.5",
            "0x",
            "test ! -f /a/%f && cp %p '/a/%f'",
            "2024-1-1",
        ];
        for text in plain {
            assert_eq!(to_yaml(&json!({"k": text})), format!("k: {text}\n"));
        }
        let other = [
            ("'x", "k: '''x'\n"),
            ("\"", "k: '\"'\n"),
            ("a\tb", "k: \"a\\tb\"\n"),
            ("a\nb", "k: 'a\n\n  b'\n"),
            ("a\n", "k: 'a\n\n  '\n"),
            ("\na", "k: '\n\n  a'\n"),
            ("a \nb", "k: \"a \\nb\"\n"),
            ("a\n b", "k: \"a\\n b\"\n"),
        ];
        for (text, want) in other {
            assert_eq!(to_yaml(&json!({"k": text})), want);
        }
        assert_eq!(
            to_yaml(&json!({"a": 5.0, "b": 1e-5, "c": 1e22, "d": null, "e": true})),
            "a: 5.0\nb: 1.0e-05\nc: 1.0e+22\nd: null\ne: true\n"
        );
    }

    #[test]
    fn structures_look_as_pyyaml_writes_them() {
        let value =
            json!({"z": [], "m": {}, "l": [1, [2, 3], {"b": "x", "a": ["y"]}], "1": "key", "d": {"e": {"f": 1}}});
        let want = "'1': key\nd:\n  e:\n    f: 1\nl:\n- 1\n- - 2\n  - 3\n- a:\n  - y\n  b: x\nm: {}\nz: []\n";
        assert_eq!(to_yaml(&value), want);
        assert_eq!(to_yaml(&json!([])), "[]\n");
        assert_eq!(
            to_flow(&json!({"b": true, "a": 1, "c": ["x", "y,z", "a:b"]})),
            "{a: 1, b: true, c: [x, 'y,z', 'a:b']}"
        );
    }

    #[test]
    fn long_text_is_folded_at_a_space() {
        let text = "word ".repeat(60);
        let text = text.trim_end();
        let yaml = to_yaml(&json!({"k": text}));
        let lines: Vec<_> = yaml.lines().collect();
        assert_eq!(lines.len(), 2, "{yaml}");
        assert!(lines[0].len() > 199 && lines[1].starts_with("  word"), "{yaml}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in r"[ -~\n\t\u{1}\u{85}\u{a0}-\u{2ff}日\u{2028}]{0,30}") {
            let value = json!({"k": text, "l": [text], "m": {"n": text}});
            let yaml = to_yaml(&value);
            let read = crate::config::parse_yaml("written", yaml.as_bytes()).map(|node| node.to_json());
            // A YAML 1.2 scanner does not take these for line ends, as PyYAML does on both sides.
            prop_assume!(!text.contains(['\u{85}', '\u{2028}']));
            prop_assert_eq!(read, Ok(value), "{}", yaml);
        }
    }
}
