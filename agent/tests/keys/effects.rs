//! Every key of the table shows its effect, or that it has none.

use regent::config::{KEYS, Key, Kind, State};

use crate::{findings, load, with};

/// What a setting amounts to, secrets included.
fn meaning(text: &str) -> String {
    let (local, all) = load(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let secrets = [
        local.restapi.authentication.as_ref().map(|basic| basic.password.expose().to_owned()),
        local.ctl.authentication.as_ref().map(|basic| basic.password.expose().to_owned()),
        local.restapi.keyfile_password.as_ref().map(|secret| secret.expose().to_owned()),
        local.ctl.keyfile_password.as_ref().map(|secret| secret.expose().to_owned()),
        local.etcd.password.as_ref().map(|secret| secret.expose().to_owned()),
        all.postgres.superuser.password.clone(),
    ];
    let parts = (&local.scope, &local.name, &local.store_path, &local.log, &local.ctl, &local.etcd, &local.data_dir);
    let more =
        (&local.watchdog, local.guardian, local.may_bootstrap, &all.core, &all.postgres, &all.watchdog, &all.rest);
    let last =
        (&all.tags, all.noloadbalance, &all.conn_url, &all.api_url, &all.proxy_url, &all.postgres.superuser.options);
    format!("{parts:?} {more:?} {last:?} {secrets:?}")
}

/// A value that is not the default, and what must be there for it to count.
fn example(key: &Key) -> (String, Vec<(&'static str, &'static str)>) {
    let own = |value: &str| (value.to_owned(), Vec::new());
    match key.path {
        "restapi.authentication.username" => ("u".to_owned(), vec![("restapi.authentication.password", "p")]),
        "restapi.authentication.password" => ("p".to_owned(), vec![("restapi.authentication.username", "u")]),
        "ctl.authentication.username" => ("u".to_owned(), vec![("ctl.authentication.password", "p")]),
        "ctl.authentication.password" => ("p".to_owned(), vec![("ctl.authentication.username", "u")]),
        "restapi.auth" => own("'u:p'"),
        "restapi.listen" | "restapi.connect_address" => own("'10.0.0.1:8009'"),
        "etcd3.hosts" => own("[a, 'b:1']"),
        "etcd3.host" => ("c".to_owned(), vec![("etcd3.hosts", "~")]),
        "etcd3.srv_suffix" => ("blue".to_owned(), vec![("etcd3.srv", "example.org")]),
        "etcd3.port" => ("4001".to_owned(), vec![("etcd3.hosts", "a")]),
        "etcd3.url" | "etcd3.proxy" => own("'http://u:p@h:1'"),
        "postgresql.listen" | "postgresql.connect_address" | "postgresql.proxy_address" => own("'10.0.0.1:5433'"),
        "postgresql.name" => ("other".to_owned(), vec![("name", "~")]),
        "bootstrap.dcs.ttl" => own("60"),
        "bootstrap.dcs.loop_wait" => own("5"),
        "bootstrap.dcs.retry_timeout" => own("4"),
        "bootstrap.dcs.synchronous_mode" => own("quorum"),
        "bootstrap.initdb" => own("[data-checksums, encoding: UTF8]"),
        "bootstrap.method" => ("restore".to_owned(), vec![("bootstrap.restore.command", "x")]),
        "postgresql.bin_name" => own("{postgres: other}"),
        "postgresql.create_replica_methods" | "postgresql.create_replica_method" => own("[x, basebackup]"),
        "postgresql.rewind" => own("[debug, sync-method: fsync]"),
        "postgresql.basebackup" => own("[verbose, max-rate: 100M]"),
        "postgresql.superuser" | "postgresql.replication" | "postgresql.pg_rewind" => {
            ("{username: x, password: y}".to_owned(), vec![("postgresql.authentication", "~")])
        }
        "postgresql.parameters" => own("{work_mem: 8MB}"),
        "postgresql.recovery_conf" => own("{restore_command: cp}"),
        "postgresql.use_slots" => own("off"),
        "watchdog.mode" => own("required"),
        "bootstrap.dcs.member_slots_ttl" => own("17min"),
        "bootstrap.dcs.slots" | "bootstrap.dcs.permanent_slots" | "bootstrap.dcs.permanent_replication_slots" => {
            own("{p: {type: physical}}")
        }
        "bootstrap.dcs.ignore_slots" => own("[{name: x}]"),
        "restapi.ciphers" => own("ECDHE-RSA-AES128-GCM-SHA256"),
        "log.format" => own("'%(message)s'"),
        "log.loggers" => own("{a: DEBUG}"),
        "bootstrap.dcs.standby_cluster.host" => own("10.0.0.9"),
        "bootstrap.dcs.standby_cluster.create_replica_methods" => own("[wal_g]"),
        path if path.starts_with("bootstrap.dcs.standby_cluster.") => {
            let value = if key.name() == "port" { "5433" } else { "other" };
            (value.to_owned(), vec![("bootstrap.dcs.standby_cluster.host", "h")])
        }
        "log.static_fields" | "restapi.http_extra_headers" | "restapi.https_extra_headers" => own("{a: b}"),
        "tags.failover_priority" => own("7"),
        _ => own(match key.kind {
            Kind::Text | Kind::Secret | Kind::Command => "other",
            Kind::Word if key.default == "on" => "off",
            Kind::Word => "on",
            Kind::Truth => "true",
            Kind::Integer(..) => "17",
            Kind::Choice(words) => words.iter().copied().find(|word| *word != key.default).unwrap(),
            Kind::List | Kind::Listed | Kind::Options => "[x]",
            Kind::Section | Kind::Map => "{}",
        }),
    }
}

/// Where a key is put: the dynamic one of the two places where only that counts.
fn place(key: &Key) -> &'static str {
    if key.path == "postgresql.use_slots" { "bootstrap.dcs.postgresql.use_slots" } else { key.path }
}

