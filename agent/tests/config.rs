//! Whole configurations: files, directories, variables, and the dynamic side, as an operator has them.

#![expect(clippy::unwrap_used, reason = "a test whose scene cannot be set has failed")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use regent::config::{Effective, LocalConfig, Problem, Sources, effective};
use serde_json::json;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/seeds").join(name)
}

fn load(path: &Path, variables: &[(&str, &str)]) -> Result<LocalConfig, String> {
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    LocalConfig::load(&Sources::new(Some(path.to_owned()), variables)).map_err(|errors| errors.to_string())
}

/// Loads a text as a file; errors name it `patroni.yml`.
fn load_text(text: &str) -> Result<LocalConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.yml");
    std::fs::write(&path, text).unwrap();
    load(&path, &[]).map_err(|error| error.replace(&format!("{}/", dir.path().display()), ""))
}

fn in_force(local: &LocalConfig) -> Effective {
    let dynamic = local.bootstrap_dynamic().unwrap();
    effective(local, Some(&dynamic)).unwrap()
}

const MINIMAL: &str = "
scope: demo
name: pg1
restapi: {listen: '127.0.0.1:8008'}
etcd3: {host: '127.0.0.1:2379'}
postgresql: {listen: '127.0.0.1:5432', data_dir: /pg/data}
";

#[test]
fn the_compose_seed_means_what_its_author_meant() {
    let unset = load(&fixture("compose.yml"), &[]).unwrap_err();
    assert!(unset.lines().count() >= 1 && unset.contains("is not set; set it or"), "{unset}");
    let variables = [
        ("PATRONI_NAME", "pg-node-2"),
        ("POSTGRES_SUPERUSER_PASSWORD", "s1"),
        ("POSTGRES_REPLICATION_PASSWORD", "s2"),
        ("PATRONI_RESTAPI_PASSWORD", "s3"),
    ];
    let local = load(&fixture("compose.yml"), &variables).unwrap();
    assert_eq!(local.name, "pg-node-2");
    assert_eq!(local.store_path, "/service/bike-fleet-cluster");
    assert_eq!(local.etcd.endpoints, ["http://10.0.0.21:2379", "http://10.0.0.22:2379", "http://10.0.0.23:2379"]);
    let used =
        ["PATRONI_NAME", "PATRONI_RESTAPI_PASSWORD", "POSTGRES_SUPERUSER_PASSWORD", "POSTGRES_REPLICATION_PASSWORD"];
    assert_eq!(local.used_environment, used);
    assert!(local.may_bootstrap);
    assert!(
        local.warnings.iter().any(|line| line.to_string().contains("User creation is not be supported")),
        "{:?}",
        local.warnings
    );

    let all = in_force(&local);
    let pg = &all.postgres;
    assert_eq!((pg.listen_addresses.as_str(), pg.port, pg.local_host.as_str()), ("0.0.0.0", 5432, "localhost"));
    assert_eq!(all.conn_url, "postgres://10.0.0.11:5432/postgres");
    assert_eq!(all.api_url, "http://10.0.0.11:8008/patroni");
    assert_eq!(all.core.ttl, Duration::from_secs(30));
    assert_eq!(all.core.stop_budget, Duration::from_secs(3));
    assert_eq!(pg.superuser.username.as_deref(), Some("postgres"));
    assert_eq!(pg.superuser.password.as_deref(), Some("s1"));
    assert_eq!(pg.initdb_options, ["--encoding=UTF8", "--data-checksums", "--locale=en_US.UTF-8"]);
    assert_eq!(pg.pg_hba.as_ref().map(Vec::len), Some(4));
    assert_eq!(pg.bootstrap_pg_hba.len(), 3);
    let parameter = |name: &str| pg.parameters.get(name).map(String::as_str);
    assert_eq!(parameter("max_connections"), Some("200"));
    assert_eq!(parameter("random_page_cost"), Some("1.1"));
    assert_eq!(parameter("wal_keep_size"), Some("1GB"));
    assert_eq!(parameter("log_filename"), Some("postgresql-%Y-%m-%d_%H%M%S.log"));
    assert_eq!(parameter("unix_socket_directories"), Some("/var/run/postgresql"));
    assert_eq!(serde_json::Value::Object(all.tags.clone()), json!({}));
    let later: Vec<_> = all.warnings.iter().filter(|line| line.what.contains("not supported yet")).collect();
    assert_eq!(later, Vec::<&Problem>::new());
    assert_eq!(all.core.synchronous_mode, regent_core::config::SyncMode::On);
    assert!(all.core.use_pg_rewind);
}

