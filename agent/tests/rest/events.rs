//! `/decisions`, `/events`, `/explain`.

use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, UNIX_EPOCH};

use regent::status::Status;
use regent_core::cluster::{ClusterView, Member, MemberTags};
use regent_core::fixture::{primary, standby};
use regent_core::rules::decide;
use regent_core::snapshot::Snapshot;
use regent_core::units::Lsn;
use serde_json::{Value, json};

use super::support::*;

fn decides(node: &Node, seen: &Snapshot) {
    node.journal.decided(&decide(seen), seen, UNIX_EPOCH + Duration::from_secs(1_800_000_000));
}

fn json_of(body: &str) -> Value {
    serde_json::from_str(body).unwrap()
}

#[test]
fn the_last_decisions_come_with_what_they_were_taken_on() {
    let node = Node::with(leader());
    assert_eq!(node.get("/decisions").body, "[]");
    let seen = standby().vacant().alone().build();
    decides(&node, &primary().build());
    decides(&node, &seen);
    let shown = json_of(&node.get("/decisions").body);
    let rules: Vec<_> = shown.as_array().unwrap().iter().map(|shown| shown["rule"].as_str().unwrap()).collect();
    assert_eq!(rules, ["run_for_leader", "lead"], "latest first");
    assert_eq!(shown[0]["time"], "2027-01-15T08:00:00.000Z");
    assert!(shown[0]["why"].as_str().unwrap().starts_with("nobody leads"), "{}", shown[0]["why"]);
    let again: Snapshot = serde_json::from_value(shown[0]["observation"].clone()).unwrap();
    assert_eq!(again, seen);
    assert_eq!(json_of(&node.get("/decisions?limit=1").body).as_array().unwrap().len(), 1);
    for hostile in ["all", "0", "-1", "257", "1e9", "99999999999999999999999", "%00", "1%3B"] {
        assert_eq!(node.code(&format!("/decisions?limit={hostile}")), 400, "{hostile}");
    }
    assert_eq!(node.code("/decisions?before=now"), 400);
}

#[test]
fn decisions_are_told_in_pieces_and_none_is_missed() {
    let node = Node::with(leader());
    let mut seen = standby().build();
    // Large enough that few fit into one answer.
    let name = "n".repeat(60_000);
    seen.config.name = name.as_str().into();
    for _ in 0..12 {
        decides(&node, &seen);
    }
    let (mut path, mut numbers) = ("/decisions?limit=256".to_owned(), Vec::new());
    for _ in 0..20 {
        let answer = node.get(&path);
        assert!(answer.body.len() <= 256 << 10, "{} bytes", answer.body.len());
        numbers.extend(json_of(&answer.body).as_array().unwrap().iter().map(|one| one["number"].as_u64().unwrap()));
        let Some(next) = answer.header("Link") else { break };
        let (target, relation) = next.trim_start_matches('<').split_once('>').unwrap();
        assert_eq!(relation, r#"; rel="next""#);
        target.clone_into(&mut path);
    }
    assert_eq!(numbers, (1..=12).rev().collect::<Vec<_>>());
    let two = json_of(&node.get("/decisions?limit=2&before=5").body);
    assert_eq!((two.as_array().unwrap().len(), &two[0]["number"]), (2, &json!(4)));
}

/// The lines of the stream up to an empty one.
fn next_event(stream: &mut impl BufRead) -> Vec<String> {
    let mut event = Vec::new();
    loop {
        let mut line = String::new();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "the stream ended after {event:?}");
        match line.trim_end() {
            "" if event.is_empty() => {}
            "" => return event,
            line => event.push(line.to_owned()),
        }
    }
}

