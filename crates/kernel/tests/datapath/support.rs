//! Clusters of namespaces for tests. Everything goes away with the test, also when it fails.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use weft_kernel::bpf::{
    Datapath, DropReason, Endpoint, ForwardPath, NodeConfig, Options, PrefixTarget, Transport,
};
use weft_kernel::nft::{Nft, WeftNft, weft_table};
use weft_kernel::process::{Signal, processes_in};
use weft_kernel::rtnl::{Address, LinkSpec, Neighbour, Route, Rtnl, VxlanSpec};
use weft_kernel::target::{Target, reconcile};
use weft_kernel::{NetNs, mount, sockets};
use weft_model::Mac;

/// Longest wait for something that should happen; shortest that shows it does not is [`SILENCE`].
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing must come for "it does not come".
pub(crate) const SILENCE: Duration = Duration::from_millis(300);
pub(crate) const VXLAN_PORT: u16 = 8472;
pub(crate) const UPLINK_MTU: u32 = 1500;
pub(crate) const POD_MTU: u32 = UPLINK_MTU - 50;
pub(crate) const POOL: &str = "10.244.0.0/16";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whether this test can run; says why not.
pub(crate) fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("{test}: SKIPPED, needs root to make network namespaces and load eBPF programs");
    }
    root
}

/// The transport that all tests are run with but those that choose one: `WEFT_TRANSPORT`, direct where absent.
fn transport(uplink: u32) -> Transport {
    match std::env::var("WEFT_TRANSPORT").as_deref() {
        Ok("direct" | "auto") | Err(_) => Transport::Direct(uplink),
        Ok("device") => Transport::Device,
        Ok(other) => panic!("WEFT_TRANSPORT={other} is none of auto, direct and device"),
    }
}

/// Returns from the test unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::support::root(std::thread::current().name().unwrap_or_default()) {
            return;
        }
    };
}

/// A named namespace with `lo` up and without IPv6, whose chatter would be counted.
pub(crate) struct TestNs {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
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

// === impl TestNs ===

impl TestNs {
    pub(crate) fn new(role: &str) -> Self {
        let name = format!(
            "wdp-{}-{}-{role}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let netns = NetNs::create_named(&name).unwrap();
        let test = Self { name, netns };
        test.netns
            .run(|| {
                for scope in ["all", "default"] {
                    std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
                }
            })
            .unwrap();
        test.rtnl().set_up("lo", true).unwrap();
        test
    }

    /// A number of the namespace's IP statistics (RFC 4293), by its name in /proc/net/snmp.
    pub(crate) fn ip_statistic(&self, name: &str) -> u64 {
        let table = self.exec("cat /proc/net/snmp");
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let names = lines.next().unwrap().split(' ');
        let (_, number) = names
            .zip(lines.next().unwrap().split(' '))
            .find(|(found, _)| *found == name)
            .unwrap();
        number.parse().unwrap()
    }

    pub(crate) fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.netns).unwrap()
    }

    /// What a program prints that runs in this namespace.
    pub(crate) fn exec(&self, line: &str) -> String {
        self.feed(line, "")
    }

