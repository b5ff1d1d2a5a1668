//! Who may change something: basic authentication (rest-api.md 19.3). Reading is free to all.

use std::fmt;
use std::hint::black_box;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// `restapi.authentication`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name; without a colon, which ends it on the wire.
    pub username: String,
    /// The password; any text.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Accepts a request by its headers, or gives the text of the refusal.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let given = headers.get(AUTHORIZATION).ok_or("no auth header received")?;
        let encoded = given.as_bytes().strip_prefix(b"Basic ").ok_or("not authenticated")?;
        let decoded = STANDARD.decode(encoded.trim_ascii()).map_err(|_| "not authenticated")?;
        let expected = format!("{}:{}", self.username, self.password);
        if same(&decoded, expected.as_bytes()) { Ok(()) } else { Err("not authenticated") }
    }
}

/// Compares in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |seen, (x, y)| black_box(seen | (x ^ y)));
    a.len() == b.len() && differences == 0
}
