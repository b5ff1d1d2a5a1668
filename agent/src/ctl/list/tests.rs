//! Tables against the peer's own output, byte by byte.

use serde_json::json;

use super::*;

const ID: &str = "7710417956761706629";

/// A streaming replica at a position, 10.99.0.N.
fn replica(number: u8, timeline: i64, lsn: u64) -> Value {
    json!({
        "conn_url": format!("postgres://10.99.0.{number}:5432/postgres"), "state": "running", "role": "replica",
        "replication_state": "streaming", "timeline": timeline, "receive_lsn": lsn, "replay_lsn": lsn, "xlog_location": lsn,
    })
}

fn primary(number: u8, timeline: i64) -> Value {
    json!({
        "conn_url": format!("postgres://10.99.0.{number}:5432/postgres"), "state": "running", "role": "primary",
        "timeline": timeline, "xlog_location": 67_108_960,
    })
}

fn with(mut json: Value, key: &str, value: Value) -> Value {
    json[key] = value;
    json
}

/// `demo` with members pg1, pg2, pg3.
fn demo(leader: &str, optime: u64, members: [Value; 3]) -> ClusterTable {
    ClusterTable {
        scope: "demo".to_owned(),
        identity: ID.to_owned(),
        leader: Some(leader.to_owned()),
        optime: Some(optime),
        members: ["pg1", "pg2", "pg3"].map(str::to_owned).into_iter().zip(members).collect(),
        ..ClusterTable::default()
    }
}

fn plain() -> ClusterTable {
    demo("pg1", 0x400_0060, [primary(1, 1), replica(2, 1, 0x400_0060), replica(3, 1, 0x400_0060)])
}

fn pretty(table: &ClusterTable) -> String {
    table.show(Format::Pretty, false)
}

#[test]
fn an_ordinary_cluster() {
    assert_eq!(pretty(&plain()), include_str!("golden/plain.txt"));
    assert_eq!(plain().show(Format::Json, true), include_str!("golden/plain.json"));
    let mut two = plain();
    two.members.truncate(2);
    assert_eq!(two.show(Format::Yaml, false), include_str!("golden/two.yaml"));
    assert_eq!(
        two.show(Format::Tsv, false),
        "Cluster\tMember\tHost\tRole\tState\tTL\tReceive LSN\tReceive Lag\tReplay LSN\tReplay Lag\n\
         demo\tpg1\t10.99.0.1\tLeader\trunning\t1\t\t\t\t\n\
         demo\tpg2\t10.99.0.2\tReplica\tstreaming\t1\t0/4000060\t0\t0/4000060\t0\n"
    );
}

#[test]
fn nobody_there() {
    let table =
        ClusterTable { scope: "nosuch".to_owned(), identity: "uninitialized".to_owned(), ..ClusterTable::default() };
    assert_eq!(pretty(&table), include_str!("golden/no_members.txt"));
    assert_eq!(table.show(Format::Json, false), "[]\n");
    assert_eq!(table.show(Format::Yml, false), "[]\n\n");
}

#[test]
fn a_title_longer_than_the_table() {
    let member = json!({"conn_url": "postgres://10.0.0.1:5432/postgres", "state": "running", "timeline": 3});
    let table = ClusterTable {
        scope: "cc-a-scope-name-that-is-much-longer-than-the-whole-table-of-members-could-be".to_owned(),
        identity: ID.to_owned(),
        leader: Some("n1".to_owned()),
        members: vec![("n1".to_owned(), member)],
        ..ClusterTable::default()
    };
    assert_eq!(pretty(&table), include_str!("golden/long_title.txt"));
}

#[test]
fn lags_and_what_is_unknown() {
    let member =
        |host: u8, json: Value| with(json, "conn_url", format!("postgres://10.0.0.{host}:5432/postgres").into());
    let streaming = |json: Value| with(with(json, "replication_state", "streaming".into()), "timeline", 3.into());
    let members = [
        ("n1", member(1, json!({"state": "running", "timeline": 3}))),
        (
            "n3",
            member(3, streaming(json!({"state": "running", "receive_lsn": 0x3E58_0000, "replay_lsn": 0x3840_0000}))),
        ),
        ("n5", member(5, json!({"state": "stopped"}))),
        // Agents from before there were two positions.
        ("n6", member(6, streaming(json!({"state": "running", "xlog_location": 0x3E70_0000})))),
        (
            "n7",
            member(
                7,
                json!({"state": "running", "replication_state": "in archive recovery", "timeline": 3, "xlog_location": 0x3E70_0000}),
            ),
        ),
    ];
    let table = ClusterTable {
        scope: "cc-lags".to_owned(),
        identity: "7303838734793224214".to_owned(),
        leader: Some("n1".to_owned()),
        optime: Some(0x3E80_0000),
        members: members.map(|(name, json)| (name.to_owned(), json)).to_vec(),
        ..ClusterTable::default()
    };
    assert_eq!(pretty(&table), include_str!("golden/lags.txt"));
    let half = [(0, 0), (MIB / 2, 0), (MIB / 2 + 1, 1), (MIB * 3 / 2, 2), (MIB * 5 / 2, 2), (MIB, 1)];
    for (bytes, lag) in half {
        assert_eq!(mebibytes(bytes), lag, "{bytes}");
    }
}

