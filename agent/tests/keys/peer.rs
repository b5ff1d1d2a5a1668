//! `--validate-config` of the peer and ours agree on which files are good, but for what `docs/differences.md` lists.
//!
//! The peer is the program that `PEER_PATRONI` names, or the one that `tests/install-peer.sh` installs below `target`.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{File, findings};

/// What is put into the good file, at a path; `~` takes the key away.
struct Case {
    path: &'static str,
    value: &'static str,
    /// Whether it is still good.
    good: bool,
    /// What ours says instead, and why.
    ours: Option<(bool, &'static str)>,
}

const fn agreed(path: &'static str, value: &'static str, good: bool) -> Case {
    Case { path, value, good, ours: None }
}

const fn differs(path: &'static str, value: &'static str, theirs: bool, why: &'static str) -> Case {
    Case { path, value, good: theirs, ours: Some((!theirs, why)) }
}

const CASES: &[Case] = &[
    agreed("log.level", "INFO", true),
    agreed("log.level", "LOUD", false),
    agreed("log.type", "json", true),
    agreed("log.type", "xml", false),
    agreed("log.mode", "0640", true),
    agreed("log.mode", "01000", false),
    agreed("log.file_num", "many", false),
    agreed("log.file_size", "1000", true),
    agreed("log.static_fields", "[a]", false),
    agreed("scope", "~", false),
    agreed("name", "~", false),
    agreed("restapi.listen", "~", false),
    differs("restapi.listen", "'127.0.0.1'", true, "neither of the two starts without a port"),
    agreed("restapi.authentication", "{username: a}", false),
    agreed("restapi.authentication", "{username: a, password: b}", true),
    agreed("restapi.server_tokens", "minimal", true),
    agreed("restapi.server_tokens", "most", false),
    agreed("restapi.http_extra_headers", "[a]", false),
    agreed("restapi", "5", false),
    agreed("ctl.insecure", "maybe", false),
    agreed("bootstrap.dcs.ttl", "30", true),
    agreed("bootstrap.dcs.ttl", "30s", false),
    agreed("bootstrap.dcs.loop_wait", "0", false),
    agreed("bootstrap.dcs.maximum_lag_on_failover", "1MB", false),
    agreed("bootstrap.dcs.maximum_lag_on_failover", "-5", false),
    agreed("bootstrap.dcs.maximum_lag_on_syncnode", "-1", true),
    agreed("bootstrap.dcs.primary_start_timeout", "soon", false),
    agreed("bootstrap.dcs.synchronous_mode", "quorum", true),
    agreed("bootstrap.dcs.synchronous_mode", "maybe", false),
    agreed("bootstrap.dcs.synchronous_node_count", "0", false),
    agreed("bootstrap.dcs.postgresql.use_pg_rewind", "nonsense", false),
    agreed("bootstrap.dcs.postgresql.pg_hba", "text", false),
    agreed("bootstrap.initdb", "[data-checksums, encoding: UTF8]", true),
    agreed("etcd3", "~", false),
    agreed("postgresql.listen", "~", false),
    agreed("postgresql.data_dir", "~", false),
    agreed("postgresql.connect_address", "~", false),
    agreed("postgresql.authentication.superuser", "{password: a}", false),
    agreed("postgresql.authentication.replication", "~", false),
    agreed("postgresql.pg_hba", "[local all all peer]", true),
    agreed("postgresql.pg_hba", "5", false),
    agreed("postgresql.use_pg_rewind", "true", true),
    agreed("postgresql.use_pg_rewind", "'false'", false),
    agreed("postgresql.bin_dir", "/nonexistent", false),
    agreed("watchdog.mode", "off", true),
    agreed("watchdog.mode", "sometimes", false),
    agreed("watchdog.safety_margin", "-1", true),
    agreed("watchdog.safety_margin", "-2", false),
    agreed("tags", "{nofailover: true, own: 5}", true),
    agreed("tags", "{clonefrom: 7}", false),
    agreed("tags", "{nofailover: false, failover_priority: 1}", false),
    agreed("tags", "{failover_priority: -1}", false),
    differs("unknown_key", "5", true, "a key without effect is named"),
    differs("bootstrap.dcs", "{ttl: 10, loop_wait: 2, retry_timeout: 4}", false, "the floor of ttl is 3 s"),
    differs("bootstrap.dcs.postgresql.parameters", "{max_connections: 10}", true, "at run time both take 100 instead"),
    differs("bootstrap.dcs.postgresql.parameters", "{work_memm: 4MB}", true, "the server has no such parameter"),
    differs("postgresql.parameters", "{work_mem: 5XB}", true, "the server does not take the value"),
    differs("postgresql.connect_address", "'127.0.0.1:5432'", false, "a cluster on one machine is no mistake"),
    differs("bootstrap.initdb", "{encoding: UTF8}", false, "it works in both"),
    differs("etcd3.hosts", "['127.0.0.1:1']", false, "a file is good whether or not etcd answers; doctor asks it"),
    differs("bootstrap.users", "{a: {password: b}}", true, "it has no effect in both"),
    differs("restapi.authentication", "{username: a, password: '${NOT_SET}'}", true, "a variable that is not set"),
];

fn peer() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("PEER_PATRONI") {
        return Ok(named.into());
    }
    let exe = std::env::current_exe().unwrap();
    // target/debug/deps/keys-...
    let target = exe.ancestors().nth(3).unwrap_or(Path::new("target"));
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/install-peer.sh");
    let out = Command::new(install).arg(target).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    let venv = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    if out.status.success() { Ok(Path::new(&venv).join("bin/patroni")) } else { Err(said.into_owned()) }
}

#[test]
fn the_peer_agrees_on_what_is_valid() {
    let peer = match peer() {
        Ok(peer) => peer,
        Err(why) => {
            let skipped = format!("\nSKIPPED the_peer_agrees_on_what_is_valid: the peer cannot be installed: {why}\n");
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            return;
        }
    };
    // It wants etcd to be reachable.
    let etcd = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = format!(
        "scope: demo\nname: pg1\nrestapi: {{listen: '127.0.0.1:8008', connect_address: '10.0.0.11:8008'}}\n\
         etcd3: {{hosts: ['{}']}}\nbootstrap: {{dcs: {{ttl: 30}}}}\n\
         postgresql: {{listen: '127.0.0.1:5432', connect_address: '10.0.0.11:5432', data_dir: /nonexistent/pg, bin_dir: {},\n  \
         authentication: {{superuser: {{username: postgres}}, replication: {{username: r}}}}}}\n",
        etcd.local_addr().unwrap(),
        crate::server::bin_dir().display()
    );
    let mut wrong = Vec::new();
    let base = [agreed("scope", "demo", true)];
    for case in base.iter().chain(CASES) {
        let mut tree = crate::json(&good);
        crate::put(&mut tree, case.path, crate::json(&format!("v: {}", case.value))["v"].clone());
        let text = tree.to_string();
        let file = File::new(&text);
        let path = file.dir.path().join("patroni.yml");
        let said = Command::new(&peer).arg("--validate-config").arg("-i").arg(&path).output().unwrap();
        let theirs = said.status.success();
        let found = findings(&text);
        let ours = found.is_empty();
        let (wanted, why) = case.ours.unwrap_or((case.good, "as the peer"));
        if theirs != case.good || ours != wanted {
            let said = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
            wrong.push(format!(
                "{}: {} — peer good: {theirs}: {}; ours good: {ours} ({why}): {found:?}",
                case.path,
                case.value,
                said.trim()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}
