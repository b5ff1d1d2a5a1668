//! The smallest HTTP client that can ask an agent something.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{Trouble, canary};

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers, as they came.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// `GET path` from the server `at`.
///
/// # Errors
/// No connection, no answer `within` each read, or not HTTP.
pub fn get(at: SocketAddr, path: &str, within: Duration) -> Result<Answer, Trouble> {
    raw(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"), within)
}

/// Sends `request` as it is and reads to the end of the connection.
///
/// # Errors
/// As [`get`].
///
/// # Panics
/// A secret is in the answer ([`canary`]).
pub fn raw(at: SocketAddr, request: &str, within: Duration) -> Result<Answer, Trouble> {
    let asked = request.lines().next().unwrap_or_default().to_owned();
    let failed = |e: std::io::Error| Trouble::new(format!("{asked} at {at}: {e}"));
    let mut stream = TcpStream::connect_timeout(&at, within).map_err(failed)?;
    stream.set_read_timeout(Some(within)).map_err(failed)?;
    stream.set_write_timeout(Some(within)).map_err(failed)?;
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).map_err(failed)?;
    let text = String::from_utf8_lossy(&text);
    canary::watch(&format!("the answer to {asked}"), &text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| Trouble::new(format!("{asked} at {at}: no HTTP answer but {text:?}")))?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
