//! The way to etcd (config.md 2.4), and the refusal of other stores (section 12).

use std::path::PathBuf;

use regent_dcs::etcd::{Credentials, EtcdSettings, TlsFiles};

use super::address;
use super::node::{Node, Value};
use super::secret::Secret;
use super::section::{Report, Section};

/// How etcd is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Full URLs (`http://10.0.0.1:2379`), without credentials; at least one where there is no `srv`.
    pub endpoints: Vec<String>,
    /// `srv`: DNS names the endpoints, and the others count only while it does not.
    pub srv: Option<SrvName>,
    /// User of token authentication.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// File that verifies the servers' certificates; the system's store unless set.
    pub cacert: Option<String>,
    /// Client certificate.
    pub cert: Option<String>,
    /// Its key; `None`: inside `cert`.
    pub key: Option<String>,
    /// `use_proxies`: the endpoints are used as they are, members are not discovered.
    pub use_proxies: bool,
}

/// `srv` and `srv_suffix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvName {
    /// The domain.
    pub domain: String,
    /// What is appended to the services' names, behind a `-`.
    pub suffix: Option<String>,
}

impl EtcdConfig {
    /// The store behind one URL, as [`EtcdConfig::endpoint`] makes it.
    #[must_use]
    pub fn of_endpoint(endpoint: String) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![endpoint],
            srv: None,
            username: None,
            password: None,
            cacert: None,
            cert: None,
            key: None,
            use_proxies: false,
        }
    }

    /// The URL of `host[:port]`.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn endpoint(place: &str) -> Result<String, String> {
        address::parse(place, Some(DEFAULT_PORT)).map(|address| format!("http://{address}"))
    }
}

impl EtcdConfig {
    /// Fills in the endpoints that DNS names. Where it names none, the configured ones stay.
    ///
    /// # Errors
    /// That there are none at all; DNS may name some later.
    pub async fn find(&mut self) -> Result<(), String> {
        let Some(srv) = &self.srv else { return Ok(()) };
        match crate::srv::endpoints(srv).await {
            Ok(endpoints) => self.endpoints = endpoints,
            Err(why) if self.endpoints.is_empty() => return Err(why),
            Err(why) => tracing::warn!("{why}; the configured hosts are used"),
        }
        Ok(())
    }

    /// What the client needs to reach the cluster at `path` (`/service/demo`).
    #[must_use]
    pub fn settings(&self, path: &str) -> EtcdSettings {
        let file = |file: &Option<String>| file.as_ref().map(PathBuf::from);
        let (namespace, scope) = path.rsplit_once('/').unwrap_or(("", path));
        EtcdSettings {
            endpoints: self.endpoints.clone(),
            namespace: namespace.to_owned(),
            scope: scope.to_owned(),
            credentials: self.username.clone().map(|username| Credentials {
                username,
                password: self.password.as_ref().map(|secret| secret.expose().to_owned()).unwrap_or_default(),
            }),
            tls: TlsFiles { ca: file(&self.cacert), cert: file(&self.cert), key: file(&self.key) },
        }
    }
}

const DEFAULT_PORT: u16 = 2379;
/// The peer's order, without ours.
const OTHER_STORES: &[&str] = &["consul", "etcd", "exhibitor", "kubernetes", "raft", "zookeeper"];

/// Reads the `etcd3` section, or says why there is no store that can be used.
pub(super) fn read(root: &Section<'_>, report: &mut Report) -> Option<EtcdConfig> {
    let mut others = OTHER_STORES.iter().filter_map(|name| Some((*name, root.get(name)?)));
    if root.get("etcd3").is_none() {
        if let Some((name, node)) = others.next() {
            let detail = if name == "etcd" { " (protocol v2)" } else { "" };
            let mut what = format!("section \"{name}\"{detail} is not supported, only \"etcd3\" is");
            if name == "etcd" {
                what.push_str(
                    "; write \"etcd3\" with the same hosts. Data written with v2 cannot be seen with v3: a running cluster must \
                     be moved over with care, not just by renaming the section",
                );
            } else {
                what.push_str("; run etcd and write instead \"etcd3: {hosts: [host1:2379, host2:2379, host3:2379]}\"");
            }
            report.problem(&node.at, name, what);
            return None;
        }
        report.problems.push(super::Problem {
            at: root.at().cloned(),
            key: "etcd3".to_owned(),
            what: "Can not find suitable configuration of distributed configuration store. Available implementations: \
                   etcd3"
                .to_owned(),
        });
        return None;
    }
    for (name, node) in others {
        report.warn(&node.at, name, format!("section \"{name}\" has no effect: \"etcd3\" is used"));
    }
    section(&root.child("etcd3", report), report)
}

