//! JSON as the peer writes it (rest-api.md 2.4): `", "` and `": "` between tokens, one line, everything beyond ASCII
//! escaped. Clients match the raw text, so this is part of the interface.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

/// `value` in the peer's form.
pub(super) fn text(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PeerForm);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(), // ASCII only: never lossy
        // A map with keys that are no strings; no type of ours has them.
        Err(error) => format!("{{\"error\": {:?}}}", error.to_string()),
    }
}

struct PeerForm;

impl Formatter for PeerForm {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        for c in fragment.chars() {
            if c.is_ascii() {
                write!(out, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn separators_escapes_and_numbers_are_the_peers() {
        let value = json!({"a": [1, 30.0, 1.5, null, true], "é😀": "x\"\\\n\u{1f}é😀", "e": {}, "l": []});
        assert_eq!(
            super::text(&value),
            r#"{"a": [1, 30.0, 1.5, null, true], "\u00e9\ud83d\ude00": "x\"\\\n\u001f\u00e9\ud83d\ude00", "e": {}, "l": []}"#
        );
    }
}
