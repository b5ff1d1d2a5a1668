//! The user's commands: callbacks, hooks, methods that fill a data directory (config.md 3.5, 3.7).

use regent_core::callbacks::Event;
use regent_pgctl::settings::{BootstrapMethod, Command, ReplicaMethod, Scripts};

use super::known::texts;
use super::node::{Node, Value};
use super::section::{Report, Section};

/// Reads them from the merged `postgresql` section, from `standby_cluster` and from `bootstrap`.
pub(super) fn read(pg: &Section<'_>, standby: &Section<'_>, bootstrap: &Section<'_>, report: &mut Report) -> Scripts {
    let callbacks = pg.child("callbacks", report);
    let mut called = Vec::new();
    for event in Event::ALL {
        called.extend(callbacks.text(event.word(), report).map(|line| (event, line)));
    }
    let listed = pg.get("create_replica_methods").or_else(|| pg.get("create_replica_method"));
    let mut methods = |listed: Option<&Node>| {
        let mut methods = Vec::new();
        for name in listed.map(texts).unwrap_or_default() {
            methods.push(match name.as_str() {
                "basebackup" => ReplicaMethod::Basebackup,
                _ => ReplicaMethod::Command(replica_method(pg, &name, report)),
            });
        }
        if methods.is_empty() { vec![ReplicaMethod::Basebackup] } else { methods }
    };
    let (replica, of_remote) = (methods(listed), methods(standby.get("create_replica_methods")));
    Scripts {
        callbacks: called.into_iter().collect(),
        pre_promote: pg.text("pre_promote", report),
        before_stop: pg.text("before_stop", report),
        replica,
        of_remote,
        bootstrap: bootstrap_method(bootstrap, report),
    }
}

/// Keys that are the agent's; the last two are passed on with the rest of what a command is told.
const OWN: [&str; 4] = ["command", "no_params", "keep_data", "no_leader"];

/// The section of a method is called like it, and its command unless it says otherwise.
fn replica_method(pg: &Section<'_>, name: &str, report: &mut Report) -> Command {
    let section = pg.child(name, report);
    let no_params = section.truthy("no_params");
    Command {
        line: section.text("command", report).unwrap_or_else(|| name.to_owned()),
        no_params,
        keep_data: section.truthy("keep_data"),
        no_leader: section.truthy("no_leader"),
        arguments: arguments(&section, if no_params { &OWN } else { &OWN[..2] }),
        name: name.to_owned(),
    }
}

fn bootstrap_method(bootstrap: &Section<'_>, report: &mut Report) -> Option<BootstrapMethod> {
    let name = bootstrap.text("method", report).filter(|name| name != "initdb")?;
    let section = bootstrap.child(&name, report);
    let Some(line) = section.text("command", report) else {
        if let Some(method) = bootstrap.get("method") {
            let what = format!("bootstrap.{name} has no command: a new cluster is made by initdb");
            report.warn(&method.at, "bootstrap.method", what);
        }
        return None;
    };
    let recovery_conf = section.child("recovery_conf", report).node().map(|node| {
        let settings = node.entries().iter();
        settings.filter_map(|entry| Some((entry.key.to_ascii_lowercase(), entry.value.rendered()?))).collect()
    });
    let reserved = ["command", "no_params", "keep_existing_recovery_conf", "recovery_conf", "scope", "datadir"];
    Some(BootstrapMethod {
        keep_existing_recovery_conf: section.truthy("keep_existing_recovery_conf"),
        recovery_conf,
        command: Command {
            no_params: section.truthy("no_params"),
            arguments: arguments(&section, &reserved),
            line,
            name,
            ..Command::default()
        },
    })
}

/// The other keys of a section, as its command gets them.
fn arguments(section: &Section<'_>, reserved: &[&str]) -> Vec<String> {
    let entries = section.node().map(Node::entries).unwrap_or_default().iter();
    let others = entries.filter(|entry| !reserved.contains(&entry.key.as_str()));
    others.filter_map(|entry| Some(format!("--{}={}", entry.key, argument(&entry.value)?))).collect()
}

