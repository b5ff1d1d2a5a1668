//! docs/restore.md, step by step, with the same tool and the same configuration.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use regent_tests::rig::process::{clean, output};
use regent_tests::rig::programs::peer;
use regent_tests::rig::settings::{PASSWORD, patroni_yml};
use regent_tests::rig::{Node, Rig, Settings, Trouble};

use crate::callbacks::configured;
use crate::support::{PATIENCE, loudly, reconfigure, says, turn};

/// A backup or a restore of a small cluster takes seconds; a busy machine may take longer.
const LONG: Duration = Duration::from_secs(240);

fn is_installed() -> bool {
    Command::new("pgbackrest").arg("version").output().is_ok_and(|out| out.status.success())
}

/// `pgbackrest` with the configuration of a node.
fn tool(node: &Node) -> String {
    format!("pgbackrest --config={}/pgbackrest.conf --stanza=main", node.dir().display())
}

/// Runs it as the servers' user.
fn pgbackrest(rig: &Rig, node: &Node, words: &[&str]) -> Result<String, Trouble> {
    let mut command = clean("pgbackrest");
    rig.account().apply(&mut command);
    command.arg(format!("--config={}/pgbackrest.conf", node.dir().display())).arg("--stanza=main").args(words);
    command.current_dir(rig.dir()).env("PGPASSWORD", PASSWORD);
    let out = output(&mut command, LONG)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if out.status.success() {
        Ok(text)
    } else {
        Err(Trouble::new(format!("pgbackrest {words:?}: {}\n{text}\n{}", out.status, rig.tails())))
    }
}

/// Section 1 of the document, for every node.
fn prepare(rig: &Rig) -> Result<(), Trouble> {
    for node in rig.nodes() {
        let (dir, mine) = (rig.dir().display(), node.dir().display());
        let text = format!(
            "[global]\nrepo1-path={dir}/repo\nrepo1-retention-full=2\nstart-fast=y\nlog-level-console=warn\nlog-level-file=off\n\
             lock-path={mine}/lock\nspool-path={mine}/spool\n\n\
             [main]\npg1-path={}\npg1-port={}\npg1-socket-path={mine}\npg1-user=postgres\n",
            node.data().display(),
            node.ports().postgres
        );
        rig.write(&node.dir().join("pgbackrest.conf"), &text)?;
        let pgbackrest = tool(node);
        // Here and not in `bootstrap.dcs`: on one machine each node has a file of its own.
        reconfigure(rig, node, |text| {
            let settings = format!("    archive_mode: 'on'\n    archive_command: {pgbackrest} archive-push %p\n");
            text.replace("    shared_buffers: 32MB\n", &format!("    shared_buffers: 32MB\n{settings}"))
        })?;
        configured(
            rig,
            node,
            &format!(
                "  recovery_conf:
    restore_command: {pgbackrest} archive-get %f \"%p\"
  create_replica_methods: [pgbackrest, basebackup]
  pgbackrest:
    command: {pgbackrest} --delta restore
    keep_data: true
    no_params: true
"
            ),
        )?;
    }
    Ok(())
}

fn names(node: &Node) -> Result<Vec<String>, Trouble> {
    let rows = node.server().rows("select name from fruit order by 1", PATIENCE)?;
    Ok(rows.into_iter().flatten().collect())
}

fn run(node: &Node, sql: &str) -> Result<(), Trouble> {
    node.server().rows(sql, PATIENCE).map(|_| ())
}

/// Stops all agents, and loses all data.
fn destroy(rig: &Rig) -> Result<(), Trouble> {
    rig.nodes().iter().for_each(|node| node.signal_agent(Signal::SIGTERM));
    for node in rig.nodes() {
        node.agent_ended(PATIENCE)?;
        fs::rename(node.data(), node.dir().join("data.before"))?;
    }
    Ok(())
}

