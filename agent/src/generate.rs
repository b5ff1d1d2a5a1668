//! `--generate-config`: a configuration for a server that runs already, read from the server itself (config.md 9).

use std::path::Path;
use std::time::Duration;

use regent_pgctl::settings::Credentials;
use regent_pgctl::tls;
use serde_json::{Map, Value, json};
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};

use crate::config::is_controlled;
use crate::ctl::to_yaml;

/// To connect, and for each question.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a person must fill in.
const FIXME: &str = "#FIXME";
/// Parameters that hold for one member: commands and files of its machine.
const LOCAL: &[&str] = &[
    "archive_cleanup_command",
    "archive_command",
    "recovery_end_command",
    "restore_command",
    "ssl_passphrase_command",
];
/// Parameters that the agent sets by itself, or that say where the files are.
const OWN: &[&str] = &[
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "in_hot_standby",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_target_timeline",
    "synchronous_standby_names",
    "transaction_read_only",
];

/// The file for the server that `dsn` (a connection string or URI of libpq) leads to; what it leaves out comes from the `PG*`
/// variables. `ask` is called for the password when the server wants one that nobody gave.
///
/// # Errors
/// What cannot be reached or read, for people.
pub async fn config(
    dsn: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
    ask: impl AsyncFnOnce() -> Result<String, String>,
) -> Result<String, String> {
    let mut config =
        dsn.unwrap_or("").parse::<Config>().map_err(|error| format!("--dsn: {}", crate::ctl::one_line(&error)))?;
    complete(&mut config, &variable)?;
    let client = match connect(&config).await {
        Err(error) if wants_password(&error) && config.get_password().is_none() => {
            config.password(ask().await?);
            connect(&config).await
        }
        other => other,
    };
    let client = client.map_err(|error| match error {
        Some(error) => format!("cannot connect to PostgreSQL: {}", crate::ctl::one_line(&error)),
        None => format!("PostgreSQL does not answer within {}s", PATIENCE.as_secs()),
    })?;
    let found = tokio::time::timeout(PATIENCE, Server::read(&client)).await;
    let server = found.map_err(|_| "PostgreSQL stopped answering".to_owned())??;
    Ok(document(&server, &config))
}

fn complete(config: &mut Config, variable: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
    if config.get_hosts().is_empty() {
        config.host(variable("PGHOST").unwrap_or_else(|| "/var/run/postgresql".to_owned()));
    }
    if config.get_ports().is_empty() {
        let port = variable("PGPORT").unwrap_or_else(|| "5432".to_owned());
        config.port(port.parse().map_err(|_| format!("PGPORT={port} is no port"))?);
    }
    if config.get_user().is_none() {
        let me = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
        config.user(variable("PGUSER").or_else(me).unwrap_or_else(|| "postgres".to_owned()));
    }
    if config.get_dbname().is_none() {
        config.dbname(variable("PGDATABASE").unwrap_or_else(|| "postgres".to_owned()));
    }
    if let (None, Some(password)) = (config.get_password(), variable("PGPASSWORD")) {
        config.password(password);
    }
    config.application_name("Regent").connect_timeout(PATIENCE);
    Ok(())
}

/// `None`: no answer in time.
async fn connect(config: &Config) -> Result<Client, Option<tokio_postgres::Error>> {
    let mut config = config.clone();
    // Of the default credentials nothing can be wrong.
    let Ok((mode, connector)) = tls::connector(&Credentials::default()) else { return Err(None) };
    if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_))) {
        config.ssl_mode(mode);
    }
    let connecting = tokio::time::timeout(PATIENCE, config.connect(connector)).await;
    let (client, connection) = connecting.map_err(|_| None)?.map_err(Some)?;
    tokio::spawn(connection);
    Ok(client)
}

fn wants_password(error: &Option<tokio_postgres::Error>) -> bool {
    error.as_ref().is_some_and(|error| {
        error.code() == Some(&SqlState::INVALID_PASSWORD) || error.to_string().contains("password missing")
    })
}

/// What the running server says of itself.
#[derive(Debug, Default)]
struct Server {
    /// Every setting, with units.
    settings: Map<String, Value>,
    /// Names of those that somebody set.
    set: Vec<String>,
    hba: Vec<String>,
    ident: Vec<String>,
    bin_dir: Option<String>,
}

