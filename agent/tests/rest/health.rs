//! Health checks: the captured tables of the contract, and what only the passing of time changes.

use regent::status::{Role, State, Status};
use regent_core::postgres::SqlFacts;
use regent_core::units::Lsn;
use serde_json::json;

use super::support::*;

/// rest-api.md 5.5, the columns that exist without synchronous modes: L R NL St LSt U SL SR.
const TABLE: &[(&str, &str)] = &[
    ("/ /primary /master /read-write", "200 503 503 503 503 503 503 503"),
    ("/leader", "200 503 503 503 503 503 200 503"),
    ("/standby-leader /standby_leader", "503 503 503 503 503 503 200 503"),
    ("/replica", "503 200 503 503 503 503 503 200"),
    ("/read-only", "200 200 503 503 503 503 200 200"),
    ("/sync /synchronous", "503 503 503 503 503 503 503 503"),
    ("/quorum", "503 503 503 503 503 503 503 503"),
    ("/async /asynchronous", "503 200 503 503 503 503 503 200"),
    ("/read-only-sync /read-only-synchronous", "200 503 503 503 503 503 200 503"),
    ("/read-only-quorum", "200 503 503 503 503 503 200 503"),
    ("/health", "200 200 200 503 503 503 200 200"),
    ("/liveness", "200 200 200 200 200 200 200 200"),
    ("/readiness", "200 200 200 503 503 503 200 200"),
    ("/patroni /metrics /cluster /history", "200 200 200 200 200 200 200 200"),
    // Rules 1 to 6 look for a part of the path, the others for all of it; no path is unknown.
    ("/primary/ /my-primary-check //primary /master-x /read-write/x", "200 503 503 503 503 503 503 503"),
    ("/leader/x //leader", "200 503 503 503 503 503 200 503"),
    ("/replica/foo", "503 200 503 503 503 503 503 200"),
    ("/haproxy/health", "200 200 200 503 503 503 200 200"),
    ("/sync/ /async/ /read-only-sync/ /nosuch /Primary /PRIMARY /switchover", "503 503 503 503 503 503 503 503"),
    ("/patroni/x //metrics /metrics/", "200 200 200 200 200 200 200 200"),
];

#[test]
fn codes_are_those_of_the_captured_table() {
    let former_leader = Status { role: Role::Primary, view: Some(view(None)), ..stopped() };
    let no_load = Status { noloadbalance: true, ..replica() };
    let standby = Status { standby_cluster: true, ..replica() };
    let standby_leader = Status { role: Role::StandbyLeader, lock_until: leader().lock_until, ..standby.clone() };
    let nodes = [leader(), replica(), no_load, stopped(), former_leader, uninitialized(), standby_leader, standby];
    let nodes = nodes.map(Node::with);
    for (paths, codes) in TABLE {
        for path in paths.split(' ') {
            for method in ["GET", "HEAD", "OPTIONS"] {
                let seen = nodes.each_ref().map(|node| node.ask(method, path).code.to_string()).join(" ");
                assert_eq!(&seen, codes, "{method} {path}");
            }
        }
    }
}

/// The whole measured table of 5.4: a replica 3 096 816 bytes behind. The peer cannot read `2mb` and `2M` and lets them
/// pass; we read them as what they are (W11).
#[test]
fn lag_limits_are_those_of_the_captured_table() {
    let leader_at = Lsn(67_108_960 + 3_096_816);
    let mut status = replica();
    status.sql = Some(SqlFacts { latest_end_lsn: Some(leader_at), ..standby_sql() });
    let node = Node::with(status);
    for (query, code) in [
        ("/replica?lag=3096816", 200),
        ("/replica?lag=3096815", 503),
        ("/replica?lag=0", 503),
        ("/replica?lag=-1", 503),
        ("/replica?lag=2MB", 503),
        ("/replica?lag=4MB", 200),
        ("/replica?lag=3000kB", 503),
        ("/replica?lag=4000kB", 200),
        ("/replica?lag=1.5MB", 503),
        ("/replica?lag=0.1GB", 200),
        ("/replica?lag=0x400000", 200),
        ("/replica?lag=4%20MB", 200),
        ("/replica?lag=garbage", 200),
        ("/replica?lag=", 200),
        ("/replica?lag=&lag=0", 503),
        ("/async?lag=0", 503),
        ("/read-only?lag=0", 503),
        ("/health?lag=0", 200),
        ("/replica?lag=2mb", 503),
        ("/replica?lag=2M", 503),
        ("/replica?lag=4mb", 200),
        ("/replica?lag=1PB", 200),
    ] {
        assert_eq!(node.code(query), code, "{query}");
    }
    let node = Node::with(leader());
    assert_eq!((node.code("/primary?lag=0"), node.code("/read-only?lag=0")), (200, 200));
}

