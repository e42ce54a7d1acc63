//! One pod's part of the kernel: veth pair, addresses, routes, neighbours, programs and map entries.
//!
//! ```text
//!  pod's namespace                          node's namespace
//!  eth0  10.244.1.7/32 ─────── veth ─────── weft3f2a91c04d  (alias weft:<containerID>/<ifname>)
//!   default via 169.254.1.1                  10.244.1.7/32 dev weft3f2a91c04d
//!   169.254.1.1 lladdr host end, permanent   10.244.1.7 lladdr pod end, permanent
//! ```

mod check;
mod pass;
mod reaper;

use self::reaper::Reaper;
pub use self::reaper::is_doomed;
use crate::node::{lock, no_ipv6};
use crate::pass::Pass;
use crate::probe;
use crate::steps::{Step, Steps};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use weft_ipam::ledger::Found;
use weft_kernel::NetNs;
use weft_kernel::bpf::{Datapath, Endpoint, Program};
use weft_kernel::rtnl::{Address, Link, LinkSpec, Neighbour, Route, RouteFilter, Rtnl};
use weft_kernel::sysctl::{self, Key};
use weft_kernel::target::Target;
use weft_model::{AttachmentKey, Mac};

/// Where every pod's default route points. Nothing has this address: the pod's neighbour entry for it is permanent.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::from_octets(weft_abi::GATEWAY);

pub const HOST_PREFIX: &str = "weft";
pub const ALIAS_PREFIX: &str = "weft:";
/// `rp_filter`: any way back will do.
const LOOSE: &str = "2";
/// How long an ADD waits for a pod's end to be able to send. The link watcher runs at least once a second (`HZ` in
/// net/core/link_watch.c).
const LINK_WATCHER: Duration = Duration::from_secs(1);
const POD_PROGRAMS: [Program; 2] = [Program::FromPod, Program::ToPod];

/// What an attachment is made of, all derived from its key and address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub key: AttachmentKey,
    pub address: Ipv4Addr,
}

/// Why a pod could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error("interface {name} exists in the pod's namespace already")]
    InterfaceExists { name: String },
    #[error("interface {name} exists on the node and belongs to {owner}")]
    HostNameTaken { name: String, owner: String },
    #[error(transparent)]
    Kernel(#[from] weft_kernel::Error),
}

/// What CHECK found to be other than ADD made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference(pub String);

/// The kernel as pods need it.
pub trait PodKernel: Send + Sync + 'static {
    /// Makes the attachment, for [`finish`](Self::finish) to follow. On an error nothing of it is left.
    fn attach(
        &self,
        attachment: &Attachment,
        netns: &NetNs,
        mtu: u32,
        steps: &Steps,
    ) -> Result<(), WiringError>;

    /// Has the attachment outlive this agent: one that is not finished is removed by the next.
    fn finish(&self, attachment: &Attachment) -> Result<(), WiringError>;

    /// Removes what ADDs that never ended left. To be called while there is no ADD.
    fn remove_unfinished(&self) -> Result<(), WiringError>;

    /// Takes the attachment away, as much of it as there is.
    fn detach(&self, attachment: &Attachment) -> Result<(), WiringError>;

    /// Compares the attachment with what [`attach`](Self::attach) makes.
    fn check(&self, attachment: &Attachment, netns: &NetNs, mtu: u32)
    -> Result<Vec<Difference>, WiringError>;

    /// The attachments that have an interface on this node.
    fn attached(&self) -> Result<Vec<AttachmentKey>, WiringError>;

    /// Compares the node's side of all attachments, and the map entries of pods, with what they should be.
    ///
    /// A mending pass goes on after an attachment that can't be put right, and returns the last error.
    fn pass(&self, attachments: &[Attachment], mtu: u32, pass: &mut Pass) -> Result<(), WiringError>;
}

