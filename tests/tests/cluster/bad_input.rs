//! Configuration and surroundings that are wrong: a clear message, and nothing is changed.

use std::net::{Ipv4Addr, TcpListener};

use regent_tests::rig::{Trouble, http};

use crate::support::{PATIENCE, one_node, reconfigure, refuses, says, turn};

#[test]
fn broken_yaml_is_refused_with_its_place() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    // Line 3, in the middle of a flow sequence that never ends as one.
    rig.write(&node.config(), "scope: demo\nname: n1\nrestapi: [one, }two\n")?;
    node.start()?;
    refuses(node, &["patroni.yml:3:"])?;
    assert!(!node.data().exists());
    Ok(())
}

#[test]
fn missing_scope_and_name_and_wrong_types_are_refused_by_name() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    let whole = std::fs::read_to_string(node.config())?;
    let cases: [(&str, &str, &[&str]); 4] = [
        ("scope: demo\n", "", &["scope"]),
        ("name: n1\n", "", &["name"]),
        ("  hosts:\n    - ", "  hosts: {}\n  unused:\n    - ", &["etcd3"]),
        ("  data_dir: ", "  data_dirr: ", &["data_dir"]),
    ];
    for (old, new, words) in cases {
        let broken = whole.replacen(old, new, 1);
        assert_ne!(broken, whole);
        rig.write(&node.config(), &broken)?;
        let _ = std::fs::remove_file(node.dir().join("agent.log"));
        node.start()?;
        refuses(node, words)?;
    }
    assert!(!node.data().exists());
    assert!(rig.etcd.keys("/service/")?.is_empty());
    Ok(())
}

#[test]
fn a_rest_port_in_use_is_refused() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    let port = node.ports().rest;
    let _other = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    node.start()?;
    refuses(node, &[&port.to_string()])?;
    assert!(!node.data().exists());
    assert!(rig.etcd.keys("/service/")?.is_empty());
    Ok(())
}

/// etcd is not there at the start: the agent waits, says so, and answers; when etcd comes, it goes on.
#[test]
fn an_agent_waits_for_etcd() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    let node = &rig.nodes()[0];
    rig.etcd.stop();
    node.start()?;
    says(&rig, node, &["etcd"])?;
    let answer = rig.wait(PATIENCE, "REST answers", |_| node.get("/liveness").map_err(|e| e.to_string()))?;
    assert_eq!(answer.status, 200);
    assert_eq!(node.get("/primary")?.status, 503);
    // As HAProxy's tcp-check speaks.
    let raw = http::raw(node.rest(), "GET /leader HTTP/1.0\r\n\r\n", PATIENCE)?;
    assert_eq!(raw.status, 503, "{}", raw.head);
    assert!(!node.data().exists(), "nothing may be made before etcd said that nobody else made it");
    rig.etcd.start()?;
    rig.wait_whole(PATIENCE)?;
    Ok(())
}

#[test]
fn a_second_agent_of_the_same_name_is_refused() -> Result<(), Trouble> {
    let _turn = turn();
    let rig =
        regent_tests::rig::Rig::new(regent_tests::rig::Settings { nodes: 2, haproxy: false, ..Default::default() })?;
    let (first, second) = (&rig.nodes()[0], &rig.nodes()[1]);
    first.start()?;
    rig.wait_primary(PATIENCE)?;
    reconfigure(&rig, second, |yml| yml.replace("name: n2\n", "name: n1\n"))?;
    second.start()?;
    refuses(second, &["n1"])?;
    assert!(!second.data().exists());
    assert_eq!(rig.primaries(), ["n1"]);
    Ok(())
}
