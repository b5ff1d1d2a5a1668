//! Free TCP ports, below the range from which the kernel takes ports for outgoing connections: a port that a server will
//! bind again after its restart must not be borrowed by a client in between.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use super::Trouble;

const LOWEST: u16 = 20_000;
const COUNT: u16 = 12_000;

static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that nobody listens on, and that no other rig of this process was given.
pub fn free() -> Result<u16, Trouble> {
    let mut taken = TAKEN.lock().map_err(|_| Trouble::new("the list of ports is poisoned"))?;
    // Test programs that run side by side start to search at different places.
    let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT)).unwrap_or(0);
    for offset in 0..COUNT {
        let port = LOWEST + (start + offset) % COUNT;
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return Ok(port);
        }
    }
    Err(Trouble::new(format!("no free port between {LOWEST} and {}", LOWEST + COUNT)))
}