#[test]
fn a_pending_restart() {
    let reason = json!({"max_connections": {"old_value": "100", "new_value": "101"}});
    let pending = |json| with(with(json, "pending_restart", true.into()), "pending_restart_reason", reason.clone());
    let table =
        demo("pg1", 0x405_DA90, [primary(1, 1), replica(2, 1, 0x405_DA90), replica(3, 1, 0x405_DA90)].map(pending));
    assert_eq!(pretty(&table), include_str!("golden/pending.txt"));

    let long = json!({"a": {"old_value": "1", "new_value": "2"}, "archive_command": {"old_value": "x".repeat(40), "new_value": "y"}});
    let table = demo("pg1", 0, [with(primary(1, 1), "pending_restart_reason", long), json!({}), json!({})]);
    let text = pretty(&table);
    assert!(text.contains("| a: 1->2                              |"), "{text}");
    assert!(text.contains("| archive_command: [hidden - too long] |"), "{text}");
    assert!(table.show(Format::Tsv, false).contains(&format!("\ta: 1->2\narchive_command: {}->y", "x".repeat(40))));
}

#[test]
fn a_scheduled_restart() {
    let at = |json, schedule: &str, version: Option<&str>| {
        let scheduled = json!({"schedule": schedule, "postgres_version": version});
        with(json, "scheduled_restart", scheduled)
    };
    let members = [
        at(primary(1, 1), "2027-01-01T10:00:00+00:00", Some("99.9")),
        at(replica(2, 1, 0x405_F9E8), "2027-01-01T10:00:00+00:00", None),
        at(replica(3, 1, 0x405_F9E8), "2027-01-01T11:00:00+02:00", None),
    ];
    assert_eq!(pretty(&demo("pg1", 0x405_F9E8, members)), include_str!("golden/scheduled.txt"));
}

#[test]
fn tags_of_one_member() {
    let tags =
        json!({"weight": 1.5, "clonefrom": true, "nofailover": true, "replicatefrom": "pg1", "datacenter": "dc1"});
    let third = with(replica(3, 5, 0x406_03D8), "tags", tags);
    let table = demo("pg2", 0x406_03D8, [replica(1, 5, 0x406_03D8), primary(2, 5), third]);
    assert_eq!(pretty(&table), include_str!("golden/tags.txt"));
    let tsv = table.show(Format::Tsv, false);
    let flow = "\t{clonefrom: true, datacenter: dc1, nofailover: true, replicatefrom: pg1, weight: 1.5}\n";
    assert!(tsv.ends_with(flow), "{tsv}");
    assert!(table.show(Format::Yaml, false).contains("  Tags:\n    clonefrom: true\n    datacenter: dc1\n"));
}

#[test]
fn roles_of_synchronous_and_standby_clusters() {
    let members = [replica(1, 4, 0x406_00B0), replica(2, 4, 0x406_00B0), primary(3, 4)];
    let mut table = demo("pg3", 0x406_00B0, members);
    table.sync = Some(json!({"leader": "pg3", "sync_standby": "PG2"}));
    assert!(!pretty(&table).contains("Sync Standby"), "the mode is off");
    table.config = Some(json!({"synchronous_mode": "on"}));
    assert_eq!(pretty(&table), include_str!("golden/sync.txt"));
    table.config = Some(json!({"synchronous_mode": "Quorum"}));
    assert!(pretty(&table).contains("Quorum Standby"));

    let third = json!({
        "conn_url": "postgres://10.99.0.3:5432/postgres", "state": "running", "role": "standby_leader",
        "replication_state": "in archive recovery", "timeline": 4, "receive_lsn": 5, "replay_lsn": 5,
    });
    let mut table = demo("pg3", 0x406_0450, [replica(1, 5, 0x406_0450), replica(2, 5, 0x406_0450), third]);
    table.config = Some(json!({"standby_cluster": {"host": "10.0.0.9"}}));
    assert_eq!(pretty(&table), include_str!("golden/standby_leader.txt"));
}

