//! Configuration values before they have a meaning: a tree that remembers where each value was written.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Number};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    source: Arc<str>,
    /// Line and column from 1; `None` where a source has none (a variable, etcd).
    place: Option<(usize, usize)>,
}

impl At {
    /// A place in a text.
    #[must_use]
    pub fn new(source: &str, line: usize, column: usize) -> At {
        At { source: source.into(), place: Some((line, column)) }
    }

    /// A source without lines: the name of a variable, the `config` key.
    #[must_use]
    pub fn whole(source: &str) -> At {
        At { source: source.into(), place: None }
    }

    /// Whether it is a line of a text.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.place.is_some()
    }

    /// Another place of the same text.
    #[must_use]
    pub fn place(&self, line: usize, column: usize) -> At {
        At { source: Arc::clone(&self.source), place: Some((line, column)) }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.source),
            None => f.write_str(&self.source),
        }
    }
}

/// A value and its place. Its `Debug` shows the kind only: any value may be a password.
#[derive(Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// A scalar as it was written: `0123` of a password that a YAML reader takes for a number.
    pub raw: Option<String>,
    /// Where it stands.
    pub at: At,
}

/// What a value is, by YAML 1.1's rules. Dates are text.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// `~`, `null`, nothing.
    Null,
    /// `on`, `off`, `yes`, ...
    Bool(bool),
    /// Decimal, octal, hexadecimal, ...
    Int(i64),
    /// With a decimal point.
    Float(f64),
    /// Everything else that is one value.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file, each key once.
    Map(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Clone, PartialEq)]
pub struct Entry {
    /// The key as text.
    pub key: String,
    /// Where the key stands.
    pub at: At,
    /// Its value.
    pub value: Node,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.kind(), self.at)
    }
}

impl Node {
    /// An empty mapping.
    #[must_use]
    pub fn empty(at: At) -> Node {
        Node { value: Value::Map(Vec::new()), raw: None, at }
    }

    /// A text.
    #[must_use]
    pub fn text(text: &str, at: At) -> Node {
        Node { value: Value::Text(text.to_owned()), raw: Some(text.to_owned()), at }
    }

