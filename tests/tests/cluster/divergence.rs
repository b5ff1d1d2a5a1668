//! Logs that part by chance, each repaired under another misfortune: `REGENT_DIVERGENCES=60` makes a campaign of it, and
//! `REGENT_DIVERGENCE_SEED` draws other ones. Every round ends with all members streaming the primary's rows and no others, or
//! first at a stated reason, and streaming once the operator allows a clone. At no moment is there no good copy.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regent_tests::rig::programs::Programs;
use regent_tests::rig::writer::rows_on;
use regent_tests::rig::{Node, Rig, Settings, Trouble, Writer, stray};
use regent_tests::rng::Rng;
use serde_json::json;

use crate::rewind::send_nothing;
use crate::support::{PATIENCE, caught_up, configure, loudly, number, reconfigure, turn};

/// How the logs part.
#[derive(Clone, Copy, Debug)]
enum Split {
    /// The primary dies with rows that nobody got.
    Unsent,
    /// It lives on without agent and guardian, and takes writes beside the next one.
    BothWrite,
    /// As `Unsent`; the next primary dies as well, and the one after that leads.
    TwoApart,
}

/// What happens during the repair.
#[derive(Clone, Copy, Debug)]
enum Trial {
    Nothing,
    /// pg_rewind lacks log of the returning member.
    LogGoneHere,
    /// The source has recycled the log since the fork.
    LogGoneThere,
    /// kill -9 of pg_rewind at a random moment.
    ToolKilled,
    /// kill -9 of the agent while pg_rewind or pg_basebackup is at work.
    AgentKilled,
    /// Files cannot grow beyond a random size, until a tool has failed for it.
    DiskFull,
    /// kill -9 of the source's postmaster while a tool is at work; its agent starts it again.
    SourceCrashes,
    /// kill -9 of all of the source while a tool is at work. It comes back later.
    SourceDies,
    /// Rows in a tablespace.
    Tablespace,
}

const SPLITS: [Split; 3] = [Split::Unsent, Split::BothWrite, Split::TwoApart];
const TRIALS: [Trial; 9] = [
    Trial::Nothing,
    Trial::LogGoneHere,
    Trial::LogGoneThere,
    Trial::ToolKilled,
    Trial::AgentKilled,
    Trial::DiskFull,
    Trial::SourceCrashes,
    Trial::SourceDies,
    Trial::Tablespace,
];

/// Stands before pg_rewind and pg_basebackup: counts their runs, and lets them meet what the test has laid into the node's
/// directory. `full`: the largest size of a file, in blocks of 512 bytes. `kill`: seconds until kill -9, once.
const WRAPPER: &str = r#"#!/bin/sh
case "$*" in
*--dry-run*) ;;
*)
    echo TOOL >>DIR/tools
    if [ -f DIR/full ]; then trap '' 25; ulimit -f "$(cat DIR/full)"; fi
    if mv DIR/kill DIR/killed 2>/dev/null; then
        (sleep "$(cat DIR/killed)"; kill -9 $$) </dev/null >/dev/null 2>&1 &
    fi
    ;;
esac
exec REAL/TOOL "$@"
"#;

/// Puts the wrapper before the tools of a node that does not run yet.
fn wrap_tools(rig: &Rig, node: &Node) -> Result<(), Trouble> {
    let (real, bin) = (&rig.programs().pg_bin, node.dir().join("bin"));
    fs::create_dir(&bin)?;
    for entry in fs::read_dir(real)?.flatten() {
        let here = bin.join(entry.file_name());
        let tool = entry.file_name().to_string_lossy().into_owned();
        if tool != "pg_rewind" && tool != "pg_basebackup" {
            std::os::unix::fs::symlink(entry.path(), here)?;
            continue;
        }
        let text = WRAPPER.replace("DIR", &node.dir().display().to_string());
        rig.write(&here, &text.replace("REAL", &real.display().to_string()).replace("TOOL", &tool))?;
        fs::set_permissions(&here, fs::Permissions::from_mode(0o755))?;
    }
    let [before, after] = [real, &bin].map(|dir| format!("bin_dir: {}", dir.display()));
    reconfigure(rig, node, |text| text.replace(&before, &after))
}

/// How often a tool has changed the data directory of a node.
fn tool_runs(node: &Node) -> usize {
    fs::read_to_string(node.dir().join("tools")).unwrap_or_default().lines().count()
}

