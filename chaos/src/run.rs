//! A campaign: rounds of faults on one cluster under work, each healed and judged before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use regent_tests::rig::{Rig, Trouble, stray};
use regent_tests::rng::Rng;

use crate::check::writers::Breath;
use crate::check::{Breach, Finding, answers, lists, money, rows, writers};
use crate::clients::{ACCOUNTS, Crew, MONEY};
use crate::cluster::{Cluster, Mode, Shape};
use crate::faults::{self, Fault, Undo};
use crate::history::{Clock, History, Moment, Way};
use crate::plan::{Means, Plan, Round};
use crate::report::{Hit, Report, Told};
use crate::watch::{self, Watch};

/// What to run, and for how long.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The cluster.
    pub shape: Shape,
    /// All chance comes from it.
    pub seed: u64,
    /// These faults only; none: all.
    pub only: Vec<Fault>,
    /// It ends after the round in which so many faults were reached...
    pub faults: usize,
    /// ...or so much time.
    pub time: Duration,
    /// It ends with the first finding, with all logs kept.
    pub fail_fast: bool,
    /// Where logs go when there are findings.
    pub out: PathBuf,
}

/// How long a cluster may take to heal when all faults are undone: a clone, a rewind, a few leases.
const HEAL: Duration = Duration::from_secs(120);
/// The same for anything else.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a server completes in the first breath of a node that stood still (docs/safety.md, case 4).
const FIRST_BREATH: Duration = Duration::from_millis(150);

/// Runs it, telling what goes on as it goes.
///
/// # Errors
/// The cluster does not come up, or the campaign itself fails; a cluster that does not heal is a finding, and no error.
pub fn run(campaign: &Campaign, tell: &dyn Fn(&str)) -> Result<Report, Trouble> {
    let clock = Clock::start();
    let settings = campaign.shape.settings;
    tell(&format!("starting {} nodes and {} etcd", settings.nodes, settings.etcd));
    let cluster = Cluster::start(&campaign.shape)?;
    stray::end_on_interrupt(cluster.rig.dir())?;
    let watch = Watch::start(cluster.rig.etcd.endpoints(), clock)?;
    let crew = Crew::start(&cluster.doors(), clock, campaign.seed)?;
    let mut course = Course {
        campaign,
        cluster: &cluster,
        crew: &crew,
        clock,
        tell,
        rng: Rng::new(campaign.seed ^ 0xC4A0),
        breaths: Vec::new(),
        restored: false,
        known_lost: BTreeSet::new(),
    };
    course.works(20)?;
    let means = Means {
        namespaces: settings.namespaces,
        etcd: settings.etcd,
        nodes: settings.nodes,
        guardian: !settings.peer,
        synchronous: campaign.shape.mode != Mode::Async,
        ttl: Duration::from_secs(u64::from(settings.ttl)),
    };
    let began = Instant::now();
    let (mut rounds, mut struck): (Vec<Told>, usize) = (Vec::new(), 0);
    for round in Plan::new(campaign.seed, means, &campaign.only) {
        if struck >= campaign.faults || began.elapsed() >= campaign.time {
            break;
        }
        let told = course.round(rounds.len() + 1, &round)?;
        struck += told.hits.len();
        let ends = !told.findings.is_empty() && campaign.fail_fast
            || told.findings.iter().any(|finding| finding.breach == Breach::NotHealed);
        rounds.push(told);
        if ends {
            break;
        }
    }
    let (breaths, restored) = (course.breaths, course.restored);
    // Only what was acknowledged before is there for certain.
    let history = crew.finish();
    let last = end_state(&cluster.rig);
    let changes = watch.so_far();
    let mut findings: Vec<Finding> = rounds.iter().flat_map(|told| told.findings.clone()).collect();
    findings.extend(judge(campaign, &history, last.as_ref().ok()));
    if !restored {
        findings.extend(watch::promises_hold(&changes));
    }
    if !findings.is_empty() {
        keep_logs(&cluster.rig, &campaign.out)?;
    }
    let product = product(campaign)?;
    Ok(Report::of(product, campaign, rounds, findings, &history, &changes, &breaths, clock.now()))
}

fn product(campaign: &Campaign) -> Result<String, Trouble> {
    if !campaign.shape.settings.peer {
        return Ok(format!("Regent {}", env!("CARGO_PKG_VERSION")));
    }
    let program = regent_tests::rig::programs::peer()?;
    let out = regent_tests::rig::process::output(std::process::Command::new(program).arg("--version"), PATIENCE)?;
    let said = String::from_utf8_lossy(&out.stdout);
    Ok(format!("Patroni {}", said.split_whitespace().last().unwrap_or("?")))
}

/// What the tables hold in the end.
struct Last {
    rows: BTreeSet<i64>,
    lists: BTreeMap<i64, Vec<i64>>,
}

