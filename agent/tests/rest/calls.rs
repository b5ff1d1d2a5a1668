//! Calls that change something, and who may make them.

use regent::api::{Command, Credentials, Policy, ServerTokens};

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
    assert!(matches!(node.commands.try_recv(), Ok(Command::Reload)));
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
        ("POST", "/restart"),
        ("DELETE", "/restart"),
        ("POST", "/reinitialize"),
        ("PATCH", "/config"),
        ("PUT", "/config"),
    ] {
        let answer = post(&node, method, path, "Content-Length: 2\r\n\r\n{}");
        assert_eq!(answer.code, 501, "{method} {path}");
        assert!(answer.body.starts_with(&format!("{method} {path} is not supported")), "{}", answer.body);
    }
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
    });
    for path in ["/", "/metrics", "/cluster", "/config"] {
        assert_eq!(header(&node.get(path)), (Some("Regent".to_owned()), Some("1".to_owned())), "{path}");
    }
    assert_eq!(header(&node.ask("HEAD", "/")).1, None, "a bare status line stays bare");
    assert_eq!(post(&node, "POST", "/reload", "\r\n").code, 401);
}
