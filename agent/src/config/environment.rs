//! `PATRONI_*` variables, as a tree to be put over the file's (config.md 6).

use std::collections::BTreeMap;

use super::node::{At, Entry, Node, Value};
use super::{Problem, fill, table, values, yaml};

/// How the text of a variable becomes a value.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Unreadable: unset.
    Integer,
    /// Unreadable: unset.
    Word,
    List,
    Map,
    /// Text if it contains `%(name)`, else a list (`log.format`).
    Format,
}

/// Variables without the prefix, by kind and section; a key is the rest of the variable's name in lower case.
const TABLE: &[(Kind, &str, &[&str], &[&str])] = &[
    (Kind::Text, "", &[], &["NAME", "SCOPE", "NAMESPACE", "THREAD_POOL_SIZE", "THREAD_STACK_SIZE"]),
    (Kind::Text, "LOG_", &["log"], &["TYPE", "LEVEL", "TRACEBACK_LEVEL", "DATEFORMAT", "DIR"]),
    (Kind::Format, "LOG_", &["log"], &["FORMAT"]),
    (Kind::Integer, "LOG_", &["log"], &["MAX_QUEUE_SIZE", "FILE_SIZE", "FILE_NUM", "MODE"]),
    (Kind::Map, "LOG_", &["log"], &["STATIC_FIELDS", "LOGGERS"]),
    (Kind::Word, "LOG_", &["log"], &["DEDUPLICATE_HEARTBEAT_LOGS"]),
    (
        Kind::Text,
        "RESTAPI_",
        &["restapi"],
        &[
            "LISTEN",
            "CONNECT_ADDRESS",
            "CERTFILE",
            "KEYFILE",
            "KEYFILE_PASSWORD",
            "CAFILE",
            "CIPHERS",
            "VERIFY_CLIENT",
            "SERVER_TOKENS",
        ],
    ),
    (Kind::Text, "RESTAPI_", &["restapi", "authentication"], &["USERNAME", "PASSWORD"]),
    (Kind::List, "RESTAPI_", &["restapi"], &["ALLOWLIST"]),
    (Kind::Word, "RESTAPI_", &["restapi"], &["ALLOWLIST_INCLUDE_MEMBERS"]),
    (Kind::Map, "RESTAPI_", &["restapi"], &["HTTP_EXTRA_HEADERS", "HTTPS_EXTRA_HEADERS"]),
    (Kind::Integer, "RESTAPI_", &["restapi"], &["REQUEST_QUEUE_SIZE"]),
    (Kind::Word, "CTL_", &["ctl"], &["INSECURE"]),
    (Kind::Text, "CTL_", &["ctl"], &["CACERT", "CERTFILE", "KEYFILE", "KEYFILE_PASSWORD"]),
    (Kind::Text, "CTL_", &["ctl", "authentication"], &["USERNAME", "PASSWORD"]),
    (
        Kind::Text,
        "POSTGRESQL_",
        &["postgresql"],
        &["LISTEN", "CONNECT_ADDRESS", "PROXY_ADDRESS", "DATA_DIR", "CONFIG_DIR", "PGPASS", "BIN_DIR"],
    ),
    (
        Kind::Text,
        "POSTGRESQL_BIN_",
        &["postgresql", "bin_name"],
        &["PG_CTL", "INITDB", "PG_CONTROLDATA", "PG_BASEBACKUP", "POSTGRES", "PG_ISREADY", "PG_REWIND"],
    ),
    (Kind::Text, "SUPERUSER_", &["postgresql", "authentication", "superuser"], CREDENTIALS),
    (Kind::Text, "REPLICATION_", &["postgresql", "authentication", "replication"], CREDENTIALS),
    (Kind::Text, "REWIND_", &["postgresql", "authentication", "rewind"], CREDENTIALS),
    (
        Kind::Text,
        "ETCD3_",
        &["etcd3"],
        &["HOST", "URL", "PROXY", "PROTOCOL", "SRV", "SRV_SUFFIX", "CACERT", "CERT", "KEY", "USERNAME", "PASSWORD"],
    ),
    (Kind::List, "ETCD3_", &["etcd3"], &["HOSTS"]),
    (Kind::Word, "ETCD3_", &["etcd3"], &["USE_PROXIES"]),
    (Kind::Integer, "ETCD3_", &["etcd3"], &["PORT"]),
    (Kind::Integer, "CITUS_", &["citus"], &["GROUP"]),
    (Kind::Text, "CITUS_", &["citus"], &["DATABASE"]),
    // Other stores: only that they are there counts (config.md 12).
    (Kind::Text, "ETCD_", &["etcd"], OTHER_STORE),
    (Kind::Text, "CONSUL_", &["consul"], OTHER_STORE),
    (Kind::Text, "ZOOKEEPER_", &["zookeeper"], OTHER_STORE),
    (Kind::Text, "EXHIBITOR_", &["exhibitor"], OTHER_STORE),
    (Kind::Text, "KUBERNETES_", &["kubernetes"], &["LABELS", "NAMESPACE", "SCOPE_LABEL", "USE_ENDPOINTS"]),
    (Kind::Text, "RAFT_", &["raft"], &["SELF_ADDR", "PARTNER_ADDRS", "DATA_DIR"]),
];

