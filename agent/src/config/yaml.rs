//! A YAML 1.1 reader: granit-parser's events, PyYAML's rules, and a place in the source for every value.
//!
//! Existing files were written for a 1.1 reader: `off` is a boolean, `0640` is octal, `1:30` is ninety (config.md 2.1).
//! A reader of YAML 1.2 would silently change what they mean.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::node::{At, Entry, Node, Value};
use super::resolve::{Scalar, resolve};

/// Deeper nesting than this is refused; no configuration comes near it.
const MAX_DEPTH: usize = 64;
/// More values than this, counted after aliases are expanded, are refused (an alias may repeat a whole tree).
const MAX_NODES: usize = 200_000;

/// What is wrong with a text that should be YAML, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {what}")]
pub struct YamlError {
    /// The place.
    pub at: At,
    /// What was found there, and what to do.
    pub what: String,
}

/// Reads one document; `source` names the text in messages (a path, a variable). An empty text is `null`.
///
/// # Errors
/// The first violation of the syntax, with line and column: also a second document, an unknown tag or anchor, a list or
/// mapping as a key, and the tokens `=` and `<<` where PyYAML refuses them. Never panics, whatever the bytes.
pub fn parse(source: &str, bytes: &[u8]) -> Result<Node, YamlError> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            let at = At::new(source, line, 1);
            return Err(YamlError { at, what: "this line is not UTF-8; save the file in UTF-8".to_owned() });
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Reader { source: At::new(source, 1, 1), anchors: HashMap::new(), open: Vec::new(), root: None, nodes: 0 }.read(text)
}

/// A list or mapping that has begun and not ended.
struct Open {
    anchor: usize,
    at: At,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    /// Entries so far, what merge keys brought in, and the key that waits for its value.
    Map {
        own: Vec<Entry>,
        merged: Vec<Entry>,
        key: Option<Key>,
    },
}

enum Key {
    Merge(At),
    Text(String, At),
}

struct Reader {
    source: At,
    anchors: HashMap<usize, Node>,
    open: Vec<Open>,
    root: Option<Node>,
    nodes: usize,
}