fn end_state(rig: &Rig) -> Result<Last, Trouble> {
    let server = rig.wait_primary(PATIENCE)?.server();
    let number = |text: &String| text.parse::<i64>().map_err(|_| Trouble::new(format!("{text:?} is no number")));
    let rows = server.rows("select id from chaos_rows", PATIENCE)?;
    let rows = rows.iter().flatten().map(number).collect::<Result<_, _>>()?;
    let lists = server.rows("select key, array_to_json(list) from chaos_lists", PATIENCE)?;
    let list = |row: &Vec<String>| match row.as_slice() {
        [key, list] => Ok((number(key)?, serde_json::from_str(list).map_err(|e| Trouble::new(e.to_string()))?)),
        other => Err(Trouble::new(format!("{other:?} is no list"))),
    };
    Ok(Last { rows, lists: lists.iter().map(list).collect::<Result<_, _>>()? })
}

/// What is judged of a whole history; the rest was, round by round.
fn judge(campaign: &Campaign, history: &History, last: Option<&Last>) -> Vec<Finding> {
    let synchronous = campaign.shape.mode != Mode::Async;
    let mut findings = answers::check(&history.checks, &history.rows);
    findings.extend(money::sums(&history.sums, ACCOUNTS, MONEY));
    findings.extend(money::counts(&history.counts, synchronous));
    if let Some(last) = last {
        findings.extend(rows::phantoms(&history.rows, &last.rows));
        let gone = lists::lost(&history.lists, &last.lists);
        if synchronous && !gone.is_empty() {
            let proof =
                format!("acknowledged values of lists are gone: {:?}", gone.iter().take(10).collect::<Vec<_>>());
            findings.push(Finding { breach: Breach::Lost, at: Moment(0), proof });
        }
        findings.extend(lists::check(&history.lists, &last.lists, &gone));
    }
    findings
}

/// The logs of a rig that goes are kept for who looks into a finding.
fn keep_logs(rig: &Rig, out: &Path) -> Result<(), Trouble> {
    for node in rig.nodes() {
        let to = out.join(node.name());
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(node.dir())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".log") || name == "patroni.yml" {
                fs::copy(entry.path(), to.join(name))?;
            }
        }
    }
    for entry in fs::read_dir(rig.dir())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") {
            fs::copy(entry.path(), out.join(name))?;
        }
    }
    Ok(())
}

struct Course<'a> {
    campaign: &'a Campaign,
    cluster: &'a Cluster,
    crew: &'a Crew,
    clock: Clock,
    tell: &'a dyn Fn(&str),
    rng: Rng,
    breaths: Vec<Breath>,
    /// An older state of etcd came back: what it had been told since is forgotten.
    restored: bool,
    known_lost: BTreeSet<i64>,
}

/// Who leads, on which timeline.
type Reign = (String, String);