    /// The same values as a JSON document's, all at one place.
    #[must_use]
    pub fn from_json(json: &serde_json::Value, at: &At) -> Node {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(on) => Value::Bool(*on),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Value::Int(number),
                (None, Some(number)) => Value::Float(number),
                (None, None) => Value::Text(number.to_string()),
            },
            serde_json::Value::String(text) => Value::Text(text.clone()),
            serde_json::Value::Array(items) => {
                Value::List(items.iter().map(|item| Node::from_json(item, at)).collect())
            }
            serde_json::Value::Object(entries) => Value::Map(
                entries
                    .iter()
                    .map(|(key, item)| Entry { key: key.clone(), at: at.clone(), value: Node::from_json(item, at) })
                    .collect(),
            ),
        };
        Node { value, raw: None, at: at.clone() }
    }

    /// The same values as JSON; numbers that JSON does not have become text.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(on) => serde_json::Value::Bool(*on),
            Value::Int(number) => serde_json::Value::Number((*number).into()),
            Value::Float(number) => match Number::from_f64(*number) {
                Some(number) => serde_json::Value::Number(number),
                None => serde_json::Value::String(python_float(*number)),
            },
            Value::Text(text) => serde_json::Value::String(text.clone()),
            Value::List(items) => serde_json::Value::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => {
                let object: Map<_, _> = entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect();
                serde_json::Value::Object(object)
            }
        }
    }

    /// The entries of a mapping; none for anything else.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::List(_) => &[],
        }
    }

    /// The value of a key; `None` when it is absent, null, or this is no mapping.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.value).filter(|node| !node.is_null())
    }

    /// The value at a path of keys.
    #[must_use]
    pub fn path(&self, keys: &[&str]) -> Option<&Node> {
        keys.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Whether this is null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// Whether this is a mapping.
    #[must_use]
    pub fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// The kind of value, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// A scalar as text, as it was written where that is known; `None` for null, lists and mappings.
    ///
    /// For names, paths and passwords, where `0123` is not a number.
    #[must_use]
    pub fn written(&self) -> Option<String> {
        match (&self.value, &self.raw) {
            (Value::Text(text), _) => Some(text.clone()),
            (Value::Bool(_) | Value::Int(_) | Value::Float(_), Some(raw)) => Some(raw.clone()),
            (Value::Bool(_) | Value::Int(_) | Value::Float(_), None) => self.rendered(),
            (Value::Null | Value::List(_) | Value::Map(_), _) => None,
        }
    }

    /// A scalar as its value's text: `0640` is `416`, `off` is `off`. `None` for null, lists and mappings.
    ///
    /// For settings of PostgreSQL and options of programs.
    #[must_use]
    pub fn rendered(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Bool(on) => Some(if *on { "on" } else { "off" }.to_owned()),
            Value::Int(number) => Some(number.to_string()),
            Value::Float(number) => Some(python_float(*number)),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Python's truth: empty things, zero, `false` and null are false, even the text `"false"` is true.
    #[must_use]
    pub fn is_truthy(&self) -> bool {
        match &self.value {
            Value::Null => false,
            Value::Bool(on) => *on,
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::List(items) => !items.is_empty(),
            Value::Map(entries) => !entries.is_empty(),
        }
    }

    /// Puts `newer` over this tree ("patch", config.md 1.1): mappings merge, null removes, a value whose text is the same
    /// stays, anything else replaces.
    pub fn patch(&mut self, newer: &Node) {
        let (Value::Map(entries), Value::Map(changes)) = (&mut self.value, &newer.value) else {
            *self = newer.clone();
            return;
        };
        for change in changes {
            let old = entries.iter().position(|entry| entry.key == change.key);
            match (old, &change.value.value) {
                (Some(index), Value::Null) => {
                    entries.remove(index);
                }
                (None, Value::Null) => {}
                (Some(index), _) => {
                    if let Some(entry) = entries.get_mut(index) {
                        if entry.value.is_map() && change.value.is_map() {
                            entry.value.patch(&change.value);
                        } else if !entry.value.same_text(&change.value) {
                            *entry = change.clone();
                        }
                    }
                }
                (None, _) => entries.push(change.clone()),
            }
        }
    }

    fn same_text(&self, other: &Node) -> bool {
        self.rendered().is_some() && self.rendered() == other.rendered()
    }

    /// Number of values in this tree.
    pub(super) fn size(&self) -> usize {
        let inner: usize = match &self.value {
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.size().saturating_add(1)).sum(),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => 0,
        };
        inner.saturating_add(1)
    }

    /// Levels of lists and mappings in this tree.
    pub(super) fn depth(&self) -> usize {
        let deepest = match &self.value {
            Value::List(items) => items.iter().map(Node::depth).max(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.depth()).max(),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => return 0,
        };
        deepest.unwrap_or(0).saturating_add(1)
    }
}

/// A number as Python's `str` writes it: `5.0`, `1e-05`, `1e+22`.
pub(crate) fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific.as_str(), "0"));
    match exponent.parse::<i32>() {
        Ok(power) if !(-4..16).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", power.abs())
        }
        Ok(_) | Err(_) => {
            let plain = format!("{number}");
            if plain.contains('.') { plain } else { format!("{plain}.0") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn patched(old: &str, new: &str) -> serde_json::Value {
        let mut tree = parse("old", old.as_bytes()).unwrap();
        tree.patch(&parse("new", new.as_bytes()).unwrap());
        tree.to_json()
    }

    #[test]
    fn a_patch_merges_removes_and_replaces() {
        let old = "a: {b: 1, c: [1, 2]}\nttl: 30\nd: x";
        let new = "a: {b: 2, c: [3], e: 5}\nttl: '30'\nd: ~\nnone: ~";
        assert_eq!(patched(old, new), serde_json::json!({"a": {"b": 2, "c": [3], "e": 5}, "ttl": 30}));
    }

    #[test]
    fn floats_look_like_pythons() {
        let cases = [(5.0, "5.0"), (1e-5, "1e-05"), (1e22, "1e+22"), (0.9, "0.9"), (1.1, "1.1"), (1e16, "1e+16")];
        for (number, text) in cases {
            assert_eq!(python_float(number), text);
        }
        assert_eq!(python_float(1e15), "1000000000000000.0");
        assert_eq!(python_float(0.0001), "0.0001");
    }
}
