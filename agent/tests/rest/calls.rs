//! Calls that change something, and who may make them.

use regent::agent;
use regent::api::{Command, Credentials, Policy, ServerTokens};
use regent::status::Status;
use regent_core::cluster::FailsafeKey;
use regent_core::fixture::{cut_off, primary, standby};
use regent_core::units::Revision;

use super::support::*;

fn post(node: &Node, method: &str, path: &str, rest: &str) -> Answer {
    Answer::of(&node.raw(format!("{method} {path} HTTP/1.0\r\n{rest}")))
}

#[test]
fn reload_goes_to_the_loop_and_is_answered_at_once() {
    let mut node = Node::with(replica());
    let answer = post(&node, "POST", "/reload", "\r\n");
    assert_eq!((answer.code, answer.body.as_str()), (202, "reload scheduled"));
    assert_eq!(answer.header("Content-Type"), Some("text/html"));
    assert!(matches!(node.commands.try_recv(), Ok(Command::Loop(agent::Command::Reload { reply: Some(_) }))));
    assert_eq!(post(&node, "POST", "/reload", "Content-Length: 4\r\n\r\n{bad").code, 202, "the body is ignored");

    // Nobody takes the commands: a full queue and a dead loop are told, never waited for.
    assert_eq!(post(&node, "POST", "/reload", "\r\n").code, 202);
    assert_eq!(post(&node, "POST", "/reload", "\r\n").code, 503);
    node.commands.close();
    while node.commands.try_recv().is_ok() {}
    assert_eq!(post(&node, "POST", "/reload", "\r\n").body, "the agent is shutting down");
}