/// The copies that are known to have all rows that survived.
struct Copies<'a> {
    rig: &'a Rig,
    rows: BTreeSet<i64>,
    /// By node: which directory, and how many tools had been at it, when its server showed the rows.
    shown: RefCell<BTreeMap<&'a str, (u64, usize)>>,
}

impl<'a> Copies<'a> {
    /// From now on these rows have survived.
    fn of(rig: &'a Rig, rows: BTreeSet<i64>) -> Result<Copies<'a>, Trouble> {
        let copies = Copies { rig, rows, shown: RefCell::default() };
        copies.look();
        copies.some_left().map(|()| copies)
    }

    /// Asks every server that answers.
    fn look(&self) {
        for node in self.rig.nodes() {
            if rows_on(node.server()).is_ok_and(|rows| rows.is_superset(&self.rows))
                && let Ok(dir) = fs::metadata(node.data())
            {
                self.shown.borrow_mut().insert(node.name(), (dir.ino(), tool_runs(node)));
            }
        }
    }

    /// One of them is left: in its place and untouched since, or moved aside.
    fn some_left(&self) -> Result<(), Trouble> {
        let left = |node: &Node| {
            let shown = self.shown.borrow().get(node.name()).copied();
            let is = |path: PathBuf| fs::metadata(path).is_ok_and(|dir| Some(dir.ino()) == shown.map(|(dir, _)| dir));
            let untouched = shown.is_some_and(|(_, runs)| runs == tool_runs(node));
            untouched && is(node.data()) || is(node.data().with_extension("regent-old"))
        };
        if self.rig.nodes().iter().any(left) {
            return Ok(());
        }
        Err(Trouble::new(format!("NO GOOD COPY is left of {:?}\n{}", self.shown.borrow(), self.rig.tails())))
    }

    /// Waits, and watches that one of them is left.
    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Result<T, String>) -> Result<T, Trouble> {
        let mut lost = None;
        let found = self.rig.wait(PATIENCE, what, |_| match self.some_left() {
            Ok(()) => look().map(Some),
            Err(none) => {
                lost = Some(none);
                Ok(None)
            }
        })?;
        found.ok_or_else(|| lost.unwrap_or_else(|| Trouble::new("no good copy")))
    }
}

fn run(node: &Node, sql: &str) -> Result<(), Trouble> {
    node.server().rows(sql, PATIENCE).map(|_| ())
}

/// Removes the leader key, as if its lease had ended, and waits for another primary than `old`.
fn next_primary<'a>(rig: &'a Rig, old: &Node) -> Result<&'a Node, Trouble> {
    rig.etcd.delete("/service/demo/leader")?;
    rig.wait(PATIENCE, &format!("another one than {} leads", old.name()), |rig| {
        let new = rig.leader().map_err(|e| e.to_string())?;
        if new.name() == old.name() {
            // It may have been renewed in the same moment.
            rig.etcd.delete("/service/demo/leader").map_err(|e| e.to_string())?;
            return Err("it leads again".to_owned());
        }
        match new.in_recovery() {
            Ok(false) => Ok(new),
            other => Err(format!("{}: in recovery: {other:?}", new.name())),
        }
    })
}

/// Waits until `standby` has the rows of `primary`.
fn has_all(rig: &Rig, standby: &Node, primary: &Node) -> Result<(), Trouble> {
    let all = rows_on(primary.server())?;
    rig.wait(PATIENCE, &format!("{} has all {} rows", standby.name(), all.len()), |_| {
        let here = rows_on(standby.server()).map_err(|e| e.to_string())?;
        if here == all { Ok(()) } else { Err(format!("it has {}", here.len())) }
    })
}

/// What came of it.
struct Parted<'a> {
    old: &'a Node,
    new: &'a Node,
    /// Rows that only `old` has.
    lost: usize,
    /// Who is to come back.
    away: Vec<&'a Node>,
    frozen: bool,
}

fn agent_and_guardian(node: &Node) -> Vec<stray::Seen> {
    stray::of(node.dir()).into_iter().filter(|p| p.program.starts_with("regent")).collect()
}

