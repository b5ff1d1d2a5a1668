//! Switchover and failover over REST (rest-api.md section 15): every text of it, and what is written.

use regent::api::Command;
use regent::status::Status;
use regent_core::cluster::{ClusterView, Failover, LeaderKey, Member, Schedule};
use regent_core::units::{LeaseId, MemberName, Revision};
use regent_dcs::{Write, Written};

use super::support::*;

/// n1 leads; n2 is there and answers at this address.
fn cluster(target: &Node, change: impl FnOnce(&mut ClusterView)) -> Status {
    let member = |node: Option<&Node>| Member {
        api_url: node.map(|node| format!("http://{}/patroni", node.address())),
        ..Member::default()
    };
    let mut view = view(Some("n1"));
    view.revision = Revision(10);
    view.members = [("n1".into(), member(None)), ("n2".into(), member(Some(target)))].into();
    change(&mut view);
    Status { view: Some(view), ..leader() }
}

fn call(node: &Node, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let answer = Answer::of(&node.raw(format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")));
    (answer.code, answer.body)
}

#[test]
fn what_cannot_be_is_refused_in_the_contracts_words() {
    let target = Node::with(replica());
    let mut node = Node::with(cluster(&target, |_| {}));
    for (path, body, code, text) in [
        ("/failover", r#"{"leader":"n1"}"#, 400, "Failover could be performed only to a specific candidate"),
        ("/switchover", r#"{"candidate":"n2"}"#, 400, "Switchover could be performed only from a specific leader"),
        ("/failover", r#"{"candidate":"n2","scheduled_at":"2040-01-01T00:00Z"}"#, 400, "Failover can't be scheduled"),
        ("/switchover", r#"{"leader":"n1","candidate":"n1"}"#, 400, "Switchover target and source are the same"),
        ("/failover", r#"{"leader":"n1","candidate":"n1"}"#, 400, "Switchover target and source are the same"),
        (
            "/switchover",
            r#"{"leader":"n1","scheduled_at":"2040-01-01T00:00"}"#,
            400,
            "Timezone information is mandatory for the scheduled switchover",
        ),
        (
            "/switchover",
            r#"{"leader":"n1","scheduled_at":"2001-01-01T00:00Z"}"#,
            422,
            "Cannot schedule switchover in the past",
        ),
        (
            "/switchover",
            r#"{"leader":"n1","scheduled_at":17}"#,
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        ),
        ("/switchover", r#"{"leader":"n2"}"#, 412, "leader name does not match"),
        ("/switchover", r#"{"leader":"n1","candidate":"n9"}"#, 412, "candidate does not exists"),
    ] {
        assert_eq!(call(&node, "POST", path, body), (code, text.to_owned()), "{path} {body}");
    }
    node.publish(Status { pause: true, ..cluster(&target, |_| {}) });
    for (body, text) in [
        (r#"{"leader":"n1","scheduled_at":"2040-01-01T00:00Z"}"#, "Can't schedule switchover in the paused state"),
        (r#"{"leader":"n1"}"#, "Switchover is possible only to a specific candidate in a paused state"),
    ] {
        assert_eq!(call(&node, "POST", "/switchover", body), (400, text.to_owned()));
    }
    node.publish(cluster(&target, |view| drop(view.members.remove(&MemberName::from("n2")))));
    let alone = "switchover is not possible: cluster does not have members except leader";
    assert_eq!(call(&node, "POST", "/switchover", r#"{"leader":"n1"}"#), (412, alone.to_owned()));
    node.publish(cluster(&target, |_| {}));
    target.publish(Status { failover_priority: 0, tags: tags(&[("nofailover", true)]), ..replica() });
    let nobody = "switchover is not possible: no good candidates have been found";
    assert_eq!(call(&node, "POST", "/switchover", r#"{"leader":"n1"}"#), (412, nobody.to_owned()));
    assert!(node.commands.try_recv().is_err(), "nothing was written");
}

fn tags(tags: &[(&str, bool)]) -> serde_json::Map<String, serde_json::Value> {
    tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect()
}

/// Answers the one write that the call makes, then lets this become of it.
fn granted(node: &mut Node, then: Status) -> Write {
    let Some(Command::Write { write, reply }) = node.commands.blocking_recv() else { panic!("no write") };
    reply.send(Ok(Written::Done(Revision(20)))).unwrap();
    node.publish(then);
    write
}

#[test]
fn the_answer_is_what_became_of_it() {
    let target = Node::with(replica());
    let asked = |view: &mut ClusterView| {
        view.failover =
            Some(Failover { leader: Some("n1".into()), candidate: None, schedule: None, modified: Revision(20) });
    };
    let leads = |name: &'static str| {
        move |view: &mut ClusterView| {
            view.revision = Revision(30);
            view.leader = Some(LeaderKey { name: name.into(), lease: Some(LeaseId(2)), modified: Revision(25) });
        }
    };
    for (path, body, then, code, text) in [
        ("/switchover", r#"{"leader":"n1","candidate":"n2"}"#, "n2", 200, "Successfully switched over to \"n2\""),
        ("/switchover", r#"{"leader":"n1","candidate":""}"#, "n2", 200, "Successfully switched over to \"n2\""),
        ("/switchover", r#"{"leader":"n1","member":"n2"}"#, "n3", 200, "Switched over to \"n3\" instead of \"n2\""),
        ("/failover", r#"{"candidate":"n2"}"#, "n2", 200, "Successfully failed over to \"n2\""),
        ("/failover", r#"{"candidate":"n2"}"#, "n1", 503, "Failover failed"),
        ("/switchover", r#"{"leader":"n1"}"#, "n1", 503, "Switchover failed"),
    ] {
        let mut node = Node::with(cluster(&target, asked));
        let address = node.address();
        let (path, body) = (path.to_owned(), body.to_owned());
        let client = std::thread::spawn(move || {
            let length = body.len();
            Answer::of(&send(address, &format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")))
        });
        let write = granted(&mut node, cluster(&target, leads(then)));
        assert!(matches!(write, Write::RequestFailover { scheduled_at: None, .. }), "{write:?}");
        let answer = client.join().unwrap();
        assert_eq!((answer.code, answer.body.as_str()), (code, text));
    }
}

#[test]
fn a_schedule_is_written_shown_and_taken_back() {
    let target = Node::with(replica());
    let scheduled = |view: &mut ClusterView| {
        let text = "2041-01-01T12:00:00+01:00".to_owned();
        let schedule = Some(Schedule { at: Some(secs(2_240_650_800)), text });
        view.failover = Some(Failover {
            leader: Some("n1".into()),
            candidate: Some("n2".into()),
            schedule,
            modified: Revision(12),
        });
    };
    let mut node = Node::with(cluster(&target, |_| {}));
    assert_eq!(call(&node, "DELETE", "/switchover", ""), (404, "no switchover is scheduled".to_owned()));
    let address = node.address();
    let client = std::thread::spawn(move || {
        let body = r#"{"leader":"n9","scheduled_at":"2041-01-01 12:00+0100"}"#;
        Answer::of(&send(
            address,
            &format!("POST /switchover HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        ))
    });
    let write =
        granted(&mut node, Status { last_view: cluster(&target, scheduled).view, ..cluster(&target, scheduled) });
    let expected = Some("2041-01-01T12:00:00+01:00".to_owned());
    assert!(matches!(write, Write::RequestFailover { scheduled_at, .. } if scheduled_at == expected));
    let answer = client.join().unwrap();
    assert_eq!((answer.code, answer.body.as_str()), (202, "Switchover scheduled"));
    let shown = r#""scheduled_switchover": {"at": "2041-01-01T12:00:00+01:00", "from": "n1", "to": "n2"}"#;
    let document = node.get("/cluster").body;
    assert!(document.contains(shown), "{document}");
    let client = std::thread::spawn(move || Answer::of(&send(address, "DELETE /switchover HTTP/1.0\r\n\r\n")));
    let write = granted(&mut node, cluster(&target, |_| {}));
    assert_eq!(write, Write::ClearFailover { seen: Revision(12) });
    let answer = client.join().unwrap();
    assert_eq!((answer.code, answer.body.as_str()), (200, "scheduled switchover deleted"));
}
