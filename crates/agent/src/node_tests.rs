//! What the agent does to a whole node, in a namespace of its own.

use super::in_namespaces::{desired, on_a_node, pod};
use super::*;
use crate::cleanup::{Cleanup, cleanup};
use crate::desired::{Desired, Prefix};
use crate::probe::Probe;
use std::collections::BTreeSet;
use weft_kernel::bpf;
use weft_kernel::nft::Nft;
use weft_kernel::sysctl::read_current;
use weft_kernel::target::Target;
use weft_model::codes;

fn routes() -> BTreeSet<Route> {
    let mut rtnl = Rtnl::open().unwrap();
    rtnl.routes(RouteFilter::default()).unwrap().into_iter().collect()
}

#[test]
fn the_probe_passes_on_a_node_in_order_and_leaves_nothing() {
    on_a_node(|node| {
        let (probe, before) = (Probe::new().unwrap(), routes());
        for _ in 0..2 {
            probe.run(&node.wiring, node.desired.address, 1450).unwrap();
        }
        assert_eq!(routes(), before);
        assert_eq!(node.wiring.attached().unwrap(), []);
    });
}

#[test]
fn the_probe_fails_where_packets_of_pods_are_dropped_and_leaves_nothing() {
    on_a_node(|node| {
        // Without the node's own address pods may not answer it.
        lock(&node.wiring.datapath)
            .prefixes()
            .apply(&"10.224.0.4/32".parse().unwrap(), &bpf::PrefixTarget::Pool)
            .unwrap();
        let probe = Probe::new().unwrap();
        let error = probe.run(&node.wiring, node.desired.address, 1450).unwrap_err();
        assert_eq!(error.code(), codes::PROBE_FAILED);
        assert_eq!(node.wiring.attached().unwrap(), []);
    });
}

#[test]
fn a_changed_slice_is_applied_by_itself_and_a_full_pass_restores_what_others_deleted() {
    on_a_node(|mut node| {
        let [kept, gone, new]: [ipnet::IpNet; 3] =
            ["10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24"].map(|net| net.parse().unwrap());
        let datapath = Arc::clone(&node.wiring.datapath);
        let prefixes = || lock(&datapath).prefixes().list().unwrap();
        let blocks = || -> Vec<String> {
            let held = lock(&datapath).blocks().list().unwrap();
            held.keys().map(ToString::to_string).collect()
        };
        assert_eq!(blocks(), ["10.244.0.0/24", "10.244.1.0/24"]);
        lock(&datapath).prefixes().remove(&kept).unwrap();

        let underlay = "10.224.0.6".parse().unwrap();
        let mut wish = desired();
        wish.prefixes.remove(&"10.244.1.0/24".parse().unwrap());
        wish.prefixes
            .insert("10.244.2.0/24".parse().unwrap(), Prefix::RemoteBlock { underlay });
        wish.nodes = [underlay].into();
        let wish = Arc::new(wish);
        assert!(node.net.update_peers(&wish).unwrap());
        let held = prefixes();
        assert_eq!(
            [&kept, &gone, &new].map(|net| held.contains_key(net)),
            [false, false, true],
            "only what changed is touched"
        );
        assert_eq!(blocks(), ["10.244.0.0/24", "10.244.2.0/24"]);
        let nodes = lock(&datapath).nodes().list().unwrap();
        assert_eq!(
            nodes.into_keys().collect::<Vec<_>>(),
            [std::net::IpAddr::from(underlay)]
        );

        node.net.reconcile(&wish).unwrap();
        assert!(prefixes().contains_key(&kept));

        // What is reached past the overlay has to be found inside a block, too.
        let mut exempt = Desired::clone(&wish);
        exempt
            .prefixes
            .insert("10.244.2.8/29".parse().unwrap(), Prefix::Native);
        assert!(node.net.update_peers(&exempt.into()).unwrap());
        assert_eq!(blocks(), ["10.244.0.0/24"]);
        assert!(node.net.update_peers(&wish).unwrap());
        assert_eq!(blocks(), ["10.244.0.0/24", "10.244.2.0/24"]);

        // What is the node's own is more than two maps.
        let own = Desired {
            blocks: vec![],
            ..Desired::clone(&wish)
        };
        assert!(!node.net.update_peers(&own.into()).unwrap());
    });
}