#[test]
fn the_ansible_seed_is_read() {
    let all = in_force(&load(&fixture("ansible.yml"), &[]).unwrap());
    assert_eq!(all.postgres.programs.dir.as_deref(), Some(Path::new("/usr/lib/postgresql/16/bin")));
    assert_eq!(all.postgres.data_dir, Path::new("/var/lib/postgresql/16/main"));
    assert_eq!(all.postgres.config_dir, all.postgres.data_dir);
    let archive = all.postgres.parameters.get("archive_command").map(String::as_str);
    assert_eq!(archive, Some("pgbackrest --stanza=bike-fleet-cluster archive-push %p"));
    assert!(!format!("{all:?}").contains("s3cret"), "secrets stay out of Debug");
}

#[test]
fn the_swarm_seed_is_read_over_its_variables() {
    let variables = [
        ("PATRONI_NAME", "node-2"),
        ("PATRONI_RESTAPI_CONNECT_ADDRESS", "node-2:8008"),
        ("PATRONI_POSTGRESQL_CONNECT_ADDRESS", "node-2:5432"),
        ("PATRONI_HOSTS", "a,b"),
    ];
    let all = in_force(&load(&fixture("swarm.yml"), &variables).unwrap());
    assert_eq!(all.api_url, "http://node-2:8008/patroni");
    assert_eq!(all.conn_url, "postgres://node-2:5432/postgres");
    assert_eq!(all.postgres.listen_addresses, "*");
    assert_eq!(all.postgres.superuser.password.as_deref(), Some("0123"), "digits of a password are text");
    assert_eq!(all.postgres.post_bootstrap.as_deref(), Some("/scripts/post_init.sh"));
    let parameter = |name: &str| all.postgres.parameters.get(name).map(String::as_str);
    assert_eq!(parameter("log_file_mode"), Some("416"));
    assert_eq!(parameter("synchronous_commit"), Some("on"));
    assert_eq!(parameter("archive_mode"), Some("on"));
    assert!(all.core.tags.clonefrom);
}

#[test]
fn the_parameters_of_the_production_seed_are_written_as_they_were_meant() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yml"), MINIMAL).unwrap();
    std::fs::copy(fixture("parameters.yml"), dir.path().join("b.yaml")).unwrap();
    std::fs::write(dir.path().join("c.txt"), "name: other").unwrap();
    let all = in_force(&load(dir.path(), &[]).unwrap());
    let parameter = |name: &str| all.postgres.parameters.get(name).map(String::as_str);
    assert_eq!(parameter("synchronous_standby_names"), Some("\"patroni-2\""));
    assert_eq!(all.core.name.as_str(), "pg1");
}

#[test]
fn a_minimal_file_has_the_contracts_defaults() {
    let local = load_text(MINIMAL).unwrap();
    assert!(!local.may_bootstrap, "no bootstrap section");
    assert_eq!(local.warnings, Vec::<Problem>::new());
    let all = effective(&local, None).unwrap();
    assert_eq!(all.warnings, Vec::<Problem>::new());
    assert_eq!(all.api_url, "http://127.0.0.1:8008/patroni");
    assert_eq!(all.conn_url, "postgres://localhost:5432/postgres");
    assert!(all.postgres.use_slots);
    assert_eq!(all.postgres.pg_ctl_timeout, 60);
    assert_eq!(all.postgres.parameters.get("wal_keep_size").map(String::as_str), Some("128MB"));
    let mut want = regent_core::config::Config::of("pg1".into());
    want.may_bootstrap = false;
    assert_eq!(all.core, want);
}

