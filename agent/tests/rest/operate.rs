//! Restart and reinitialize over REST (rest-api.md sections 14, 16): every text of them, and what reaches the loop.

use regent::agent::{self, ALREADY_SCHEDULED};
use regent::api::Command;
use regent::status::{State, Status};
use regent_core::request::{Request, Restart};
use tokio::sync::oneshot;

use super::support::*;

type Reply = oneshot::Sender<Result<(), String>>;

fn call(node: &Node, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let answer = Answer::of(&node.raw(format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")));
    (answer.code, answer.body)
}

/// Calls, and lets `act` play the loop.
fn with_loop(
    node: &mut Node,
    path: &'static str,
    body: &'static str,
    act: impl FnOnce(&mut Node, Request, Reply),
) -> (u16, String) {
    let address = node.address();
    let request = format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let client = std::thread::spawn(move || Answer::of(&send(address, &request)));
    let Some(Command::Loop(agent::Command::Request { request, reply })) = node.commands.blocking_recv() else {
        panic!("another command")
    };
    act(node, request, reply);
    let answer = client.join().unwrap();
    (answer.code, answer.body)
}

#[test]
fn what_makes_no_sense_is_refused_before_the_loop_hears_of_it() {
    let mut node = Node::with(replica());
    for (body, code, text) in [
        (r#"{"role": "boss"}"#, 400, "PostgreSQL role should be either primary, standby_leader, or replica"),
        (r#"{"postgres_version": "x"}"#, 400, "Invalid PostgreSQL version: x"),
        (r#"{"postgres_version": 15}"#, 400, "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 15"),
        (r#"{"postgres_version": "9.6"}"#, 400, "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 9.6"),
        (r#"{"timeout": 0}"#, 400, "Timeout should be a positive number of seconds"),
        (r#"{"timeout": "soon"}"#, 400, "Timeout should be a positive number of seconds"),
        (r#"{"now": true}"#, 400, "Unknown filter for the scheduled restart: now"),
        (r#"{"timeout": -1, "now": true}"#, 400, "Timeout should be a positive number of seconds"),
        (r#"{"schedule": "2040-01-01T00:00"}"#, 400, "Timezone information is mandatory for the scheduled restart"),
        (r#"{"schedule": "2001-01-01T00:00Z"}"#, 422, "Cannot schedule restart in the past"),
        (
            r#"{"schedule": null}"#,
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        ),
    ] {
        assert_eq!(call(&node, "POST", "/restart", body), (code, text.to_owned()), "{body}");
    }
    for body in ["{bad", "[]", "17"] {
        assert_eq!(call(&node, "POST", "/restart", body).0, 400, "{body}");
        assert_eq!(call(&node, "POST", "/reinitialize", body).0, 400, "{body}");
    }
    node.publish(Status { pause: true, ..replica() });
    let paused = "Can't schedule restart in the paused state";
    assert_eq!(call(&node, "POST", "/restart", r#"{"schedule": "x"}"#), (500, paused.to_owned()));
    node.publish(Status { action: Some("bootstrap from leader 'n3'".to_owned()), ..replica() });
    let busy = "bootstrap from leader 'n3' already in progress".to_owned();
    assert_eq!(call(&node, "POST", "/restart", ""), (503, busy.clone()));
    assert_eq!(call(&node, "POST", "/reinitialize", ""), (503, busy));
    node.publish(Status { view: Some(view(None)), ..replica() });
    let vacant = "Cluster has no leader, can not reinitialize";
    assert_eq!(call(&node, "POST", "/reinitialize", "{}"), (503, vacant.to_owned()));
    node.publish(leader());
    let mine = "I am the leader, can not reinitialize";
    assert_eq!(call(&node, "POST", "/reinitialize", r#"{"force": true}"#), (503, mine.to_owned()));
    assert!(node.commands.try_recv().is_err());
}

#[test]
fn a_restart_is_answered_when_the_server_accepts_connections() {
    let mut node = Node::with(leader());
    let body = r#"{"role": "primary", "postgres_version": "15.3", "timeout": "1min", "restart_pending": true}"#;
    let answer = with_loop(&mut node, "/restart", body, |node, request, reply| {
        let wanted = Restart {
            role: Some("primary".into()),
            older_than: Some(("15.3".into(), 150_003)),
            pending: true,
            timeout: Some(secs(60)),
            ..Restart::default()
        };
        assert_eq!(request, Request::Restart(wanted));
        reply.send(Ok(())).unwrap();
        node.publish(Status { at: NOW + secs(1), sql: None, state: State::Starting, ..leader() });
        node.publish(Status { at: NOW + secs(2), ..leader() });
    });
    assert_eq!(answer, (200, "restarted successfully".to_owned()));
}

#[test]
fn what_became_of_a_restart_is_told_in_the_contracts_words() {
    for (outcome, text) in [
        (Some("restart conditions are not satisfied"), "restart conditions are not satisfied"),
        (Some("reinitialize already in progress"), "reinitialize already in progress"),
        (Some("postgres failed (exit status: 1): FATAL"), "restart failed"),
        (None, "restart failed"),
    ] {
        let mut node = Node::with(replica());
        let answer = with_loop(&mut node, "/restart", "", |_, request, reply| {
            assert_eq!(request, Request::Restart(Restart::default()));
            match outcome {
                Some(why) => reply.send(Err(why.to_owned())).unwrap(),
                None => drop(reply),
            }
        });
        assert_eq!(answer, (503, text.to_owned()), "{outcome:?}");
    }
    let mut node = Node::with(replica());
    let slow = with_loop(&mut node, "/restart", r#"{"timeout": 1}"#, |node, _, reply| {
        reply.send(Ok(())).unwrap();
        node.publish(Status { at: NOW + secs(1), sql: None, state: State::Starting, ..replica() });
    });
    assert_eq!(slow, (503, "postgres is still starting".to_owned()));
}

#[test]
fn a_scheduled_restart_is_accepted_once_shown_and_deleted() {
    let mut node = Node::with(replica());
    let body = r#"{"schedule": "2040-01-01 00:00+02", "restart_pending": false}"#;
    let shown = serde_json::json!({"schedule": "2040-01-01T00:00:00+02:00", "role": "replica"});
    let accepted = with_loop(&mut node, "/restart", body, |node, request, reply| {
        let Request::Restart(restart) = request else { panic!("{request:?}") };
        let schedule = restart.schedule.unwrap();
        assert_eq!(schedule.text, "2040-01-01T00:00:00+02:00");
        assert!(schedule.at.is_some() && restart.started_at == replica().sql.map(|sql| sql.started_at));
        assert!(!restart.pending, "a false is no wish");
        reply.send(Ok(())).unwrap();
        node.publish(Status { scheduled_restart: Some(shown), ..replica() });
    });
    assert_eq!(accepted, (202, "Restart scheduled".to_owned()));
    let again = with_loop(&mut node, "/restart", body, |_, _, reply| {
        reply.send(Err(ALREADY_SCHEDULED.to_owned())).unwrap();
    });
    assert_eq!(again, (409, "Another restart is already scheduled".to_owned()));

    let end = r#""name": "n2"}, "scheduled_restart": {"schedule": "2040-01-01T00:00:00+02:00", "role": "replica"}"#;
    assert!(node.get("/patroni").body.contains(end), "{}", node.get("/patroni").body);

    for (there, code, text) in [(true, 200, "scheduled restart deleted"), (false, 404, "no restarts are scheduled")] {
        let address = node.address();
        let client = std::thread::spawn(move || Answer::of(&send(address, "DELETE /restart HTTP/1.0\r\n\r\n")));
        let Some(Command::Loop(agent::Command::Unschedule { reply })) = node.commands.blocking_recv() else {
            panic!("another command")
        };
        reply.send(there).unwrap();
        node.publish(replica());
        let answer = client.join().unwrap();
        assert_eq!((answer.code, answer.body.as_str()), (code, text));
    }
}

#[test]
fn a_new_copy_is_answered_when_its_state_is_shown() {
    for (body, from_leader, force) in [
        ("", false, false),
        (r#"{"force": "yes", "from_leader": 1}"#, true, true),
        (r#"{"force": false, "from-leader": true}"#, true, false),
    ] {
        let mut node = Node::with(replica());
        let answer = with_loop(&mut node, "/reinitialize", body, |node, request, reply| {
            assert_eq!(request, Request::Reinitialize { from_leader, force });
            reply.send(Ok(())).unwrap();
            node.publish(Status { action: Some("reinitialize".into()), state: State::CreatingReplica, ..replica() });
        });
        assert_eq!(answer, (200, "reinitialize started".to_owned()), "{body}");
        assert!(node.get("/patroni").body.contains(r#""state": "creating replica""#));
    }
}
