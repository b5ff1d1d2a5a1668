//! The table of keys, and what is made from it: checks, the printed configuration, the sample, the document.

#![expect(clippy::unwrap_used, reason = "a test whose scene cannot be set has failed")]

mod document;
mod effects;
mod fuzz;
mod peer;
mod printed;
mod server;

use regent::config::{Effective, Finding, LocalConfig, Sources, check, effective};

const MINIMAL: &str = "
scope: demo
name: pg1
restapi: {listen: '127.0.0.1:8008', connect_address: '127.0.0.1:8008'}
etcd3: {hosts: '127.0.0.1:2379'}
bootstrap: {dcs: {}}
postgresql:
  {listen: '127.0.0.1:5432', connect_address: '127.0.0.1:5432', data_dir: /pg/data, authentication: {superuser: {username: postgres},
   replication: {username: r}}}
";

/// Where a text stands, so that messages name it `patroni.yml`.
struct File {
    dir: tempfile::TempDir,
}

impl File {
    fn new(text: &str) -> File {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("patroni.yml"), text).unwrap();
        File { dir }
    }

    fn sources(&self) -> Sources {
        Sources::new(Some(self.dir.path().join("patroni.yml")), [])
    }

    fn plain(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn load(text: &str) -> Result<(LocalConfig, Effective), String> {
    let file = File::new(text);
    let local = LocalConfig::load(&file.sources()).map_err(|errors| file.plain(&errors.to_string()))?;
    let dynamic = local.bootstrap_dynamic().map_err(|errors| file.plain(&errors.to_string()))?;
    let all = effective(&local, Some(&dynamic)).map_err(|errors| file.plain(&errors.to_string()))?;
    Ok((local, all))
}

/// Everything that is said of a file, a line each.
fn findings(text: &str) -> Vec<String> {
    let file = File::new(text);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found: Vec<Finding> = runtime.block_on(check(&file.sources())).0;
    found.iter().map(|finding| file.plain(&finding.to_string())).collect()
}

/// Sets one key of `MINIMAL`, by its path in the table; the value is YAML.
fn with(path: &str, value: &str) -> String {
    let mut tree = json(MINIMAL);
    put(&mut tree, &path.replace('*', "superuser"), json(&format!("v: {value}"))["v"].clone());
    tree.to_string()
}

/// Sets a key of a tree; null takes it away.
fn put(tree: &mut serde_json::Value, path: &str, value: serde_json::Value) {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let mut place = tree;
    for key in section.split('.').filter(|key| !key.is_empty()) {
        if !place[key].is_object() {
            place[key] = serde_json::json!({});
        }
        place = &mut place[key];
    }
    if value.is_null() {
        place.as_object_mut().unwrap().remove(name);
    } else {
        place[name] = value;
    }
}

fn json(yaml: &str) -> serde_json::Value {
    regent::config::parse_yaml("test", yaml.as_bytes()).unwrap().to_json()
}
