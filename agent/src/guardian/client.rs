//! The agent's end: finds the guardian of a data directory, or starts one.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream as StdStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::kill::Hunter;
use super::wire::{ACK, Ack, Request, Taken, address, canonical};
use super::{Guard, MARK};

/// The longest that one exchange may take: nothing is asked that needs more than a look at `/proc`.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to the guardian of one data directory.
#[derive(Debug)]
pub struct Client {
    data_dir: PathBuf,
    address: SocketAddr,
    program: PathBuf,
    stream: Option<UnixStream>,
    /// The one that we started, to be reaped if it ends before us.
    child: Option<Child>,
}

impl Client {
    /// For this data directory, which need not exist yet. Neither connects nor starts anything.
    ///
    /// # Errors
    /// As `read(2)`, of no path that could be corrected.
    pub fn of(data_dir: &Path) -> std::io::Result<Client> {
        // The program as it runs, also if its file was replaced by an upgrade.
        Client::with_program(data_dir, Path::new("/proc/self/exe"))
    }

    /// As [`Client::of`], with a guardian of this program.
    ///
    /// # Errors
    /// As [`Client::of`].
    pub fn with_program(data_dir: &Path, program: &Path) -> std::io::Result<Client> {
        let data_dir = canonical(data_dir);
        let address = address(&data_dir)?;
        Ok(Client { data_dir, address, program: program.to_owned(), stream: None, child: None })
    }

    async fn exchange(&mut self, request: Request) -> std::io::Result<Ack> {
        if let Some(child) = &mut self.child
            && child.try_wait().is_ok_and(|ended| ended.is_some())
        {
            self.child = None;
        }
        let stream = match &mut self.stream {
            Some(open) => open,
            None => {
                let fresh = self.connect()?;
                self.stream.insert(fresh)
            }
        };
        stream.write_all(&request.encode()).await?;
        let mut answer = [0; ACK];
        stream.read_exact(&mut answer).await?;
        Ack::decode(&answer).ok_or_else(|| std::io::Error::other("it is of another version"))
    }

    fn connect(&mut self) -> std::io::Result<UnixStream> {
        let stream = match StdStream::connect_addr(&self.address) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.spawn()?;
                StdStream::connect_addr(&self.address)?
            }
            Err(error) => return Err(error),
        };
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        if peer.uid != rustix::process::geteuid() {
            let who = peer.uid.as_raw();
            return Err(std::io::Error::other(format!("its address is taken by a process of user {who}")));
        }
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }

    /// It gets the socket ready-made: whoever connects from now on waits for it and for no other.
    fn spawn(&mut self) -> std::io::Result<()> {
        let listener = UnixListener::bind_addr(&self.address)?;
        let mut command = Command::new(&self.program);
        command.arg0("regent").arg(MARK).arg(&self.data_dir).stdin(Stdio::from(OwnedFd::from(listener)));
        // It lives longer than the agent, and needs none of its variables.
        command.env_clear();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        tracing::info!(pid = child.id(), "started a guardian");
        self.child = Some(child);
        Ok(())
    }
}

/// Tells the guardian of this data directory, if one is left from a time when the configuration wanted it, to guard nothing.
/// It then ends by itself. Blocks for a second at the most.
///
/// # Errors
/// It is there and was not told, or did not do it.
pub fn dismiss(data_dir: &Path) -> std::io::Result<()> {
    let mut stream = match StdStream::connect_addr(&address(&canonical(data_dir))?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
        found => found?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&Request::Disarm { down: false }.encode())?;
    let mut answer = [0; ACK];
    stream.read_exact(&mut answer)?;
    match Ack::decode(&answer) {
        Some(Ack { taken: Taken::Done, .. }) => Ok(()),
        refused => Err(std::io::Error::other(format!("it refused: {refused:?}"))),
    }
}

impl Guard for Client {
    fn started(&self, pid: u32) -> Option<u64> {
        Hunter::of(Vec::new()).ok()?.stat(pid).map(|stat| stat.started)
    }

    async fn call(&mut self, request: Request) -> Result<Ack, String> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(request)).await;
        let answer = answer.map_err(|_| format!("no answer in {PATIENCE:?}"));
        let answer = answer.and_then(|answer| answer.map_err(|error| error.to_string()));
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    async fn gone(&mut self) {
        let Some(stream) = &self.stream else { return std::future::pending().await };
        while stream.readable().await.is_ok() {
            // Nothing comes unasked, so what can be read is the end.
            let nothing_yet = stream.try_read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            if !nothing_yet {
                break;
            }
        }
        self.stream = None;
    }
}
