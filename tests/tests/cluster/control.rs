//! Everything that `regentctl` and the peer's own tool do to a cluster.

use std::path::{Path, PathBuf};

use regent_tests::rig::process::{clean, output};
use regent_tests::rig::settings::PASSWORD;
use regent_tests::rig::{Node, Rig, Settings, Trouble, http};

use crate::peer_tool::patronictl;
use crate::support::{PATIENCE, loudly, system_id, timeline, turn};

/// A control program, with the configuration of a node.
struct Tool {
    program: PathBuf,
    config: PathBuf,
}

impl Tool {
    fn of(program: &Path, rig: &Rig) -> Tool {
        Tool { program: program.to_owned(), config: rig.nodes()[0].config() }
    }

    /// Exit status and what it printed, on stdout and then on stderr, with these answers to its questions.
    fn answering(&self, answers: &str, args: &[&str]) -> Result<(Option<i32>, String), Trouble> {
        let mut command = clean("bash");
        let words =
            "answers=$1; config=$2; program=$3; shift 3; printf \"$answers\" | \"$program\" -c \"$config\" \"$@\"";
        command.args(["-c", words, "-", answers]).arg(&self.config).arg(&self.program).args(args);
        command.env("COLUMNS", "200").env("PGPASSWORD", PASSWORD);
        let out = output(&mut command, PATIENCE)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        Ok((out.status.code(), text))
    }

    /// It succeeds, and says this.
    fn says(&self, args: &[&str], wanted: &str) -> Result<String, Trouble> {
        let (status, text) = self.answering("", args)?;
        if status == Some(0) && text.contains(wanted) {
            return Ok(text);
        }
        Err(Trouble::new(format!("{} {args:?}: {status:?}; wanted {wanted:?}\n{text}", self.program.display())))
    }
}

/// One member as the tool's listing shows it.
fn listed(tool: &Tool, name: &str) -> Result<serde_json::Value, Trouble> {
    let text = tool.says(&["list", "-f", "json"], "[")?;
    let list: serde_json::Value = serde_json::from_str(&text).map_err(|e| Trouble::new(format!("{e}: {text}")))?;
    let mut members = list.as_array().cloned().unwrap_or_default().into_iter();
    members.find(|member| member["Member"] == name).ok_or_else(|| Trouble::new(format!("no {name} in {text}")))
}

fn standby<'a>(rig: &'a Rig, primary: &Node) -> Result<&'a Node, Trouble> {
    rig.nodes().iter().find(|node| node.name() != primary.name()).ok_or_else(|| Trouble::new("no standby"))
}

/// What the peer's tool has no words for; none of it changes anything.
fn explained(rig: &Rig, tool: &Tool) -> Result<(), Trouble> {
    let primary = rig.wait_whole(PATIENCE)?;
    let second = standby(rig, primary)?.name();
    tool.says(&["explain", "demo"], &format!("Without {}", primary.name()))?;
    // An agent knows the others as of its last turn.
    rig.wait(PATIENCE, "the agents know each other as candidates", |rig| {
        for node in rig.nodes() {
            let shown = node.get("/explain").map_err(|e| e.to_string())?.body;
            if shown.matches(r#""candidate": true"#).count() != 2 {
                return Err(shown);
            }
        }
        Ok(())
    })?;
    tool.says(&["explain", "demo", second, "-f", "json"], r#""rule": "run_for_leader""#)?;
    tool.says(&["explain", "demo", primary.name()], &format!("{} goes by ", primary.name()))?;
    let rehearsed = ["switchover", "demo", "--dry-run", "--candidate", second];
    tool.says(&rehearsed, &format!("{second} would take over from {}.", primary.name()))?;
    tool.says(&["watch", "demo", "-n", "1"], "s more")?;
    let saved = rig.dir().join("decisions.json");
    rig.write(&saved, &primary.get("/decisions")?.body)?;
    tool.says(&["explain", "--snapshot", &saved.to_string_lossy()], "plan: ")?;
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), primary.name(), "nothing was done");
    Ok(())
}

