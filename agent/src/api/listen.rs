//! Where the API listens: `restapi.listen`, read and bound.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use regent_core::units::ParseError;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The smallest backlog we ask for (rest-api.md W16: the peer's 5 cost its clients seconds).
const MIN_BACKLOG: u32 = 128;

/// `restapi.listen`: `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Host name or address without brackets; `None` (`*` or empty): every address of both families.
    pub host: Option<String>,
    /// Port; 0 lets the system choose.
    pub port: u16,
}

impl FromStr for Listen {
    type Err = ParseError;

    /// Reads `10.0.0.1:8008`, `*:8008`, `:8008`, `[::]:8008`, `:::8008` (config.md 2.3). The port is required.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError { what: "restapi.listen (<HOST>:<PORT>)", text: text.to_owned() };
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let host = (!host.is_empty() && host != "*").then(|| host.to_owned());
        Ok(Listen { host, port })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => write!(f, "*:{}", self.port),
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
        }
    }
}

/// The API could not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The host in `restapi.listen` has no address.
    #[error("restapi.listen {listen}: the host has no address ({source}); name an address of this machine, or *")]
    Resolve {
        /// As configured.
        listen: Listen,
        /// The resolver's answer.
        source: io::Error,
    },
    /// The address could not be bound.
    #[error("the REST API cannot listen on {address} (restapi.listen {listen}): {source}; {}", cure(source))]
    Bind {
        /// As configured.
        listen: Listen,
        /// What was tried last.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The system gave no thread or runtime.
    #[error("the REST API cannot get a thread of its own: {source}; look at the limits of processes and open files")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
}

fn cure(error: &io::Error) -> &'static str {
    const CURES: [(io::ErrorKind, &str); 3] = [
        (io::ErrorKind::AddrInUse, "another process has the port (ss -ltnp shows it): stop it, or set another port"),
        (io::ErrorKind::AddrNotAvailable, "no interface has this address: bring it up, or set another restapi.listen"),
        (io::ErrorKind::PermissionDenied, "ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or set another port"),
    ];
    let known = CURES.iter().find(|(kind, _)| *kind == error.kind());
    known.map_or("correct restapi.listen, or what the system complains about", |(_, cure)| cure)
}

/// Binds to the first address that can be had. Call inside a tokio runtime.
pub(super) fn bind(listen: &Listen, backlog: u32) -> Result<(TcpListener, SocketAddr), ListenError> {
    let mut last = None;
    for address in addresses(listen)? {
        match bind_one(address, backlog.max(MIN_BACKLOG)) {
            Ok(bound) => return Ok(bound),
            Err(source) => last = Some(ListenError::Bind { listen: listen.clone(), address, source }),
        }
    }
    Err(last.unwrap_or_else(|| ListenError::Resolve {
        listen: listen.clone(),
        source: io::Error::new(io::ErrorKind::NotFound, "the resolver knows the name but gave no address"),
    }))
}

/// What to try, in order. All addresses of both families is one IPv6 socket, or an IPv4 one where IPv6 is off.
fn addresses(listen: &Listen) -> Result<Vec<SocketAddr>, ListenError> {
    let Some(host) = &listen.host else {
        let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
        return Ok(any.map(|ip| SocketAddr::new(ip, listen.port)).into());
    };
    let found = (host.as_str(), listen.port).to_socket_addrs();
    let mut found: Vec<_> = found.map_err(|source| ListenError::Resolve { listen: listen.clone(), source })?.collect();
    found.sort_by_key(SocketAddr::is_ipv6); // stable: IPv4 first, as most clients of such a name expect
    Ok(found)
}

fn bind_one(address: SocketAddr, backlog: u32) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    // A restarted agent must get its port back although old connections linger in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    socket.bind(address)?;
    let listener = socket.listen(backlog)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Makes a vanished client known within about 10 s (rest-api.md 2.1), and small answers leave at once.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, 10_000)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_reads_every_form_of_the_contract() {
        for (text, host, port) in [
            ("10.0.0.1:8008", Some("10.0.0.1"), 8008),
            ("node1:80", Some("node1"), 80),
            ("*:8008", None, 8008),
            (":8008", None, 8008),
            ("[::]:8008", Some("::"), 8008),
            (":::8008", Some("::"), 8008),
            ("[fd00::1]:0", Some("fd00::1"), 0),
        ] {
            assert_eq!(text.parse(), Ok(Listen { host: host.map(str::to_owned), port }), "{text}");
        }
        for bad in ["", "8008", "host", "host:", "host:x", "host:70000"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad:?}");
        }
    }
}
