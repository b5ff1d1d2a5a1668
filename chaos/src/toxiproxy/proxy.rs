//! A proxy: its port, and the connections through it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};

use super::lane::{Lane, Next, Toxics};
use super::toxics::Stream;

/// How long a connection to the server behind may take to come about.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// What is read at once.
const CHUNK: usize = 16 * 1024;
/// How many connections the kernel keeps for us.
const BACKLOG: u32 = 1024;

/// Where a proxy stands.
enum Port {
    /// Bound, so that nobody else takes the port, but not listening: connections are refused. None: somebody else was faster.
    Closed(Option<TcpSocket>),
    Open {
        stop: oneshot::Sender<()>,
        ended: JoinHandle<()>,
    },
}

/// One proxy.
pub(super) struct Proxy {
    pub(super) listen: SocketAddr,
    pub(super) upstream: String,
    pub(super) toxics: watch::Sender<Toxics>,
    port: Port,
}

impl Proxy {
    /// One that does not listen yet. Port 0 becomes a free one.
    pub(super) async fn bind(listen: &str, upstream: &str) -> io::Result<Proxy> {
        let none = || io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{listen} is no address"));
        let socket = reserve(lookup_host(listen).await?.next().ok_or_else(none)?)?;
        let listen = socket.local_addr()?;
        let (toxics, _) = watch::channel(Toxics::from([]));
        Ok(Proxy { listen, upstream: upstream.to_owned(), toxics, port: Port::Closed(Some(socket)) })
    }

    pub(super) fn enabled(&self) -> bool {
        matches!(self.port, Port::Open { .. })
    }

    /// Listens from now on.
    pub(super) fn open(&mut self) -> io::Result<()> {
        let Port::Closed(kept) = &mut self.port else { return Ok(()) };
        let socket = kept.take().map_or_else(|| reserve(self.listen), Ok)?;
        let listener = socket.listen(BACKLOG)?;
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(accept(listener, self.upstream.clone(), self.toxics.subscribe(), stopped));
        self.port = Port::Open { stop, ended };
        Ok(())
    }

    /// Cuts all connections and refuses new ones. Both are true when this returns.
    pub(super) async fn close(&mut self) {
        if let Port::Open { stop, ended } = std::mem::replace(&mut self.port, Port::Closed(None)) {
            // Either fails only if the task is gone already, which is all that is wanted.
            let _ = stop.send(());
            let _ = ended.await;
        }
        if let Port::Closed(kept @ None) = &mut self.port {
            *kept = reserve(self.listen).ok();
        }
    }
}

fn reserve(at: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // What is left of connections that were cut must not keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    Ok(socket)
}

async fn accept(
    listener: TcpListener,
    upstream: String,
    toxics: watch::Receiver<Toxics>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(carry(client, upstream.clone(), toxics.clone()));
                }
                // No descriptors left, most likely.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Carries one connection to its end. A server that is not there ends it at once.
async fn carry(mut client: TcpStream, upstream: String, toxics: watch::Receiver<Toxics>) {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let Ok(Ok(mut server)) = timeout(CONNECT_WITHIN, TcpStream::connect(upstream)).await else { return };
    // Small messages are not to wait for each other. If this fails the connection is gone, which the first read finds out.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let how = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            biased;
            how = pump(from_client, to_server, number, Stream::Upstream, toxics.clone()) => how,
            how = pump(from_server, to_client, number, Stream::Downstream, toxics) => how,
        }
    };
    if let End::Reset = how {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// How a connection ended.
enum End {
    Closed,
    Reset,
}

/// Carries one direction until the connection is to end.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    connection: u64,
    stream: Stream,
    mut toxics: watch::Receiver<Toxics>,
) -> End {
    let mut lane = Lane::new(connection, stream, &toxics.borrow_and_update().clone(), Instant::now());
    let mut buffer = vec![0; CHUNK];
    loop {
        let next = lane.next(Instant::now());
        let act = async {
            match next {
                Next::Send(bytes) => to.write(&lane.front()[..bytes]).await.map(Some),
                Next::At(at) => {
                    sleep_until(at.into()).await;
                    Ok(None)
                }
                Next::Wait | Next::Close | Next::Reset => std::future::pending().await,
            }
        };
        match next {
            Next::Close => return End::Closed,
            Next::Reset => return End::Reset,
            Next::Send(_) | Next::At(_) | Next::Wait => {}
        }
        tokio::select! {
            biased;
            changed = toxics.changed() => match changed {
                Ok(()) => lane.fit(&toxics.borrow_and_update().clone(), Instant::now()),
                Err(_) => return End::Closed,
            },
            acted = act => match acted {
                Ok(Some(bytes)) => lane.sent(bytes),
                Ok(None) => {}
                Err(_) => return End::Closed,
            },
            read = from.read(&mut buffer), if lane.has_room() => match read {
                Ok(bytes) => lane.push(&buffer[..bytes], Instant::now()),
                // A reset is passed on as one.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return End::Reset,
                Err(_) => return End::Closed,
            },
        }
    }
}