impl Server {
    async fn read(client: &Client) -> Result<Server, String> {
        let text =
            |error: tokio_postgres::Error| format!("PostgreSQL cannot be read: {}", crate::ctl::one_line(&error));
        // Not among the settings that are listed.
        let row = client.query_one("select current_setting('is_superuser')", &[]).await.map_err(text)?;
        if row.get::<_, String>(0) != "on" {
            return Err("The provided user does not have superuser privilege".to_owned());
        }
        let rows = client
            .query(
                "select name, current_setting(name), source in ('configuration file', 'command line', \
                 'environment variable') and context <> 'internal' from pg_settings order by 1",
                &[],
            )
            .await
            .map_err(text)?;
        let mut server = Server::default();
        for row in rows {
            let name: String = row.get(0);
            if row.get(2) {
                server.set.push(name.clone());
            }
            server.settings.insert(name, Value::String(row.get(1)));
        }
        // What is written, where the server shows that it has no effect while archive_mode is off.
        let row = client
            .query_opt(
                "select setting from pg_file_settings where name = 'archive_command' order by seqno desc limit 1",
                &[],
            )
            .await
            .map_err(text)?;
        if let Some(command) = row.and_then(|row| row.get::<_, Option<String>>(0)) {
            server.settings.insert("archive_command".to_owned(), command.into());
        }
        // Asked from the server: its files may not be ours to read.
        for (file, lines) in [("hba_file", &mut server.hba), ("ident_file", &mut server.ident)] {
            let row = client
                .query_one("select pg_read_file(setting) from pg_settings where name = $1", &[&file])
                .await
                .map_err(text)?;
            let read: String = row.get(0);
            let plain = read.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.extend(plain.map(str::to_owned));
        }
        let row = client.query_one("select pg_read_file('postmaster.pid')", &[]).await.map_err(text)?;
        let pid = row.get::<_, String>(0).lines().next().unwrap_or("").trim().to_owned();
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let bin_dir = program.as_deref().and_then(Path::parent).map(|dir| dir.display().to_string());
        server.bin_dir = bin_dir.filter(|dir| Path::new(dir).join("pg_ctl").exists());
        Ok(server)
    }

    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).and_then(Value::as_str).unwrap_or("")
    }
}

/// Whether it is not for the file. A cluster with rewinds keeps some log (config.md 5), PostgreSQL by itself none.
fn is_own(name: &str, value: &Value) -> bool {
    OWN.contains(&name) || name == "wal_keep_size" && value == "0"
}

fn document(server: &Server, config: &Config) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    let scope = Some(server.setting("cluster_name")).filter(|name| !name.is_empty()).unwrap_or(FIXME);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let port = server.setting("port");
    let addresses: Vec<&str> = server.setting("listen_addresses").split(',').map(str::trim).collect();
    // One that other members can reach.
    let everybody = |address: &&&str| {
        !["*", "", "localhost", "::"].contains(*address)
            && !address.starts_with("127.")
            && !["0.0.0.0", "::1"].contains(*address)
    };
    let own = addresses.iter().find(everybody).copied().unwrap_or(FIXME);
    let data_dir = server.setting("data_directory");

    let (mut dynamic, mut local) = (Map::new(), Map::new());
    for (name, value) in &server.settings {
        let set = server.set.contains(name);
        if LOCAL.contains(&name.as_str()) {
            if set {
                local.insert(name.clone(), value.clone());
            }
        } else if (set || is_controlled(name)) && !is_own(name, value) {
            dynamic.insert(name.clone(), value.clone());
        }
    }
    let files = Path::new(server.setting("config_file")).parent().unwrap_or(Path::new(data_dir)).display().to_string();
    let mut postgresql = json!({
        "authentication": {
            "replication": {"username": FIXME, "password": FIXME},
            "superuser": {
                "username": config.get_user().unwrap_or("postgres"),
                "password": config.get_password().map_or_else(|| FIXME.to_owned(), text),
            },
        },
        "bin_dir": server.bin_dir.clone().unwrap_or_default(),
        "connect_address": format!("{own}:{port}"),
        "data_dir": data_dir,
        "listen": format!("{}:{port}", server.setting("listen_addresses").replace(' ', "")),
    });
    let mut put = |key: &str, value: Value| {
        if let Some(map) = postgresql.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
    };
    if files != data_dir {
        put("config_dir", files.clone().into());
    }
    for (key, file, lines) in [("pg_hba", "hba_file", &server.hba), ("pg_ident", "ident_file", &server.ident)] {
        let place = server.setting(file);
        if Path::new(place) != Path::new(&files).join(format!("{key}.conf")) {
            local.insert(file.to_owned(), place.into());
        } else if !lines.is_empty() {
            put(key, lines.clone().into());
        }
    }
    if !local.is_empty() {
        put("parameters", Value::Object(local));
    }
    let parts = [
        json!({"scope": scope}),
        json!({"name": host.unwrap_or_else(|| FIXME.to_owned())}),
        json!({"restapi": {"listen": "0.0.0.0:8008", "connect_address": format!("{own}:8008")}}),
        json!({"etcd3": {"hosts": FIXME}}),
        json!({"bootstrap": {"dcs": {
            "ttl": 30, "loop_wait": 10, "retry_timeout": 10,
            "postgresql": {"parameters": dynamic, "use_pg_rewind": true, "use_slots": true},
        }}}),
        json!({"postgresql": postgresql}),
    ];
    let parts: Vec<_> = parts.iter().map(to_yaml).collect();
    format!(
        "# Made by regent --generate-config from a running server. Write '#FIXME' anew; then: regent --validate-config FILE\n{}",
        parts.join("\n").replace("\n\nname", "\nname")
    )
}
