//! One direction of one connection: what is on the way, and when the next piece of it is due.
//!
//! No IO and no clock in here: [`Lane::next`] is told what time it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regent_tests::rng::Rng;

use super::toxics::{Stream, Toxic, ToxicKind, millis};

/// A toxic of a proxy, under a number that no other one ever has.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) id: u64,
    pub(super) toxic: Toxic,
}

/// All toxics of a proxy, in the order they act in.
pub(super) type Toxics = Arc<[Arc<Active>]>;

/// What to do with the connection now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Send so many bytes of [`Lane::front`].
    Send(usize),
    /// Nothing before then.
    At(Instant),
    /// Nothing until something comes or changes.
    Wait,
    /// End the connection.
    Close,
    /// End it with a reset.
    Reset,
}

/// How much is read ahead; as much as a socket buffers.
const ROOM: usize = 64 * 1024;
/// With latency what is on the way must have room, or it would also limit the rate: 4 MB/s at a second.
const ROOM_ON_THE_WAY: usize = 4 * 1024 * 1024;

struct Chunk {
    read_at: Instant,
    /// -1 to 1: its part of every jitter.
    luck: f64,
    data: Vec<u8>,
    sent: usize,
}

pub(super) struct Lane {
    connection: u64,
    stream: Stream,
    /// Those that hit this connection in this direction.
    toxics: Vec<Arc<Active>>,
    queue: VecDeque<Chunk>,
    held: usize,
    /// When the end of the data was read.
    ended: Option<Instant>,
    /// When and how much is sent next, as decided once.
    due: Option<(Instant, usize)>,
    /// When the last piece was due.
    paced_until: Option<Instant>,
    /// Bytes sent since the toxic of this number has been there.
    passed: BTreeMap<u64, u64>,
    /// When data came last, or the toxics changed.
    touched: Instant,
    cut: bool,
    rng: Rng,
}

impl Lane {
    /// An empty one. `connection` is the number of the connection, which says what chance does to it.
    pub(super) fn new(connection: u64, stream: Stream, toxics: &Toxics, now: Instant) -> Lane {
        let rng = Rng::new(connection << 1 | u64::from(stream == Stream::Upstream));
        let mut lane = Lane {
            connection,
            stream,
            toxics: Vec::new(),
            queue: VecDeque::new(),
            held: 0,
            ended: None,
            due: None,
            paced_until: None,
            passed: BTreeMap::new(),
            touched: now,
            cut: false,
            rng,
        };
        lane.fit(toxics, now);
        lane
    }

    /// The proxy's toxics are these from now on; what is on the way is judged anew.
    pub(super) fn fit(&mut self, toxics: &Toxics, now: Instant) {
        let hit = |active: &&Arc<Active>| {
            let draw = Rng::new(self.connection.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ active.id).draw();
            active.toxic.stream == self.stream && share(draw) < active.toxic.toxicity
        };
        let new: Vec<_> = toxics.iter().filter(hit).cloned().collect();
        let gone = |old: &Active| !new.iter().any(|active| active.id == old.id);
        self.cut |= self.toxics.iter().any(|old| matches!(old.toxic.kind, ToxicKind::Timeout { .. }) && gone(old));
        self.passed.retain(|id, _| new.iter().any(|active| active.id == *id));
        self.toxics = new;
        self.touched = now;
        self.due = None;
        if self.swallows() {
            self.queue.clear();
            self.held = 0;
        }
    }

    fn swallows(&self) -> bool {
        self.toxics.iter().any(|active| matches!(active.toxic.kind, ToxicKind::Timeout { .. }))
    }

    /// May more be read?
    pub(super) fn has_room(&self) -> bool {
        let latency = self.toxics.iter().any(|active| matches!(active.toxic.kind, ToxicKind::Latency { .. }));
        self.ended.is_none() && self.held < if latency { ROOM_ON_THE_WAY } else { ROOM }
    }

