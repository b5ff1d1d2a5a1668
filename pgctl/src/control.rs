//! What `pg_controldata` prints, parsed (PostgreSQL: `src/bin/pg_controldata`, with `LC_ALL=C`).

use std::collections::BTreeMap;

use regent_core::postgres::{ClusterState, ControlData};
use regent_core::units::{Lsn, Timeline};

/// The control file, as far as Regent reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    /// What decisions read.
    pub(crate) data: ControlData,
    /// The settings that a standby must not have smaller than its primary had (G5), by the name of the setting.
    pub(crate) floors: BTreeMap<&'static str, u64>,
    /// Page and segment of the log, in bytes.
    wal_sizes: (u64, u64),
}

/// Setting and its line in the control file (G5).
const FLOORS: [(&str, &str); 5] = [
    ("max_connections", "max_connections setting"),
    ("max_locks_per_transaction", "max_locks_per_xact setting"),
    ("max_prepared_transactions", "max_prepared_xacts setting"),
    ("max_wal_senders", "max_wal_senders setting"),
    ("max_worker_processes", "max_worker_processes setting"),
];

impl Control {
    /// Reads the program's output; the error names the line that is missing or cannot be understood.
    pub(crate) fn parse(output: &str) -> Result<Control, String> {
        let lines: BTreeMap<&str, &str> =
            output.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
        let get = |key: &str| lines.get(key).copied().ok_or_else(|| format!("pg_controldata printed no \"{key}\""));
        let bad = |key: &str| format!("pg_controldata's \"{key}\" is {:?}", lines.get(key).unwrap_or(&""));
        let lsn = |key: &str| get(key)?.parse::<Lsn>().map_err(|_| bad(key));
        let number = |key: &str| get(key)?.parse::<u32>().map_err(|_| bad(key));
        let bytes = |key: &str| get(key)?.parse::<u64>().ok().filter(|bytes| *bytes > 64).ok_or_else(|| bad(key));

        let min_recovery = match lsn("Minimum recovery ending location")? {
            Lsn(0) => None,
            at => Some((Timeline(number("Min recovery ending loc's timeline")?), at)),
        };
        let data = ControlData {
            system_id: get("Database system identifier")?.parse().map_err(|_| bad("Database system identifier"))?,
            state: state(get("Database cluster state")?).ok_or_else(|| bad("Database cluster state"))?,
            timeline: Timeline(number("Latest checkpoint's TimeLineID")?),
            checkpoint: lsn("Latest checkpoint location")?,
            checkpoint_end: None,
            min_recovery,
            rewindable: get("wal_log_hints setting")? == "on" || number("Data page checksum version")? > 0,
        };
        let wal_sizes = (bytes("WAL block size")?, bytes("Bytes per WAL segment")?);
        let floors = FLOORS.iter().filter_map(|(name, key)| Some((*name, lines.get(key)?.parse().ok()?))).collect();
        Ok(Control { data, floors, wal_sizes })
    }

    /// The server was shut down as a primary: its log ends with the checkpoint record, wherever that ends.
    pub(crate) fn ends_with_checkpoint(&self) -> bool {
        self.data.state == ClusterState::ShutDown && self.data.min_recovery.is_none()
    }

    /// Takes the end of the checkpoint record from what `pg_waldump --limit=1` printed of it: `... len (rec/tot): 114/ 114,`
    /// (X3: the size of the record depends on the platform).
    pub(crate) fn learn_checkpoint_end(&mut self, printed: &str) {
        let size = || printed.split_once("len (rec/tot):")?.1.split_once('/')?.1.split_once(',')?.0.trim().parse().ok();
        self.data.checkpoint_end = size().map(|size| Lsn(record_end(self.data.checkpoint.0, size, self.wal_sizes)));
    }
}

