//! One client per endpoint, and how a call chooses among them.
//!
//! Not one client with many endpoints: its balancer would send a third of all calls to a dead one. Here a call goes to the
//! endpoint that answered last. What may safely happen twice is *hedged*: when no answer comes soon, the next endpoint is
//! asked as well, and the first answer counts. A write is not: it goes on to another endpoint only after proof that
//! nothing was applied.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::Endpoint;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::auth::Auth;
use super::failure::Failure;
use super::{EtcdSettings, SettingsError, tls::Tls};
use crate::DcsError;

/// How long to wait for a connection; etcd's own connect time is milliseconds, and a lost SYN is sent again after 1 s.
const CONNECT: Duration = Duration::from_millis(500);

/// How long a call that may be hedged waits for an answer before it asks the next endpoint as well.
const HEDGE: Duration = Duration::from_millis(250);

/// How long an endpoint that failed is left alone by the same call.
const PAUSE: Duration = Duration::from_millis(200);

/// etcd cuts connections that ping more often than every 5 s (its `--grpc-keepalive-min-time`).
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_ANSWER: Duration = Duration::from_secs(1);

pub(super) struct Pool {
    endpoints: Vec<(String, Client)>,
    /// Index of the endpoint that answered last.
    good: AtomicUsize,
    auth: Arc<Auth>,
}