#[test]
fn readiness_weighs_the_lag_of_the_position_asked_for() {
    // 3 MB of replay lag, nothing behind in receiving (rest-api.md section 6, captured).
    let received = Lsn(67_108_960);
    let behind = SqlFacts { replay_lsn: Some(Lsn(received.0 - 3_096_816)), ..standby_sql() };
    let node = Node::with(Status { sql: Some(behind), ..replica() });
    for (path, code) in [
        ("/readiness", 503),
        ("/readiness?mode=write", 200),
        ("/readiness?mode=bogus", 503),
        ("/readiness?lag=1GB", 200),
        ("/readiness?lag=garbage", 503),
        ("/readiness?lag=0&mode=write", 200),
    ] {
        let answer = node.get(path);
        assert_eq!((answer.code, answer.body.as_str()), (code, ""), "{path}");
    }
}

#[test]
fn a_replica_that_does_not_stream_serves_reads_but_is_not_ready() {
    for restores_from_archive in [true, false] {
        let sql = SqlFacts { streaming: false, latest_end_lsn: None, restores_from_archive, ..standby_sql() };
        let node = Node::with(Status { sql: Some(sql), ..replica() });
        let codes = ["/replica", "/read-only", "/async", "/readiness"].map(|path| node.code(path));
        assert_eq!(codes, [200, 200, 200, 503]);
    }
}

#[test]
fn replication_state_is_a_filter_of_replicas_only() {
    let node = Node::with(replica());
    assert_eq!(node.code("/replica?replication_state=streaming"), 200);
    assert_eq!(node.code("/replica?replication_state=in+archive+recovery"), 503);
    assert_eq!(node.code("/health?replication_state=x"), 200);
}

#[test]
fn tags_filter_as_the_contract_says() {
    let tags = json!({"clonefrom": true, "num": 5, "f": 1.5, "foo": "Bar", "nul": null, "e": "a b"});
    let node = Node::with(Status { tags: tags.as_object().unwrap().clone(), ..replica() });
    for (query, code) in [
        ("tag_clonefrom=true", 200),
        ("tag_clonefrom=True", 503),
        ("tag_num=5", 200),
        ("tag_num=5.0", 503),
        ("tag_f=1.5", 200),
        ("tag_foo=Bar", 200),
        ("tag_foo=bar", 503),
        ("tag_Foo=Bar", 503),
        ("tag_nul=null", 503),
        ("tag_absent=1", 503),
        ("tag_absent=", 200),
        ("tag_e=a+b", 200),
        ("tag_e=a%20b&tag_num=5", 200),
        ("tag_num=5&tag_foo=x", 503),
        ("tag_num=5&tag_num=6", 200),
        ("tag_noloadbalance=false", 503),
    ] {
        assert_eq!(node.code(&format!("/replica?{query}")), code, "{query}");
        assert_eq!(node.code(&format!("/health?{query}")), code, "/health {query}");
        assert_eq!(node.code(&format!("/readiness?{query}")), 200, "/readiness {query}");
    }
    assert_eq!(Node::with(leader()).code("/primary?tag_absent=1"), 200);
    assert_eq!(Node::with(leader()).code("/read-only?tag_absent=1"), 503);
}

