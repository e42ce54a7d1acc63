//! Clusters of namespaces for tests. Everything goes away with the test, also when it fails.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use weft_kernel::bpf::{
    BlockIndex, Datapath, DropReason, Endpoint, ForwardPath, NodeConfig, Options, PrefixTarget, Transport,
};
use weft_kernel::mount;
use weft_kernel::nft::{Nft, WeftNft, weft_table};
use weft_kernel::rtnl::{Address, LinkSpec, Neighbour, Route, VxlanSpec};
use weft_kernel::target::{Target, reconcile};
use weft_model::Mac;

use crate::namespaces::TestNs;
use crate::owned;

/// Longest wait for something that should happen; shortest that shows it does not is [`SILENCE`].
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing must come for "it does not come".
pub(crate) const SILENCE: Duration = Duration::from_millis(300);
pub(crate) const VXLAN_PORT: u16 = 8472;
pub(crate) const UPLINK_MTU: u32 = 1500;
pub(crate) const POD_MTU: u32 = UPLINK_MTU - 50;
pub(crate) const POOL: &str = "10.244.0.0/16";
/// Length in bits of every node's block.
const BLOCK_LEN: u8 = 24;

/// The transport that all tests are run with but those that choose one: `WEFT_TRANSPORT`, direct where absent.
fn transport(uplink: u32) -> Transport {
    match std::env::var("WEFT_TRANSPORT").as_deref() {
        Ok("direct" | "auto") | Err(_) => Transport::Direct(uplink),
        Ok("device") => Transport::Device,
        Ok(other) => panic!("WEFT_TRANSPORT={other} is none of auto, direct and device"),
    }
}

/// A BPF file system of its own.
pub(crate) struct Bpffs {
    pub(crate) path: PathBuf,
}

/// Nodes on one underlay.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) vnet: TestNs,
    _bpffs: Bpffs,
}

/// A node with its datapath attached and configured.
pub(crate) struct Node {
    pub(crate) datapath: Datapath,
    pub(crate) ns: TestNs,
    pub(crate) underlay: Ipv4Addr,
    pub(crate) block: Ipv4Net,
    pub(crate) overlay: u32,
    pub(crate) uplink: u32,
    pub(crate) options: Options,
}

/// A pod wired to its node.
pub(crate) struct Pod {
    pub(crate) ns: TestNs,
    pub(crate) address: Ipv4Addr,
    pub(crate) host_name: String,
    pub(crate) endpoint: Endpoint,
}

/// All counters of a node, for comparing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) drops: BTreeMap<DropReason, u64>,
    pub(crate) forwards: BTreeMap<ForwardPath, u64>,
}

// === impl Bpffs ===

impl Bpffs {
    /// What the names of their directories begin with.
    const PREFIX: &str = "wdp";

    pub(crate) fn new() -> Self {
        static SWEPT: Once = Once::new();
        let directory = std::env::temp_dir();
        SWEPT.call_once(|| {
            for name in owned::orphans(Self::PREFIX, &directory) {
                // It is unmounted and removed as at the end of a test.
                drop(Self {
                    path: directory.join(name),
                });
            }
        });
        let path = directory.join(owned::name(Self::PREFIX, "bpf"));
        mount::bpffs(&path).unwrap();
        Self { path }
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.path);
        let _ = std::fs::remove_dir(&self.path);
    }
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn new(size: u8) -> Self {
        Self::with(size, |options| options)
    }

    pub(crate) fn with(size: u8, adapt: impl Fn(Options) -> Options) -> Self {
        let bpffs = Bpffs::new();
        let vnet = TestNs::quiet("vnet");
        // Where br_netfilter is loaded, bridges would check IP headers and drop what tests send on purpose.
        vnet.exec("ip link add br0 type bridge");
        let nf_call = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let switched = vnet.netns.run(|| std::fs::write(nf_call, "0")).unwrap();
        assert!(
            switched.is_ok() || !std::path::Path::new(nf_call).exists(),
            "{switched:?}"
        );
        vnet.exec("ip addr add 172.31.0.254/24 dev br0");
        vnet.exec("ip link set br0 up");
        let mut cluster = Self {
            nodes: Vec::new(),
            vnet,
            _bpffs: bpffs,
        };
        for number in 0..size {
            let options = adapt(Options::new(cluster._bpffs.path.join(format!("node{number}"))));
            let node = Node::new(&cluster.vnet, number, options);
            cluster.nodes.push(node);
        }
        let facts: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| (node.underlay, node.block))
            .collect();
        for node in &mut cluster.nodes {
            node.know(&facts);
        }
        cluster
    }

    /// A host of the underlay that is no node.
    pub(crate) fn host(&self, number: u8) -> TestNs {
        let ns = TestNs::quiet("host");
        connect(
            &self.vnet,
            &ns,
            &format!("h{number}"),
            Ipv4Addr::new(172, 31, 0, 100 + number),
        );
        ns
    }

    pub(crate) fn pod(&mut self, node: usize, number: u8) -> Pod {
        self.nodes[node].pod(number)
    }

    /// What each node counted since `before`.
    pub(crate) fn since(&self, before: &[Counts]) -> Vec<Counts> {
        self.counts()
            .iter()
            .zip(before)
            .map(|(now, then)| now.since(then))
            .collect()
    }

    pub(crate) fn counts(&self) -> Vec<Counts> {
        self.nodes.iter().map(Node::counts).collect()
    }
}

