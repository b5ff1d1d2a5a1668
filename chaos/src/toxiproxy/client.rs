//! The client, which waits for each answer.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use regent_tests::rig::{Trouble, http};

use super::api;
use super::toxics::Toxic;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(30);

/// A Toxiproxy server, and the proxies that were made through this value. They end with the last clone of it.
#[derive(Clone)]
pub struct Toxiproxy(Arc<Inner>);

struct Inner {
    at: SocketAddr,
    proxies: Mutex<Vec<String>>,
    /// The server, when it is ours.
    embedded: Option<Embedded>,
}

/// A server in a thread of its own.
struct Embedded {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Toxiproxy {
    /// The server at `TOXIPROXY_URL`, or one of our own.
    ///
    /// # Errors
    /// The URL names no address, or no thread or port was to be had.
    pub fn from_environment() -> Result<Self, Trouble> {
        match std::env::var("TOXIPROXY_URL") {
            Ok(url) if !url.is_empty() => Toxiproxy::at(&url),
            Ok(_) | Err(_) => Toxiproxy::embedded(),
        }
    }

    /// The server at `url` (`http://host:port`).
    ///
    /// # Errors
    /// It names no address.
    pub fn at(url: &str) -> Result<Self, Trouble> {
        let place = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let wrong = |e| Trouble::new(format!("TOXIPROXY_URL is {url:?}, which should be http://host:port: {e}"));
        let found = place.to_socket_addrs().map_err(|e| wrong(e.to_string()))?.next();
        Ok(Toxiproxy::of(found.ok_or_else(|| wrong("no address".to_owned()))?, None))
    }

    /// A server in a thread of this process, on a free port of the loopback.
    ///
    /// # Errors
    /// No thread or port was to be had.
    pub fn embedded() -> Result<Self, Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let at = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let serve = async {
            tokio::select! {
                biased;
                _ = stopped => {}
                // It ends only when it cannot accept, which the next call will say.
                _ = api::run(listener) => {}
            }
        };
        let thread = std::thread::Builder::new().name("toxiproxy".to_owned()).spawn(move || runtime.block_on(serve))?;
        Ok(Toxiproxy::of(at, Some(Embedded { stop: Some(stop), thread: Some(thread) })))
    }

    fn of(at: SocketAddr, embedded: Option<Embedded>) -> Self {
        Toxiproxy(Arc::new(Inner { at, proxies: Mutex::default(), embedded }))
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.at
    }

    /// Makes a proxy and says where it listens, which matters for port 0.
    ///
    /// # Errors
    /// The name or the port is taken.
    pub fn create(&self, name: &str, listen: SocketAddr, upstream: SocketAddr) -> Result<SocketAddr, Trouble> {
        let wanted = json!({"name": name, "listen": listen.to_string(), "upstream": upstream.to_string()});
        let made = self.0.call("POST", "/proxies", Some(&wanted))?;
        self.0.proxies.lock().map_err(|_| Trouble::new("the list of proxies is poisoned"))?.push(name.to_owned());
        let listens = made["listen"].as_str().and_then(|listen| listen.parse().ok());
        listens.ok_or_else(|| Trouble::new(format!("proxy {name} listens nowhere: {made}")))
    }

    /// Switches a proxy on, or off: its connections are cut, and new ones are refused.
    ///
    /// # Errors
    /// There is no such proxy.
    pub fn enable(&self, name: &str, enabled: bool) -> Result<(), Trouble> {
        self.0.call("POST", &format!("/proxies/{name}"), Some(&json!({"enabled": enabled}))).map(drop)
    }

    /// Adds a toxic to a proxy: it acts on open connections, too.
    ///
    /// # Errors
    /// There is no such proxy, or a toxic of that name.
    pub fn add(&self, name: &str, toxic: &Toxic) -> Result<(), Trouble> {
        self.0.call("POST", &format!("/proxies/{name}/toxics"), Some(&toxic.json())).map(drop)
    }

    /// Takes a toxic away. What it held back goes on, but for `timeout`, whose connections are cut.
    ///
    /// # Errors
    /// There is no such proxy or toxic.
    pub fn remove(&self, name: &str, toxic: &str) -> Result<(), Trouble> {
        self.0.call("DELETE", &format!("/proxies/{name}/toxics/{toxic}"), None).map(drop)
    }

    /// Switches all proxies on and takes all toxics away.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn reset(&self) -> Result<(), Trouble> {
        self.0.call("POST", "/reset", None).map(drop)
    }
}

impl Inner {
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: regent\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.at,
            body.len()
        );
        let answer = http::raw(self.at, &request, WITHIN)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.json());
        }
        Err(Trouble::new(format!(
            "toxiproxy at {}: {method} {path}: {} {}",
            self.at,
            answer.status,
            answer.body.trim()
        )))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        match &mut self.embedded {
            Some(embedded) => {
                drop(embedded.stop.take());
                // A panic of the server was seen by whoever called it last.
                let _ = embedded.thread.take().map(JoinHandle::join);
            }
            // Others may use that server: only what is ours goes. If it does not answer there is nothing left to undo.
            None => {
                for name in self.proxies.get_mut().map(std::mem::take).unwrap_or_default() {
                    let _ = self.call("DELETE", &format!("/proxies/{name}"), None);
                }
            }
        }
    }
}
