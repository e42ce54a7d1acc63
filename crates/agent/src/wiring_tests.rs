//! The node's and the pods' part of the kernel, in namespaces. Everything goes away with the test, also when it fails.

use super::*;
use crate::desired::{Desired, Prefix};
use crate::metrics::{Metrics, Totals};
use crate::node::{NodeNet, OVERLAY, Settings};
use crate::originals::Originals;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use weft_kernel::bpf::Options;
use weft_kernel::mount;
use weft_model::TransportChoice;

const NODE: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 4);
const MTU: u32 = 1450;

struct Bpffs(TempDir);

/// A node whose network is in order.
pub(super) struct Node {
    pub(super) net: NodeNet,
    pub(super) wiring: Wiring,
    pub(super) desired: Arc<Desired>,
    pub(super) pins: PathBuf,
    pub(super) state: PathBuf,
    /// Whether the node's namespace forwarded packets before the agent came.
    pub(super) forwarded_before: String,
}

impl Node {
    /// An ADD as the runtime hears of it.
    pub(super) fn add(&self, pod: &Attachment, netns: &NetNs) {
        self.wiring.attach(pod, netns, MTU, &Steps::begin()).unwrap();
        self.wiring.finish(pod).unwrap();
    }
}

impl Bpffs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount::bpffs(dir.path()).unwrap();
        Self(dir)
    }

    fn pins(&self) -> PathBuf {
        self.0.path().join("weft")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = mount::unmount(self.0.path());
    }
}

/// Runs `test` on a thread in a node's namespace that has an uplink with the node's address.
pub(super) fn on_a_node(test: impl FnOnce(Node) + Send) {
    on_a_node_told(TransportChoice::default(), test);
}

/// The same, with an agent that was told how packets are to get to other nodes.
pub(super) fn on_a_node_told(transport: TransportChoice, test: impl FnOnce(Node) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making network namespaces and loading eBPF programs needs root");
        return;
    }
    let bpffs = Bpffs::new();
    let state = tempfile::tempdir().unwrap();
    let (node, beyond) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    node.run(|| {
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.set_up("lo", true).unwrap();
        rtnl.create_veth(
            &LinkSpec {
                up: true,
                ..LinkSpec::new("eth0")
            },
            &LinkSpec {
                up: true,
                netns: Some(&beyond),
                ..LinkSpec::new("eth0")
            },
        )
        .unwrap();
        let eth0 = rtnl.link_index("eth0").unwrap();
        let net: ipnet::Ipv4Net = "10.224.0.4/16".parse().unwrap();
        rtnl.add_address(&Address::new(eth0, net)).unwrap();

        let datapath = Arc::new(Mutex::new(Datapath::load(&Options::new(bpffs.pins())).unwrap()));
        let metrics = Arc::new(Metrics::new("n1", Totals::default));
        let settings = Settings {
            uplink: None,
            vxlan_port: 8472,
            transport,
            originals: Originals::of(&state.path().join("weft")),
        };
        let forward = Key::new("net/ipv4/ip_forward").unwrap();
        let forwarded_before = sysctl::read_current(&forward).unwrap();
        let mut net = NodeNet::new(settings, Arc::clone(&datapath), metrics).unwrap();
        let desired = Arc::new(desired());
        assert_eq!(net.reconcile(&desired).unwrap(), MTU);
        test(Node {
            net,
            wiring: Wiring::new(datapath),
            desired,
            pins: bpffs.pins(),
            state: state.path().join("weft"),
            forwarded_before,
        });
    })
    .unwrap();
}

pub(super) fn desired() -> Desired {
    let underlay = Ipv4Addr::new(10, 224, 0, 5);
    Desired {
        node_uid: "u1".parse().unwrap(),
        address: NODE,
        addresses: vec![NODE],
        max_pods: None,
        blocks: vec!["10.244.0.0/24".parse().unwrap()],
        retiring: vec![],
        pod_cidrs: ["10.244.0.0/16".parse().unwrap()].into(),
        non_masquerade: [].into(),
        prefixes: [
            ("10.224.0.4/32".parse().unwrap(), Prefix::SelfNode),
            ("10.224.0.5/32".parse().unwrap(), Prefix::RemoteNode { underlay }),
            ("10.244.0.0/16".parse().unwrap(), Prefix::Pool),
            ("10.244.0.0/24".parse().unwrap(), Prefix::LocalBlock),
            ("10.244.1.0/24".parse().unwrap(), Prefix::RemoteBlock { underlay }),
        ]
        .into(),
        nodes: [underlay].into(),
    }
}

