//! Times as PostgreSQL prints them (`2026-11-21 00:17:44.36+00`), in the two forms that the API shows.

use jiff::civil::DateTime;
use jiff::tz::Offset;

/// As the status document shows it: six digits of fraction or none, offset `+HH:MM` (rest-api.md section 4, key 2).
/// Text that is no such time (`infinity`, another `DateStyle`) is shown as it is.
pub(super) fn shown(text: &str) -> String {
    let Some((time, offset)) = parse(text) else { return text.to_owned() };
    let micros = time.subsec_nanosecond() / 1000;
    let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
    let (sign, seconds) = (if offset.is_negative() { '-' } else { '+' }, offset.seconds().unsigned_abs());
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let seconds = if seconds == 0 { String::new() } else { format!(":{seconds:02}") };
    format!("{}{fraction}{sign}{hours:02}:{minutes:02}{seconds}", time.strftime("%Y-%m-%d %H:%M:%S"))
}

/// As the metrics show it: seconds since 1970 with the fraction, exact; `None` when it is no time.
pub(super) fn epoch(text: &str) -> Option<String> {
    let (time, offset) = parse(text)?;
    let micros = offset.to_timestamp(time).ok()?.as_microsecond();
    let sign = if micros < 0 { "-" } else { "" };
    let (seconds, fraction) = (micros.unsigned_abs() / 1_000_000, micros.unsigned_abs() % 1_000_000);
    let digits = format!("{sign}{seconds}.{fraction:06}");
    Some(digits.trim_end_matches('0').trim_end_matches('.').to_owned())
}

/// PostgreSQL documentation, "Date/Time Output": ISO style with a numeric offset of hours, minutes, seconds as needed.
fn parse(text: &str) -> Option<(DateTime, Offset)> {
    let sign_at = text.rfind(['+', '-']).filter(|at| *at > "YYYY-MM-DD".len())?;
    let (time, offset) = text.split_at_checked(sign_at)?;
    let (sign, offset) = offset.split_at_checked(1)?;
    let mut seconds = 0_i32;
    for (part, unit) in offset.split(':').zip([3600, 60, 1]) {
        seconds = seconds.checked_add(part.parse::<u8>().ok().map(i32::from)?.checked_mul(unit)?)?;
    }
    let seconds = if sign == "-" { seconds.checked_neg()? } else { seconds };
    Some((time.parse().ok()?, Offset::from_seconds(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::{epoch, shown};

    #[test]
    fn postgresqls_times_are_shown_in_the_peers_forms() {
        for (text, document, metric) in [
            ("2026-11-21 00:17:44.364475+00", "2026-11-21 00:17:44.364475+00:00", "1795220264.364475"),
            ("2026-11-21 00:20:26.50473+00", "2026-11-21 00:20:26.504730+00:00", "1795220426.50473"),
            ("2026-11-21 00:17:44+00", "2026-11-21 00:17:44+00:00", "1795220264"),
            ("2026-11-21 05:47:44+05:30", "2026-11-21 05:47:44+05:30", "1795220264"),
            ("2026-11-20 20:47:43.5-03:30:01", "2026-11-20 20:47:43.500000-03:30:01", "1795220264.5"),
            ("1969-12-31 23:59:58.5+00", "1969-12-31 23:59:58.500000+00:00", "-1.5"),
        ] {
            assert_eq!((shown(text).as_str(), epoch(text).as_deref()), (document, Some(metric)));
        }
        for odd in ["infinity", "", "-", "+", "2026-11-21", "Sat Nov 21 00:17:44 2026 UTC", "é2026-11-21 0:0:0+é"] {
            assert_eq!((shown(odd).as_str(), epoch(odd)), (odd, None));
        }
    }
}
