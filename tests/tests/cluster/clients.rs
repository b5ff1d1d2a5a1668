//! Programs of the field before a cluster, unchanged: Prometheus and promtool, check_patroni, curl and jq, PgBouncer behind
//! HAProxy, readers of the leader key, keepalived.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use regent_tests::rig::process::{Process, clean, output};
use regent_tests::rig::programs::{Account, client};
use regent_tests::rig::settings::PASSWORD;
use regent_tests::rig::sql::Target;
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer, http, net, ports};
use serde_json::{Value, json};

use crate::peer_tool::patronictl;
use crate::standby_cluster::patch;
use crate::support::{PATIENCE, loudly, reconfigure, turn};

/// Every check of check_patroni, and its status (0 fine, 2 critical) for the primary, its synchronous standby, and the other one.
const CHECKS: &str = "
node_is_primary                                         0 2 2
node_is_leader                                          0 2 2
node_is_leader --is-standby-leader                      2 2 2
node_is_replica                                         2 0 0
node_is_replica --max-lag 1MB                           2 0 0
node_is_replica --is-sync                               2 0 2
node_is_replica --is-sync --sync-type sync              2 0 2
node_is_replica --is-sync --sync-type quorum            2 2 2
node_is_replica --is-async                              2 2 0
node_is_pending_restart                                 0 0 0
node_tl_has_changed --timeline 1                        0 0 0
node_tl_has_changed --timeline 2                        2 2 2
node_patroni_version --patroni-version 4.1.5            0 0 0
node_patroni_version --patroni-version 3.3.0            2 2 2
node_is_alive                                           0 0 0
cluster_node_count -w 3: -c 2: --healthy-warning 3:     0 0 0
cluster_node_count -c 4:                                2 2 2
cluster_has_leader                                      0 0 0
cluster_has_replica -w 2: -c 1: --sync-critical 1:      0 0 0
cluster_has_replica -c 2: --max-lag 1MB                 0 0 0
cluster_has_replica --sync-critical 2:                  2 2 2
cluster_is_in_maintenance                               0 0 0
cluster_has_scheduled_action                            0 0 0
cluster_config_has_changed --hash 0                     2 2 2
";

/// What Prometheus is asked, and its answer: as dashboards and alerts of the field put it.
const QUERIES: &[(&str, &str)] = &[
    ("sum(up)", "3"),
    ("min(up)", "1"),
    ("count(patroni_version == 40105)", "3"),
    ("max by (scope) (patroni_primary)", "1"),
    ("sum by (scope) (patroni_primary)", "1"),
    ("sum(patroni_replica)", "2"),
    ("sum(patroni_sync_standby)", "1"),
    ("sum(patroni_postgres_running)", "3"),
    ("sum(patroni_postgres_streaming)", "2"),
    ("max(patroni_cluster_unlocked)", "0"),
    ("max(patroni_is_paused)", "0"),
    ("count(patroni_postgres_server_version % 10000 >= 0)", "3"),
    ("count(time() - patroni_dcs_last_seen < 30)", "3"),
    ("count(irate(patroni_xlog_location[1m]) >= 0)", "3"),
    ("count by (scope) (patroni_postgres_state == 5)", "3"),
];

/// A lease that a dozen programs beside it do not endanger.
fn calm() -> Settings {
    Settings { ttl: 20, loop_wait: 2, retry_timeout: 5, ..Settings::default() }
}

/// Runs a line of shell and returns status and output.
fn shell(line: &str) -> Result<(Option<i32>, String), Trouble> {
    let out = output(clean("bash").args(["-c", line]), PATIENCE)?;
    Ok((out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)))
}

fn fine(line: &str) -> Result<String, Trouble> {
    match shell(line)? {
        (Some(0), text) => Ok(text),
        (status, text) => Err(Trouble::new(format!("{line}: {status:?}\n{text}"))),
    }
}

/// Starts a client as the servers' user, with its files in the rig's directory.
fn start(rig: &Rig, name: &str, args: &[&str]) -> Result<Process, Trouble> {
    let mut command = clean(client(name)?);
    command.current_dir(rig.dir()).args(args);
    Process::start(name, rig.account(), &rig.dir().join(format!("{name}.log")), &mut command)
}

