use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use regent_tests::rig::process::{clean, output};
use regent_tests::rig::writer::rows_on;
use regent_tests::rig::{Journal, Node, Rig, Settings, Trouble, Writer};

/// Nothing here takes so long; a busy machine may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

static FREE: (Mutex<Option<usize>>, Condvar) = (Mutex::new(None), Condvar::new());

/// The right to run one rig. Take it before the rig, so that it is dropped after.
pub(crate) struct Turn;

pub(crate) fn turn() -> Turn {
    let rigs = || std::env::var("REGENT_RIGS").ok().and_then(|n| n.parse().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut free = FREE.0.lock().unwrap_or_else(PoisonError::into_inner);
    free.get_or_insert_with(|| rigs().unwrap_or(cores.min(4)).max(1));
    while *free == Some(0) {
        free = FREE.1.wait(free).unwrap_or_else(PoisonError::into_inner);
    }
    *free = free.map(|n| n - 1);
    Turn
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut free = FREE.0.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.map(|n| n + 1);
        FREE.1.notify_one();
    }
}

/// One agent on one etcd: for what an agent does with its input.
pub(crate) fn one_node() -> Result<Rig, Trouble> {
    Rig::new(Settings { nodes: 1, haproxy: false, ..Settings::default() })
}

/// Says something that the test harness does not swallow.
pub(crate) fn loudly(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** {text}");
}

/// Both check forms of HAProxy lead to this primary, and the third proxy to none but standbys.
pub(crate) fn routed(rig: &Rig, primary: &Node) -> Result<(), Trouble> {
    let haproxy = rig.haproxy()?;
    let ask = "select inet_server_port() || case when pg_is_in_recovery() then ' standby' else ' primary' end";
    let wanted = format!("{} primary", primary.ports().postgres);
    rig.wait(PATIENCE, &format!("HAProxy leads to {}", primary.name()), |_| {
        for (form, proxy) in [("option httpchk", haproxy.by_http()), ("tcp-check", haproxy.by_tcp())] {
            let there = proxy.value(ask, Duration::from_secs(3)).map_err(|e| format!("{form}: {e}"))?;
            if there != wanted {
                return Err(format!("{form} leads to {there}, not to {wanted}"));
            }
        }
        Ok(())
    })
}

/// Two clients that write at once, one through each check form of HAProxy.
pub(crate) struct Clients([Writer; 2]);

impl Clients {
    pub(crate) fn start(rig: &Rig) -> Result<Self, Trouble> {
        let haproxy = rig.haproxy()?;
        Ok(Clients([Writer::start(haproxy.by_http())?, Writer::start(haproxy.by_tcp())?]))
    }

    /// Waits for `count` further acknowledgements of each.
    pub(crate) fn wait_for(&self, count: usize) -> Result<(), Trouble> {
        let Clients([http, tcp]) = self;
        thread::scope(|scope| {
            let tcp = scope.spawn(|| tcp.wait_for(count, PATIENCE));
            http.wait_for(count, PATIENCE).map_err(|e| Trouble::new(format!("option httpchk: {e}")))?;
            let tcp = tcp.join().map_err(|_| Trouble::new("the waiting thread panicked"))?;
            tcp.map_err(|e| Trouble::new(format!("tcp-check: {e}")))
        })
    }

    pub(crate) fn pause(&self, pause: bool) {
        self.0.iter().for_each(|writer| writer.pause(pause));
    }

    /// What each did: by `option httpchk`, by `tcp-check`.
    pub(crate) fn finish(self) -> [Journal; 2] {
        self.0.map(Writer::finish)
    }
}

/// What clients did, for a human.
pub(crate) fn account([http, tcp]: &[Journal; 2]) -> String {
    format!("by httpchk {http}; by tcp-check {tcp}")
}

/// No attempt failed.
pub(crate) fn nothing_failed(node: &Node, journals: &[Journal]) {
    let failures: Vec<_> = journals.iter().flat_map(Journal::failures).collect();
    assert!(failures.is_empty(), "{failures:?}\n{}", node.tails());
}

/// Every acknowledged row is on the primary; on all nodes, once they have caught up.
pub(crate) fn nothing_lost(rig: &Rig, journals: &[Journal]) -> Result<(), Trouble> {
    for journal in journals {
        for node in rig.nodes() {
            rig.wait(PATIENCE, &format!("{} has every acknowledged row", node.name()), |_| {
                match journal.missing_on(node.server()).map_err(|e| e.to_string())?.as_slice() {
                    [] => Ok(()),
                    missing => Err(format!("{} rows are missing: {missing:?}", missing.len())),
                }
            })?;
        }
    }
    Ok(())
}