#[test]
fn a_node_that_gets_another_address_is_known_by_it_everywhere() {
    on_a_node(|mut node| {
        let new = "10.224.0.14".parse().unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        let eth0 = rtnl.link_index("eth0").unwrap();
        let net: ipnet::Ipv4Net = "10.224.0.14/16".parse().unwrap();
        let old: ipnet::Ipv4Net = "10.224.0.4/16".parse().unwrap();
        rtnl.delete_address(&Address::new(eth0, old)).unwrap();
        rtnl.add_address(&Address::new(eth0, net)).unwrap();
        let mut wish = desired();
        (wish.address, wish.addresses) = (new, vec![new]);
        wish.prefixes.remove(&"10.224.0.4/32".parse().unwrap());
        wish.prefixes
            .insert("10.224.0.14/32".parse().unwrap(), Prefix::SelfNode);
        node.net.reconcile(&wish.into()).unwrap();

        let config = lock(&node.wiring.datapath).config().unwrap().unwrap();
        assert_eq!(config.underlay, std::net::IpAddr::from(new));
        let overlay = rtnl.link_index(crate::node::OVERLAY).unwrap();
        let held = rtnl.addresses(Some(overlay)).unwrap();
        let held: Vec<_> = held.iter().map(|address| address.net.addr()).collect();
        assert_eq!(held, [std::net::IpAddr::from(new)]);
        let way = rtnl.route_to("10.244.1.7".parse().unwrap()).unwrap();
        assert_eq!(way.src, Some(new.into()));
        Probe::new().unwrap().run(&node.wiring, new, 1450).unwrap();
    });
}

#[test]
fn a_route_of_somebody_elses_in_the_pod_cidr_is_named() {
    on_a_node(|mut node| {
        let wish = desired();
        assert_eq!(node.net.overlapping_route(&wish).unwrap(), None);
        let mut rtnl = Rtnl::open().unwrap();
        let eth0 = rtnl.link_index("eth0").unwrap();
        let net: ipnet::Ipv4Net = "10.244.9.0/24".parse().unwrap();
        let foreign = Route {
            protocol: 4,
            ..Route::link(net, eth0)
        };
        rtnl.add_route(&foreign).unwrap();
        assert_eq!(
            node.net.overlapping_route(&wish).unwrap().as_deref(),
            Some("route 10.244.9.0/24 dev eth0 of the node overlaps pod CIDR 10.244.0.0/16")
        );
        // A node that is not on Weft is reached by just such a route, which Weft then leaves to work.
        let native = Desired {
            non_masquerade: [net].into(),
            ..wish
        };
        assert_eq!(node.net.overlapping_route(&native).unwrap(), None);
        node.net.reconcile(&native.into()).unwrap();
        assert!(routes().contains(&foreign));
        let way = rtnl.route_to("10.244.9.7".parse().unwrap()).unwrap();
        assert_eq!(way.oif, Some(eth0));
        // Without it, the default route is the way and not the overlay.
        rtnl.delete_route(&foreign).unwrap();
        assert!(rtnl.route_to("10.244.9.7".parse().unwrap()).is_err());
    });
}

#[test]
fn a_node_that_was_cleaned_up_is_as_it_was() {
    on_a_node(|node| {
        let dir = tempfile::tempdir().unwrap();
        let sub = |name: &str| dir.path().join(name);
        let options = |force| Cleanup {
            conf_dir: sub("net.d"),
            conf_name: "10-weft.conflist".parse().unwrap(),
            bin_dir: sub("bin"),
            run_dir: sub("run"),
            state_dir: node.state.clone(),
            pin_dir: node.pins.clone(),
            proc_sys: "/proc/sys".into(),
            force,
        };
        let (attachment, netns) = pod(7);
        node.add(&attachment, &netns);
        let error = cleanup(&options(false)).unwrap_err();
        assert_eq!(error.code(), codes::PODS_ON_WEFT);
        assert!(error.message().contains(&attachment.host_name()), "{error}");

        assert!(!cleanup(&options(true)).unwrap().is_empty());
        let links = Rtnl::open().unwrap().links().unwrap();
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["lo", "eth0"]);
        assert!(
            routes()
                .iter()
                .all(|route| route.protocol != weft_kernel::rtnl::RTPROT_WEFT)
        );
        assert!(!Nft::open().unwrap().has_table("weft").unwrap());
        assert!(!node.pins.exists());
        assert!(!node.state.exists());
        let forward = Key::new("net/ipv4/ip_forward").unwrap();
        assert_eq!(read_current(&forward).unwrap(), node.forwarded_before);
        assert_eq!(cleanup(&options(false)).unwrap(), Vec::<String>::new());
    });
}