impl Reader {
    fn read(mut self, text: &str) -> Result<Node, YamlError> {
        let mut documents = 0_usize;
        for next in Parser::new_from_str(text) {
            let (event, span) = next.map_err(|error| {
                let marker = error.marker();
                YamlError { at: self.source.place(marker.line(), marker.col().saturating_add(1)), what: error.info() }
            })?;
            let at = self.place(&span);
            match event {
                Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
                Event::Comment(..) | Event::Anchor(..) => {}
                Event::DocumentStart(..) => {
                    documents = documents.saturating_add(1);
                    if documents > 1 {
                        return fail(at, "a second document begins here; a configuration is one document");
                    }
                }
                Event::Alias(id) => {
                    let Some(node) = self.anchors.get(&id).cloned() else {
                        return fail(at, "this alias stands inside the very value it names");
                    };
                    let size = node.size();
                    self.finish(node, size)?;
                }
                Event::Scalar(text, style, anchor, tag) => {
                    if tag.is_none() && style == ScalarStyle::Plain && text == "<<" && self.merge_key(&at) {
                        continue;
                    }
                    let tag = tag.map(|tag| tag.core_suffix().map(str::to_owned).ok_or_else(|| tag.original()));
                    let node = scalar(&text, style, tag, at)?;
                    if anchor != 0 {
                        self.anchors.insert(anchor, node.clone());
                    }
                    self.finish(node, 1)?;
                }
                Event::SequenceStart(_, anchor, tag) => {
                    check_tag(tag.as_deref(), "seq", &at)?;
                    self.begin(Open { anchor, at, kind: Kind::List(Vec::new()) })?;
                }
                Event::MappingStart(_, anchor, tag) => {
                    check_tag(tag.as_deref(), "map", &at)?;
                    let kind = Kind::Map { own: Vec::new(), merged: Vec::new(), key: None };
                    self.begin(Open { anchor, at, kind })?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.end()?,
                // The library's enum may grow; what it may add is not a value we know.
                other @ (Event::UnresolvedAlias(_) | _) => {
                    return fail(at, &format!("unexpected YAML element {other:?}"));
                }
            }
        }
        Ok(self.root.unwrap_or(Node { value: Value::Null, raw: None, at: self.source }))
    }

    fn place(&self, span: &Span) -> At {
        self.source.place(span.start.line(), span.start.col().saturating_add(1))
    }

    /// Whether the next value is a key of the innermost mapping.
    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { kind: Kind::Map { key: None, .. }, .. }))
    }

    /// Takes an unquoted `<<` as the key it is, if a key is due.
    fn merge_key(&mut self, at: &At) -> bool {
        match self.open.last_mut().map(|open| &mut open.kind) {
            Some(Kind::Map { key: key @ None, .. }) => {
                *key = Some(Key::Merge(at.clone()));
                true
            }
            Some(Kind::Map { .. } | Kind::List(_)) | None => false,
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), YamlError> {
        if self.wants_key() {
            return fail(open.at, "a list or a mapping cannot be a key; put text with braces or brackets in quotes");
        }
        if self.open.len() >= MAX_DEPTH {
            return fail(open.at, &format!("lists and mappings are nested deeper than {MAX_DEPTH} levels"));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), YamlError> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.kind {
            Kind::List(items) => Value::List(items),
            Kind::Map { own, merged, .. } => Value::Map(join(merged, own)),
        };
        let node = Node { value, raw: None, at: open.at };
        if open.anchor != 0 {
            self.anchors.insert(open.anchor, node.clone());
        }
        self.finish(node, 1)
    }

    /// Puts a complete value where it belongs.
    fn finish(&mut self, node: Node, size: usize) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(size);
        if self.nodes > MAX_NODES {
            return fail(node.at, "too many values (an alias that repeats an alias?)");
        }
        // An alias may bring a tree in whose own depth adds to this one.
        if size > 1 && self.open.len().saturating_add(node.depth()) > MAX_DEPTH {
            return fail(node.at, &format!("lists and mappings are nested deeper than {MAX_DEPTH} levels"));
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(Kind::List(items)) => items.push(node),
            Some(Kind::Map { own, merged, key }) => match key.take() {
                None => *key = Some(as_key(node)?),
                Some(Key::Merge(at)) => merge(merged, node, &at)?,
                Some(Key::Text(key, at)) => put(own, Entry { key, at, value: node }),
            },
        }
        Ok(())
    }
}

/// The value of a key that occurs twice is the last one, at the place of the first: so does Python's dict.
fn put(entries: &mut Vec<Entry>, entry: Entry) {
    match entries.iter_mut().find(|old| old.key == entry.key) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
}

/// Merged entries come first, and the mapping's own ones replace them.
fn join(merged: Vec<Entry>, own: Vec<Entry>) -> Vec<Entry> {
    let mut all = merged;
    for entry in own {
        put(&mut all, entry);
    }
    all
}