/// Every command that changes something, once, with the effect that it is to have.
fn operate(rig: &Rig, tool: &Tool) -> Result<(), Trouble> {
    let primary = rig.wait_whole(PATIENCE)?;
    let second = standby(rig, primary)?;
    let (first_name, second_name) = (primary.name(), second.name());

    // The configuration, and what it does to the servers.
    let wanted = 4; // 3 unless told otherwise; nothing that a standby would have to have first
    let setting = format!("superuser_reserved_connections={wanted}");
    tool.says(&["edit-config", "-p", &setting, "--force"], "Configuration changed")?;
    tool.says(&["edit-config", "-p", &setting, "--force"], "Not changed")?;
    tool.says(&["show-config"], &format!("superuser_reserved_connections: {wanted}"))?;
    rig.wait(PATIENCE, "a restart is pending everywhere", |_| {
        for node in rig.nodes() {
            let member = listed(tool, node.name()).map_err(|e| e.to_string())?;
            if member["Pending restart"] != "*" {
                return Err(member.to_string());
            }
        }
        Ok(())
    })?;
    tool.says(&["reload", "demo", "--force"], &format!("Reload request received for member {second_name}"))?;

    // SQL, straight to a member.
    let recovers = "select pg_is_in_recovery() as it, 2 as two";
    for (role, line) in [("leader", "it\ttwo\nFalse\t2\n"), ("replica", "it\ttwo\nTrue\t2\n")] {
        tool.says(&["query", "-r", role, "-U", "postgres", "-d", "postgres", "-c", recovers], line)?;
    }
    let wrong = ["query", "-m", second_name, "-U", "postgres", "-d", "postgres", "-c", "select nothing"];
    tool.says(&wrong, "ERROR, SQLSTATE: 42703")?;

    // Restarts: of a role, of one member, of who has to; the leader keeps its key.
    let (line, before) = (timeline(primary)?, second.postmaster());
    tool.says(
        &["restart", "demo", "--role", "primary", "--force"],
        &format!("Success: restart on member {first_name}"),
    )?;
    assert_eq!(rig.wait_primary(PATIENCE)?.name(), first_name);
    assert_eq!(timeline(primary)?, line, "a restart is no failover");
    let shown = primary.server().value("show superuser_reserved_connections", PATIENCE)?;
    assert_eq!(shown, wanted.to_string());
    let refused =
        format!("Failed: restart for member {second_name}, status code=503, (restart conditions are not satisfied)");
    tool.says(&["restart", "demo", second_name, "--pg-version", "10.1", "--force"], &refused)?;
    assert_eq!(second.postmaster(), before);
    tool.says(&["restart", "demo", "--pending", "--force"], &format!("Success: restart on member {second_name}"))?;
    assert_ne!(second.postmaster(), before);
    rig.wait_whole(PATIENCE)?;

    // Schedules.
    let later = ["restart", "demo", second_name, "--scheduled", "2040-01-01T10:00+02:00", "--force"];
    tool.says(&later, &format!("Success: restart scheduled on member {second_name}"))?;
    let schedule = |wanted: serde_json::Value| {
        rig.wait(PATIENCE, &format!("the schedule shown is {wanted}"), |_| {
            let shown = listed(tool, second_name).map_err(|e| e.to_string())?["Scheduled restart"].clone();
            if shown == wanted { Ok(()) } else { Err(shown.to_string()) }
        })
    };
    schedule("2040-01-01T10:00:00+02:00".into())?;
    tool.says(
        &["flush", "demo", "restart", "--force"],
        &format!("Success: flush scheduled restart for member {second_name}"),
    )?;
    schedule(serde_json::Value::Null)?;
    tool.says(&["switchover", "--scheduled", "2040-01-01T10:00+00:00", "--force"], "Switchover scheduled")?;
    tool.says(&["list"], "Switchover scheduled at: 2040-01-01T10:00:00+00:00")?;
    tool.says(&["flush", "demo", "switchover"], "Success: scheduled switchover deleted")?;

    // A new copy; never of the leader.
    let identity = system_id(second)?;
    tool.says(
        &["reinit", "demo", second_name, "--force", "--wait"],
        &format!("Reinitialize is completed on: {second_name}"),
    )?;
    rig.wait_whole(PATIENCE)?;
    assert_eq!(system_id(second)?, identity);
    let (status, text) = tool.answering("", &["reinit", "demo", first_name, "--force"])?;
    assert!(status == Some(1) && text.contains("Error: No replica among provided members"), "{text}");

    // Maintenance.
    tool.says(&["pause", "--wait"], "Success: cluster management is paused")?;
    tool.says(&["list"], " Maintenance mode: on")?;
    let before = second.postmaster();
    tool.says(&["restart", "demo", second_name, "--force"], &format!("Success: restart on member {second_name}"))?;
    assert_ne!(second.postmaster(), before);
    tool.says(&["resume", "--wait"], "Success: cluster management is resumed")?;

    // Another leader, twice.
    rig.wait_whole(PATIENCE)?;
    let switched = format!("Successfully switched over to \"{second_name}\"");
    tool.says(&["switchover", "--leader", first_name, "--candidate", second_name, "--force"], &switched)?;
    rig.wait_whole(PATIENCE)?;
    let failed_over = format!("Successfully failed over to \"{first_name}\"");
    tool.says(&["failover", "--candidate", first_name, "--force"], &failed_over)?;
    rig.wait_whole(PATIENCE)?;
    tool.says(&["history"], first_name)?;
    tool.says(&["topology"], &format!("| {first_name} "))?;
    tool.says(&["dsn"], &format!("port={}", primary.ports().postgres))?;
    tool.says(&["version", "demo"], &format!("{second_name}: Patroni 4.1.5 PostgreSQL "))?;
    Ok(())
}