// === impl Node ===

impl Node {
    fn new(vnet: &TestNs, number: u8, options: Options) -> Self {
        let ns = TestNs::quiet(&format!("node{number}"));
        let underlay = Ipv4Addr::new(172, 31, 0, 1 + number);
        let block = Ipv4Net::new(Ipv4Addr::new(10, 244, number, 0), 24).unwrap();
        connect(vnet, &ns, &format!("n{number}"), underlay);
        for (path, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ] {
            ns.sysctl(path, value);
        }
        let mut rtnl = ns.rtnl();
        let uplink = rtnl.link_index("eth0").unwrap();
        let mac = Mac([0x02, b'w', b'e', b'f', b't', 0]);
        rtnl.create_vxlan(&VxlanSpec {
            name: "weft0",
            mac,
            mtu: POD_MTU,
            port: VXLAN_PORT,
        })
        .unwrap();
        let overlay = rtnl.link_index("weft0").unwrap();
        rtnl.replace_address(&Address::host(overlay, underlay)).unwrap();

        let mut datapath = Datapath::load(&options).unwrap();
        let config = NodeConfig {
            underlay: underlay.into(),
            overlay_ifindex: overlay,
            pod_mtu: POD_MTU,
            vxlan_port: VXLAN_PORT,
            transport: transport(uplink),
            blocks: Some(BlockIndex {
                len: BLOCK_LEN,
                within: POOL.parse().unwrap(),
            }),
        };
        datapath.configure(&config).unwrap();
        assert_eq!(datapath.config().unwrap(), Some(config));
        ns.netns
            .run(|| {
                datapath.attach_overlay(overlay, "weft0").unwrap();
                datapath.attach_uplink(uplink, "eth0").unwrap();
            })
            .unwrap();
        rtnl.set_up(overlay, true).unwrap();
        let pool: Ipv4Net = POOL.parse().unwrap();
        rtnl.replace_route(&Route::link(pool, overlay).with_src(underlay))
            .unwrap();
        rtnl.replace_route(&Route::unreachable(block)).unwrap();
        let node = Self {
            datapath,
            ns,
            underlay,
            block,
            overlay,
            uplink,
            options,
        };
        node.masquerade();
        node
    }

    /// Changes how packets get to other nodes.
    pub(crate) fn switch(&mut self, transport: Transport) {
        let before = self.datapath.config().unwrap().unwrap();
        let config = NodeConfig { transport, ..before };
        self.datapath.configure(&config).unwrap();
        assert_eq!(self.datapath.config().unwrap(), Some(config));
    }

    /// Packets that the overlay device received and sent.
    pub(crate) fn by_device(&self) -> [u64; 2] {
        let table = self.ns.exec("cat /proc/net/dev");
        let (_, numbers) = table
            .lines()
            .find_map(|line| {
                line.trim_start()
                    .split_once("weft0:")
                    .filter(|(before, _)| before.is_empty())
            })
            .unwrap();
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        [numbers[1], numbers[9]]
    }