/// Takes in what `<<` names. Of several mappings in a list the first wins.
fn merge(merged: &mut Vec<Entry>, node: Node, at: &At) -> Result<(), YamlError> {
    let refused = || fail(at.clone(), "`<<` needs a mapping or a list of mappings; in quotes it is an ordinary key");
    match node.value {
        Value::Map(entries) => {
            for entry in entries {
                put(merged, entry);
            }
            Ok(())
        }
        Value::List(items) => {
            for item in items.into_iter().rev() {
                let Value::Map(entries) = item.value else { return refused() };
                for entry in entries {
                    put(merged, entry);
                }
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => refused(),
    }
}

/// A key as text; Python's JSON writer turns `1:`, `on:` and `~:` into the same.
fn as_key(node: Node) -> Result<Key, YamlError> {
    let text = match node.value {
        Value::Text(text) => text,
        Value::Null => "null".to_owned(),
        Value::Bool(on) => on.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => super::node::python_float(number),
        Value::List(_) | Value::Map(_) => return fail(node.at, "a list or a mapping cannot be a key"),
    };
    Ok(Key::Text(text, node.at))
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<Result<String, String>>, at: At) -> Result<Node, YamlError> {
    let raw = Some(text.to_owned());
    let value = match tag {
        None if style != ScalarStyle::Plain => Value::Text(text.to_owned()),
        None => match resolve(text) {
            Scalar::Null => Value::Null,
            Scalar::Bool(on) => Value::Bool(on),
            Scalar::Int(number) => Value::Int(number),
            Scalar::Float(number) => Value::Float(number),
            Scalar::Text => Value::Text(text.to_owned()),
            Scalar::Merge | Scalar::Default => {
                return fail(at, &format!("`{text}` alone has a special meaning in YAML 1.1; put it in quotes"));
            }
        },
        Some(Ok(kind)) => {
            let wrong = || fail(at.clone(), &format!("this is not a value of the type !!{kind}"));
            match (kind.as_str(), resolve(text)) {
                ("str", _) => Value::Text(text.to_owned()),
                ("null", Scalar::Null) => Value::Null,
                ("bool", Scalar::Bool(on)) => Value::Bool(on),
                ("int", Scalar::Int(number)) => Value::Int(number),
                ("float", Scalar::Float(number)) => Value::Float(number),
                #[expect(clippy::cast_precision_loss, reason = "what !!float asks for")]
                ("float", Scalar::Int(number)) => Value::Float(number as f64),
                ("null" | "bool" | "int" | "float", _) => return wrong(),
                _ => return fail(at, &format!("the tag !!{kind} is not supported here")),
            }
        }
        Some(Err(tag)) if tag == "!" => Value::Text(text.to_owned()),
        Some(Err(tag)) => return fail(at, &format!("unknown tag {tag}; put text that begins with `!` in quotes")),
    };
    Ok(Node { value, raw, at })
}

fn check_tag(tag: Option<&granit_parser::Tag>, want: &str, at: &At) -> Result<(), YamlError> {
    match tag {
        Some(tag) if tag.core_suffix() != Some(want) && tag.original() != "!" => {
            fail(at.clone(), &format!("the tag {} is not supported here", tag.original()))
        }
        Some(_) | None => Ok(()),
    }
}

fn fail<T>(at: At, what: &str) -> Result<T, YamlError> {
    Err(YamlError { at, what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<serde_json::Value, String> {
        parse("f.yml", text.as_bytes()).map(|node| node.to_json()).map_err(|error| error.to_string())
    }

    #[test]
    fn documents_are_read_as_pyyaml_reads_them() {
        let cases = [
            ("", json!(null)),
            ("---\na: 1\n", json!({"a": 1})),
            ("\u{feff}a: on\n", json!({"a": true})),
            ("a: 'on'\nb: \"0640\"\nc: 0640", json!({"a": "on", "b": "0640", "c": 416})),
            ("a: 1\nb: 2\na: 3", json!({"a": 3, "b": 2})),
            ("a: !!str 5\nb: !!int '5'\nc: !!float 1", json!({"a": "5", "b": 5, "c": 1.0})),
            ("a: &x 10\nb: *x", json!({"a": 10, "b": 10})),
            ("d: &d {x: 1, y: 2}\ne:\n  <<: *d\n  y: 3", json!({"d": {"x": 1, "y": 2}, "e": {"x": 1, "y": 3}})),
            (
                "a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc:\n  <<: [*a, *b]",
                json!({"a": {"x": 1}, "b": {"x": 2, "z": 3}, "c": {"x": 1, "z": 3}}),
            ),
            ("'<<': 1\n'=': 2", json!({"<<": 1, "=": 2})),
            ("1: a\non: b\n~: c", json!({"1": "a", "true": "b", "null": "c"})),
            ("a: |\n  x\n  y\nb: >-\n  x\n  y", json!({"a": "x\ny\n", "b": "x y"})),
            (
                "a: 10.0.0.1:5432\nb: http://x:1/y # c\nc: a#b",
                json!({"a": "10.0.0.1:5432", "b": "http://x:1/y", "c": "a#b"}),
            ),
            ("- data-checksums\n- encoding: UTF8", json!(["data-checksums", {"encoding": "UTF8"}])),
            (
                "p: ${VAR}\nd: 2024-01-02\nf: .5\ng: {}\nh: []",
                json!({"p": "${VAR}", "d": "2024-01-02", "f": 0.5, "g": {}, "h": []}),
            ),
            ("a: test ! -f /a/%f && cp %p '/a/%f'", json!({"a": "test ! -f /a/%f && cp %p '/a/%f'"})),
        ];
        for (text, want) in cases {
            assert_eq!(read(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_refused_names_line_and_column() {
        let cases = [
            ("a: 1\nb:\n\tc: 2", "f.yml:3:"),
            ("a: [1, 2", "f.yml:1:"),
            ("scope: {{ cluster }}", "f.yml:1:"),
            ("a: *nothing", "f.yml:1:4"),
            ("a: 1\n---\nb: 2", "f.yml:2:1"),
            ("a: !vault x", "f.yml:1:"),
            ("x: 1\na: =", "f.yml:2:4"),
            ("a: <<", "f.yml:1:4"),
            ("<<: 5", "f.yml:1:"),
            ("? [a]\n: b", "f.yml:1:3"),
            ("a: b: c", "f.yml:1:"),
            ("a: %x", "f.yml:1:4"),
            ("a: @x", "f.yml:1:4"),
            ("a: !!int x", "f.yml:1:"),
            ("a: &a [*a]", "f.yml:1:"),
        ];
        for (text, place) in cases {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(place), "{text:?} gave {error}");
        }
        let error = parse("f.yml", b"a: 1\nb: \xff\n").unwrap_err().to_string();
        assert!(error.starts_with("f.yml:2:1: "), "{error}");
    }

    #[test]
    fn a_value_knows_its_place_and_how_it_was_written() {
        let tree = parse("f.yml", b"a:\n  password: 0123\n").unwrap();
        let node = tree.path(&["a", "password"]).unwrap();
        assert_eq!((node.at.to_string().as_str(), node.written().as_deref()), ("f.yml:2:13", Some("0123")));
        assert!(!format!("{tree:?} {node:?}").contains("0123"));
    }

    #[test]
    fn bombs_are_defused() {
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, of) in ('b'..='i').zip('a'..='h') {
            let aliases = vec![format!("*{of}"); 10].join(", ");
            bomb.push_str(&format!("{name}: &{name} [{aliases}]\n"));
        }
        assert!(read(&bomb).unwrap_err().contains("too many values"));
        assert!(read(&"[".repeat(10_000)).is_err());
        assert!(read(&format!("{}x", "- ".repeat(10_000))).is_err());
        let mut deep = "a0: &a0 [x]\n".to_owned();
        for level in 1..200 {
            deep.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert!(read(&deep).unwrap_err().contains("nested deeper"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse("x", &bytes);
        }

        #[test]
        fn no_yaml_like_text_panics_the_reader(
            text in r#"([a-z0-9_.]{0,3}|[-:?,\[\]{}#&*!|>'"%@`~=<+ \n\t]|: |- |<<: |&a |\*a |!!|0x|--- ?|\.\.\.|\\|é|\u{0}){0,60}"#
        ) {
            if let Ok(node) = parse("x", text.as_bytes()) {
                // Everything that is done with a tree must bear whatever was read.
                let _ = (node.to_json(), node.size(), node.depth(), format!("{node:?}"));
                let mut once = node.clone();
                once.patch(&node);
                let mut twice = once.clone();
                twice.patch(&node);
                prop_assert!(once.to_json() == twice.to_json());
            }
        }

        #[test]
        fn any_text_in_double_quotes_is_that_text(text in r"[ -~\u{a1}-\u{2ff}]{0,40}") {
            let quoted = format!("a: {}", serde_json::Value::String(text.clone()));
            prop_assert_eq!(read(&quoted), Ok(json!({ "a": text })));
        }
    }
}
