//! Times and versions that operators type (cli.md 2, 5.2).

use regent_dcs::keys::{ScheduleError, schedule};

use super::CtlError;
use super::ask::ask;

/// When something is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum When {
    Now,
    At {
        /// With its zone: `2027-01-01T11:00:00+02:00`.
        shown: String,
    },
}

/// What was given, or the answer to the question, unless forced.
pub(super) async fn asked(action: &str, given: Option<&str>, force: bool) -> Result<When, CtlError> {
    let typed = match given {
        Some(given) => given.to_owned(),
        None if force => return Ok(When::Now),
        None => {
            let soon = jiff::Zoned::now().saturating_add(jiff::Span::new().hours(1)).strftime("%Y-%m-%dT%H:%M");
            let gap = if action == "switchover" { " " } else { "" };
            let question = format!("When should the {action} take place (e.g. {soon}{gap}) ");
            ask(&question, Some("now")).await?
        }
    };
    read(&typed, &jiff::tz::TimeZone::system()).map_err(CtlError::Failed)
}

fn read(typed: &str, here: &jiff::tz::TimeZone) -> Result<When, String> {
    if typed == "now" {
        return Ok(When::Now);
    }
    let unreadable = || {
        format!("Unable to parse scheduled timestamp ({typed}). It should be in an unambiguous format (e.g. ISO 8601)")
    };
    match schedule(typed) {
        Ok(read) => Ok(When::At { shown: read.text }),
        Err(ScheduleError::NoZone) => {
            let local: jiff::civil::DateTime = typed.trim().parse().map_err(|_| unreadable())?;
            let zoned = local.to_zoned(here.clone()).map_err(|_| unreadable())?;
            let text = zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
            schedule(&text).map(|read| When::At { shown: read.text }).map_err(|_| unreadable())
        }
        Err(ScheduleError::Unreadable) => Err(unreadable()),
    }
}

/// `X.Y` with X of 10 or more, `X.Y.Z`, or nothing.
pub(super) fn check_version(version: &str) -> Result<(), String> {
    if version.is_empty() {
        return Ok(());
    }
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        None => Err(format!("Invalid PostgreSQL version: {version}")),
        Some([_, _, _]) => Ok(()),
        Some([major, _]) if *major >= 10 => Ok(()),
        Some(_) => Err(format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {version}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_without_a_zone_are_local() {
        let here = jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
        let at = |shown: &str| Ok(When::At { shown: shown.to_owned() });
        assert_eq!(read("now", &here), Ok(When::Now));
        assert_eq!(read("2027-01-01T10:00", &here), at("2027-01-01T10:00:00+02:00"));
        assert_eq!(read("2027-01-01 10:00:00", &here), at("2027-01-01T10:00:00+02:00"));
        assert_eq!(read("2027-01-01T11:00+03:00", &here), at("2027-01-01T11:00:00+03:00"));
        assert!(read("garbage", &here).unwrap_err().starts_with("Unable to parse scheduled timestamp (garbage)."));
    }

    #[test]
    fn versions_have_two_or_three_parts() {
        for (version, error) in [
            ("", None),
            ("15.3", None),
            ("9.6.24", None),
            ("abc", Some("Invalid PostgreSQL version: abc")),
            ("15", Some("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 15")),
            ("9.6", Some("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 9.6")),
        ] {
            assert_eq!(check_version(version).err().as_deref(), error, "{version}");
        }
    }
}