/// A stream, past its head and its first chunk's size.
fn follow(node: &Node, request: &str) -> impl BufRead {
    let mut stream = node.connect();
    // As HTTP/1.0, which knows no chunks.
    stream.write_all(format!("GET {request} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let head = next_event(&mut stream);
    assert!(head[0].ends_with("200 OK"), "{head:?}");
    assert!(head.iter().any(|line| line.eq_ignore_ascii_case("content-type: text/event-stream")), "{head:?}");
    stream
}

#[test]
fn what_happens_is_told_as_it_happens_and_again_to_who_missed_it() {
    let node = Node::with(leader());
    decides(&node, &primary().build());
    let mut live = follow(&node, "/events");
    // Only what happens from now on: wait until the reader is there.
    std::thread::sleep(Duration::from_millis(200));
    decides(&node, &standby().build());
    let event = next_event(&mut live);
    assert_eq!(event[..2], ["id: 2", "event: decision"]);
    let data = json_of(event[2].strip_prefix("data: ").unwrap());
    assert_eq!((&data["rule"], &data["number"]), (&json!("stay_standby"), &json!(2)));
    assert_eq!(data.get("observation"), None, "it is in /decisions");

    let mut resumed = follow(&node, "/events HTTP/1.0\r\nLast-Event-ID: 1\r\nX:");
    assert_eq!(next_event(&mut resumed)[0], "id: 2");
    let mut all = follow(&node, "/events?after=0");
    assert_eq!((&next_event(&mut all)[0][..], &next_event(&mut all)[0][..]), ("id: 1", "id: 2"));
    for _ in 0..300 {
        decides(&node, &primary().build());
    }
    let mut late = follow(&node, "/events?after=1");
    assert_eq!(next_event(&mut late)[0], "event: gap");
    assert_eq!(next_event(&mut late)[0], "id: 47", "the oldest that is kept");
    assert_eq!(node.code("/events?after=then"), 400);
}

#[test]
fn a_status_that_differs_is_an_event() {
    let node = Node::with(leader());
    let wall = UNIX_EPOCH + Duration::from_secs(5);
    node.journal.published(&replica(), &replica(), wall);
    node.journal.published(&replica(), &Status { pause: true, ..leader() }, wall);
    let mut all = follow(&node, "/events?after=0");
    let kinds: Vec<_> = (0..2).map(|_| next_event(&mut all)[1].clone()).collect();
    assert_eq!(kinds, ["event: role", "event: pause"]);
}

fn cluster() -> Status {
    let member = |name: &str, at, nofailover| {
        let tags = MemberTags { nofailover, ..MemberTags::default() };
        let api_url = Some(format!("http://{name}:8008/patroni"));
        let member =
            Member { state: "running".into(), api_url, xlog_location: Some(Lsn(at)), tags, ..Member::default() };
        (name.into(), Member { timeline: Some(regent_core::units::Timeline(1)), ..member })
    };
    let members = [member("n1", 67_108_960, false), member("n2", 67_108_960, false), member("n3", 67_108_950, true)];
    let last_view = Some(ClusterView { members: members.into(), ..view(Some("n1")) });
    Status { last_view, ..leader() }
}

#[test]
fn the_reasons_for_and_against_each_candidate_are_the_rules_own() {
    let node = Node::with(cluster());
    let shown = json_of(&node.get("/explain").body);
    assert_eq!((&shown["leader"], &shown["name"]), (&json!("n1"), &json!("n1")));
    let standing = |shown: &Value| {
        let members = shown["without_leader"].as_array().unwrap().clone();
        members
            .iter()
            .map(|m| format!("{} {} {} {}", m["name"], m["candidate"], m["rule"], m["lag"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(standing(&shown), [r#""n2" true "run_for_leader" 0"#, r#""n3" false "wait_nofailover" 10"#]);
    let asked = json_of(&node.get("/explain?candidate=n2").body);
    assert_eq!(standing(&asked)[0], r#""n2" true "run_as_candidate" 0"#);
    // The leader sees who streams from it at this moment.
    let mut status = cluster();
    if let Some(sql) = &mut status.sql {
        sql.replication[0].position = Some(Lsn(67_108_900));
    }
    assert_eq!(standing(&json_of(&Node::with(status).get("/explain").body))[0], r#""n2" true "run_for_leader" 60"#);
    let unread = Node::with(Status { last_view: None, ..leader() });
    assert_eq!(unread.code("/explain"), 503);
}
