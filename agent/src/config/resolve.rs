//! What an unquoted YAML 1.1 scalar means, exactly as PyYAML's implicit resolver sees it.
//!
//! Each function below is one of its regular expressions, in its order; the first that matches decides.

/// The meaning of a plain scalar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Text, dates, and integers too large for 64 bits.
    Text,
    /// `<<`.
    Merge,
    /// `=`.
    Default,
}

pub(super) fn resolve(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Scalar::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Scalar::Bool(false),
        "<<" => return Scalar::Merge,
        "=" => return Scalar::Default,
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Scalar::Text;
    }
    if let Some(number) = float(text) {
        return Scalar::Float(number);
    }
    int(text).map_or(Scalar::Text, Scalar::Int)
}

/// Whether a YAML 1.1 reader takes this unquoted scalar for text.
pub(crate) fn is_plain_text(text: &str) -> bool {
    resolve(text) == Scalar::Text && !is_date(text) && !is_large_int(text)
}

/// An integer that no 64 bits hold; Python's have no end.
fn is_large_int(text: &str) -> bool {
    let (_, body) = sign(text);
    let all = |digits: &str, fits: fn(u8) -> bool| !digits.is_empty() && digits.bytes().all(|b| b == b'_' || fits(b));
    if let Some(hex) = body.strip_prefix("0x") {
        return all(hex, |b| b.is_ascii_hexdigit());
    }
    if let Some(bits) = body.strip_prefix("0b") {
        return all(bits, |b| matches!(b, b'0' | b'1'));
    }
    let octal = body.starts_with('0');
    let groups = body.split_once(':').map_or((body, None), |(first, rest)| (first, Some(rest)));
    match groups {
        (first, None) => digits(first) && !(octal && first.bytes().any(|b| matches!(b, b'8' | b'9'))),
        (first, Some(rest)) => !octal && digits(first) && sixties(rest.split(':')).is_some(),
    }
}