/// check_patroni, installed beside the peer.
fn check_patroni() -> Result<PathBuf, Trouble> {
    let tool = patronictl().map_err(|why| Trouble::new(format!("check_patroni cannot be installed: {why}")))?;
    Ok(tool.with_file_name("check_patroni"))
}

fn url(node: &Node) -> String {
    format!("http://{}", node.rest())
}

/// What a check says of a node.
fn check(tool: &Path, node: &Node, words: &str) -> Result<(Option<i32>, String), Trouble> {
    shell(&format!("{} -e {} {words}", tool.display(), url(node)))
}

fn checked(tool: &Path, node: &Node, words: &str, wanted: i32) -> Result<(), Trouble> {
    match check(tool, node, words)? {
        (status, _) if status == Some(wanted) => Ok(()),
        (status, text) => {
            Err(Trouble::new(format!("check_patroni {words} on {}: {status:?}, not {wanted}\n{text}", node.name())))
        }
    }
}

/// All of [`CHECKS`], each node by a thread of its own.
fn all_checks(tool: &Path, nodes: [&Node; 3]) -> Result<(), Trouble> {
    let rows = || CHECKS.lines().filter(|line| !line.is_empty());
    thread::scope(|scope| {
        let column = |place: usize, node| {
            scope.spawn(move || {
                let wrong = rows().filter_map(|row| {
                    let words: Vec<&str> = row.split_whitespace().collect();
                    let (words, codes) = words.split_at(words.len() - 3);
                    checked(tool, node, &words.join(" "), codes[place].parse().unwrap()).err().map(|e| e.to_string())
                });
                wrong.collect::<Vec<_>>()
            })
        };
        let columns: Vec<_> = nodes.into_iter().enumerate().map(|(place, node)| column(place, node)).collect();
        let wrong: Vec<String> = columns.into_iter().flat_map(|column| column.join().unwrap()).collect();
        if wrong.is_empty() { Ok(()) } else { Err(Trouble::new(wrong.join("\n"))) }
    })
}

/// The primary, its synchronous standby, the other one.
fn cast(rig: &Rig) -> Result<[&Node; 3], Trouble> {
    let leader = rig.wait_whole(PATIENCE)?;
    rig.wait(PATIENCE, "the synchronous standby says so", |rig| {
        let sync = |node: &&Node| node.get("/sync").is_ok_and(|answer| answer.status == 200);
        match rig.others(leader).partition::<Vec<_>, _>(sync) {
            (sync, other) if sync.len() == 1 => Ok([leader, sync[0], other[0]]),
            (sync, _) => Err(format!("{} of them do", sync.len())),
        }
    })
}

/// promtool takes the metrics, but for the names of counters that the peer has given them.
fn linted(node: &Node) -> Result<(), Trouble> {
    let (status, text) =
        shell(&format!("curl -s {}/metrics | {} check metrics", url(node), client("promtool")?.display()))?;
    let named: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let theirs = ["patroni_xlog_location", "patroni_xlog_received_location", "patroni_xlog_replayed_location"];
    let only_total = text.lines().all(|line| line.ends_with("counter metrics should have \"_total\" suffix"));
    if status == Some(3) && only_total && named == BTreeSet::from(theirs) {
        return Ok(());
    }
    Err(Trouble::new(format!("promtool: {status:?}\n{text}")))
}

/// Prometheus answers every query as it is to.
fn watched(rig: &Rig, prometheus: u16) -> Result<(), Trouble> {
    rig.wait(PATIENCE, "Prometheus knows the cluster", |_| {
        for (query, wanted) in QUERIES {
            let line =
                format!("curl -s --get --data-urlencode 'query={query}' http://127.0.0.1:{prometheus}/api/v1/query");
            let text = fine(&line).map_err(|e| e.to_string())?;
            let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
            let found = &answer["data"]["result"][0]["value"][1];
            if found != wanted {
                return Err(format!("{query} is {found}, not {wanted}: {text}"));
            }
        }
        Ok(())
    })
}

