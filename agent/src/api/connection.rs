//! Connections: accepted, counted, read by their first line, handed to hyper.
//!
//! ```text
//! accept ──► wait for the first line ──► hyper ⇄ router ──► closed by the client, by `Connection: close`,
//!                │         │               │                by silence (`head_time`), or by
//!                │         │               │                eviction: too many, and it is the
//!              silence   nonsense        silence            oldest that asks for nothing
//! ```
//!
//! Waiting, also for a body, costs a slot and nothing else, and when the slots are used up the oldest waiting connection is cut in favour of
//! the new one. So a thousand silent clients cannot keep a load balancer's check from its answer (rest-api.md W1).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use bytes::{Buf, Bytes};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::Policy;
use super::tls::Client;

/// The longest request line (rest-api.md 2.2).
const MAX_LINE: usize = 65_536;
/// The longest head of a request: a line of the largest size and as much again in headers.
const MAX_HEAD: usize = 2 * MAX_LINE;
/// More connections than this are never held, whatever the limit of open files.
const MAX_CONNECTIONS: usize = 4096;

/// What the accept loop is made of.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) policy: watch::Receiver<Arc<Policy>>,
    pub(super) router: Router,
    pub(super) max_connections: usize,
    pub(super) head_time: Duration,
}

impl Door {
    /// Accepts until `stop` is sent or dropped. Returning, it leaves its connections to the runtime's end.
    pub(super) async fn serve(self, mut stop: oneshot::Receiver<()>) {
        let seats = Arc::new(Seats { limit: self.max_connections.max(1), taken: Mutex::default() });
        let mut told = false;
        for number in 0_u64.. {
            let accepted = tokio::select! {
                biased;
                _ = &mut stop => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => self.welcome(stream, client, number, &seats),
                Err(error) => {
                    // Mostly EMFILE: free a descriptor, and don't spin while there is none.
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "the REST API cannot accept a connection; raise the limit of open files");
                    }
                    seats.evict();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Gives a connection its seat and its task.
    fn welcome(&self, stream: TcpStream, client: SocketAddr, number: u64, seats: &Arc<Seats>) {
        if let Err(error) = super::listen::tune(&stream) {
            tracing::debug!(%client, %error, "connection gone before it was tuned");
            return;
        }
        seats.make_room();
        let busy = Arc::new(AtomicBool::new(false));
        let seat = Seat { number, seats: Arc::clone(seats) };
        let tls = self.policy.borrow().tls.clone();
        let address = client.ip().to_canonical();
        let (router, head_time, is_busy) = (self.router.clone(), self.head_time, Arc::clone(&busy));
        // The task cannot end before it is noted below: this thread runs it, and only once we wait again.
        let task = tokio::spawn(async move {
            let _seat = seat;
            let who = |certified| Client { address, certified, busy: is_busy };
            let spoken = match tls {
                None => converse(stream, router, head_time, who(false)).await,
                Some(tls) => match timeout(head_time, TlsAcceptor::from(tls.config).accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let certified = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
                        converse(stream, router, head_time, who(certified)).await
                    }
                    Ok(Err(error)) => Err(error.into()),
                    Err(late) => Err(late.into()),
                },
            };
            if let Err(error) = spoken {
                tracing::debug!(%client, %error, "connection ended");
            }
        });
        seats.lock().insert(number, Taken { task: task.abort_handle(), busy });
    }
}

/// Half of the process's limit of open files: etcd and PostgreSQL need theirs.
pub(super) fn default_limit() -> usize {
    let files = getrlimit(Resource::Nofile).current.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    (files / 2).clamp(16, MAX_CONNECTIONS)
}

/// Every open connection, oldest first.
struct Seats {
    limit: usize,
    taken: Mutex<BTreeMap<u64, Taken>>,
}

struct Taken {
    task: AbortHandle,
    /// A request is being answered; such a connection is not evicted.
    busy: Arc<AtomicBool>,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_room(&self) {
        while self.lock().len() >= self.limit && self.evict() {}
    }

