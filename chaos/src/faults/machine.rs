//! Time, memory and files that an agent does not get.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use regent_tests::rig::process::{clean, output};
use regent_tests::rig::{Node, Trouble, stray};

use super::strike::Undo;
use crate::cluster::Cluster;

/// The longest that setting a limit may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs what `work` does again and again until the fault is undone.
fn until_undone(threads: usize, work: impl Fn() + Clone + Send + 'static, after: impl FnOnce() + 'static) -> Undo {
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (over, work) = (Arc::clone(&over), work.clone());
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    work();
                }
            })
        })
        .collect();
    Box::new(move |_| {
        over.store(true, Ordering::SeqCst);
        for worker in workers {
            let _ = worker.join();
        }
        after();
        Ok(())
    })
}

/// The agent runs for 20 of every 200 milliseconds.
pub(super) fn starve(node: &Node) -> Undo {
    let Some(pid) = node.agent() else { return super::strike::over() };
    // The process that has the id now, and no later one.
    let started = stray::look(pid).map(|seen| seen.started);
    let send = move |signal| {
        if stray::look(pid).map(|seen| seen.started) == started {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    };
    let stutter = move || {
        send(Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(180));
        send(Signal::SIGCONT);
        thread::sleep(Duration::from_millis(20));
    };
    until_undone(1, stutter, move || send(Signal::SIGCONT))
}

/// Twice as many threads that compute as there are cores.
pub(super) fn busy() -> Undo {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let compute = || (0..1_000_000).for_each(|_| spin_loop());
    until_undone(cores * 2, compute, || ())
}

/// The agent keeps the files it has open and gets no more.
pub(super) fn no_more_files(cluster: &Cluster, node: &Node) -> Result<Undo, Trouble> {
    // The kernel gives no number from the limit on, and those below 3 are taken.
    limit(cluster, node, ["Max open files", "--nofile"], "3")
}

/// The agent keeps the memory it has and gets no more.
pub(super) fn no_more_memory(cluster: &Cluster, node: &Node) -> Result<Undo, Trouble> {
    limit(cluster, node, ["Max address space", "--as"], "1")
}

/// Sets a soft limit of the running agent, by its title in `/proc/PID/limits` and `prlimit`'s option.
fn limit(cluster: &Cluster, node: &Node, [title, option]: [&str; 2], to: &str) -> Result<Undo, Trouble> {
    let agent = node.agent().ok_or_else(|| Trouble::new("the agent does not run"))?;
    let limits = std::fs::read_to_string(format!("/proc/{agent}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix(title)).unwrap_or_default();
    let before = line.split_whitespace().next().unwrap_or("unlimited").to_owned();
    let (account, option) = (cluster.rig.account(), option.to_owned());
    let set = move |soft: &str| {
        // As the agent's own user: root is not always allowed to.
        let mut command = clean("prlimit");
        account.apply(&mut command);
        command.args(["--pid", &agent.to_string(), &format!("{option}={soft}:")]);
        let out = output(&mut command, PATIENCE)?;
        let said = String::from_utf8_lossy(&out.stderr);
        if out.status.success() { Ok(()) } else { Err(Trouble::new(said)) }
    };
    set(to)?;
    Ok(Box::new(move |_| {
        // It may have ended.
        let _ = set(&before);
        Ok(())
    }))
}
