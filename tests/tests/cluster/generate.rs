//! `regent --generate-config`: from a server that nobody looks after to a cluster, without a restart.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use regent_tests::rig::Trouble;
use regent_tests::rig::process::{clean, output};
use regent_tests::rig::settings::PASSWORD;

use crate::support::{PATIENCE, foreign_data, one_node, postgres_program, system_id, turn};

#[test]
fn a_running_server_is_described_and_taken_over() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    foreign_data(&rig, node)?;
    let (address, data) = (node.address(), node.data());
    let (host, port) = (address.host, node.ports().postgres);
    let conf = data.join("postgresql.conf");
    let own = format!(
        "listen_addresses = '{host}'\nport = {port}\nunix_socket_directories = '{}'\nwork_mem = '7MB'\nmax_connections = 40\n\
         max_worker_processes = 4\nwal_log_hints = on\narchive_command = 'true'\ncluster_name = 'old name'\nfsync = off\n",
        node.dir().display()
    );
    rig.write(&conf, &(std::fs::read_to_string(&conf)? + &own))?;
    postgres_program(&rig, "pg_ctl", |command| {
        command.args(["start", "-w", "-l"]).arg(node.dir().join("before.log")).arg("-D").arg(&data);
    })?;
    let id = system_id(node)?;
    let began = "select pg_postmaster_start_time()::text";
    let started = node.server().value(began, PATIENCE)?;

    let file = rig.dir().join("made").join("patroni.yml");
    let generate = |dsn: &str| {
        let mut command = clean(&rig.programs().regent);
        command.args(["--generate-config", "--dsn", dsn]).arg(&file);
        output(&mut command, Duration::from_secs(30))
    };
    // Not everybody may read a server.
    node.server().rows(&format!("create role nobody login password '{PASSWORD}'"), PATIENCE)?;
    let quoted = PASSWORD.replace('\\', "\\\\");
    let dsn = |user: &str| format!("host={host} port={port} user={user} dbname=postgres password='{quoted}'");
    let refused = generate(&dsn("nobody"))?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("does not have superuser privilege") && !file.exists(), "{said}");

    let made = generate(&dsn("postgres"))?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600, "a password is in it");
    assert!(!generate(&dsn("postgres"))?.status.success(), "a file that is there is not overwritten");
    let text = std::fs::read_to_string(&file)?;
    for line in [
        "scope: old name".to_owned(),
        format!("data_dir: {}", data.display()),
        format!("listen: {host}:{port}"),
        format!("bin_dir: {}", rig.programs().pg_bin.display()),
        "archive_command: 'true'".to_owned(),
        "work_mem: 7MB".to_owned(),
        "max_connections: '40'".to_owned(),
        format!("password: {PASSWORD}"),
    ] {
        assert!(text.lines().any(|found| found.trim() == line), "{line} is not in\n{text}");
    }

    // A person fills in what only a person knows.
    let etcd = rig.etcd.endpoints().first().map(ToString::to_string).unwrap_or_default();
    let rest = node.rest();
    let whole = text
        .replace("scope: old name", "scope: demo")
        .replace("\nname: ", "\nname: n1 # ")
        .replace("hosts: '#FIXME'", &format!("hosts: {etcd}"))
        .replace("0.0.0.0:8008", &rest.to_string())
        .replace("'#FIXME:8008'", &rest.to_string())
        .replace(&format!("'#FIXME:{port}'"), &format!("{host}:{port}"))
        .replace("password: '#FIXME'", &format!("password: '{PASSWORD}'"))
        .replace("username: '#FIXME'", "username: postgres");
    assert!(!whole.lines().skip(1).any(|line| line.contains("#FIXME")), "{whole}");
    rig.write(&node.config(), &whole)?;
    let mut validate = clean(&rig.programs().regent);
    let found = output(validate.args(["--validate-config", "-i"]).arg(node.config()), Duration::from_secs(30))?;
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));

    node.start()?;
    let primary = rig.wait_primary(PATIENCE)?;
    assert_eq!(
        (system_id(primary)?, node.server().value(began, PATIENCE)?),
        (id, started),
        "the same server, not restarted"
    );
    assert_eq!(node.server().value("show work_mem", PATIENCE)?, "7MB");
    Ok(())
}