pub(super) fn pod(last: u8) -> (Attachment, NetNs) {
    let key = AttachmentKey::new(format!("{last:064x}"), "eth0").unwrap();
    (
        Attachment {
            key,
            address: Ipv4Addr::new(10, 244, 0, last),
        },
        NetNs::create().unwrap(),
    )
}

pub(super) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Sends a datagram from one namespace to an address in another and returns whether it came.
fn delivers(from: &NetNs, to: &NetNs, address: Ipv4Addr) -> bool {
    let receiver = to.run(|| UdpSocket::bind((address, 7)).unwrap()).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    sender.send_to(b"weft", SocketAddr::from((address, 7))).is_ok()
        && receiver
            .recv_from(&mut [0; 8])
            .is_ok_and(|(length, _)| length == 4)
}

fn words(differences: &[Difference]) -> Vec<&str> {
    differences
        .iter()
        .map(|difference| difference.0.as_str())
        .collect()
}

#[test]
fn two_pods_and_their_node_reach_each_other() {
    on_a_node(|node| {
        let here = NetNs::current().unwrap();
        let ((a, a_ns), (b, b_ns)) = (pod(0), pod(255));
        for (attachment, netns) in [(&a, &a_ns), (&b, &b_ns)] {
            node.add(attachment, netns);
            assert_eq!(
                words(&node.wiring.check(attachment, netns, MTU).unwrap()),
                [""; 0]
            );
        }
        assert!(delivers(&a_ns, &b_ns, b.address), "pod to pod");
        assert!(delivers(&b_ns, &a_ns, a.address), "pod to pod, the other way");
        assert!(delivers(&here, &a_ns, a.address), "node to pod");
        assert!(delivers(&a_ns, &here, NODE), "pod to node");
        node.wiring.detach(&a).unwrap();
        assert_eq!(node.wiring.attached().unwrap(), vec![b.key.clone()]);
        node.wiring.detach(&b).unwrap();
        node.wiring.detach(&b).unwrap();
        assert!(
            !output("ip", &["-br", "link"]).contains("weft00"),
            "{}",
            output("ip", &["-br", "link"])
        );
    });
}

#[test]
fn attach_refuses_an_interface_that_is_there_and_leaves_it_alone() {
    on_a_node(|node| {
        let (a, netns) = pod(1);
        let mut inside = Rtnl::open_in(&netns).unwrap();
        inside.create_bridge(&LinkSpec::new("eth0")).unwrap();
        let refused = node.wiring.attach(&a, &netns, MTU, &Steps::begin()).unwrap_err();
        assert!(
            matches!(&refused, WiringError::InterfaceExists { name } if name == "eth0"),
            "{refused}"
        );
        assert_eq!(inside.get_link("eth0").unwrap().kind.as_deref(), Some("bridge"));
        assert_eq!(node.wiring.attached().unwrap(), vec![]);
    });
}

#[test]
fn attach_replaces_what_an_interrupted_one_left() {
    on_a_node(|node| {
        let ((a, first), (_, second)) = (pod(1), pod(1));
        node.add(&a, &first);
        node.add(&a, &second);
        assert_eq!(words(&node.wiring.check(&a, &second, MTU).unwrap()), [""; 0]);
    });
}

#[test]
fn a_pod_sends_from_the_moment_it_is_attached() {
    on_a_node(|node| {
        let here = NetNs::current().unwrap();
        let pods: Vec<_> = (1..21).map(pod).collect();
        for (pod, netns) in &pods {
            node.wiring.attach(pod, netns, MTU, &Steps::begin()).unwrap();
            assert!(delivers(netns, &here, NODE), "the first packet of {pod}");
        }
    });
}

