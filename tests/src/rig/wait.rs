//! Waiting for something to become true.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(50);

/// Looks until `look` is `Ok`, `within` at the most; then its last word on what is missing. Looks at least once.
///
/// # Errors
/// What `look` last said.
pub fn poll<T>(within: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let end = Instant::now() + within;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(missing) if Instant::now() >= end => return Err(missing),
            Err(_) => sleep(STEP),
        }
    }
}