#[test]
fn dynamic_and_local_are_merged_as_the_contract_says() {
    let postgresql = "data_dir: /pg/data, use_slots: false, pg_hba: [local all all peer],
      parameters: {Work_Mem: 8MB, max_connections: 7}";
    let text = format!("{MINIMAL}ttl: 99\nbootstrap: {{dcs: {{ttl: 20}}}}");
    let local = load_text(&text.replace("data_dir: /pg/data", postgresql)).unwrap();
    let dynamic = json!({
        "ttl": 20, "loop_wait": 2, "retry_timeout": 5, "pause": "on", "maximum_lag_on_failover": "1MB",
        "master_start_timeout": 60, "check_timeline": true, "pg_cluster": "x",
        "postgresql": {
            "listen": "0.0.0.0:1", "data_dir": "/elsewhere", "pg_hba": ["host all all all md5"], "pg_ctl_timeout": 90,
            "recovery_conf": {"restore_command": "cp", "recovery_target_time": "x", "primary_conninfo": "y"},
            "basebackup": [{"max-rate": "100M"}, "verbose", {"pgdata": "/x"}, {"compress": 9}],
            "parameters": {"work_mem": "4MB", "max_connections": 50, "recovery_min_apply_delay": "5min"},
        },
    });
    let all = effective(&local, Some(&dynamic)).unwrap();
    assert_eq!((all.core.ttl, all.core.loop_wait), (Duration::from_secs(20), Duration::from_secs(2)));
    assert!(all.core.pause && all.core.check_timeline && all.postgres.use_slots);
    assert_eq!(all.core.maximum_lag_on_failover, 1_048_576, "a unit makes the value invalid");
    assert_eq!(all.core.primary_start_timeout, Duration::from_secs(60));
    assert_eq!((all.postgres.port, all.postgres.pg_ctl_timeout), (5432, 90));
    assert_eq!(all.postgres.data_dir, Path::new("/pg/data"));
    assert_eq!(all.postgres.pg_hba.as_deref(), Some(["local all all peer".to_owned()].as_slice()));
    assert_eq!(all.postgres.basebackup_options, ["--max-rate=100M", "--verbose"]);
    let parameter = |name: &str| all.postgres.parameters.get(name).map(String::as_str);
    assert_eq!((parameter("work_mem"), parameter("max_connections")), (Some("8MB"), Some("50")));
    let recovery: Vec<_> = all.postgres.recovery_conf.keys().map(String::as_str).collect();
    assert_eq!(recovery, ["recovery_min_apply_delay", "restore_command"]);
    assert!(
        all.warnings.iter().any(|line| line.key == "ttl" && line.to_string().contains("patroni.yml:8:1")),
        "{:?}",
        all.warnings
    );
}

#[test]
fn a_dynamic_document_that_cannot_be_used_is_rejected_whole() {
    let local = load_text(MINIMAL).unwrap();
    for bad in [json!({"ttl": "30s"}), json!({"postgresql": 5}), json!({"postgresql": {"parameters": []}}), json!([])] {
        assert!(effective(&local, Some(&bad)).is_err(), "{bad}");
    }
    let fine = json!({"pause": "maybe", "maximum_lag_on_failover": [], "postgresql": {"use_slots": "nonsense"}});
    assert!(!effective(&local, Some(&fine)).unwrap().core.pause);
}

#[test]
fn a_standby_cluster_is_told_apart() {
    let local = load_text(MINIMAL).unwrap();
    for (dynamic, want) in [
        (json!({}), false),
        (json!({"standby_cluster": {"host": "10.0.0.1"}}), true),
        (json!({"standby_cluster": {"create_replica_methods": ["basebackup"]}}), false),
    ] {
        assert_eq!(effective(&local, Some(&dynamic)).unwrap().core.standby_cluster.is_some(), want, "{dynamic}");
    }
    let local = load_text(&format!("{MINIMAL}bootstrap: {{dcs: {{standby_cluster: {{host: a}}}}}}")).unwrap();
    assert!(local.may_bootstrap);
    let all = json!({"synchronous_mode": true, "check_timeline": true, "standby_cluster": {
        "host": "10.0.0.1, 10.0.0.2", "port": "5433", "primary_slot_name": "dr", "recovery_min_apply_delay": "1h",
        "restore_command": "cp /a/%f %p"}});
    let all = effective(&local, Some(&all)).unwrap();
    let remote = all.core.standby_cluster.unwrap();
    assert_eq!(remote.address().as_deref(), Some("10.0.0.1,10.0.0.2:5433"));
    assert_eq!((remote.slot.as_deref(), remote.min_apply_delay.as_deref()), (Some("dr"), Some("1h")));
    assert_eq!((all.core.synchronous_mode, all.core.check_timeline), (regent_core::config::SyncMode::Off, false), "Z1");
    assert_eq!(all.postgres.recovery_conf["restore_command"], "cp /a/%f %p");
    let only = |dynamic| effective(&local, Some(&dynamic)).unwrap().core.standby_cluster.unwrap().address();
    assert_eq!(only(json!({"standby_cluster": {"port": 5433}})).as_deref(), Some("localhost:5433"), "as libpq has it");
    assert_eq!(only(json!({"standby_cluster": {"restore_command": "cp"}})), None);
    assert_eq!(only(json!({"standby_cluster": {"host": "fd00::1"}})).as_deref(), Some("[fd00::1]:5432"));
}

