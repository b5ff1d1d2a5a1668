//! The user's commands: which are called when, with what, and what they cannot hold up (ha-rules section 18).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::programs::peer;
use regent_tests::rig::{Node, Rig, Settings, Trouble};

use crate::support::{PATIENCE, loudly, reconfigure, turn};

const EVENTS: [&str; 5] = ["on_start", "on_stop", "on_restart", "on_reload", "on_role_change"];
/// Nothing more is called after this long.
const QUIET: Duration = Duration::from_secs(2);

/// Writes a script that everybody may run.
pub(crate) fn script(rig: &Rig, path: PathBuf, text: &str) -> Result<String, Trouble> {
    rig.write(&path, &format!("#!/bin/sh\n{text}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

/// Puts lines into the `postgresql` section of a node.
pub(crate) fn configured(rig: &Rig, node: &Node, lines: &str) -> Result<(), Trouble> {
    reconfigure(rig, node, |text| text.replace("\npostgresql:\n", &format!("\npostgresql:\n{lines}")))
}

/// A script for every event of a node, which notes what it was called with.
fn note_callbacks(rig: &Rig, node: &Node) -> Result<(), Trouble> {
    let dir = node.dir().display();
    let text = format!("echo \"$@\" >> {dir}/calls; env | grep -c '^PATRONI_' >> {dir}/variables; exit 0");
    let path = script(rig, node.dir().join("note me.sh"), &text)?;
    let lines: String = EVENTS.iter().map(|event| format!("    {event}: \"'{path}' --extra\"\n")).collect();
    configured(rig, node, &format!("  callbacks:\n{lines}"))
}

/// What the scripts were called with, step by step.
struct Calls<'a> {
    rig: &'a Rig,
    seen: RefCell<BTreeMap<String, usize>>,
    wrong: RefCell<Vec<String>>,
}

impl Calls<'_> {
    fn of<'a>(rig: &'a Rig) -> Calls<'a> {
        Calls { rig, seen: RefCell::default(), wrong: RefCell::default() }
    }

    fn new_ones(&self) -> BTreeMap<String, Vec<String>> {
        let seen = self.seen.borrow();
        let each = self.rig.nodes().iter().map(|node| {
            let text = std::fs::read_to_string(node.dir().join("calls")).unwrap_or_default();
            let from = seen.get(node.name()).copied().unwrap_or(0);
            let call = |line: &str| line.trim_start_matches("--extra ").trim_end_matches(" demo").to_owned();
            (node.name().to_owned(), text.lines().skip(from).map(call).collect::<Vec<_>>())
        });
        each.filter(|(_, lines)| !lines.is_empty()).collect()
    }

    /// These were called since the last step, and no others.
    fn after(&self, step: &str, wanted: &[(&Node, &[&str])]) {
        let wanted: BTreeMap<String, Vec<String>> = wanted
            .iter()
            .map(|(node, calls)| (node.name().to_owned(), calls.iter().map(|call| (*call).to_owned()).collect()))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.new_ones() != wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(QUIET);
        let called = self.new_ones();
        if called != wanted {
            self.wrong.borrow_mut().push(format!("{step}: called {called:?}, wanted {wanted:?}"));
        }
        let mut seen = self.seen.borrow_mut();
        for (name, lines) in called {
            *seen.entry(name).or_default() += lines.len();
        }
    }
}