fn part<'a>(rig: &'a Rig, split: Split, trial: Trial, rng: &mut Rng) -> Result<Parted<'a>, Trouble> {
    let old = rig.leader()?;
    run(old, "checkpoint")?;
    let needed = old.server().value("select pg_walfile_name(redo_lsn) from pg_control_checkpoint()", PATIENCE)?;
    let writer = Writer::start(old.server())?;
    writer.wait_for(20, PATIENCE)?;
    run(old, "select pg_switch_wal()")?;
    writer.pause(true);
    caught_up(rig, old)?;
    let frozen = rng.one_in(2) && matches!(split, Split::BothWrite);
    let both_write = || -> Result<&Node, Trouble> {
        stray::signal(&agent_and_guardian(old), if frozen { Signal::SIGSTOP } else { Signal::SIGKILL });
        writer.pause(false);
        next_primary(rig, old)
    };
    let sent = match split {
        Split::BothWrite => Some(both_write()?),
        Split::Unsent | Split::TwoApart => {
            send_nothing(old)?;
            writer.pause(false);
            None
        }
    };
    writer.wait_for(20, PATIENCE)?;
    let journal = writer.finish();
    if matches!(trial, Trial::LogGoneHere) {
        run(old, "checkpoint")?;
        run(old, "select pg_switch_wal()")?;
        // If it is not there any more, all the better.
        let _ = fs::remove_file(old.data().join("pg_wal").join(needed));
    }
    let mut new = match sent {
        Some(new) => new,
        None => {
            old.kill();
            next_primary(rig, old)?
        }
    };
    let lost = journal.missing_on(new.server())?.len();
    assert!(lost > 0, "the logs have not parted");
    let mut away = vec![old];
    write_some(new)?;
    let third = rig.others(old).find(|node| node.name() != new.name()).ok_or_else(|| Trouble::new("no third node"))?;
    has_all(rig, third, new)?;
    if matches!(split, Split::TwoApart) {
        new.kill();
        away.push(new);
        new = next_primary(rig, new)?;
        write_some(new)?;
    }
    Ok(Parted { old, new, lost, away, frozen })
}

fn write_some(primary: &Node) -> Result<(), Trouble> {
    Writer::start(primary.server())?.wait_for(20, PATIENCE)
}

/// Makes a tablespace with a place of its own on each node, although they are on one machine: while it is empty, the links to
/// it are changed.
fn make_tablespace(rig: &Rig, primary: &Node) -> Result<(), Trouble> {
    let place = |node: &Node| node.dir().join("space");
    for node in rig.nodes() {
        let _ = fs::remove_dir_all(place(node));
        fs::create_dir(place(node))?;
        rig.account().own(&place(node))?;
    }
    run(primary, &format!("create tablespace space location '{}'", place(primary).display()))?;
    let oid = primary.server().value("select oid from pg_tablespace where spcname = 'space'", PATIENCE)?;
    for node in rig.others(primary) {
        let link = node.data().join("pg_tblspc").join(&oid);
        rig.wait(PATIENCE, "the tablespace is everywhere", |_| fs::read_link(&link).map_err(|e| e.to_string()))?;
        for version in fs::read_dir(place(primary))?.flatten() {
            fs::create_dir(place(node).join(version.file_name()))?;
            rig.account().own(&place(node).join(version.file_name()))?;
        }
        fs::remove_file(&link)?;
        std::os::unix::fs::symlink(place(node), &link)?;
    }
    run(primary, "create table spaced tablespace space as select generate_series(1, 5000) as id")
}

/// Recycles the log in which the fork lies.
fn recycle(source: &Node) -> Result<(), Trouble> {
    let fork = source.server().value("select pg_walfile_name(pg_current_wal_lsn())", PATIENCE)?;
    let there = format!("select count(*) from pg_ls_waldir() where name = '{fork}'");
    for _ in 0..20 {
        run(source, "insert into ballast select generate_series(1, 1000), 'x'")?;
        run(source, "select pg_switch_wal()")?;
        run(source, "checkpoint")?;
        if source.server().value(&there, PATIENCE)? == "0" {
            return Ok(());
        }
    }
    let slots = source.server().rows("select slot_name, wal_status from pg_replication_slots", PATIENCE)?;
    Err(Trouble::new(format!("{fork} is not recycled: {slots:?}")))
}

fn come_back(parted: &Parted) -> Result<(), Trouble> {
    if parted.frozen {
        stray::signal(&agent_and_guardian(parted.old), Signal::SIGCONT);
        return Ok(());
    }
    for node in &parted.away {
        // It may have been killed past the rig, which has not seen its end yet.
        node.kill_agent();
        node.start()?;
    }
    Ok(())
}