impl Course<'_> {
    fn say(&self, text: &str) {
        (self.tell)(&format!("{:8.2} s  {text}", self.clock.now().seconds()));
    }

    /// Waits until the clients behind HAProxy and those that know all nodes have so many more rows.
    fn works(&self, count: usize) -> Result<(), Trouble> {
        for way in [Way::Proxy, Way::Direct] {
            let before = self.crew.acknowledged(way);
            self.cluster.rig.wait(PATIENCE, &format!("clients write ({way:?})"), |_| {
                let now = self.crew.acknowledged(way) - before;
                if now >= count { Ok(()) } else { Err(format!("{now} of {count} rows")) }
            })?;
        }
        Ok(())
    }

    fn reign(&self) -> Result<Reign, Trouble> {
        let primary = self.cluster.rig.wait_primary(PATIENCE)?;
        let timeline =
            primary.server().value("select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)", PATIENCE)?;
        Ok((primary.name().to_owned(), timeline))
    }

    fn round(&mut self, number: usize, round: &Round) -> Result<Told, Trouble> {
        let before = self.reign()?;
        let began = self.clock.now();
        self.say(&format!("round {number}: {}", round.words()));
        let (hits, troubles) = self.strike_all(round);
        faults::mend_all(self.cluster)?;
        let undone = self.clock.now();
        self.breathe(&hits);
        let healed = self.cluster.rig.wait_whole(HEAL).map(|_| ()).and_then(|()| self.works(10));
        let mut findings = Vec::new();
        if let Err(why) = &healed {
            let proof = format!("{HEAL:?} after the last fault was undone: {why}");
            findings.push(Finding { breach: Breach::NotHealed, at: self.clock.now(), proof });
        }
        let after = if healed.is_ok() { Some(self.reign()?) } else { None };
        let ended = self.clock.now();
        let changed = after.as_ref().is_some_and(|after| *after != before);
        if changed && !round.may_cost_leadership() {
            let proof = format!("{before:?} gave way to {after:?}, after: {}", round.words());
            findings.push(Finding { breach: Breach::NeedlessFailover, at: began, proof });
        }
        let writers = self.crew.so_far(|history| writers::check(&history.rows, &self.breaths));
        findings.extend(writers.findings.into_iter().filter(|finding| finding.at >= began));
        let lost = if healed.is_ok() { self.lost(&mut findings)? } else { 0 };
        let [gap_proxy, gap_direct] = [Way::Proxy, Way::Direct]
            .map(|way| self.crew.so_far(|history| history.gap(way, began, ended).as_secs_f64()));
        let told = Told {
            number,
            strikes: round.strikes.clone(),
            hits,
            troubles,
            began,
            undone,
            ended,
            leader: before.0.clone(),
            next: after.map_or_else(String::new, |after| after.0),
            changed,
            gap_proxy,
            gap_direct,
            lost,
            findings,
        };
        self.say(&told.brief());
        for finding in &told.findings {
            self.say(&format!("FOUND {finding}"));
        }
        Ok(told)
    }

    /// Makes all of a round happen and undoes it, each in its time.
    fn strike_all(&mut self, round: &Round) -> (Vec<Hit>, Vec<String>) {
        enum Act {
            Begin(usize),
            End(usize),
        }
        let mut acts = Vec::new();
        for (i, strike) in round.strikes.iter().enumerate() {
            acts.push((strike.begins_ms, Act::Begin(i)));
            acts.push((strike.begins_ms + strike.lasts_ms, Act::End(i)));
        }
        acts.sort_by_key(|(at, _)| *at);
        let start = Instant::now();
        let mut undos: BTreeMap<usize, Undo> = BTreeMap::new();
        let (mut hits, mut troubles): (Vec<Hit>, Vec<String>) = (Vec::new(), Vec::new());
        for (at, act) in acts {
            sleep(Duration::from_millis(at).saturating_sub(start.elapsed()));
            match act {
                Act::Begin(i) => {
                    let Some(strike) = round.strikes.get(i) else { continue };
                    let began = self.clock.now();
                    match faults::strike(self.cluster, strike, &mut self.rng) {
                        Ok((node, undo)) => {
                            self.restored |= strike.fault == Fault::EtcdRestored;
                            undos.insert(i, undo);
                            hits.push(Hit { strike: *strike, node, began, ended: began });
                        }
                        Err(why) => troubles.push(format!("{}: {why}", strike.words())),
                    }
                }
                Act::End(i) => {
                    if let Some(undo) = undos.remove(&i) {
                        if let Err(why) = undo(self.cluster) {
                            troubles.push(format!("undoing: {why}"));
                        }
                        let now = self.clock.now();
                        let strike = round.strikes.get(i);
                        hits.iter_mut().filter(|hit| Some(&hit.strike) == strike).for_each(|hit| hit.ended = now);
                    }
                }
            }
        }
        for trouble in &troubles {
            self.say(&format!("not done: {}", trouble.lines().next().unwrap_or_default()));
        }
        (hits, troubles)
    }

    /// Notes when nodes that stood still went on.
    fn breathe(&mut self, hits: &[Hit]) {
        let frozen = hits.iter().filter(|hit| hit.strike.fault == Fault::NodeFrozen);
        for hit in frozen {
            self.breaths.push(Breath { node: hit.node, from: hit.ended, lasts: FIRST_BREATH });
        }
    }

    /// Acknowledged rows that have gone since the last round.
    fn lost(&mut self, findings: &mut Vec<Finding>) -> Result<usize, Trouble> {
        // Rows that are acknowledged after this were not asked for.
        let asked = self.crew.so_far(|history| history.rows.clone());
        let there = end_state(&self.cluster.rig)?.rows;
        let mut lost = rows::lost(&asked, &there);
        lost.retain(|(_, row, _)| self.known_lost.insert(row.id));
        let settings = self.campaign.shape.settings;
        // What the candidates last knew of the primary is as old as a lease, and what it wrote since was seen by nobody.
        let bound = Duration::from_secs(u64::from(settings.ttl + settings.loop_wait));
        match (self.campaign.shape.mode, lost.first()) {
            (Mode::Async, _) => findings.extend(rows::beyond_bound(&asked, &lost, bound)),
            (_, None) => {}
            // A breath is no excuse: what a server completes in it, no standby acknowledges.
            (Mode::Sync | Mode::Quorum, Some((at, row, timeline))) => {
                let proof =
                    format!("{} acknowledged rows are lost, the first {row:?} on timeline {timeline}", lost.len());
                findings.push(Finding { breach: Breach::Lost, at: *at, proof });
            }
        }
        Ok(lost.len())
    }
}
