use proptest::prelude::*;
use regent_core::units::{LeaseId, SystemId};

use super::*;
use crate::keys::{encode_failsafe, encode_history, encode_promise, encode_status};

const LEASE: LeaseId = LeaseId(77);

fn raw<'a>(name: &'a str, value: &'a [u8]) -> RawKey<'a> {
    let lease = (name == LEADER || name.starts_with(MEMBERS)).then_some(LEASE);
    RawKey { name: name.as_bytes(), value, lease, modified: Revision(5) }
}

fn read(keys: &[(&str, &str)]) -> Read {
    parse(Revision(9), keys.iter().map(|(name, value)| raw(name, value.as_bytes())))
}

#[test]
fn initialize_has_four_states() {
    assert_eq!(read(&[]).view.initialize, Initialize::Absent);
    for (value, expected) in [
        ("", Initialize::InProgress { modified: Revision(5), lease: None }),
        ("7710414511323698082", Initialize::Known(SystemId(7_710_414_511_323_698_082))),
        ("123456789", Initialize::Garbage { text: "123456789".to_owned(), modified: Revision(5) }),
        ("xyz", Initialize::Garbage { text: "xyz".to_owned(), modified: Revision(5) }),
    ] {
        let read = read(&[(INITIALIZE, value)]);
        let garbage = matches!(expected, Initialize::Garbage { .. });
        assert_eq!(read.view.garbage.contains_key(INITIALIZE), garbage, "{value:?}");
        assert_eq!(read.view.initialize, expected);
    }
}

#[test]
fn the_leader_key_is_a_bare_name_and_counts_whatever_it_says() {
    let view = read(&[(LEADER, "n1")]).view;
    let leader = LeaderKey { name: MemberName::from("n1"), lease: Some(LEASE), modified: Revision(5) };
    assert_eq!((view.leader, view.revision), (Some(leader), Revision(9)));
    let view = parse(Revision(9), [raw(LEADER, b"\xff")]).view;
    assert!(view.leader.is_some() && view.garbage.contains_key(LEADER));
}

#[test]
fn config_is_missing_valid_or_garbage() {
    let captured = r#"{"ttl":20,"loop_wait":5,"retry_timeout":5,"maximum_lag_on_failover":1048576,"postgresql":{"use_pg_rewind":true,"use_slots":true,"parameters":{"wal_keep_size":"64MB"}}}"#;
    for (value, expected) in [
        ("", ConfigKey::Empty(Revision(5))),
        (captured, ConfigKey::Valid(Revision(5))),
        ("{}", ConfigKey::Valid(Revision(5))),
        ("[1]", ConfigKey::Garbage(Revision(5))),
        ("{", ConfigKey::Garbage(Revision(5))),
    ] {
        let read = read(&[(CONFIG, value)]);
        assert_eq!(read.view.garbage.contains_key(CONFIG), expected == ConfigKey::Garbage(Revision(5)), "{value:?}");
        assert_eq!(read.config.is_some(), expected == ConfigKey::Valid(Revision(5)), "{value:?}");
        assert_eq!(read.view.config, expected, "{value:?}");
    }
    let config = read(&[(CONFIG, captured)]).config;
    assert_eq!(config.map(|config| config.to_string()).as_deref(), Some(captured), "order of keys is kept");
}

const HISTORY_CAPTURED: &str = r#"[[1,67109256,"no recovery target specified","2026-11-21T00:27:34.385348+00:00","n2"],[2,67109712,"no recovery target specified","2026-11-21T00:29:36.405348+00:00","n3"]]"#;