#[test]
fn detach_never_touches_an_interface_of_somebody_else() {
    on_a_node(|node| {
        let (a, _) = pod(1);
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.create_bridge(&LinkSpec::new(&a.host_name())).unwrap();
        let refused = node.wiring.detach(&a).unwrap_err();
        assert!(matches!(refused, WiringError::HostNameTaken { .. }), "{refused}");
        assert!(rtnl.link(&a.host_name()).unwrap().is_some());
    });
}

#[test]
fn what_is_taken_away_is_cut_off_at_once_and_goes_a_little_later_with_others() {
    on_a_node(|node| {
        let pods: Vec<_> = (1..4).map(pod).collect();
        for (pod, netns) in &pods {
            node.add(pod, netns);
        }
        let [(a, in_a), (b, in_b), (stays, in_stays)] = &pods[..] else {
            unreachable!()
        };
        assert!(delivers(in_b, in_stays, stays.address));
        let mut rtnl = Rtnl::open().unwrap();
        let indices = [a, b].map(|pod| rtnl.link_index(&pod.host_name()).unwrap());
        for pod in [a, b] {
            node.wiring.detach(pod).unwrap();
        }
        assert!(!delivers(in_b, in_stays, stays.address));
        let attached = node.wiring.attached().unwrap();
        assert_eq!(attached, std::slice::from_ref(&stays.key));
        let mut looking = Pass::looking();
        let held = [stays.clone()];
        node.wiring.pass(&held, MTU, &mut looking).unwrap();
        assert_eq!(looking.into_findings(), []);

        // Its names are free, whether the kernel has removed it by now or not.
        node.add(a, in_a);
        assert!(delivers(in_a, in_stays, stays.address));
        let mut left = indices.to_vec();
        for _ in 0..500 {
            left.retain(|&index| rtnl.link(index).unwrap().is_some());
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("still there: {left:?}");
    });
}

#[test]
fn what_an_add_that_never_ended_left_is_no_pod_and_is_gone_before_the_next_one() {
    on_a_node(|node| {
        let pods: Vec<_> = (1..4).map(pod).collect();
        let [(whole, netns), (killed, in_killed), (lost, in_lost)] = &pods[..] else {
            unreachable!()
        };
        node.add(whole, netns);
        let unfinished = |pod, netns| node.wiring.attach(pod, netns, MTU, &Steps::begin()).unwrap();
        unfinished(killed, in_killed);
        assert_eq!(node.wiring.attached().unwrap(), std::slice::from_ref(&whole.key));
        let found = node.wiring.found().unwrap();
        assert!(found.iter().all(|found| found.key == whole.key), "{found:?}");

        node.wiring.remove_unfinished().unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        assert_eq!(rtnl.link(&killed.host_name()).unwrap(), None);
        let endpoints = || {
            let list = lock(&node.wiring.datapath).endpoints().list().unwrap();
            list.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(endpoints(), [whole.ip()]);

        // One that could not be taken back while the agent runs is told of, and goes.
        unfinished(lost, in_lost);
        let mut looking = Pass::looking();
        node.wiring
            .pass(std::slice::from_ref(whole), MTU, &mut looking)
            .unwrap();
        let found = looking.into_findings();
        assert!(
            found
                .iter()
                .any(|finding| finding.what.contains("of an ADD that never ended is there still")),
            "{found:?}"
        );
        let mut mending = Pass::mending();
        node.wiring
            .pass(std::slice::from_ref(whole), MTU, &mut mending)
            .unwrap();
        for _ in 0..500 {
            if rtnl.link(&lost.host_name()).unwrap().is_none() {
                assert_eq!(endpoints(), [whole.ip()]);
                assert_eq!(words(&node.wiring.check(whole, netns, MTU).unwrap()), [""; 0]);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} is there still", lost.host_name());
    });
}

#[test]
fn what_an_agent_did_not_get_to_remove_is_found_by_the_next() {
    on_a_node(|node| {
        let (pod, netns) = pod(1);
        node.add(&pod, &netns);
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.set_group(pod.host_name().as_str(), reaper::DOOMED).unwrap();
        let mut mending = Pass::mending();
        node.wiring.pass(&[], MTU, &mut mending).unwrap();
        let found = mending.into_findings();
        assert!(
            found
                .iter()
                .any(|finding| finding.what.contains("of a pod that is gone is there still")),
            "{found:?}"
        );
        for _ in 0..500 {
            if rtnl.link(pod.host_name().as_str()).unwrap().is_none() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} is there still", pod.host_name());
    });
}

#[test]
fn check_names_whatever_is_missing_or_changed() {
    on_a_node(|node| {
        let (a, netns) = pod(1);
        let host = a.host_name();
        let in_pod = |change: &dyn Fn(Rtnl) -> Result<bool, weft_kernel::Error>| {
            assert!(
                change(Rtnl::open_in(&netns).unwrap()).unwrap(),
                "the fault changed nothing"
            );
        };
        let faults: [(&str, &dyn Fn()); 9] = [
            ("is missing in the pod", &|| {
                in_pod(&|mut pod| pod.rename("eth0", "eth9"));
            }),
            ("eth0 is down in the pod", &|| {
                in_pod(&|mut pod| pod.set_up("eth0", false));
            }),
            ("has another MAC address", &|| {
                in_pod(&|mut pod| pod.set_mac("eth0", Mac([2, 0, 0, 0, 0, 9])));
            }),
            ("does not have 10.244.0.1", &|| {
                in_pod(&|mut pod| {
                    let eth0 = pod.link_index("eth0")?;
                    pod.delete_address(&a.pod_address(eth0))
                });
            }),
            ("default route via 169.254.1.1 dev eth0 is missing", &|| {
                netns
                    .run(|| drop(output("ip", &["route", "del", "default"])))
                    .unwrap();
            }),
            ("permanent neighbour 169.254.1.1 of eth0 is missing", &|| {
                netns
                    .run(|| {
                        drop(output(
                            "ip",
                            &["neigh", "flush", "dev", "eth0", "nud", "permanent"],
                        ));
                    })
                    .unwrap();
            }),
            ("is missing on the node", &|| {
                drop(output("ip", &["route", "del", "10.244.0.1"]));
            }),
            ("the datapath has another entry for 10.244.0.1", &|| {
                lock(&node.wiring.datapath).endpoints().remove(&a.ip()).unwrap();
            }),
            ("program from_pod is not attached", &|| {
                let index = Rtnl::open().unwrap().link_index(&host).unwrap();
                lock(&node.wiring.datapath).detach(index).unwrap();
            }),
        ];
        for (expected, fault) in faults {
            node.add(&a, &netns);
            fault();
            let found = node.wiring.check(&a, &netns, MTU).unwrap();
            assert!(
                words(&found).iter().any(|found| found.contains(expected)),
                "{expected}: {:?}",
                words(&found)
            );
            node.wiring.detach(&a).unwrap();
        }
    });
}

#[test]
fn repair_puts_right_what_others_changed_and_says_how_much() {
    on_a_node(|mut node| {
        let (a, netns) = pod(1);
        node.add(&a, &netns);
        let held = [a.clone()];
        let look = || {
            let mut pass = Pass::looking();
            node.wiring.pass(&held, MTU, &mut pass).unwrap();
            pass.into_findings()
        };
        let mend = || {
            let mut pass = Pass::mending();
            node.wiring.pass(&held, MTU, &mut pass).unwrap();
            pass.into_findings()
        };
        mend();
        assert_eq!(mend(), [], "nothing is wrong yet");

        let host = a.host_name();
        output("ip", &["route", "del", "10.244.0.1"]);
        output("ip", &["neigh", "del", "10.244.0.1", "dev", &host]);
        output("ip", &["link", "set", &host, "address", "02:00:00:00:00:01"]);
        output("ip", &["link", "set", &host, "mtu", "1400"]);
        output(
            "ip",
            &["route", "add", "10.244.0.77", "dev", &host, "proto", "87"],
        );
        lock(&node.wiring.datapath).endpoints().remove(&a.ip()).unwrap();
        let index = Rtnl::open().unwrap().link_index(&host).unwrap();
        lock(&node.wiring.datapath).detach(index).unwrap();
        let strict = Key::ipv4_conf(&host, "rp_filter").unwrap();
        sysctl::write_current(&[(strict, "1".into())]).unwrap();
        let found = look();
        let told: Vec<String> = found.iter().map(|found| found.what.clone()).collect();
        assert_eq!(
            told,
            [
                "map ENDPOINTS lacks 10.244.0.1".to_owned(),
                format!("from_pod and to_pod not attached to {host}"),
                format!("{host} has another Ethernet address than {}", a.host_mac()),
                format!("MTU of {host} is 1400 and should be 1500"),
                format!("net/ipv4/conf/{host}/rp_filter is 1 and should be 2"),
                format!("permanent neighbour 10.244.0.1 of {host} is missing or changed"),
                format!("route 10.244.0.1/32 dev {host} is missing or changed"),
                format!("route 10.244.0.77/32 dev {host} belongs to nobody"),
            ]
        );
        assert_eq!(look(), found, "looking changes nothing");
        assert_eq!(mend(), found);
        assert_eq!(look(), []);
        assert_eq!(words(&node.wiring.check(&a, &netns, MTU).unwrap()), [""; 0]);

        for fault in [
            &["link", "set", OVERLAY, "down"][..],
            &["link", "del", OVERLAY],
            &["addr", "flush", "dev", OVERLAY],
            &["route", "del", "10.244.0.0/16"],
            &["route", "del", "unreachable", "10.244.0.0/24"],
            &["link", "set", OVERLAY, "mtu", "1400"],
            &["link", "set", OVERLAY, "address", "02:00:00:00:00:01"],
            &["addr", "add", "10.244.0.9/32", "dev", "eth0"],
        ] {
            output("ip", fault);
            let (_, found) = node.net.audit(&node.desired).unwrap();
            assert!(!found.is_empty(), "{fault:?}");
            assert_eq!(node.net.reconcile(&node.desired).unwrap(), MTU);
            let state = output("ip", &["-o", "addr", "show", "dev", OVERLAY]);
            assert!(state.contains("10.224.0.4/32"), "{fault:?}: {state}");
            let link = output("ip", &["-o", "link", "show", OVERLAY]);
            assert!(
                link.contains("mtu 1450") && link.contains(",UP"),
                "{fault:?}: {link}"
            );
            let routes = output("ip", &["route"]);
            assert!(routes.contains("10.244.0.0/16 dev weft0"), "{fault:?}: {routes}");
            assert!(
                routes.contains("unreachable 10.244.0.0/24"),
                "{fault:?}: {routes}"
            );
            assert_eq!(node.net.audit(&node.desired).unwrap(), (MTU, vec![]), "{fault:?}");
        }
        let repairs = node.net.repairs();
        let named = |words: &str| repairs.iter().any(|repaired| repaired.finding.what == words);
        assert!(named("interface weft0 is missing"), "{repairs:?}");
        assert!(
            named("eth0 of the node has the pod address 10.244.0.9"),
            "{repairs:?}"
        );
        let links = Rtnl::open().unwrap().addresses(None).unwrap();
        assert!(
            links.iter().all(|held| held.net.to_string() != "10.244.0.9/32"),
            "{links:?}"
        );
        assert!(delivers(&netns, &NetNs::current().unwrap(), NODE));
    });
}

#[test]
fn a_pod_whose_namespace_went_away_leaves_nothing_in_the_datapath() {
    on_a_node(|node| {
        let (a, netns) = pod(1);
        node.add(&a, &netns);
        drop(netns);
        // The kernel removes a namespace's links some time after its last user left.
        for _ in 0..200 {
            if node.wiring.attached().unwrap().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        assert_eq!(node.wiring.attached().unwrap(), vec![]);
        node.wiring.detach(&a).unwrap();
        assert!(lock(&node.wiring.datapath).endpoints().list().unwrap().is_empty());
    });
}