fn section(etcd: &Section<'_>, report: &mut Report) -> Option<EtcdConfig> {
    let mut config = EtcdConfig {
        endpoints: Vec::new(),
        srv: None,
        username: etcd.text("username", report),
        password: etcd.text("password", report).map(Secret::new),
        cacert: etcd.text("cacert", report),
        cert: etcd.text("cert", report),
        key: etcd.text("key", report),
        use_proxies: etcd.get("proxy").is_some() || etcd.truthy("use_proxies"),
    };
    let protocol = protocol(etcd, report);
    let url = ["proxy", "url"].into_iter().find_map(|key| Some((key, etcd.text(key, report)?)));
    if let Some((key, text)) = url {
        match Url::parse(&text) {
            Ok(url) => {
                config.endpoints.push(url.endpoint);
                // A URL replaces both, even when it names neither.
                config.username = url.username;
                config.password = url.password;
            }
            Err(why) => {
                let at = etcd.get(key).map(|node| node.at.clone());
                report.problems.push(super::Problem { at, key: etcd.path_of(key), what: why });
            }
        }
        return Some(config).filter(|config| !config.endpoints.is_empty());
    }
    let port = etcd.number("port", 1, report).and_then(|port| u16::try_from(port).ok()).unwrap_or(DEFAULT_PORT);
    for (node, text) in hosts(etcd, report) {
        // The peer does not understand `http://` here; nobody can mean anything else by it.
        let (protocol, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (scheme.to_owned(), rest.trim_end_matches('/')),
            Some(_) | None => (protocol.clone(), text.as_str()),
        };
        match address::parse(rest, Some(port)) {
            Ok(address) if !address.host.is_empty() => config.endpoints.push(format!("{protocol}://{address}")),
            Ok(_) => report.problem(&node.at, &etcd.path_of("hosts"), "a host name is missing before the port"),
            Err(why) => report.problem(&node.at, &etcd.path_of("hosts"), why),
        }
    }
    let domain = ["srv", "discovery_srv", "srv_domain"].into_iter().find_map(|key| etcd.text(key, report));
    let suffix = etcd.text("srv_suffix", report);
    config.srv = domain.map(|domain| SrvName { domain, suffix });
    if config.endpoints.is_empty() && config.srv.is_none() && report.problems.is_empty() {
        let what = "Neither srv, hosts, host nor url are defined in etcd section of config".to_owned();
        report.problems.push(super::Problem { at: etcd.at().cloned(), key: "etcd3".to_owned(), what });
    }
    Some(config).filter(|config| !config.endpoints.is_empty() || config.srv.is_some())
}

fn protocol(etcd: &Section<'_>, report: &mut Report) -> String {
    let protocol = etcd.text("protocol", report).unwrap_or_else(|| "http".to_owned()).to_ascii_lowercase();
    if !matches!(protocol.as_str(), "http" | "https")
        && let Some(node) = etcd.get("protocol")
    {
        report.problem(&node.at, &etcd.path_of("protocol"), "must be http or https");
    }
    protocol
}

/// `hosts`, a list or a text with commas, else `host`.
fn hosts<'a>(etcd: &Section<'a>, report: &mut Report) -> Vec<(&'a Node, String)> {
    let split = |node: &'a Node, text: &str| {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| (node, part.to_owned())).collect()
    };
    if let Some(node) = etcd.get("hosts") {
        if let Value::List(items) = &node.value {
            let mut found = Vec::new();
            for item in items {
                match item.written() {
                    Some(text) => found.extend::<Vec<_>>(split(item, &text)),
                    None => {
                        let what = format!("each item must be text like 10.0.0.1:2379, this is {}", item.kind());
                        report.problem(&item.at, &etcd.path_of("hosts"), what);
                    }
                }
            }
            return found;
        }
        if let Some(text) = etcd.text("hosts", report) {
            return split(node, &text);
        }
    }
    match (etcd.get("host"), etcd.text("host", report)) {
        (Some(node), Some(text)) => split(node, &text),
        (Some(_) | None, _) => Vec::new(),
    }
}

