//! User name, password, and the token that they buy (dcs.md section 6).
//!
//! One authentication costs etcd about a second of password hashing, which must not come out of a lease: a task renews the
//! token long before it ends. A call authenticates by itself only when there is no token yet, or when etcd has forgotten it
//! (simple tokens die with the etcd process).

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::{Instant, sleep, timeout_at};

use super::pool::Pool;
use crate::DcsError;

/// etcd's tokens live 300 s, simple ones from their last use, signed ones from their making.
const RENEW_EVERY: Duration = Duration::from_secs(120);

/// How long the renewing task tries at a time, and how long it waits after a failure.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
const RENEW_AGAIN: Duration = Duration::from_secs(5);

/// How long etcd may hash before another member is asked to do the same work.
const HASHING: Duration = Duration::from_secs(2);

/// User name and password for etcd. Shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// etcd's user.
    pub username: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Token {
    /// Nobody has asked yet.
    #[default]
    None,
    /// etcd wants none: authentication is not enabled there.
    NotWanted,
    /// This one.
    Is(HeaderValue),
}

pub(super) struct Auth {
    credentials: Option<Credentials>,
    /// Read by every request, whichever endpoint it goes to: etcd's members know each other's tokens.
    token: RwLock<Token>,
    /// Held while authenticating, so that many calls with a dead token pay once.
    busy: tokio::sync::Mutex<()>,
}

impl Auth {
    pub(super) fn new(credentials: Option<Credentials>) -> Auth {
        Auth { credentials, token: RwLock::default(), busy: tokio::sync::Mutex::default() }
    }

    /// There is a user, so a token may help.
    pub(super) fn wanted(&self) -> bool {
        self.credentials.is_some()
    }

    /// Adds the token to a request, except to the one that gets a new token: etcd refuses even that with a dead one.
    pub(super) fn stamp<B>(&self, mut request: http::Request<B>) -> http::Request<B> {
        if let Token::Is(token) = self.token()
            && !request.uri().path().ends_with("/Authenticate")
        {
            request.headers_mut().insert("token", token);
        }
        request
    }

    fn token(&self) -> Token {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The token that requests carry now; gets the first one if need be.
    pub(super) async fn token_for(&self, pool: &Pool, deadline: Instant) -> Result<Token, DcsError> {
        if self.wanted() && self.token() == Token::None {
            self.renew(pool, Token::None, deadline).await?;
        }
        Ok(self.token())
    }

    /// Replaces the token, unless somebody else has replaced `stale` meanwhile.
    pub(super) async fn renew(&self, pool: &Pool, stale: Token, deadline: Instant) -> Result<(), DcsError> {
        let Some(Credentials { username, password }) = &self.credentials else { return Ok(()) };
        let late = || DcsError::Unreachable("no token in time".to_owned());
        let _busy = timeout_at(deadline, self.busy.lock()).await.map_err(|_| late())?;
        if self.token() != stale {
            return Ok(());
        }
        let call = |client: etcd_client::Client| {
            let (username, password) = (username.clone(), password.clone());
            async move {
                let answer = client.auth_client().authenticate(username, password).await;
                match answer {
                    Err(etcd_client::Error::GRpcStatus(status)) if status.message() == NOT_ENABLED => Ok(None),
                    answer => answer.map(|answer| Some(answer.token().to_owned())),
                }
            }
        };
        // Not `hedged`: that would ask for a token first.
        let token = match pool.hedged_once(deadline, HASHING, &call).await {
            Ok(Some(token)) => {
                let mut token = HeaderValue::try_from(token).map_err(|_| unusable())?;
                token.set_sensitive(true);
                Token::Is(token)
            }
            Ok(None) => Token::NotWanted,
            Err((index, failure)) => return Err(failure.into_error(pool.name(index))),
        };
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
        Ok(())
    }

    /// Keeps the token young until nobody holds `pool` any more.
    pub(super) async fn keep_young(self: Arc<Self>, pool: Weak<Pool>) {
        let mut pause = Duration::ZERO;
        loop {
            sleep(pause).await;
            let Some(pool) = pool.upgrade() else { return };
            pause = match self.renew(&pool, self.token(), Instant::now() + RENEW_WITHIN).await {
                Ok(()) => RENEW_EVERY,
                Err(error) => {
                    tracing::warn!("cannot renew the token for etcd, and will try again: {error}");
                    RENEW_AGAIN
                }
            };
        }
    }
}

const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";

fn unusable() -> DcsError {
    DcsError::Authentication("the token that etcd gave cannot be sent back".to_owned())
}
