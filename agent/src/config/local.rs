//! What this node's own files and variables say (config.md 3).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regent_pgctl::catalog::Catalog;
use regent_pgctl::settings::Programs;
use rustls::SupportedCipherSuite;
use serde_json::Map;

use super::address::{self, Address};
use super::ciphers;
use super::etcd::{self, EtcdConfig};
use super::log::{self, LogConfig};
use super::node::Node;
use super::secret::Secret;
use super::section::{Report, Section};
use super::sources::Sources;
use super::{ConfigErrors, Problem, timing, values};
use crate::watchdog::{self, Mode};

/// The local configuration, read and checked. One that exists can be started with.
///
/// Its `Debug` shows no value that may be secret.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Everything as merged, for what depends on the dynamic configuration too.
    pub(super) tree: Node,
    /// Cluster name.
    pub scope: String,
    /// Member name.
    pub name: String,
    /// Where the cluster lives in etcd: `/service/demo`, without a slash at the end.
    pub store_path: String,
    /// `log`.
    pub log: LogConfig,
    /// `restapi`.
    pub restapi: RestConfig,
    /// `ctl`.
    pub ctl: CtlConfig,
    /// `etcd3`.
    pub etcd: EtcdConfig,
    /// `postgresql.data_dir`, absolute.
    pub data_dir: PathBuf,
    /// `watchdog`.
    pub watchdog: WatchdogConfig,
    /// `regent.guardian`, a key of our own: no leadership without a guardian.
    pub guardian: bool,
    /// The file has a `bootstrap` section whose method is supported: this node may create the cluster.
    pub may_bootstrap: bool,
    /// Environment variables that were read: children must not inherit them (they hold passwords).
    pub used_environment: Vec<String>,
    /// The installed server's parameters, once it was asked.
    pub(super) catalog: Option<Arc<Catalog>>,
    /// What to log once after the start, beside [`super::Effective::warnings`].
    pub warnings: Vec<Problem>,
}

/// User name and password of Basic authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basic {
    /// User name.
    pub username: String,
    /// Password.
    pub password: Secret,
}

/// `restapi`.
#[derive(Clone, Debug, PartialEq)]
pub struct RestConfig {
    /// Where to listen; an empty host or `*` is every address, dual-stack where possible.
    pub listen: Address,
    /// What other members and tools connect to: `host:port`.
    pub connect_address: String,
    /// Asked of callers that change something.
    pub authentication: Option<Basic>,
    /// TLS certificate chain.
    pub certfile: Option<String>,
    /// Suites that its `ciphers` leave; `None`: all there are.
    pub ciphers: Option<Vec<SupportedCipherSuite>>,
    /// Its key; `None`: inside `certfile`.
    pub keyfile: Option<String>,
    /// Password of the key.
    pub keyfile_password: Option<Secret>,
    /// Verifies client certificates.
    pub cafile: Option<String>,
    /// `none`, `optional`, `required`; lower case.
    pub verify_client: String,
    /// Who may change something; empty: everyone.
    pub allowlist: Vec<String>,
    /// The members' own addresses may too.
    pub allowlist_include_members: bool,
    /// Extra response headers.
    pub http_extra_headers: Vec<(String, String)>,
    /// Extra response headers with TLS, on top of the former.
    pub https_extra_headers: Vec<(String, String)>,
    /// `minimal`, `productonly`, `original`; lower case.
    pub server_tokens: String,
}

impl RestConfig {
    /// `https` when the API is served over TLS, else `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        let tls = self.certfile.is_some();
        if tls { "https" } else { "http" }
    }

    /// `api_url` of the member key.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("{}://{}/patroni", self.scheme(), self.connect_address)
    }
}

/// `ctl`: how the REST API of members is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CtlConfig {
    /// Do not verify certificates.
    pub insecure: bool,
    /// Verifies the servers' certificates; `restapi.cafile` unless set, else the system's store.
    pub cacert: Option<String>,
    /// Client certificate.
    pub certfile: Option<String>,
    /// Its key.
    pub keyfile: Option<String>,
    /// Password of the key.
    pub keyfile_password: Option<Secret>,
    /// `ctl.authentication`, else `restapi.authentication`.
    pub authentication: Option<Basic>,
}

/// `watchdog`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// `watchdog.mode`.
    pub mode: Mode,
    /// `watchdog.device`.
    pub device: PathBuf,
    /// `watchdog.safety_margin`; `None`: half of `ttl`.
    pub safety_margin: Option<Duration>,
}

impl LocalConfig {
    /// Reads files and variables.
    ///
    /// # Errors
    /// Everything that makes a start impossible, each with file, line, column and key.
    pub fn load(sources: &Sources) -> Result<LocalConfig, ConfigErrors> {
        let mut report = Report::default();
        let config = LocalConfig::read(sources, &mut report)?;
        if report.problems.is_empty() { Ok(config) } else { Err(ConfigErrors(report.problems)) }
    }

