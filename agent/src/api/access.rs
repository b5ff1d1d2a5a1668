//! Who may change something: by address, by certificate, by password (rest-api.md section 19). Reading is free to all.

use std::fmt;
use std::hint::black_box;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Uri};
use tokio::time::timeout;

use crate::status::Status;

/// A name server has this long.
const RESOLVE: Duration = Duration::from_secs(1);

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

/// `restapi.allowlist` and `allowlist_include_members` (rest-api.md 19.1). What cannot be resolved allows nobody (W12).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    /// Addresses, networks, host names.
    pub entries: Vec<String>,
    /// The hosts of all members' `api_url`, too.
    pub include_members: bool,
}

impl AllowList {
    /// May this address change something?
    pub(super) async fn allows(&self, address: IpAddr, status: &Status) -> bool {
        if self.entries.is_empty() && !self.include_members {
            return true;
        }
        let mut names = Vec::new();
        for entry in &self.entries {
            match within(entry, address) {
                Some(true) => return true,
                Some(false) => {}
                None => names.push(entry.clone()),
            }
        }
        let members = status.last_view.iter().flat_map(|view| view.members.values()).filter(|_| self.include_members);
        let hosts =
            members.filter_map(|member| member.api_url.as_ref()?.parse::<Uri>().ok()?.host().map(str::to_owned));
        for host in hosts {
            match host.trim_matches(['[', ']']).parse::<IpAddr>() {
                Ok(member) if member == address => return true,
                Ok(_) => {}
                Err(_) => names.push(host),
            }
        }
        for name in names {
            if let Ok(Ok(found)) = timeout(RESOLVE, tokio::net::lookup_host((name.as_str(), 0))).await
                && found.into_iter().any(|found| found.ip().to_canonical() == address)
            {
                return true;
            }
        }
        false
    }
}

/// Is this address in the network that the entry names? `None`: the entry is neither an address nor a network.
fn within(entry: &str, address: IpAddr) -> Option<bool> {
    let (network, length) = entry.split_once('/').map_or((entry, None), |(network, length)| (network, Some(length)));
    let network: IpAddr = network.parse().ok()?;
    let (here, there, bits) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()) << 96, u128::from(address.to_bits()) << 96, 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Some(false),
    };
    let length: u32 = length.map_or(Some(bits), |length| length.parse().ok())?;
    let mask = if length == 0 { 0 } else { u128::MAX << 128_u32.saturating_sub(length.min(bits)) };
    Some(here & mask == there & mask)
}

/// Compares in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |seen, (x, y)| black_box(seen | (x ^ y)));
    a.len() == b.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_the_addresses_below_their_mask() {
        for (entry, address, inside) in [
            ("10.0.0.0/8", "10.9.8.7", Some(true)),
            ("10.0.0.0/8", "11.0.0.1", Some(false)),
            ("127.0.0.1", "127.0.0.1", Some(true)),
            ("127.0.0.1", "127.0.0.2", Some(false)),
            ("0.0.0.0/0", "8.8.8.8", Some(true)),
            ("10.1.2.3/31", "10.1.2.2", Some(true)),
            ("fd00::/8", "fd12::1", Some(true)),
            ("::1", "127.0.0.1", Some(false)),
            ("db.example", "127.0.0.1", None),
            ("10.0.0.0/x", "10.0.0.1", None),
        ] {
            assert_eq!(within(entry, address.parse().unwrap()), inside, "{entry} {address}");
        }
    }
}
