//! The real client against a scripted etcd: every gRPC code, as an answer to every call that we make.
//!
//! A compare that fails is a definite answer and comes with code 0; `contract.rs` has it. Here: what any other answer proves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use regent_core::units::{LeaseId, MemberName, Revision};
use regent_dcs::etcd::{Credentials, EtcdDcs, EtcdSettings, TlsFiles};
use regent_dcs::{Dcs, DcsError, Write};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Enough for an answer that comes, and short: whoever is answered "unknown" tries until the end.
const WITHIN: Duration = Duration::from_secs(2);
const CODES: std::ops::RangeInclusive<u8> = 0..=16;
const OURS: [&str; 5] = ["keep_alive", "write", "read", "grant", "revoke"];

/// What it says to a call, by the last part of its path: a code and a message. Everything else succeeds.
type Script = Arc<Mutex<BTreeMap<&'static str, (u8, String)>>>;

#[derive(Clone, Default)]
struct Etcd {
    script: Script,
    /// The calls it got.
    calls: Arc<Mutex<Vec<String>>>,
    /// Once it has given a token, the script is over.
    forgives: bool,
    /// A stream of renewals ends after the first answer.
    hangs_up: bool,
}

impl Etcd {
    fn says(call: &'static str, code: u8, words: &str) -> Etcd {
        let etcd = Etcd::default();
        etcd.script.lock().unwrap().insert(call, (code, words.to_owned()));
        etcd
    }

    async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let etcd = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let etcd = etcd.clone();
                let service = service_fn(move |request| {
                    let answer = etcd.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        url
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Frames> {
        let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        self.calls.lock().unwrap().push(call.clone());
        let scripted = self.script.lock().unwrap().get(call.as_str()).cloned();
        if call == "Authenticate" && self.forgives {
            self.script.lock().unwrap().clear();
        }
        let (mut frames, mut stays_open) = (Vec::new(), false);
        let mut headers = HeaderMap::new();
        match scripted {
            Some((code, words)) => {
                headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
                headers.insert("grpc-message", HeaderValue::try_from(words.replace(' ', "%20")).unwrap());
            }
            None => {
                // Fields: the token of an Authenticate; id and TTL of a renewal, twice as two are sent; all else may be empty.
                let message: &[u8] = match call.as_str() {
                    "Authenticate" => b"\x12\x05token",
                    "LeaseKeepAlive" => b"\x10\x07\x18\x0a",
                    _ => b"",
                };
                let times = if call == "LeaseKeepAlive" && !self.hangs_up { 2 } else { 1 };
                stays_open = times == 2;
                let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
                frame.extend_from_slice(message);
                frames.push(Frame::data(Bytes::from(frame.repeat(times))));
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                if !stays_open {
                    frames.push(Frame::trailers(trailers));
                }
            }
        }
        let mut answer = Response::new(Frames { left: frames.into(), stays_open });
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        *answer.headers_mut() = headers;
        answer
    }

    fn count(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|known| *known == call).count()
    }
}

/// Frames that are all there.
struct Frames {
    left: VecDeque<Frame<Bytes>>,
    /// ... and no end comes after them.
    stays_open: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.left.pop_front() {
            None if self.stays_open => Poll::Pending,
            next => Poll::Ready(next.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && !self.stays_open
    }
}

fn path(call: &str) -> &'static str {
    match call {
        "keep_alive" => "LeaseKeepAlive",
        "write" => "Txn",
        "read" => "Range",
        "grant" => "LeaseGrant",
        "revoke" => "LeaseRevoke",
        other => panic!("{other}"),
    }
}

async fn connect(endpoints: Vec<String>, user: bool) -> EtcdDcs {
    let credentials = user.then(|| Credentials { username: "u".to_owned(), password: "p".to_owned() });
    let (namespace, scope) = ("service".to_owned(), "demo".to_owned());
    EtcdDcs::connect(EtcdSettings { endpoints, namespace, scope, credentials, tls: TlsFiles::default() }).await.unwrap()
}

async fn make(dcs: &EtcdDcs, call: &str) -> Result<(), DcsError> {
    match call {
        "keep_alive" => dcs.keep_alive(LeaseId(7), WITHIN).await.map(drop),
        "write" => {
            let write = Write::PutMember { name: MemberName::from("n1"), json: "{}".to_owned(), lease: LeaseId(7) };
            dcs.write(write, WITHIN).await.map(drop)
        }
        "read" => dcs.read(WITHIN).await.map(drop),
        "grant" => dcs.grant(Duration::from_secs(9), WITHIN).await.map(drop),
        "revoke" => dcs.revoke(LeaseId(7), WITHIN).await,
        other => panic!("{other}"),
    }
}

/// What an answer proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// etcd's last word.
    Definite,
    /// It was not applied, here: elsewhere it may be.
    NotApplied,
    /// Nothing: it may have been applied.
    Nothing,
}