    /// Reads as much as can be read: with problems in the report, it is good for nothing but finding more of them.
    ///
    /// # Errors
    /// There is nothing to read.
    pub(super) fn read(sources: &Sources, report: &mut Report) -> Result<LocalConfig, ConfigErrors> {
        let merged = sources.merge()?;
        report.problems.extend(merged.problems);
        report.warnings.extend(merged.warnings);
        let mut config = LocalConfig::from_tree(merged.tree, report);
        config.used_environment = merged.used;
        Ok(config)
    }

    fn from_tree(tree: Node, report: &mut Report) -> LocalConfig {
        let root = Section::root(&tree);
        let scope = root.required("scope", report);
        let postgresql = root.child("postgresql", report);
        let name = if root.get("name").is_none() && postgresql.get("name").is_some() {
            postgresql.text("name", report)
        } else {
            root.required("name", report)
        };
        let namespace = root.text("namespace", report).unwrap_or_else(|| "service".to_owned());
        if let Some(citus) = root.get("citus") {
            report.problem(&citus.at, "citus", "section \"citus\" is not supported");
        }
        let log = log::read(&root, report);
        let restapi = restapi(&root, report);
        let ctl = ctl(&root, report);
        let etcd = etcd::read(&root, report);
        let data_dir = postgresql.required("data_dir", report).map(|path| absolute(&path));
        postgresql.required("listen", report);
        let watchdog = watchdog(&root, report);
        let guardian = guardian(&root.child("regent", report), report);
        let may_bootstrap = may_bootstrap(&root.child("bootstrap", report), report);
        let scope = scope.unwrap_or_default();
        let config = LocalConfig {
            store_path: store_path(&namespace, &scope),
            scope,
            name: name.unwrap_or_default(),
            log,
            restapi,
            ctl,
            etcd: etcd.unwrap_or_else(|| EtcdConfig::of_endpoint(String::new())),
            data_dir: data_dir.unwrap_or_default(),
            watchdog,
            guardian,
            may_bootstrap,
            used_environment: Vec::new(),
            catalog: None,
            warnings: report.warnings.clone(),
            tree,
        };
        // What depends on the dynamic side too is tried without one, so that a start tells everything at once.
        if let Err(ConfigErrors(problems)) = super::effective(&config, None) {
            for problem in problems {
                if !report.problems.contains(&problem) {
                    report.problems.push(problem);
                }
            }
        }
        config
    }

    /// What the member that creates the cluster writes to `config`: `bootstrap.dcs` as written, unknown keys and order
    /// kept, with the timings that are in it adjusted (config.md 1.3).
    ///
    /// # Errors
    /// A timing that is no number.
    pub fn bootstrap_dynamic(&self) -> Result<serde_json::Value, ConfigErrors> {
        let Some(dcs) = self.tree.path(&["bootstrap", "dcs"]).filter(|dcs| dcs.is_map()) else {
            return Ok(serde_json::Value::Object(Map::new()));
        };
        let mut report = Report::default();
        let timings = timing::read(Some(dcs), &mut report);
        if !report.problems.is_empty() {
            let below = |problem: Problem| Problem { key: format!("bootstrap.dcs.{}", problem.key), ..problem };
            return Err(ConfigErrors(report.problems.into_iter().map(below).collect()));
        }
        let mut json = dcs.to_json();
        let adjusted =
            [("ttl", timings.ttl), ("loop_wait", timings.loop_wait), ("retry_timeout", timings.retry_timeout)];
        for (key, seconds) in adjusted {
            if let Some(value) = json.get_mut(key).filter(|value| !value.is_null()) {
                *value = seconds.into();
            }
        }
        Ok(json)
    }

