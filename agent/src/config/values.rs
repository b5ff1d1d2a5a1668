//! Text to numbers and booleans, as the contract reads them (config.md 2.2).

use super::node::{Node, Value};

/// A boolean word: `on true yes 1` / `off false no 0`, any case. Anything else counts as not set.
#[must_use]
pub(super) fn word(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Bool(on) => Some(*on),
        Value::Int(1) => Some(true),
        Value::Int(0) => Some(false),
        Value::Text(text) => word_text(text),
        Value::Null | Value::Int(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => None,
    }
}

pub(super) fn word_text(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// An integer without a unit: sign, `0x` hexadecimal, leading `0` octal, decimals rounded half to even.
#[must_use]
pub(super) fn integer(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Int(number) => Some(*number),
        Value::Float(number) => rounded(*number),
        Value::Text(text) => integer_text(text),
        // Python: True is 1.
        Value::Bool(on) => Some(i64::from(*on)),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

pub(super) fn integer_text(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, body) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !body.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let lower = body.to_ascii_lowercase();
    let number = if let Some(hex) = lower.strip_prefix("0x") {
        hex.starts_with(|c: char| c.is_ascii_hexdigit()).then(|| i64::from_str_radix(hex, 16).ok()).flatten()?
    } else if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) {
        i64::from_str_radix(&lower, 8).ok()?
    } else if lower.bytes().all(|b| b.is_ascii_digit()) {
        lower.parse().ok()?
    } else {
        rounded(lower.parse().ok()?)?
    };
    Some(if negative { -number } else { number })
}

/// The nearest integer, ties to the even one; `None` outside what a double counts exactly.
fn rounded(number: f64) -> Option<i64> {
    let nearest = number.round_ties_even();
    #[expect(clippy::cast_possible_truncation, reason = "checked to be an integer in range")]
    (nearest.abs() <= 9.0e15).then_some(nearest as i64)
}

/// The strict reading of the three timings: a number (fraction cut off) or text that is a plain decimal integer.
#[must_use]
pub(super) fn strict_integer(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Int(number) => Some(*number),
        Value::Float(number) => rounded(number.trunc()),
        Value::Text(text) => text.trim().parse().ok(),
        Value::Bool(on) => Some(i64::from(*on)),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

/// A time in seconds: a bare number, or one with `us`, `ms`, `s`, `min`, `h`, `d` (case counts), rounded half to even.
#[must_use]
pub(super) fn seconds(node: &Node) -> Option<u64> {
    let Value::Text(text) = &node.value else { return u64::try_from(integer(node)?).ok() };
    let text = text.trim();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).filter(|_| !text.to_ascii_lowercase().starts_with("0x"));
    let Some((number, unit)) = unit_at.and_then(|at| text.split_at_checked(at)) else {
        return u64::try_from(integer_text(text)?).ok();
    };
    let number: f64 = number.trim().parse().ok()?;
    let each = match unit {
        "us" => 0.000_001,
        "ms" => 0.001,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    u64::try_from(rounded(number * each)?).ok()
}

/// A size in megabytes: a bare number, or one with `B`, `kB`, `MB`, `GB`, `TB` (case counts), rounded down.
#[must_use]
pub(super) fn megabytes(node: &Node) -> Option<i64> {
    let Value::Text(text) = &node.value else { return integer(node) };
    let text = text.trim();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).filter(|_| !text.to_ascii_lowercase().starts_with("0x"));
    let Some((number, unit)) = unit_at.and_then(|at| text.split_at_checked(at)) else { return integer_text(text) };
    let number: f64 = number.trim().parse().ok()?;
    let bytes = match unit {
        "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        "TB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    rounded((number * bytes / (1024.0 * 1024.0)).floor())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn node(yaml: &str) -> Node {
        parse("test", yaml.as_bytes()).unwrap()
    }

    #[test]
    fn integers_are_read_as_the_contract_says() {
        let cases = [
            ("5", Some(5)),
            ("'5'", Some(5)),
            ("64.4", Some(64)),
            ("'64.5'", Some(64)),
            ("'65.5'", Some(66)),
            ("'0x1F'", Some(31)),
            ("'0640'", Some(416)),
            ("'1e3'", Some(1000)),
            ("1MB", None),
            ("x", None),
            ("[1]", None),
            ("' -7 '", Some(-7)),
            ("'08'", None),
            ("'0x'", None),
            ("'inf'", None),
            ("'1e300'", None),
        ];
        for (yaml, number) in cases {
            assert_eq!(integer(&node(yaml)), number, "{yaml}");
        }
        let strict = [("30", Some(30)), ("5.9", Some(5)), ("'30'", Some(30)), ("30s", None), ("'0x10'", None)];
        for (yaml, number) in strict {
            assert_eq!(strict_integer(&node(yaml)), number, "{yaml}");
        }
    }

    #[test]
    fn sizes_have_postgresqls_units() {
        let cases = [
            ("128MB", Some(128)),
            ("1GB", Some(1024)),
            ("16384kB", Some(16)),
            ("64", Some(64)),
            ("1 GB", Some(1024)),
            ("10mb", None),
            ("1.5GB", Some(1536)),
            ("'0x10'", Some(16)),
            ("xMB", None),
            ("8kB", Some(0)),
        ];
        for (yaml, number) in cases {
            assert_eq!(megabytes(&node(yaml)), number, "{yaml}");
        }
    }

    #[test]
    fn words_are_words_and_nothing_else() {
        for (yaml, on) in [("on", Some(true)), ("'YES'", Some(true)), ("0", Some(false)), ("2", None), ("y", None)] {
            assert_eq!(word(&node(yaml)), on, "{yaml}");
        }
    }
}