    /// The rules that an agent keeps.
    fn masquerade(&self) {
        let rules = WeftNft {
            pod_cidrs: vec![POOL.parse().unwrap()],
            non_masquerade: Vec::new(),
            blocks: vec![self.block],
            node_addrs: vec![self.underlay],
            uplink: Some("eth0".to_owned()),
            overlay: "weft0".to_owned(),
            port_range: 32768..=65535,
            vxlan_port: VXLAN_PORT,
        };
        let mut nft = Nft::open_in(&self.ns.netns).unwrap();
        nft.apply(&weft_table(&rules).unwrap()).unwrap();
    }

    /// Tells the datapath what is behind a network, wherever it looks for it.
    pub(crate) fn tell(&mut self, net: Ipv4Net, target: PrefixTarget) {
        self.datapath.prefixes().apply(&net.into(), &target).unwrap();
        if net.prefix_len() == BLOCK_LEN {
            self.datapath.blocks().apply(&net, &target).unwrap();
        }
    }

    /// Tells the datapath about the cluster.
    pub(crate) fn know(&mut self, nodes: &[(Ipv4Addr, Ipv4Net)]) {
        let mut prefixes = BTreeMap::from([(POOL.parse::<IpNet>().unwrap(), PrefixTarget::Pool)]);
        for &(address, block) in nodes {
            let underlay = IpAddr::from(address);
            let host = IpNet::from(underlay);
            if address == self.underlay {
                prefixes.insert(block.into(), PrefixTarget::LocalBlock);
                prefixes.insert(host, PrefixTarget::SelfNode);
            } else {
                prefixes.insert(
                    block.into(),
                    PrefixTarget::RemoteBlock {
                        underlay,
                        mtu: None,
                        next_hop: Some(address),
                    },
                );
                prefixes.insert(
                    host,
                    PrefixTarget::RemoteNode {
                        underlay,
                        mtu: None,
                        next_hop: Some(address),
                    },
                );
            }
        }
        let blocks = nodes
            .iter()
            .map(|(_, block)| (*block, prefixes[&IpNet::from(*block)]));
        set(&mut self.datapath.blocks(), &blocks.collect());
        set(&mut self.datapath.prefixes(), &prefixes);
        let others = nodes.iter().filter(|(address, _)| *address != self.underlay);
        set(
            &mut self.datapath.nodes(),
            &others.map(|(address, _)| (IpAddr::from(*address), ())).collect(),
        );
    }

    pub(crate) fn pod(&mut self, number: u8) -> Pod {
        let ns = TestNs::quiet("pod");
        let [a, b, c, _] = self.block.network().octets();
        let address = Ipv4Addr::new(a, b, c, number);
        let host_name = format!("weft{number}");
        let mac = Mac([0x0a, 0, a, b, c, number]);
        let host_mac = Mac([0x0e, 0, a, b, c, number]);
        let mut rtnl = self.ns.rtnl();
        rtnl.create_veth(
            &LinkSpec {
                mac: Some(host_mac),
                mtu: Some(POD_MTU),
                ..LinkSpec::new(&host_name)
            },
            &LinkSpec {
                mac: Some(mac),
                mtu: Some(POD_MTU),
                netns: Some(&ns.netns),
                ..LinkSpec::new("eth0")
            },
        )
        .unwrap();
        let ifindex = rtnl.link_index(host_name.as_str()).unwrap();
        let endpoint = Endpoint::new(ifindex, mac, host_mac);
        self.ns
            .netns
            .run(|| self.datapath.attach_pod(ifindex, &host_name).unwrap())
            .unwrap();
        self.datapath
            .endpoints()
            .apply(&address.into(), &endpoint)
            .unwrap();
        rtnl.set_up(ifindex, true).unwrap();
        rtnl.replace_neighbour(&Neighbour {
            link: ifindex,
            ip: address.into(),
            mac,
        })
        .unwrap();
        rtnl.replace_route(&Route::link(Ipv4Net::from(address), ifindex))
            .unwrap();

        let gateway = Ipv4Addr::new(169, 254, 1, 1);
        let mut pod = ns.rtnl();
        let eth0 = pod.link_index("eth0").unwrap();
        pod.replace_address(&Address::host(eth0, address)).unwrap();
        pod.set_up(eth0, true).unwrap();
        pod.replace_neighbour(&Neighbour {
            link: eth0,
            ip: gateway.into(),
            mac: host_mac,
        })
        .unwrap();
        pod.replace_route(&Route::link(Ipv4Net::from(gateway), eth0))
            .unwrap();
        pod.replace_route(&Route::via(Ipv4Net::default(), gateway, eth0))
            .unwrap();
        // The pod's end coming up activates the node's end later, in the kernel's link watcher; what the node sends
        // before that is lost.
        let show = format!("ip -o link show dev {host_name}");
        while self.ns.exec(&show).contains("qdisc noop ") {}
        Pod {
            ns,
            address,
            host_name,
            endpoint,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            drops: moved(
                self.datapath
                    .drops()
                    .unwrap()
                    .into_iter()
                    .map(|(reason, count)| (reason, count.packets)),
            ),
            forwards: moved(
                self.datapath
                    .forwards()
                    .unwrap()
                    .into_iter()
                    .map(|(path, count)| (path, count.packets)),
            ),
        }
    }