/// Everything that calls something, once.
fn story(rig: &Rig) -> Result<(), Trouble> {
    let [n1, n2, n3] = rig.nodes() else { return Err(Trouble::new("three nodes, please")) };
    for node in rig.nodes() {
        note_callbacks(rig, node)?;
    }
    let calls = Calls::of(rig);
    // The peer says `demoted` only where it gives the key back before its server has ended; and it reloads a server that it
    // finds.
    let handed_over = if rig.settings().peer { "on_stop primary" } else { "on_stop demoted" };
    n1.start()?;
    rig.wait_primary(PATIENCE)?;
    calls.after("a new cluster", &[(n1, &["on_start primary"])]);
    n2.start()?;
    n3.start()?;
    rig.wait_whole(PATIENCE)?;
    calls.after("new members", &[(n2, &["on_start replica"]), (n3, &["on_start replica"])]);

    rig.regentctl(&["restart", "demo", "n3", "--force"])?;
    rig.wait_whole(PATIENCE)?;
    calls.after("a standby restarted", &[(n3, &["on_restart replica"])]);
    rig.regentctl(&["restart", "demo", "n1", "--force"])?;
    rig.wait_whole(PATIENCE)?;
    calls.after("the primary restarted", &[(n1, &["on_restart primary"])]);

    n2.signal_agent(Signal::SIGHUP);
    calls.after("a reload", &[(n2, &["on_reload replica"])]);

    rig.regentctl(&["switchover", "--leader", "n1", "--candidate", "n2", "--force"])?;
    rig.wait_whole(PATIENCE)?;
    calls.after(
        "a switchover",
        &[
            (n1, &[handed_over, "on_role_change replica"]),
            (n2, &["on_role_change primary"]),
            (n3, &["on_reload replica"]),
        ],
    );

    n3.kill_postmaster();
    std::thread::sleep(Duration::from_secs(4));
    rig.wait_whole(PATIENCE)?;
    calls.after("a standby crashed", &[(n3, &["on_start replica"])]);
    n2.kill_postmaster();
    std::thread::sleep(Duration::from_secs(4));
    rig.wait_whole(PATIENCE)?;
    calls.after("the primary crashed", &[(n2, &["on_start primary"])]);

    for (node, role) in [(n2, "primary"), (n3, "replica")] {
        node.kill_agent();
        node.start()?;
        rig.wait_whole(PATIENCE)?;
        let (start, reload) = (format!("on_start {role}"), format!("on_reload {role}"));
        let told: &[&str] = if rig.settings().peer { &[&start, &reload] } else { &[&start] };
        calls.after("an agent that finds its server", &[(node, told)]);
    }
    n3.signal_agent(Signal::SIGTERM);
    n3.agent_ended(PATIENCE)?;
    calls.after("a standby stopped", &[(n3, &["on_stop replica"])]);
    n3.start()?;
    rig.wait_whole(PATIENCE)?;
    calls.after("a stopped standby started", &[(n3, &["on_start replica"])]);
    rig.regentctl(&["reinit", "demo", "n3", "--force", "--wait"])?;
    rig.wait_whole(PATIENCE)?;
    calls.after("a new copy", &[(n3, &["on_stop replica", "on_start replica"])]);

    n2.signal_agent(Signal::SIGTERM);
    n2.agent_ended(PATIENCE)?;
    rig.wait_primary(PATIENCE)?;
    let (next, other) = if rig.leader()?.name() == "n1" { (n1, n3) } else { (n3, n1) };
    calls.after(
        "the primary stopped",
        &[(n2, &["on_stop primary"]), (next, &["on_role_change primary"]), (other, &["on_reload replica"])],
    );
    n2.start()?;
    rig.wait_whole(PATIENCE)?;
    calls.after("a former primary started", &[(n2, &["on_start replica"])]);

    // The lock goes to somebody else.
    let stolen = format!("{}/leader", regent_tests::rig::settings::BASE);
    rig.etcd.put(&stolen, n2.name())?;
    rig.wait(PATIENCE, "n2 leads", |rig| {
        rig.one_primary().and_then(|node| if node.name() == "n2" { Ok(()) } else { Err(String::new()) })
    })?;
    rig.wait_whole(PATIENCE)?;
    calls.after(
        "a lost lock",
        &[
            (next, &["on_stop primary", "on_role_change replica"]),
            (n2, &["on_role_change primary"]),
            (other, &["on_reload replica"]),
        ],
    );

    for node in rig.nodes() {
        let variables = std::fs::read_to_string(node.dir().join("variables")).unwrap_or_default();
        assert!(variables.lines().all(|count| count == "0"), "a callback saw a variable of the agent's: {variables}");
    }
    let wrong = calls.wrong.take();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), rig.tails());
    Ok(())
}

#[test]
fn callbacks_come_in_the_peers_order() -> Result<(), Trouble> {
    let _turn = turn();
    story(&Rig::new(Settings { haproxy: false, ..Settings::default() })?)
}

#[test]
fn the_peer_tells_the_same_story() -> Result<(), Trouble> {
    if let Err(why) = peer() {
        loudly(&format!("SKIPPED the_peer_tells_the_same_story: {why}"));
        return Ok(());
    }
    let _turn = turn();
    let settings = Settings { haproxy: false, peer: true, ttl: 20, loop_wait: 2, ..Settings::default() };
    story(&Rig::new(settings)?)
}

