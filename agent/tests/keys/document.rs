//! `docs/configuration.md` is the table.

use std::path::Path;

use regent::config::{Change, KEYS, Key, Kind, State};

/// `UPDATE=1 cargo test -p regent --test keys` writes it.
#[test]
fn the_document_of_the_keys_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/configuration.md");
    let wanted = document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    assert!(found == wanted, "docs/configuration.md is not the table; UPDATE=1 rewrites it: {differs:?}");
}

const INTRODUCTION: &str = "# Configuration

<!-- Written by `UPDATE=1 cargo test -p regent --test keys` from `agent/src/config/table.rs`; not by hand. -->

Regent reads Patroni's `patroni.yml` as it is: one file or a directory of them, `PATRONI_*` variables over it, the dynamic
configuration in etcd. Later wins: defaults, dynamic configuration, file, variables.

- `regent --validate-config FILE` names everything that is wrong, with file, line and column; status 1 if it would not start.
  `-i` leaves out whether the ports are free.
- `regent --generate-config --dsn DSN` writes a configuration for a server that runs already.
- `regent --print-config FILE` prints what is in force, each value with the place it comes from; secrets are masked.
- `regent --generate-sample-config` writes a commented sample.
- `${NAME}` and `${NAME:-default}` in a text are filled in from the environment, or from the file that `NAME_FILE` names;
  `$${` is `${`. Commands are left to the shell that runs them.
- Each secret (`password`, `keyfile_password`, `sslpassword`, `auth`) may stand in a file: the same key with `_file`, or the
  same variable with `_FILE`. The file is read again on each reload.
- PostgreSQL's parameters are checked against the installed server (`postgres --describe-config`) before they are written.

When a change takes effect: *reload* is SIGHUP or `POST /reload` for files, at once for the dynamic configuration; *PostgreSQL*
and *agent* need a restart of it; *first start* is read only while the cluster does not exist. Keys below `bootstrap.dcs` are the
dynamic configuration: after the first start they live in etcd, and the file's copy has no effect.
";

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut section = "";
    for key in KEYS {
        let top =
            if key.path.starts_with("bootstrap.dcs") { "bootstrap.dcs" } else { key.path.split('.').next().unwrap() };
        let alone = matches!(key.kind, Kind::Section | Kind::Map) || key.section().is_empty();
        let title =
            if key.section().is_empty() && !matches!(key.kind, Kind::Section | Kind::Map) { "Top level" } else { top };
        if title != section && (alone || !section.starts_with(top)) {
            section = title;
            text.push_str(&format!(
                "\n## {title}\n\n| key | type | unit | default | range | change | meaning |\n|---|---|---|---|---|---|---|\n"
            ));
        }
        text.push_str(&row(key));
    }
    text
}

fn row(key: &Key) -> String {
    let (kind, range) = match key.kind {
        Kind::Text => ("text", String::new()),
        Kind::Secret => ("secret", String::new()),
        Kind::Command => ("command", String::new()),
        Kind::Word => ("boolean word", "on true yes 1, off false no 0".to_owned()),
        Kind::Truth => ("boolean", "true, false".to_owned()),
        Kind::Integer(least, i64::MAX) => ("integer", format!("{least} or more")),
        Kind::Integer(least, most) => ("integer", format!("{least} to {most}")),
        Kind::Choice(words) => ("word", words.join(" ")),
        Kind::List => ("list", String::new()),
        Kind::Listed => ("list or text with commas", String::new()),
        Kind::Options => ("list or mapping", String::new()),
        Kind::Section => ("section", String::new()),
        Kind::Map => ("mapping", String::new()),
    };
    let change = match key.change {
        Change::Reload => "reload",
        Change::Postgres => "PostgreSQL",
        Change::Agent => "agent",
        Change::Bootstrap => "first start",
    };
    let state = match key.state {
        State::InForce => "",
        State::Meaningless => "Ignored: ",
        State::Refused => "**Refused**: ",
    };
    let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
    let Key { path, unit, meaning, .. } = key;
    format!("| `{path}` | {kind} | {unit} | {default} | {range} | {change} | {state}{meaning} |\n")
}
