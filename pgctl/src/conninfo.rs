//! libpq's connection strings: written for PostgreSQL's programs, read back from `primary_conninfo`.
//! (PostgreSQL documentation, "Connection Strings".)

use regent_core::config::Remote;

use crate::PgError;
use crate::settings::{Credentials, Settings};

/// Where another member listens; from its `conn_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `postgres://host:port/dbname`.
    pub(crate) fn of_url(url: &str) -> Result<Address, PgError> {
        let bad = || PgError::Refused(format!("conn_url {url:?} is not of the form postgres://host:port/dbname"));
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or_else(bad)?;
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => {
                let (host, after) = v6.split_once(']').ok_or_else(bad)?;
                (host, after.strip_prefix(':'))
            }
            None => place.rsplit_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(5432), str::parse).map_err(|_| bad())?;
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Address { host: host.to_owned(), port })
    }

    /// Reads host and port of a key-value connection string; `None` when it names no host.
    pub(crate) fn of_conninfo(conninfo: &str) -> Option<Address> {
        let pairs = parse(conninfo)?;
        let get = |key: &str| pairs.iter().rev().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.clone());
        let port = get("port").map_or(Some(5432), |port| port.parse().ok())?;
        Some(Address { host: get("host").or_else(|| get("hostaddr"))?, port })
    }
}

impl std::fmt::Display for Address {
    /// `host:port`, IPv6 in brackets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The remote of a standby cluster, if `source` is that.
pub(crate) fn remote<'a>(settings: &'a Settings, source: &Address) -> Option<&'a Remote> {
    let remote = settings.standby_cluster.as_ref()?;
    let address = Address::of_url(&remote.conn_url()?).ok()?;
    (address == *source).then_some(remote)
}

/// The connection string of this member to `source`, for replication. A slot of a standby cluster is on one server: of several
/// hosts the primary is meant (Z3).
pub(crate) fn replication(settings: &Settings, source: &Address) -> String {
    let on_one = remote(settings, source).is_some_and(|remote| remote.slot.is_some()) && source.host.contains(',');
    let primary: &[_] = if on_one { &[("target_session_attrs", "read-write")] } else { &[] };
    to(settings, source, &settings.replication, primary)
}

/// The same for pg_rewind (X6, X10): to a primary only, and not waiting for ever on one that is gone.
pub(crate) fn rewind(settings: &Settings, source: &Address) -> String {
    const PATIENCE: [(&str, &str); 6] = [
        ("target_session_attrs", "read-write"),
        ("connect_timeout", "10"),
        ("keepalives_idle", "10"),
        ("keepalives_interval", "5"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "25000"),
    ];
    to(settings, source, settings.rewind.as_ref().unwrap_or(&settings.superuser), &PATIENCE)
}

/// The connection as methods for copies get it (B13): as short as it can be. The password is in the passfile.
pub(crate) fn plain(settings: &Settings, to: &Address) -> String {
    let who = &settings.replication;
    let port = to.port.to_string();
    let pairs = [("dbname", Some(&settings.database)), ("user", who.username.as_ref())];
    let pairs = pairs.into_iter().chain([("host", Some(&to.host)), ("port", Some(&port))]);
    let options = who.options.iter().map(|(key, value)| (key.as_str(), Some(value)));
    let words = pairs.chain(options).filter_map(|(key, value)| Some(format!("{key}={}", quote(value?))));
    words.collect::<Vec<_>>().join(" ")
}

/// Keys in the order of ha-rules section 17. The password is not in it but in the passfile.
fn to(settings: &Settings, source: &Address, who: &Credentials, more: &[(&str, &str)]) -> String {
    let Credentials { username, password, options } = who;
    let option = |key: &str| options.get(key).cloned();
    let or_prefer = |key: &str| Some(options.get(key).cloned().unwrap_or_else(|| "prefer".to_owned()));
    let pairs = [
        ("dbname", Some(settings.database.clone())),
        ("user", username.clone()),
        ("passfile", password.as_ref().map(|_| settings.pgpass.display().to_string())),
        ("host", Some(source.host.clone())),
        ("port", Some(source.port.to_string())),
        ("sslmode", or_prefer("sslmode")),
        ("sslcert", option("sslcert")),
        ("sslkey", option("sslkey")),
        ("sslpassword", option("sslpassword")),
        ("sslrootcert", option("sslrootcert")),
        ("sslcrl", option("sslcrl")),
        ("sslcrldir", option("sslcrldir")),
        ("application_name", Some(settings.name.clone())),
        ("krbsrvname", settings.krbsrvname.clone()),
        ("gssencmode", or_prefer("gssencmode")),
        ("channel_binding", or_prefer("channel_binding")),
        ("sslnegotiation", option("sslnegotiation")),
    ];
    let words = pairs.iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={}", quote(value))));
    words.chain(more.iter().map(|(key, value)| format!("{key}={value}"))).collect::<Vec<_>>().join(" ")
}

