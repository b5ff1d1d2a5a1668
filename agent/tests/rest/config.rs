//! `PATCH` and `PUT /config` (rest-api.md section 12).

use regent::api::{Command, Policy};
use regent::config::{LocalConfig, Sources};
use regent_core::units::Revision;
use regent_dcs::keys::{RawKey, parse};
use regent_dcs::{Write, Written};
use serde_json::Value;

use super::support::*;

/// A node that knows its own configuration.
fn node() -> Node {
    let file = r"{scope: demo, name: n1, restapi: {listen: '127.0.0.1:8008'}, etcd3: {hosts: ['127.0.0.1:2379']},
        postgresql: {listen: '127.0.0.1:5432', data_dir: /nonexistent/d, authentication: {superuser: {username: p},
        replication: {username: r}}}}";
    let sources = Sources::new(None, [("PATRONI_CONFIGURATION".to_owned(), file.to_owned())]);
    let config = Some(std::sync::Arc::new(LocalConfig::load(&sources).unwrap()));
    Node::with_policy(leader(), Policy { config, ..Policy::default() })
}

/// What the client is told, and what was written; etcd holds these documents one after the other, the last one for good.
fn call(node: &mut Node, method: &str, body: &str, stands: &[Option<&str>]) -> (Answer, Vec<Write>) {
    let (address, length) = (node.address(), body.len());
    let request = format!("{method} /config HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    let client = std::thread::spawn(move || Answer::of(&send(address, &request)));
    let (mut writes, mut turns) = (Vec::new(), 0);
    while !client.is_finished() {
        let Ok(command) = node.commands.try_recv() else {
            std::thread::sleep(std::time::Duration::from_millis(1));
            continue;
        };
        match command {
            Command::Loop(_) => panic!("nobody asked for that"),
            Command::Read { reply } => {
                let now: Option<&str> = stands[turns.min(stands.len() - 1)];
                turns += 1;
                let modified = Revision(10 + i64::try_from(turns).unwrap());
                let key = now.map(|text| RawKey { name: b"config", value: text.as_bytes(), lease: None, modified });
                drop(reply.send(Ok(parse(Revision(50), key))));
            }
            Command::Write { write, reply } => {
                writes.push(write);
                let done = if turns < stands.len() { Written::Refused } else { Written::Done(Revision(60)) };
                drop(reply.send(Ok(done)));
            }
        }
    }
    (client.join().unwrap(), writes)
}

fn written(writes: &[Write]) -> Vec<(String, Option<Revision>)> {
    let put = |write: &Write| {
        let Write::PutConfig { config, seen } = write else { panic!("{write:?}") };
        (config.to_string(), *seen)
    };
    writes.iter().map(put).collect()
}

#[test]
fn a_patch_is_written_over_what_was_read_and_answered_whole() {
    let mut node = node();
    let stands = r#"{"ttl":30,"loop_wait":10,"postgresql":{"parameters":{"max_connections":100}}}"#;
    let (answer, writes) = call(&mut node, "PATCH", r#"{"ttl": 40, "pause": true}"#, &[Some(stands)]);
    let wanted = r#"{"ttl":40,"loop_wait":10,"postgresql":{"parameters":{"max_connections":100}},"pause":true}"#;
    assert_eq!((answer.code, answer.header("Content-Type")), (200, Some("application/json")));
    let spaced =
        r#"{"ttl": 40, "loop_wait": 10, "postgresql": {"parameters": {"max_connections": 100}}, "pause": true}"#;
    assert_eq!(answer.body, spaced);
    assert_eq!(written(&writes), [(wanted.to_owned(), Some(Revision(11)))]);

    let (answer, writes) = call(&mut node, "PATCH", r#"{"ttl": 30, "no": null}"#, &[Some(stands)]);
    assert_eq!((answer.code, writes.len()), (200, 0), "nothing changes, nothing is written");
}

#[test]
fn a_patch_is_made_again_over_what_somebody_else_wrote() {
    let mut node = node();
    let (answer, writes) = call(&mut node, "PATCH", r#"{"pause": true}"#, &[Some(r#"{"a":1}"#), Some(r#"{"a":2}"#)]);
    assert_eq!(answer.body, r#"{"a": 2, "pause": true}"#);
    let both = [(r#"{"a":1,"pause":true}"#, Some(Revision(11))), (r#"{"a":2,"pause":true}"#, Some(Revision(12)))];
    assert_eq!(written(&writes), both.map(|(text, seen)| (text.to_owned(), seen)));
    let always = vec![Some("{}"); 20];
    assert_eq!(call(&mut node, "PATCH", r#"{"pause": true}"#, &always).0.code, 409);
}

#[test]
fn a_put_replaces_whatever_stands_there() {
    let mut node = node();
    for (stands, seen) in [(None, None), (Some("{bad"), Some(Revision(11))), (Some(r#"{"x":1}"#), Some(Revision(11)))] {
        let (answer, writes) = call(&mut node, "PUT", r#"{"ttl": 20, "loop_wait": 5}"#, &[stands]);
        assert_eq!((answer.code, answer.body.as_str()), (200, r#"{"ttl": 20, "loop_wait": 5}"#));
        assert_eq!(written(&writes), [(r#"{"ttl":20,"loop_wait":5}"#.to_owned(), seen)]);
    }
    let (answer, writes) = call(&mut node, "PUT", r#"{"ttl": 20}"#, &[Some(r#"{"ttl": 20}"#)]);
    assert_eq!((answer.code, writes.len()), (200, 0));
}

#[test]
fn what_cannot_be_in_force_is_not_written() {
    let mut node = node();
    for (method, body, stands, code) in [
        ("PATCH", r#"{"pause": true}"#, None, 503),
        ("PATCH", r#"{"pause": true}"#, Some("{bad"), 503),
        ("PATCH", r#"{"ttl": "abc"}"#, Some("{}"), 400),
        ("PATCH", r#"{"synchronous_mode": "bogus"}"#, Some("{}"), 400),
        ("PATCH", r#"{"slots": {"A b": {"type": "physical"}}}"#, Some("{}"), 400),
        ("PATCH", r#"{"postgresql": {"parameters": {"max_connections": "many"}}}"#, Some("{}"), 400),
        ("PUT", r#"{"postgresql": "xx"}"#, Some("{}"), 400),
        ("PUT", "[]", Some("{}"), 400),
        ("PUT", "{}", Some("{}"), 400),
    ] {
        let (answer, writes) = call(&mut node, method, body, &[stands]);
        assert_eq!((answer.code, writes.len()), (code, 0), "{method} {body}: {}", answer.body);
    }
    // What was wrong before keeps nobody from changing something else.
    let (answer, writes) = call(&mut node, "PATCH", r#"{"pause": true}"#, &[Some(r#"{"synchronous_mode": "bogus"}"#)]);
    assert_eq!((answer.code, writes.len()), (200, 1), "{}", answer.body);
    let (answer, _) = call(&mut node, "PATCH", r#"{"ttl": "40"}"#, &[Some("{}")]);
    assert_eq!(answer.code, 200, "numbers may be text: {}", answer.body);
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(answer["ttl"], "40");
}
