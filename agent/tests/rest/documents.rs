//! The documents, to the byte where the contract has captured them.

use std::time::Duration;

use regent::api::CONTRACT_VERSION;
use regent::guardian::{Action, View};
use regent::status::{Role, Status};
use regent_core::postgres::SqlFacts;
use regent_core::units::Lsn;
use serde_json::{Value, json};

use super::support::*;

/// The document with our own last key cut off, as the peer would have written it.
fn peers_part(body: &str) -> String {
    let (peers, ours) = body.split_once(r#", "regent": {"version": ""#).expect("our own key is the last");
    assert!(ours.ends_with("}}") && ours.matches(['{', '}']).count() == 4, "{ours}");
    format!("{peers}}}")
}

#[test]
fn the_status_document_is_the_peers_to_the_byte() {
    let ids = r#""dcs_last_seen": 1795220293, "database_system_identifier": "7710412321611215563", "patroni": {"version": "4.1.5", "scope": "demo""#;
    let node = Node::with(leader());
    let sender = |name| {
        format!(
            r#"{{"usename": "replicator", "application_name": "{name}", "client_addr": "127.0.0.1", "state": "streaming", "sync_state": "async", "sync_priority": 0}}"#
        )
    };
    let answer = node.get("/patroni");
    assert_eq!(
        peers_part(&answer.body),
        format!(
            r#"{{"state": "running", "postmaster_start_time": "2026-11-21 00:17:44.364475+00:00", "role": "primary", "server_version": 150020, "xlog": {{"location": 67108960}}, "timeline": 1, "replication": [{}, {}], {ids}, "name": "n1"}}}}"#,
            sender("n2"),
            sender("n3")
        )
    );
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert!(answer.header("Server").is_some_and(|server| server.starts_with("Regent/")));
    for path in ["/primary", "/replica", "/nosuch", "/health"] {
        assert_eq!(node.get(path).body, answer.body, "{path}");
    }

    assert_eq!(
        peers_part(&Node::with(replica()).get("/patroni").body),
        format!(
            r#"{{"state": "running", "postmaster_start_time": "2026-11-21 00:17:47.006407+00:00", "role": "replica", "server_version": 150020, "xlog": {{"received_location": 67108960, "replayed_location": 67108960, "replayed_timestamp": null, "paused": false}}, "timeline": 1, "replication_state": "streaming", {ids}, "name": "n2"}}}}"#
        )
    );
    assert_eq!(
        peers_part(&Node::with(stopped()).get("/patroni").body),
        format!(r#"{{"state": "stopped", "role": "replica", "pause": true, {ids}, "name": "n2"}}}}"#)
    );
    let unlocked = Status { view: Some(view(None)), ..uninitialized() };
    assert_eq!(
        peers_part(&Node::with(unlocked).get("/patroni").body),
        r#"{"state": "creating replica", "role": "uninitialized", "cluster_unlocked": true, "dcs_last_seen": 1795220293, "patroni": {"version": "4.1.5", "scope": "demo", "name": "n2"}}"#
    );
}

#[test]
fn every_key_of_the_status_document_has_its_place() {
    let sql = SqlFacts {
        timeline: None,
        replay_lsn: Some(Lsn(5)),
        receive_lsn: None,
        streaming: false,
        restores_from_archive: true,
        replayed_at: Some("2026-11-21 00:19:58.4+02".to_owned()),
        replay_paused: true,
        replication: vec![regent_core::postgres::WalSender { client_addr: None, ..sender("ü") }],
        pending_restart: vec![("max_connections".to_owned(), "100".to_owned(), "101".to_owned())],
        ..standby_sql()
    };
    let tags = json!({"z": [1.0, "é"], "a": {"b": null}});
    let status =
        Status { sql: Some(sql), pause: true, view: None, tags: tags.as_object().unwrap().clone(), ..replica() };
    assert_eq!(
        peers_part(&Node::with(status).get("/patroni").body),
        r#"{"state": "running", "postmaster_start_time": "2026-11-21 00:17:47.006407+00:00", "role": "replica", "server_version": 150020, "xlog": {"received_location": 5, "replayed_location": 5, "replayed_timestamp": "2026-11-21 00:19:58.400000+02:00", "paused": true}, "timeline": null, "replication_state": "in archive recovery", "replication": [{"usename": "replicator", "application_name": "\u00fc", "client_addr": null, "state": "streaming", "sync_state": "async", "sync_priority": 0}], "pause": true, "cluster_unlocked": true, "dcs_last_seen": 1795220293, "tags": {"z": [1.0, "\u00e9"], "a": {"b": null}}, "database_system_identifier": "7710412321611215563", "pending_restart": true, "pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "101"}}, "patroni": {"version": "4.1.5", "scope": "demo", "name": "n2"}}"#
    );
    assert_eq!(CONTRACT_VERSION, "4.1.5");
}

#[test]
fn a_server_that_should_run_and_does_not_answer_is_unknown() {
    let node = Node::with(Status { sql: None, ..leader() });
    let document: Value = serde_json::from_str(&node.get("/patroni").body).unwrap();
    assert_eq!((&document["state"], &document["role"]), (&json!("unknown"), &json!("primary")));
    assert!(document.get("xlog").is_none() && document.get("timeline").is_none());
    assert!(node.get("/metrics").body.contains("\npatroni_postgres_state{scope=\"demo\",name=\"n1\"} -1\n"));
}

#[test]
fn the_guardian_is_shown_as_it_is_at_that_moment() {
    let shown = |node: &Node| {
        let document: Value = serde_json::from_str(&node.get("/patroni").body).unwrap();
        document["regent"]["guardian"].clone()
    };
    let node = Node::with(leader());
    node.pass(Duration::from_millis(1500));
    assert_eq!(shown(&node), json!({"state": "armed", "deadline_in": 18.5, "pid": 77}));
    node.pass(Duration::from_secs(20));
    assert_eq!(shown(&node), json!({"state": "ready", "pid": 77}), "a deadline that has passed is none");
    let guardian = leader().guardian.unwrap();
    let last = Some(Action { at: NOW, took: Duration::from_millis(12), killed: 9 });
    let killed = View { armed_until: None, last, ..guardian.clone() };
    node.publish(Status { guardian: Some(killed), ..leader() });
    let last_kill = json!({"seconds_ago": 21.5, "took": 0.012, "processes": 9});
    assert_eq!(shown(&node), json!({"state": "ready", "pid": 77, "last_kill": last_kill}));
    assert!(
        node.get("/metrics")
            .body
            .contains("\nregent_guardian_last_kill_age_seconds{scope=\"demo\",name=\"n1\"} 21.500\n")
    );
    let gone = View { met: false, armed_until: None, problem: Some(("it has ended".to_owned(), NOW)), ..guardian };
    node.publish(Status { guardian: Some(gone), ..leader() });
    assert_eq!(shown(&node), json!({"state": "absent", "problem": "it has ended"}));
    assert!(node.get("/metrics").body.contains("\nregent_guardian_alive{scope=\"demo\",name=\"n1\"} 0\n"));
    node.publish(Status { guardian: None, ..leader() });
    assert_eq!(shown(&node), Value::Null, "the configuration wants none");
}

#[test]
fn cluster_shows_every_member_as_etcd_knows_it() {
    let key = |port: u16, rest: Value| {
        let mut key = json!({
            "conn_url": format!("postgres://127.0.2.11:{port}/postgres"),
            "api_url": "http://127.0.2.11:8008/patroni",
        });
        key.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        key
    };
    let members = [
        ("n1", key(5432, json!({"state": "running", "role": "primary", "timeline": 1, "xlog_location": 67_385_952}))),
        (
            "n2",
            key(
                5433,
                json!({"state": "running", "role": "replica", "tags": {"nostream": true}, "replication_state":
                "in archive recovery", "xlog_location": 67_381_856, "replay_lsn": 67_381_856, "timeline": 1,
                "pending_restart": true}),
            ),
        ),
        ("n3", key(5434, json!({"state": "stopped", "role": "replica", "pause": true, "tags": {}}))),
    ];
    let mut last_view = view(Some("n1"));
    last_view.status.optime = Some(Lsn(67_385_952));
    let status = Status {
        members: members.into_iter().map(|(name, key)| (name.to_owned(), key)).collect(),
        last_view: Some(last_view.clone()),
        ..replica()
    };
    let node = Node::with(status.clone());
    let answer = node.get("/cluster");
    let url = r#""api_url": "http://127.0.2.11:8008/patroni", "host": "127.0.2.11""#;
    let expected = format!(
        r#"{{"members": [{{"name": "n1", "role": "leader", "state": "running", {url}, "port": 5432, "timeline": 1}}, {{"name": "n2", "role": "replica", "state": "in archive recovery", {url}, "port": 5433, "timeline": 1, "pending_restart": true, "tags": {{"nostream": true}}, "receive_lsn": "unknown", "receive_lag": "unknown", "replay_lag": 4096, "replay_lsn": "0/4042A60", "lag": 4096, "lsn": "0/4042A60"}}, {{"name": "n3", "role": "replica", "state": "stopped", {url}, "port": 5434, "receive_lsn": "unknown", "receive_lag": "unknown", "replay_lsn": "unknown", "replay_lag": "unknown", "lsn": "unknown", "lag": "unknown"}}], "scope": "demo"}}"#
    );
    assert_eq!(answer.body, expected);
    assert_eq!(answer.header("Warning"), None);

    // etcd is silent: the same, marked (W6). Paused: between the members and the scope.
    node.publish(Status { view: None, pause: true, ..status.clone() });
    let answer = node.get("/cluster");
    assert_eq!(answer.body, expected.replace(r#"], "scope""#, r#"], "pause": true, "scope""#));
    assert!(answer.header("Warning").is_some());

    // Nobody holds the key: all are replicas, and the former leader has positions.
    last_view.leader = None;
    node.publish(Status { last_view: Some(last_view), ..status });
    let body = node.get("/cluster").body;
    assert!(body.contains(r#""lag": 0, "lsn": "0/4043A60""#), "{body}");
    assert!(!body.contains(r#""role": "leader""#));

    node.publish(Status { last_view: None, view: None, ..replica() });
    assert_eq!(node.code("/cluster"), 503);
}

#[test]
fn history_and_config_are_as_stored() {
    let node = Node::with(replica());
    assert_eq!((node.get("/history").body.as_str(), node.code("/config")), ("[]", 502));
    let history = r#"[[1, 67406888, "no recovery target specified", "2026-11-21T00:23:29.181348+00:00", "n3"]]"#;
    let config =
        r#"{"ttl": 30, "loop_wait": 10, "postgresql": {"parameters": {"z": 30.0, "a": 100}, "use_slots": true}}"#;
    node.publish(Status {
        history: Some(serde_json::from_str(history).unwrap()),
        config: Some(serde_json::from_str(config).unwrap()),
        view: None,
        ..replica()
    });
    assert_eq!((node.get("/history").body.as_str(), node.get("/config").body.as_str()), (history, config));
    assert_eq!((node.code("/failsafe"), node.ask("HEAD", "/failsafe").code), (502, 502));
}

#[test]
fn the_contract_says_what_would_be_lost() {
    let node = Node::with(replica());
    let answer = node.get("/contract");
    assert_eq!((answer.code, answer.body.as_str()), (200, r#"{"rpo_zero": false, "sentence": "commits are lost"}"#));
}

/// Captured samples of rest-api.md section 23, in the contract's order.
const LEADER_METRICS: &str = r#"patroni_version 040105
patroni_postgres_running 1
patroni_postmaster_start_time 1795220264.364475
patroni_primary 1
patroni_xlog_location 67108960
patroni_standby_leader 0
patroni_replica 0
patroni_sync_standby 0
patroni_quorum_standby 0
patroni_xlog_received_location 0
patroni_xlog_replayed_location 0
patroni_xlog_replayed_timestamp 0
patroni_xlog_paused 0
patroni_postgres_streaming 0
patroni_postgres_in_archive_recovery 0
patroni_postgres_server_version 150020
patroni_cluster_unlocked 0
patroni_failsafe_mode_is_active 0
patroni_failsafe_mode_enabled 0
patroni_failsafe_member 0
patroni_postgres_timeline 1
patroni_dcs_last_seen 1795220293
patroni_pending_restart 0
patroni_is_paused 0
patroni_postgres_state 5
patroni_failover_priority 1
regent_takes_writes 1
regent_holds_leader_key 1
regent_demoting 0
regent_snapshot_age_seconds 1.500
regent_lease_remaining_seconds 18.500
regent_guardian_alive 1
regent_guardian_armed 1
regent_guardian_deadline_seconds 18.500
regent_guardian_last_kill_age_seconds 0.000
regent_watchdog_active 0
"#;

/// Name and value of every sample; each must have its HELP and TYPE right before it, and the labels in their order.
fn samples(page: &str, labels: &str) -> String {
    assert!(page.ends_with('\n'));
    let lines: Vec<_> = page.lines().collect();
    let mut samples = String::new();
    for three in lines.chunks(3) {
        let [help, kind, sample] = three else { panic!("{three:?}") };
        let (name, value) = sample.split_once(labels).unwrap_or_else(|| panic!("labels of {sample}"));
        assert!(help.starts_with(&format!("# HELP {name} ")), "{help}");
        let expected =
            if name.starts_with("patroni_xlog_") && name.ends_with("location") { "counter" } else { "gauge" };
        assert_eq!(*kind, format!("# TYPE {name} {expected}"));
        samples.push_str(&format!("{name}{value}\n"));
    }
    samples
}

#[test]
fn metrics_are_the_captured_ones() {
    let node = Node::with(leader());
    node.pass(Duration::from_millis(1500));
    let answer = node.get("/metrics");
    assert_eq!(answer.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(samples(&answer.body, r#"{scope="demo",name="n1"}"#), LEADER_METRICS);

    let sql = SqlFacts { replayed_at: Some("2026-11-21 00:20:26.50473+00".to_owned()), ..standby_sql() };
    node.publish(Status { scope: "a\"b\\c\nd".to_owned(), sql: Some(sql), ..replica() });
    let replica = samples(&node.get("/metrics").body, r#"{scope="a\"b\\c\nd",name="n2"}"#);
    for line in [
        "patroni_primary 0",
        "patroni_replica 1",
        "patroni_xlog_location 0",
        "patroni_xlog_received_location 67108960",
        "patroni_xlog_replayed_location 67108960",
        "patroni_xlog_replayed_timestamp 1795220426.50473",
        "patroni_postgres_streaming 1",
        "regent_lease_remaining_seconds 0.000",
    ] {
        assert!(replica.lines().any(|seen| seen == line), "{line} in {replica}");
    }

    // A stopped former primary of a paused cluster (captured): the role follows the document, the rest is 0.
    node.publish(Status { role: Role::Primary, view: Some(view(None)), ..stopped() });
    let stopped = samples(&node.get("/metrics").body, r#"{scope="demo",name="n2"}"#);
    for line in [
        "patroni_primary 1",
        "patroni_postgres_running 0",
        "patroni_cluster_unlocked 1",
        "patroni_postmaster_start_time 0",
        "patroni_postgres_server_version 0",
        "patroni_postgres_timeline 0",
        "patroni_is_paused 1",
        "patroni_postgres_state 12",
        "regent_takes_writes 0",
    ] {
        assert!(stopped.lines().any(|seen| seen == line), "{line} in {stopped}");
    }
}
