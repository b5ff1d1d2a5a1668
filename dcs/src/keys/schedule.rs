//! Times that people wrote, with their zone (rest-api.md 15.5).

use std::time::Duration;

use jiff::fmt::temporal::{Pieces, PiecesOffset};
use jiff::tz::Offset;
use regent_core::cluster::Schedule;

/// Why a text is no time that somebody can be held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not ISO 8601.
    #[error("it is not a time in ISO 8601")]
    Unreadable,
    /// Of which zone?
    #[error("it has no time zone")]
    NoZone,
}

/// Reads ISO 8601 with `T` or blank; seconds and fraction are optional, the zone is not. The text comes back in the form of
/// the contract: `YYYY-MM-DDTHH:MM:SS[.ffffff]+HH:MM`, with the offset as given.
///
/// # Errors
/// See [`ScheduleError`].
pub fn schedule(text: &str) -> Result<Schedule, ScheduleError> {
    let unreadable = |_| ScheduleError::Unreadable;
    let pieces = Pieces::parse(text.trim()).map_err(unreadable)?;
    let time = pieces.time().ok_or(ScheduleError::Unreadable)?;
    let offset = match pieces.offset().ok_or(ScheduleError::NoZone)? {
        PiecesOffset::Zulu => Offset::UTC,
        PiecesOffset::Numeric(numeric) => numeric.offset(),
        _ => return Err(ScheduleError::Unreadable),
    };
    let local = pieces.date().to_datetime(time);
    let stamp = offset.to_timestamp(local).map_err(unreadable)?;
    let micros = u64::try_from(stamp.as_microsecond()).map_err(|_| ScheduleError::Unreadable)?;
    let fraction = match local.subsec_nanosecond() / 1000 {
        0 => String::new(),
        micros => format!(".{micros:06}"),
    };
    let (sign, minutes) = (if offset.is_negative() { '-' } else { '+' }, offset.seconds().unsigned_abs() / 60);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let text = format!("{}{fraction}{sign}{hours:02}:{minutes:02}", local.strftime("%Y-%m-%dT%H:%M:%S"));
    Ok(Schedule { at: Some(Duration::from_micros(micros)), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form_that_the_contract_names() {
        for (text, shown) in [
            ("2041-01-01 12:00+0100", "2041-01-01T12:00:00+01:00"),
            ("2041-01-01T12:00:00Z", "2041-01-01T12:00:00+00:00"),
            ("2041-01-01T12:00:00.5+02", "2041-01-01T12:00:00.500000+02:00"),
            ("2041-01-01T12:00-03:30", "2041-01-01T12:00:00-03:30"),
        ] {
            assert_eq!(schedule(text).map(|schedule| schedule.text), Ok(shown.to_owned()), "{text}");
        }
        assert_eq!(schedule("2026-11-21T00:34:30+00:00").unwrap().at, Some(Duration::from_secs(1_795_221_270)));
        assert_eq!(schedule("2026-11-21T01:34:30+01:00").unwrap().at, Some(Duration::from_secs(1_795_221_270)));
        assert_eq!(schedule("2041-01-01T12:00:00"), Err(ScheduleError::NoZone));
        for bad in ["", "soon", "12:00+00", "2041-13-01T00:00Z", "1900-01-01T00:00:00Z"] {
            assert_eq!(schedule(bad), Err(ScheduleError::Unreadable), "{bad:?}");
        }
    }
}