/// The rule by which a member stays down, and its words, in what its agent logged since `from`.
fn reason(node: &Node, from: usize) -> Option<String> {
    let log = node.agent_log();
    let rules = ["rule=stay_down_diverged", "rule=report_unusable_data"];
    let since = log.get(from..).unwrap_or_default();
    since.lines().find(|line| rules.iter().any(|rule| line.contains(rule))).map(str::to_owned)
}

fn allow_clones(rig: &Rig, allow: bool) -> Result<(), Trouble> {
    let key = |when: &str| format!("postgresql.remove_data_directory_on_{when}");
    let [failure, divergence] = [key("rewind_failure"), key("diverged_timelines")];
    configure(rig, &[(&failure, json!(allow)), (&divergence, json!(allow))])
}

/// Lets the logs part, brings the members back under `trial`, and waits for the end. Returns how it ended.
fn round(rig: &Rig, split: Split, trial: Trial, rng: &mut Rng) -> Result<String, Trouble> {
    let allowed = rng.one_in(2);
    allow_clones(rig, allowed)?;
    let primary = rig.wait_whole(PATIENCE)?;
    if matches!(trial, Trial::Tablespace) {
        make_tablespace(rig, primary)?;
    }
    let parted = part(rig, split, trial, rng)?;
    let (old, new) = (parted.old, parted.new);
    let copies = Copies::of(rig, rows_on(new.server())?)?;
    let (full, kill) = (old.dir().join("full"), old.dir().join("kill"));
    match trial {
        Trial::LogGoneThere => recycle(new)?,
        Trial::ToolKilled => rig.write(&kill, &format!("0.{:03}", rng.below(400)))?,
        Trial::DiskFull => rig.write(&full, &(8 << rng.below(12)).to_string())?,
        Trial::Nothing
        | Trial::LogGoneHere
        | Trial::AgentKilled
        | Trial::SourceCrashes
        | Trial::SourceDies
        | Trial::Tablespace => {}
    }
    let (runs, from) = (tool_runs(old), old.agent_log().len());
    come_back(&parted)?;
    copies.some_left()?;
    let ended = || match (reason(old, from), allowed) {
        (Some(reason), false) => Ok(Some(reason)),
        (Some(_) | None, _) => rig.is_whole().map(|_| None),
    };
    let mut at_work = || -> Result<(), Trouble> {
        let begun = || if tool_runs(old) > runs { Ok(None) } else { ended() };
        copies.wait("a tool is at work", begun)?;
        sleep(rng.between(Duration::ZERO, Duration::from_millis(400)));
        Ok(())
    };
    match trial {
        Trial::AgentKilled => {
            at_work()?;
            old.kill_agent();
            copies.some_left()?;
            old.start()?;
        }
        Trial::SourceCrashes => {
            at_work()?;
            new.kill_postmaster();
        }
        Trial::SourceDies => {
            at_work()?;
            new.kill();
            copies.some_left()?;
            sleep(rng.between(Duration::ZERO, Duration::from_secs(3)));
            new.start()?;
        }
        Trial::DiskFull => {
            copies.wait("a tool fails", || {
                let said = old.agent_log().get(from..).unwrap_or_default().contains("File too large");
                if said { Ok(None) } else { ended() }
            })?;
            fs::remove_file(&full)?;
        }
        Trial::Nothing | Trial::LogGoneHere | Trial::LogGoneThere | Trial::ToolKilled | Trial::Tablespace => {}
    }
    let first = copies.wait("it streams, or says why not", ended)?;
    if first.is_some() {
        allow_clones(rig, true)?;
    }
    copies.wait("all stream", || rig.is_whole().map(|_| ()))?;
    copies.look();
    let primary = rig.wait_whole(PATIENCE)?;
    assert!(rows_on(primary.server())?.is_superset(&copies.rows), "rows that had survived are lost");
    for node in rig.others(primary) {
        has_all(rig, node, primary)?;
        if matches!(trial, Trial::Tablespace) {
            assert_eq!(node.server().value("select count(*) from spaced", PATIENCE)?, "5000");
        }
    }
    if matches!(trial, Trial::Tablespace) {
        run(primary, "drop table spaced")?;
        run(primary, "drop tablespace space")?;
    }
    let log = old.agent_log();
    let did = |what: &str| log.get(from..).unwrap_or_default().contains(what);
    let by = match (did("rule=clone"), did("rule=rewind_diverged")) {
        (true, true) => "cloned after pg_rewind",
        (true, false) => "cloned",
        (false, true) => "rewound",
        (false, false) => "as it was",
    };
    let lost = parted.lost;
    Ok(match first {
        Some(reason) => format!("{lost} rows dropped; down with a reason; with leave {by}\n    {reason}"),
        None => format!("{lost} rows dropped; {by}{}", if allowed { "" } else { ", without leave to clone" }),
    })
}