/// What the deployment guides run, as they stand there but for the address.
fn one_liners(rig: &Rig, leader: &Node) -> Result<(), Trouble> {
    for node in rig.nodes() {
        let (at, name) = (url(node), node.name());
        fine(&format!("curl -sf {at}/cluster | jq -e .members"))?;
        fine(&format!("curl -sf {at}/patroni | jq -e .state"))?;
        let members = fine(&format!("curl -sf {at}/cluster | jq -c '.members[] | {{name, role, state}}'"))?;
        let wanted = |node: &Node| {
            if node.name() == leader.name() {
                r#""role":"leader","state":"running"}"#
            } else {
                r#""state":"streaming"}"#
            }
        };
        assert!(members.lines().zip(rig.nodes()).all(|(line, node)| line.ends_with(wanted(node))), "{members}");
        let code = fine(&format!("curl -s -o /dev/null -w '%{{http_code}}' {at}/leader"))?;
        assert_eq!(code, if name == leader.name() { "200" } else { "503" }, "{name}");
    }
    Ok(())
}

/// Looks as vip-manager does, at the leader key and at `/leader` of every node with its patience of a second, and notes whom it
/// saw, in turn.
fn readers(rig: &Rig, seen: &Mutex<[Vec<String>; 2]>, stop: &AtomicBool) -> Result<(), Trouble> {
    let note = |place: usize, name: String| {
        let names = &mut seen.lock().unwrap()[place];
        if names.last() != Some(&name) {
            names.push(name);
        }
    };
    while !stop.load(Ordering::Relaxed) {
        note(0, rig.etcd.get("/service/demo/leader")?.unwrap_or_default());
        let leads =
            |node: &&Node| http::get(node.rest(), "/leader", Duration::from_secs(1)).is_ok_and(|a| a.status == 200);
        let names: Vec<&str> = rig.nodes().iter().filter(leads).map(Node::name).collect();
        note(1, names.join(" and "));
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn pgbouncer(rig: &Rig) -> Result<(Process, Target), Trouble> {
    let (port, dir, proxy) = (ports::free()?, rig.dir().display(), rig.haproxy()?.by_http());
    let text = format!(
        "[databases]\npostgres = host={} port={} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {dir}/pgbouncer.users\npool_mode = session\n\
         server_login_retry = 1\nserver_reset_query = DISCARD ALL\npidfile = {dir}/pgbouncer.pid\n",
        proxy.host, proxy.port
    );
    rig.write(&rig.dir().join("pgbouncer.ini"), &text)?;
    rig.write(&rig.dir().join("pgbouncer.users"), &format!("\"postgres\" \"{PASSWORD}\"\n"))?;
    let process = start(rig, "pgbouncer", &["pgbouncer.ini"])?;
    let pool = Target { host: [127, 0, 0, 1].into(), port };
    rig.wait(PATIENCE, "PgBouncer leads to the primary", |_| {
        pool.value("select pg_is_in_recovery()", PATIENCE).map_err(|e| format!("{e}\n{}", process.tail()))
    })?;
    Ok((process, pool))
}

fn prometheus(rig: &Rig) -> Result<(Process, u16), Trouble> {
    let port = ports::free()?;
    let targets: Vec<String> = rig.nodes().iter().map(|node| node.rest().to_string()).collect();
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "patroni", "static_configs": [{"targets": targets}]}],
    });
    rig.write(&rig.dir().join("prometheus.yml"), &config.to_string())?;
    let listen = format!("--web.listen-address=127.0.0.1:{port}");
    let process =
        start(rig, "prometheus", &["--config.file=prometheus.yml", "--storage.tsdb.path=prometheus", &listen])?;
    Ok((process, port))
}

