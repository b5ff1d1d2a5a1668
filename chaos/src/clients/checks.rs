//! Health checks, as a load balancer sends them: a new connection each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Shared;
use crate::history::{Op, Outcome};

/// Between two of them.
const PACE: Duration = Duration::from_millis(200);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn ask(shared: Arc<Shared>, node: usize, at: SocketAddr) {
    while !shared.stopped() {
        sleep(PACE).await;
        let sent = shared.clock.now();
        let outcome = match timeout(PATIENCE, status(at)).await {
            Ok(Ok(Some(status))) => Outcome::Done(status),
            Ok(Ok(None)) => Outcome::Unknown("no HTTP answer".to_owned()),
            Ok(Err(why)) => Outcome::Refused(why.to_string()),
            Err(_) => Outcome::Unknown("no answer in time".to_owned()),
        };
        let op = Op { sent, ended: shared.clock.now(), asked: node, outcome };
        shared.history().checks.push(op);
    }
}

async fn status(at: SocketAddr) -> std::io::Result<Option<u16>> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.split_whitespace().nth(1).and_then(|status| status.parse().ok()))
}