#[test]
fn ports_are_shown_as_soon_as_one_is_odd_or_a_host_is_shared() {
    let hosts = |urls: [&str; 3]| {
        let members = urls.map(|url| json!({"conn_url": url, "state": "running"}));
        demo("pg1", 0, members).rows().into_iter().map(|row| row.host).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(hosts(["postgres://a:5432/p", "postgres://b/p", "postgres://[::1]:5432/p"]), "a b ::1");
    assert_eq!(
        hosts(["postgres://a:5432/p", "postgres://b:5433/p", "postgres://[::1]:5432/p"]),
        "a:5432 b:5433 ::1:5432"
    );
    assert_eq!(hosts(["postgres://a:5432/p", "postgres://a:5432/p", ""]), "a:5432 a:5432 ");
    let kwargs = json!({"conn_kwargs": {"host": "h", "port": 5432}});
    assert_eq!(address(&kwargs), ("h".to_owned(), "5432".to_owned()));
}

#[test]
fn notes_stand_below_the_table_only() {
    let mut table = plain();
    table.config = Some(json!({"pause": true}));
    table.failover = Some(json!({"leader": "pg3", "member": "pg1", "scheduled_at": "2027-01-01T10:00:00+00:00"}));
    let text = pretty(&table);
    let notes = text.strip_prefix(include_str!("golden/plain.txt")).unwrap();
    let want = " Maintenance mode: on\n Switchover scheduled at: 2027-01-01T10:00:00+00:00\n                    from: pg3\n                      to: pg1\n";
    assert_eq!(notes, want);
    assert_eq!(table.show(Format::Json, false), include_str!("golden/plain.json"));
}

#[test]
fn with_extended_all_columns_are_there() {
    let text = plain().show(Format::Pretty, true);
    let heading = text.lines().nth(1).unwrap();
    assert!(heading.ends_with("| Pending restart | Pending restart reason | Scheduled restart | Tags |"), "{heading}");
    let mut ghost = plain();
    ghost.members.push(("pg4".to_owned(), json!({"tags": {"a": 1}})));
    assert!(!pretty(&ghost).contains("Tags"), "a member without a host does not count");
}

#[test]
fn garbage_in_member_keys_is_shown_as_nothing() {
    for garbage in [json!(null), json!([]), json!({"timeline": "x", "tags": 5, "receive_lsn": -1, "conn_url": 7})] {
        let table = demo("pg1", 0, [garbage.clone(), garbage.clone(), garbage]);
        assert!(pretty(&table).contains("| pg2    |      | Replica |"), "{}", pretty(&table));
        assert!(table.show(Format::Json, false).starts_with("[{"));
    }
}

/// All golden files were printed by the peer from these very keys.
#[test]
fn everything_at_once_in_all_formats() {
    let first = json!({
        "conn_url": "postgres://[fd00::1]:5433/postgres", "state": "running", "timeline": 5, "pending_restart": true,
        "pending_restart_reason": {
            "work": {"old_value": "1", "new_value": "2"},
            "archive_command": {"old_value": "a".repeat(44), "new_value": "b"},
        },
    });
    let tags =
        json!({"weight": 1.5, "clonefrom": true, "nofailover": true, "replicatefrom": "pg1", "datacenter": "dc1"});
    let mut table = demo("pg2", 67_503_064, [first, primary(2, 5), with(replica(3, 5, 67_503_064), "tags", tags)]);
    table.members.push(("pg4".to_owned(), json!(null)));
    table.config = Some(json!({"pause": true, "synchronous_mode": "on", "ttl": 30}));
    table.sync = Some(json!({"leader": "pg2", "sync_standby": "PG3"}));
    table.failover = Some(json!({"leader": "pg3", "member": "pg1", "scheduled_at": "2027-01-01T10:00:00+00:00"}));
    assert_eq!(table.show(Format::Pretty, true), include_str!("golden/everything.txt"));
    assert_eq!(table.show(Format::Tsv, true), include_str!("golden/everything.tsv"));
    assert_eq!(table.show(Format::Json, true), include_str!("golden/everything.json"));
    assert_eq!(table.show(Format::Yaml, true), include_str!("golden/everything.yaml"));
}

#[test]
fn the_topology_shows_who_streams_from_whom() {
    let tagged = |upstream: &str| with(replica(3, 5, 0x40_603D8), "tags", json!({"replicatefrom": upstream}));
    let mut table = demo("pg2", 0x40_603D8, [replica(1, 5, 0x40_603D8), primary(2, 5), tagged("pg1")]);
    let shown = |table: &ClusterTable| {
        let lines: Vec<_> =
            table.topology().lines().map(|line| line.split(" | ").next().unwrap().trim_end().to_owned()).collect();
        lines[3..6].join("\n")
    };
    assert_eq!(shown(&table), "| pg2\n| + pg1\n|   + pg3");
    table.leader = None;
    assert_eq!(shown(&table), "| + pg1\n|   + pg3\n| + pg2");
    let ring =
        demo("pg2", 1, [with(replica(1, 5, 1), "tags", json!({"replicatefrom": "pg3"})), primary(2, 5), tagged("pg1")]);
    assert_eq!(shown(&ring).matches("pg").count(), 3, "nobody is left out, nothing goes on for ever");
}

#[test]
fn a_copy_under_way_says_how_far_it_is() {
    let gib = 1_u64 << 30;
    let copying = |clone: Value| with(json!({"state": "creating replica", "role": "uninitialized"}), "clone", clone);
    let table = demo(
        "pg1",
        0x400_0060,
        [
            primary(1, 1),
            copying(json!({"bytes": gib * 3 / 2, "total": gib * 3})),
            copying(json!({"bytes": 999, "total": null})),
        ],
    );
    let shown = pretty(&table);
    assert!(shown.ends_with(" pg2 has copied 1.5 GB of 3.0 GB (50 %)\n pg3 has copied 999 B\n"), "{shown}");
    assert!(!table.show(Format::Json, false).contains("copied"));
}
