//! What agents cost: time on processors, memory, questions to etcd.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Rig, Trouble, http};

/// Messages that etcd's members have received so far, by method; a member that starts again counts anew.
///
/// # Errors
/// A member does not answer.
pub fn etcd_calls(rig: &Rig) -> Result<BTreeMap<String, f64>, Trouble> {
    let mut calls = BTreeMap::new();
    for member in rig.etcd.endpoints() {
        let page = http::get(member, "/metrics", Duration::from_secs(3))?.body;
        for line in page.lines().filter_map(|line| line.strip_prefix("grpc_server_msg_received_total{grpc_method=\"")) {
            let Some((method, rest)) = line.split_once('"') else { continue };
            let count = rest.rsplit_once(' ').and_then(|(_, count)| count.parse::<f64>().ok()).unwrap_or(0.0);
            *calls.entry(method.to_owned()).or_default() += count;
        }
    }
    Ok(calls)
}

/// Time on a processor so far, of all threads (nanoseconds, `/proc/PID/task/TID/schedstat`: the ticks of stat are too coarse).
#[must_use]
pub fn cpu_time(pid: i32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

/// A line of `/proc/PID/status` that tells kilobytes, in megabytes.
#[must_use]
pub fn memory_mb(pid: i32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    let kilobytes: u32 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
    f64::from(kilobytes) / 1024.0
}