#[test]
fn calls_without_effect_answer_as_the_contract_says() {
    let mut node = Node::with(replica());
    let body = |text: &str| format!("Content-Length: {}\r\n\r\n{text}", text.len());
    for (path, rest, code, text) in [
        ("/sigterm", "\r\n".to_owned(), 202, Some("shutdown scheduled")),
        ("/mpp", body(r#"{"type": "x"}"#), 200, Some("OK")),
        ("/citus/x", body(" {\"a\": 1}\n"), 200, Some("OK")),
        ("/citus", "\r\n".to_owned(), 411, None),
        ("/citus", body(""), 400, None),
        ("/citus", body("{}"), 400, None),
        ("/citus", body("[1]"), 400, None),
        ("/citus", body("{bad"), 400, None),
        ("/citus", "Content-Length: x\r\n\r\n".to_owned(), 400, None),
        ("/failsafe", "\r\n".to_owned(), 502, None),
    ] {
        let answer = post(&node, "POST", path, &rest);
        assert_eq!(answer.code, code, "{path} {rest:?}");
        if let Some(text) = text {
            assert_eq!(answer.body, text, "{path}");
        }
    }
    assert!(node.commands.try_recv().is_err());
}

#[test]
fn what_is_not_there_says_so_and_does_nothing() {
    let mut node = Node::with(replica());
    for (method, path) in [
        ("POST", "/"),
        ("POST", "/patroni"),
        ("DELETE", "/failover"),
        ("PUT", "/switchover"),
        ("POST", "/config"),
        ("DELETE", "/config"),
        ("FOO", "/"),
        ("TRACE", "/"),
        ("CONNECT", "/"),
        ("get", "/"),
    ] {
        assert_eq!(post(&node, method, path, "\r\n").code, 501, "{method} {path}");
    }
    assert!(node.commands.try_recv().is_err());
}

#[test]
fn basic_authentication_guards_calls_and_not_reads() {
    let credentials = Credentials { username: "admin".to_owned(), password: "p:w".to_owned() };
    assert!(!format!("{credentials:?}").contains("p:w"));
    let mut node = Node::with_policy(replica(), Policy { credentials: Some(credentials), ..Policy::default() });
    let none = "no auth header received";
    for (header, refusal) in [
        ("", none),
        ("Authorization: Bearer x\r\n", "not authenticated"),
        ("Authorization: basic YWRtaW46cDp3\r\n", "not authenticated"),
        ("Authorization: Basic ???\r\n", "not authenticated"),
        ("Authorization: Basic YWRtaW46cDp4\r\n", "not authenticated"), // admin:p:x
        ("Authorization: Basic YWRtaW46cDo=\r\n", "not authenticated"), // admin:p:
    ] {
        let answer = post(&node, "POST", "/reload", &format!("{header}\r\n"));
        assert_eq!((answer.code, answer.body.as_str()), (401, refusal), "{header:?}");
        assert_eq!(answer.header("WWW-Authenticate"), Some("Basic realm=\"Patroni\""));
    }
    assert!(node.commands.try_recv().is_err());
    assert_eq!(post(&node, "POST", "/reload", "authorization: Basic YWRtaW46cDp3\r\n\r\n").code, 202);
    assert!(node.commands.try_recv().is_ok());
    for path in ["/mpp", "/sigterm", "/switchover", "/failsafe"] {
        assert_eq!(post(&node, "POST", path, "\r\n").code, 401, "{path}");
    }
    assert_eq!(post(&node, "POST", "/nosuch", "\r\n").code, 501, "what is not there needs no guard");
    for method in ["GET", "HEAD", "OPTIONS"] {
        assert_eq!(node.ask(method, "/replica").code, 200);
    }
}

#[test]
fn a_new_policy_counts_from_the_next_request() {
    let node = Node::with(replica());
    let header =
        |answer: &Answer| (answer.header("Server").map(str::to_owned), answer.header("X-A").map(str::to_owned));
    assert_eq!(header(&node.get("/")).1, None);
    let extra = ("x-a".parse().unwrap(), "1".parse().unwrap());
    node.server.set_policy(Policy {
        credentials: Some(Credentials { username: "u".to_owned(), password: "p".to_owned() }),
        server_tokens: ServerTokens::ProductOnly,
        extra_headers: vec![extra],
        ..Policy::default()
    });
    for path in ["/", "/metrics", "/cluster", "/config"] {
        assert_eq!(header(&node.get(path)), (Some("Regent".to_owned()), Some("1".to_owned())), "{path}");
    }
    assert_eq!(header(&node.ask("HEAD", "/")).1, None, "a bare status line stays bare");
    assert_eq!(post(&node, "POST", "/reload", "\r\n").code, 401);
}

/// The body of a notice from b.
const NOTICE: &str =
    r#"{"name":"b","conn_url":"postgres://b:5432/postgres","api_url":"http://b:8008/patroni","slots":{"a":5}}"#;

fn notify(node: &Node, body: &str) -> Answer {
    post(node, "POST", "/failsafe", &format!("Content-Length: {}\r\n\r\n{body}", body.len()))
}

/// A member that follows b, with failsafe mode on.
fn follower() -> Node {
    let node = Node::with(Status { failsafe_mode: true, ..replica() });
    assert_eq!(node.failsafe.look(&standby().with(|s| (cut_off(s), s.now = NOW).1)), None);
    node
}

#[test]
fn a_standby_agrees_for_ttl_and_says_so() {
    let node = follower();
    let active = |node: &Node| node.get("/patroni").body.contains(r#""failsafe_mode_is_active": true"#);
    assert!(!active(&node));
    let answer = notify(&node, NOTICE);
    assert_eq!((answer.code, answer.body.as_str()), (200, "Accepted"));
    let position = answer.header("lsn").and_then(|text| text.parse::<u64>().ok());
    assert!(position.is_some_and(|lsn| lsn > 0), "{}", answer.head);
    assert!(
        active(&node)
            && node.get("/metrics").body.contains("patroni_failsafe_mode_is_active{scope=\"demo\",name=\"n2\"} 1")
    );
    assert_eq!(node.failsafe.agreement(NOW).unwrap().to.slots["a"].0, 5);
    node.pass(replica().ttl);
    assert!(!active(&node), "no longer than promised");
}

#[test]
fn who_leads_or_may_lead_next_does_not_agree() {
    let node = Node::with(Status { failsafe_mode: true, ..replica() });
    for seen in [primary().build(), standby().vacant().build(), standby().holding_the_key().build()] {
        node.failsafe.look(&seen);
        let answer = notify(&node, NOTICE);
        assert_eq!((answer.code, answer.body.as_str()), (500, "Running as a leader"));
    }
    node.failsafe.look(&standby().build());
    assert_eq!(notify(&node, NOTICE).code, 200);
}

#[test]
fn a_bad_notice_changes_nothing() {
    let node = follower();
    for (body, code) in [("", 400), ("{}", 400), (r#"{"foo": 1}"#, 400), (r#"{"name":"b","conn_url":"x"}"#, 400)] {
        assert_eq!(notify(&node, body).code, code, "{body}");
    }
    assert_eq!(post(&node, "POST", "/failsafe", "\r\n").code, 411);
    node.publish(replica());
    assert_eq!(notify(&node, NOTICE).code, 502, "the mode is off");
    assert_eq!(node.failsafe.agreement(NOW), None);
}

#[test]
fn the_failsafe_key_is_shown_as_last_seen() {
    let node = Node::with(replica());
    assert_eq!(node.code("/failsafe"), 502);
    let mut status = replica();
    let members = [("n2".into(), "http://n2:8008/patroni".to_owned())].into();
    status.last_view.as_mut().unwrap().failsafe = Some(FailsafeKey { members, modified: Revision(3) });
    node.publish(status);
    let answer = node.get("/failsafe");
    assert_eq!((answer.code, answer.body.as_str()), (200, r#"{"n2": "http://n2:8008/patroni"}"#));
    assert!(node.get("/metrics").body.contains("patroni_failsafe_member{scope=\"demo\",name=\"n2\"} 1"));
}
