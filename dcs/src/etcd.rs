//! The real etcd v3, over gRPC.
//!
//! ```text
//!   EtcdDcs ── read, grant, keep_alive, revoke ── hedged ──┐           ┌─ client of endpoint 1
//!      │                                                   ├─ pool ────┼─ client of endpoint 2
//!      ├────── write ──────────────── one at a time ───────┘   │       └─ client of endpoint 3
//!      └────── changed ────────────── watch, with a pulse   token, renewed ahead of time
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, CompareOp, DeleteOptions, Error, GetOptions, PutOptions, TxnOp};
use regent_core::units::{LeaseId, Revision};
use tokio::time::Instant;

use crate::keys::{self, BasePath, RawKey};
use crate::txn::{Change, Compare, Txn};
use crate::{Dcs, DcsError, Lease, Read, Write, Written};

mod auth;
mod failure;
mod pool;
mod tls;
mod watch;

pub use auth::Credentials;
pub use tls::TlsFiles;

use auth::Auth;
use pool::Pool;

/// Where etcd is, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdSettings {
    /// `http://host:port` or `https://host:port`, one per member. No others are looked for.
    pub endpoints: Vec<String>,
    /// First part of every key (config.md: `namespace`).
    pub namespace: String,
    /// Second part of every key (config.md: `scope`).
    pub scope: String,
    /// For etcd with authentication; harmless where it is not enabled.
    pub credentials: Option<Credentials>,
    /// For `https` endpoints.
    pub tls: TlsFiles,
}

/// Settings that cannot work, whatever etcd does.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The list is empty.
    #[error("no etcd endpoint is configured; name at least one in etcd3.hosts")]
    NoEndpoints,
    /// Not a usable URL.
    #[error("etcd endpoint {url:?} cannot be used: {why}")]
    Endpoint {
        /// As configured.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of certificates or keys cannot be read.
    #[error("cannot read {path}, which is configured for TLS with etcd", path = path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A CA file makes no sense.
    #[error("{path} holds no usable CA certificate for etcd: {why}", path = path.display())]
    Certificates {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A handle on etcd. Clones share everything: connections, the token, and which endpoint is the good one.
#[derive(Clone)]
pub struct EtcdDcs(Arc<Inner>);

struct Inner {
    base: BasePath,
    pool: Arc<Pool>,
}

impl EtcdDcs {
    /// Makes a handle; does not talk to etcd, so it neither waits for it nor fails because of it.
    ///
    /// Must be called within the tokio runtime that is to carry the connections, and that must outlive the handle.
    pub async fn connect(settings: EtcdSettings) -> Result<EtcdDcs, SettingsError> {
        let auth = Arc::new(Auth::new(settings.credentials.clone()));
        let pool = Arc::new(Pool::new(&settings, Arc::clone(&auth)).await?);
        if auth.wanted() {
            tokio::spawn(auth.keep_young(Arc::downgrade(&pool)));
        }
        Ok(EtcdDcs(Arc::new(Inner { base: BasePath::new(&settings.namespace, &settings.scope), pool })))
    }

    fn txn(&self, txn: &Txn) -> etcd_client::Txn {
        let key = |name: &str| self.0.base.key(name);
        let compare = |compare: &Compare| match compare {
            Compare::Absent(name) => etcd_client::Compare::create_revision(key(name), CompareOp::Equal, 0),
            Compare::Modified(name, seen) => etcd_client::Compare::mod_revision(key(name), CompareOp::Equal, seen.0),
            Compare::Value(name, value) => etcd_client::Compare::value(key(name), CompareOp::Equal, value.as_bytes()),
            Compare::Lease(name, lease) => etcd_client::Compare::lease(key(name), CompareOp::Equal, lease.0),
        };
        let change = |change: &Change| match change {
            Change::Put { key: name, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(key(name), value.as_bytes(), options)
            }
            Change::Delete(name) => TxnOp::delete(key(name), None),
            Change::DeleteAll => TxnOp::delete(self.0.base.prefix(), Some(DeleteOptions::new().with_prefix())),
        };
        etcd_client::Txn::new()
            .when(txn.compares.iter().map(compare).collect::<Vec<_>>())
            .and_then(txn.changes.iter().map(change).collect::<Vec<_>>())
    }
}

impl Dcs for EtcdDcs {
    async fn read(&self, within: Duration) -> Result<Read, DcsError> {
        let Inner { base, pool } = &*self.0;
        let call = |mut client: Client| {
            let prefix = base.prefix();
            async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }
        };
        let answer = pool.hedged(Instant::now() + within, call).await?;
        let revision = Revision(answer.header().map_or(0, |header| header.revision()));
        let raw = answer.kvs().iter().filter_map(|kv| {
            let lease = Some(LeaseId(kv.lease())).filter(|lease| lease.0 != 0);
            let name = base.relative(kv.key())?;
            Some(RawKey { name, value: kv.value(), lease, modified: Revision(kv.mod_revision()) })
        });
        Ok(keys::parse(revision, raw))
    }

    async fn grant(&self, ttl: Duration, within: Duration) -> Result<Lease, DcsError> {
        // Whole seconds, never fewer than asked. A hedge may leave a lease behind that nobody uses: it ends by itself.
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).saturating_add((ttl.subsec_nanos() > 0).into());
        let call = |mut client: Client| async move { client.lease_grant(seconds.max(1), None).await };
        let granted = self.0.pool.hedged(Instant::now() + within, call).await?;
        Ok(Lease { id: LeaseId(granted.id()), ttl: ttl_of(granted.ttl()) })
    }

    async fn keep_alive(&self, lease: LeaseId, within: Duration) -> Result<Duration, DcsError> {
        let call = |mut client: Client| async move {
            // Opening sends a first renewal and swallows the TTL in its answer; the second one's can be read.
            let (mut keeper, mut answers) = client.lease_keep_alive(lease.0).await?;
            keeper.keep_alive().await?;
            let answer = answers.message().await?;
            answer.ok_or_else(|| Error::WatchError("etcd closed the stream of renewals".to_owned()))
        };
        let answer = self.0.pool.hedged(Instant::now() + within, call).await?;
        if answer.ttl() <= 0 { Err(DcsError::LeaseGone) } else { Ok(ttl_of(answer.ttl())) }
    }

    async fn revoke(&self, lease: LeaseId, within: Duration) -> Result<(), DcsError> {
        let call = |mut client: Client| async move { client.lease_revoke(lease.0).await };
        match self.0.pool.hedged(Instant::now() + within, call).await {
            Ok(_) | Err(DcsError::LeaseGone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, write: Write, within: Duration) -> Result<Written, DcsError> {
        let txn = self.txn(&Txn::from(&write));
        let call = |mut client: Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        let answer = self.0.pool.once(Instant::now() + within, call).await?;
        let revision = Revision(answer.header().map_or(0, |header| header.revision()));
        Ok(if answer.succeeded() { Written::Done(revision) } else { Written::Refused })
    }

    async fn changed(&self, since: Revision) {
        watch::changed(&self.0.pool, self.0.base.prefix(), since).await;
    }
}

fn ttl_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