    /// What differs from `newer` only in keys that need a restart of the agent (config.md 3, column A): named so that a
    /// reload can say that they have no effect until then.
    #[must_use]
    pub fn needs_restart_for(&self, newer: &LocalConfig) -> Vec<&'static str> {
        let mut changed = Vec::new();
        let mut note = |key, differs: bool| {
            if differs {
                changed.push(key);
            }
        };
        note("scope or namespace", self.store_path != newer.store_path);
        note("name", self.name != newer.name);
        note("postgresql.data_dir", self.data_dir != newer.data_dir);
        note("regent.guardian", self.guardian != newer.guardian);
        let places = |config: &LocalConfig| EtcdConfig { username: None, password: None, ..config.etcd.clone() };
        note("etcd3", places(self) != places(newer));
        changed
    }

    /// Takes over what the server said to an earlier reading: the programs stay the same until the agent is restarted.
    #[must_use]
    pub fn with_catalog_of(self, earlier: &LocalConfig) -> LocalConfig {
        LocalConfig { catalog: earlier.catalog.clone(), ..self }
    }

    /// `postgresql.bin_dir`, absolute, and `postgresql.bin_name`.
    pub(super) fn programs(&self) -> Programs {
        let written = self.tree.path(&["postgresql", "bin_dir"]).and_then(Node::written);
        let dir = written.filter(|path| !path.is_empty()).map(|path| absolute(&path));
        let names = self.tree.path(&["postgresql", "bin_name"]).map(Node::entries).unwrap_or_default().iter();
        let names = names.filter_map(|entry| Some((entry.key.clone(), entry.value.written()?)));
        Programs { dir, names: names.filter(|(_, name)| !name.is_empty()).collect() }
    }

    /// Whether nothing changed (`No local configuration items changed.`).
    #[must_use]
    pub fn is_same_as(&self, other: &LocalConfig) -> bool {
        self.tree.to_json() == other.tree.to_json()
    }
}

/// `/namespace/scope` with runs of slashes reduced to one (config.md 2.5).
pub(crate) fn store_path(namespace: &str, scope: &str) -> String {
    let parts = namespace.split('/').chain([scope]).filter(|part| !part.is_empty());
    parts.fold(String::new(), |path, part| format!("{path}/{part}"))
}

/// A relative path counts from the working directory, `~` is not expanded (as the peer).
pub(super) fn absolute(path: &str) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| Path::new(path).to_owned())
}

/// Whether this node may create the cluster.
fn may_bootstrap(bootstrap: &Section<'_>, report: &mut Report) -> bool {
    if let Some(users) = bootstrap.get("users").filter(|users| users.is_truthy()) {
        let what = "User creation is not be supported starting from v4.0.0. Please use \"bootstrap.post_bootstrap\" script \
                    to create users.";
        report.warn(&users.at, "bootstrap.users", what);
    }
    bootstrap.is_present()
}

fn watchdog(root: &Section<'_>, report: &mut Report) -> WatchdogConfig {
    let watchdog = root.child("watchdog", report);
    let mode = watchdog.get("mode").map_or(Mode::Automatic, |node| {
        node.written().as_deref().and_then(watchdog::mode).unwrap_or_else(|| {
            report.warn(&node.at, "watchdog.mode", "must be off, automatic or required; off applies");
            Mode::Off
        })
    });
    let margin = match watchdog.get("safety_margin") {
        Some(node) if values::integer(node) == Some(-1) => None,
        Some(_) | None => Some(watchdog.number("safety_margin", 0, report).unwrap_or(5)),
    };
    WatchdogConfig {
        mode,
        device: watchdog.text("device", report).map_or_else(|| watchdog::default_device().to_owned(), PathBuf::from),
        safety_margin: margin.map(Duration::from_secs),
    }
}

/// Off only where that is what was written: a misspelt word must not cost the fence.
fn guardian(regent: &Section<'_>, report: &mut Report) -> bool {
    let Some(node) = regent.get("guardian") else { return true };
    values::word(node).unwrap_or_else(|| {
        report.warn(&node.at, "regent.guardian", "must be on or off; on applies");
        true
    })
}

fn basic(section: &Section<'_>, report: &mut Report) -> Option<Basic> {
    let authentication = section.child("authentication", report);
    let (username, password) = (authentication.text("username", report), authentication.text("password", report));
    match (username, password) {
        (Some(username), Some(password)) => Some(Basic { username, password: Secret::new(password) }),
        (None, None) => {
            // The old form.
            let auth = section.text("auth", report)?;
            let (username, password) = auth.split_once(':')?;
            Some(Basic { username: username.to_owned(), password: Secret::new(password.to_owned()) })
        }
        (Some(_), None) | (None, Some(_)) => {
            let (at, key) = (authentication.at().cloned(), section.path_of("authentication"));
            let what = "needs both username and password".to_owned();
            report.problems.push(Problem { at, key, what });
            None
        }
    }
}