/// The parts of a URL that count.
struct Url {
    endpoint: String,
    username: Option<String>,
    password: Option<Secret>,
}

impl Url {
    /// The error never repeats the text: it may hold a password.
    fn parse(text: &str) -> Result<Url, String> {
        let bad = || "expected http(s)://[USER:PASSWORD@]HOST[:PORT]".to_owned();
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(bad)?;
        if !matches!(scheme, "http" | "https") {
            return Err(bad());
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let address = address::parse(host, Some(DEFAULT_PORT)).map_err(|_| bad())?;
        if address.host.is_empty() {
            return Err(bad());
        }
        let (username, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            Some((user, password)) => (Some(decoded(user)), Some(decoded(password)).filter(|text| !text.is_empty())),
            None => (None, None),
        };
        Ok(Url { endpoint: format!("{scheme}://{address}"), username, password: password.map(Secret::new) })
    }
}

/// Undoes percent-encoding (RFC 3986, 2.1); what is no valid escape stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escape = (*first == b'%').then(|| tail.get(..2)).flatten();
        let hex = escape.and_then(|pair| std::str::from_utf8(pair).ok()).filter(|pair| !pair.contains(['+', '-']));
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn etcd(yaml: &str) -> Result<EtcdConfig, String> {
        let tree = parse("patroni.yml", yaml.as_bytes()).unwrap();
        let mut report = Report::default();
        let config = read(&Section::root(&tree), &mut report);
        let problems = || report.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        config.filter(|_| report.problems.is_empty()).ok_or_else(problems)
    }

    #[test]
    fn endpoints_are_found_in_every_form() {
        let cases = [
            ("etcd3: {hosts: [10.0.0.1:2379, '10.0.0.2']}", "http://10.0.0.1:2379 http://10.0.0.2:2379"),
            ("etcd3: {hosts: 'a:1, b:2,c', protocol: https}", "https://a:1 https://b:2 https://c:2379"),
            ("etcd3: {hosts: 'a,b:1', port: 4001}", "http://a:4001 http://b:1"),
            ("etcd3: {host: 127.0.0.1}", "http://127.0.0.1:2379"),
            ("etcd3: {host: a, hosts: [b]}", "http://b:2379"),
            ("etcd3: {url: 'https://u:p%40x@h', hosts: [b]}", "https://h:2379"),
            ("etcd3: {proxy: 'http://p:1', url: 'http://u'}", "http://p:1"),
            ("etcd3: {hosts: ['https://a:1', '[::1]:2379']}", "https://a:1 http://[::1]:2379"),
            ("{etcd3: {host: a}, etcd: {host: b}}", "http://a:2379"),
        ];
        for (yaml, endpoints) in cases {
            assert_eq!(etcd(yaml).map(|config| config.endpoints.join(" ")), Ok(endpoints.to_owned()), "{yaml}");
        }
    }

    #[test]
    fn a_url_brings_its_own_credentials() {
        let config = etcd("etcd3: {url: 'https://u:p%40x@h', username: other, password: lost}").unwrap();
        assert_eq!(config.username.as_deref(), Some("u"));
        assert_eq!(config.password.as_ref().map(Secret::expose), Some("p@x"));
        assert!(!format!("{config:?}").contains("p@x"));
        assert_eq!(etcd("etcd3: {url: 'http://h', username: u}").unwrap().username, None);
    }

    #[test]
    fn other_stores_are_refused_by_name() {
        assert!(etcd("etcd: {host: a}").unwrap_err().contains("section \"etcd\" (protocol v2) is not supported"));
        assert!(etcd("consul: {host: a}").unwrap_err().starts_with("patroni.yml:1:9: consul: section \"consul\""));
        assert!(etcd("name: x").unwrap_err().contains("Can not find suitable configuration"));
        assert!(etcd("etcd3: {cacert: x}").unwrap_err().contains("Neither srv, hosts, host nor url"));
        assert!(etcd("etcd3: {srv_suffix: x}").unwrap_err().contains("Neither srv, hosts, host nor url"));
    }

    #[test]
    fn bad_addresses_name_their_place_and_hide_passwords() {
        assert!(etcd("etcd3:\n  hosts:\n  - a:x").unwrap_err().starts_with("patroni.yml:3:5: etcd3.hosts: expected"));
        let error = etcd("etcd3: {url: 'ftp://u:hunter2@h'}").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
