//! The log: records in a row, each written once by one server and copied by others.
//!
//! A record has an identity, so two logs agree up to a record exactly when both hold that record: one comparison tells
//! whether a standby may follow an upstream, across any number of timelines.

use std::time::Duration;

use regent_core::cluster::HistoryLine;
use regent_core::units::{Lsn, SystemId, Timeline};

/// Where the first record of a new cluster starts.
pub(super) const FIRST_LSN: Lsn = Lsn(0x0300_0000);
/// Size of an ordinary write.
pub const WRITE_BYTES: u64 = 96;
/// Size of a checkpoint record, shut down or not: a standby that has everything but it lags by this much.
pub const CHECKPOINT_BYTES: u64 = 120;
/// Size of the record that begins a timeline.
pub const END_OF_RECOVERY_BYTES: u64 = 48;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client's write, by its id.
    Write(u64),
    /// A checkpoint of a running server, also the one that ends crash recovery.
    Checkpoint,
    /// The last record of a primary that was stopped in order.
    ShutdownCheckpoint,
    /// The first record of a timeline.
    EndOfRecovery,
}

impl Kind {
    pub(super) fn is_checkpoint(self) -> bool {
        matches!(self, Kind::Checkpoint | Kind::ShutdownCheckpoint)
    }
}

/// A record, the same on every node that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Unique in the network, in the order of writing.
    pub(super) id: usize,
    /// Index of the node that wrote it.
    pub(super) writer: usize,
    pub(super) system_id: SystemId,
    pub(super) timeline: Timeline,
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) kind: Kind,
    pub(super) at: Duration,
}

/// A record in one node's log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// When this node had it; a cascading standby gets it later than that.
    pub(super) arrived: Duration,
}

/// Where one timeline ended and the next began.
#[derive(Clone, Copy, Debug)]
struct Switch {
    parent: Timeline,
    at: Lsn,
    time: Duration,
}

/// One node's log, from the birth of its cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    entries: Vec<Entry>,
    switches: Vec<Switch>,
    last_write: Option<Duration>,
}

impl Log {
    pub(super) fn push(&mut self, entry: Entry) {
        let Record { timeline, start, kind, at, .. } = entry.record;
        if let Some(last) = self.entries.last()
            && last.record.timeline != timeline
        {
            self.switches.push(Switch { parent: last.record.timeline, at: start, time: at });
        }
        if matches!(kind, Kind::Write(_)) {
            self.last_write = Some(at);
        }
        self.entries.push(entry);
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    pub(super) fn last(&self) -> Option<&Record> {
        self.entries.last().map(|entry| &entry.record)
    }

    /// This record is in it.
    pub(super) fn has(&self, record: usize) -> bool {
        self.entries.iter().rev().any(|entry| entry.record.id == record)
    }

    /// The position behind the last record.
    pub(super) fn end(&self) -> Lsn {
        self.last().map_or(FIRST_LSN, |record| record.end)
    }

    pub(super) fn timeline(&self) -> Timeline {
        self.last().map_or(Timeline(1), |record| record.timeline)
    }

    /// `other` holds all of this log, and perhaps more.
    pub(super) fn is_prefix_of(&self, other: &Log) -> bool {
        let last = self.len().saturating_sub(1);
        self.get(last).map(|entry| entry.record.id) == other.get(last).map(|entry| entry.record.id)
    }

    /// Commit time of the last write.
    pub(super) fn last_write(&self) -> Option<Duration> {
        self.last_write
    }

    /// Ids of all writes, oldest first.
    pub(super) fn writes(&self) -> Vec<u64> {
        self.writes_since(Lsn::default())
    }

    /// Those from a position on.
    pub(super) fn writes_since(&self, from: Lsn) -> Vec<u64> {
        let id = |entry: &Entry| match entry.record.kind {
            Kind::Write(id) => Some(id),
            Kind::Checkpoint | Kind::ShutdownCheckpoint | Kind::EndOfRecovery => None,
        };
        self.entries.iter().filter(|entry| entry.record.start >= from).filter_map(id).collect()
    }

    /// The newest history file, as [`regent_core::postgres::PgState::local_history`] wants it.
    pub(super) fn history(&self) -> Vec<HistoryLine> {
        let last = self.switches.len().saturating_sub(1);
        let line = |(index, switch): (usize, &Switch)| HistoryLine {
            parent: switch.parent,
            switched_at: switch.at,
            reason: "no recovery target specified".to_owned(),
            at: (index == last).then(|| timestamp(switch.time, 'T', "+00:00")),
            promoted: None,
        };
        self.switches.iter().enumerate().map(line).collect()
    }
}

/// The calendar of the twin: virtual time zero is 2026-01-01 00:00 UTC. Good for a month, then it stands still.
pub(super) fn timestamp(time: Duration, separator: char, zone: &str) -> String {
    let seconds = time.as_secs();
    let (day, hour, minute) = ((seconds / 86_400).min(30) + 1, seconds / 3600 % 24, seconds / 60 % 60);
    let (second, micros) = (seconds % 60, time.subsec_micros());
    format!("2026-01-{day:02}{separator}{hour:02}:{minute:02}:{second:02}.{micros:06}{zone}")
}