fn restapi(root: &Section<'_>, report: &mut Report) -> RestConfig {
    let rest = root.child("restapi", report);
    let listen = rest.required("listen", report);
    let listen = listen.and_then(|text| match address::parse(&text, None) {
        Ok(address) => Some(address),
        Err(_) => {
            let what = format!(
                "Invalid \"restapi\" config: expected <HOST>:<PORT> for \"listen\", but got \"{text}\" (host * means all)"
            );
            let at = rest.get("listen").map(|node| node.at.clone());
            report.problems.push(Problem { at, key: rest.path_of("listen"), what });
            None
        }
    });
    let port = listen.as_ref().map(|listen| listen.port);
    let connect = rest.text("connect_address", report).and_then(|text| match address::parse(&text, port) {
        Ok(address) => Some(address.to_string()),
        Err(what) => {
            let at = rest.get("connect_address").map(|node| node.at.clone());
            report.problems.push(Problem { at, key: rest.path_of("connect_address"), what });
            None
        }
    });
    RestConfig {
        connect_address: connect.or_else(|| listen.as_ref().map(ToString::to_string)).unwrap_or_default(),
        authentication: basic(&rest, report),
        certfile: rest.text("certfile", report),
        ciphers: ciphers::read(&rest, report),
        keyfile: rest.text("keyfile", report),
        keyfile_password: rest.text("keyfile_password", report).map(Secret::new),
        cafile: rest.text("cafile", report),
        verify_client: rest.text("verify_client", report).map_or("none".to_owned(), |text| text.to_ascii_lowercase()),
        allowlist: texts(&rest, "allowlist", report),
        allowlist_include_members: rest.truthy("allowlist_include_members"),
        http_extra_headers: headers(&rest, "http_extra_headers", report),
        https_extra_headers: headers(&rest, "https_extra_headers", report),
        server_tokens: rest
            .text("server_tokens", report)
            .map_or("original".to_owned(), |text| text.to_ascii_lowercase()),
        listen: listen.unwrap_or(Address { host: String::new(), port: 0 }),
    }
}

fn texts(section: &Section<'_>, key: &str, report: &mut Report) -> Vec<String> {
    let Some(node) = section.get(key) else { return Vec::new() };
    let super::node::Value::List(items) = &node.value else {
        report.problem(&node.at, &section.path_of(key), format!("this is {}, but must be a list", node.kind()));
        return Vec::new();
    };
    items.iter().filter_map(Node::written).collect()
}

fn headers(section: &Section<'_>, key: &str, report: &mut Report) -> Vec<(String, String)> {
    let headers = section.child(key, report);
    let entries = headers.node().map(Node::entries).unwrap_or_default();
    entries.iter().filter_map(|entry| Some((entry.key.clone(), entry.value.written()?))).collect()
}

fn ctl(root: &Section<'_>, report: &mut Report) -> CtlConfig {
    let (ctl, rest) = (root.child("ctl", report), root.child("restapi", &mut Report::default()));
    CtlConfig {
        insecure: ctl.truthy("insecure"),
        cacert: ctl.text("cacert", report).or_else(|| rest.text("cafile", &mut Report::default())),
        certfile: ctl.text("certfile", report),
        keyfile: ctl.text("keyfile", report),
        keyfile_password: ctl.text("keyfile_password", report).map(Secret::new),
        authentication: basic(&ctl, report).or_else(|| basic(&rest, &mut Report::default())),
    }
}

/// What the control program needs of the same files; nothing else in them is checked (cli.md 1.1).
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Cluster name, if there is one.
    pub scope: Option<String>,
    /// `namespace`.
    pub namespace: String,
    /// `ctl`.
    pub ctl: CtlConfig,
    /// `etcd3`.
    pub etcd: EtcdConfig,
}

impl ControlConfig {
    /// Reads files and variables; `store` replaces every store section, and the namespace if it names one.
    ///
    /// # Errors
    /// What is no YAML, or no way to etcd.
    pub fn load(sources: &Sources, store: Option<(EtcdConfig, Option<String>)>) -> Result<ControlConfig, ConfigErrors> {
        let tree = match sources.merge() {
            Ok(merged) => {
                // Passwords of PostgreSQL are none of its business.
                let ours =
                    |problem: &Problem| !problem.key.starts_with("postgresql") && !problem.key.starts_with("bootstrap");
                let problems: Vec<_> = merged.problems.into_iter().filter(ours).collect();
                if problems.is_empty() { merged.tree } else { return Err(ConfigErrors(problems)) }
            }
            // With a store given, nothing else is needed.
            Err(_) if store.is_some() && !sources.has_file() => Node::empty(super::At::whole("environment")),
            Err(errors) => return Err(errors),
        };
        let mut report = Report::default();
        let root = Section::root(&tree);
        let (etcd, url_namespace) = match store {
            Some((etcd, namespace)) => (Some(etcd), namespace),
            None => (etcd::read(&root, &mut report), None),
        };
        let config = ControlConfig {
            scope: root.text("scope", &mut report),
            namespace: url_namespace
                .or_else(|| root.text("namespace", &mut report))
                .unwrap_or_else(|| "service".to_owned()),
            ctl: ctl(&root, &mut Report::default()),
            etcd: etcd.ok_or_else(|| ConfigErrors(std::mem::take(&mut report.problems)))?,
        };
        if report.problems.is_empty() { Ok(config) } else { Err(ConfigErrors(report.problems)) }
    }
}