/// The real kernel.
#[derive(Debug)]
pub struct Wiring {
    datapath: Arc<Mutex<Datapath>>,
    /// Whether the programs of all pods are this agent's.
    adopted: AtomicBool,
    reaper: Reaper,
    /// Whose interface is being made. The kernel makes one at a time anyway (RTNL), and whoever writes `disable_ipv6`
    /// meanwhile tries again and again until it gets the lock (`addrconf_disable_ipv6` in net/ipv6/addrconf.c). Without
    /// this, 16 ADDs at a time take a third longer, and on a busy machine twice as long.
    turn: Mutex<()>,
}

/// When the interface of an attachment that is taken away goes.
#[derive(Clone, Copy, Debug)]
enum Removal {
    /// Before the call returns.
    AtOnce,
    /// With others, in a moment.
    Soon,
}

// === impl Attachment ===

impl Attachment {
    /// Name of the node's end: short enough for the kernel, and the same for the same key on every node. Two keys
    /// can share one (40 bits), which the alias tells.
    pub fn host_name(&self) -> String {
        host_name(&self.key)
    }

    /// Names the owner of the node's end in full.
    pub fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}", self.key)
    }

    /// Ethernet address of the pod's end. Derived from the address, so that a neighbour's memory of an address that
    /// is used again is never wrong.
    pub fn pod_mac(&self) -> Mac {
        pod_mac(self.address)
    }

    /// Ethernet address of the node's end.
    pub fn host_mac(&self) -> Mac {
        host_mac(self.address)
    }

    /// Whether the node's end is not as it should be: down, or with another MTU or Ethernet address.
    pub fn differs(&self, link: &Link, mtu: u32) -> bool {
        !link.up || link.mtu != host_mtu(mtu) || link.mac != Some(self.host_mac())
    }

    /// Name of the pod's end.
    pub fn pod_name(&self) -> &str {
        self.key.if_name()
    }

    fn ip(&self) -> IpAddr {
        self.address.into()
    }

    fn endpoint(&self, ifindex: u32) -> Endpoint {
        Endpoint::new(ifindex, self.pod_mac(), self.host_mac())
    }

    fn host_route(&self, ifindex: u32, mtu: u32) -> Route {
        Route::link(host_net(self.address), ifindex).with_mtu(mtu)
    }

    fn host_neighbour(&self, ifindex: u32) -> Neighbour {
        Neighbour {
            link: ifindex,
            ip: self.address.into(),
            mac: self.pod_mac(),
        }
    }

    fn pod_address(&self, ifindex: u32) -> Address {
        Address::host(ifindex, self.address)
    }

    fn pod_neighbour(&self, ifindex: u32) -> Neighbour {
        Neighbour {
            link: ifindex,
            ip: GATEWAY.into(),
            mac: self.host_mac(),
        }
    }

    fn pod_routes(ifindex: u32) -> [Route; 2] {
        let default = ipnet::Ipv4Net::default();
        [
            Route::link(host_net(GATEWAY), ifindex),
            Route::via(default, GATEWAY, ifindex),
        ]
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.key, self.address)
    }
}

// === impl Wiring ===

impl Wiring {
    /// Wires pods to the namespace of the thread that asks for it.
    pub fn new(datapath: Arc<Mutex<Datapath>>) -> Self {
        Self {
            datapath,
            adopted: AtomicBool::new(false),
            reaper: Reaper::new(),
            turn: Mutex::default(),
        }
    }

    /// What is attached by the kernel's own account: every pod's interface, with each address that is routed to it or
    /// that its Ethernet address was derived from.
    ///
    /// # Errors
    /// The kernel can't be read.
    pub fn found(&self) -> Result<Vec<Found>, WiringError> {
        let mut node = Rtnl::open()?;
        let routes = node.routes(RouteFilter::own())?;
        let mut found = Vec::new();
        for link in node.links()? {
            let Some(key) = attached_by(&link) else { continue };
            if key.container_id() == probe::CONTAINER {
                continue;
            }
            let routed = routes.iter().filter(|route| route.oif == Some(link.index));
            let routed = routed.filter_map(|route| match route.dst {
                ipnet::IpNet::V4(net) if net.prefix_len() == 32 => Some(net.addr()),
                _ => None,
            });
            let addresses: BTreeSet<Ipv4Addr> = routed.chain(link.mac.and_then(address_of)).collect();
            found.extend(addresses.into_iter().map(|address| Found {
                key: key.clone(),
                address,
                host_if_name: link.name.clone(),
            }));
        }
        Ok(found)
    }