fn set(key: &Key, value: &str, beside: &[(&str, &str)]) -> String {
    let mut tree = crate::json(&with(place(key), value));
    for (path, value) in beside {
        crate::put(&mut tree, path, crate::json(&format!("v: {value}"))["v"].clone());
    }
    tree.to_string()
}

#[test]
fn every_key_has_its_effect_or_is_refused() {
    let mut checked = 0;
    for key in KEYS.iter().filter(|key| !matches!((key.kind, key.state), (Kind::Section, State::InForce))) {
        let (value, beside) = example(key);
        let text = set(key, &value, &beside);
        match key.state {
            State::InForce if key.path == "tags" => {}
            State::InForce => {
                // Without the key, or with another value of it where it must be there.
                let without = set(key, "~", &beside);
                let base = match load(&without) {
                    Ok(_) => without,
                    Err(_) if key.path == "etcd3.port" => set(key, "4002", &beside),
                    Err(_) => set(key, if key.section().is_empty() { "another" } else { "'another:1'" }, &beside),
                };
                assert_ne!(meaning(&base), meaning(&text), "{} has no effect\n{text}", key.path);
            }
            State::Meaningless => {
                assert_eq!(meaning(crate::MINIMAL), meaning(&text), "{} has an effect", key.path);
            }
            State::Refused => {
                let mut alone = crate::json(&set(key, "{a: b}", &[]));
                if key.path != "citus" {
                    alone.as_object_mut().unwrap().remove("etcd3");
                }
                let error = load(&alone.to_string()).unwrap_err();
                let said = error.contains(&format!("section \"{}\"", key.path)) && error.contains("not supported");
                assert!(said && (key.path == "citus" || error.contains("etcd3")), "{}: {error}", key.path);
            }
        }
        checked += 1;
    }
    assert!(checked > 120, "{checked}");
}

#[test]
fn a_default_that_is_written_changes_nothing() {
    let plain = meaning(crate::MINIMAL);
    for key in KEYS.iter().filter(|key| !key.default.is_empty() && !key.path.starts_with("tags.")) {
        assert_eq!(meaning(&with(place(key), key.default)), plain, "{}: {}", key.path, key.default);
    }
}

#[test]
fn a_value_of_another_kind_is_never_taken_in_silence() {
    for key in KEYS.iter().filter(|key| key.state == State::InForce && key.path != "log.static_fields") {
        let wrong = match key.kind {
            Kind::Text | Kind::Secret | Kind::Command | Kind::Choice(_) | Kind::Section | Kind::Map => "[x]",
            Kind::Word | Kind::Truth | Kind::Integer(..) => "nonsense",
            Kind::List => "5",
            Kind::Listed | Kind::Options => "[[x]]",
        };
        let found = findings(&with(place(key), wrong));
        let name = key.name().replace('*', "superuser");
        let named =
            found.iter().any(|line| line.contains(&name) || line.contains("defined") && key.section().is_empty());
        assert!(named, "{}: {wrong} gave {found:?}", key.path);
    }
}