const OTHER_STORE: &[&str] = &["HOST", "HOSTS", "URL", "PROXY", "SRV"];

const CREDENTIALS: &[&str] = &[
    "USERNAME",
    "PASSWORD",
    "SSLMODE",
    "SSLCERT",
    "SSLKEY",
    "SSLPASSWORD",
    "SSLROOTCERT",
    "SSLCRL",
    "SSLCRLDIR",
    "GSSENCMODE",
    "CHANNEL_BINDING",
    "SSLNEGOTIATION",
];

/// Old names, which count when the new one is unset.
const OLD_NAMES: &[(&str, &str)] =
    &[("LOGLEVEL", "LOG_LEVEL"), ("LOGFORMAT", "LOG_FORMAT"), ("LOG_DATEFMT", "LOG_DATEFORMAT")];

/// What the variables say.
pub(super) struct Environment {
    /// Their values, as a tree to patch over the file's.
    pub(super) tree: Node,
    /// Names of the variables that were understood: children must not see them (they hold passwords).
    pub(super) used: Vec<String>,
    /// Variables that could not be read, and therefore count as unset.
    pub(super) warnings: Vec<Problem>,
    /// Secrets in files that cannot be read.
    pub(super) problems: Vec<Problem>,
}

/// Reads the variables. One that is set but empty counts as unset.
pub(super) fn read(variables: &BTreeMap<String, String>) -> Environment {
    let tree = Node::empty(At::whole("environment"));
    let mut found = Environment { tree, used: Vec::new(), warnings: Vec::new(), problems: Vec::new() };
    for (kind, prefix, section, keys) in TABLE {
        for key in *keys {
            let suffix = format!("{prefix}{key}");
            let old = OLD_NAMES.iter().find(|(_, new)| *new == suffix).map(|(old, _)| *old);
            let names = [Some(suffix.as_str()), old].into_iter().flatten().map(|name| format!("PATRONI_{name}"));
            for name in names {
                let Some(text) = variables.get(&name).filter(|text| !text.trim().is_empty()) else { continue };
                match value(*kind, text, &name) {
                    Ok(node) => {
                        found.tree.patch(&nested(section, &key.to_ascii_lowercase(), node));
                        found.used.push(name);
                        break;
                    }
                    Err(why) => found.warnings.push(Problem::general(&format!("{name} is not used: {why}"))),
                }
            }
            secret_file(section, key, &format!("PATRONI_{suffix}"), variables, &mut found);
        }
    }
    let etcd3 = |name: &&String| name.starts_with("PATRONI_ETCD3_");
    let alone = |name: &String| {
        matches!(name.as_str(), "PATRONI_ETCD3_USERNAME" | "PATRONI_ETCD3_PASSWORD" | "PATRONI_ETCD3_PASSWORD_FILE")
    };
    if found.used.iter().any(alone) && found.used.iter().filter(etcd3).all(alone) {
        found.warnings.push(Problem::general(
            "PATRONI_ETCD3_USERNAME and PATRONI_ETCD3_PASSWORD are not used: they count only when another PATRONI_ETCD3_* \
             variable is set too",
        ));
        if let Value::Map(entries) = &mut found.tree.value {
            entries.retain(|entry| entry.key != "etcd3");
        }
    }
    found
}

/// `PATRONI_..._PASSWORD_FILE` and the like, for a variable that is not set itself.
fn secret_file(
    section: &[&str],
    key: &str,
    variable: &str,
    variables: &BTreeMap<String, String>,
    found: &mut Environment,
) {
    let name = format!("{variable}_FILE");
    let key = key.to_ascii_lowercase();
    let path: Vec<&str> = section.iter().copied().chain([key.as_str()]).collect();
    let is_secret = table::find(&path.join(".")).is_some_and(|row| row.kind == table::Kind::Secret);
    let Some(file) = variables.get(&name).filter(|text| is_secret && !text.trim().is_empty()) else { return };
    if found.used.iter().any(|used| used == variable) {
        found.warnings.push(Problem::general(&format!("{name} is not used: {variable} is set too; keep one of them")));
        return;
    }
    match fill::secret_of(file) {
        Ok(text) => {
            found.tree.patch(&nested(section, &key, Node::text(&text, At::whole(&name))));
            found.used.push(name);
        }
        Err(what) => found.problems.push(Problem::at(&At::whole(&name), &path.join("."), what)),
    }
}

fn nested(section: &[&str], key: &str, node: Node) -> Node {
    let at = node.at.clone();
    let wrap = |key: &str, value: Node| Node {
        value: Value::Map(vec![Entry { key: key.to_owned(), at: at.clone(), value }]),
        raw: None,
        at: at.clone(),
    };
    section.iter().rev().fold(wrap(key, node), |inner, key| wrap(key, inner))
}