/// The mapping, by code and by who speaks. gRPC: 3 INVALID_ARGUMENT, 5 NOT_FOUND, 6 ALREADY_EXISTS, 7 PERMISSION_DENIED,
/// 8 RESOURCE_EXHAUSTED, 9 FAILED_PRECONDITION, 11 OUT_OF_RANGE, 12 UNIMPLEMENTED, 16 UNAUTHENTICATED.
fn proof(code: u8, by_etcd: bool) -> Proof {
    match code {
        3 | 5 | 6 | 7 | 8 | 11 | 12 | 16 if by_etcd => Proof::Definite,
        9 if by_etcd => Proof::NotApplied,
        _ => Proof::Nothing,
    }
}

#[tokio::test]
async fn every_code_at_every_call_is_definite_or_unknown_and_retried_only_where_that_is_safe() {
    let mut cases = JoinSet::new();
    for (call, code, by_etcd) in
        OURS.iter().flat_map(|call| CODES.flat_map(move |code| [(*call, code, true), (*call, code, false)]))
    {
        if cases.len() >= 20 {
            cases.join_next().await.unwrap().unwrap();
        }
        cases.spawn(async move {
            let words = if by_etcd { "etcdserver: as scripted" } else { "as scripted" };
            let case = format!("{call}, code {code}, {words:?}");
            // One endpoint, which never changes its mind.
            let alone = Etcd::says(path(call), code, words);
            let dcs = connect(vec![alone.listen().await], false).await;
            let answer = make(&dcs, call).await;
            let refused = matches!(answer, Err(DcsError::Rejected(_)));
            assert_eq!(refused, proof(code, by_etcd) == Proof::Definite, "{case}: {answer:?}");
            assert!(refused || matches!(answer, Err(DcsError::Unreachable(_))), "{case}: {answer:?}");
            let asked = alone.count(path(call));
            let may_repeat = call != "write" || proof(code, by_etcd) == Proof::NotApplied;
            assert!(asked == 1 || (asked > 1 && !refused && may_repeat), "{case}: asked {asked} times");

            // Another endpoint, which is well.
            let (bad, good) = (Etcd::says(path(call), code, words), Etcd::default());
            let dcs = connect(vec![bad.listen().await, good.listen().await], false).await;
            let answer = make(&dcs, call).await;
            let elsewhere = match (proof(code, by_etcd), call) {
                (Proof::Definite, _) | (Proof::Nothing, "write") => false,
                (Proof::NotApplied, _) | (Proof::Nothing, _) => true,
            };
            assert_eq!((answer.is_ok(), good.count(path(call)) > 0), (elsewhere, elsewhere), "{case}: {answer:?}");
            assert_eq!(bad.count("Authenticate") + good.count("Authenticate"), 0, "{case}: nobody is configured");
        });
    }
    while let Some(ended) = cases.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_lease_is_gone_only_in_the_words_of_etcd() {
    for call in ["keep_alive", "write", "revoke"] {
        for code in CODES {
            let etcd = Etcd::says(path(call), code, "etcdserver: requested lease not found");
            let dcs = connect(vec![etcd.listen().await], false).await;
            let answer = make(&dcs, call).await;
            match (code, call) {
                (5, "revoke") => assert_eq!(answer, Ok(()), "it is gone, as was wished"),
                (5, _) => assert_eq!(answer, Err(DcsError::LeaseGone), "{call}"),
                _ => assert!(!matches!(answer, Ok(()) | Err(DcsError::LeaseGone)), "{call} {code}: {answer:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_stream_of_renewals_that_ends_says_nothing_of_the_lease() {
    let etcd = Etcd { hangs_up: true, ..Etcd::default() };
    let dcs = connect(vec![etcd.listen().await], false).await;
    let answer = make(&dcs, "keep_alive").await;
    assert!(matches!(answer, Err(DcsError::Unreachable(_))), "{answer:?}");
}

#[tokio::test]
async fn only_what_a_token_may_cure_fetches_a_new_one() {
    for (code, words, cured) in [
        (16, "etcdserver: invalid auth token", true),
        (3, "etcdserver: user name is empty", true),
        (7, "etcdserver: permission denied", true),
        (3, "etcdserver: revision of auth store is old", true),
        (2, "auth: revision in header is old", true),
        (7, "etcdserver: something else", false),
        (16, "etcdserver: something else", false),
        (14, "etcdserver: request timed out", false),
    ] {
        for call in OURS {
            let etcd = Etcd { forgives: true, ..Etcd::says(path(call), code, words) };
            // The first token comes before the first call; it forgives nothing yet.
            let script = etcd.script.lock().unwrap().clone();
            let dcs = connect(vec![etcd.listen().await], true).await;
            let first = if call == "read" { "revoke" } else { "read" };
            make(&dcs, first).await.unwrap();
            *etcd.script.lock().unwrap() = script;
            let tokens = etcd.count("Authenticate");
            let answer = make(&dcs, call).await;
            assert_eq!(answer.is_ok(), cured, "{call} {words}: {answer:?}");
            assert_eq!(etcd.count("Authenticate") - tokens, usize::from(cured), "{call} {words}");

            let nobody = connect(vec![etcd.listen().await], false).await;
            *etcd.script.lock().unwrap() = [(path(call), (code, words.to_owned()))].into();
            let answer = make(&nobody, call).await;
            let definite = code != 14;
            assert_eq!(matches!(answer, Err(DcsError::Rejected(_))), definite, "{call} {words}, no user: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_failed_authentication_is_told_apart_from_silence() {
    let mut cases = JoinSet::new();
    for code in CODES {
        cases.spawn(async move {
            let etcd = Etcd::says("Authenticate", code, "etcdserver: as scripted");
            let dcs = connect(vec![etcd.listen().await], true).await;
            let answer = make(&dcs, "read").await;
            let refused = matches!(answer, Err(DcsError::Rejected(_)));
            assert_eq!(refused, proof(code, true) == Proof::Definite, "{code}: {answer:?}");
            assert!(refused || matches!(answer, Err(DcsError::Unreachable(_))), "{code}: {answer:?}");
            assert_eq!(etcd.count("Range"), 0, "nothing is asked without a token");
        });
    }
    while let Some(ended) = cases.join_next().await {
        ended.unwrap();
    }
    let wrong = Etcd::says("Authenticate", 3, "etcdserver: authentication failed, invalid user ID or password");
    let dcs = connect(vec![wrong.listen().await], true).await;
    assert!(matches!(make(&dcs, "read").await, Err(DcsError::Authentication(_))));
    let none = Etcd::says("Authenticate", 9, "etcdserver: authentication is not enabled");
    let dcs = connect(vec![none.listen().await], true).await;
    assert_eq!(make(&dcs, "read").await, Ok(()), "an etcd without users wants no token");
}

#[tokio::test]
async fn a_watch_that_is_refused_wakes_whatever_the_code() {
    let mut cases = JoinSet::new();
    for code in CODES {
        cases.spawn(async move {
            let etcd = Etcd::says("Watch", code, "etcdserver: as scripted");
            let dcs = connect(vec![etcd.listen().await], false).await;
            let woken = timeout(Duration::from_secs(20), dcs.changed(Revision(1))).await;
            assert!(woken.is_ok() && etcd.count("Watch") > 0, "code {code}: who cannot watch must read");
        });
    }
    while let Some(ended) = cases.join_next().await {
        ended.unwrap();
    }
}