    /// The same with something on its standard input.
    pub(crate) fn feed(&self, line: &str, input: &str) -> String {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(line.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().unwrap();
        assert!(status.success(), "{line}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        self.netns
            .run(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap())
            .unwrap();
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        let own = std::process::id().cast_signed();
        for process in processes_in(&self.netns)
            .unwrap_or_default()
            .iter()
            .filter(|process| process.pid != own)
        {
            let _ = process.signal(Signal::KILL);
        }
        let _ = NetNs::delete_named(&self.name);
    }
}

// === impl Bpffs ===

impl Bpffs {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wdp-{}-{number}", std::process::id()));
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
        let vnet = TestNs::new("vnet");
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
        let ns = TestNs::new("host");
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
        let ns = TestNs::new(&format!("node{number}"));
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
        set(&mut self.datapath.prefixes(), &prefixes);
        let others = nodes.iter().filter(|(address, _)| *address != self.underlay);
        set(
            &mut self.datapath.nodes(),
            &others.map(|(address, _)| (IpAddr::from(*address), ())).collect(),
        );
    }

    pub(crate) fn pod(&mut self, number: u8) -> Pod {
        let ns = TestNs::new("pod");
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

/// A UDP client and the server that answers it, one flow for as long as it lives.
pub(crate) struct Echo {
    client: UdpSocket,
    server: UdpSocket,
}

// === impl Echo ===

impl Echo {
    pub(crate) fn start(client: &NetNs, server: &NetNs, listen: SocketAddrV4, to: SocketAddrV4) -> Self {
        let server = sockets::udp_socket(server, listen.into()).unwrap();
        let client = sockets::udp_socket(client, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        // Connected, so that only an answer from where the request went counts.
        client.connect(to).unwrap();
        Self { client, server }
    }

    pub(crate) fn round_trip(&self) {
        const REQUEST: &[u8] = b"still there?";
        self.client.send(REQUEST).unwrap();
        let mut buffer = [0; 64];
        loop {
            let (length, peer) = self.server.recv_from(&mut buffer).unwrap();
            if buffer[..length] == *REQUEST {
                self.server.send_to(REQUEST, peer).unwrap();
                break;
            }
        }
        let length = self.client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], REQUEST);
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

/// A megabyte in which no part looks like another.
pub(crate) fn megabyte() -> Vec<u8> {
    (0..1_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Sends `request` bytes over TCP and gets them back. Returns the address that the server saw.
pub(crate) fn tcp_echo(
    client: &NetNs,
    server: &NetNs,
    listen: SocketAddrV4,
    to: SocketAddrV4,
    request: &[u8],
) -> io::Result<SocketAddr> {
    let listener = sockets::tcp_listener(server, listen.into()).map_err(io::Error::from)?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || -> io::Result<SocketAddr> {
            let (mut stream, peer) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(peer),
                    length => stream.write_all(&buffer[..length])?,
                }
            }
        });
        let exchange = || -> io::Result<()> {
            let stream = sockets::tcp_connect(client, to.into(), PATIENCE).map_err(io::Error::from)?;
            exchange(&stream, request)
        };
        let outcome = exchange();
        if outcome.is_err() {
            // Nobody may have come: let the server go.
            let _ = sockets::tcp_connect(server, listen.into(), PATIENCE);
        }
        let peer = serving.join().unwrap();
        outcome?;
        peer
    })
}

fn exchange(mut stream: &TcpStream, request: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> io::Result<()> {
            let mut stream = stream;
            stream.write_all(request)?;
            stream.shutdown(std::net::Shutdown::Write)
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        writing.join().unwrap()?;
        if answer == request {
            Ok(())
        } else {
            Err(io::Error::other("the answer differs from the request"))
        }
    })
}

/// Sends a datagram and gets it back. Returns the address that the server saw.
pub(crate) fn udp_echo(
    client: &NetNs,
    server: &NetNs,
    listen: SocketAddrV4,
    to: SocketAddrV4,
    request: &[u8],
) -> io::Result<SocketAddr> {
    let server = sockets::udp_socket(server, listen.into()).map_err(io::Error::from)?;
    let client = sockets::udp_socket(client, (Ipv4Addr::UNSPECIFIED, 0).into()).map_err(io::Error::from)?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    // Connected, so that only an answer from where the request went counts.
    client.connect(to)?;
    client.send(request)?;
    let mut buffer = vec![0; 65_536];
    let (length, peer) = server.recv_from(&mut buffer)?;
    server.send_to(&buffer[..length], peer)?;
    let length = client.recv(&mut buffer)?;
    if buffer[..length] == *request {
        Ok(peer)
    } else {
        Err(io::Error::other("the answer differs from the request"))
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
