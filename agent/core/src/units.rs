//! The small types everything is made of: parse, show, compare.
//!
//! A newtype stands wherever two numbers or strings could be swapped by mistake.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A position in PostgreSQL's write-ahead log, in bytes (PostgreSQL: `pg_lsn`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// How far `self` is ahead of `other`, in bytes; 0 when it is not.
    #[must_use]
    pub fn bytes_ahead_of(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not what its type demands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}")]
pub struct ParseError {
    /// What was wanted, for people.
    pub what: &'static str,
    /// What came.
    pub text: String,
}

impl ParseError {
    fn new(what: &'static str, text: &str) -> Self {
        ParseError { what, text: text.to_owned() }
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    /// Reads PostgreSQL's `X/X` form, hexadecimal on both sides.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("WAL position (X/X)", text);
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Lsn((u64::from(high) << 32) | u64::from(low)))
    }
}

/// A PostgreSQL timeline number; 1 is a cluster that was never failed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// The timeline that a promotion of this one makes, if nothing else was promised.
    #[must_use]
    pub fn next(self) -> Timeline {
        Timeline(self.0.saturating_add(1))
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a history ends. Positions on different timelines do not compare, and the compiler makes you say what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalPosition {
    /// The timeline on which `lsn` was written.
    pub timeline: Timeline,
    /// The end of the log.
    pub lsn: Lsn,
}

impl PartialOrd for WalPosition {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self.timeline == other.timeline).then(|| self.lsn.cmp(&other.lsn))
    }
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}

/// PostgreSQL's database system identifier: decimal digits, at least ten of them (dcs.md 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits = text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.map(SystemId).ok_or_else(|| ParseError::new("system identifier (at least 10 digits)", text))
    }
}

/// A member's name: unique in its cluster, the last part of its etcd key, and its `application_name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberName(pub String);

impl MemberName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this member's replication slot (dcs.md 7.2): lower case, `-` and `.` become `_`, anything else
    /// outside `[a-z0-9_]` becomes `u` and its code point in at least four decimal digits; at most 63 characters.
    #[must_use]
    pub fn slot_name(&self) -> String {
        let mut slot = String::with_capacity(self.0.len());
        for c in self.0.to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '_' => slot.push(c),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", u32::from(other))),
            }
        }
        slot.truncate(63);
        slot
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MemberName {
    fn from(name: &str) -> Self {
        MemberName(name.to_owned())
    }
}

/// A revision of etcd's store. Grows with every change of any key (etcd documentation, "Data model").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of an etcd lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A moment on this machine's boot-time clock (suspend included), as the time since boot.
///
/// Moments of different machines do not compare; nothing but this machine's deadlines is made of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(pub Duration);

impl Instant {
    /// Time from `self` to `later`; zero when `later` has passed.
    #[must_use]
    pub fn until(self, later: Instant) -> Duration {
        later.0.saturating_sub(self.0)
    }

    /// Time since `earlier`; zero when `earlier` is still to come.
    #[must_use]
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// `self` moved back by `by`, not before boot.
    #[must_use]
    pub fn minus(self, by: Duration) -> Instant {
        Instant(self.0.saturating_sub(by))
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, by: Duration) -> Instant {
        Instant(self.0.saturating_add(by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_reads_and_shows_as_postgresql_does() {
        for (text, value) in [("0/0", 0), ("0/4000060", 0x0400_0060), ("16/B374D848", 0x16_B374_D848)] {
            assert_eq!(text.parse(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
        for bad in ["", "0", "0/", "/0", "g/1", "0/123456789"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_system_id_has_at_least_ten_digits() {
        assert_eq!("7710414511323698082".parse(), Ok(SystemId(7_710_414_511_323_698_082)));
        for bad in ["", "123456789", "77104145113236980x2", "99999999999999999999999"] {
            assert!(bad.parse::<SystemId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn slot_names_are_made_as_the_contract_says() {
        for (name, slot) in [("n1", "n1"), ("PG-Node.1", "pg_node_1"), ("a b", "au0032b"), ("é", "u0233")] {
            assert_eq!(MemberName::from(name).slot_name(), slot);
        }
        assert_eq!(MemberName("x".repeat(80)).slot_name().len(), 63);
    }

    #[test]
    fn positions_on_two_timelines_do_not_compare() {
        let at = |timeline, lsn| WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) };
        assert!(at(1, 5) < at(1, 6));
        assert_eq!(at(1, 5).partial_cmp(&at(2, 1)), None);
    }
}