    fn make(
        &self,
        attachment: &Attachment,
        netns: &NetNs,
        mtu: u32,
        steps: &Steps,
    ) -> Result<(), WiringError> {
        let host_name = attachment.host_name();
        let mut node = Rtnl::open()?;
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        steps.done(Step::Wait);
        let create = |node: &mut Rtnl| {
            let alias = attachment.alias();
            node.create_veth(
                &LinkSpec {
                    mac: Some(attachment.host_mac()),
                    mtu: Some(host_mtu(mtu)),
                    alias: Some(&alias),
                    group: Some(reaper::UNFINISHED),
                    ..LinkSpec::new(&host_name)
                },
                &LinkSpec {
                    mac: Some(attachment.pod_mac()),
                    mtu: Some(mtu),
                    netns: Some(netns),
                    ..LinkSpec::new(attachment.pod_name())
                },
            )
        };
        let mut created = create(&mut node);
        if is_taken(&created) {
            // What was just taken away and is still to go may have the names of both ends.
            node.delete_group(reaper::DOOMED)?;
            created = create(&mut node);
        }
        if is_taken(&created) && self.remove_leftover(&mut node, attachment)? {
            created = create(&mut node);
        }
        if is_taken(&created) {
            return Err(WiringError::InterfaceExists {
                name: attachment.pod_name().into(),
            });
        }
        created?;
        steps.done(Step::Create);
        let filled = self.fill(&mut node, attachment, netns, mtu, steps, turn);
        filled.inspect_err(|_| {
            if let Err(error) = self.remove(attachment, Removal::AtOnce) {
                tracing::warn!(%attachment, %error, "could not take back a failed attachment");
            }
        })
    }

    fn fill(
        &self,
        node: &mut Rtnl,
        attachment: &Attachment,
        netns: &NetNs,
        mtu: u32,
        steps: &Steps,
        turn: MutexGuard<'_, ()>,
    ) -> Result<(), WiringError> {
        let host_name = attachment.host_name();
        let host = node.link_index(&host_name)?;
        // The pod is fenced in before anything can leave or reach it.
        {
            let mut datapath = lock(&self.datapath);
            datapath.attach_pod(host, &host_name)?;
            datapath
                .endpoints()
                .apply(&attachment.ip(), &attachment.endpoint(host))?;
        }
        without_ipv6(&host_name)?;
        loose(&host_name)?;
        steps.done(Step::Programs);
        let name = attachment.pod_name();
        let (mut pod, index) = netns.run(|| -> Result<_, weft_kernel::Error> {
            without_ipv6(name)?;
            let mut pod = Rtnl::open()?;
            let index = pod.link_index(name)?;
            pod.add_address(&attachment.pod_address(index))?;
            pod.bring_up(index)?;
            pod.replace_neighbour(&attachment.pod_neighbour(index))?;
            for route in Attachment::pod_routes(index) {
                pod.replace_route(&route)?;
            }
            Ok((pod, index))
        })??;
        steps.done(Step::Pod);
        // The end that comes up last has its queue at once. The other one waits for the kernel's link watcher and loses
        // what is sent before: the first packets of a pod whose process starts quickly.
        node.bring_up(host)?;
        drop(turn);
        if !pod.await_operational(index, LINK_WATCHER)? {
            tracing::warn!(%attachment, "the kernel's link watcher is late; the pod's first packets may be lost");
        }
        node.replace_neighbour(&attachment.host_neighbour(host))?;
        node.replace_route(&attachment.host_route(host, mtu))?;
        steps.done(Step::Node);
        Ok(())
    }