/// The position behind a record of `size` bytes at `start`: a record goes on behind the header of the next page, and the
/// next one starts at a multiple of eight (PostgreSQL: `xlogrecord.h`, `SizeOfXLogShortPHD`, `SizeOfXLogLongPHD`).
fn record_end(start: u64, size: u64, (page, segment): (u64, u64)) -> u64 {
    let (mut at, mut left) = (start, size);
    while let Some(over) = left.checked_sub(page - at % page).filter(|over| *over > 0) {
        at += page - at % page;
        at += if at % segment == 0 { 40 } else { 24 };
        left = over;
    }
    (at + left).next_multiple_of(8)
}

fn state(text: &str) -> Option<ClusterState> {
    Some(match text {
        "starting up" => ClusterState::StartingUp,
        "shut down" => ClusterState::ShutDown,
        "shut down in recovery" => ClusterState::ShutDownInRecovery,
        "shutting down" => ClusterState::ShuttingDown,
        "in crash recovery" => ClusterState::InCrashRecovery,
        "in archive recovery" => ClusterState::InArchiveRecovery,
        "in production" => ClusterState::InProduction,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use regent_core::units::SystemId;

    /// From a real PostgreSQL 15 standby, lines that are not read left out.
    const STANDBY: &str = "\
pg_control version number:            1300
Database system identifier:           7710414511323698082
Database cluster state:               in archive recovery
pg_control last modified:             Sat Nov 21 08:21:34 2026
Latest checkpoint location:           0/2000060
Latest checkpoint's REDO WAL file:    000000010000000000000002
Latest checkpoint's TimeLineID:       1
Minimum recovery ending location:     0/2000100
Min recovery ending loc's timeline:   2
wal_log_hints setting:                off
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn a_record_ends_behind_the_headers_that_it_crosses() {
        let sizes = (8192, 16_777_216);
        for (start, size, end) in [
            (0x100_0028, 114, 0x100_00A0),
            (8192 + 8000, 114, 8192 + 8120),
            (8192 + 8100, 92, 16_384),            // up to the edge of the page
            (8192 + 8100, 114, 16_384 + 24 + 24), // 22 bytes behind the header, rounded up
            (16_777_216 - 8, 16, 16_777_216 + 40 + 8),
        ] {
            assert_eq!(record_end(start, size, sizes), end, "{size} at {start}");
        }
        let mut control = Control::parse(&STANDBY.replace("in archive recovery", "shut down")).unwrap();
        control.learn_checkpoint_end("rmgr: XLOG  len (rec/tot):    114/   114, tx: 0, lsn: 0/02000060, prev 0/0\n");
        assert_eq!(control.data.checkpoint_end, Some(Lsn(0x200_00D8)));
        control.learn_checkpoint_end("nonsense");
        assert_eq!(control.data.checkpoint_end, None);
    }

    #[test]
    fn a_standby_is_read() {
        let control = Control::parse(STANDBY).unwrap();
        let expected = ControlData {
            system_id: SystemId(7_710_414_511_323_698_082),
            state: ClusterState::InArchiveRecovery,
            timeline: Timeline(1),
            checkpoint: Lsn(0x200_0060),
            checkpoint_end: None,
            min_recovery: Some((Timeline(2), Lsn(0x200_0100))),
            rewindable: true,
        };
        assert_eq!(control.data, expected);
        assert_eq!(control.floors.get("max_locks_per_transaction"), Some(&64));
        assert_eq!(control.floors.len(), 5);
    }

    #[test]
    fn zero_is_no_minimum_and_neither_hints_nor_checksums_is_not_rewindable() {
        let text = STANDBY.replace("0/2000100", "0/0").replace("version:           1", "version:           0");
        let data = Control::parse(&text).unwrap().data;
        assert_eq!((data.min_recovery, data.rewindable), (None, false));
    }

    #[test]
    fn what_is_missing_or_odd_is_named() {
        for (from, to, named) in [
            ("cluster state", "x", "no \"Database cluster state\""),
            ("in archive recovery", "on fire", "\"on fire\""),
            ("0/2000060", "2000060", "\"2000060\""),
        ] {
            let error = Control::parse(&STANDBY.replace(from, to)).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
