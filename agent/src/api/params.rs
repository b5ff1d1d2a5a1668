//! The query string, and the sizes in it.

use axum::extract::Query;
use http::Uri;

/// Query parameters in their order, decoded as form data, blank values dropped (rest-api.md section 3).
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Never fails: what cannot be read as form data is no parameter.
    pub(super) fn of(uri: &Uri) -> Params {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri).map(|query| query.0).unwrap_or_default();
        Params(pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }

    /// The first value of this name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Names and first values of the parameters that begin with `prefix`, which is cut off.
    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, _)| Some((name.strip_prefix(prefix)?, self.get(name)?)))
    }
}

/// Reads a size in bytes (rest-api.md 5.4): a number as PostgreSQL's settings have it, and a unit of powers of 1024.
///
/// Units are read in any case, and `K`, `M`, `G`, `T` without the `B` (rest-api.md W11: tools in the field write
/// `10mb`, and the peer takes that for "no limit").
pub(super) fn size(text: &str) -> Option<i128> {
    let (number, unit) = number(text.trim())?;
    let power = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" => 1,
        "m" | "mb" => 2,
        "g" | "gb" => 3,
        "t" | "tb" => 4,
        _ => return None,
    };
    match number {
        Number::Whole(whole) => whole.checked_mul(1024_i128.pow(power)),
        // To whole units of the next smaller kind, as PostgreSQL rounds (documentation, "Setting Parameters").
        Number::Fraction(fraction) if power == 0 => whole(fraction.round_ties_even()),
        Number::Fraction(fraction) => {
            whole((fraction * 1024.0).round_ties_even())?.checked_mul(1024_i128.pow(power - 1))
        }
    }
}

enum Number {
    Whole(i128),
    Fraction(f64),
}

#[expect(clippy::cast_possible_truncation, reason = "a float's `as` saturates, and the range is checked")]
fn whole(float: f64) -> Option<i128> {
    (float.abs() < 1e30).then_some(float as i128)
}

/// Splits off a leading number: decimal, `0x…`, octal with a leading `0`, or with fraction or exponent.
fn number(text: &str) -> Option<(Number, &str)> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let radix = |radix: u32, from: usize| {
        let body = digits.get(from..)?;
        let length = body.find(|c: char| !c.is_digit(radix)).unwrap_or(body.len());
        let value = i128::from_str_radix(body.get(..length)?, radix).ok()?;
        Some((Number::Whole(value.checked_mul(sign)?), body.get(length..)?))
    };
    if digits.starts_with("0x") || digits.starts_with("0X") {
        return radix(16, 2);
    }
    let end = float_length(digits);
    if digits.get(..end)?.bytes().all(|b| b.is_ascii_digit()) {
        return radix(if digits.starts_with('0') { 8 } else { 10 }, 0);
    }
    let value: f64 = digits.get(..end)?.parse().ok()?;
    Some((Number::Fraction(if sign < 0 { -value } else { value }), digits.get(end..)?))
}

/// Length of `[0-9]*(\.[0-9]*)?([eE][+-]?[0-9]+)?` at the beginning.
fn float_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits_from = |at: usize| bytes.iter().skip(at).take_while(|b| b.is_ascii_digit()).count();
    let mut end = digits_from(0);
    if bytes.get(end) == Some(&b'.') {
        end += 1 + digits_from(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let signed = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits_from(end + 1 + signed);
        if exponent > 0 {
            end += 1 + signed + exponent;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_contract_says() {
        for (text, bytes) in [
            ("0", 0),
            ("3096816", 3_096_816),
            ("-1", -1),
            ("+7", 7),
            ("2MB", 2 << 20),
            ("3000kB", 3000 << 10),
            ("1.5MB", 1536 << 10),
            ("0.1GB", 102 << 20),
            (".5kB", 512),
            ("5.", 5),
            ("2.5", 2),
            ("4e6", 4_000_000),
            ("1e3kB", 1000 << 10),
            ("0x400000", 4 << 20),
            ("010", 8),
            (" 4 MB ", 4 << 20),
            ("1TB", 1 << 40),
            ("2mb", 2 << 20),
            ("2M", 2 << 20),
            ("8K", 8192),
            ("1g", 1 << 30),
        ] {
            assert_eq!(size(text), Some(bytes), "{text:?}");
        }
        for bad in
            ["", " ", "MB", "1PB", "garbage", "4_000_000", "08", "0x", "1e", "- 1", "1 2", "inf", "nan", "1e99", "."]
        {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn blank_values_are_dropped_and_the_first_value_counts() {
        let params = Params::of(&"/replica?lag=&lag=1&lag=2&tag_a=x+y%21&tag_a=z&tag_b&Lag=9&tag_=q".parse().unwrap());
        assert_eq!(params.get("lag"), Some("1"));
        assert_eq!(params.get("absent"), None);
        assert_eq!(params.with_prefix("tag_").collect::<Vec<_>>(), [("a", "x y!"), ("a", "x y!"), ("", "q")]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_size_panic(text in ".*", number in "[-+]?(0x)?[0-9.]{0,40}(e[0-9]{1,4})?[kKmMgGtTbB ]{0,4}") {
            let _ = (size(&text), size(&number));
        }
    }
}
