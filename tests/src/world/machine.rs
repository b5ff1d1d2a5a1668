//! What a machine begins with: its own pace, and its configuration.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use regent::layers::{Effective, Layers};
use regent::watchdog;
use regent_core::config::{Config, Remote, SyncMode, Tags};
use regent_pgctl::fake::Timings;
use regent_pgctl::settings::{Credentials, Programs, Scripts, Settings};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::clock::Gait;
use crate::rng::Rng;

/// What is a machine's own.
pub(super) struct Machine {
    pub(super) gait: Gait,
    pub(super) uptime: Duration,
    pub(super) seed: u64,
    pub(super) timings: Timings,
}

/// A configuration that is what it is, but for what the `config` key says of pause and of a remote to follow.
pub(super) struct Constant {
    effective: Effective,
    remembered: RefCell<Option<Value>>,
}

impl Constant {
    pub(super) fn of(effective: Effective) -> Constant {
        Constant { effective, remembered: RefCell::default() }
    }
}

impl Layers for Constant {
    fn effective(&self, dynamic: Option<&Value>) -> Result<Effective, String> {
        let mut effective = self.effective.clone();
        let Some(dynamic) = dynamic else { return Ok(effective) };
        effective.core.pause = dynamic["pause"] == json!(true);
        let host = dynamic["standby_cluster"]["host"].as_str().map(str::to_owned);
        effective.core.standby_cluster = host.map(|host| remote(&host));
        if effective.core.standby_cluster.is_some() {
            effective.core.synchronous_mode = SyncMode::Off;
        }
        Ok(effective)
    }

    fn restorable(&self) -> Value {
        self.remembered.borrow().clone().unwrap_or_else(|| self.first())
    }

    fn first(&self) -> Value {
        let core = &self.effective.core;
        let mut first = json!({"ttl": core.ttl.as_secs(), "loop_wait": core.loop_wait.as_secs()});
        if let Some(host) = core.standby_cluster.as_ref().and_then(|remote| remote.host.as_ref()) {
            first["standby_cluster"] = json!({"host": host});
        }
        first
    }

    fn remember(&self, dynamic: &Value) {
        *self.remembered.borrow_mut() = Some(dynamic.clone());
    }

    fn reload(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// No two machines are alike.
pub(super) fn draw_timings(rng: &mut Rng) -> Timings {
    let millis = Duration::from_millis;
    let slow_replication = rng.one_in(3);
    Timings {
        start: rng.between(millis(50), millis(900)),
        recovery: rng.between(millis(100), millis(4_000)),
        stop: rng.between(millis(20), millis(1_500)),
        immediate_stop: rng.between(millis(5), millis(300)),
        promote: rng.between(millis(30), millis(600)),
        checkpoint: rng.between(millis(10), millis(2_000)),
        clone: rng.between(millis(500), millis(6_000)),
        bootstrap: rng.between(millis(500), millis(4_000)),
        replication_delay: rng.between(millis(1), millis(if slow_replication { 400 } else { 10 })),
        ..Timings::default()
    }
}

/// What `patroni.yml` would make of it.
pub(super) fn effective(config: &Config, name: &str) -> Effective {
    Effective {
        core: config.clone(),
        postgres: settings(name),
        scope: "demo".into(),
        conn_url: conn_url(name),
        api_url: format!("http://{name}:8008/patroni"),
        watchdog: watchdog_of(config),
        proxy_url: None,
        tags: published_tags(&config.tags),
        noloadbalance: false,
    }
}

/// Every machine has one, and leads only with it.
pub(super) fn watchdog_of(config: &Config) -> watchdog::Settings {
    let (mode, device) = (watchdog::Mode::Required, watchdog::default_device().to_owned());
    watchdog::Settings { mode, device, timeout: config.ttl, loop_wait: config.loop_wait }
}

/// A twin of the watchdog's thread: it answers, and resets nothing.
pub(super) async fn watchdog_answers(
    mut orders: watch::Receiver<watchdog::Order>,
    state: watch::Sender<watchdog::State>,
    mut broken: watch::Receiver<Option<String>>,
) {
    loop {
        let (order, problem) = (Some(orders.borrow_and_update().clone()), broken.borrow_and_update().clone());
        state.send_replace(watchdog::State { order, active: None, problem });
        tokio::select! {
            biased;
            changed = orders.changed() => if changed.is_err() { return },
            changed = broken.changed() => if changed.is_err() { return },
        }
    }
}

/// The tags that say something, as a member key has them.
fn published_tags(tags: &Tags) -> Map<String, Value> {
    let mut published = Map::new();
    for (name, set) in [("nofailover", tags.nofailover), ("clonefrom", tags.clonefrom), ("nostream", tags.nostream)] {
        if set {
            published.insert(name.to_owned(), json!(true));
        }
    }
    if tags.failover_priority != Tags::default().failover_priority && !tags.nofailover {
        published.insert("failover_priority".to_owned(), json!(tags.failover_priority));
    }
    if let Some(upstream) = &tags.replicatefrom {
        published.insert("replicatefrom".to_owned(), json!(upstream.as_str()));
    }
    published
}

/// A server that can be followed.
pub(super) fn remote(host: &str) -> Remote {
    Remote { host: Some(host.to_owned()), port: 5432, ..Remote::default() }
}

pub(super) fn conn_url(name: &str) -> String {
    format!("postgres://{name}:5432/postgres")
}

fn settings(name: &str) -> Settings {
    Settings {
        scope: "demo".into(),
        name: name.into(),
        data_dir: "/data".into(),
        config_dir: "/data".into(),
        programs: Programs::default(),
        pgpass: "/pgpass".into(),
        listen_addresses: "*".into(),
        port: 5432,
        local_host: "localhost".into(),
        use_unix_socket: false,
        database: "postgres".into(),
        superuser: Credentials::default(),
        replication: Credentials::default(),
        rewind: None,
        parameters: BTreeMap::new(),
        pg_hba: None,
        pg_ident: None,
        bootstrap_pg_hba: Vec::new(),
        initdb_options: Vec::new(),
        basebackup_options: Vec::new(),
        rewind_options: Vec::new(),
        krbsrvname: None,
        config_base_name: "postgresql".to_owned(),
        post_bootstrap: None,
        recovery_conf: BTreeMap::new(),
        use_slots: true,
        synchronous: false,
        sync_names: None,
        custom_conf: None,
        standby_cluster: None,
        pg_ctl_timeout: 60,
        scripts: Scripts::default(),
    }
}