#[test]
fn clients_of_the_field_are_served_through_a_failover() -> Result<(), Trouble> {
    let tool = match check_patroni() {
        Ok(tool) => tool,
        Err(why) => {
            loudly(&format!("SKIPPED clients_of_the_field_are_served_through_a_failover: {why}"));
            return Ok(());
        }
    };
    let _turn = turn();
    let rig = Rig::new(Settings { synchronous: true, ..calm() })?;
    rig.start_all()?;
    let nodes @ [leader, sync, other] = cast(&rig)?;
    let (_prometheus, port) = prometheus(&rig)?;
    let (_pgbouncer, pool) = pgbouncer(&rig)?;
    let writer = Writer::start(pool)?;
    writer.wait_for(20, PATIENCE)?;

    rig.nodes().iter().try_for_each(linted)?;
    one_liners(&rig, leader)?;
    all_checks(&tool, nodes)?;
    watched(&rig, port)?;
    // The hash of the configuration is the same wherever it is asked for.
    let saved = format!("cluster_config_has_changed -s {}", rig.dir().join("hash").display());
    check(&tool, leader, &format!("{saved} --save"))?;
    nodes.iter().try_for_each(|node| checked(&tool, node, &saved, 0))?;
    patch(&rig, &json!({"pause": true, "postgresql": {"parameters": {"max_connections": 61}}}))?;
    rig.wait(PATIENCE, "the checks see pause, change and pending restart", |_| {
        let rows = [(leader, saved.as_str()), (sync, "cluster_is_in_maintenance"), (other, "node_is_pending_restart")];
        rows.into_iter().try_for_each(|(node, words)| checked(&tool, node, words, 2)).map_err(|e| e.to_string())
    })?;
    patch(&rig, &json!({"pause": null, "postgresql": {"parameters": {"max_connections": 60}}}))?;
    rig.wait(PATIENCE, "the pause is over", |_| {
        checked(&tool, leader, "cluster_is_in_maintenance", 0).map_err(|e| e.to_string())
    })?;
    rig.regentctl(&["switchover", "--scheduled", "2040-01-01T10:00+00:00", "--force"])?;
    rig.wait(PATIENCE, "the checks see what is scheduled", |_| {
        checked(&tool, sync, "cluster_has_scheduled_action", 2).map_err(|e| e.to_string())
    })?;
    rig.regentctl(&["flush", "demo", "switchover"])?;
    cast(&rig)?;

    let (seen, stop) = (Mutex::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let readers = scope.spawn(|| readers(&rig, &seen, &stop));
        let failed_over = (|| {
            rig.wait(PATIENCE, "both readers see the leader", |_| match &*seen.lock().unwrap() {
                [keys, checks] if !keys.is_empty() && !checks.is_empty() => Ok(()),
                seen => Err(format!("{seen:?}")),
            })?;
            leader.kill();
            rig.wait(PATIENCE, "somebody else leads", |rig| {
                let now = rig.one_primary()?;
                if now.name() == leader.name() { Err("still the old one".to_owned()) } else { Ok(()) }
            })?;
            // Nobody answers: check_patroni calls that unknown.
            checked(&tool, leader, "node_is_alive", 3)?;
            writer.wait_for(20, PATIENCE)?;
            leader.start()?;
            cast(&rig)
        })();
        stop.store(true, Ordering::Relaxed);
        let read = readers.join().map_err(|_| Trouble::new("a reader panicked"))?;
        failed_over.and(read)
    })?;
    let seen = seen.into_inner().unwrap();
    let [next, ..] = cast(&rig)?;
    for (how, names) in ["the leader key", "/leader"].into_iter().zip(&seen) {
        let names: Vec<&String> = names.iter().filter(|name| !name.is_empty()).collect();
        assert_eq!(names, [leader.name(), next.name()], "{how}");
    }
    checked(&tool, next, "node_tl_has_changed --timeline 1", 2)?;
    checked(&tool, next, "node_tl_has_changed --timeline 2", 0)?;
    watched(&rig, port)?;
    let journal = writer.finish();
    loudly(&format!("through PgBouncer and HAProxy: {journal}; readers saw {seen:?}"));
    assert_eq!(journal.missing_on(next.server())?, Vec::<i64>::new(), "acknowledged rows are lost");
    Ok(())
}

/// The address that keepalived moves.
const VIRTUAL: &str = "10.231.0.200";