/// What was asked has an end that can be read: that of before, of a reload of a bad file, and of an agent that is gone.
fn followed(rig: &Rig, tool: &Tool) -> Result<(), Trouble> {
    let list = || -> Result<Vec<serde_json::Value>, Trouble> {
        let text = tool.says(&["operations", "demo", "-f", "json"], "[")?;
        serde_json::from_str(&text).map_err(|error| Trouble::new(format!("{error}: {text}")))
    };
    let (mut kinds, all): (Vec<_>, _) = (Vec::new(), list()?);
    for one in &all {
        assert_eq!(one["state"] == "running", one.get("ended").is_none(), "{one}");
        if one["state"] == "done" {
            kinds.push(one["operation"].as_str().unwrap_or_default());
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    let done = ["cancel restart", "cancel switchover", "failover", "reinitialize", "reload", "restart", "switchover"];
    assert_eq!(kinds, done, "{all:?}");
    let refused = all.iter().find(|one| one["result"] == "restart conditions are not satisfied");
    assert!(refused.is_some_and(|one| one["state"] == "refused"), "{all:?}");
    let switched = all.iter().find(|one| one["operation"] == "switchover" && one["state"] == "done");
    let id = switched.map(|one| one["id"].to_string()).unwrap_or_default();
    tool.says(&["operations", "demo", &id, "--wait"], " done: Successfully switched over to ")?;

    // Answered as the contract says, and not what was asked for.
    let node = &rig.nodes()[1];
    let good = std::fs::read_to_string(node.config())?;
    rig.write(&node.config(), &format!("{good}\nloop: [\n"))?;
    let answer = http::raw(node.rest(), "POST /reload HTTP/1.0\r\n\r\n", PATIENCE)?;
    assert_eq!((answer.status, answer.body.as_str()), (202, "reload scheduled"));
    let header = answer
        .head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("regent-operation: ").map(str::to_owned));
    let id = header.ok_or_else(|| Trouble::new(format!("no id: {}", answer.head)))?;
    let (status, text) = tool.answering("", &["operations", "demo", &id, "--wait"])?;
    assert!(status == Some(1) && text.contains("failed: the old configuration stays in force: "), "{status:?} {text}");
    assert!(text.contains(&node.config().display().to_string()), "{text}");
    rig.write(&node.config(), &good)?;
    node.kill_agent();
    node.start()?;
    rig.wait(PATIENCE, "the agent is back and knows nothing of it", |_| {
        let (status, text) = tool.answering("", &["operations", "demo", &id]).map_err(|e| e.to_string())?;
        let lost = status == Some(1) && text.contains(&format!("Operation {id}: lost: "));
        if lost { Ok(()) } else { Err(text) }
    })?;
    rig.wait_whole(PATIENCE).map(drop)
}

/// All that is known of the cluster goes when three answers are right.
fn remove(rig: &Rig, tool: &Tool) -> Result<(), Trouble> {
    let leader = rig.leader()?.name().to_owned();
    let (status, text) = tool.answering("demo\\nyes\\n", &["remove", "demo"])?;
    assert!(status == Some(1) && text.contains("Error: You did not exactly type \"Yes I am aware\""), "{text}");
    let (status, text) = tool.answering("demo\\nYes I am aware\\nnobody\\n", &["remove", "demo"])?;
    assert!(status == Some(1) && text.contains("Error: You did not specify the current leader"), "{text}");
    assert_eq!(rig.leader()?.name(), leader);
    rig.nodes().iter().for_each(Node::kill_agent);
    let (status, text) = tool.answering(&format!("demo\\nYes I am aware\\n{leader}\\n"), &["remove", "demo"])?;
    assert_eq!(status, Some(0), "{text}");
    let left = rig.etcd.keys("/service/demo/")?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn regentctl_operates_a_cluster() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let tool = Tool::of(&rig.programs().regentctl, &rig);
    explained(&rig, &tool)?;
    operate(&rig, &tool)?;
    followed(&rig, &tool)?;
    // Under the peer's name, in its older words.
    let link = rig.dir().join("patronictl");
    std::os::unix::fs::symlink(&rig.programs().regentctl, &link)?;
    let (primary, link) = (rig.leader()?, Tool::of(&link, &rig));
    let next = standby(&rig, primary)?.name();
    let old_words = ["switchover", "demo", "--master", primary.name(), "--candidate", next, "--force"];
    link.says(&old_words, &format!("Successfully switched over to \"{next}\""))?;
    rig.wait_whole(PATIENCE)?;
    remove(&rig, &link)
}

#[test]
fn the_peers_tool_operates_this_cluster() -> Result<(), Trouble> {
    let tool = match patronictl() {
        Ok(tool) => tool,
        Err(why) => {
            loudly(&format!("SKIPPED the_peers_tool_operates_this_cluster: {why}"));
            return Ok(());
        }
    };
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let tool = Tool::of(&tool, &rig);
    operate(&rig, &tool)?;
    remove(&rig, &tool)
}

#[test]
fn parallel_changes_of_the_configuration_all_arrive() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let patch = |node: &Node, key: usize| {
        let body = format!(r#"{{"mark{key}": {key}}}"#);
        let length = body.len();
        let head =
            format!("PATCH /config HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        http::raw(node.rest(), &(head + &body), PATIENCE)
    };
    std::thread::scope(|scope| {
        let each = |key: usize| {
            let (nodes, patch) = (rig.nodes(), &patch);
            scope.spawn(move || patch(&nodes[key % nodes.len()], key).map(|answer| answer.status))
        };
        let calls: Vec<_> = (0..6).map(each).collect();
        for call in calls {
            let status = call.join().map_err(|_| Trouble::new("a caller panicked"))??;
            assert_eq!(status, 200);
        }
        Ok::<(), Trouble>(())
    })?;
    let stored = rig.etcd.get("/service/demo/config")?.unwrap_or_default();
    for key in 0..6 {
        assert!(stored.contains(&format!(r#""mark{key}":{key}"#)), "{key} in {stored}");
    }
    Ok(())
}
