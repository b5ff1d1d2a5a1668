//! What a rig is made of, and the configuration files of its parts.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use super::Trouble;
use super::net::{Host, NETWORK};

/// The name of every rig's cluster.
pub const SCOPE: &str = "demo";
/// Where its keys are.
pub const BASE: &str = "/service/demo";
/// The superuser.
pub const SUPERUSER: &str = "postgres";
/// The superuser's password, of characters that are awkward somewhere. In every password is [`super::canary::CANARY`].
pub const PASSWORD: &str = "Super:pass\\word-canary-3fe9";
/// The password of the replication role.
pub const REPLICATION_PASSWORD: &str = "canary-3fe9-replication";
/// The password of the role that pg_rewind uses.
pub const REWIND_PASSWORD: &str = "canary-3fe9-rewind";

/// The shape of a rig and the timing of its agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many nodes.
    pub nodes: usize,
    /// How many etcd members.
    pub etcd: usize,
    /// `failsafe_mode`
    pub failsafe: bool,
    /// `ttl`, in seconds.
    pub ttl: u32,
    /// `loop_wait`, in seconds.
    pub loop_wait: u32,
    /// `retry_timeout`, in seconds.
    pub retry_timeout: u32,
    /// Whether HAProxy stands before the nodes.
    pub haproxy: bool,
    /// After how many failed checks in a row, one a second, HAProxy takes a node for dead and closes its sessions.
    pub haproxy_fall: u32,
    /// Whether nodes and etcd members have a network namespace each; [`super::net::leave`] comes first.
    pub namespaces: bool,
    /// `synchronous_mode`.
    pub synchronous: bool,
    /// Whether the agents are Patroni's, from the program that `PEER_PATRONI` names.
    pub peer: bool,
}

impl Default for Settings {
    /// Three nodes on one etcd, faster than the peer's floor but within its rule `loop_wait + 2 * retry_timeout <= ttl`.
    fn default() -> Self {
        Settings {
            nodes: 3,
            etcd: 1,
            ttl: 10,
            loop_wait: 3,
            retry_timeout: 3,
            haproxy: true,
            haproxy_fall: 2,
            namespaces: false,
            failsafe: false,
            synchronous: false,
            peer: false,
        }
    }
}

impl Settings {
    /// As many places for programs.
    pub(super) fn hosts(&self, count: usize) -> Result<Vec<Host>, Trouble> {
        (0..count).map(|_| if self.namespaces { Host::wired() } else { Ok(Host::loopback()) }).collect()
    }
}

/// The ports of one node.
#[derive(Clone, Copy, Debug)]
pub struct NodePorts {
    /// REST API.
    pub rest: u16,
    /// PostgreSQL.
    pub postgres: u16,
}

/// Where a node is.
#[derive(Clone, Debug)]
pub struct NodeAddress {
    /// The node's name.
    pub name: String,
    /// Its address.
    pub host: Ipv4Addr,
    /// Its ports.
    pub ports: NodePorts,
}

/// Writes a node's `patroni.yml` in the form the field writes it.
#[must_use]
pub fn patroni_yml(node: &NodeAddress, dir: &Path, etcd: &[SocketAddr], pg_bin: &Path, s: &Settings) -> String {
    let mut hosts = String::new();
    for member in etcd {
        // Writing to a String cannot fail.
        let _ = write!(hosts, "\n    - {member}");
    }
    let NodeAddress { name, host, ports: NodePorts { rest, postgres } } = node;
    let Settings { ttl, loop_wait, retry_timeout, failsafe, synchronous, .. } = s;
    let (dir, pg_bin) = (dir.display(), pg_bin.display());
    format!(
        r#"scope: {SCOPE}
namespace: /service/
name: {name}

restapi:
  listen: {host}:{rest}
  connect_address: {host}:{rest}

etcd3:
  hosts:{hosts}

bootstrap:
  dcs:
    ttl: {ttl}
    loop_wait: {loop_wait}
    retry_timeout: {retry_timeout}
    maximum_lag_on_failover: 1048576
    failsafe_mode: {failsafe}
    synchronous_mode: {synchronous}
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        wal_level: replica
        hot_standby: "on"
        max_connections: 60
        max_wal_senders: 10
        max_replication_slots: 10
        wal_log_hints: "on"
        wal_keep_size: 64MB
  initdb:
    - encoding: UTF8
    - data-checksums

postgresql:
  listen: {host}:{postgres}
  connect_address: {host}:{postgres}
  data_dir: {dir}/data
  bin_dir: {pg_bin}
  pgpass: {dir}/pgpass
  authentication:
    superuser:
      username: {SUPERUSER}
      password: '{PASSWORD}'
    replication:
      username: replicator
      password: '{REPLICATION_PASSWORD}'
    rewind:
      username: rewinder
      password: '{REWIND_PASSWORD}'
  parameters:
    unix_socket_directories: '{dir}'
    shared_buffers: 32MB
    logging_collector: 'on'
    log_directory: '{dir}'
    log_filename: postgresql.log
    log_line_prefix: '%m [%p] %q%u@%d/%a '
  pg_hba:
    - local all all scram-sha-256
    - host all all 127.0.0.1/32 scram-sha-256
    - host replication replicator 127.0.0.1/32 scram-sha-256
    - host all all {NETWORK} scram-sha-256
    - host replication replicator {NETWORK} scram-sha-256

tags:
  nofailover: false
  noloadbalance: false
  clonefrom: false
  nosync: false
"#
    )
}

/// The ports of HAProxy.
#[derive(Clone, Copy, Debug)]
pub struct ProxyPorts {
    /// To the primary, found by `option httpchk GET /primary`.
    pub http_check: u16,
    /// To the primary, found by a raw `GET /leader HTTP/1.0` without a Host header.
    pub tcp_check: u16,
    /// To the standbys, `GET /replica`.
    pub standbys: u16,
}

/// Writes `haproxy.cfg` with the check forms of the field.
#[must_use]
pub fn haproxy_cfg(ports: ProxyPorts, fall: u32, nodes: &[NodeAddress]) -> String {
    let mut servers = String::new();
    for NodeAddress { name, host, ports: NodePorts { rest, postgres } } in nodes {
        let _ = write!(servers, "\n    server {name} {host}:{postgres} maxconn 100 check port {rest}");
    }
    let ProxyPorts { http_check, tcp_check, standbys } = ports;
    format!(
        r"global
    maxconn 400

defaults
    mode tcp
    # Who connects to a server that is gone, and not yet known to be, waits between retries for as long as `timeout connect`
    # (a second at the most), and is sent to another server only with `redispatch`.
    retries 6
    option redispatch 1
    timeout client 30m
    timeout connect 300ms
    timeout server 30m
    timeout check 2s
    default-server inter 1s fall {fall} rise 1 on-marked-down shutdown-sessions

listen primary_by_http
    bind 127.0.0.1:{http_check}
    option httpchk GET /primary
    http-check expect status 200{servers}

listen primary_by_tcp
    bind 127.0.0.1:{tcp_check}
    option tcp-check
    tcp-check send GET\ /leader\ HTTP/1.0\r\n\r\n
    tcp-check expect string 200\ OK{servers}

listen standbys
    bind 127.0.0.1:{standbys}
    balance roundrobin
    option httpchk GET /replica
    http-check expect status 200{servers}
"
    )
}