    /// Removes a node's end of the same attachment that an interrupted ADD left. `false` if there is none, an error
    /// if the name is somebody else's.
    fn remove_leftover(&self, node: &mut Rtnl, attachment: &Attachment) -> Result<bool, WiringError> {
        let name = attachment.host_name();
        let Some(link) = node.link(&name)? else {
            return Ok(false);
        };
        owned(&link, attachment)?;
        self.remove(attachment, Removal::AtOnce)?;
        Ok(true)
    }

    fn remove(&self, attachment: &Attachment, removal: Removal) -> Result<(), WiringError> {
        let name = attachment.host_name();
        let mut node = Rtnl::open()?;
        let link = node.link(&name)?;
        if let Some(link) = &link {
            owned(link, attachment)?;
        }
        lock(&self.datapath).endpoints().remove(&attachment.ip())?;
        // The programs go with the interface. Without the endpoint they drop what the pod still sends; taken off
        // first, they would leave it to the node's stack.
        let Some(link) = link else { return Ok(()) };
        match removal {
            Removal::AtOnce => _ = node.delete_link(link.index)?,
            Removal::Soon => {
                // Whoever hears that the route goes sees that the interface goes too.
                node.set_group(link.index, reaper::DOOMED)?;
                // The MTU is no part of a route's key.
                node.delete_route(&attachment.host_route(link.index, link.mtu))?;
                self.reaper.wake();
            }
        }
        Ok(())
    }
}

impl PodKernel for Wiring {
    fn attach(
        &self,
        attachment: &Attachment,
        netns: &NetNs,
        mtu: u32,
        steps: &Steps,
    ) -> Result<(), WiringError> {
        self.make(attachment, netns, mtu, steps)
    }

    fn finish(&self, attachment: &Attachment) -> Result<(), WiringError> {
        Rtnl::open()?.set_group(&attachment.host_name(), 0)?;
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), WiringError> {
        let mut node = Rtnl::open()?;
        for link in node.links()?.iter().filter(|link| reaper::is_unfinished(link)) {
            tracing::info!(
                interface = link.name,
                "removing what an ADD that never ended left"
            );
            if let Some(address) = link.mac.and_then(address_of) {
                lock(&self.datapath).endpoints().remove(&address.into())?;
            }
        }
        node.delete_group(reaper::UNFINISHED)?;
        Ok(())
    }

    fn detach(&self, attachment: &Attachment) -> Result<(), WiringError> {
        self.remove(attachment, Removal::Soon)
    }

    fn check(
        &self,
        attachment: &Attachment,
        netns: &NetNs,
        mtu: u32,
    ) -> Result<Vec<Difference>, WiringError> {
        self.differences(attachment, netns, mtu)
    }

    fn attached(&self) -> Result<Vec<AttachmentKey>, WiringError> {
        let links = Rtnl::open()?.links()?;
        Ok(links.iter().filter_map(attached_by).collect())
    }

    fn pass(&self, attachments: &[Attachment], mtu: u32, pass: &mut Pass) -> Result<(), WiringError> {
        self.compare(attachments, mtu, pass)
    }
}

// === private ===

/// Whose the link is, where it is the node's end of an attachment that is whole and not about to go.
fn attached_by(link: &Link) -> Option<AttachmentKey> {
    let is_whole = !reaper::is_doomed(link) && !reaper::is_unfinished(link);
    let alias = link.alias.as_deref().filter(|_| is_whole);
    alias.and_then(key_of_alias)
}

fn is_taken(created: &Result<(), weft_kernel::Error>) -> bool {
    created.as_ref().is_err_and(weft_kernel::Error::is_exists)
}

fn owned(link: &Link, attachment: &Attachment) -> Result<(), WiringError> {
    if link.alias.as_deref() == Some(attachment.alias().as_str()) {
        return Ok(());
    }
    let owner = link
        .alias
        .clone()
        .unwrap_or_else(|| "something that is not Weft".into());
    Err(WiringError::HostNameTaken {
        name: link.name.clone(),
        owner,
    })
}

