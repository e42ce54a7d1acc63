//! A node that changes over from another plugin's bridge, in a namespace of its own.

use super::in_namespaces::{desired, on_a_node};
use crate::desired::Desired;
use std::net::IpAddr;
use std::sync::Arc;
use weft_kernel::rtnl::{Address, LinkSpec, Route, RouteFilter, Rtnl};
use weft_model::codes;

#[test]
fn a_block_is_not_taken_from_a_bridge_with_pods_and_not_given_up_to_one() {
    on_a_node(|mut node| {
        let mut rtnl = Rtnl::open().unwrap();
        let new = "10.244.7.0/24".parse().unwrap();
        let up = |name| LinkSpec {
            up: true,
            ..LinkSpec::new(name)
        };
        rtnl.create_veth(&up("cni0"), &up("port")).unwrap();
        let cni0 = rtnl.link_index("cni0").unwrap();
        for gateway in ["10.244.7.1/24", "10.244.0.1/25"] {
            let gateway: ipnet::Ipv4Net = gateway.parse().unwrap();
            rtnl.add_address(&Address::new(cni0, gateway)).unwrap();
        }
        let route_of = |rtnl: &mut Rtnl, net: &str| -> Option<Route> {
            let net: ipnet::IpNet = net.parse().unwrap();
            let mut routes = rtnl.routes(RouteFilter::default()).unwrap().into_iter();
            routes.find(|route| route.dst == net)
        };

        // The block that was in use before the bridge came.
        node.net.reconcile(&node.desired).unwrap();

        let wish = Arc::new(Desired {
            blocks: vec![desired().blocks[0], new],
            ..desired()
        });
        let error = node.net.reconcile(&wish).unwrap_err();
        assert_eq!(error.code(), codes::BLOCK_HELD);
        assert_eq!(
            error.message(),
            "interface cni0 has the address 10.244.7.1/24 in this node's block 10.244.7.0/24"
        );
        let bridged = route_of(&mut rtnl, "10.244.7.0/24").unwrap();
        assert_eq!(bridged.oif, Some(cni0));
        assert_eq!(bridged.src, Some(IpAddr::from([10, 244, 7, 1])));

        rtnl.delete_link("cni0").unwrap();
        node.net.reconcile(&wish).unwrap();
        let net: ipnet::Ipv4Net = "10.244.7.0/24".parse().unwrap();
        assert_eq!(
            route_of(&mut rtnl, "10.244.7.0/24"),
            Some(Route::unreachable(net))
        );
    });
}