#[test]
fn primary_ends_with_the_lease_and_needs_nobodys_help() {
    let node = Node::with(leader());
    let primary_paths = ["/", "/primary", "/leader", "/read-write", "/read-only", "/read-only-sync", "/readiness"];
    node.pass(secs(20) - std::time::Duration::from_millis(1));
    assert_eq!(primary_paths.map(|path| node.code(path)), [200; 7]);
    node.pass(std::time::Duration::from_millis(1));
    assert_eq!(primary_paths.map(|path| node.code(path)), [503; 7]);
    assert_eq!(node.code("/health"), 200, "PostgreSQL is not in question");
}

#[test]
fn primary_needs_a_server_that_takes_writes_and_is_to_stay() {
    let recovering = SqlFacts { replay_lsn: Some(Lsn(1)), ..standby_sql() };
    let no_answer = Status { sql: None, ..leader() };
    let down = Status { state: State::Crashed, ..leader() };
    let stopping = Status { state: State::Stopping, ..leader() };
    let demoting = Status { demoting: true, ..leader() };
    let promoting = Status { role: Role::Promoted, sql: Some(recovering), ..leader() };
    for (what, status) in [
        ("silent", no_answer),
        ("crashed", down),
        ("stopping", stopping),
        ("demoting", demoting),
        ("promoting", promoting),
    ] {
        let node = Node::with(status);
        assert_eq!(["/primary", "/leader", "/"].map(|path| node.code(path)), [503; 3], "{what}");
    }
}

#[test]
fn without_etcd_the_lease_decides_and_in_pause_the_servers_role() {
    let cut_off = Status { view: None, ..leader() };
    let node = Node::with(cut_off.clone());
    assert_eq!(["/primary", "/read-only-sync", "/readiness"].map(|path| node.code(path)), [200; 3]);
    node.pass(secs(20));
    assert_eq!(["/primary", "/read-only-sync", "/readiness"].map(|path| node.code(path)), [503; 3]);

    let node = Node::with(Status { pause: true, lock_until: None, ..cut_off });
    assert_eq!(["/primary", "/leader", "/read-only", "/readiness"].map(|path| node.code(path)), [200; 4], "W10");
    let node = Node::with(Status { view: None, pause: true, ..replica() });
    assert_eq!(
        ["/primary", "/replica", "/async", "/readiness"].map(|path| node.code(path)),
        [503, 200, 200, 200],
        "W9"
    );
}

#[test]
fn what_a_stuck_loop_last_saw_is_not_told_as_the_present() {
    let node = Node::with(replica());
    node.pass(secs(39));
    assert_eq!(["/replica", "/health"].map(|path| node.code(path)), [200; 2]);
    node.pass(secs(1)); // its next turn was due ttl ago
    assert_eq!(["/replica", "/health"].map(|path| node.code(path)), [503; 2]);
    assert!(
        node.get("/patroni").body.starts_with(r#"{"state": "unknown", "role": "replica", "cluster_unlocked": true"#)
    );
    node.publish(Status { at: NOW + secs(40), next_turn_due: NOW + secs(50), ..replica() });
    assert_eq!(["/replica", "/health"].map(|path| node.code(path)), [200; 2]);
}

#[test]
fn liveness_is_the_loops_pulse() {
    for (status, alive_for) in [(leader(), 40), (replica(), 70), (uninitialized(), 70)] {
        let node = Node::with(status.clone());
        node.pass(secs(alive_for) - std::time::Duration::from_millis(1));
        assert_eq!(node.code("/liveness"), 200, "{alive_for}");
        node.pass(std::time::Duration::from_millis(1));
        assert_eq!(node.code("/liveness"), 503, "{alive_for}");
        node.publish(Status { pause: true, ..status });
        assert_eq!(node.code("/liveness"), 200, "a paused cluster is left alone");
    }
}