/// Keeps IPv6, which the overlay does not carry, from talking on `link` of the calling thread's namespace: its router
/// solicitations would only be counted as drops. A kernel without IPv6 has nothing to change.
fn without_ipv6(link: &str) -> Result<(), weft_kernel::Error> {
    match sysctl::set_current(&no_ipv6(link)?, "1") {
        Err(error) if error.is_not_found() => Ok(()),
        written => written,
    }
}

/// Loose reverse-path filtering on `link`, because a packet that the stack translated can come from where its source
/// is not routed to. The effective value is the larger one of the interface's and `all`'s, so 2 also overrules a
/// strict `all` (Documentation/networking/ip-sysctl.rst).
fn loose(link: &str) -> Result<(), weft_kernel::Error> {
    sysctl::set_current(&Key::ipv4_conf(link, "rp_filter")?, LOOSE)
}

/// MTU of the node's end. A veth drops what is longer than the receiving end takes, without a word; with room for the
/// uplink's packets a pod that sends too much is told so by the node's stack.
fn host_mtu(mtu: u32) -> u32 {
    mtu + weft_abi::VXLAN_OVERHEAD
}

pub fn host_name(key: &AttachmentKey) -> String {
    let digest = Sha256::digest(key.to_string());
    let hex: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("{HOST_PREFIX}{hex}")
}

pub fn key_of_alias(alias: &str) -> Option<AttachmentKey> {
    alias.strip_prefix(ALIAS_PREFIX)?.parse().ok()
}

/// See [`Attachment::pod_mac`].
pub fn pod_mac(address: Ipv4Addr) -> Mac {
    mac(0x0a, address)
}

/// The address that the Ethernet address of a node's end was derived from.
fn address_of(mac: Mac) -> Option<Ipv4Addr> {
    let [_, _, a, b, c, d] = mac.octets();
    let address = Ipv4Addr::new(a, b, c, d);
    (mac == host_mac(address)).then_some(address)
}

fn host_mac(address: Ipv4Addr) -> Mac {
    mac(0x0e, address)
}

fn mac(first: u8, address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([first, 0x57, a, b, c, d])
}

fn host_net(address: Ipv4Addr) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            key: AttachmentKey::new("4f1c".repeat(16), "eth0").unwrap(),
            address: Ipv4Addr::new(10, 244, 1, 7),
        }
    }

    #[test]
    fn the_nodes_end_has_a_name_the_kernel_accepts_and_an_alias_that_reads_back() {
        let attachment = attachment();
        let name = attachment.host_name();
        assert_eq!((name.len(), &name[..4]), (14, "weft"));
        assert_eq!(key_of_alias(&attachment.alias()), Some(attachment.key));
        assert_eq!(key_of_alias("somebody else's"), None);
    }

    #[test]
    fn two_interfaces_of_one_container_have_two_names() {
        let other = AttachmentKey::new("4f1c".repeat(16), "eth1").unwrap();
        assert_ne!(host_name(&attachment().key), host_name(&other));
    }

    #[test]
    fn ethernet_addresses_are_local_unicast_and_differ_by_end_and_address() {
        let attachment = attachment();
        for mac in [attachment.pod_mac(), attachment.host_mac()] {
            assert_eq!(mac.octets()[0] & 0b11, 0b10, "{mac}");
        }
        assert_eq!(attachment.pod_mac().to_string(), "0a:57:0a:f4:01:07");
        assert_eq!(attachment.host_mac().to_string(), "0e:57:0a:f4:01:07");
        assert_eq!(address_of(attachment.host_mac()), Some(attachment.address));
        assert_eq!(address_of(attachment.pod_mac()), None);
    }
}

#[cfg(test)]
#[path = "wiring_tests.rs"]
mod in_namespaces;

#[cfg(test)]
#[path = "node_tests.rs"]
mod whole_node;

#[cfg(test)]
#[path = "transport_tests.rs"]
mod transport;

#[cfg(test)]
#[path = "takeover_tests.rs"]
mod takeover;
