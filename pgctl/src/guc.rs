//! Values of PostgreSQL's settings: the same value in two spellings (PostgreSQL documentation, "Parameter Names and
//! Values"), and how a value is written in a configuration file.

/// Settings whose running value says nothing about a pending restart: those of recovery, and those that choose their own
/// value when told to (G6).
pub(crate) fn never_pending(name: &str) -> bool {
    name.starts_with("recovery_")
        || RECOVERY.contains(&name)
        || matches!(name, "hot_standby" | "config_file" | "data_directory" | "hba_file" | "ident_file")
}

/// Settings of recovery that live in the recovery block, besides `recovery_*` (config.md 7.3).
const RECOVERY: [&str; 5] =
    ["archive_cleanup_command", "primary_conninfo", "primary_slot_name", "promote_trigger_file", "restore_command"];

/// Whether a setting belongs in the recovery block and nowhere else.
pub(crate) fn is_recovery(name: &str) -> bool {
    // recovery_prefetch (15) and recovery_init_sync_method (14) are no recovery settings in this sense.
    RECOVERY.contains(&name)
        || name.starts_with("recovery_target")
        || matches!(name, "recovery_end_command" | "recovery_min_apply_delay")
}

/// Whether the `wanted` text means the running `setting`, counted in `unit` (columns of `pg_settings`). What cannot be
/// understood counts as the same: PostgreSQL has judged it already.
pub(crate) fn same(wanted: &str, setting: &str, unit: Option<&str>, vartype: &str) -> bool {
    if let (Some(a), Some(b)) = (boolean(wanted), boolean(setting))
        && matches!(vartype, "bool" | "enum")
    {
        return a == b;
    }
    match vartype {
        "bool" => true,
        "enum" => canonical(wanted).eq_ignore_ascii_case(canonical(setting)),
        "integer" | "real" => match (number(wanted, unit), number(setting, None)) {
            // -1 mostly means "choose by yourself" (wal_buffers), and what was chosen shows.
            (Some(-1.0), Some(_)) => true,
            (Some(a), Some(b)) => (a - b).abs() < 0.5 || vartype == "real" && (a - b).abs() <= f64::EPSILON * b.abs(),
            (None, _) | (_, None) => true,
        },
        _ => wanted == setting,
    }
}

/// Old names of `wal_level`'s words.
fn canonical(word: &str) -> &str {
    let old = ["hot_standby", "archive"].iter().any(|old| word.eq_ignore_ascii_case(old));
    if old { "replica" } else { word }
}

fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// A number in multiples of `base` (as `8kB`, `MB`, `s`); a bare number is in it already.
pub(crate) fn number(text: &str, base: Option<&str>) -> Option<f64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u32::from_str_radix(hex, 16).ok().map(f64::from);
    }
    if text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()) {
        return u32::from_str_radix(text, 8).ok().map(f64::from);
    }
    let end = text.find(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E')).unwrap_or(text.len());
    let (amount, unit) = text.split_at(end);
    let amount: f64 = amount.trim().parse().ok()?;
    if unit.is_empty() {
        return Some(amount);
    }
    let base = base?;
    let digits = base.find(|c: char| !c.is_ascii_digit())?;
    let (count, base) = base.split_at(digits);
    let count = if count.is_empty() { 1.0 } else { count.parse().ok()? };
    let (unit, base) = (size(unit)?, size(base)?);
    (unit.0 == base.0).then(|| (amount * unit.1 / (base.1 * count)).round())
}

/// Kind and size of a unit: bytes, or microseconds.
fn size(unit: &str) -> Option<(char, f64)> {
    const K: f64 = 1024.0;
    Some(match unit {
        "B" => ('B', 1.0),
        "kB" => ('B', K),
        "MB" => ('B', K * K),
        "GB" => ('B', K * K * K),
        "TB" => ('B', K * K * K * K),
        "us" => ('s', 1.0),
        "ms" => ('s', 1e3),
        "s" => ('s', 1e6),
        "min" => ('s', 60e6),
        "h" => ('s', 3600e6),
        "d" => ('s', 86_400e6),
        _ => return None,
    })
}

/// A line of a configuration file, without its end.
pub(crate) fn line(name: &str, value: &str) -> String {
    format!("{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Name and value of a line of a configuration file; `None` for comments, blanks and includes.
pub(crate) fn read_line(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))?;
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    if name.is_empty() || name.starts_with("include") {
        return None;
    }
    let Some(quoted) = rest.strip_prefix('\'') else {
        let bare = rest.split(|c: char| c == '#' || c.is_whitespace()).next()?;
        return Some((name.to_ascii_lowercase(), bare.to_owned()));
    };
    let mut value = String::new();
    let mut chars = quoted.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => value.extend(chars.next()),
            '\'' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    Some((name.to_ascii_lowercase(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_value_in_two_spellings_is_the_same() {
        for (wanted, setting, unit, vartype) in [
            ("128MB", "16384", Some("8kB"), "integer"),
            ("0.5GB", "65536", Some("8kB"), "integer"),
            ("100", "100", None, "integer"),
            ("5min", "300", Some("s"), "integer"),
            ("0777", "511", None, "integer"),
            ("-1", "2048", Some("8kB"), "integer"),
            ("True", "on", None, "bool"),
            ("yes", "on", None, "enum"),
            ("hot_standby", "replica", None, "enum"),
            ("Logical", "logical", None, "enum"),
            ("a,b", "a,b", None, "string"),
        ] {
            assert!(same(wanted, setting, unit, vartype), "{wanted} {setting}");
        }
    }

    #[test]
    fn other_values_differ() {
        for (wanted, setting, unit, vartype) in [
            ("129MB", "16384", Some("8kB"), "integer"),
            ("101", "100", None, "integer"),
            ("off", "on", None, "bool"),
            ("logical", "replica", None, "enum"),
            ("a, b", "a,b", None, "string"),
        ] {
            assert!(!same(wanted, setting, unit, vartype), "{wanted} {setting}");
        }
    }

    #[test]
    fn a_line_comes_back_as_it_was_written() {
        for value in ["", "plain", "it's \\ 'x'", "user=a password='b c'"] {
            let text = line("Primary_conninfo", value);
            assert_eq!(read_line(&text), Some(("primary_conninfo".to_owned(), value.to_owned())), "{text}");
        }
        assert_eq!(read_line("port=5433 # why"), Some(("port".to_owned(), "5433".to_owned())));
        assert_eq!(read_line("a 'x'"), Some(("a".to_owned(), "x".to_owned())));
        for none in ["", "# port = 1", "include 'a.conf'", "include_dir = 'x'"] {
            assert_eq!(read_line(none), None, "{none}");
        }
    }
}
