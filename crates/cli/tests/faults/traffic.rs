//! Traffic between two pods while things happen to their nodes: UDP datagrams with sequence numbers, a thousand a second,
//! and TCP connections that exchange heartbeats.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use weft_kernel::NetNs;
use weft_kernel::sockets;

/// Where the other pod listens for connections by a translated address.
pub(crate) const PORT: u16 = 7;

/// Between two datagrams.
const TICK: Duration = Duration::from_millis(1);

/// Between two heartbeats of a connection.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// A connection whose heartbeat takes longer is as good as reset: nothing here is cut off for long.
const PATIENCE: Duration = Duration::from_secs(30);

/// One end of the traffic.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) netns: NetNs,
    pub(crate) address: Ipv4Addr,
}

/// What came of the traffic since it began, or since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Datagrams that arrived.
    pub(crate) arrived: u64,
    /// Datagrams that did not, though later ones did.
    pub(crate) lost: u64,
    /// The longest time in which datagrams were sent and none arrived, on the sender's clock: from the last one before a
    /// loss to the first one after it.
    pub(crate) gap: Duration,
    /// The longest time in which the receiver saw none, scheduling included.
    pub(crate) silence: Duration,
    /// Heartbeats that came back.
    pub(crate) heartbeats: u64,
    /// The slowest heartbeat of a connection.
    pub(crate) slowest: Duration,
    /// Connections that ended.
    pub(crate) resets: usize,
}

/// Traffic that goes on until this is dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
    ends: Vec<TcpStream>,
}

// === impl Traffic ===

impl Traffic {
    /// Datagrams and `connections` connections from one pod to another. Those of `by` go to that address instead, which
    /// somebody translates into the other pod's.
    pub(crate) fn start(from: &End, to: &End, connections: usize, by: Option<SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let began = Instant::now();
        let receiver = sockets::udp_socket(&to.netns, (to.address, 0).into()).expect("a socket");
        let sender = sockets::udp_socket(&from.netns, (from.address, 0).into()).expect("a socket");
        sender
            .connect(receiver.local_addr().expect("an address"))
            .expect("a route");
        let port = if by.is_some() { PORT } else { 0 };
        let listener = sockets::tcp_listener(&to.netns, (to.address, port).into()).expect("a listener");
        let address = by.unwrap_or_else(|| listener.local_addr().expect("an address"));
        let streams: Vec<TcpStream> = (0..connections)
            .map(|_| {
                let stream = sockets::tcp_connect(&from.netns, address, PATIENCE).expect("a connection");
                echo(&listener);
                stream.set_nodelay(true).expect("TCP");
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                stream
            })
            .collect();
        let ends = streams
            .iter()
            .map(|stream| stream.try_clone().expect("a descriptor"))
            .collect();
        let mut threads = Vec::new();
        {
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || send(&sender, began, &stop)));
        }
        {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            threads.push(std::thread::spawn(move || {
                receive(&receiver, began, &stop, &seen);
            }));
        }
        {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            threads.push(std::thread::spawn(move || beat(streams, &stop, &seen)));
        }
        Self {
            stop,
            seen,
            threads,
            ends,
        }
    }

    /// What came of it so far.
    pub(crate) fn seen(&self) -> Seen {
        *self.seen.lock().expect("no thread panicked")
    }

    /// The same, and counts anew.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().expect("no thread panicked"))
    }

    /// Ends it; returns what came of it.
    pub(crate) fn end(self) -> Seen {
        self.seen()
    }

    /// Waits until datagrams arrive and every connection that lives had a heartbeat; returns how long that took.
    pub(crate) fn until_it_flows(&self) -> Duration {
        let began = Instant::now();
        let before = self.seen();
        loop {
            let now = self.seen();
            if now.arrived > before.arrived && now.heartbeats > before.heartbeats {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "no traffic flows: {now:?}");
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for end in &self.ends {
            // Nobody waits for an answer of a pod that is gone.
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends a datagram each tick: its number, and when it was sent.
fn send(socket: &UdpSocket, began: Instant, stop: &AtomicBool) {
    be_punctual();
    let mut next = Instant::now();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let sent = u64::try_from(began.elapsed().as_micros()).expect("less than an age");
        let mut datagram = [0; 16];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        datagram[8..].copy_from_slice(&sent.to_be_bytes());
        // One that the node refuses is lost.
        let _ = socket.send(&datagram);
        next += TICK;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, began: Instant, stop: &AtomicBool, seen: &Mutex<Seen>) {
    be_punctual();
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a timeout");
    // Number and time of sending of the newest, and when it arrived.
    let mut last: Option<(u64, Duration, Duration)> = None;
    let mut datagram = [0; 16];
    while !stop.load(Ordering::Relaxed) {
        if !matches!(socket.recv(&mut datagram), Ok(16)) {
            continue;
        }
        let now = began.elapsed();
        let (number, sent) = datagram.split_at(8);
        let number = u64::from_be_bytes(number.try_into().expect("8 bytes"));
        let sent = Duration::from_micros(u64::from_be_bytes(sent.try_into().expect("8 bytes")));
        let mut seen = seen.lock().expect("no thread panicked");
        seen.arrived += 1;
        if let Some((newest, before, arrived)) = last {
            if number <= newest {
                continue;
            }
            seen.silence = seen.silence.max(now - arrived);
            if number > newest + 1 {
                seen.lost += number - newest - 1;
                seen.gap = seen.gap.max(sent - before);
            }
        }
        last = Some((number, sent, now));
    }
}

/// Answers on the next connection until it ends.
fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.set_nodelay(true).expect("TCP");
    std::thread::spawn(move || {
        let mut bytes = [0; 8];
        while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
    });
}

fn beat(mut streams: Vec<TcpStream>, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let began = Instant::now();
        for stream in &mut streams {
            // What comes of it shows when the answer is read.
            let _ = stream.write_all(&number.to_be_bytes());
        }
        streams.retain_mut(|stream| {
            let mut answer = [0; 8];
            let alive = match stream.read_exact(&mut answer) {
                _ if stop.load(Ordering::Relaxed) => return true,
                Ok(()) => u64::from_be_bytes(answer) == number,
                Err(error) => {
                    eprintln!("a connection ended: {error} ({:?})", error.kind());
                    false
                }
            };
            let mut seen = seen.lock().expect("no thread panicked");
            if alive {
                seen.heartbeats += 1;
                seen.slowest = seen.slowest.max(began.elapsed());
            } else {
                seen.resets += 1;
            }
            alive
        });
        std::thread::sleep(HEARTBEAT.saturating_sub(began.elapsed()));
    }
}

/// Lets the thread run before others; without the right to it, it measures with more noise.
fn be_punctual() {
    let Ok(lowest) = ThreadPriorityValue::try_from(1_u8) else {
        return;
    };
    let _ = set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(lowest),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
    );
}