#[test]
fn the_bootstrapping_leader_writes_adjusted_timings_and_the_rest_as_it_is() {
    let local = load_text(&format!(
        "{MINIMAL}bootstrap:\n  dcs:\n    zeta: 1\n    ttl: 10\n    loop_wait: 0\n    retry_timeout: '30'\n    slots: {{}}\n"
    ))
    .unwrap();
    let json = local.bootstrap_dynamic().unwrap();
    assert_eq!(json.to_string(), r#"{"zeta":1,"ttl":10,"loop_wait":1,"retry_timeout":4,"slots":{}}"#);
    let local = load_text(&format!("{MINIMAL}bootstrap: {{dcs: {{ttl: 30s}}}}")).unwrap();
    let error = local.bootstrap_dynamic().unwrap_err().to_string();
    assert!(error.contains("patroni.yml:7:24: bootstrap.dcs.ttl: "), "{error}");
}

#[test]
fn what_makes_a_start_impossible_is_named_with_its_place() {
    let cases: &[(&str, &[&str])] = &[
        ("a: 1\nb:\n\tc: 2", &["patroni.yml:3:"]),
        ("[]", &["patroni.yml:1:1: invalid config file", "not a mapping"]),
        ("", &["invalid config file"]),
        ("{}", &["Config is empty."]),
        (
            "log: {}",
            &[
                "scope: is not defined; set it in the file or as PATRONI_SCOPE",
                "name: is not defined",
                "restapi.listen: is not defined",
                "postgresql.listen: is not defined",
                "postgresql.data_dir: is not defined",
                "Can not find suitable configuration",
            ],
        ),
        (
            &MINIMAL.replace("'127.0.0.1:8008'", "'127.0.0.1'"),
            &["patroni.yml:4:19: restapi.listen: Invalid \"restapi\" config"],
        ),
        (&MINIMAL.replace("'127.0.0.1:5432'", "'127.0.0.1:x'"), &["patroni.yml:6:22: postgresql.listen: expected"]),
        (&MINIMAL.replace("/pg/data", "[x]"), &["patroni.yml:6:50: postgresql.data_dir: this is a list"]),
        (
            &MINIMAL.replace("etcd3: {host: '127.0.0.1:2379'}", "etcd: {host: a}"),
            &["section \"etcd\" (protocol v2) is not supported"],
        ),
        (&format!("{MINIMAL}log: [x]"), &["patroni.yml:7:6: log: this is a list, but must be a mapping"]),
        (&format!("{MINIMAL}citus: {{group: 0}}"), &["section \"citus\" is not supported"]),
        (
            &MINIMAL.replace("8008'", "8008', authentication: {username: hunter2}"),
            &["restapi.authentication: needs both"],
        ),
        (&format!("{MINIMAL}bootstrap: {{pg_hba: 5}}"), &["bootstrap.pg_hba: this is an integer, but must be a list"]),
    ];
    for (text, parts) in cases {
        let error = load_text(text).expect_err(text);
        for part in *parts {
            assert!(error.contains(part), "{text}\ngave {error}\nnot {part}");
        }
        assert!(!error.contains("hunter2"));
    }
}

#[test]
fn the_whole_configuration_may_stand_in_one_variable() {
    let missing = Path::new("/nonexistent/patroni.yml");
    let local = load(missing, &[("PATRONI_CONFIGURATION", MINIMAL), ("PATRONI_NAME", "other")]).unwrap();
    assert_eq!(local.name, "pg1", "the other variables do not count");
    assert_eq!(local.warnings.len(), 1);
    let error = load(missing, &[]).unwrap_err();
    assert!(error.contains("Config is empty. /nonexistent/patroni.yml does not exist"), "{error}");
    let error = load(missing, &[("PATRONI_CONFIGURATION", "a: [")]).unwrap_err();
    assert!(error.starts_with("PATRONI_CONFIGURATION:1:"), "{error}");
}

#[test]
fn variables_alone_are_enough() {
    let variables = [
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_NAME", "pg1"),
        ("PATRONI_NAMESPACE", "//db//pg/"),
        ("PATRONI_RESTAPI_LISTEN", "0.0.0.0:8008"),
        ("PATRONI_ETCD3_HOSTS", "a:1,b:2"),
        ("PATRONI_POSTGRESQL_LISTEN", "[fd00::1],127.0.0.1:5432"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/pg"),
        ("PATRONI_SUPERUSER_USERNAME", "postgres"),
        ("PATRONI_SUPERUSER_PASSWORD", "s3cret"),
    ];
    let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let local = LocalConfig::load(&Sources::new(None, variables)).unwrap();
    assert_eq!(local.store_path, "/db/pg/demo");
    assert_eq!(local.used_environment.len(), 9);
    let all = effective(&local, None).unwrap();
    assert_eq!(all.postgres.listen_addresses, "fd00::1,127.0.0.1");
    assert_eq!(all.postgres.superuser.password.as_deref(), Some("s3cret"));
    assert!(!format!("{local:?} {all:?}").contains("s3cret"));
}

#[test]
fn a_reload_knows_what_waits_for_a_restart() {
    let old = load_text(MINIMAL).unwrap();
    assert!(old.is_same_as(&load_text(&format!("# a comment\n{MINIMAL}")).unwrap()));
    let new = load_text(&MINIMAL.replace("name: pg1", "name: pg2").replace("2379'", "2380', password: x")).unwrap();
    assert!(!old.is_same_as(&new));
    assert_eq!(old.needs_restart_for(&new), ["name", "etcd3"]);
    let new = load_text(&MINIMAL.replace("2379'", "2379', password: x")).unwrap();
    assert_eq!(old.needs_restart_for(&new), Vec::<&str>::new(), "credentials are taken over at once");
}

#[test]
fn a_guardian_is_given_up_only_in_so_many_words() {
    for (written, guarded, warns) in [
        ("", true, false),
        ("regent:", true, false),
        ("regent: {guardian: on}", true, false),
        ("regent: {guardian: off}", false, false),
        ("regent: {guardian: \"Off\"}", false, false),
        ("regent: {guardian: of}", true, true),
        ("regent: {guardian: []}", true, true),
    ] {
        let local = load_text(&format!("{MINIMAL}{written}\n")).unwrap();
        assert_eq!((local.guardian, !local.warnings.is_empty()), (guarded, warns), "{written}: {:?}", local.warnings);
        assert_eq!(in_force(&local).warnings, Vec::<Problem>::new(), "{written}: a key that is known");
    }
    let with = load_text(MINIMAL).unwrap();
    let without = load_text(&format!("{MINIMAL}regent: {{guardian: off}}\n")).unwrap();
    assert_eq!(with.needs_restart_for(&without), ["regent.guardian"]);
}

#[test]
fn log_rest_and_control_sections_are_read_and_nonsense_in_them_is_survived() {
    let rest = "8008', authentication: {username: u, password: 0123}, cafile: /ca, verify_client: Required";
    let log =
        "log: {level: warn, type: xml, dir: /var/log, file_num: 2, file_size: many, mode: 0640, static_fields: {a: 1}}";
    let local = load_text(&format!("{}{log}\n", MINIMAL.replace("8008'", rest))).unwrap();
    assert_eq!(local.log.level, tracing::level_filters::LevelFilter::WARN);
    assert_eq!((local.log.file_num, local.log.file_size, local.log.mode), (2, 25_000_000, Some(0o640)));
    assert_eq!(local.restapi.verify_client, "required");
    assert_eq!(local.ctl.cacert.as_deref(), Some("/ca"));
    let password = local.ctl.authentication.as_ref().map(|basic| basic.password.expose().to_owned());
    assert_eq!(password.as_deref(), Some("0123"));
    let about = |part: &str| local.warnings.iter().any(|line| line.to_string().contains(part));
    assert!(about("log.type") && about("log.file_size"), "{:?}", local.warnings);
}

#[test]
fn logical_slots_force_feedback_of_standbys() {
    let local = load_text(MINIMAL).unwrap();
    let slot = json!({"x": {"type": "logical", "database": "d", "plugin": "pgoutput"}});
    let off = json!({"hot_standby_feedback": "off", "wal_level": "logical"});
    let feedback = |dynamic: serde_json::Value| {
        let found = effective(&local, Some(&dynamic)).unwrap();
        found.postgres.parameters.get("hot_standby_feedback").cloned()
    };
    let with = |slots: serde_json::Value| json!({"slots": slots, "postgresql": {"parameters": off.clone()}});
    assert_eq!(feedback(with(slot.clone())).as_deref(), Some("on"), "P11");
    assert_eq!(feedback(with(json!({"x": {"type": "physical"}}))).as_deref(), Some("off"));
    let mut following = with(slot);
    following["standby_cluster"] = json!({"host": "h"});
    assert_eq!(feedback(following).as_deref(), Some("off"), "no logical slots there");
}
