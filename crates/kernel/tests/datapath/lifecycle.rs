//! Agents come and go; the datapath stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};

use weft_kernel::bpf::{
    AttachMode, Attachment, Counters, Datapath, Endpoint, ForwardPath, Identity, Options, Program,
};
use weft_kernel::rtnl::LinkSpec;
use weft_kernel::target::Target;
use weft_model::Mac;

use crate::echo::{Echo, megabyte, tcp_echo};
use crate::namespaces::TestNs;
use crate::needs_root;
use crate::support::{Bpffs, Cluster, Node};

const MODES: [AttachMode; 3] = [AttachMode::Auto, AttachMode::Tcx, AttachMode::Clsact];
/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;
const NO_INTERFACE: u32 = 4_000_000;

fn attached(node: &mut Node) -> BTreeSet<Attachment> {
    let datapath = &mut node.datapath;
    node.ns.netns.run(|| datapath.attached().unwrap()).unwrap()
}

fn attached_to(node: &Node, ifindex: u32) -> BTreeSet<Program> {
    let datapath = &node.datapath;
    node.ns
        .netns
        .run(|| datapath.attached_to(ifindex).unwrap())
        .unwrap()
}

fn at(ifindex: u32, programs: [Program; 2]) -> impl Iterator<Item = Attachment> {
    programs
        .into_iter()
        .map(move |program| Attachment { ifindex, program })
}

/// Ends the node's agent and starts another.
fn restart(node: &mut Node) {
    node.datapath = Datapath::load(&node.options).unwrap();
}

fn attach(node: &mut Node, ifindex: u32, name: &str) {
    let datapath = &mut node.datapath;
    node.ns
        .netns
        .run(|| datapath.attach_pod(ifindex, name).unwrap())
        .unwrap();
}

fn echo(cluster: &Cluster, one: &crate::support::Pod, two: &crate::support::Pod) {
    assert!(!cluster.nodes.is_empty());
    let to = SocketAddrV4::new(two.address, 7);
    tcp_echo(&one.ns.netns, &two.ns.netns, to, to, &megabyte()).unwrap();
}

#[test]
fn what_is_attached_is_known_and_can_be_taken_off() {
    needs_root!();
    for attach_mode in MODES {
        let mut cluster = Cluster::with(1, |options| Options {
            attach: attach_mode,
            ..options
        });
        let (one, two) = (cluster.pod(0, 1), cluster.pod(0, 2));
        echo(&cluster, &one, &two);
        let node = &mut cluster.nodes[0];
        let mut expected: BTreeSet<Attachment> = at(node.overlay, [Program::FromOverlay, Program::ToOverlay])
            .chain(at(node.uplink, [Program::FromUplink, Program::ToUplink]))
            .chain(at(one.endpoint.ifindex, [Program::FromPod, Program::ToPod]))
            .chain(at(two.endpoint.ifindex, [Program::FromPod, Program::ToPod]))
            .collect();
        assert_eq!(attached(node), expected, "{attach_mode:?}");
        for (ifindex, programs) in [
            (node.overlay, vec![Program::FromOverlay, Program::ToOverlay]),
            (node.uplink, vec![Program::FromUplink, Program::ToUplink]),
            (two.endpoint.ifindex, vec![Program::FromPod, Program::ToPod]),
            (LOOPBACK, vec![]),
            (NO_INTERFACE, vec![]),
        ] {
            let programs = BTreeSet::from_iter(programs);
            assert_eq!(attached_to(node, ifindex), programs, "{attach_mode:?}");
        }
        // Again changes nothing.
        attach(node, one.endpoint.ifindex, &one.host_name);
        assert_eq!(attached(node), expected, "{attach_mode:?}");

        let datapath = &mut node.datapath;
        node.ns
            .netns
            .run(|| datapath.detach(one.endpoint.ifindex).unwrap())
            .unwrap();
        expected.retain(|attachment| attachment.ifindex != one.endpoint.ifindex);
        assert_eq!(attached(node), expected, "{attach_mode:?}");
        assert_eq!(attached_to(node, one.endpoint.ifindex), BTreeSet::new());
        let datapath = &mut node.datapath;
        node.ns
            .netns
            .run(|| datapath.detach(one.endpoint.ifindex).unwrap())
            .unwrap();

        node.ns.rtnl().delete_link(two.host_name.as_str()).unwrap();
        expected.retain(|attachment| attachment.ifindex != two.endpoint.ifindex);
        assert_eq!(attached(node), expected, "{attach_mode:?}");
        assert_eq!(attached_to(node, two.endpoint.ifindex), BTreeSet::new());
    }
}

