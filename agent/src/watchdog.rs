//! The kernel's watchdog (ha-rules section 21): a device that resets the machine when nobody feeds it.
//!
//! ```text
//!            a server may write              a renewal is acknowledged
//!   closed ───────────────────────► counting ─────────────────────────► fed
//!    ▲                                 │ no server can write: disarmed ("V"), closed
//!    └─────────────────────────────────┘ the agent dies or freezes: the machine is reset after the timeout
//! ```
//!
//! It works beside the guardian, on the same word of the loop ([`Fence`]), on a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::O_NONBLOCK;
use regent_core::fence::Fence;
use regent_core::snapshot::LeaseView;
use regent_core::units::Instant;
use tokio::sync::watch;

use crate::clock::Clock;

/// `watchdog.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No device is touched.
    Off,
    /// Used if it can be.
    Automatic,
    /// No leadership without it.
    Required,
}

/// What the configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `watchdog.mode`.
    pub mode: Mode,
    /// `watchdog.device`.
    pub device: PathBuf,
    /// How long it may stay unfed: `ttl` less `watchdog.safety_margin`.
    pub timeout: Duration,
    /// A timeout shorter than this would reset machines that are well (V4).
    pub loop_wait: Duration,
}

/// The loop's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Whether the server may write, and under which lease.
    pub fence: Fence,
    /// In force.
    pub settings: Settings,
}

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The last order that was carried out, or that failed.
    pub order: Option<Order>,
    /// It counts: the machine is reset after so long without food.
    pub active: Option<Duration>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// What the loop needs of it.
#[derive(Debug)]
pub struct Channels {
    /// The loop's word.
    pub orders: watch::Sender<Order>,
    /// What came of it.
    pub state: watch::Receiver<State>,
}

/// An open device, which counts.
struct Device {
    file: File,
    path: PathBuf,
    asked: Duration,
    timeout: Duration,
}

mod call {
    //! `linux/watchdog.h`.
    nix::ioctl_readwrite!(settimeout, b'W', 6, nix::libc::c_int);
}

impl Settings {
    /// What can be known without opening it, which would start its clock (R10).
    fn usable(&self) -> Result<(), String> {
        if self.timeout < self.loop_wait || self.timeout < Duration::from_secs(1) {
            let (timeout, wait) = (self.timeout, self.loop_wait);
            return Err(format!(
                "its timeout (ttl less safety_margin) would be {timeout:?}, less than loop_wait {wait:?}"
            ));
        }
        let writable = rustix::fs::access(&self.device, rustix::fs::Access::WRITE_OK);
        writable.map_err(|error| format!("{}: {error}", self.device.display()))
    }
}

impl Device {
    fn open(settings: &Settings) -> Result<Device, String> {
        settings.usable()?;
        let path = &settings.device;
        // Not for ever, if it is a pipe that nobody reads.
        let file = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path);
        let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        let mut device = Device { file, path: path.clone(), asked: Duration::ZERO, timeout: Duration::ZERO };
        match device.set(settings) {
            Ok(()) => Ok(device),
            Err(problem) => {
                device.disarm();
                Err(problem)
            }
        }
    }

    fn set(&mut self, settings: &Settings) -> Result<(), String> {
        let (path, wanted) = (self.path.display(), settings.timeout);
        let actual = set_timeout(&self.file, wanted).map_err(|error| format!("{path} takes no timeout: {error}"))?;
        if actual < settings.loop_wait || actual > wanted && settings.mode == Mode::Required {
            return Err(format!("{path} has a timeout of {actual:?} where {wanted:?} is needed"));
        }
        if actual > wanted {
            tracing::warn!("watchdog {path}: a timeout of {actual:?} where {wanted:?} is needed: it may come too late");
        }
        (self.asked, self.timeout) = (wanted, actual);
        self.feed()
    }

    fn fits(&self, settings: &Settings) -> bool {
        self.path == settings.device && self.asked == settings.timeout
    }

    fn feed(&mut self) -> Result<(), String> {
        self.file.write_all(b"1").map_err(|error| format!("{} takes no food: {error}", self.path.display()))
    }

    /// The magic letter, then the end. A device that knows no such letter goes on counting: this was its last food (V6).
    fn disarm(mut self) {
        if let Err(error) = self.file.write_all(b"V") {
            tracing::error!("watchdog {}: not disarmed, this machine may be reset: {error}", self.path.display());
        }
    }
}