/// A value as the peer writes it: `True`, `False`, `None`. A list or mapping cannot be meant.
fn argument(node: &Node) -> Option<String> {
    match &node.value {
        Value::Bool(on) => Some(if *on { "True" } else { "False" }.to_owned()),
        Value::Null => Some("None".to_owned()),
        Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => node.rendered(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn read_from(text: &str) -> (Scripts, Report) {
        let tree = parse("f.yml", text.as_bytes()).unwrap();
        let mut report = Report::default();
        let section = |key| Section::of(tree.get(key), key);
        (read(&section("postgresql"), &section("standby_cluster"), &section("bootstrap"), &mut report), report)
    }

    #[test]
    fn methods_as_the_field_writes_them() {
        let (scripts, report) = read_from(
            "{postgresql: {create_replica_methods: [wal_g, pgbackrest, own, basebackup],
               wal_g: {command: /usr/bin/wal-g.sh, threshold_megabytes: 10240, no_leader: 1},
               pgbackrest: {command: '/usr/bin/pgbackrest --stanza=main --delta restore', keep_data: True, no_params: True}},
             bootstrap: {method: restore, restore: {command: r.sh, no_params: off, pool: x,
               recovery_conf: {Recovery_Target_Time: 'now', recovery_target_action: promote, recovery_target_inclusive: off}}}}",
        );
        assert!(report.warnings.is_empty() && report.problems.is_empty());
        let [ReplicaMethod::Command(wal_g), ReplicaMethod::Command(backrest), ReplicaMethod::Command(own), last] =
            scripts.replica.as_slice()
        else {
            panic!("{:?}", scripts.replica)
        };
        assert_eq!(last, &ReplicaMethod::Basebackup);
        assert_eq!(wal_g.arguments, ["--threshold_megabytes=10240", "--no_leader=1"]);
        assert!(wal_g.no_leader && !wal_g.no_params && !wal_g.keep_data);
        assert_eq!(backrest.line, "/usr/bin/pgbackrest --stanza=main --delta restore");
        assert!(backrest.keep_data && backrest.no_params && backrest.arguments.is_empty());
        assert_eq!((own.line.as_str(), own.name.as_str()), ("own", "own"), "a method is called like its command");
        let method = scripts.bootstrap.unwrap();
        assert_eq!(
            (method.command.line.as_str(), method.command.arguments.as_slice()),
            ("r.sh", &["--pool=x".to_owned()][..])
        );
        let recovery = method.recovery_conf.unwrap();
        assert_eq!(recovery.get("recovery_target_inclusive").map(String::as_str), Some("off"));
        assert_eq!(recovery.get("recovery_target_time").map(String::as_str), Some("now"));
    }

    #[test]
    fn the_remote_of_a_standby_cluster_is_copied_by_methods_of_its_own() {
        let (scripts, _) = read_from(
            "{postgresql: {create_replica_methods: [basebackup], wal_g: {command: x}}, standby_cluster: {create_replica_methods: [wal_g]}}",
        );
        assert_eq!(scripts.replica, [ReplicaMethod::Basebackup]);
        assert!(
            matches!(&scripts.of_remote[..], [ReplicaMethod::Command(method)] if method.line == "x"),
            "{scripts:?}"
        );
    }

    #[test]
    fn without_a_command_a_new_cluster_is_made_by_initdb_and_copies_by_pg_basebackup() {
        for method in ["initdb", "missing"] {
            let (scripts, report) = read_from(&format!("{{bootstrap: {{method: {method}}}}}"));
            assert_eq!(
                (scripts.bootstrap, scripts.replica, scripts.of_remote),
                (None, vec![ReplicaMethod::Basebackup], vec![ReplicaMethod::Basebackup])
            );
            assert_eq!(report.warnings.len(), usize::from(method == "missing"));
        }
    }
}
