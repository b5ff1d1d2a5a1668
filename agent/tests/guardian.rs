//! The real guardian process, on servers that are none: a `sleep` called postgres that works in the data directory.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "tests")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use regent::clock::boot_time;
use regent::guardian::{Ack, Action, Client, Guard, Request, Taken, dismiss};
use regent_core::units::Instant;
use rustix::process::{Pid, Signal, kill_process};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    dir: tempfile::TempDir,
    servers: Vec<Child>,
    guardians: Vec<u32>,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        // By another process: a child that another test forks meanwhile would hold our copy open for writing, and a program
        // that is open for writing cannot be run.
        let copied = Command::new("cp").arg("/bin/sleep").arg(dir.path().join("postgres")).status().unwrap();
        assert!(copied.success());
        Bench { dir, servers: Vec::new(), guardians: Vec::new() }
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn server(&mut self) -> u32 {
        // It must heed SIGINT as PostgreSQL does, also where whoever runs the tests ignores it (a shell's background job).
        let program = self.dir.path().join("postgres");
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(&program).arg("1000").current_dir(self.data());
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.servers.push(child);
        let runs = || std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        while !runs() {
            std::thread::sleep(Duration::from_millis(1));
        }
        pid
    }

    fn agent(&self) -> Client {
        Client::with_program(&self.data(), Path::new(env!("CARGO_BIN_EXE_regent"))).unwrap()
    }

    async fn ask(&mut self, agent: &mut Client, request: Request) -> Ack {
        let mut answer = agent.call(request).await;
        if answer.is_err() {
            // As an agent does: one that had nothing to guard may have ended just as it was asked.
            answer = agent.call(request).await;
        }
        let ack = answer.unwrap();
        if !self.guardians.contains(&ack.guardian) {
            self.guardians.push(ack.guardian);
        }
        ack
    }

    async fn arm(&mut self, agent: &mut Client, pid: Option<u32>, after: Duration) -> (Ack, Instant) {
        let deadline = boot_time() + after;
        (self.arm_at(agent, pid, deadline, deadline).await, deadline)
    }

    async fn arm_at(&mut self, agent: &mut Client, pid: Option<u32>, stop_at: Instant, deadline: Instant) -> Ack {
        let postmaster = pid.map(|pid| (pid, agent.started(pid).unwrap()));
        self.ask(agent, Request::Arm { postmaster, stop_at, deadline }).await
    }

    fn runs(&mut self, index: usize) -> bool {
        self.servers[index].try_wait().unwrap().is_none()
    }

    /// When it was found dead.
    async fn dies(&mut self, index: usize, within: Duration) -> Instant {
        let until = boot_time() + within;
        while self.runs(index) {
            assert!(boot_time() < until, "it lives");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        boot_time()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for pid in &self.guardians {
            signal(*pid, Signal::KILL);
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

#[tokio::test]
async fn it_kills_at_the_deadline_and_not_before_also_when_its_agent_is_gone_and_it_was_told_to_end() {
    let mut bench = Bench::new();
    let (known, unknown) = (bench.server(), bench.server());
    let mut agent = bench.agent();
    let (ack, deadline) = bench.arm(&mut agent, Some(known), SECOND).await;
    assert_eq!((ack.taken, ack.armed_until), (Taken::Done, Some(deadline)));
    drop(agent);
    signal(ack.guardian, Signal::TERM);
    for index in [0, 1] {
        let died = bench.dies(index, SECOND * 5).await;
        assert!(died >= deadline, "{:?} before the deadline", died.until(deadline));
    }
    let mut next = bench.agent();
    let told = bench.ask(&mut next, Request::Status).await;
    assert_eq!(told.guardian, ack.guardian, "the same guardian");
    let action = told.last.expect("it tells the next agent");
    assert_eq!(action.killed, 2, "{known} and {unknown}");
    println!("killed {:?} after the deadline, took {:?}", action.at.since(deadline), action.took);
    assert_eq!(told.armed_until, None);
}

#[tokio::test]
async fn the_next_agent_takes_the_deadline_over_and_moves_it() {
    let mut bench = Bench::new();
    let pid = bench.server();
    let mut agent = bench.agent();
    let (_, deadline) = bench.arm(&mut agent, Some(pid), SECOND).await;
    drop(agent);
    let mut next = bench.agent();
    assert_eq!(bench.ask(&mut next, Request::Status).await.armed_until, Some(deadline), "handed over");
    bench.arm(&mut next, Some(pid), SECOND * 3).await;
    tokio::time::sleep(SECOND * 2).await;
    assert!(bench.runs(0), "the old deadline has passed");
    assert_eq!(bench.ask(&mut next, Request::Disarm { down: true }).await.taken, Taken::StillRuns);
    assert!(bench.ask(&mut next, Request::Status).await.armed_until.is_some(), "a server that runs stays guarded");
    assert_eq!(bench.ask(&mut next, Request::Disarm { down: false }).await.taken, Taken::Done);
    tokio::time::sleep(SECOND * 2).await;
    assert!(bench.runs(0), "disarmed");
    assert_eq!(bench.ask(&mut next, Request::Status).await.last, None);
}

/// What it did last, once it did something.
async fn action(bench: &mut Bench, agent: &mut Client) -> Action {
    let until = boot_time() + SECOND * 5;
    loop {
        let told = bench.ask(agent, Request::Status).await;
        if let Some(action) = told.last {
            assert_eq!(told.armed_until, None);
            return action;
        }
        assert!(boot_time() < until, "it does nothing");
        tokio::time::sleep(SECOND / 100).await;
    }
}

#[tokio::test]
async fn a_server_that_is_known_gets_a_fast_stop_before_the_deadline() {
    let mut bench = Bench::new();
    let pid = bench.server();
    let mut agent = bench.agent();
    let stop_at = boot_time() + SECOND;
    let deadline = stop_at + SECOND * 60;
    assert_eq!(bench.arm_at(&mut agent, Some(pid), stop_at, deadline).await.armed_until, Some(deadline));
    assert!(bench.dies(0, SECOND * 5).await >= stop_at);
    let action = action(&mut bench, &mut agent).await;
    assert!(action.at >= stop_at && action.at < deadline);
    assert_eq!(action.killed, 0, "it ended by itself");
}

#[tokio::test]
async fn who_does_not_heed_the_fast_stop_is_killed_at_the_deadline() {
    let mut bench = Bench::new();
    let pid = bench.server();
    signal(pid, Signal::STOP);
    let mut agent = bench.agent();
    let stop_at = boot_time() + SECOND / 2;
    let deadline = stop_at + SECOND;
    bench.arm_at(&mut agent, Some(pid), stop_at, deadline).await;
    assert!(bench.dies(0, SECOND * 5).await >= deadline);
    let action = action(&mut bench, &mut agent).await;
    assert!(action.at >= stop_at && action.at + action.took >= deadline);
    assert_eq!(action.killed, 1);
}

#[tokio::test]
async fn a_server_that_stops_has_all_the_time_that_a_renewed_lease_gives() {
    let mut bench = Bench::new();
    let pid = bench.server();
    signal(pid, Signal::STOP);
    let mut agent = bench.agent();
    let stop_at = boot_time() + SECOND / 2;
    let first = stop_at + SECOND * 3;
    bench.arm_at(&mut agent, Some(pid), stop_at, first).await;
    tokio::time::sleep(SECOND).await;
    let later = boot_time() + SECOND * 60;
    let ack = bench.arm_at(&mut agent, Some(pid), later, later).await;
    assert_eq!((ack.taken, ack.armed_until), (Taken::Done, Some(later)));
    tokio::time::sleep(SECOND * 3).await;
    assert!(bench.runs(0), "the first deadline has passed");
    signal(pid, Signal::CONT);
    bench.dies(0, SECOND * 5).await;
    let action = action(&mut bench, &mut agent).await;
    assert!(action.at < first, "one stop, the first");
    assert_eq!(action.killed, 0);
}

/// The order to stop is the last server's.
#[tokio::test]
async fn the_next_server_inherits_no_stop() {
    let mut bench = Bench::new();
    let pid = bench.server();
    let mut agent = bench.agent();
    let stop_at = boot_time() + SECOND;
    bench.arm_at(&mut agent, Some(pid), stop_at, stop_at + SECOND * 60).await;
    signal(pid, Signal::KILL);
    bench.dies(0, SECOND).await;
    let next = bench.server();
    let later = boot_time() + SECOND * 60;
    assert_eq!(bench.arm_at(&mut agent, None, boot_time(), later).await.taken, Taken::Done);
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(bench.arm_at(&mut agent, Some(next), later, later).await.taken, Taken::Done);
    assert!(bench.runs(1), "one that is not known yet is not stopped, and nobody is for an older order");
    assert_eq!(bench.ask(&mut agent, Request::Status).await.last, None);
}

/// Stopped beyond its deadline, while its agent goes on: what the agent said meanwhile comes first.
#[tokio::test]
async fn one_that_was_frozen_hears_what_waits_before_it_looks_at_the_time() {
    let mut bench = Bench::new();
    let pid = bench.server();
    let mut agent = bench.agent();
    let (ack, deadline) = bench.arm(&mut agent, Some(pid), SECOND).await;
    signal(ack.guardian, Signal::STOP);
    let mut last = deadline;
    while boot_time() < deadline + SECOND {
        last = boot_time() + SECOND * 60;
        let postmaster = Some((pid, agent.started(pid).unwrap()));
        let renewed = Request::Arm { postmaster, stop_at: last, deadline: last };
        agent.call(renewed).await.expect_err("nobody answers");
    }
    signal(ack.guardian, Signal::CONT);
    let told = bench.ask(&mut agent, Request::Status).await;
    assert_eq!((told.guardian, told.armed_until, told.last), (ack.guardian, Some(last), None));
    assert!(bench.runs(0), "a lease that was renewed");
}

#[tokio::test]
async fn one_that_was_frozen_and_heard_nothing_kills() {
    let mut bench = Bench::new();
    let pid = bench.server();
    let mut agent = bench.agent();
    let (ack, deadline) = bench.arm(&mut agent, Some(pid), SECOND).await;
    signal(ack.guardian, Signal::STOP);
    // What comes too late for itself, and a question, are no reason to wait.
    let then = boot_time() + SECOND;
    let late = Request::Arm { postmaster: None, stop_at: then, deadline: then };
    for request in [late, Request::Status, Request::Disarm { down: false }] {
        agent.call(request).await.expect_err("nobody answers");
    }
    assert!(bench.runs(0) && boot_time() > deadline + SECOND);
    signal(ack.guardian, Signal::CONT);
    bench.dies(0, SECOND * 5).await;
    assert_eq!(bench.ask(&mut agent, Request::Status).await.last.expect("it did it").killed, 1);
}

#[tokio::test]
async fn a_server_that_starts_after_the_last_word_is_found() {
    let mut bench = Bench::new();
    let mut agent = bench.agent();
    let (ack, deadline) = bench.arm(&mut agent, None, SECOND).await;
    assert_eq!(ack.taken, Taken::Done);
    bench.server();
    assert!(bench.dies(0, SECOND * 5).await >= deadline);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut bench = Bench::new();
    let pid = bench.server();
    let mut agent = bench.agent();
    let (_, deadline) = bench.arm(&mut agent, Some(pid), SECOND * 60).await;
    let started = agent.started(pid).unwrap();
    let now = boot_time();
    let late = Request::Arm { postmaster: Some((pid, started)), stop_at: now, deadline: now };
    let then = now + SECOND;
    let other = Request::Arm { postmaster: Some((pid, started + 1)), stop_at: then, deadline: then };
    for (request, taken) in [(late, Taken::TooLate), (other, Taken::NoSuchServer)] {
        let ack = bench.ask(&mut agent, request).await;
        assert_eq!((ack.taken, ack.armed_until), (taken, Some(deadline)));
    }
    let second = bench.agent().call(Request::Disarm { down: false }).await;
    assert!(second.is_err() || second.is_ok_and(|ack| ack.taken == Taken::Taken), "one agent at a time");
    assert_eq!(bench.ask(&mut agent, Request::Status).await.armed_until, Some(deadline));
}

#[tokio::test]
async fn its_end_is_noticed_without_asking() {
    let mut bench = Bench::new();
    let mut agent = bench.agent();
    let first = bench.ask(&mut agent, Request::Status).await.guardian;
    tokio::time::timeout(SECOND / 5, agent.gone()).await.expect_err("it lives");
    signal(first, Signal::KILL);
    tokio::time::timeout(SECOND * 5, agent.gone()).await.expect("noticed");
    assert_ne!(bench.ask(&mut agent, Request::Status).await.guardian, first, "and replaced");
}

#[tokio::test]
async fn one_that_is_not_wanted_any_more_is_told_so() {
    let mut bench = Bench::new();
    let pid = bench.server();
    dismiss(&bench.data()).expect("there is none");
    let mut agent = bench.agent();
    bench.arm(&mut agent, Some(pid), SECOND).await;
    assert!(dismiss(&bench.data()).is_err(), "another agent feeds it");
    drop(agent);
    dismiss(&bench.data()).unwrap();
    tokio::time::sleep(SECOND * 2).await;
    assert!(bench.runs(0));
}

#[tokio::test]
async fn a_guardian_that_died_is_replaced() {
    let mut bench = Bench::new();
    let mut agent = bench.agent();
    let first = bench.ask(&mut agent, Request::Status).await.guardian;
    signal(first, Signal::KILL);
    let until = boot_time() + SECOND * 5;
    loop {
        if let Ok(ack) = agent.call(Request::Status).await
            && ack.guardian != first
        {
            bench.guardians.push(ack.guardian);
            return;
        }
        assert!(boot_time() < until, "nobody came");
    }
}