/// PyYAML's expression for dates and timestamps.
fn is_date(text: &str) -> bool {
    let mut rest = text;
    let mut digits = |least: usize, most: usize| {
        let count = rest.bytes().take_while(u8::is_ascii_digit).count().min(most);
        rest = rest.get(count..).unwrap_or("");
        (count >= least).then_some(count)
    };
    let Some(4) = digits(4, 4) else { return false };
    let mut parts = rest.splitn(3, '-');
    let (Some(""), Some(month), Some(tail)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let number = |text: &str| matches!(text.len(), 1 | 2) && text.bytes().all(|b| b.is_ascii_digit());
    if !number(month) {
        return false;
    }
    let Some(end) = tail.find(|c: char| !c.is_ascii_digit()) else { return month.len() == 2 && tail.len() == 2 };
    let (day, time) = tail.split_at(end);
    let Some(time) = time.strip_prefix(['T', 't']).or_else(|| time.strip_prefix([' ', '\t'])) else { return false };
    number(day) && is_time(time.trim_start_matches([' ', '\t']))
}

/// `h:mm:ss`, a fraction, a zone.
fn is_time(text: &str) -> bool {
    let mut parts = text.splitn(3, ':');
    let (Some(hour), Some(minute), Some(rest)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let number =
        |text: &str, least: usize| (least..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let Some((second, rest)) = rest.split_at_checked(2) else { return false };
    let fraction = rest.strip_prefix('.').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    let zone = fraction.unwrap_or(rest).trim_start_matches([' ', '\t']);
    let blanks_only = zone.is_empty() && fraction.unwrap_or(rest).is_empty();
    let zoned = zone == "Z"
        || zone.strip_prefix(['+', '-']).is_some_and(|zone| {
            let (hour, minute) = zone.split_once(':').map_or((zone, None), |(hour, minute)| (hour, Some(minute)));
            number(hour, 1) && minute.is_none_or(|minute| number(minute, 2))
        });
    number(hour, 1) && number(minute, 2) && number(second, 2) && (blanks_only || zoned)
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// Whether `text` is `[0-9][0-9_]*`.
fn digits(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'_')
}

/// The groups after a `:` are `[0-5]?[0-9]`.
fn sixties<'a>(groups: impl Iterator<Item = &'a str>) -> Option<Vec<u32>> {
    groups
        .map(|group| {
            let fits = matches!(group.len(), 1 | 2) && group.bytes().all(|b| b.is_ascii_digit());
            fits.then(|| group.parse().ok()).flatten().filter(|number| *number < 60)
        })
        .collect()
}

fn int(text: &str) -> Option<i64> {
    let (negative, body) = sign(text);
    let plain = body.replace('_', "");
    let number = if let Some(bits) = body.strip_prefix("0b") {
        let fits = !bits.is_empty() && bits.bytes().all(|b| matches!(b, b'0' | b'1' | b'_'));
        i64::from_str_radix(plain.get(2..).filter(|_| fits)?, 2).ok()?
    } else if let Some(hex) = body.strip_prefix("0x") {
        let fits = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit() || b == b'_');
        i64::from_str_radix(plain.get(2..).filter(|_| fits)?, 16).ok()?
    } else if let Some((first, rest)) = body.split_once(':') {
        if !digits(first) || first.starts_with('0') {
            return None;
        }
        let first: i64 = first.replace('_', "").parse().ok()?;
        sixties(rest.split(':'))?
            .into_iter()
            .try_fold(first, |sum, group| sum.checked_mul(60)?.checked_add(i64::from(group)))?
    } else if !digits(body) {
        return None;
    } else if body.starts_with('0') {
        if body.bytes().any(|b| matches!(b, b'8' | b'9')) {
            return None;
        }
        i64::from_str_radix(&plain, 8).ok()?
    } else {
        // Read with the sign, so that the smallest number fits too.
        return format!("{}{plain}", if negative { "-" } else { "" }).parse().ok();
    };
    Some(if negative { -number } else { number })
}

fn float(text: &str) -> Option<f64> {
    match text {
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let (negative, body) = sign(text);
    let signed = |number: f64| if negative { -number } else { number };
    if matches!(body, ".inf" | ".Inf" | ".INF") {
        return Some(signed(f64::INFINITY));
    }
    let (whole, rest) = body.split_once('.')?;
    if let Some((first, groups)) = whole.split_once(':') {
        let fraction = rest.bytes().all(|b| b.is_ascii_digit() || b == b'_');
        if !digits(first) || !fraction {
            return None;
        }
        let first: f64 = first.replace('_', "").parse().ok()?;
        let whole = sixties(groups.split(':'))?.into_iter().fold(first, |sum, group| sum * 60.0 + f64::from(group));
        let fraction: f64 = format!("0.{}0", rest.replace('_', "")).parse().ok()?;
        return Some(signed(whole + fraction));
    }
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (rest.get(..at)?, Some(rest.get(at.checked_add(1)?..)?)),
        None => (rest, None),
    };
    let digits_only = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let mantissa = if whole.is_empty() {
        // `.5`: no sign is allowed before it, and a digit must follow.
        text.starts_with('.') && digits(fraction)
    } else {
        digits(whole) && digits_only(fraction)
    };
    let exponent_fits = exponent.is_none_or(|exponent| {
        let body = exponent.strip_prefix(['+', '-']);
        body.is_some_and(|body| !body.is_empty() && body.bytes().all(|b| b.is_ascii_digit()))
    });
    if !mantissa || !exponent_fits {
        return None;
    }
    body.replace('_', "").parse().ok().map(signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_large_numbers_are_no_text() {
        let other = [
            "2024-01-02",
            "2024-01-02 03:04:05",
            "2024-1-2T3:04:05.5Z",
            "2024-01-02t03:04:05 +1:30",
            "2024-01-02\t03:04:05.",
            "99999999999999999999",
            "-0xffffffffffffffffffff",
            "999999999999999999999:30",
            "2024-01-02 03:04:05-07",
        ];
        for text in other {
            assert!(!is_plain_text(text), "{text}");
        }
        let texts = [
            "2024-1-2",
            "2024-01-02T",
            "2024-01-02 03:04",
            "2024-01-02T03:04:05x",
            "202-01-02",
            "2024-01-02 03:04:5",
            "2026-11-21-1",
            "2024-",
            "é",
            "2024-01-02 03:04:05 ",
            "2024-01-0é",
        ];
        for text in texts {
            assert!(is_plain_text(text), "{text}");
        }
    }

    #[test]
    fn scalars_mean_what_pyyaml_says() {
        // Every right side was printed by PyYAML 6.0's safe_load.
        let ints = [
            ("0640", 416),
            ("0x1F", 31),
            ("0b101", 5),
            ("1_000", 1000),
            ("+5", 5),
            ("-5", -5),
            ("1:30", 90),
            ("1:2:3", 3723),
            ("0", 0),
            ("00", 0),
            ("010", 8),
            ("-0x10", -16),
            ("190:20:30", 685_230),
            ("-1:30", -90),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
            ("1__0", 10),
            ("1_", 1),
            ("0_7", 7),
        ];
        for (text, number) in ints {
            assert_eq!(resolve(text), Scalar::Int(number), "{text}");
        }
        let floats = [
            ("1.5", 1.5),
            (".5", 0.5),
            ("1.", 1.0),
            ("1.0e+3", 1000.0),
            ("1.5E-1", 0.15),
            ("-1.5", -1.5),
            ("+.inf", f64::INFINITY),
            ("-.INF", f64::NEG_INFINITY),
            ("190:20:30.15", 685_230.15),
            ("1_0.2_5", 10.25),
            ("0.5", 0.5),
            ("00.5", 0.5),
        ];
        for (text, number) in floats {
            assert_eq!(resolve(text), Scalar::Float(number), "{text}");
        }
        assert!(matches!(resolve(".nan"), Scalar::Float(number) if number.is_nan()));
        let texts = [
            "y",
            "n",
            "Y",
            "oN",
            "nUll",
            "1e3",
            "1e-2",
            "1.0e3",
            "08",
            "0o644",
            "10.0.0.1:5432",
            "0.0.0.0:8008",
            ":8008",
            "::1:8008",
            "2024-01-02",
            "8GB",
            "-",
            "+",
            ".",
            "..",
            "0x",
            "0b",
            "0b2",
            "-.5",
            "1:60",
            "12:30:99",
            "0:30",
            "1.2.3",
            "5s",
            "+-5",
            "--5",
            "1:30x",
            "99999999999999999999",
            "é",
            "0xg",
        ];
        for text in texts {
            assert_eq!(resolve(text), Scalar::Text, "{text}");
        }
    }
}