    /// This was read; nothing is the end.
    pub(super) fn push(&mut self, data: &[u8], now: Instant) {
        if data.is_empty() {
            self.ended = Some(now);
        } else if self.swallows() {
            self.touched = now;
        } else {
            let luck = 2.0 * share(self.rng.draw()) - 1.0;
            self.held += data.len();
            self.queue.push_back(Chunk { read_at: now, luck, data: data.to_vec(), sent: 0 });
        }
    }

    /// What is to be sent first.
    pub(super) fn front(&self) -> &[u8] {
        self.queue.front().map_or(&[], |chunk| &chunk.data[chunk.sent..])
    }

    /// So many bytes of [`Lane::front`] were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.paced_until = self.due.take().map(|(at, _)| at);
        self.held = self.held.saturating_sub(bytes);
        for active in self.toxics.iter().filter(|active| matches!(active.toxic.kind, ToxicKind::LimitData { .. })) {
            *self.passed.entry(active.id).or_default() += bytes as u64;
        }
        if let Some(chunk) = self.queue.front_mut() {
            chunk.sent += bytes;
            if chunk.sent >= chunk.data.len() {
                self.queue.pop_front();
            }
        }
    }

    /// What to do at this moment.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let when = |at: Instant, then: Next| if at <= now { then } else { Next::At(at) };
        if self.cut {
            return Next::Close;
        }
        let first = self.queue.front().map(|chunk| chunk.read_at).or(self.ended);
        let mut end_delay = Duration::ZERO;
        for active in &self.toxics {
            match active.toxic.kind {
                ToxicKind::Timeout { timeout_ms: 0 } => return Next::Wait,
                ToxicKind::Timeout { timeout_ms } => return when(self.touched + millis(timeout_ms), Next::Close),
                ToxicKind::ResetPeer { timeout_ms } => {
                    return first.map_or(Next::Wait, |first| when(first + millis(timeout_ms), Next::Reset));
                }
                ToxicKind::LimitData { bytes } => {
                    let passed = self.passed.get(&active.id).copied().unwrap_or(0);
                    if passed >= bytes && (passed > 0 || first.is_some()) {
                        return Next::Close;
                    }
                }
                ToxicKind::SlowClose { delay_ms } => end_delay += millis(delay_ms),
                ToxicKind::Latency { .. } | ToxicKind::Bandwidth { .. } | ToxicKind::Slicer { .. } => {}
            }
        }
        if self.due.is_none() {
            self.due = self.plan(now);
        }
        match (self.due, self.queue.is_empty(), self.ended) {
            (Some((at, bytes)), _, _) => when(at, Next::Send(bytes)),
            (None, true, Some(ended)) => when(ended + end_delay, Next::Close),
            (None, _, _) => Next::Wait,
        }
    }

    /// When the next piece is due, and how long it is. None: there is nothing, or it may not pass.
    fn plan(&mut self, now: Instant) -> Option<(Instant, usize)> {
        let chunk = self.queue.front()?;
        let (mut at, mut bytes) = (chunk.read_at, (chunk.data.len() - chunk.sent) as u64);
        for active in &self.toxics {
            match active.toxic.kind {
                ToxicKind::Latency { latency_ms, jitter_ms } => at += jittered(latency_ms, jitter_ms, chunk.luck),
                ToxicKind::Slicer { average_size, size_variation, delay_us } => {
                    let smallest = average_size.saturating_sub(size_variation);
                    let size = smallest + self.rng.below(size_variation.saturating_mul(2).saturating_add(1));
                    bytes = bytes.min(size.max(1));
                    at = self.paced_until.map_or(at, |last| at.max(last + millis(delay_us / 1000) + micros(delay_us)));
                }
                ToxicKind::Bandwidth { rate_kb: 0 } => return None,
                // A kilobyte a second is a byte a millisecond; the time of a piece passes before it. No piece takes longer than 0.1 s.
                ToxicKind::Bandwidth { rate_kb } => {
                    bytes = bytes.min(rate_kb.saturating_mul(100));
                    let base = self.paced_until.map_or(at, |last| at.max(last));
                    at = base + Duration::from_micros(bytes * 1000 / rate_kb);
                }
                ToxicKind::LimitData { bytes: limit } => {
                    bytes = bytes.min(limit.saturating_sub(self.passed.get(&active.id).copied().unwrap_or(0)));
                }
                ToxicKind::SlowClose { .. } | ToxicKind::Timeout { .. } | ToxicKind::ResetPeer { .. } => {}
            }
        }
        // The order stays, whatever the jitter; and time that was lost (nobody read) is not caught up for more than a second.
        let at =
            self.paced_until.map_or(at, |last| at.max(last)).max(now.checked_sub(Duration::from_secs(1)).unwrap_or(at));
        Some((at, usize::try_from(bytes).unwrap_or(usize::MAX)))
    }
}

