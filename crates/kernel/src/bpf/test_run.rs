use std::time::Duration;

use aya::programs::{TestRun as _, TestRunOptions};

use super::{Datapath, Program};
use crate::error::{Context, Result};

/// A frame to run a program with (`BPF_PROG_TEST_RUN`). Nothing is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// From the Ethernet header on. The kernel wants at least 14 bytes.
    pub frame: Vec<u8>,
    /// Interface that it is seen at; must exist in the calling thread's namespace.
    pub ifindex: u32,
    /// Payload bytes per segment of a super-packet, 0 for any other.
    pub gso_size: u32,
    /// How often to run, for timing; each run sees what the one before left of the frame.
    pub repeat: u32,
}

/// What a program did with a [`Packet`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The return value: `TC_ACT_UNSPEC` is −1, `TC_ACT_SHOT` 2, `TC_ACT_REDIRECT` 7.
    pub action: i32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Time of one run, averaged.
    pub duration: Duration,
}

// === impl Packet ===

impl Packet {
    /// One ordinary packet, run once.
    pub fn new(ifindex: u32, frame: impl Into<Vec<u8>>) -> Self {
        Self {
            frame: frame.into(),
            ifindex,
            gso_size: 0,
            repeat: 1,
        }
    }

    /// `struct __sk_buff` with what the kernel lets a test set.
    fn context(&self) -> [u8; SK_BUFF_LEN] {
        let mut bytes = [0; SK_BUFF_LEN];
        for (at, value) in [(SK_BUFF_IFINDEX, self.ifindex), (SK_BUFF_GSO_SIZE, self.gso_size)] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

// === impl Datapath ===

impl Datapath {
    /// Runs a program over the maps as they are, counting as always.
    ///
    /// # Errors
    /// The kernel refused the packet, or there is no such interface.
    pub fn test_run(&mut self, program: Program, packet: &Packet) -> Result<Outcome> {
        let context = packet.context();
        // Programs do not make frames longer; the kernel refuses a buffer that is too small.
        let mut frame = vec![0; packet.frame.len() + SPARE];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet.frame);
        options.data_out = Some(&mut frame);
        options.ctx_in = Some(&context);
        options.repeat = packet.repeat;
        let result = self
            .program(program)?
            .test_run(options)
            .context("run eBPF program", program.name())?;
        frame.truncate(result.data_size_out as usize);
        Ok(Outcome {
            action: result.return_value.cast_signed(),
            frame,
            duration: result.duration,
        })
    }
}

const SPARE: usize = 64;

// Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
const SK_BUFF_LEN: usize = 192;
const SK_BUFF_IFINDEX: usize = 40;
const SK_BUFF_GSO_SIZE: usize = 176;
