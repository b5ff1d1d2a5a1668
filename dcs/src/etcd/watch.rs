//! The watch behind [`Dcs::changed`](crate::Dcs::changed): a pulse, never proof that nothing was missed.

use std::time::Duration;

use etcd_client::{Client, Error, Event, EventType, WatchOptions};
use regent_core::units::Revision;
use tokio::time::{Instant, interval_at, sleep, timeout};

use super::pool::Pool;
use crate::keys;

/// How long opening may take.
const OPEN: Duration = Duration::from_secs(1);

/// How often the other end is asked for a sign of life. No HTTP/2 ping: etcd would cut the connection.
const PULSE_EVERY: Duration = Duration::from_secs(1);

/// How long it may be silent.
const SILENCE: Duration = Duration::from_secs(2);

/// A watch that breaks wakes its caller; not in a busy loop.
const AFTER_ERROR: Duration = Duration::from_millis(250);

/// Why a watch woke its caller.
enum Woken {
    /// Something changed.
    Changed,
    /// It broke; who knows.
    Broke(String),
}

pub(super) async fn changed(pool: &Pool, prefix: String, since: Revision) {
    // A watch of its own token is not worth a second here: without one it breaks, and the read that follows gets one.
    let (index, client) = pool.preferred();
    match watch(client, &prefix, since).await {
        Ok(Woken::Changed) => {}
        Ok(Woken::Broke(why)) => broke(pool, index, &why).await,
        Err(error) => broke(pool, index, &error.to_string()).await,
    }
}

async fn broke(pool: &Pool, index: usize, why: &str) {
    tracing::debug!("the watch on etcd broke: {why}");
    pool.avoid(index);
    sleep(AFTER_ERROR).await;
}

/// Is it one of the changes that agents wake for?
fn wakes(event: &Event, base: &str) -> bool {
    let Some(kv) = event.kv() else { return true };
    let came_or_went = event.event_type() == EventType::Delete || kv.create_revision() == kv.mod_revision();
    match kv.key().strip_prefix(base.as_bytes()).map(str::from_utf8) {
        Some(Ok(name)) => keys::wakes(name, came_or_went),
        Some(Err(_)) | None => true,
    }
}

async fn watch(mut client: Client, base: &str, since: Revision) -> Result<Woken, Error> {
    let options = WatchOptions::new().with_prefix().with_start_revision(since.0.saturating_add(1));
    let Ok(stream) = timeout(OPEN, client.watch(base, Some(options))).await else {
        return Ok(Woken::Broke("it does not open".to_owned()));
    };
    let (mut requests, mut messages) = stream?.split();
    let mut pulse = interval_at(Instant::now() + PULSE_EVERY, PULSE_EVERY);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            message = messages.message() => match message? {
                None => return Ok(Woken::Broke("it ended".to_owned())),
                Some(message) if message.canceled() => {
                    let reason = message.cancel_reason();
                    return Ok(Woken::Broke(format!("canceled at {}: {reason}", message.compact_revision())));
                }
                Some(message) if message.events().iter().any(|event| wakes(event, base)) => return Ok(Woken::Changed),
                Some(_) => heard = Instant::now(),
            },
            _ = pulse.tick() => {
                if heard.elapsed() > SILENCE {
                    return Ok(Woken::Broke("it fell silent".to_owned()));
                }
                // The queue towards a stopped endpoint is bounded: waiting for room in it would be waiting for ever.
                if timeout(PULSE_EVERY, requests.request_progress()).await.is_err() {
                    return Ok(Woken::Broke("it takes no requests".to_owned()));
                }
            }
        }
    }
}
