//! The configurations of real deployment plans, as they stand but for addresses, paths and sizes: each starts a node, and no
//! secret of it comes to light.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use regent_tests::rig::canary::{self, CANARY};
use regent_tests::rig::process::output;
use regent_tests::rig::programs::Programs;
use regent_tests::rig::{Node, Rig, Trouble};

use crate::support::{PATIENCE, loudly, one_node, turn};

/// Where the compose file has `${...}`.
const VARIABLES: [&str; 4] = [
    "PATRONI_RESTAPI_PASSWORD",
    "POSTGRES_SUPERUSER_PASSWORD",
    "POSTGRES_REPLICATION_PASSWORD",
    "POSTGRES_APP_PASSWORD",
];

/// This machine instead of theirs.
fn moved(text: &str, rig: &Rig, node: &Node, programs: &Programs) -> String {
    let (host, ports, dir) = (node.address().host, node.ports(), node.dir().display().to_string());
    let (rest, postgres) = (format!("{host}:{}", ports.rest), format!("{host}:{}", ports.postgres));
    let etcd = rig.etcd.endpoints().first().map(ToString::to_string).unwrap_or_default();
    let (data, bin) = (format!("{dir}/data"), programs.pg_bin.display().to_string());
    let socket = format!("        unix_socket_directories: '{dir}'\n        max_connections:");
    let moves: &[(&str, &str)] = &[
        ("'0.0.0.0:8008'", &rest),
        ("0.0.0.0:8008", &rest),
        ("10.0.0.11:8008", &rest),
        (" node-1:8008", &format!(" {rest}")),
        ("'*:5432'", &postgres),
        ("0.0.0.0:5432", &postgres),
        ("10.0.0.11:5432", &postgres),
        (" node-1:5432", &format!(" {postgres}")),
        ("10.0.0.21:2379", &etcd),
        ("etcd-1:2379", &etcd),
        ("    - 10.0.0.22:2379\n    - 10.0.0.23:2379\n", ""),
        ("    - etcd-2:2379\n    - etcd-3:2379\n", ""),
        ("data_dir: /var/lib/postgresql/data/pgdata", &format!("data_dir: {data}")),
        ("data_dir: /var/lib/postgresql/data", &format!("bin_dir: {bin}\n  data_dir: {data}")),
        ("data_dir: /var/lib/postgresql/16/main", &format!("data_dir: {data}")),
        ("/usr/lib/postgresql/16/bin", &bin),
        ("/tmp/pgpass", &format!("{dir}/pgpass")),
        ("/scripts/post_init.sh", "true"),
        ("/var/log/patroni", &dir),
        ("'/var/run/postgresql'", &format!("'{dir}'")),
        ("        max_connections:", &socket),
        ("shared_buffers: 8GB", "shared_buffers: 32MB"),
        ("en_US.UTF-8", "C.UTF-8"),
        ("s3cret", CANARY),
    ];
    moves.iter().fold(text.to_owned(), |text, (old, new)| text.replace(old, new))
}

/// The command lines of all processes.
fn processes() -> String {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ") + "\n").collect()
}

#[test]
fn every_seed_starts_a_node_and_keeps_its_secrets() -> Result<(), Trouble> {
    let programs = Programs::find()?;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/tests/fixtures/seeds");
    for (seed, ids) in [
        ("compose.yml", &["S2", "S4", "S7"][..]),
        ("ansible.yml", &["S2", "S4", "S7"][..]),
        ("swarm.yml", &["S3", "S4"][..]),
    ] {
        let _turn = turn();
        let rig = one_node()?;
        let node = &rig.nodes()[0];
        let text = std::fs::read_to_string(fixtures.join(seed))?;
        rig.write(&node.config(), &moved(&text, &rig, node, &programs))?;
        let wanted = VARIABLES.iter().filter(|name| text.contains(&format!("${{{name}}}")));
        // The last one stands in `bootstrap.users`, which has no effect: it is left to the scripts of whoever set it.
        let own = |name| if name == "POSTGRES_APP_PASSWORD" { "theirs" } else { CANARY };
        let secrets: Vec<(&str, &str)> = wanted.map(|name| (*name, own(*name))).collect();
        node.start_with(&secrets)?;
        rig.wait(PATIENCE, &format!("{seed} makes a primary"), |_| match node.get("/primary") {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.body),
            Err(trouble) => Err(trouble.to_string()),
        })?;
        let tool = |program: &Path, words: &[&str]| {
            let mut command = Command::new(program);
            let out = output(command.args(words).envs(secrets.iter().copied()), Duration::from_secs(60))?;
            Ok::<_, Trouble>(String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
        };
        let file = node.config().display().to_string();
        let doctor = tool(&programs.regentctl, &["-c", &file, "doctor"])?;
        for id in ids {
            assert!(doctor.contains(&format!(" {id} ")), "{seed}: the doctor does not name {id}:\n{doctor}");
        }
        assert!(doctor.starts_with("If the primary dies now: "), "{doctor}");
        let contract = node.get("/contract")?;
        assert_eq!(contract.json()["rpo_zero"], false, "{}", contract.body);
        let mut seen = vec![
            ("doctor", doctor),
            ("--print-config", tool(&programs.regent, &["--print-config", &file])?),
            ("--validate-config", tool(&programs.regent, &["--validate-config", &file])?),
            ("the log", node.agent_log()),
            ("the log file", std::fs::read_to_string(node.dir().join("patroni.log")).unwrap_or_default()),
            ("the command lines", processes()),
        ];
        assert!(seen[1].1.contains("'***'") && seen[1].1.contains("scope: "), "{}", seen[1].1);
        for path in ["/patroni", "/cluster", "/config", "/history", "/metrics", "/contract", "/failsafe"] {
            let answer = node.get(path)?;
            seen.push((path, answer.head + &answer.body));
        }
        for (place, text) in seen {
            canary::watch(&format!("{place} of {seed}"), &text);
        }
    }
    Ok(())
}

/// A crash of the agent leaves nothing that its secrets could be read from; the machine would let it.
#[test]
fn the_agent_leaves_no_core_file() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    node.start()?;
    rig.wait_primary(PATIENCE)?;
    let unlimited =
        |pid: i32| output(Command::new("prlimit").args(["--core=unlimited", "--pid", &pid.to_string()]), PATIENCE);
    let mut control = Command::new("sleep").arg("600").current_dir(rig.dir()).spawn()?;
    let pid = control.id().cast_signed();
    let limited = unlimited(pid)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGABRT)
        .map_err(|e| Trouble::new(e.to_string()))?;
    if !control.wait()?.core_dumped() {
        let why = String::from_utf8_lossy(&limited.stderr).into_owned();
        loudly(&format!("this machine makes no core files ({why}): that the agent leaves none shows nothing here"));
    }
    unlimited(node.agent().ok_or_else(|| Trouble::new("no agent"))?)?;
    node.signal_agent(Signal::SIGABRT);
    let ended = node.agent_ended(PATIENCE)?;
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false));
    Ok(())
}