/// Hooks and callbacks that fail or never end.
#[test]
fn nothing_waits_for_a_script_that_hangs() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::new(Settings { haproxy: false, nodes: 2, ..Settings::default() })?;
    let [n1, n2] = rig.nodes() else { return Err(Trouble::new("two nodes, please")) };
    for node in rig.nodes() {
        let dir = node.dir().display();
        let hangs = script(&rig, node.dir().join("hangs.sh"), &format!("echo $1 $$ >> {dir}/hung; exec sleep 100000"))?;
        let stops = script(&rig, node.dir().join("stops.sh"), &format!("echo stop >> {dir}/stops; exit 1"))?;
        let lines: String = EVENTS.iter().map(|event| format!("    {event}: {hangs}\n")).collect();
        configured(&rig, node, &format!("  before_stop: {stops}\n  callbacks:\n{lines}"))?;
    }
    n1.start()?;
    rig.wait_primary(PATIENCE)?;
    n2.start()?;
    rig.wait_whole(PATIENCE)?;
    rig.regentctl(&["switchover", "--leader", "n1", "--candidate", "n2", "--force"])?;
    assert_eq!(rig.wait_whole(PATIENCE)?.name(), "n2");
    let hung = |node: &Node| {
        let text = std::fs::read_to_string(node.dir().join("hung")).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let living = |node: &Node| {
        let pids = hung(node).into_iter().filter_map(|line| line.split(' ').nth(1)?.parse::<i32>().ok());
        pids.filter(|pid| regent_tests::rig::stray::look(*pid).is_some_and(|seen| !seen.dead)).count()
    };
    // Each new one ended the one before it.
    for node in rig.nodes() {
        rig.wait(PATIENCE, "one callback is left", |_| match living(node) {
            1 => Ok(()),
            left => Err(format!("{left} of {:?}", hung(node))),
        })?;
    }
    let stops = std::fs::read_to_string(n1.dir().join("stops")).unwrap_or_default();
    assert_eq!(stops, "stop\n", "before_stop ran once, and its failure changed nothing");
    n2.signal_agent(Signal::SIGTERM);
    assert!(n2.agent_ended(PATIENCE)?.success());
    assert_eq!(rig.wait_primary(PATIENCE)?.name(), "n1");
    rig.wait(PATIENCE, "the last callback has ended with its agent", |_| match living(n2) {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    })
}

#[test]
fn where_pre_promote_refuses_another_member_leads() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = Rig::new(Settings { haproxy: false, ..Settings::default() })?;
    let [n1, n2, n3] = rig.nodes() else { return Err(Trouble::new("three nodes, please")) };
    for (node, then) in [(n1, "exit 0"), (n2, "echo not here >&2; exit 1"), (n3, "exit 0")] {
        let text = format!("echo asked >> {}/asked; {then}", node.dir().display());
        let path = script(&rig, node.dir().join("pre_promote.sh"), &text)?;
        configured(&rig, node, &format!("  pre_promote: {path}\n"))?;
    }
    // n2 goes first.
    reconfigure(&rig, n2, |text| text.replace("tags:\n  nofailover: false\n", "tags:\n  failover_priority: 7\n"))?;
    n1.start()?;
    rig.wait_primary(PATIENCE)?;
    n2.start()?;
    n3.start()?;
    rig.wait_whole(PATIENCE)?;
    // The priority counts among members that are as far.
    rig.wait(PATIENCE, "both standbys have the whole log", |_| {
        let at = |node: &Node, sql: &str| node.server().value(sql, PATIENCE).map_err(|e| e.to_string());
        let end = at(n1, "select pg_current_wal_flush_lsn()")?;
        let [b, c] = [n2, n3].map(|node| at(node, "select pg_last_wal_receive_lsn()"));
        let found = (b?, c?);
        if found == (end.clone(), end.clone()) { Ok(()) } else { Err(format!("{found:?} of {end}")) }
    })?;
    n1.kill();
    assert_eq!(rig.wait_primary(PATIENCE)?.name(), "n3");
    crate::support::says(&rig, n2, &["give_up_refused_promotion", "not here"])?;
    for (node, asked) in [(n1, ""), (n2, "asked\n"), (n3, "asked\n")] {
        let found = std::fs::read_to_string(node.dir().join("asked")).unwrap_or_default();
        // Where n3 needs longer than a ttl, n2 is asked again.
        let found = if node.name() == "n2" { found.get(..asked.len()).unwrap_or_default() } else { &found };
        assert_eq!(found, asked, "{}", node.name());
    }
    Ok(())
}