    /// Translates destinations by `rule`, of packets that arrive and of the node's own; in place of the rule before.
    pub(crate) fn dnat(&self, rule: &str) {
        let rules = format!(
            "table ip proxy
             delete table ip proxy
             table ip proxy {{
               chain prerouting {{
                 type nat hook prerouting priority dstnat;
                 {rule}
               }}
               chain output {{
                 type nat hook output priority -100;
                 {rule}
               }}
             }}"
        );
        self.ns.feed("nft -f -", &rules);
    }

    /// Translates sources by `rule`.
    pub(crate) fn snat(&self, rule: &str) {
        let rules = format!(
            "table ip proxy_source {{
               chain postrouting {{
                 type nat hook postrouting priority srcnat;
                 {rule}
               }}
             }}"
        );
        self.ns.feed("nft -f -", &rules);
    }
}

// === impl Counts ===

impl Counts {
    /// What was counted since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            drops: difference(&self.drops, &before.drops),
            forwards: difference(&self.forwards, &before.forwards),
        }
    }

    pub(crate) fn drop(mut self, reason: DropReason, packets: u64) -> Self {
        self.drops.insert(reason, packets);
        self
    }

    pub(crate) fn forward(mut self, path: ForwardPath, packets: u64) -> Self {
        self.forwards.insert(path, packets);
        self
    }
}

fn connect(vnet: &TestNs, ns: &TestNs, port: &str, address: Ipv4Addr) {
    vnet.rtnl()
        .create_veth(
            &LinkSpec {
                up: true,
                mtu: Some(UPLINK_MTU),
                ..LinkSpec::new(port)
            },
            &LinkSpec {
                up: true,
                mtu: Some(UPLINK_MTU),
                netns: Some(&ns.netns),
                ..LinkSpec::new("eth0")
            },
        )
        .unwrap();
    vnet.exec(&format!("ip link set {port} master br0"));
    let mut rtnl = ns.rtnl();
    let eth0 = rtnl.link_index("eth0").unwrap();
    rtnl.replace_address(&Address::new(eth0, Ipv4Net::new(address, 24).unwrap()))
        .unwrap();
    rtnl.set_up(eth0, true).unwrap();
    rtnl.replace_route(&Route::via(
        Ipv4Net::default(),
        Ipv4Addr::new(172, 31, 0, 254),
        eth0,
    ))
    .unwrap();
    while ns.exec("ip -o link show dev eth0").contains("qdisc noop ") {}
    // The bridge forwards for a port once the kernel's link watcher has seen both of its ends up.
    let show = format!("ip -d -o link show dev {port}");
    while !vnet.exec(&show).contains("state forwarding") {}
}

fn set<T: Target>(target: &mut T, desired: &BTreeMap<T::Key, T::Value>)
where
    T::Key: Debug,
{
    let outcome = reconcile(target, desired).unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert!(reconcile(target, desired).unwrap().is_unchanged());
}

fn moved<K: Ord>(counts: impl Iterator<Item = (K, u64)>) -> BTreeMap<K, u64> {
    counts.filter(|(_, packets)| *packets != 0).collect()
}

fn difference<K: Ord + Copy>(after: &BTreeMap<K, u64>, before: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    moved(
        after
            .iter()
            .map(|(key, packets)| (*key, packets - before.get(key).copied().unwrap_or_default())),
    )
}
