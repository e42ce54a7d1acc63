//! Programs run by the kernel on built frames: a row of a table is a frame, and what becomes of it.

use std::net::Ipv4Addr;

use weft_kernel::bpf::{DropReason, ForwardPath, Packet, PrefixTarget, Program, Transport};
use weft_kernel::target::Target;
use weft_model::Mac;

use crate::frames::{IPV4, Ip, ethernet, readdressed};
use crate::support::{Cluster, Counts, Pod};

pub(crate) const PASS: i32 = -1;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

pub(crate) const SELF: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
pub(crate) const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
pub(crate) const NATIVE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const TCP: u8 = 6;
pub(crate) const ICMP_UNREACHABLE: u8 = 3;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;

/// Two nodes, the first with two pods and by the device.
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) pod: Pod,
    pub(crate) peer: Pod,
}

/// What a program has to do with a packet.
pub(crate) enum Want {
    Drop(DropReason),
    Pass(ForwardPath),
    /// Not ours, or counted elsewhere.
    Ignore,
    /// With these Ethernet addresses.
    Redirect(ForwardPath, Mac, Mac),
}

// === impl Bench ===

impl Bench {
    pub(crate) fn new() -> Self {
        let mut cluster = Cluster::new(2);
        // What the other transport writes is seen on the wire.
        cluster.nodes[0].switch(Transport::Device);
        let native = "192.0.2.0/24".parse().unwrap();
        cluster.nodes[0]
            .datapath
            .prefixes()
            .apply(&native, &PrefixTarget::Native)
            .unwrap();
        let (pod, peer) = (cluster.pod(0, 1), cluster.pod(0, 2));
        Self { cluster, pod, peer }
    }

    pub(crate) fn sent(&self, packet: &Ip) -> Vec<u8> {
        ethernet(
            self.pod.endpoint.host_mac,
            self.pod.endpoint.mac,
            IPV4,
            &packet.bytes(),
        )
    }

    pub(crate) fn check(&mut self, program: Program, ifindex: u32, row: &str, frame: &[u8], want: &Want) {
        self.check_packet(program, row, &Packet::new(ifindex, frame), want);
    }

    pub(crate) fn check_packet(&mut self, program: Program, row: &str, packet: &Packet, want: &Want) {
        let node = &mut self.cluster.nodes[0];
        let before = node.counts();
        let datapath = &mut node.datapath;
        let outcome = node
            .ns
            .netns
            .run(|| datapath.test_run(program, packet).unwrap())
            .unwrap();
        let counted = node.counts().since(&before);
        let none = Counts::default();
        let (action, frame, counts) = match want {
            Want::Drop(reason) => (SHOT, packet.frame.clone(), none.drop(*reason, 1)),
            Want::Pass(path) => (PASS, packet.frame.clone(), none.forward(*path, 1)),
            Want::Ignore => (PASS, packet.frame.clone(), none),
            Want::Redirect(path, destination, source) => (
                REDIRECT,
                readdressed(&packet.frame, *destination, *source),
                none.forward(*path, 1),
            ),
        };
        assert_eq!(
            (outcome.action, outcome.frame, counted),
            (action, frame, counts),
            "{row}"
        );
    }
}