/// Between 0 and 1.
fn share(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1_u64 << 53) as f64
}

fn micros(us: u64) -> Duration {
    Duration::from_micros(us % 1000)
}

fn jittered(latency_ms: u64, jitter_ms: u64, luck: f64) -> Duration {
    let jitter = millis(jitter_ms).mul_f64(luck.abs());
    if luck < 0.0 { millis(latency_ms).saturating_sub(jitter) } else { millis(latency_ms) + jitter }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn toxics(kinds: &[ToxicKind]) -> Toxics {
        let toxic = |(id, kind): (usize, &ToxicKind)| {
            let toxic = Toxic { name: id.to_string(), kind: kind.clone(), stream: Stream::Upstream, toxicity: 1.0 };
            Arc::new(Active { id: id as u64, toxic })
        };
        kinds.iter().enumerate().map(toxic).collect()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// All that goes out of a lane with `kinds` once `data` has come in at 0, and at which millisecond.
    fn plays(kinds: &[ToxicKind], data: &[&[u8]]) -> Vec<(u128, String)> {
        let start = Instant::now();
        let mut lane = Lane::new(1, Stream::Upstream, &toxics(kinds), start);
        data.iter().for_each(|data| lane.push(data, start));
        let (mut now, mut out) = (start, Vec::new());
        loop {
            let what = match lane.next(now) {
                Next::Send(bytes) => {
                    let text = String::from_utf8_lossy(&lane.front()[..bytes]).into_owned();
                    lane.sent(bytes);
                    text
                }
                Next::At(at) => {
                    assert!(at > now, "a moment that is over is no reason to wait");
                    now = at;
                    continue;
                }
                Next::Wait => return out,
                end @ (Next::Close | Next::Reset) => {
                    out.push(((now - start).as_millis(), format!("{end:?}")));
                    return out;
                }
            };
            out.push(((now - start).as_millis(), what));
        }
    }

    fn told(events: &[(u128, &str)]) -> Vec<(u128, String)> {
        events.iter().map(|(at, what)| (*at, (*what).to_owned())).collect()
    }

    /// Toxics, what comes in, what goes out.
    type Case<'a> = (&'a [ToxicKind], &'a [&'a [u8]], &'a [(u128, &'a str)]);

    #[test]
    fn each_toxic_spoils_in_its_own_way() {
        let latency = ToxicKind::Latency { latency_ms: 100, jitter_ms: 0 };
        let slicer = ToxicKind::Slicer { average_size: 2, size_variation: 0, delay_us: 3000 };
        let cases: [Case<'_>; 13] = [
            (&[], &[b"abc", b"d", b""], &[(0, "abc"), (0, "d"), (0, "Close")]),
            (from_ref(&latency), &[b"abc", b"d"], &[(100, "abc"), (100, "d")]),
            (&[latency.clone(), latency.clone()], &[b"abc"], &[(200, "abc")]),
            (&[ToxicKind::SlowClose { delay_ms: 50 }], &[b"a", b""], &[(0, "a"), (50, "Close")]),
            (&[ToxicKind::Bandwidth { rate_kb: 0 }], &[b"a", b""], &[]),
            (&[ToxicKind::Timeout { timeout_ms: 0 }], &[b"a", b""], &[]),
            (&[ToxicKind::Timeout { timeout_ms: 70 }], &[b"a", b""], &[(70, "Close")]),
            (&[ToxicKind::ResetPeer { timeout_ms: 70 }], &[], &[]),
            (&[ToxicKind::ResetPeer { timeout_ms: 70 }], &[b"a"], &[(70, "Reset")]),
            (&[ToxicKind::ResetPeer { timeout_ms: 0 }], &[b""], &[(0, "Reset")]),
            (from_ref(&slicer), &[b"abcde"], &[(0, "ab"), (3, "cd"), (6, "e")]),
            (&[latency.clone(), slicer.clone()], &[b"abc"], &[(100, "ab"), (103, "c")]),
            (&[ToxicKind::LimitData { bytes: 4 }], &[b"abc", b"def"], &[(0, "abc"), (0, "d"), (0, "Close")]),
        ];
        for (kinds, data, expected) in cases {
            assert_eq!(plays(kinds, data), told(expected), "{kinds:?} {data:?}");
        }
    }

    #[test]
    fn bandwidth_sends_ten_pieces_a_second() {
        let sent = plays(&[ToxicKind::Bandwidth { rate_kb: 10 }], &[&[b'x'; 2500]]);
        let times: Vec<_> = sent.iter().map(|(at, piece)| (*at, piece.len())).collect();
        assert_eq!(times, [(100, 1000), (200, 1000), (250, 500)]);
    }

    #[test]
    fn jitter_never_changes_the_order() {
        let data: Vec<Vec<u8>> = (b'a'..=b'z').map(|letter| vec![letter]).collect();
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let sent = plays(&[ToxicKind::Latency { latency_ms: 100, jitter_ms: 90 }], &data);
        assert_eq!(sent.iter().map(|(_, piece)| piece.as_str()).collect::<String>(), "abcdefghijklmnopqrstuvwxyz");
        let (first, last) = (sent[0].0, sent[25].0);
        assert!((10..190).contains(&first) && first < last && last <= 190, "{first} {last}");
    }

    #[test]
    fn what_is_taken_away_lets_go() {
        let start = Instant::now();
        let mut lane = Lane::new(1, Stream::Upstream, &toxics(&[ToxicKind::Bandwidth { rate_kb: 0 }]), start);
        lane.push(b"kept", start);
        assert_eq!(lane.next(start + ms(1000)), Next::Wait);
        lane.fit(&toxics(&[]), start + ms(1000));
        assert_eq!(lane.next(start + ms(1000)), Next::Send(4));

        lane.fit(&toxics(&[ToxicKind::Timeout { timeout_ms: 0 }]), start + ms(1000));
        assert_eq!(lane.next(start + ms(2000)), Next::Wait);
        lane.fit(&toxics(&[]), start + ms(3000));
        assert_eq!(lane.next(start + ms(3000)), Next::Close, "what was swallowed is missing");
    }

    #[test]
    fn a_share_of_the_connections_is_hit() {
        let latency = ToxicKind::Latency { latency_ms: 1, jitter_ms: 0 };
        let toxic = Toxic { name: "t".to_owned(), kind: latency, stream: Stream::Upstream, toxicity: 0.3 };
        let toxics: Toxics = [Arc::new(Active { id: 7, toxic })].into();
        let hit = |connection| !Lane::new(connection, Stream::Upstream, &toxics, Instant::now()).toxics.is_empty();
        let hits = (0..1000).filter(|connection| hit(*connection)).count();
        assert!((250..350).contains(&hits), "{hits} of 1000");
    }

    #[test]
    fn what_nobody_reads_is_not_read_ahead_for_ever() {
        let start = Instant::now();
        let mut lane = Lane::new(1, Stream::Upstream, &toxics(&[ToxicKind::Bandwidth { rate_kb: 0 }]), start);
        let chunks = std::iter::repeat_with(|| lane.push(&[0; 1024], start)).take(64).count();
        assert_eq!((chunks, lane.has_room()), (64, false));
    }
}