#[test]
fn history_lines_have_three_to_five_fields() {
    let view = read(&[(HISTORY, HISTORY_CAPTURED)]).view;
    assert_eq!(view.timeline(), Some(Timeline(3)));
    let lines = view.history.unwrap();
    assert_eq!(lines[0].switched_at, Lsn(67_109_256));
    assert_eq!(lines[1].promoted, Some(MemberName::from("n3")));
    assert_eq!(encode_history(&lines), HISTORY_CAPTURED);

    for (value, timeline) in [
        ("[]", Some(1)),
        (r#"[[1,5,"x"]]"#, Some(2)),
        (r#"[["1","5","x","t"]]"#, Some(2)),
        (r#"[[4,5,"x",null,"n1"]]"#, Some(5)),
        (r#"[[1,5]]"#, None),
        (r#"[[1,5,"x","t","n","more"]]"#, None),
        (r#"[[-1,5,"x"]]"#, None),
        (r#"{}"#, None),
        ("", None),
    ] {
        let read = read(&[(HISTORY, value)]);
        assert_eq!(read.view.timeline(), timeline.map(Timeline), "{value:?}");
        assert_eq!(read.view.garbage.contains_key(HISTORY), timeline.is_none(), "{value:?}");
        if let Some(lines) = read.view.history.filter(|_| !value.contains("\"5\"")) {
            assert_eq!(encode_history(&lines), value);
        }
    }
    assert_eq!(read(&[]).view.history, None);
}

#[test]
fn status_reads_as_captured_and_in_its_legacy_forms() {
    let captured =
        r#"{"optime":67108960,"slots":{"n3":67108960,"n2":67108960,"n1":67108960},"retain_slots":["n1","n2","n3"]}"#;
    let lsn = Lsn(67_108_960);
    let slots = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), lsn)).collect::<BTreeMap<_, _>>();
    let status = |optime, names: &[&str], retain: &[&str]| Status {
        optime,
        slots: slots(names),
        retain_slots: retain.iter().map(|name| (*name).to_owned()).collect(),
    };
    for (value, expected, garbage) in [
        (captured, status(Some(lsn), &["n1", "n2", "n3"], &["n1", "n2", "n3"]), false),
        ("67108960", status(Some(lsn), &[], &[]), false),
        (r#"{"optime":"67108960"}"#, status(Some(lsn), &[], &[]), false),
        (r#"{"slots":"{\"n1\":67108960}","retain_slots":"[\"n1\"]"}"#, status(None, &["n1"], &["n1"]), false),
        (r#"{"optime":null,"slots":null,"retain_slots":null}"#, status(None, &[], &[]), false),
        (r#"{"optime":67108960,"slots":{"a":"x","b":"67108960"}}"#, status(Some(lsn), &["b"], &[]), true),
        (r#"{"optime":67108960,"slots":7,"retain_slots":{}}"#, status(Some(lsn), &[], &[]), true),
        (r#"{"optime":-1}"#, status(None, &[], &[]), true),
        ("[]", Status::default(), true),
        ("", Status::default(), true),
    ] {
        let view = read(&[(STATUS, value)]).view;
        assert_eq!(view.status, expected, "{value:?}");
        assert_eq!(view.garbage.contains_key(STATUS), garbage, "{value:?}: {:?}", view.garbage);
    }
}

#[test]
fn status_is_written_compact_and_in_order() {
    let lsn = Lsn(67_108_960);
    let status = Status {
        optime: Some(lsn),
        slots: BTreeMap::from([("n1".to_owned(), lsn), ("n2".to_owned(), lsn)]),
        retain_slots: vec!["n1".to_owned()],
    };
    let text = r#"{"optime":67108960,"slots":{"n1":67108960,"n2":67108960},"retain_slots":["n1"]}"#;
    assert_eq!(encode_status(&status), text);
    assert_eq!(encode_status(&Status { optime: Some(lsn), ..Status::default() }), r#"{"optime":67108960}"#);
    assert_eq!(read(&[(STATUS, text)]).view.status, status);
}

#[test]
fn the_legacy_optime_counts_only_without_a_status() {
    let optime = |keys: &[(&str, &str)]| read(keys).view.status.optime;
    assert_eq!(optime(&[(OPTIME, "42")]), Some(Lsn(42)));
    assert_eq!(optime(&[(OPTIME, "42"), (STATUS, r#"{"optime":43}"#)]), Some(Lsn(43)));
    assert_eq!(optime(&[(STATUS, "{}"), (OPTIME, "42")]), None);
    assert!(read(&[(OPTIME, "x")]).view.garbage.contains_key(OPTIME));
}

#[test]
fn a_promise_reads_as_it_was_written_or_not_at_all() {
    let position = WalPosition { timeline: Timeline(3), lsn: Lsn(u64::MAX) };
    let promise = Promise { epoch: 12, position, parent: Timeline(6), holder: MemberName::from("n1") };
    let text = r#"{"epoch":12,"timeline":3,"lsn":18446744073709551615,"parent":6,"holder":"n1"}"#;
    assert_eq!(encode_promise(&promise), text);
    assert_eq!(read(&[(PROMISE, text)]).view.promise, Some(PromiseKey { promise, modified: Revision(5) }));
    for bad in [
        "",
        "{}",
        r#"{"epoch":"12","timeline":3,"lsn":1,"parent":1,"holder":"n1"}"#,
        r#"{"epoch":12,"timeline":4294967296,"lsn":1,"parent":1,"holder":"n1"}"#,
        r#"{"epoch":12,"timeline":3,"lsn":1,"parent":1,"holder":""}"#,
    ] {
        let view = read(&[(PROMISE, bad)]).view;
        assert!(view.promise.is_none() && view.garbage.contains_key(PROMISE), "{bad:?}");
        assert_eq!(view.unreadable_promise, Some(Revision(5)), "the next one must name it");
    }
}

#[test]
fn members_are_read_by_name_and_stay_when_they_cannot_be_read() {
    let object = r#"{"conn_url":"postgres://127.0.0.1:5431/postgres","api_url":"http://127.0.0.1:8001/patroni","state":"stopped","role":"uninitialized","version":"4.1.5"}"#;
    let legacy = "postgres://h:5432/postgres?application_name=http://h:8008/patroni";
    let read = read(&[
        ("members/n1", object),
        ("members/n2", "{"),
        ("members/n3", legacy),
        ("members/n4", "5"),
        ("members/a/b", object),
        ("members/", object),
    ]);
    let names: Vec<&str> = read.view.members.keys().map(MemberName::as_str).collect();
    assert_eq!(names, ["n1", "n2", "n3", "n4"]);
    assert_eq!(read.members.keys().map(MemberName::as_str).collect::<Vec<_>>(), ["n1"]);
    assert_eq!(read.members[&MemberName::from("n1")].to_string(), object);
    assert_eq!(read.view.members[&MemberName::from("n2")], Member::default());
    assert_eq!(read.view.members[&MemberName::from("n3")].api_url.as_deref(), Some("http://h:8008/patroni"));
    assert_eq!(read.view.garbage.keys().collect::<Vec<_>>(), ["members/n2", "members/n4"]);
}

#[test]
fn unknown_keys_are_nobodys_business() {
    let keys = [("regent/x", "?"), ("failover", "{}"), ("0/leader", "n1"), ("", "")];
    let view = read(&keys).view;
    assert_eq!(view, ClusterView { revision: Revision(9), ..ClusterView::default() });
}

#[test]
fn the_failsafe_key_is_read_as_a_whole_or_not_at_all() {
    let key = |text: &str| read(&[(FAILSAFE, text)]).view.failsafe.expect("there is a key").members;
    let captured = r#"{"n1":"http://127.0.0.1:8001/patroni","n2":"http://127.0.0.1:8002/patroni"}"#;
    let members = key(captured);
    assert_eq!(members[&MemberName::from("n2")], "http://127.0.0.1:8002/patroni");
    assert_eq!(encode_failsafe(&FailsafeKey { members, modified: Revision(0) }), captured);
    for garbage in ["", "[]", "null", "{", r#"{"n1": 8008}"#] {
        assert!(key(garbage).is_empty(), "{garbage}");
        assert_eq!(read(&[(FAILSAFE, garbage)]).view.garbage.len(), 1);
    }
    assert!(read(&[]).view.failsafe.is_none());
}

#[test]
fn deep_nesting_is_garbage_and_not_a_crash() {
    let deep = "[".repeat(100_000);
    let view = read(&[(CONFIG, deep.as_str()), (HISTORY, deep.as_str()), ("members/n1", deep.as_str())]).view;
    assert_eq!(view.garbage.len(), 3);
}

/// One key of each kind, and what must be there if it is understood.
const GOOD: [(&str, &str); 7] = [
    (INITIALIZE, "7710414511323698082"),
    (LEADER, "n1"),
    (CONFIG, r#"{"ttl":20}"#),
    (HISTORY, HISTORY_CAPTURED),
    (STATUS, r#"{"optime":42}"#),
    (PROMISE, r#"{"epoch":1,"timeline":1,"lsn":1,"parent":1,"holder":"n1"}"#),
    ("members/n1", r#"{"state":"running"}"#),
];

/// Bytes, and also texts that come close to being right.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let fragments = vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "null",
        "true",
        "0",
        "-1",
        "1e999",
        "18446744073709551616",
        "postgres",
        "?application_name=%",
        "\"optime\"",
        "\"slots\"",
        "\"tags\"",
        "\"epoch\"",
        "\"timeline\"",
        "\"x\"",
        "é",
        " ",
    ];
    let text = proptest::collection::vec(proptest::sample::select(fragments), 0..12).prop_map(|parts| parts.concat());
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), text.prop_map(String::into_bytes)]
}

proptest! {
    #[test]
    fn no_value_panics_or_hides_another_key(broken in 0..GOOD.len(), value in value()) {
        let whole = read(&GOOD);
        let keys = GOOD.iter().enumerate().map(|(index, (name, good))| {
            raw(name, if index == broken { &value } else { good.as_bytes() })
        });
        let mut seen = parse(Revision(9), keys);
        // Put the broken key's part right: all else must be as if nothing had been broken.
        let name = GOOD[broken].0;
        seen.view.garbage.remove(name);
        match name {
            INITIALIZE => seen.view.initialize = whole.view.initialize.clone(),
            LEADER => {
                prop_assert!(seen.view.leader.is_some());
                seen.view.leader = whole.view.leader.clone();
            }
            CONFIG => (seen.view.config, seen.config) = (whole.view.config.clone(), whole.config.clone()),
            HISTORY => (seen.view.history, seen.history) = (whole.view.history.clone(), whole.history.clone()),
            STATUS => seen.view.status = whole.view.status.clone(),
            PROMISE => {
                (seen.view.promise, seen.view.unreadable_promise) = (whole.view.promise.clone(), None);
            }
            _ => {
                prop_assert_eq!(seen.view.members.len(), 1);
                (seen.view.members, seen.members) = (whole.view.members.clone(), whole.members.clone());
            }
        }
        prop_assert_eq!(seen, whole);
    }

    #[test]
    fn no_name_panics_or_hides_another_key(name in value(), value in value()) {
        prop_assume!(GOOD.iter().all(|(good, _)| good.as_bytes() != name));
        let stray = RawKey { name: &name, value: &value, lease: None, modified: Revision(5) };
        let view = parse(Revision(9), GOOD.iter().map(|(name, good)| raw(name, good.as_bytes())).chain([stray])).view;
        let whole = read(&GOOD).view;
        prop_assert_eq!(view.leader, whole.leader);
        prop_assert_eq!(view.promise, whole.promise);
        prop_assert_eq!(view.config, whole.config);
        prop_assert!(view.members.contains_key(&MemberName::from("n1")));
    }
}

#[test]
fn a_request_for_another_leader_reads_in_every_form() {
    let request = |value: &str| read(&[(FAILOVER, value)]).view.failover;
    let asked = |leader: Option<&str>, candidate: Option<&str>| {
        let (leader, candidate) = (leader.map(MemberName::from), candidate.map(MemberName::from));
        Some(Failover { leader, candidate, schedule: None, modified: Revision(5) })
    };
    for (value, expected) in [
        (r#"{"leader":"n1","member":"n2"}"#, asked(Some("n1"), Some("n2"))),
        (r#"{"member":"n2"}"#, asked(None, Some("n2"))),
        (r#"{"leader":"n1","member":""}"#, asked(Some("n1"), None)),
        ("n1:n2", asked(Some("n1"), Some("n2"))),
        (":n2", asked(None, Some("n2"))),
        ("{}", None),
        (r#"{"leader":null}"#, None),
        ("[]", None),
        ("nonsense", None),
    ] {
        assert_eq!(request(value), expected, "{value}");
    }
    let scheduled = request(r#"{"leader":"n2","scheduled_at":"2026-11-21T00:34:30+00:00"}"#).and_then(|f| f.schedule);
    assert_eq!(scheduled.and_then(|s| s.at), Some(std::time::Duration::from_secs(1_795_221_270)));
    let unclear = request(r#"{"leader":"n2","scheduled_at":"soon"}"#).and_then(|f| f.schedule);
    assert_eq!(unclear, Some(Schedule { at: None, text: "soon".to_owned() }));
    for value in ["[]", "nonsense"] {
        assert!(read(&[(FAILOVER, value)]).view.garbage.contains_key(FAILOVER), "{value}");
    }
    let (a, b) = (MemberName::from("n1"), MemberName::from("n2"));
    let captured = r#"{"leader":"n1","member":"n2"}"#;
    assert_eq!(crate::keys::encode_failover(Some(&a), Some(&b), None), captured);
}

#[test]
fn the_synchronous_state_reads_as_captured() {
    for (value, expected) in [
        (r#"{"leader":"n3","quorum":0,"sync_standby":null}"#, Some(("n3", vec![], 0))),
        (r#"{"leader":"n3","quorum":1,"sync_standby":"n1,n2"}"#, Some(("n3", vec!["n1", "n2"], 1))),
        (r#"{"leader":"n3","sync_standby":"n1"}"#, Some(("n3", vec!["n1"], 0))),
        (r#"{"leader":"","quorum":1,"sync_standby":"n1"}"#, None),
        ("{}", None),
        ("[]", None),
    ] {
        let view = read(&[(SYNC, value)]).view;
        let sync = expected.map(|(leader, standbys, quorum)| SyncState {
            leader: leader.into(),
            standbys: standbys.into_iter().map(MemberName::from).collect(),
            quorum,
        });
        assert_eq!((&view.sync, view.sync_seen), (&sync, Some(Revision(5))), "{value}");
        if let Some(sync) = sync.filter(|_| value.contains("quorum")) {
            assert_eq!(crate::keys::encode_sync(&sync), value);
        }
    }
    assert_eq!(read(&[]).view.sync_seen, None);
}
