//! `show-config` and `edit-config` (cli.md 4.4, 5.7).

use std::fs::OpenOptions;
use std::io::{IsTerminal, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regent_dcs::{Dcs, Write, Written};
use serde_json::{Map, Value};

use super::args::EditConfigArgs;
use super::ask::confirm;
use super::cluster::Cluster;
use super::diff::unified;
use super::yaml_writer::to_yaml;
use super::{CtlError, READ, fail, interruptible, print};
use crate::config::{At, Node, is_plain_text, parse_yaml};

impl<D: Dcs> Cluster<D> {
    /// `show-config`
    pub(super) async fn show_config(&self) -> Result<(), CtlError> {
        let read = self.read().await?;
        match (&read.config, read.view.config.modified()) {
            (Some(config), _) => print(&(to_yaml(config) + "\n")),
            (None, Some(_)) => print("{}\n\n"),
            (None, None) => Ok(()),
        }
    }

    /// `edit-config`
    pub(super) async fn edit_config(&self, asked: &EditConfigArgs) -> Result<(), CtlError> {
        let read = self.read().await?;
        let (Some(before), seen @ Some(_)) = (&read.config, read.view.config.modified()) else {
            return fail(&format!("The config key does not exist in the cluster {}", self.scope));
        };
        let by_hand = asked.set.is_empty() && asked.pg.is_empty() && asked.apply.is_none() && asked.replace.is_none();
        let after = if by_hand { edited(&self.scope, before)? } else { changed(before, asked)? };
        if after == *before {
            return if asked.quiet { Ok(()) } else { print("Not changed\n") };
        }
        if !asked.quiet {
            show(&unified(&to_yaml(before), &to_yaml(&after)))?;
        }
        let from_stdin = [&asked.apply, &asked.replace].into_iter().flatten().any(|file| file == "-");
        if from_stdin && !asked.force {
            return print("Use --force option to apply changes\n");
        }
        if !asked.force && !confirm("Apply these changes?").await? {
            return Ok(());
        }
        match interruptible(self.dcs.write(Write::PutConfig { config: after, seen }, READ)).await?? {
            Written::Done(_) => print("Configuration changed\n"),
            Written::Refused => fail("Config modification aborted due to concurrent changes"),
        }
    }
}

/// `--replace`, then `--apply`, then all `-s`, then all `-p`.
fn changed(before: &Value, asked: &EditConfigArgs) -> Result<Value, CtlError> {
    let mut tree = Node::from_json(before, &At::whole("config"));
    if let Some(file) = &asked.replace {
        tree = Node::empty(At::whole("config"));
        tree.patch(&mapping(file, &content(file)?)?);
    }
    if let Some(file) = &asked.apply {
        tree.patch(&mapping(file, &content(file)?)?);
    }
    let Value::Object(mut document) = tree.to_json() else { return fail("the configuration is not a mapping") };
    let pg = asked.pg.iter().map(|setting| format!("postgresql.parameters.{}", setting.trim_start()));
    for setting in asked.set.iter().cloned().chain(pg) {
        let invalid = || CtlError::Failed(format!("Invalid parameter setting {setting}"));
        let (key, typed) = setting.split_once('=').ok_or_else(invalid)?;
        let key = key.trim();
        let parameter = key.strip_prefix("postgresql.parameters.");
        let path: Vec<&str> = match parameter {
            Some(name) => vec!["postgresql", "parameters", name],
            None => key.split('.').collect(),
        };
        set(&mut document, &path, value(&setting, typed)?);
    }
    Ok(Value::Object(document))
}

fn content(file: &str) -> Result<Vec<u8>, CtlError> {
    let mut bytes = Vec::new();
    let read = if file == "-" {
        std::io::stdin().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut open| open.read_to_end(&mut bytes))
    };
    read.map_err(|error| CtlError::Usage(format!("cannot read {file}: {error}")))?;
    Ok(bytes)
}

fn mapping(source: &str, bytes: &[u8]) -> Result<Node, CtlError> {
    let tree = parse_yaml(source, bytes).map_err(|error| CtlError::Failed(error.to_string()))?;
    if tree.is_map() { Ok(tree) } else { fail(&format!("{source} holds {}, not a mapping", tree.kind())) }
}

/// As YAML 1.1 reads it; a date has no JSON.
fn value(setting: &str, typed: &str) -> Result<Value, CtlError> {
    let read = parse_yaml("value", typed.as_bytes());
    let read =
        read.map_err(|error| CtlError::Failed(format!("Invalid parameter setting {setting}: {error}")))?.to_json();
    match read.as_str() {
        Some(text) if text == typed.trim() && !text.is_empty() && !is_plain_text(text) => {
            fail(&format!("Invalid parameter setting {setting}: this is a date; quote it to set a text"))
        }
        Some(_) | None => Ok(read),
    }
}