/// Waits until every standby has replayed what the primary has.
pub(crate) fn caught_up(rig: &Rig, primary: &Node) -> Result<(), Trouble> {
    let all = rows_on(primary.server())?;
    for node in rig.others(primary) {
        rig.wait(PATIENCE, &format!("{} has all {} rows", node.name(), all.len()), |_| {
            let here = rows_on(node.server()).map_err(|e| e.to_string())?;
            if here.is_superset(&all) { Ok(()) } else { Err(format!("it has {}", here.len())) }
        })?;
    }
    Ok(())
}

pub(crate) fn timeline(node: &Node) -> Result<u32, Trouble> {
    let sql = "select timeline_id from pg_control_checkpoint()";
    node.server().value(sql, PATIENCE)?.parse().map_err(|_| Trouble::new("timeline is no number"))
}

pub(crate) fn system_id(node: &Node) -> Result<String, Trouble> {
    node.server().value("select system_identifier from pg_control_system()", PATIENCE)
}

/// Every file below a directory with a hash of its content: to see that nothing was touched.
pub(crate) fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path.clone());
            }
            let mut hasher = DefaultHasher::new();
            std::fs::read(&path).unwrap_or_default().hash(&mut hasher);
            found.insert(path, hasher.finish());
        }
    }
    found
}

/// Runs one of PostgreSQL's programs as the servers' user.
pub(crate) fn postgres_program(rig: &Rig, name: &str, args: impl FnOnce(&mut Command)) -> Result<String, Trouble> {
    let mut command = clean(rig.programs().pg_bin.join(name));
    rig.account().apply(&mut command);
    command.current_dir(rig.dir());
    args(&mut command);
    let out = output(&mut command, PATIENCE)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(text) } else { Err(Trouble::new(format!("{name}: {}\n{text}", out.status))) }
}

/// Makes a data directory that no agent made.
pub(crate) fn foreign_data(rig: &Rig, node: &Node) -> Result<(), Trouble> {
    let pwfile = rig.dir().join("pw");
    rig.write(&pwfile, regent_tests::rig::settings::PASSWORD)?;
    postgres_program(rig, "initdb", |c| {
        c.arg("-D").arg(node.data()).args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "-k", "-N"]);
        c.arg("--pwfile").arg(&pwfile);
    })?;
    Ok(())
}

/// Waits until the agent's log says all of `words`.
pub(crate) fn says(rig: &Rig, node: &Node, words: &[&str]) -> Result<(), Trouble> {
    rig.wait(PATIENCE, &format!("the agent of {} says {words:?}", node.name()), |_| {
        let log = node.agent_log();
        let line = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        if line { Ok(()) } else { Err("no line of its log has all of them".to_owned()) }
    })
}

/// The agent ends with status 1 and one line that says all of `words`.
pub(crate) fn refuses(node: &Node, words: &[&str]) -> Result<(), Trouble> {
    let status = node.agent_ended(PATIENCE)?;
    let log = node.agent_log();
    let said = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    if said && status.code() == Some(1) {
        return Ok(());
    }
    Err(Trouble::new(format!("{status}; wanted: 1, and a line with {words:?}\n{}", node.tails())))
}

/// Changes a node's configuration.
pub(crate) fn reconfigure(rig: &Rig, node: &Node, change: impl FnOnce(String) -> String) -> Result<(), Trouble> {
    let text = std::fs::read_to_string(node.config())?;
    let changed = change(text.clone());
    assert_ne!(text, changed, "the change changes nothing");
    rig.write(&node.config(), &changed)
}

/// Changes the cluster's configuration: keys, with dots between levels, and values.
pub(crate) fn configure(rig: &Rig, changes: &[(&str, serde_json::Value)]) -> Result<(), Trouble> {
    let key = "/service/demo/config";
    let text = rig.etcd.get(key)?.unwrap_or_default();
    let mut config: serde_json::Value = serde_json::from_str(&text).map_err(|e| Trouble::new(e.to_string()))?;
    for (path, value) in changes {
        let place = path.split('.').fold(&mut config, |inside, name| &mut inside[name]);
        *place = value.clone();
    }
    rig.etcd.put(key, &config.to_string())
}

/// A number from the environment: how large a campaign is.
pub(crate) fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