#[test]
fn pods_talk_on_while_no_agent_runs_and_the_next_one_takes_over_what_it_finds() {
    needs_root!();
    for attach_mode in MODES {
        let mut cluster = Cluster::with(2, |options| Options {
            attach: attach_mode,
            ..options
        });
        let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
        echo(&cluster, &one, &two);
        let before = attached(&mut cluster.nodes[0]);
        let options = cluster.nodes[0].options.clone();
        let counts = cluster.nodes[0].counts();
        let elsewhere = Bpffs::new();
        // Another datapath in its place drops the first one's descriptors, as the end of the process would.
        cluster.nodes[0].datapath = Datapath::load(&Options::new(elsewhere.path.join("pins"))).unwrap();
        echo(&cluster, &one, &two);
        let counters = Counters::open(&options.pin_dir).unwrap();
        let sent = counters.forwards().unwrap()[&ForwardPath::PodToOverlay].packets;
        assert!(sent > counts.forwards[&ForwardPath::PodToOverlay]);

        let node = &mut cluster.nodes[0];
        restart(node);
        assert_eq!(attached(node), before, "{attach_mode:?}");
        assert_eq!(node.counts().forwards[&ForwardPath::PodToOverlay], sent);
        let endpoints = node.datapath.endpoints().list().unwrap();
        assert_eq!(
            endpoints,
            BTreeMap::from([(IpAddr::from(one.address), one.endpoint)])
        );
        attach(node, one.endpoint.ifindex, &one.host_name);
        assert_eq!(attached(node), before, "{attach_mode:?}");
        echo(&cluster, &one, &two);
    }
}

#[test]
fn no_packet_is_lost_while_programs_are_replaced() {
    needs_root!();
    for attach_mode in MODES {
        let mut cluster = Cluster::with(1, |options| Options {
            attach: attach_mode,
            ..options
        });
        let (one, two) = (cluster.pod(0, 1), cluster.pod(0, 2));
        let flow = Echo::start(
            &one.ns.netns,
            &two.ns.netns,
            SocketAddrV4::new(two.address, 7),
            SocketAddrV4::new(two.address, 7),
        );
        let done = AtomicBool::new(false);
        let node = &mut cluster.nodes[0];
        let before = node.counts();
        let trips = std::thread::scope(|scope| {
            let talking = scope.spawn(|| {
                let mut trips = 0;
                while !done.load(Ordering::Relaxed) {
                    flow.round_trip();
                    trips += 1;
                }
                trips
            });
            for _ in 0..20 {
                restart(node);
                for pod in [&one, &two] {
                    attach(node, pod.endpoint.ifindex, &pod.host_name);
                }
            }
            done.store(true, Ordering::Relaxed);
            talking.join().unwrap()
        });
        // Each went by a program: none slipped past between two.
        let moved = node.counts().since(&before);
        assert_eq!(
            moved,
            crate::support::Counts::default().forward(ForwardPath::PodToPod, 2 * trips)
        );
    }
}

#[test]
fn a_new_interface_under_an_old_index_is_attached_anew() {
    needs_root!();
    let bpffs = Bpffs::new();
    let ns = TestNs::quiet("node");
    let mut datapath = Datapath::load(&Options::new(bpffs.path.join("pins"))).unwrap();
    for _ in 0..2 {
        ns.exec("ip link add pod0 index 77 type veth peer name pod1");
        let expected = at(77, [Program::FromPod, Program::ToPod]).collect();
        ns.netns.run(|| datapath.attach_pod(77, "pod0").unwrap()).unwrap();
        assert_eq!(ns.netns.run(|| datapath.attached().unwrap()).unwrap(), expected);
        ns.rtnl().delete_link("pod0").unwrap();
        assert_eq!(
            ns.netns.run(|| datapath.attached().unwrap()).unwrap(),
            BTreeSet::new()
        );
    }
    let gone = ns
        .netns
        .run(|| datapath.attach_pod(77, "pod0").unwrap_err())
        .unwrap();
    assert!(gone.is_not_found(), "{gone}");
}