/// Sets or, for null, removes the value at a path; a mapping that becomes empty goes too.
fn set(document: &mut Map<String, Value>, path: &[&str], new: Value) {
    let Some((key, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        if new.is_null() {
            document.shift_remove(*key);
        } else {
            document.insert((*key).to_owned(), new);
        }
        return;
    }
    let level = document.entry(*key).or_insert_with(|| Value::Object(Map::new()));
    if !level.is_object() {
        *level = Value::Object(Map::new());
    }
    if let Some(inner) = level.as_object_mut() {
        set(inner, rest, new);
        if inner.is_empty() {
            document.shift_remove(*key);
        }
    }
}

/// What the user's editor makes of it.
fn edited(scope: &str, before: &Value) -> Result<Value, CtlError> {
    let editor = std::env::var("EDITOR").ok().filter(|name| !name.is_empty());
    let found = editor.as_deref().and_then(program).or_else(|| program("editor")).or_else(|| program("vi"));
    let Some(editor) = found else {
        return fail("EDITOR environment variable is not set. editor or vi are not available");
    };
    let file = Scratch::new(scope, &to_yaml(before))?;
    let status = Command::new(editor).arg(&file.0).status()?;
    if !status.success() {
        return fail(&format!("Editor exited with return code {}", status.code().unwrap_or(-1)));
    }
    let text = std::fs::read(&file.0)?;
    Ok(mapping("the edited configuration", &text)?.to_json())
}

/// A file for an editor, for nobody else's eyes, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(scope: &str, text: &str) -> Result<Scratch, CtlError> {
        let scope = scope.replace('/', "_");
        let number = jiff::Timestamp::now().as_nanosecond() % 0xffff_ffff;
        let path = std::env::temp_dir().join(format!("{scope}-config-{number:08x}.yaml"));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let scratch = Scratch(path);
        file.write_all(text.as_bytes())?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is lost with a file that stays.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A program of this name in `PATH`, or at this path.
fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// On a terminal in colours and through a pager.
fn show(diff: &str) -> Result<(), CtlError> {
    if !std::io::stdout().is_terminal() {
        return print(diff);
    }
    let wanted = std::env::var("PAGER").ok();
    let wanted = wanted.as_deref().and_then(|pager| Path::new(pager).file_name()?.to_str());
    let Some(pager) = wanted.and_then(program).or_else(|| program("less")).or_else(|| program("more")) else {
        return fail(
            "No pager could be found. Either set PAGER environment variable with your pager or install either \
             \"less\" or \"more\" in the host.",
        );
    };
    let colour = |line: &str| match line.as_bytes().first() {
        Some(b'+') => format!("\u{1b}[32m{line}\u{1b}[0m\n"),
        Some(b'-') => format!("\u{1b}[31m{line}\u{1b}[0m\n"),
        Some(b'@') => format!("\u{1b}[36m{line}\u{1b}[0m\n"),
        Some(_) | None => format!("{line}\n"),
    };
    let text: String = diff.lines().map(colour).collect();
    let mut command = Command::new(&pager);
    if pager.ends_with("less") {
        command.arg("-FRX");
    }
    let mut running = command.stdin(Stdio::piped()).spawn()?;
    if let Some(mut input) = running.stdin.take() {
        // A pager that was left early reads no more.
        let _ = input.write_all(text.as_bytes());
    }
    running.wait()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(before: &Value, set: &[&str], pg: &[&str]) -> Result<String, CtlError> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let asked = EditConfigArgs { set: words(set), pg: words(pg), ..EditConfigArgs::default() };
        changed(before, &asked).map(|document| document.to_string())
    }

    #[test]
    fn settings_are_yaml_at_dotted_paths() {
        let before = json!({"ttl": 30, "postgresql": {"parameters": {"a": 1}}, "x": {"y": 1}});
        for (set, pg, want) in [
            (&["ttl=20", "x.y=null"][..], &[][..], r#"{"ttl":20,"postgresql":{"parameters":{"a":1}}}"#),
            (&["x.y.z=on"], &[], r#"{"ttl":30,"postgresql":{"parameters":{"a":1}},"x":{"y":{"z":true}}}"#),
            (&[], &["b.c = 0640", "a="], r#"{"ttl":30,"postgresql":{"parameters":{"b.c":416}},"x":{"y":1}}"#),
            (&["x=[1, b]", "ttl=1:30"], &[], r#"{"ttl":90,"postgresql":{"parameters":{"a":1}},"x":[1,"b"]}"#),
            (&["x=\"on\"", "ttl=1e3"], &[], r#"{"ttl":"1e3","postgresql":{"parameters":{"a":1}},"x":"on"}"#),
        ] {
            assert_eq!(after(&before, set, pg).unwrap(), want, "{set:?} {pg:?}");
        }
        for bad in ["novalue", "x=%p", "x={", "x=2024-01-01"] {
            let error = after(&before, &[bad], &[]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("Invalid parameter setting {bad}")), "{error}");
        }
    }

    #[test]
    fn files_patch_or_replace() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yml").display().to_string();
        std::fs::write(&file, "ttl: '30'\nx: ~\nl: [2]\n").unwrap();
        let before = json!({"ttl": 30, "x": 1, "l": [1], "z": 1});
        let apply = EditConfigArgs { apply: Some(file.clone()), ..EditConfigArgs::default() };
        assert_eq!(changed(&before, &apply).unwrap().to_string(), r#"{"ttl":30,"l":[2],"z":1}"#);
        let replace = EditConfigArgs { replace: Some(file), ..EditConfigArgs::default() };
        assert_eq!(changed(&before, &replace).unwrap().to_string(), r#"{"ttl":"30","l":[2]}"#);
        let missing = EditConfigArgs { apply: Some("/nosuch".to_owned()), ..EditConfigArgs::default() };
        assert!(changed(&before, &missing).unwrap_err().to_string().starts_with("cannot read /nosuch: "));
    }
}
