//! `make demo`: a cluster of real processes loses its primary and goes on. See [`regent_tests::rig`].

#![expect(clippy::print_stdout, reason = "a program that shows something")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use regent_tests::rig::settings::{BASE, PASSWORD, SUPERUSER};
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer, stray};

/// Nothing of this takes so long; more only on a machine that does something else.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the writer writes undisturbed before the primary dies, and after the cluster has recovered.
const CALM: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let stage = Stage { start: Instant::now() };
    match play(&stage) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            stage.say(&format!("the demo failed: {trouble}"));
            ExitCode::FAILURE
        }
    }
}

fn play(stage: &Stage) -> Result<(), Trouble> {
    let keep = std::env::var_os("KEEP").is_some_and(|value| !value.is_empty() && value != "0");
    let rig = Rig::new(Settings::default())?;
    stray::end_on_interrupt(rig.dir())?;
    let version = rig.programs().pg_version();
    stage.say(&format!("etcd and HAProxy are up; three nodes with PostgreSQL {version} in {}", rig.dir().display()));

    stage.title("Three agents start at once, on empty directories");
    rig.start_all()?;
    let primary = stage.watch(&rig, "the cluster is whole", Rig::is_whole)?;
    stage.say(&format!("{} is the primary, the others stream from it:", primary.name()));
    println!("{}", rig.regentctl(&["list"])?);

    stage.title("A client writes through HAProxy, a row every 20 ms");
    let haproxy = rig.haproxy()?;
    // HAProxy looks once a second.
    rig.wait(PATIENCE, "HAProxy leads to the primary", |_| {
        haproxy.by_http().value("select 1", PATIENCE).map_err(|e| e.to_string())
    })?;
    let writer = Writer::start(haproxy.by_http())?;
    thread::sleep(CALM);
    stage.say(&format!("{} rows acknowledged so far", writer.acknowledged()));

    stage.title(&format!("kill -9 of the agent and the server of {}, at once", primary.name()));
    primary.kill();
    let killed = Instant::now();
    let next = stage.watch(&rig, "there is a new primary", |rig| {
        let next = rig.one_primary()?;
        if next.name() == primary.name() { Err("the dead one".to_owned()) } else { Ok(next) }
    })?;
    stage.say(&format!("{} is the primary now, {:.1} s after the kill", next.name(), killed.elapsed().as_secs_f64()));
    writer.wait_for(1, PATIENCE)?;
    stage.say(&format!("writes go on, {:.1} s after the kill", killed.elapsed().as_secs_f64()));
    thread::sleep(CALM);
    println!("{}", rig.regentctl(&["list"])?);

    stage.title(&format!("{} starts again", primary.name()));
    primary.start()?;
    match stage.watch(&rig, "the cluster is whole", Rig::is_whole) {
        Ok(_) => stage.say(&format!("{} is back, as a standby:", primary.name())),
        Err(_) => stage.say(&format!(
            "{} did not come back as a standby; its agent says why:\n{}",
            primary.name(),
            reason(primary)
        )),
    }
    println!("{}", rig.regentctl(&["list"])?);

    let journal = writer.finish();
    let lost = journal.missing_on(next.server())?;
    stage.title("The client's account");
    println!("  acknowledged rows   {:>8}", journal.acknowledged().count());
    println!(
        "  failed attempts     {:>8}     (it tries again at once, for as long as nobody takes writes)",
        journal.failures().count()
    );
    println!(
        "  longest write gap   {:>8.1} s   (ttl is {} s: a dead host is known by its lease)",
        journal.write_gap().as_secs_f64(),
        rig.settings().ttl
    );
    println!("  lost rows           {:>8}     (acknowledged, and not on the new primary)", lost.len());
    if !lost.is_empty() {
        println!("  Replication is asynchronous here: what the dead primary had not sent yet is lost with it.");
    }
    println!();
    if keep {
        let proxy = (haproxy.by_http().port, haproxy.standbys().port, haproxy.config().to_path_buf());
        let etcd = rig.etcd.ports();
        let ctl = (rig.programs().regentctl.clone(), next.config());
        let dir = rig.keep()?;
        use_it(&dir, proxy, &etcd, &ctl);
    } else {
        stage.say("done; everything is stopped and removed (KEEP=1 make demo leaves it up)");
    }
    Ok(())
}

/// Prints with the seconds that have passed.
struct Stage {
    start: Instant,
}

impl Stage {
    fn say(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    fn title(&self, text: &str) {
        println!();
        self.say(&format!("== {text}"));
    }

    /// Waits for `look`, and meanwhile prints whenever a member's state changes.
    fn watch<'a, T>(
        &self,
        rig: &'a Rig,
        what: &str,
        look: impl Fn(&'a Rig) -> Result<T, String>,
    ) -> Result<T, Trouble> {
        let mut shown: Vec<String> = vec![String::new(); rig.nodes().len()];
        let mut leader = None;
        rig.wait(PATIENCE, what, |rig| {
            for (node, shown) in rig.nodes().iter().zip(&mut shown) {
                let now = state(node);
                if *shown != now {
                    self.say(&format!("   {}: {now}", node.name()));
                    *shown = now;
                }
            }
            let now = rig.etcd.get(&format!("{BASE}/leader")).unwrap_or_default();
            if leader.as_ref() != Some(&now) {
                self.say(&format!("   leader key: {}", now.as_deref().unwrap_or("nobody")));
                leader = Some(now);
            }
            look(rig)
        })
    }
}

/// What a node's agent says of itself, in a few words.
fn state(node: &Node) -> String {
    let Ok(answer) = node.get("/patroni") else {
        return if node.agent().is_some() { "agent starting" } else { "dead" }.to_owned();
    };
    let status = answer.json();
    let word = |key: &str| status.get(key).and_then(|value| value.as_str()).unwrap_or("?").to_owned();
    match word("role").as_str() {
        "uninitialized" => word("state"),
        role => format!("{role}, {}", word("state")),
    }
}

/// The last decisions, warnings and errors of a node's agent.
fn reason(node: &Node) -> String {
    let log = node.agent_log();
    let telling = |line: &&str| [" rule=", "WARN", "ERROR"].iter().any(|mark| line.contains(mark));
    let told: Vec<&str> = log.lines().filter(telling).collect();
    told.iter().rev().take(3).rev().map(|line| format!("    {line}\n")).collect()
}

fn use_it(dir: &Path, (primary, standbys, config): (u16, u16, PathBuf), etcd: &[u16], (ctl, yml): &(PathBuf, PathBuf)) {
    let etcd: Vec<String> = etcd.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    println!("The cluster stays up.");
    println!("  primary    PGPASSWORD='{PASSWORD}' psql -h 127.0.0.1 -p {primary} -U {SUPERUSER}");
    println!("  standbys   PGPASSWORD='{PASSWORD}' psql -h 127.0.0.1 -p {standbys} -U {SUPERUSER}");
    println!("  members    {} -c {} list", ctl.display(), yml.display());
    println!("  etcd       ETCDCTL_API=3 etcdctl --endpoints {} get --prefix {BASE}/", etcd.join(","));
    println!("  HAProxy    {}", config.display());
    println!("  files      {}/n1 ... n3: patroni.yml, agent.log, postgresql.log, data", dir.display());
    println!("  an agent   {}/bin/regent {}", dir.display(), yml.display());
    println!("  stop       {}/stop", dir.display());
}
