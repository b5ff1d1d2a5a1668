//! Hosts and ports (config.md 2.3).

use std::fmt;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or address; an IPv6 address has no brackets here. Empty or `*`: all addresses.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Splits `host:port` at the last colon; `default` stands for a missing port.
///
/// # Errors
/// What was expected, when there is no port and no default, the port is not one, or the host has odd characters.
pub(super) fn parse(text: &str, default: Option<u16>) -> Result<Address, String> {
    let (hosts, port) = split(text, default)?;
    match <[String; 1]>::try_from(hosts) {
        Ok([host]) => Ok(Address { host, port }),
        Err(_) => Err(format!("expected <HOST>:<PORT>, got {text:?}")),
    }
}

/// Splits `host,host,...:port`.
///
/// # Errors
/// As [`parse`].
pub(super) fn split(text: &str, default: Option<u16>) -> Result<(Vec<String>, u16), String> {
    let text = text.trim();
    let bad = || format!("expected <HOST>:<PORT>, got {text:?}");
    // `[::1]` has colons and no port.
    let (hosts, port) = match text.rsplit_once(':') {
        Some((hosts, port)) if !port.ends_with(']') => {
            (hosts, port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad)?)
        }
        Some(_) | None => (text, default.ok_or_else(bad)?),
    };
    let hosts: Vec<String> = hosts.split(',').map(|host| bare(host.trim()).to_owned()).collect();
    let odd = |host: &String| host.contains(|c: char| c.is_whitespace() || "[]/@'\"".contains(c));
    if hosts.iter().any(odd) { Err(bad()) } else { Ok((hosts, port)) }
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_split_at_the_last_colon() {
        let good = [
            ("10.0.0.1:5432", "10.0.0.1", 5432),
            ("*:5432", "*", 5432),
            (":8008", "", 8008),
            ("[::1]:8008", "::1", 8008),
            ("::1:8008", "::1", 8008),
            ("node-1:8008", "node-1", 8008),
            ("host", "host", 7),
            ("[fd00::1]", "fd00::1", 7),
        ];
        for (text, host, port) in good {
            assert_eq!(parse(text, Some(7)), Ok(Address { host: host.to_owned(), port }), "{text}");
        }
        for bad in ["host", "host:", "host:x", "host:0", "host:99999", "a,b:5", "http://a:80", "a b:80", ""] {
            assert!(parse(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn many_hosts_share_a_port() {
        let hosts = ["fd00::1", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        assert_eq!(split("[fd00::1],127.0.0.1,[::1]:5432", None), Ok((hosts, 5432)));
    }

    #[test]
    fn an_ipv6_host_shows_in_brackets() {
        assert_eq!(Address { host: "fd00::1".to_owned(), port: 1 }.to_string(), "[fd00::1]:1");
    }
}