/// So many rounds on one cluster, drawn from `pairs`: each of them once before one comes again.
fn campaign(rig: &Rig, name: &str, rounds: usize, pairs: &[(Split, Trial)]) -> Result<(), Trouble> {
    let seed = number("REGENT_DIVERGENCE_SEED", 2584);
    let mut rng = Rng::new(seed as u64);
    let primary = rig.wait_whole(PATIENCE)?;
    let limits = json!({"max_wal_size": "64MB", "min_wal_size": "32MB", "max_slot_wal_keep_size": "32MB", "wal_keep_size": "16MB"});
    for (parameter, value) in limits.as_object().into_iter().flatten() {
        configure(rig, &[(&format!("postgresql.parameters.{parameter}"), value.clone())])?;
    }
    run(primary, "create table ballast as select id, repeat('x', 500) as text from generate_series(1, 30000) as id")?;
    let mut left = Vec::new();
    for number in 1..=rounds {
        if left.is_empty() {
            left = pairs.to_vec();
        }
        let (split, trial) = left.swap_remove(usize::try_from(rng.below(left.len() as u64)).unwrap_or(0));
        let began = Instant::now();
        let ended = round(rig, split, trial, &mut rng);
        let what = format!("{name} {number}/{rounds}, seed {seed}: {split:?}, {trial:?}");
        match ended {
            Ok(ended) => loudly(&format!("{what}: {:.0} s: {ended}", began.elapsed().as_secs_f64())),
            Err(e) => return Err(Trouble::new(format!("{what}: {e}"))),
        }
    }
    Ok(())
}

fn prepared(settings: Settings, change: impl Fn(String) -> String) -> Result<Rig, Trouble> {
    let rig = Rig::new(settings)?;
    for node in rig.nodes() {
        wrap_tools(&rig, node)?;
        let text = fs::read_to_string(node.config())?;
        rig.write(&node.config(), &change(text))?;
    }
    rig.start_all()?;
    rig.wait_whole(PATIENCE)?;
    Ok(rig)
}

/// One round of the campaign in fifteen is for clusters on which pg_rewind is impossible.
fn rounds() -> (usize, usize) {
    let all = number("REGENT_DIVERGENCES", 4);
    let impossible = all.div_ceil(15);
    (all - impossible, impossible)
}

#[test]
fn parted_logs_come_together() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = prepared(Settings { haproxy: false, ..Settings::default() }, |text| text)?;
    let all: Vec<_> = SPLITS.iter().flat_map(|split| TRIALS.iter().map(|trial| (*split, *trial))).collect();
    campaign(&rig, "divergence", rounds().0, &all)
}

/// Neither checksums nor wal_log_hints: pg_rewind is impossible, and no tool is tried without leave.
#[test]
fn parted_logs_without_pg_rewind_come_together() -> Result<(), Trouble> {
    let _turn = turn();
    let made_by_default = Programs::find()?.pg_version().starts_with("18");
    let rig = prepared(Settings { haproxy: false, ..Settings::default() }, |text| {
        let text =
            text.replace("- data-checksums", if made_by_default { "- no-data-checksums" } else { "- encoding: UTF8" });
        text.replace("wal_log_hints: \"on\"", "wal_log_hints: \"off\"")
    })?;
    assert_eq!(rig.leader()?.server().value("show data_checksums", PATIENCE)?, "off");
    let pairs = [Trial::Nothing, Trial::ToolKilled, Trial::AgentKilled, Trial::DiskFull, Trial::SourceCrashes];
    let all: Vec<_> = SPLITS.iter().flat_map(|split| pairs.iter().map(|trial| (*split, *trial))).collect();
    campaign(&rig, "divergence without pg_rewind", rounds().1, &all)
}
