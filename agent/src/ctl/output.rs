//! JSON as Python writes it (cli.md 3.3).

use serde_json::Value;

use crate::config::python_float;

/// One line: `", "` and `": "` between things, nothing but ASCII.
pub(super) fn to_json(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => python_float(float),
            None => number.to_string(),
        },
        Value::String(text) => string(text),
        Value::Array(items) => format!("[{}]", items.iter().map(to_json).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let parts: Vec<_> =
                entries.iter().map(|(key, value)| format!("{}: {}", string(key), to_json(value))).collect();
            format!("{{{}}}", parts.join(", "))
        }
    }
}

fn string(text: &str) -> String {
    let quoted = Value::String(text.to_owned()).to_string();
    let mut ascii = String::with_capacity(quoted.len());
    for c in quoted.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_looks_like_pythons() {
        let value = serde_json::json!([{"é": "日\u{1f600}\n\"", "b": 1.0, "c": [true, null], "d": {}}]);
        assert_eq!(to_json(&value), r#"[{"\u00e9": "\u65e5\ud83d\ude00\n\"", "b": 1.0, "c": [true, null], "d": {}}]"#);
    }
}
