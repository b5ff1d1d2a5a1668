//! Timeline history files: how this log came to be, and numbers that no promotion may take.
//!
//! PostgreSQL promotes to the number after the last `NNNNNNNN.history` in an unbroken row above its own
//! (`findNewestTimeLine`). To write a promised number with a gap below it, the numbers between are reserved first by
//! files that hold nothing but a comment: PostgreSQL takes them for known timelines, and never for ancestors.
//!
//! After the promotion they stay: a standby that follows asks its upstream for every history file between its timeline
//! and the new one, and stops if one is missing. But a server that *starts* with reserved files above its timeline and no
//! real one above them would aim at the last of them and refuse ("requested timeline is not a child of this server's
//! history"); so those are removed before each start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use regent_core::cluster::HistoryLine;
use regent_core::units::{Lsn, Timeline};

use crate::PgError;
use crate::disk::{entries, file_error, file_mode, remove, replace, sync_parent};

/// The content of a reserved history file.
const RESERVED: &str = "# reserved by Regent: this number was promised to another member\n";

/// The history file of `timeline` (PostgreSQL: `TLHistoryFileName`).
pub(crate) fn path(data_dir: &Path, timeline: Timeline) -> PathBuf {
    data_dir.join("pg_wal").join(format!("{:08X}.history", timeline.0))
}

/// The lines of the history file of `timeline`, oldest first; only the last has a time. Empty when there is none.
pub(crate) fn read(data_dir: &Path, timeline: Timeline) -> Vec<HistoryLine> {
    let path = path(data_dir, timeline);
    let Ok(text) = fs::read_to_string(&path) else { return Vec::new() };
    let mut lines = parse(&text);
    if let Some(last) = lines.last_mut() {
        let modified = fs::metadata(&path).and_then(|meta| meta.modified()).ok();
        let modified = modified.and_then(|time| Timestamp::try_from(time).ok());
        last.at = modified.map(|time| time.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string());
    }
    lines
}

/// Reads `parent TAB switch point TAB reason` lines; lines of another form are skipped.
fn parse(text: &str) -> Vec<HistoryLine> {
    let line = |line: &str| {
        let mut parts = line.splitn(3, char::is_whitespace);
        Some(HistoryLine {
            parent: Timeline(parts.next()?.parse().ok()?),
            switched_at: parts.next()?.parse().ok()?,
            reason: parts.next().unwrap_or_default().trim().to_owned(),
            at: None,
            promoted: None,
        })
    };
    text.lines().filter(|l| !l.trim_start().starts_with('#')).filter_map(line).collect()
}

/// Reserves the numbers above `current` and below `wanted` that have no history file yet.
pub(crate) fn reserve(data_dir: &Path, current: Timeline, wanted: Timeline) -> Result<(), PgError> {
    let target = path(data_dir, wanted);
    if target.exists() {
        return Err(PgError::Refused(format!(
            "cannot promote to timeline {wanted}: {} says that it exists already; promise a higher number",
            target.display()
        )));
    }
    let mode = file_mode(data_dir);
    for number in current.0.saturating_add(1)..wanted.0 {
        let path = path(data_dir, Timeline(number));
        if !path.exists() {
            replace(&path, RESERVED, mode)?;
        }
    }
    Ok(())
}

/// Removes reserved files that have no real history file above them; says how many.
pub(crate) fn forget_unused_reservations(data_dir: &Path) -> Result<usize, PgError> {
    let wal = data_dir.join("pg_wal");
    let mut files = BTreeMap::new();
    for path in entries(&wal).map_err(|e| file_error(&wal, &e))? {
        if let Some(number) = number_of(&path) {
            let reserved = fs::read_to_string(&path).is_ok_and(|text| text == RESERVED);
            files.insert(number, (path, reserved));
        }
    }
    let unused = files.values().rev().take_while(|(_, reserved)| *reserved);
    let unused: Vec<_> = unused.map(|(path, _)| path).collect();
    for path in &unused {
        remove(path)?;
    }
    if let Some(path) = unused.first() {
        sync_parent(path)?;
    }
    Ok(unused.len())
}

fn number_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_suffix(".history")?;
    (name.len() == 8).then(|| u32::from_str_radix(name, 16).ok()).flatten()
}

/// The history file of the newest timeline above `timeline`, as [`read`] reads it; empty when there is none but reserved ones.
pub(crate) fn newer_than(data_dir: &Path, timeline: Timeline) -> Vec<HistoryLine> {
    let mut numbers: Vec<u32> =
        entries(&data_dir.join("pg_wal")).unwrap_or_default().iter().filter_map(|path| number_of(path)).collect();
    numbers.retain(|number| *number > timeline.0);
    numbers.sort_unstable();
    let real = numbers.into_iter().rev().map(|number| read(data_dir, Timeline(number)));
    real.into_iter().find(|lines| !lines.is_empty()).unwrap_or_default()
}

