//! What operators ask for has an id and a definite end.

use std::time::{Duration, UNIX_EPOCH};

use regent::agent;
use regent::api::Command;
use regent::status::{State, Status};
use regent_core::cluster::{ClusterView, Failover, LeaderKey, Member, Schedule};
use regent_core::fixture::{primary, standby};
use regent_core::request::Request;
use regent_core::rules::decide;
use regent_core::units::{LeaseId, MemberName, Revision};
use regent_dcs::{Write, Written};
use serde_json::{Value, json};

use super::support::*;

/// Sends a call and lets `act` play the loop; the id that the client was told, and its answer.
fn ask(node: &mut Node, request: &str, act: impl FnOnce(&mut Node)) -> (u64, Answer) {
    let (address, request) = (node.address(), request.to_owned());
    let client = std::thread::spawn(move || Answer::of(&send(address, &request)));
    act(node);
    let answer = client.join().unwrap();
    let id = answer.header("Regent-Operation").expect("an id").parse().unwrap();
    (id, answer)
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// What became of it, once it is no more this.
fn past(node: &Node, id: u64, state: &str) -> Value {
    let mut shown = Value::Null;
    for _ in 0..500 {
        shown = serde_json::from_str(&node.get(&format!("/operations/{id}")).body).unwrap();
        if shown["state"] != state {
            return shown;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still {shown}");
}

fn running(node: &Node, id: u64) {
    let shown: Value = serde_json::from_str(&node.get(&format!("/operations/{id}")).body).unwrap();
    assert_eq!((&shown["state"], shown.get("result")), (&json!("running"), None), "{shown}");
}

fn end(shown: &Value) -> (&str, &str) {
    (shown["state"].as_str().unwrap(), shown["result"].as_str().unwrap())
}

#[test]
fn a_reload_ends_when_the_loop_has_read_the_file() {
    let mut node = Node::with(replica());
    for (outcome, wanted) in [
        (Ok(()), ("done", "configuration reloaded")),
        (Err("line 3: no".to_owned()), ("failed", "the old configuration stays in force: line 3: no")),
    ] {
        let mut told = None;
        let (id, answer) = ask(&mut node, &post("/reload", ""), |node| {
            let Some(Command::Loop(agent::Command::Reload { reply })) = node.commands.blocking_recv() else { panic!() };
            told = reply;
        });
        assert_eq!((answer.code, answer.body.as_str()), (202, "reload scheduled"));
        running(&node, id);
        told.unwrap().send(outcome).unwrap();
        let shown = past(&node, id, "running");
        assert_eq!(end(&shown), wanted);
        assert_eq!((&shown["operation"], &shown["by"]), (&json!("reload"), &json!("127.0.0.1")));
    }
    // Never begun: refused.
    node.commands.close();
    let (id, answer) = ask(&mut node, &post("/reload", ""), |_| {});
    assert_eq!(answer.code, 503);
    assert_eq!(end(&past(&node, id, "running")), ("refused", "the agent is shutting down"));
    let all: Value = serde_json::from_str(&node.get("/operations").body).unwrap();
    let states: Vec<_> = all.as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["refused", "failed", "done"], "latest first");
}

fn started(at: &str) -> Status {
    let mut sql = standby_sql();
    at.clone_into(&mut sql.started_at);
    Status { at: NOW + secs(9), sql: Some(sql), ..replica() }
}

#[test]
fn a_new_copy_ends_when_another_server_answers_or_the_loop_refused_it() {
    for (copied, wanted) in
        [(true, ("done", "copied anew, and the server answers")), (false, ("failed", "the leader is too old"))]
    {
        let mut node = Node::with(replica());
        let (id, answer) = ask(&mut node, &post("/reinitialize", r#"{"force": true, "secret": "x"}"#), |node| {
            let Some(Command::Loop(agent::Command::Request { request, reply })) = node.commands.blocking_recv() else {
                panic!()
            };
            assert!(matches!(request, Request::Reinitialize { force: true, .. }));
            reply.send(Ok(())).unwrap();
            node.publish(Status { action: Some("reinitialize".into()), ..replica() });
        });
        assert_eq!((answer.code, answer.body.as_str()), (200, "reinitialize started"));
        let stopped = Status { sql: None, at: NOW + secs(1), state: State::CreatingReplica, ..replica() };
        node.publish(stopped);
        running(&node, id);
        let seen = standby().build();
        let mut decision = decide(&seen);
        decision.plan.refuse = (!copied).then(|| "the leader is too old".to_owned());
        node.journal.decided(&decision, &seen, UNIX_EPOCH);
        node.publish(if copied {
            started("2027-01-01 00:00:00+00")
        } else {
            Status { at: NOW + secs(9), ..replica() }
        });
        let shown = past(&node, id, "running");
        assert_eq!(end(&shown), wanted);
        assert_eq!(shown["request"], json!({"force": true}), "what is not of the contract is not kept");
        assert_eq!(shown["phases"][0]["rule"], "stay_standby");
    }
}

#[test]
fn a_restart_that_fails_says_why() {
    let mut node = Node::with(replica());
    let (id, answer) = ask(&mut node, &post("/restart", ""), |node| {
        let Some(Command::Loop(agent::Command::Request { reply, .. })) = node.commands.blocking_recv() else {
            panic!()
        };
        reply.send(Err("postgres failed: FATAL: no space".to_owned())).unwrap();
    });
    assert_eq!((answer.code, answer.body.as_str()), (503, "restart failed"), "the contract's words");
    assert_eq!(end(&past(&node, id, "running")), ("failed", "postgres failed: FATAL: no space"));

    // Slower than its client waits: it goes on, and comes up later.
    let (id, answer) = ask(&mut node, &post("/restart", r#"{"timeout": 1}"#), |node| {
        let Some(Command::Loop(agent::Command::Request { reply, .. })) = node.commands.blocking_recv() else {
            panic!()
        };
        node.publish(Status { at: NOW + secs(1), sql: None, state: State::Starting, ..replica() });
        reply.send(Ok(())).unwrap();
    });
    assert_eq!((answer.code, answer.body.as_str()), (503, "postgres is still starting"));
    running(&node, id);
    node.publish(started("2027-01-01 00:00:00+00"));
    assert_eq!(end(&past(&node, id, "running")), ("done", "restarted successfully"));
}

#[test]
fn a_scheduled_restart_ends_at_its_time_or_when_it_is_taken_back() {
    for taken_back in [false, true] {
        let mut node = Node::with(replica());
        let body = r#"{"schedule": "2040-01-01T00:00:00+00:00", "role": "replica"}"#;
        let scheduled = Status { at: NOW + secs(1), scheduled_restart: Some(json!({"schedule": "s"})), ..replica() };
        let (id, answer) = ask(&mut node, &post("/restart", body), |node| {
            let Some(Command::Loop(agent::Command::Request { reply, .. })) = node.commands.blocking_recv() else {
                panic!()
            };
            reply.send(Ok(())).unwrap();
            node.publish(scheduled.clone());
        });
        assert_eq!((answer.code, answer.body.as_str()), (202, "Restart scheduled"));
        running(&node, id);
        if taken_back {
            let (cancelled, _) = ask(&mut node, "DELETE /restart HTTP/1.0\r\n\r\n", |node| {
                let Some(Command::Loop(agent::Command::Unschedule { reply })) = node.commands.blocking_recv() else {
                    panic!()
                };
                reply.send(true).unwrap();
                node.publish(Status { at: NOW + secs(9), ..replica() });
            });
            assert_eq!(end(&past(&node, cancelled, "running")), ("done", "scheduled restart deleted"));
            assert_eq!(end(&past(&node, id, "running")), ("failed", "it was taken back"));
        } else {
            node.publish(Status { action: Some("restart".into()), sql: None, at: NOW + secs(5), ..replica() });
            running(&node, id);
            node.publish(started("2027-01-01 00:00:00+00"));
            assert_eq!(end(&past(&node, id, "running")), ("done", "restarted"));
        }
    }
}

/// n1 leads; n2 is there.
fn cluster(target: &Node, change: impl FnOnce(&mut ClusterView)) -> Status {
    let url = Some(format!("http://{}/patroni", target.address()));
    let mut view = view(Some("n1"));
    view.revision = Revision(10);
    view.members =
        [("n1".into(), Member::default()), ("n2".into(), Member { api_url: url, ..Member::default() })].into();
    change(&mut view);
    Status { view: Some(view), loop_wait: Duration::from_millis(1), ..leader() }
}

fn held_by(name: &str) -> Option<LeaderKey> {
    Some(LeaderKey { name: MemberName::from(name), lease: Some(LeaseId(2)), modified: Revision(12) })
}

fn on_the_table(modified: i64, at: Option<Duration>) -> Option<Failover> {
    let schedule = at.map(|at| Schedule { at: Some(at), text: "then".to_owned() });
    Some(Failover { leader: Some("n1".into()), candidate: None, schedule, modified: Revision(modified) })
}

fn written(node: &mut Node) {
    let Some(Command::Write { write, reply }) = node.commands.blocking_recv() else { panic!("another command") };
    assert!(matches!(write, Write::RequestFailover { .. }));
    reply.send(Ok(Written::Done(Revision(11)))).unwrap();
}

#[test]
fn a_switchover_ends_as_its_client_is_told_and_what_is_refused_is_refused() {
    let target = Node::with(replica());
    let mut node = Node::with(cluster(&target, |_| {}));
    let (id, answer) = ask(&mut node, &post("/switchover", r#"{"leader": "n9"}"#), |_| {});
    assert_eq!(answer.code, 412);
    assert_eq!(end(&past(&node, id, "running")), ("refused", "leader name does not match"));
    for (holder, code, wanted) in
        [("n2", 200, ("done", r#"Successfully switched over to "n2""#)), ("n1", 503, ("failed", "Switchover failed"))]
    {
        node.publish(cluster(&target, |_| {}));
        let (id, answer) = ask(&mut node, &post("/switchover", r#"{"leader": "n1", "candidate": "n2"}"#), |node| {
            written(node);
            let seen = primary().build();
            node.journal.decided(&decide(&seen), &seen, UNIX_EPOCH);
            node.publish(cluster(&target, |view| {
                view.revision = Revision(12);
                view.leader = held_by(holder);
            }));
        });
        assert_eq!((answer.code, answer.body.as_str()), (code, wanted.1));
        let shown = past(&node, id, "running");
        assert_eq!(end(&shown), wanted);
        assert_eq!(shown["request"], json!({"leader": "n1", "candidate": "n2"}));
        assert_eq!((&shown["phases"][0]["rule"], &shown["gap"]), (&json!("lead"), &json!(false)));
    }
}

#[test]
fn a_scheduled_switchover_ends_when_it_is_off_the_table() {
    let target = Node::with(replica());
    let wall = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let (soon, late) = (wall + secs(2), wall + secs(3000));
    let taken_back = "taken back, replaced, or refused by the leader, whose /decisions tell why";
    for (at, replaced, holder, wanted) in [
        (soon, None, "n2", ("done", r#"Successfully switched over to "n2""#)),
        (soon, None, "n1", ("failed", taken_back)),
        (late, None, "n1", ("failed", taken_back)),
        (late, Some(13), "n1", ("failed", taken_back)),
    ] {
        let mut node = Node::with(cluster(&target, |_| {}));
        let text = jiff::Timestamp::from_second(i64::try_from(at.as_secs()).unwrap()).unwrap();
        let body = format!(r#"{{"leader": "n1", "scheduled_at": "{text}"}}"#);
        let (id, answer) = ask(&mut node, &post("/switchover", &body), written);
        assert_eq!((answer.code, answer.body.as_str()), (202, "Switchover scheduled"));
        node.publish(cluster(&target, |view| {
            view.revision = Revision(11);
            view.failover = on_the_table(11, Some(at));
        }));
        std::thread::sleep(Duration::from_millis(50));
        running(&node, id);
        node.publish(cluster(&target, |view| {
            view.revision = Revision(13);
            view.failover = replaced.and_then(|modified| on_the_table(modified, Some(at)));
            view.leader = held_by(holder);
        }));
        assert_eq!(end(&past(&node, id, "running")), wanted, "{replaced:?} {holder}");
    }
}

#[test]
fn it_goes_on_when_the_client_hangs_up() {
    let mut node = Node::with(leader());
    let mut stream = node.connect();
    std::io::Write::write_all(&mut stream, post("/restart", "").as_bytes()).unwrap();
    let Some(Command::Loop(agent::Command::Request { reply, .. })) = node.commands.blocking_recv() else { panic!() };
    drop(stream);
    std::thread::sleep(Duration::from_millis(100));
    node.publish(Status { at: NOW + secs(2), ..leader() });
    reply.send(Ok(())).expect("somebody still waits");
    let all: Value = serde_json::from_str(&node.get("/operations").body).unwrap();
    let shown = past(&node, all[0]["id"].as_u64().unwrap(), "running");
    assert_eq!(end(&shown), ("done", "restarted successfully"));
}

#[test]
fn few_are_kept_and_those_that_run_longest() {
    let mut node = Node::with(replica());
    let mut told = None;
    let (first, _) = ask(&mut node, &post("/reload", ""), |node| told = node.commands.blocking_recv());
    let mut refused = 0;
    for _ in 0..70 {
        (refused, _) = ask(&mut node, &post("/restart", r#"{"now": 1}"#), |_| {});
    }
    let all: Value = serde_json::from_str(&node.get("/operations").body).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 64);
    running(&node, first);
    drop(told);
    assert_eq!(end(&past(&node, first, "running")), ("failed", "the agent is shutting down"));

    for (id, code, state) in [(refused + 1, 404, "unknown"), (first - 1, 404, "lost"), (0, 404, "lost")] {
        let answer = node.get(&format!("/operations/{id}"));
        let shown: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((answer.code, shown["state"].as_str()), (code, Some(state)), "{id}");
    }
    for id in ["x", "-1", "1e3", "99999999999999999999", "1/2"] {
        assert_eq!(node.code(&format!("/operations/{id}")), 400, "{id}");
    }
    // Events tell of it too.
    let (news, _) = node.journal.after(0);
    let kinds: Vec<_> = news.iter().rev().take(2).map(|entry| entry.kind()).collect();
    assert_eq!(kinds, ["operation", "operation"]);
}