fn value(kind: Kind, text: &str, name: &str) -> Result<Node, String> {
    let at = At::whole(name);
    let of = |value: Value| Node { value, raw: Some(text.to_owned()), at: at.clone() };
    match kind {
        Kind::Text => Ok(Node::text(text, at)),
        Kind::Integer => {
            values::integer_text(text).map(|number| of(Value::Int(number))).ok_or_else(|| "not an integer".to_owned())
        }
        Kind::Word => values::word_text(text)
            .map(|on| of(Value::Bool(on)))
            .ok_or_else(|| "not one of on, true, yes, 1, off, false, no, 0".to_owned()),
        Kind::Format if text.contains("%(") => Ok(Node::text(text, at)),
        Kind::List | Kind::Format => {
            let text = text.trim();
            let bare = text.starts_with('-') || text.contains('[');
            let tree = inline(name, text, if bare { None } else { Some(('[', ']')) })?;
            let list = matches!(tree.value, Value::List(_));
            if list { Ok(tree) } else { Err(format!("{} where a list is needed", tree.kind())) }
        }
        Kind::Map => {
            let text = text.trim();
            let tree = inline(name, text, if text.starts_with('{') { None } else { Some(('{', '}')) })?;
            if tree.is_map() { Ok(tree) } else { Err(format!("{} where a mapping is needed", tree.kind())) }
        }
    }
}

fn inline(name: &str, text: &str, brackets: Option<(char, char)>) -> Result<Node, String> {
    let text = match brackets {
        Some((open, close)) => format!("{open}{text}{close}"),
        None => text.to_owned(),
    };
    yaml::parse(name, text.as_bytes()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(variables: &[(&str, &str)]) -> (serde_json::Value, Vec<String>) {
        let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let found = read(&variables);
        (found.tree.to_json(), found.warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn all_forms_of_a_list_are_the_same_list() {
        for text in [
            "10.0.0.21:2379,10.0.0.22:2379",
            "'10.0.0.21:2379','10.0.0.22:2379'",
            r#"["10.0.0.21:2379", "10.0.0.22:2379"]"#,
            "- 10.0.0.21:2379\n- 10.0.0.22:2379",
        ] {
            let want = serde_json::json!({"etcd3": {"hosts": ["10.0.0.21:2379", "10.0.0.22:2379"]}});
            assert_eq!(tree(&[("PATRONI_ETCD3_HOSTS", text)]), (want, vec![]), "{text}");
        }
    }

    #[test]
    fn mappings_words_and_integers_are_read() {
        let (json, warnings) = tree(&[
            ("PATRONI_RESTAPI_HTTP_EXTRA_HEADERS", "'X-Frame-Options': 'SAMEORIGIN', X-Test: a"),
            ("PATRONI_LOG_MODE", "0640"),
            ("PATRONI_CTL_INSECURE", "Yes"),
            ("PATRONI_LOGLEVEL", "DEBUG"),
            ("PATRONI_SUPERUSER_PASSWORD", "0123"),
            ("PATRONI_NAME", ""),
            ("PATRONI_HOSTS", "a,b"),
        ]);
        let want = serde_json::json!({
            "log": {"level": "DEBUG", "mode": 416},
            "restapi": {"http_extra_headers": {"X-Frame-Options": "SAMEORIGIN", "X-Test": "a"}},
            "ctl": {"insecure": true},
            "postgresql": {"authentication": {"superuser": {"password": "0123"}}},
        });
        assert_eq!((json, warnings), (want, vec![]));
    }

    #[test]
    fn an_unreadable_variable_is_unset_and_named() {
        let (json, warnings) = tree(&[("PATRONI_ETCD3_HOSTS", "[::1]:2379"), ("PATRONI_LOG_FILE_NUM", "many")]);
        assert_eq!(json, serde_json::json!({}));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn every_password_may_stand_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "0123\r\n").unwrap();
        let file = path.display().to_string();
        let names =
            ["SUPERUSER", "REPLICATION", "REWIND", "RESTAPI", "CTL", "ETCD3", "RESTAPI_KEYFILE", "CTL_KEYFILE"].iter();
        for name in names.clone().map(|role| format!("PATRONI_{role}_PASSWORD_FILE")) {
            let (json, warnings) = tree(&[(&name, &file), ("PATRONI_ETCD3_HOST", "a")]);
            assert!(json.to_string().contains(r#""0123""#) && warnings.is_empty(), "{name}: {json} {warnings:?}");
        }
        let both = [("PATRONI_CTL_PASSWORD_FILE", file.as_str()), ("PATRONI_CTL_PASSWORD", "x")];
        assert!(tree(&both).1[0].contains("is set too"));
        let variables = BTreeMap::from([("PATRONI_CTL_PASSWORD_FILE".to_owned(), "/nonexistent".to_owned())]);
        let problem = read(&variables).problems[0].to_string();
        assert!(
            problem.starts_with("PATRONI_CTL_PASSWORD_FILE: ctl.authentication.password: cannot read"),
            "{problem}"
        );
    }

    #[test]
    fn an_etcd_password_alone_does_not_count() {
        let (json, warnings) = tree(&[("PATRONI_ETCD3_USERNAME", "u"), ("PATRONI_ETCD3_PASSWORD", "p")]);
        assert_eq!((json, warnings.len()), (serde_json::json!({}), 1));
    }
}