/// Quotes a value where libpq needs it.
pub(crate) fn quote(value: &str) -> String {
    let plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\');
    if plain {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Reads `key = value` pairs; `None` when it is not of that form.
fn parse(conninfo: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = conninfo.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = take_value(after.trim_start())?;
        pairs.push((key.trim().to_owned(), value));
        rest = after.trim_start();
    }
    Some(pairs)
}

fn take_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let mut chars = quoted.unwrap_or(text).char_indices();
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted.is_some() => return Some((value, chars.as_str())),
            c if quoted.is_none() && c.is_whitespace() => return text.get(at..).map(|rest| (value, rest)),
            c => value.push(c),
        }
    }
    quoted.is_none().then_some((value, ""))
}

/// One line of a passfile per host (config.md 7.5, G11): `host:port:*:user:password`, `:` and `\` escaped; an empty user is `*`;
/// a socket directory gets a `localhost` line too.
pub(crate) fn passfile(address: &Address, credentials: &Credentials) -> Option<String> {
    let password = escape(credentials.password.as_ref()?);
    let user = credentials.username.as_deref().map_or_else(|| "*".to_owned(), escape);
    let line = |host: &str| format!("{}:{}:*:{user}:{password}\n", escape(host), address.port);
    let mut text: String = address.host.split(',').map(line).collect();
    if address.host.starts_with('/') {
        text.push_str(&line("localhost"));
    }
    Some(text)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn conn_urls_are_read() {
        for (url, host, port) in [
            ("postgres://10.0.0.1:5433/postgres", "10.0.0.1", 5433),
            ("postgresql://db-1/x", "db-1", 5432),
            ("postgres://user:p@ss@db:6/x?a=b", "db", 6),
            ("postgres://[fd00::1]:5432/postgres", "fd00::1", 5432),
        ] {
            assert_eq!(Address::of_url(url), Ok(address(host, port)), "{url}");
        }
        for bad in ["", "http://a:1/", "postgres://:5432/", "postgres://a:x/", "postgres://[::1/"] {
            assert!(Address::of_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn methods_get_a_connection_without_the_password() {
        let mut settings = crate::conf::tests::settings(std::path::Path::new("/pg"));
        assert_eq!(
            plain(&settings, &address("fd00::1", 5433)),
            "dbname=postgres user=replicator host=fd00::1 port=5433"
        );
        settings.replication.options.insert("sslmode".to_owned(), "verify full".to_owned());
        assert!(plain(&settings, &address("h", 1)).ends_with(" host=h port=1 sslmode='verify full'"));
    }

    #[test]
    fn values_come_back_as_they_were_written() {
        for value in ["plain", "", "two words", "it's", "back\\slash", "'\\ '"] {
            let conninfo = format!("a={} host={} port=1", quote("x y"), quote(value));
            let pairs = parse(&conninfo).unwrap();
            assert_eq!(pairs[1], ("host".to_owned(), value.to_owned()), "{conninfo}");
        }
        assert_eq!(parse("host='open"), None);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn an_upstream_is_host_and_port() {
        let read = |text| Address::of_conninfo(text).map(|a| a.to_string());
        assert_eq!(read("user=a host=h port = 5433 x=y"), Some("h:5433".to_owned()));
        assert_eq!(read("host=fd00::1"), Some("[fd00::1]:5432".to_owned()));
        assert_eq!(read("hostaddr=1.2.3.4 host=''"), Some("1.2.3.4:5432".to_owned()));
        assert_eq!(read(""), None);
        assert_eq!(read("port=5432"), None);
    }

    #[test]
    fn passfile_lines_escape_colons() {
        let who = |password: &str| Credentials {
            username: Some("re:pl".to_owned()),
            password: Some(password.to_owned()),
            ..Credentials::default()
        };
        let line = passfile(&address("fd00::1", 5432), &who("a\\b:c"));
        assert_eq!(line.as_deref(), Some("fd00\\:\\:1:5432:*:re\\:pl:a\\\\b\\:c\n"));
        let nobody = Credentials { username: None, ..who("12345") };
        let lines = passfile(&address("/run/pg", 1), &nobody);
        assert_eq!(lines.as_deref(), Some("/run/pg:1:*:*:12345\nlocalhost:1:*:*:12345\n"));
        assert_eq!(passfile(&address("h", 1), &Credentials::default()), None);
    }
}
