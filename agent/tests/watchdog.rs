//! A watchdog's device: a plain file, and a library loaded before libc that answers the one call which a file refuses.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use regent::clock::{BootClock, boot_time};
use regent::watchdog::{Mode, Order, Settings, State, feed};
use regent_core::fence::Fence;
use regent_core::snapshot::LeaseView;
use regent_core::units::LeaseId;
use tokio::sync::watch;

/// `WDIOC_SETTIMEOUT` writes what it was asked for into the device, and takes `WATCHDOG_TAKES`.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/watchdog.h>
int ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    int *seconds = va_arg(arguments, int *);
    va_end(arguments);
    if ((unsigned int)request != (unsigned int)WDIOC_SETTIMEOUT) return syscall(SYS_ioctl, fd, request, seconds);
    dprintf(fd, "set %d ", *seconds);
    *seconds = atoi(getenv("WATCHDOG_TAKES"));
    return 0;
}
"#;
const SECOND: Duration = Duration::from_secs(1);

/// The test of this name once more, in a process with the library. `None` in that process.
fn with_device(test: &str, takes: u32) -> Option<()> {
    if std::env::var_os("WATCHDOG_TAKES").is_some() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("shim.c"), dir.path().join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(compiled.success(), "the C compiler that also links Rust");
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test]).env("LD_PRELOAD", &library).env("WATCHDOG_TAKES", takes.to_string());
    let output = again.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
    Some(())
}

struct Bench {
    file: tempfile::NamedTempFile,
    orders: watch::Sender<Order>,
    leases: watch::Sender<LeaseView>,
    state: watch::Receiver<State>,
}

impl Bench {
    fn new(mode: Mode) -> Bench {
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings = Settings { mode, device: file.path().to_owned(), timeout: SECOND * 25, loop_wait: SECOND * 10 };
        let (orders, heard) = watch::channel(Order { fence: Fence::Keep, settings });
        let (leases, lease) = watch::channel(LeaseView::default());
        let (sender, state) = watch::channel(State::default());
        tokio::spawn(feed(BootClock, heard, lease, sender));
        Bench { file, orders, leases, state }
    }

    async fn order(&mut self, fence: Fence) -> State {
        self.orders.send_modify(|order| order.fence = fence);
        let done = |state: &State| state.order.as_ref().is_some_and(|order| order.fence == fence);
        self.state.wait_for(done).await.unwrap().clone()
    }

    async fn renewed(&mut self, id: i64, left: Duration) {
        self.state.borrow_and_update();
        self.leases.send_replace(LeaseView { id: Some(LeaseId(id)), ends: Some(boot_time() + left) });
        self.state.changed().await.unwrap();
    }

    fn device(&self) -> String {
        std::fs::read_to_string(Path::new(self.file.path())).unwrap()
    }
}

fn guard() -> Fence {
    Fence::Guard { pid: Some(7), lease: Some(LeaseId(1)), promised: None, early: Duration::ZERO }
}

#[tokio::test]
async fn it_is_fed_with_the_lease_of_the_key_and_disarmed_when_nothing_can_be_written() {
    if with_device("it_is_fed_with_the_lease_of_the_key_and_disarmed_when_nothing_can_be_written", 25).is_some() {
        return;
    }
    let mut bench = Bench::new(Mode::Required);
    bench.renewed(1, SECOND * 30).await;
    assert_eq!(bench.order(Fence::Off).await.problem, None);
    assert_eq!(bench.device(), "", "not opened before it is needed");
    let state = bench.order(guard()).await;
    assert_eq!((state.active, state.problem), (Some(SECOND * 25), None));
    assert_eq!(bench.device(), "set 25 1");
    bench.renewed(1, SECOND * 31).await;
    assert_eq!(bench.device(), "set 25 11", "an acknowledged renewal");
    bench.renewed(2, SECOND * 32).await;
    bench.order(Fence::Keep).await;
    bench.renewed(1, SECOND * 33).await;
    assert_eq!(bench.device(), "set 25 11", "another lease, or nobody knows whose");
    bench.order(guard()).await;
    bench.renewed(1, Duration::ZERO).await;
    assert_eq!(bench.device(), "set 25 111", "not after the deadline");
    assert_eq!(bench.order(Fence::Off).await.active, None);
    assert_eq!(bench.device(), "set 25 111V");
}

#[tokio::test]
async fn a_device_that_would_come_too_late_is_refused_where_one_is_required() {
    if with_device("a_device_that_would_come_too_late_is_refused_where_one_is_required", 60).is_some() {
        return;
    }
    let mut required = Bench::new(Mode::Required);
    let state = required.order(guard()).await;
    assert!(state.active.is_none() && state.problem.is_some_and(|problem| problem.contains("60s")));
    assert_eq!(required.device(), "set 25 V", "closed so that it resets nothing");
    assert_eq!(Bench::new(Mode::Automatic).order(guard()).await.active, Some(SECOND * 60), "better than none");
}

#[tokio::test]
async fn a_device_that_would_reset_a_machine_that_is_well_is_never_used() {
    if with_device("a_device_that_would_reset_a_machine_that_is_well_is_never_used", 9).is_some() {
        return;
    }
    let mut bench = Bench::new(Mode::Automatic);
    assert_eq!(bench.order(guard()).await.active, None, "shorter than loop_wait (V4)");
    assert_eq!(bench.device(), "set 25 V");
}