/// Returns the timeout that it took, which may be another.
#[expect(unsafe_code, reason = "no crate has this call")]
fn set_timeout(file: &File, timeout: Duration) -> Result<Duration, nix::Error> {
    let mut seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
    // SAFETY: the call reads and writes one integer that outlives it; a file that is no watchdog refuses it.
    unsafe { call::settimeout(file.as_raw_fd(), &raw mut seconds)? };
    Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// One look at order and lease.
fn step(device: &mut Option<Device>, order: &Order, food: bool) -> Result<(), String> {
    let Order { fence, settings } = order;
    let wanted = settings.mode != Mode::Off;
    match fence {
        Fence::Guard { .. } if wanted => {
            if let Some(other) = device.take_if(|open| open.path != settings.device) {
                other.disarm();
            }
            match device {
                None => *device = Some(Device::open(settings)?),
                Some(open) if !open.fits(settings) => open.set(settings)?,
                Some(open) if food => open.feed()?,
                Some(_) => {}
            }
            Ok(())
        }
        Fence::Keep if wanted => {
            if device.is_some() {
                Ok(())
            } else {
                settings.usable()
            }
        }
        Fence::Guard { .. } | Fence::Keep | Fence::Down | Fence::Off => {
            if let Some(open) = device.take() {
                tracing::info!("watchdog {}: disarmed", open.path.display());
                open.disarm();
            }
            if wanted { settings.usable() } else { Ok(()) }
        }
    }
}

/// Opens, feeds and disarms the device until `orders` is dropped. Runs on a thread of its own: a driver may block.
///
/// It is fed right after an acknowledged renewal of the lease that the leader key hangs on, and at no other time (V2).
pub async fn feed<C: Clock>(
    clock: C,
    mut orders: watch::Receiver<Order>,
    mut leases: watch::Receiver<LeaseView>,
    state: watch::Sender<State>,
) {
    let mut device = None;
    let mut fed_for: Option<Instant> = None;
    loop {
        let (order, lease) = (orders.borrow_and_update().clone(), *leases.borrow_and_update());
        let holds = matches!(order.fence, Fence::Guard { lease: Some(held), .. } if lease.id == Some(held));
        // Not after the deadline: whoever slept so long is not to be saved.
        let food = holds && lease.ends > fed_for && lease.ends.is_some_and(|ends| clock.now() < ends);
        if food {
            fed_for = lease.ends;
        }
        let problem = step(&mut device, &order, food).err();
        let active = device.as_ref().map(|open| open.timeout);
        report(&state.borrow(), &order, active, problem.as_deref());
        state.send_replace(State { order: Some(order), active, problem });
        tokio::select! {
            biased;
            changed = orders.changed() => if changed.is_err() { return },
            changed = leases.changed() => if changed.is_err() { return },
        }
    }
}

/// What is new goes to the log.
fn report(before: &State, order: &Order, active: Option<Duration>, problem: Option<&str>) {
    let path = order.settings.device.display();
    if let Some(timeout) = active.filter(|_| before.active != active) {
        tracing::info!("watchdog {path}: resets this machine {timeout:?} after its last food");
    }
    match problem.filter(|_| before.problem.as_deref() != problem) {
        Some(problem) if order.settings.mode == Mode::Required => {
            tracing::error!("no watchdog, no leadership: {problem}")
        }
        // The contract's default mode, on a machine without one.
        Some(problem) => tracing::info!("without a kernel watchdog: {problem}"),
        None => {}
    }
}

/// What `watchdog.mode` may say; `None`: nothing of the kind.
#[must_use]
pub fn mode(word: &str) -> Option<Mode> {
    match word.to_ascii_lowercase().as_str() {
        "off" | "false" | "disable" | "disabled" => Some(Mode::Off),
        "automatic" | "auto" => Some(Mode::Automatic),
        "required" | "require" => Some(Mode::Required),
        _ => None,
    }
}

/// Where it is, unless the configuration says otherwise.
#[must_use]
pub fn default_device() -> &'static Path {
    Path::new("/dev/watchdog")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{BootClock, boot_time};
    use regent_core::units::LeaseId;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings(mode: Mode, device: &Path) -> Settings {
        Settings { mode, device: device.to_owned(), timeout: SECOND * 25, loop_wait: SECOND * 10 }
    }

    const GUARD: Fence = Fence::Guard { pid: None, lease: Some(LeaseId(1)), promised: None, early: Duration::ZERO };

    #[test]
    fn a_file_that_is_no_watchdog_is_refused_and_stays_as_it_was() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut device = None;
        for fence in [Fence::Keep, Fence::Off, Fence::Down] {
            let order = Order { fence, settings: settings(Mode::Required, file.path()) };
            assert_eq!(step(&mut device, &order, true), Ok(()), "it could be one, and is not opened for that");
        }
        let order = Order { fence: GUARD, settings: settings(Mode::Required, file.path()) };
        let problem = step(&mut device, &order, true).unwrap_err();
        assert!(problem.contains("takes no timeout") && device.is_none(), "{problem}");
        let off = Order { fence: GUARD, settings: settings(Mode::Off, Path::new("/nonexistent")) };
        assert_eq!(step(&mut device, &off, true), Ok(()));
    }

    #[test]
    fn what_cannot_work_is_known_before_it_is_opened() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let missing = settings(Mode::Required, Path::new("/nonexistent/watchdog"));
        assert!(missing.usable().unwrap_err().contains("/nonexistent/watchdog"));
        let short = Settings { timeout: SECOND * 9, ..settings(Mode::Required, file.path()) };
        assert!(short.usable().unwrap_err().contains("loop_wait"), "V1: it would reset a machine that is well");
    }

    #[tokio::test]
    async fn the_word_that_failed_is_told_and_what_makes_it_good_is_taken_at_once() {
        let (orders, heard) =
            watch::channel(Order { fence: GUARD, settings: settings(Mode::Required, Path::new("/no")) });
        let ends = Some(boot_time() + SECOND * 60);
        let (_leases, lease) = watch::channel(LeaseView { id: Some(LeaseId(1)), ends });
        let (sender, mut state) = watch::channel(State::default());
        let feeding = tokio::spawn(feed(BootClock, heard, lease, sender));
        let told = state.wait_for(|state| state.order.is_some()).await.unwrap().clone();
        assert!(told.problem.is_some_and(|problem| problem.contains("/no")) && told.active.is_none());
        orders.send_modify(|order| order.settings.mode = Mode::Off);
        let told = state.wait_for(|state| state.order.as_ref().is_some_and(|o| o.settings.mode == Mode::Off)).await;
        assert_eq!(told.unwrap().problem, None);
        drop(orders);
        feeding.await.unwrap();
    }
}