#[test]
fn removing_a_datapath_leaves_nothing() {
    needs_root!();
    for attach_mode in MODES {
        let bpffs = Bpffs::new();
        let ns = TestNs::quiet("node");
        let options = Options {
            attach: attach_mode,
            ..Options::new(bpffs.path.join("weft"))
        };
        let mut datapath = Datapath::load(&options).unwrap();
        ns.rtnl()
            .create_veth(&LinkSpec::new("pod0"), &LinkSpec::new("pod1"))
            .unwrap();
        let ifindex = ns.rtnl().link_index("pod0").unwrap();
        ns.netns
            .run(|| {
                datapath.attach_pod(ifindex, "pod0").unwrap();
                datapath.remove().unwrap();
            })
            .unwrap();
        assert!(!options.pin_dir.exists());
        let mut fresh = Datapath::load(&options).unwrap();
        assert_eq!(
            ns.netns.run(|| fresh.attached().unwrap()).unwrap(),
            BTreeSet::new(),
            "{attach_mode:?}"
        );
    }
}

#[test]
fn pins_of_another_version_go_when_told() {
    needs_root!();
    let bpffs = Bpffs::new();
    let pins = bpffs.path.join("weft");
    std::fs::create_dir_all(pins.join("v0/links")).unwrap();
    let mut datapath = Datapath::load(&Options::new(&pins)).unwrap();
    datapath.remove_other_versions().unwrap();
    let left: Vec<_> = std::fs::read_dir(&pins)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [format!("v{}", weft_kernel::bpf::ABI_VERSION).as_str()]);
}

#[test]
fn a_pin_directory_on_another_file_system_is_refused_with_the_way_out() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let refused = Datapath::load(&Options::new(dir.path().join("weft")))
        .unwrap_err()
        .to_string();
    let path = dir.path().display();
    assert_eq!(
        refused,
        format!(
            "prepare pin directory {path}/weft: {path} is not on a BPF file system; \
             mount one: mount -t bpf bpf /sys/fs/bpf"
        )
    );
}

#[test]
fn endpoints_are_compared_by_what_is_managed_and_keep_what_is_not() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(0, 2));
    cluster.nodes[0].dnat(&format!("ip daddr 10.0.0.10 dnat to {}", two.address));
    let flow = Echo::start(
        &one.ns.netns,
        &two.ns.netns,
        SocketAddrV4::new(two.address, 7),
        "10.0.0.10:7".parse().unwrap(),
    );
    flow.round_trip();
    let key = IpAddr::from(two.address);
    let endpoints = &mut cluster.nodes[0].datapath;
    assert_eq!(endpoints.endpoints().with_stack_flows().unwrap(), [key]);
    assert_eq!(endpoints.endpoints().list().unwrap()[&key], two.endpoint);
    assert_eq!(endpoints.endpoints().get(&key).unwrap(), Some(two.endpoint));
    let nobody = IpAddr::from([10, 244, 0, 99]);
    assert_eq!(endpoints.endpoints().get(&nobody).unwrap(), None);
    let renamed = Endpoint {
        identity: Identity::new(4711).unwrap(),
        ..two.endpoint
    };
    endpoints.endpoints().apply(&key, &renamed).unwrap();
    assert_eq!(endpoints.endpoints().list().unwrap()[&key], renamed);
    assert_eq!(endpoints.endpoints().with_stack_flows().unwrap(), [key]);
    flow.round_trip();

    // The same address on another interface is another pod, of which nothing is known.
    let moved = Endpoint {
        ifindex: 999,
        mac: Mac([2; 6]),
        ..two.endpoint
    };
    endpoints.endpoints().apply(&key, &moved).unwrap();
    assert!(endpoints.endpoints().with_stack_flows().unwrap().is_empty());
    assert_eq!(
        endpoints.endpoints().list().unwrap(),
        BTreeMap::from([(key, moved), (one.address.into(), one.endpoint)])
    );
    // An address that takes over an interface leaves half an endpoint behind, which equals nothing that is wanted.
    let other = IpAddr::from([10, 244, 0, 50]);
    endpoints.endpoints().apply(&other, &moved).unwrap();
    let found = endpoints.endpoints().list().unwrap();
    for key in [key, other] {
        assert_eq!(endpoints.endpoints().get(&key).unwrap(), found.get(&key).copied());
    }
    assert_eq!((found[&other], found[&key].ifindex), (moved, 0));
    for key in [key, other, other] {
        endpoints.endpoints().remove(&key).unwrap();
    }
    assert_eq!(
        endpoints.endpoints().list().unwrap(),
        BTreeMap::from([(one.address.into(), one.endpoint)])
    );
}