impl Pool {
    pub(super) async fn new(settings: &EtcdSettings, auth: Arc<Auth>) -> Result<Pool, SettingsError> {
        if settings.endpoints.is_empty() {
            return Err(SettingsError::NoEndpoints);
        }
        let mut tls = None;
        let mut endpoints = Vec::new();
        for url in &settings.endpoints {
            let bad = |why: String| SettingsError::Endpoint { url: url.clone(), why };
            let mut endpoint = Endpoint::from_shared(url.clone())
                .map_err(|error| bad(error.to_string()))?
                .connect_timeout(CONNECT)
                .tcp_keepalive(Some(PING_EVERY))
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_ANSWER);
            match endpoint.uri().scheme_str() {
                Some("http") => {}
                Some("https") => {
                    let tls = match &mut tls {
                        Some(tls) => tls,
                        none => none.insert(Tls::load(&settings.tls)?),
                    };
                    endpoint = tls.apply(endpoint).map_err(|error| bad(chain(&error)))?;
                }
                Some(_) | None => return Err(bad("it must begin with http:// or https://".to_owned())),
            }
            // Lazy: nothing is sent before the first call, and a connection that broke is made anew by the next one.
            let with_token = Arc::clone(&auth);
            let channel = endpoint
                .connect_lazy()
                .map_request(move |request| with_token.stamp(request))
                .map_err(|error| -> tower::BoxError { error.into() });
            let channel = Channel::Custom(BoxCloneSyncService::new(channel));
            let options = ConnectOptions::new().with_require_leader(true);
            let client = Client::from_channel(channel, Some(options)).await.map_err(|error| bad(error.to_string()))?;
            endpoints.push((url.clone(), client));
        }
        Ok(Pool { endpoints, good: AtomicUsize::new(0), auth })
    }

    /// The endpoint to begin with.
    pub(super) fn preferred(&self) -> (usize, Client) {
        let index = self.good.load(Ordering::Relaxed);
        match self.endpoints.get(index) {
            Some((_, client)) => (index, client.clone()),
            None => unreachable!("good is always the index of an endpoint, and there is one at least"),
        }
    }

    /// Begins with another endpoint from now on, unless somebody has moved on already.
    pub(super) fn avoid(&self, index: usize) {
        let next = index.wrapping_add(1).checked_rem(self.endpoints.len()).unwrap_or(0);
        let _ = self.good.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn name(&self, index: usize) -> &str {
        self.endpoints.get(index).map_or("etcd", |(url, _)| url)
    }

    /// Carries out what may safely happen more than once: asks again and elsewhere until there is an answer, or the
    /// deadline.
    pub(super) async fn hedged<T, F>(&self, deadline: Instant, call: impl Fn(Client) -> F) -> Result<T, DcsError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        let mut renewed = false;
        loop {
            let token = self.auth.token_for(self, deadline).await?;
            match self.hedged_once(deadline, HEDGE, &call).await {
                Err((_, Failure::Token(_))) if !renewed && self.auth.wanted() => {
                    renewed = true;
                    self.auth.renew(self, token, deadline).await?;
                }
                Err((index, failure)) => return Err(failure.into_error(self.name(index))),
                Ok(value) => return Ok(value),
            }
        }
    }

    /// The same without a look at tokens, with a patience of its own before the next endpoint is asked as well.
    pub(super) async fn hedged_once<T, F>(
        &self,
        deadline: Instant,
        hedge: Duration,
        call: &impl Fn(Client) -> F,
    ) -> Result<T, (usize, Failure)>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        let start = Instant::now();
        let first = self.preferred().0;
        let in_order = (first..self.endpoints.len()).chain(0..first);
        // When to ask whom (next): every endpoint is either in here or being asked.
        let mut plan: BTreeSet<(Instant, usize)> = in_order.zip(0u32..).map(|(i, n)| (start + hedge * n, i)).collect();
        // Dropped: the losers are cancelled.
        let mut asked = JoinSet::new();
        let mut last = (first, Failure::Unknown("no answer in time".to_owned()));
        loop {
            let next = plan.first().map_or(deadline, |(at, _)| (*at).min(deadline));
            tokio::select! {
                biased;
                Some(answer) = asked.join_next() => match answer {
                    Ok((index, Ok(value))) => {
                        self.good.store(index, Ordering::Relaxed);
                        return Ok(value);
                    }
                    Ok((index, Err(error))) => match Failure::from(error) {
                        failure @ (Failure::NotApplied(_) | Failure::Unknown(_)) => {
                            last = (index, failure);
                            // Whoever is next need not wait for a hedge that has failed.
                            if let Some((at, other)) = plan.pop_first() {
                                plan.insert((at.min(Instant::now()), other));
                            }
                            plan.insert((Instant::now() + PAUSE, index));
                        }
                        failure @ (Failure::Token(_) | Failure::Definite(_)) => return Err((index, failure)),
                    },
                    Err(error) => return Err((first, Failure::Unknown(error.to_string()))),
                },
                () = sleep_until(next) => {
                    if Instant::now() >= deadline {
                        self.avoid(first);
                        return Err(last);
                    }
                    if let Some((_, index)) = plan.pop_first()
                        && let Some((_, client)) = self.endpoints.get(index)
                    {
                        let answer = call(client.clone());
                        asked.spawn(async move { (index, answer.await) });
                    }
                }
            }
        }
    }

    /// Carries out what must not happen twice: one endpoint at a time, and another one only when the last has proved that
    /// it did nothing.
    pub(super) async fn once<T, F>(&self, deadline: Instant, call: impl Fn(Client) -> F) -> Result<T, DcsError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut renewed = false;
        let mut tried = 0;
        loop {
            let token = self.auth.token_for(self, deadline).await?;
            let (index, client) = self.preferred();
            let answer = timeout_at(deadline, call(client)).await;
            let failure = match answer {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => Failure::from(error),
                Err(_) => Failure::Unknown("no answer in time".to_owned()),
            };
            match failure {
                Failure::NotApplied(text) if Instant::now() < deadline => {
                    self.avoid(index);
                    tried += 1;
                    if tried % self.endpoints.len() == 0 {
                        let pause = Instant::now() + PAUSE;
                        if pause >= deadline {
                            return Err(Failure::NotApplied(text).into_error(self.name(index)));
                        }
                        sleep_until(pause).await;
                    }
                }
                Failure::Token(_) if !renewed && self.auth.wanted() => {
                    renewed = true;
                    self.auth.renew(self, token, deadline).await?;
                }
                failure @ (Failure::NotApplied(_) | Failure::Unknown(_)) => {
                    self.avoid(index);
                    return Err(failure.into_error(self.name(index)));
                }
                failure @ (Failure::Token(_) | Failure::Definite(_)) => {
                    return Err(failure.into_error(self.name(index)));
                }
            }
        }
    }
}

/// An error with its causes, for errors whose own text says little.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
