//! Time, in one place.

use std::time::{Duration, SystemTime};

use regent_core::units::Instant;

/// The clocks of one machine.
pub trait Clock: Clone + 'static {
    /// Time since boot, suspend included: all deadlines.
    fn now(&self) -> Instant;

    /// Wall-clock time: for people and schedules only.
    fn wall(&self) -> SystemTime;

    /// Chance.
    fn dice(&self) -> u64;
}

/// This machine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Instant {
        boot_time()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn dice(&self) -> u64 {
        // The low digits of a nanosecond clock and the process: enough to spread clones over their sources.
        let nanos = boot_time().0.subsec_nanos();
        (u64::from(nanos) << 7) ^ u64::from(std::process::id())
    }
}

/// `CLOCK_BOOTTIME`: goes on while the machine sleeps (Linux, clock_gettime(2)).
#[must_use]
pub fn boot_time() -> Instant {
    let elapsed = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Instant(elapsed)
}