#[test]
fn pgbackrest_brings_a_cluster_back() -> Result<(), Trouble> {
    if !is_installed() {
        loudly(
            "SKIPPED pgbackrest_brings_a_cluster_back: pgbackrest is not installed; deploy/install-packages.sh installs it",
        );
        return Ok(());
    }
    let _turn = turn();
    let rig = Rig::new(Settings { haproxy: false, ..Settings::default() })?;
    let [n1, n2, n3] = rig.nodes() else { return Err(Trouble::new("three nodes, please")) };

    // 1. Before anything happens.
    prepare(&rig)?;
    n1.start()?;
    rig.wait_primary(PATIENCE)?;
    pgbackrest(&rig, n1, &["stanza-create"])?;
    run(n1, "create table fruit (name text)")?;
    run(n1, "insert into fruit values ('apple')")?;
    pgbackrest(&rig, n1, &["check"])?;
    pgbackrest(&rig, n1, &["--type=full", "backup"])?;
    // New members come from the repository.
    n2.start()?;
    n3.start()?;
    rig.wait_whole(LONG)?;
    for node in [n2, n3] {
        says(&rig, node, &["filling the data directory by pgbackrest"])?;
        assert!(!node.agent_log().contains("pg_basebackup:"), "{}", node.tails());
    }

    // The mistake, after the moment.
    run(n1, "insert into fruit values ('pear')")?;
    std::thread::sleep(Duration::from_secs(1));
    let moment = n1.server().value("select now()", PATIENCE)?;
    std::thread::sleep(Duration::from_secs(1));
    run(n1, "delete from fruit")?;
    run(n1, "select pg_switch_wal()")?;
    let id = crate::support::system_id(n1)?;

    // 2. To the moment before it.
    destroy(&rig)?;
    for key in rig.etcd.keys("/service/demo/")? {
        rig.etcd.delete(&key)?;
    }
    reconfigure(&rig, n2, |text| {
        let pgbackrest = tool(n2);
        text.replace(
            "\nbootstrap:\n",
            &format!(
                "\nbootstrap:
  method: point_in_time
  point_in_time:
    command: {pgbackrest} --type=time \"--target={moment}\" --target-action=promote restore
    keep_existing_recovery_conf: true
    no_params: true
"
            ),
        )
    })?;
    n2.start()?;
    assert_eq!(rig.wait_primary(LONG)?.name(), "n2");
    assert_eq!(names(n2)?, ["apple", "pear"]);
    assert_eq!(crate::support::system_id(n2)?, id);
    assert_eq!(rig.etcd.get("/service/demo/initialize")?.as_deref(), Some(id.as_str()));
    run(n2, "insert into fruit values ('plum')")?;
    n1.start()?;
    n3.start()?;
    assert_eq!(rig.wait_whole(LONG)?.name(), "n2");
    for node in rig.nodes() {
        rig.wait(PATIENCE, "every member has the restored rows", |_| {
            match names(node).map_err(|e| e.to_string())?.as_slice() {
                [apple, pear, plum] if [apple, pear, plum] == ["apple", "pear", "plum"] => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    for node in [n1, n3] {
        says(&rig, node, &["filling the data directory by pgbackrest"])?;
    }
    // Nobody is let in without a password any more.
    let rules = fs::read_to_string(n2.data().join("pg_hba.conf"))?;
    assert!(!rules.contains("trust"), "{rules}");
    pgbackrest(&rig, n2, &["--type=full", "backup"])?;

    // 3. One member's data is lost: not the leader's.
    n3.replace()?;
    rig.wait_whole(LONG)?;

    // 4. All members' data is lost, and etcd is well.
    run(n2, "insert into fruit values ('quince')")?;
    run(n2, "checkpoint")?;
    for node in rig.nodes() {
        fs::remove_dir_all(node.dir().join("data.before"))?;
        reconfigure(&rig, node, |text| text.replace("    keep_data: true\n", "    no_leader: true\n"))?;
    }
    n1.signal_agent(Signal::SIGTERM);
    n1.agent_ended(PATIENCE)?;
    n3.signal_agent(Signal::SIGTERM);
    n3.agent_ended(PATIENCE)?;
    // A primary that stops archives all of its log.
    n2.signal_agent(Signal::SIGTERM);
    n2.agent_ended(PATIENCE)?;
    for node in rig.nodes() {
        fs::rename(node.data(), node.dir().join("data.before"))?;
    }
    n1.start()?;
    assert_eq!(rig.wait_primary(LONG)?.name(), "n1");
    assert_eq!(names(n1)?, ["apple", "pear", "plum", "quince"]);
    n2.start()?;
    n3.start()?;
    rig.wait_whole(LONG)?;
    Ok(())
}

#[test]
fn a_bootstrap_method_that_fails_leaves_its_evidence() -> Result<(), Trouble> {
    let _turn = turn();
    failing_bootstrap(&Rig::new(Settings { haproxy: false, nodes: 1, ..Settings::default() })?)
}

#[test]
fn the_peer_calls_a_bootstrap_method_alike() -> Result<(), Trouble> {
    if let Err(why) = peer() {
        loudly(&format!("SKIPPED the_peer_calls_a_bootstrap_method_alike: {why}"));
        return Ok(());
    }
    let _turn = turn();
    failing_bootstrap(&Rig::new(Settings { haproxy: false, nodes: 1, peer: true, ttl: 20, ..Settings::default() })?)
}

fn failing_bootstrap(rig: &Rig) -> Result<(), Trouble> {
    let [node] = rig.nodes() else { return Err(Trouble::new("one node, please")) };
    let path = crate::callbacks::script(
        rig,
        node.dir().join("restore.sh"),
        "echo \"$@\" > $(dirname $0)/words; for a in \"$@\"; do case $a in --datadir=*) D=${a#*=};; esac; done; \
         mkdir -p $D; touch $D/half; echo no backup >&2; exit 9",
    )?;
    reconfigure(rig, node, |text| {
        text.replace("\nbootstrap:\n", &format!("\nbootstrap:\n  method: own\n  own: {{command: {path}, stanza: x}}\n"))
    })?;
    node.start()?;
    let status = node.agent_ended(PATIENCE)?;
    assert_eq!(status.code(), Some(1), "{}", node.tails());
    assert!(node.agent_log().contains("no backup"), "{}", node.tails());
    let words = fs::read_to_string(node.dir().join("words"))?;
    assert_eq!(words.trim(), format!("--scope=demo --datadir={} --stanza=x", node.data().display()));
    assert!(node.dir().join("data.failed/half").exists(), "{}", node.tails());
    assert_eq!(rig.etcd.get("/service/demo/initialize")?, None);
    // The same configuration, with the cause corrected.
    let pg_bin = &rig.programs().pg_bin;
    let text = patroni_yml(&node.address(), node.dir(), &rig.etcd.endpoints(), pg_bin, rig.settings());
    rig.write(&node.config(), &text)?;
    node.start()?;
    rig.wait_primary(PATIENCE)?;
    Ok(())
}