/// The newest timeline with a segment file that holds the byte before `end`.
///
/// File names are timeline, log and segment in eight hexadecimal digits each (PostgreSQL: `XLogFileName`).
pub(crate) fn newest_segment_of(data_dir: &Path, end: Lsn) -> Option<Timeline> {
    let files = std::fs::read_dir(data_dir.join("pg_wal")).ok()?.flatten();
    let holds = |file: std::fs::DirEntry| {
        let name = file.file_name().into_string().ok().filter(|name| name.len() == 24)?;
        let part = |from: usize| u32::from_str_radix(name.get(from..from + 8)?, 16).ok();
        let (timeline, log, segment) = (part(0)?, part(8)?, part(16)?);
        let size = file.metadata().ok()?.len();
        let start = (u64::from(log) << 32).saturating_add(u64::from(segment).saturating_mul(size));
        (start < end.0 && end.0 <= start.saturating_add(size)).then_some(Timeline(timeline))
    };
    files.filter_map(holds).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use regent_core::units::Lsn;

    fn data_dir(files: &[(u32, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        for (number, text) in files {
            fs::write(path(dir.path(), Timeline(*number)), text).unwrap();
        }
        dir
    }

    fn numbers(dir: &Path) -> Vec<u32> {
        let mut found: Vec<_> = entries(&dir.join("pg_wal")).unwrap().iter().filter_map(|p| number_of(p)).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_history_file_is_read_and_its_last_line_has_its_time() {
        let dir = data_dir(&[(3, "1\t0/3000148\tno recovery target specified\n\n# x\n2\t0/5000000\tbefore 2000\n")]);
        let lines = read(dir.path(), Timeline(3));
        let parts: Vec<_> = lines.iter().map(|l| (l.parent.0, l.switched_at, l.reason.as_str())).collect();
        assert_eq!(parts, [(1, Lsn(0x300_0148), "no recovery target specified"), (2, Lsn(0x500_0000), "before 2000")]);
        assert_eq!(lines[0].at, None);
        let at = lines[1].at.clone().unwrap();
        assert!(at.len() == 32 && at.ends_with("+00:00"), "{at}");
        assert_eq!(read(dir.path(), Timeline(1)), []);
    }

    #[test]
    fn numbers_between_are_reserved_and_real_ones_kept() {
        let dir = data_dir(&[(3, "1\t0/1\tx\n")]);
        reserve(dir.path(), Timeline(1), Timeline(5)).unwrap();
        assert_eq!(numbers(dir.path()), [2, 3, 4]);
        assert_eq!(fs::read_to_string(path(dir.path(), Timeline(3))).unwrap(), "1\t0/1\tx\n");
        assert_eq!(read(dir.path(), Timeline(4)), []);
        assert!(matches!(reserve(dir.path(), Timeline(1), Timeline(3)), Err(PgError::Refused(_))));
    }

    #[test]
    fn the_newest_history_above_a_timeline_is_found_past_reserved_ones() {
        let dir = data_dir(&[(2, "1\t0/10\tx\n"), (3, RESERVED), (4, "1\t0/20\tx\n"), (5, RESERVED)]);
        let switched = |timeline| newer_than(dir.path(), Timeline(timeline)).first().map(|line| line.switched_at);
        assert_eq!((switched(1), switched(3), switched(4)), (Some(Lsn(0x20)), Some(Lsn(0x20)), None));
    }

    #[test]
    fn only_reservations_above_every_real_history_are_forgotten() {
        for (files, left) in [
            (vec![(2, RESERVED), (3, RESERVED)], vec![]),
            (vec![(2, RESERVED), (3, "1\t0/1\tx\n"), (4, RESERVED)], vec![2, 3]),
            (vec![(2, "1\t0/1\tx\n")], vec![2]),
        ] {
            let dir = data_dir(&files);
            forget_unused_reservations(dir.path()).unwrap();
            assert_eq!(numbers(dir.path()), left, "{files:?}");
        }
    }

    #[test]
    fn the_newest_segment_of_a_position_tells_its_timeline() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        for (name, size) in [
            ("000000010000000000000003", 16),
            ("000000010000000000000004", 16),
            ("000000020000000000000004", 16),
            ("00000002.history", 16),
            ("000000030000000000000009", 16),
        ] {
            std::fs::write(wal.join(name), vec![0; size]).unwrap();
        }
        for (end, timeline) in
            [(3 * 16, None), (3 * 16 + 1, Some(1)), (4 * 16, Some(1)), (4 * 16 + 1, Some(2)), (5 * 16, Some(2))]
        {
            assert_eq!(newest_segment_of(dir.path(), Lsn(end)), timeline.map(Timeline), "{end}");
        }
    }
}
