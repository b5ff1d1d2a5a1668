//! What etcd was told, as it came: who led when, and what was promised. From one watch past all proxies, so that nothing between
//! two looks is missed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, EventType, GetOptions, WatchOptions};
use regent_tests::rig::Trouble;
use regent_tests::rig::settings::BASE;
use tokio::time::timeout;

use crate::check::{Breach, Finding};
use crate::history::{Clock, Moment};

/// A key's new value; `None`: it was removed, or its lease ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When we were told.
    pub at: Moment,
    /// Below the cluster's prefix.
    pub key: String,
    /// Its value.
    pub value: Option<String>,
}

/// How long etcd may be silent before it is asked anew.
const PATIENCE: Duration = Duration::from_secs(2);
/// The keys that are kept.
const KEPT: [&str; 2] = ["leader", "regent/promise"];

/// A watch on a thread of its own; ends when dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    changes: Arc<Mutex<Vec<Change>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(endpoints: Vec<SocketAddr>, clock: Clock) -> Result<Watch, Trouble> {
        let (stop, changes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stopped, kept) = (Arc::clone(&stop), Arc::clone(&changes));
        let work = move || {
            runtime.block_on(async {
                while !stopped.load(Ordering::SeqCst) {
                    for endpoint in &endpoints {
                        // etcd is killed now and then: whoever answers next is asked.
                        let _ = follow(*endpoint, clock, &stopped, &kept).await;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        };
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(work)?;
        Ok(Watch { stop, changes, thread: Some(thread) })
    }

    /// All changes so far, in order.
    #[must_use]
    pub fn so_far(&self) -> Vec<Change> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn follow(
    at: SocketAddr,
    clock: Clock,
    stop: &AtomicBool,
    kept: &Mutex<Vec<Change>>,
) -> Result<(), etcd_client::Error> {
    let late = |_| etcd_client::Error::WatchError("no answer in time".to_owned());
    let options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_require_leader(true);
    let mut client = Client::connect([at.to_string()], Some(options)).await?;
    let now = timeout(PATIENCE, client.get(BASE, Some(GetOptions::new().with_prefix()))).await.map_err(late)??;
    let revision = now.header().map_or(0, etcd_client::ResponseHeader::revision);
    let told = |key: &[u8], value: Option<&[u8]>| {
        let key = String::from_utf8_lossy(key);
        let Some(key) = key.strip_prefix(BASE).map(|key| key.trim_start_matches('/')) else { return };
        if !KEPT.contains(&key) {
            return;
        }
        let value = value.map(|value| String::from_utf8_lossy(value).into_owned());
        let mut changes = kept.lock().unwrap_or_else(PoisonError::into_inner);
        // After an interruption the present state may be what it was.
        if changes.iter().rev().find(|change| change.key == key).map(|change| &change.value) != Some(&value) {
            changes.push(Change { at: clock.now(), key: key.to_owned(), value });
        }
    };
    for pair in now.kvs() {
        told(pair.key(), Some(pair.value()));
    }
    for key in KEPT {
        let full = format!("{BASE}/{key}");
        if !now.kvs().iter().any(|pair| pair.key() == full.as_bytes()) {
            told(full.as_bytes(), None);
        }
    }
    let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
    let mut stream = timeout(PATIENCE, client.watch(BASE, Some(options))).await.map_err(late)??;
    while !stop.load(Ordering::SeqCst) {
        // The members of a cluster write every second or two: silence means that this member of etcd is gone.
        let Some(answer) = timeout(PATIENCE * 3, stream.message()).await.map_err(late)?? else { return Ok(()) };
        if answer.canceled() {
            return Ok(());
        }
        for event in answer.events() {
            if let Some(pair) = event.kv() {
                let value = (event.event_type() == EventType::Put).then(|| pair.value());
                told(pair.key(), value);
            }
        }
    }
    Ok(())
}

/// Epoch and promised position never fall (S8).
#[must_use]
pub fn promises_hold(changes: &[Change]) -> Vec<Finding> {
    let number = |value: &serde_json::Value, key: &str| value[key].as_u64().unwrap_or(0);
    let read = |change: &Change| {
        let value: serde_json::Value = serde_json::from_str(change.value.as_deref()?).ok()?;
        Some((change.at, number(&value, "epoch"), number(&value, "timeline")))
    };
    let promises: Vec<_> = changes.iter().filter(|change| change.key == "regent/promise").filter_map(read).collect();
    let falls = promises.windows(2).filter_map(|pair| match pair {
        [(_, epoch, timeline), (at, epoch2, timeline2)] if epoch2 < epoch || timeline2 < timeline => Some(Finding {
            breach: Breach::PromiseFell,
            at: *at,
            proof: format!("epoch {epoch} and timeline {timeline} were followed by {epoch2} and {timeline2}"),
        }),
        _ => None,
    });
    falls.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_falls() {
        let promise = |at, epoch, timeline| Change {
            at: Moment(at),
            key: "regent/promise".to_owned(),
            value: Some(format!(r#"{{"epoch": {epoch}, "timeline": {timeline}}}"#)),
        };
        assert_eq!(promises_hold(&[promise(1, 1, 1), promise(2, 2, 2), promise(3, 3, 2)]), []);
        assert_eq!(promises_hold(&[promise(1, 2, 2), promise(2, 3, 1)]).len(), 1);
        assert_eq!(promises_hold(&[promise(1, 2, 2), promise(2, 1, 2)]).len(), 1);
    }
}