    /// Cuts the oldest connection that waits for a request. False: all are busy.
    fn evict(&self) -> bool {
        let mut taken = self.lock();
        let oldest = taken.iter().find(|(_, taken)| !taken.busy.load(Ordering::Relaxed)).map(|(number, _)| *number);
        let evicted = oldest.and_then(|number| taken.remove(&number));
        drop(taken);
        if let Some(evicted) = &evicted {
            evicted.task.abort();
        }
        evicted.is_some()
    }
}

/// Gives the seat back when the connection's task ends, however it ends.
struct Seat {
    number: u64,
    seats: Arc<Seats>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().remove(&self.number);
    }
}

/// One connection, from its first byte to its end.
async fn converse<S>(
    mut stream: S,
    router: Router,
    head_time: Duration,
    client: Client,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let head = match timeout(head_time, first_line(&mut stream)).await?? {
        Opening::Request(head) => head,
        Opening::Closed => return Ok(()),
        Opening::Refused(status) => return Ok(timeout(head_time, refuse(stream, status)).await??),
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(client.clone());
        let (mut router, busy) = (router.clone(), Arc::clone(&client.busy));
        async move {
            busy.store(true, Ordering::Relaxed);
            let answer = router.call(request).await;
            busy.store(false, Ordering::Relaxed);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .max_buf_size(MAX_HEAD)
        .half_close(true) // `printf … | nc` closes its half at once and still wants the answer
        .title_case_headers(true)
        .serve_connection(TokioIo::new(Prefixed { head: Bytes::from(head), stream }), service);
    Ok(connection.await?)
}

/// What a connection begins with.
enum Opening {
    /// These bytes, for hyper to read before the rest.
    Request(Vec<u8>),
    /// No request line of ours; answer this and close.
    Refused(StatusCode),
    /// The client left without a request.
    Closed,
}

/// Reads up to the end of the first line and judges its version, which hyper is too strict about (rest-api.md 2.2):
/// 1.2 to 1.9 are served as 1.1, 2 and above (also HTTP/2's preface) are answered 505.
async fn first_line<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Opening> {
    let (mut head, mut scanned) = (Vec::with_capacity(512), 0);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(if head.is_empty() { Opening::Closed } else { Opening::Refused(StatusCode::BAD_REQUEST) });
        }
        if scanned == 0 {
            // Blank lines before a request are to be ignored (RFC 9112 section 2.2).
            let blank = head.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            head.drain(..blank);
        }
        if let Some(length) = head.iter().skip(scanned).position(|b| *b == b'\n') {
            return Ok(judge(&head, scanned + length));
        }
        if head.len() > MAX_LINE {
            return Ok(Opening::Refused(StatusCode::URI_TOO_LONG));
        }
        scanned = head.len();
    }
}

/// Judges the line that ends before `end`.
fn judge(head: &[u8], end: usize) -> Opening {
    let (line, rest) = head.split_at_checked(end).unwrap_or((head, b""));
    let line = line.trim_ascii_end();
    if line.len() > MAX_LINE {
        return Opening::Refused(StatusCode::URI_TOO_LONG);
    }
    let mut words = line.rsplitn(2, |b| *b == b' ');
    let (version, request) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match version_of(version) {
        None | Some((0, _)) => Opening::Refused(StatusCode::BAD_REQUEST),
        Some((1, 0)) => Opening::Request([request, b" HTTP/1.0", rest].concat()),
        Some((1, _)) => Opening::Request([request, b" HTTP/1.1", rest].concat()),
        Some(_) => Opening::Refused(StatusCode::HTTP_VERSION_NOT_SUPPORTED),
    }
}

/// `HTTP/1.1` → `(1, 1)`.
fn version_of(word: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(word).ok()?.strip_prefix("HTTP/")?.split_once('.')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((number(major)?, number(minor)?))
}

/// Answers a line that is no request, and waits a moment for the client to hang up: closing on unread bytes would reset
/// the connection and could take the answer with it.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, status: StatusCode) -> io::Result<()> {
    let reason = status.canonical_reason().unwrap_or_default();
    let answer = format!("HTTP/1.0 {} {reason}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status.as_u16());
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    for _ in 0..64 {
        if stream.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// A stream with some bytes put back before it.
struct Prefixed<S> {
    head: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.head.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let fits = this.head.len().min(buffer.remaining());
        buffer.put_slice(this.head.get(..fits).unwrap_or_default());
        this.head.advance(fits);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
