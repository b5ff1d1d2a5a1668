//! What can be done to a link, and how it is written in JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// In which direction a toxic acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// From the client to the server.
    Upstream,
    /// From the server to the client.
    Downstream,
}

impl Stream {
    /// As the API names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stream::Upstream => "upstream",
            Stream::Downstream => "downstream",
        }
    }
}

/// What a toxic does. The attributes are named as in the API, with the unit added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "attributes", rename_all = "snake_case")]
pub enum ToxicKind {
    /// All data comes later, by this much, more or less by up to the jitter; order and rate stay.
    Latency {
        /// Milliseconds.
        #[serde(rename = "latency", default)]
        latency_ms: u64,
        /// Milliseconds.
        #[serde(rename = "jitter", default)]
        jitter_ms: u64,
    },
    /// No more than this passes. At 0 nothing does, and nothing is lost.
    Bandwidth {
        /// Kilobytes a second.
        #[serde(rename = "rate", default)]
        rate_kb: u64,
    },
    /// The end of the connection is passed on later.
    SlowClose {
        /// Milliseconds.
        #[serde(rename = "delay", default)]
        delay_ms: u64,
    },
    /// All data is swallowed, the end of the connection too. When this is removed the connection is cut.
    Timeout {
        /// Milliseconds without data after which the connection is cut; 0: never.
        #[serde(rename = "timeout", default)]
        timeout_ms: u64,
    },
    /// The first data, or the end, resets the connection on both sides.
    ResetPeer {
        /// Milliseconds between that data and the reset.
        #[serde(rename = "timeout", default)]
        timeout_ms: u64,
    },
    /// Data comes in small pieces.
    Slicer {
        /// Bytes of a piece.
        #[serde(default)]
        average_size: u64,
        /// How much more or less than that, in bytes.
        #[serde(default)]
        size_variation: u64,
        /// Microseconds between two pieces.
        #[serde(rename = "delay", default)]
        delay_us: u64,
    },
    /// The connection is cut after so much data.
    LimitData {
        /// Bytes.
        #[serde(default)]
        bytes: u64,
    },
}

/// What `type` may be.
const TYPES: [&str; 7] = ["latency", "bandwidth", "slow_close", "timeout", "reset_peer", "slicer", "limit_data"];

/// One toxic of a proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Toxic {
    /// Its name, unique within the proxy.
    pub name: String,
    /// What it does.
    pub kind: ToxicKind,
    /// Where.
    pub stream: Stream,
    /// Which share of the connections it hits: 0 to 1.
    pub toxicity: f64,
}

/// Why a toxic was not understood.
pub(super) enum Misread {
    Body(String),
    Stream,
    Type,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    stream: Option<String>,
    #[serde(default)]
    toxicity: Option<f64>,
    #[serde(default)]
    attributes: Option<Map<String, Value>>,
}

fn read(body: &[u8]) -> Result<Written, Misread> {
    serde_json::from_slice(body).map_err(|e| Misread::Body(e.to_string()))
}

fn kind(name: &str, attributes: Map<String, Value>) -> Result<ToxicKind, Misread> {
    let value = json!({"type": name, "attributes": attributes});
    serde_json::from_value(value).map_err(|e| Misread::Body(e.to_string()))
}

impl Toxic {
    /// From the body of a request to add one, with Toxiproxy's defaults.
    pub(super) fn parse(body: &[u8]) -> Result<Toxic, Misread> {
        let written = read(body)?;
        let stream = match written.stream.as_deref() {
            None | Some("downstream") => Stream::Downstream,
            Some("upstream") => Stream::Upstream,
            Some(_) => return Err(Misread::Stream),
        };
        if !TYPES.contains(&written.kind.as_str()) {
            return Err(Misread::Type);
        }
        let name = match written.name.is_empty() {
            true => format!("{}_{}", written.kind, stream.name()),
            false => written.name,
        };
        let kind = kind(&written.kind, written.attributes.unwrap_or_default())?;
        Ok(Toxic { name, kind, stream, toxicity: written.toxicity.unwrap_or(1.0) })
    }

    /// With the attributes and the toxicity of `body`; what it does not name stays.
    pub(super) fn updated(&self, body: &[u8]) -> Result<Toxic, Misread> {
        let written = read(body)?;
        let (name, mut attributes) = self.kind.parts();
        attributes.extend(written.attributes.unwrap_or_default());
        let kind = kind(&name, attributes)?;
        Ok(Toxic { kind, toxicity: written.toxicity.unwrap_or(self.toxicity), ..self.clone() })
    }

    /// As Toxiproxy shows it.
    #[must_use]
    pub fn json(&self) -> Value {
        let (kind, attributes) = self.kind.parts();
        json!({
            "attributes": attributes,
            "name": self.name,
            "type": kind,
            "stream": self.stream.name(),
            "toxicity": number(self.toxicity),
        })
    }
}

impl ToxicKind {
    /// The type and the attributes as the API writes them.
    fn parts(&self) -> (String, Map<String, Value>) {
        let mut whole = serde_json::to_value(self).unwrap_or_default();
        let kind = whole["type"].as_str().unwrap_or_default().to_owned();
        match whole["attributes"].take() {
            Value::Object(attributes) => (kind, attributes),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => (kind, Map::new()),
        }
    }
}

/// `1`, not `1.0`: so writes Go.
fn number(share: f64) -> Value {
    if share == 0.0 {
        json!(0)
    } else if (share - 1.0).abs() < f64::EPSILON {
        json!(1)
    } else {
        json!(share)
    }
}

/// A duration from a request, which may be any number: no longer than thirty days, so that it can be added to a clock.
pub(super) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms.min(30 * 24 * 3_600_000))
}
