//! Values that stand elsewhere: `${VAR}` and `${VAR:-default}` in texts, and secrets in files of their own.

use std::collections::BTreeMap;
use std::path::Path;

use super::Problem;
use super::node::{Entry, Node, Value};
use super::table::{self, Kind, State};

/// No secret is longer, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Fills in a tree as it was read, and adds to `used` the variables it came from. What cannot be filled in is a problem, and
/// stays as it was written.
///
/// A command line stays as it is: there `${...}` is the shell's. So does anything but `${NAME}` and `${NAME:-default}`, and
/// `$${` is `${`. A variable that is not set may be given as a file: `NAME_FILE`.
pub(super) fn fill(tree: &mut Node, variables: &BTreeMap<String, String>, used: &mut Vec<String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut value_of = |name: &str, default: Option<&str>| {
        if !used.iter().any(|known| known == name) {
            used.push(name.to_owned());
        }
        value_of(name, default, variables)
    };
    node(tree, "", &mut value_of, &mut problems);
    problems
}

/// The text for a name and its default.
type ValueOf<'a> = dyn FnMut(&str, Option<&str>) -> Result<String, String> + 'a;

/// The text of a file that holds one secret, without the end of its last line.
pub(super) fn secret_of(path: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot read {path}: {error}; the agent's user needs read access");
    let found = std::fs::metadata(Path::new(path)).map_err(failed)?;
    if !found.is_file() || found.len() > LONGEST {
        return Err(format!("{path} must be a file of {LONGEST} bytes or less that holds the secret and nothing else"));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn node(tree: &mut Node, path: &str, value_of: &mut ValueOf<'_>, problems: &mut Vec<Problem>) {
    let at = tree.at.clone();
    match &mut tree.value {
        Value::Text(text) if text.contains("${") => match filled(text, value_of) {
            Ok(filled) => {
                tree.raw = Some(filled.clone());
                *text = filled;
            }
            Err(what) => problems.push(Problem::at(&at, path, what)),
        },
        Value::List(items) => items.iter_mut().for_each(|item| node(item, path, value_of, problems)),
        Value::Map(entries) => {
            for entry in entries.iter_mut() {
                let below = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                if !stays(&below) {
                    node(&mut entry.value, &below, value_of, problems);
                }
            }
            secrets(entries, path, problems);
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => {}
    }
}

/// Commands, and what means nothing.
fn stays(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    let row = table::find(path);
    name == "command"
        || name.ends_with("_command")
        || row.is_some_and(|key| key.kind == Kind::Command || key.state == State::Meaningless)
}

/// `password_file` becomes `password`, and so on for each key that is a secret.
fn secrets(entries: &mut Vec<Entry>, path: &str, problems: &mut Vec<Problem>) {
    let named = |entry: &Entry| {
        let key = entry.key.strip_suffix("_file")?;
        let row = table::find(&format!("{path}.{key}")).filter(|row| row.kind == Kind::Secret)?;
        Some(row.name())
    };
    for index in (0..entries.len()).rev() {
        let Some(entry) = entries.get(index) else { continue };
        let (Some(name), false) = (named(entry), entry.value.is_null()) else { continue };
        let mut entry = entries.remove(index);
        let mut fail = |what: String| problems.push(Problem::at(&entry.value.at, &format!("{path}.{name}_file"), what));
        if entries.iter().any(|other| other.key == name && !other.value.is_null()) {
            fail(format!("{name} is set too; keep one of them"));
            continue;
        }
        let Some(file) = entry.value.written() else {
            fail("must be the path of a file".to_owned());
            continue;
        };
        match secret_of(&file) {
            Ok(text) => {
                entry.key = name.to_owned();
                entry.value = Node::text(&text, entry.value.at.clone());
                entries.insert(index, entry);
            }
            Err(what) => fail(what),
        }
    }
}

fn filled(text: &str, value_of: &mut ValueOf<'_>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let parts = after.split_once('}').map(|(inner, tail)| (inner.split_once(":-"), inner, tail));
        let Some((split, inner, tail)) = parts.filter(|(split, inner, _)| is_name(split.map_or(*inner, |(n, _)| n)))
        else {
            out.push_str("${");
            rest = after;
            continue;
        };
        let (name, default) = split.map_or((inner, None), |(name, default)| (name, Some(default)));
        out.push_str(&value_of(name, default)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn value_of(name: &str, default: Option<&str>, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let set = |name: &str| variables.get(name).filter(|text| !text.is_empty());
    match (set(name), set(&format!("{name}_FILE")), default) {
        (Some(text), _, _) => Ok(text.clone()),
        (None, Some(file), _) => secret_of(file).map_err(|what| format!("{name}_FILE: {what}")),
        (None, None, Some(default)) => Ok(default.to_owned()),
        (None, None, None) => Err(format!(
            "the variable {name} is not set; set it or {name}_FILE for the agent, give a default as ${{{name}:-default}}, \
             or write $${{{name}}} where this very text is meant"
        )),
    }
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn result(yaml: &str, variables: &[(&str, &str)]) -> (serde_json::Value, Vec<String>) {
        let mut tree = parse("f.yml", yaml.as_bytes()).unwrap();
        let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let problems = fill(&mut tree, &variables, &mut Vec::new());
        (tree.to_json(), problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn variables_are_filled_in_except_where_a_shell_does_it() {
        let cases = [
            ("name: ${N}", r#"{"name":"pg1"}"#),
            ("name: 'a-${N}-${M:-x y}-${E:-}'", r#"{"name":"a-pg1-x y-"}"#),
            ("name: '$N $${N} ${not a name} ${ ${N'", r#"{"name":"$N ${N} ${not a name} ${ ${N"}"#),
            ("etcd3: {hosts: ['${N}:2379', b]}", r#"{"etcd3":{"hosts":["pg1:2379","b"]}}"#),
            (
                "postgresql: {parameters: {archive_command: 'cp %p ${WAL}'}, callbacks: {on_start: 'x ${N}'}}",
                r#"{"postgresql":{"parameters":{"archive_command":"cp %p ${WAL}"},"callbacks":{"on_start":"x ${N}"}}}"#,
            ),
        ];
        for (yaml, want) in cases {
            let (json, problems) = result(yaml, &[("N", "pg1"), ("E", "")]);
            assert_eq!((json.to_string(), problems), (want.to_owned(), vec![]), "{yaml}");
        }
        let (_, problems) = result("a:\n  b: x${NOT_SET}", &[("NOT_SET", "")]);
        assert!(problems[0].starts_with("f.yml:2:6: a.b: the variable NOT_SET is not set"), "{problems:?}");
    }

    #[test]
    fn secrets_come_from_files_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let file = path.display().to_string();
        let yaml = format!("restapi: {{authentication: {{username: u, password_file: {file}}}}}\nname: ${{P}}");
        for secret in ["hunter2", "0123"] {
            std::fs::write(&path, format!("{secret}\n")).unwrap();
            let (json, problems) = result(&yaml, &[("P_FILE", &file)]);
            let want = serde_json::json!({
                "restapi": {"authentication": {"username": "u", "password": secret}}, "name": secret,
            });
            assert_eq!((json, problems), (want, vec![]));
        }
        let (_, both) = result(&yaml.replace("username: u", "password: a"), &[("P", "x")]);
        assert!(both[0].contains("restapi.authentication.password_file: password is set too"), "{both:?}");
        std::fs::remove_file(&path).unwrap();
        let (_, gone) = result(&yaml, &[("P_FILE", &file)]);
        assert_eq!(gone.len(), 2, "{gone:?}");
        assert!(gone.iter().all(|line| line.starts_with("f.yml:") && line.contains("cannot read")), "{gone:?}");
        let (json, _) = result("postgresql: {data_file: x}", &[]);
        assert_eq!(json.to_string(), r#"{"postgresql":{"data_file":"x"}}"#);
    }
}
