//! The datapath's probe of itself: a pod interface made as ADD makes one, a packet from the node to it and its answer.
//!
//! It proves what comparing states can't: that programs, maps, routes and neighbours together let a packet through. The
//! node speaks first, as kubelet does, so that only what would break kubelet's probes too can make it fail.

use crate::steps::Steps;
use crate::wiring::{Attachment, PodKernel, host_name};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::LazyLock;
use std::time::Duration;
use weft_kernel::NetNs;
use weft_model::{AttachmentKey, UserError, codes};

/// Beside the gateway, where no pod's address can be.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

/// Names the probe's interface; container IDs of runtimes are hexadecimal.
pub const CONTAINER: &str = "weft-probe";

const POD_INTERFACE: &str = "eth0";

const PATIENCE: Duration = Duration::from_millis(300);
/// A busy node may lose a packet.
const TRIES: u8 = 3;

/// A namespace to probe from.
#[derive(Debug)]
pub struct Probe {
    netns: NetNs,
    attachment: Attachment,
}

/// Name of the node's end of the probe's interface.
pub fn interface() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        AttachmentKey::new(CONTAINER, POD_INTERFACE).map_or_else(|_| String::new(), |key| host_name(&key))
    });
    &NAME
}

// === impl Probe ===

impl Probe {
    /// # Errors
    /// The kernel gives no namespace.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            netns: NetNs::create()?,
            attachment: Attachment {
                key: AttachmentKey::new(CONTAINER, POD_INTERFACE)?,
                address: ADDRESS,
            },
        })
    }

    /// Attaches the probe, sends a packet from `node`, one of the node's addresses, awaits it back and detaches again.
    ///
    /// # Errors
    /// [`codes::PROBE_FAILED`] with the step that failed.
    pub fn run(&self, kernel: &impl PodKernel, node: Ipv4Addr, mtu: u32) -> Result<(), UserError> {
        kernel
            .attach(&self.attachment, &self.netns, mtu, &Steps::begin())
            .map_err(|error| failed(format!("the probe's interface can't be made: {error}")))?;
        let answered = self.round_trip(node);
        let detached = kernel.detach(&self.attachment);
        answered.map_err(|error| {
            failed(format!(
                "no answer from the probe at {ADDRESS} to {TRIES} packets from {node}: {error}"
            ))
        })?;
        detached.map_err(|error| failed(format!("the probe's interface can't be removed: {error}")))
    }

    fn round_trip(&self, node: Ipv4Addr) -> io::Result<()> {
        let pod = self
            .netns
            .run(|| UdpSocket::bind((ADDRESS, 0)))
            .map_err(io::Error::other)??;
        let host = UdpSocket::bind((node, 0))?;
        host.connect(pod.local_addr()?)?;
        pod.connect(host.local_addr()?)?;
        for socket in [&pod, &host] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        let mut last = Ok(());
        for number in 0..TRIES {
            last = host.send(&[number]).and_then(|_| {
                let mut byte = [0];
                pod.recv(&mut byte)?;
                pod.send(&byte)?;
                host.recv(&mut byte).map(drop)
            });
            if last.is_ok() {
                break;
            }
        }
        last
    }
}

fn failed(message: String) -> UserError {
    UserError::new(
        codes::PROBE_FAILED,
        message,
        "weft status; nft list ruleset; ip route",
    )
}