fn keepalived(rig: &Rig, node: &Node) -> Result<Process, Trouble> {
    let (name, dir) = (node.name(), node.dir().display());
    let text = format!(
        "global_defs {{\n  router_id {name}\n  script_user root\n}}\n\
         vrrp_script primary {{\n  script \"{curl} -sf -m 1 -o /dev/null {url}/primary\"\n  interval 1\n  timeout 2\n  fall 2\n  rise 1\n}}\n\
         vrrp_instance postgres {{\n  state BACKUP\n  nopreempt\n  interface wire0\n  virtual_router_id 51\n  priority 100\n  advert_int 1\n\
         track_script {{\n    primary\n  }}\n  virtual_ipaddress {{\n    {VIRTUAL}/24\n  }}\n}}\n",
        curl = client("curl")?.display(),
        url = url(node),
    );
    let file = node.dir().join("keepalived.conf");
    std::fs::write(&file, text)?;
    let mut command = clean(client("keepalived")?);
    command.args(["-n", "-l", "-P", "-f"]).arg(&file);
    command.arg("-p").arg(format!("{dir}/keepalived.pid")).arg("-r").arg(format!("{dir}/vrrp.pid"));
    let log = rig.dir().join(format!("keepalived-{name}.log"));
    // It sets addresses: as root, unlike the servers.
    node.host().within(|| Process::start("keepalived", Account::own_user(), &log, &mut command))
}

/// The nodes that have the address.
fn holders(rig: &Rig) -> Result<Vec<&str>, String> {
    let mut names = Vec::new();
    for node in rig.nodes() {
        let shown = node.host().within(|| fine("ip -o -4 addr show dev wire0")).map_err(|e| e.to_string())?;
        if shown.contains(&format!(" {VIRTUAL}/")) {
            names.push(node.name());
        }
    }
    Ok(names)
}

#[test]
fn keepalived_moves_an_address_to_the_primary() -> Result<(), Trouble> {
    client("keepalived")?;
    if !Uid::effective().is_root() {
        loudly("SKIPPED keepalived_moves_an_address_to_the_primary: network namespaces need root");
        return Ok(());
    }
    let _turn = turn();
    // This thread's alone, and that of what it starts.
    if let Err(why) = net::leave() {
        loudly(&format!("SKIPPED keepalived_moves_an_address_to_the_primary: no network namespaces here: {why}"));
        return Ok(());
    }
    let rig = Rig::new(Settings { nodes: 2, haproxy: false, namespaces: true, ..calm() })?;
    for node in rig.nodes() {
        let (host, port) = (node.address().host, node.ports().postgres);
        reconfigure(&rig, node, |text| {
            text.replacen(&format!("listen: {host}:{port}"), &format!("listen: '*:{port}'"), 1)
        })?;
    }
    rig.start_all()?;
    rig.wait_whole(PATIENCE)?;
    let _daemons = rig.nodes().iter().map(|node| keepalived(&rig, node)).collect::<Result<Vec<_>, _>>()?;
    let moved = |what: &str| {
        rig.wait(PATIENCE, &format!("{what}, the address is the primary's"), |rig| {
            let primary = rig.one_primary()?;
            let held = holders(rig)?;
            if held != [primary.name()] {
                return Err(format!("{held:?} have it, {} is primary", primary.name()));
            }
            let there = Target { host: VIRTUAL.parse().unwrap(), port: primary.ports().postgres };
            let found = there.value("select inet_server_addr() || ' ' || pg_is_in_recovery()", Duration::from_secs(3));
            let found = found.map_err(|e| e.to_string())?;
            if found.ends_with(" false") { Ok(primary) } else { Err(found) }
        })
    };
    let first = moved("at first")?;
    let other = rig.others(first).next().ok_or_else(|| Trouble::new("nobody else"))?;
    rig.regentctl(&["switchover", "--candidate", other.name(), "--force"])?;
    assert_eq!(moved("after a switchover")?.name(), other.name());
    rig.wait_whole(PATIENCE)?;
    other.kill();
    let last = rig.wait(PATIENCE, "the other leads again", |rig| {
        let primary = rig.one_primary()?;
        if primary.name() == first.name() { Ok(primary) } else { Err(primary.name().to_owned()) }
    })?;
    assert_eq!(moved("after its primary died")?.name(), last.name());
    loudly("keepalived moved the address twice");
    Ok(())
}
