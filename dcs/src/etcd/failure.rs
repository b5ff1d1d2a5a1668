//! What an error of the etcd client proves.

use std::error::Error as _;

use etcd_client::Error;
use tonic::Code;

use crate::DcsError;

/// An error, by what may follow from it.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was applied, and another endpoint (or a later try) may do better.
    NotApplied(String),
    /// It may have been applied: the answer is missing, or says nothing.
    Unknown(String),
    /// Nothing was applied, because etcd wants a token, or another one.
    Token(String),
    /// etcd's last word.
    Definite(DcsError),
}

impl Failure {
    /// The same as the caller sees it, when nothing more can be tried.
    pub(super) fn into_error(self, endpoint: &str) -> DcsError {
        match self {
            Failure::NotApplied(text) | Failure::Unknown(text) => DcsError::Unreachable(format!("{endpoint}: {text}")),
            Failure::Token(text) => DcsError::Rejected(text),
            Failure::Definite(error) => error,
        }
    }
}

impl From<Error> for Failure {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the enum is the etcd client's, and what it adds proves nothing"
    )]
    fn from(error: Error) -> Failure {
        match error {
            Error::GRpcStatus(status) => judge(&status),
            // What the client makes of an answer with a TTL of 0. With other words: of a stream that was closed under it.
            Error::LeaseKeepAliveError(text) if text == "lease not found" => Failure::Definite(DcsError::LeaseGone),
            other => Failure::Unknown(other.to_string()),
        }
    }
}

/// Words of etcd that it says before it has done anything (etcd: `api/v3rpc/rpctypes/error.go`).
const BEFORE_ANYTHING: [&str; 4] = [
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: rpc not supported for learner",
    "etcdserver: too many requests",
];

/// Words of etcd that a new token may cure. In the last form the error of the auth store comes through unmapped (3.4).
const TOKEN: [&str; 5] = [
    "etcdserver: invalid auth token",
    "etcdserver: user name is empty",
    "etcdserver: permission denied",
    "etcdserver: revision of auth store is old",
    "auth: revision in header is old",
];

fn judge(status: &tonic::Status) -> Failure {
    let text = status.message();
    if never_connected(status) {
        return Failure::NotApplied(reason(status));
    }
    if BEFORE_ANYTHING.contains(&text) {
        return Failure::NotApplied(text.to_owned());
    }
    if TOKEN.contains(&text) {
        return Failure::Token(text.to_owned());
    }
    // Only etcd's own words are definite: a proxy, or this end of the connection, uses the same codes.
    let Some(words) = text.strip_prefix("etcdserver: ") else { return Failure::Unknown(reason(status)) };
    match status.code() {
        Code::NotFound if words == "requested lease not found" => Failure::Definite(DcsError::LeaseGone),
        Code::InvalidArgument if words.starts_with("authentication failed") => {
            Failure::Definite(DcsError::Authentication(words.to_owned()))
        }
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Failure::Definite(DcsError::Rejected(words.to_owned())),
        Code::FailedPrecondition => Failure::NotApplied(words.to_owned()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Failure::Unknown(words.to_owned()),
    }
}

/// The connection was never made, so nothing was ever sent over it.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The status and what is behind it: "tcp connect error" alone helps nobody.
fn reason(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_failure_is_judged_by_what_it_proves() {
        let kind = |code, text: &str| match judge(&Status::new(code, text)) {
            Failure::NotApplied(_) => "not applied",
            Failure::Unknown(_) => "unknown",
            Failure::Token(_) => "token",
            Failure::Definite(DcsError::LeaseGone) => "lease gone",
            Failure::Definite(DcsError::Rejected(_)) => "rejected",
            Failure::Definite(DcsError::Authentication(_)) => "authentication",
            Failure::Definite(DcsError::Unreachable(_)) => "unreachable",
        };
        for (code, text, expected) in [
            (Code::Unavailable, "etcdserver: no leader", "not applied"),
            (Code::Unavailable, "etcdserver: request timed out", "unknown"),
            (Code::Unavailable, "etcdserver: leader changed", "unknown"),
            (Code::Unknown, "etcdserver: not a primary lessor", "unknown"),
            (Code::Unknown, "context deadline exceeded", "unknown"),
            (Code::FailedPrecondition, "etcdserver: not leader", "not applied"),
            (Code::NotFound, "etcdserver: requested lease not found", "lease gone"),
            (Code::Unauthenticated, "etcdserver: invalid auth token", "token"),
            (Code::InvalidArgument, "etcdserver: user name is empty", "token"),
            (Code::PermissionDenied, "etcdserver: permission denied", "token"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", "authentication"),
            (Code::InvalidArgument, "etcdserver: request is too large", "rejected"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "rejected"),
            (Code::ResourceExhausted, "h2 protocol error: too_many_pings", "unknown"),
            (Code::OutOfRange, "decoded message length too large", "unknown"),
        ] {
            assert_eq!(kind(code, text), expected, "{code:?} {text}");
        }
    }
}
